"""Python objects as data: every form gives the same batches, and streams are held in files, not in memory."""

from __future__ import annotations

import gc
import itertools
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.image_models import classifier, loaded, picture, two_inputs

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe
from onnxprune.execution.channel_moments import Moments
from onnxprune.execution.data import Data, Feeds, Preprocess, load_data

X = np.random.default_rng(0).standard_normal((10, 3, 8, 8)).astype(np.float32)
Y = np.arange(10) % 4
MODEL = loaded(classifier())


class Rows:
    """Map-style Dataset."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < len(X):
            raise IndexError(i)
        return X[i], int(Y[i])


class Blocks:
    """Dataset of Keras, whose items are batches."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> Any:
        return X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2]


class Reader:
    """CalibrationDataReader of onnxruntime."""

    def __init__(self, name: str = "x") -> None:
        self.feeds = iter([{name: X[:4]}, {name: X[4:8]}, {name: X[8:]}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def by_batch() -> Iterator[Any]:
    yield X[:4], Y[:4]
    yield X[4:8], Y[4:8]
    yield X[8:], Y[8:]


def by_sample() -> Iterator[Any]:
    yield from zip(X, Y, strict=True)


def loader() -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(Rows(), batch_size=3)  # type: ignore[arg-type]


LABELLED: dict[str, Callable[[], Any]] = {
    "tuple": lambda: (X, Y),
    "dict": lambda: {"x": X, "y": Y},
    "Dataset": Rows,
    "Dataset of batches": Blocks,
    "DataLoader": loader,
    "generator of batches": lambda: by_batch(),
    "generator of samples": lambda: by_sample(),
    "function": lambda: by_batch,
    "function of arrays": lambda: lambda: (X, Y),
    "list of batches": lambda: list(by_batch()),
    "dicts": lambda: [{"x": x, "labels": y} for x, y in by_batch()],
}
BARE: dict[str, Callable[[], Any]] = {
    "array": lambda: X,
    "batches": lambda: (x for x, _ in by_batch()),
    "samples": lambda: (x for x in X),
    "feeds": lambda: ({"x": x} for x, _ in by_batch()),
    "lists": lambda: [[x] for x, _ in by_batch()],
}


def inputs_of(data: Data, batch: int = 4) -> Any:
    feeds = Feeds(MODEL, data, Preprocess(), batch)
    return np.concatenate([feeds[i][0]["x"] for i in range(len(feeds))])


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_objects_are_all_the_same_data(name: str) -> None:
    data = load_data(LABELLED[name](), model=MODEL)
    np.testing.assert_array_equal(inputs_of(data), X)
    assert data.y is not None
    np.testing.assert_array_equal(data.y, Y)


@pytest.mark.parametrize("name", BARE)
def test_objects_without_labels_are_all_the_same_data(name: str) -> None:
    data = load_data(BARE[name](), model=MODEL)
    np.testing.assert_array_equal(inputs_of(data), X)
    assert data.kind == ""


def test_a_calibration_reader_gives_its_samples() -> None:
    data = load_data(Reader(), model=MODEL)
    assert len(data) == len(load_data(Reader())) == 10
    np.testing.assert_array_equal(inputs_of(data), X)
    with pytest.raises(OnnxPruneError, match=r"1 input \('x'\), the data has 'z'"):
        Feeds(MODEL, load_data(Reader("z"), model=MODEL), Preprocess())


def test_a_named_function_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("own_samples")
    module.stream = by_batch  # type: ignore[attr-defined]
    module.broken = lambda: 1 / 0  # type: ignore[attr-defined]
    module.number = lambda: 5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_samples", module)
    np.testing.assert_array_equal(inputs_of(load_data("own_samples:stream", model=MODEL)), X)
    with pytest.raises(OnnxPruneError, match="'own_samples:broken' failed: ZeroDivisionError"):
        load_data("own_samples:broken")
    with pytest.raises(OnnxPruneError, match="is a int, which is no source of samples"):
        load_data("own_samples:number")


def test_dicts_of_samples_feed_several_inputs() -> None:
    a, b = np.ones((3, 3), np.float32), np.zeros((3, 5), np.float32)
    model = loaded(two_inputs())
    forms = [[{"a": a, "b": b}], [{"a": a[i], "b": b[i]} for i in range(3)], {"a": a, "b": b}]
    for given_ in forms:
        feeds, _ = Feeds(model, load_data(given_, model=model), Preprocess())[0]
        assert {n: v.shape for n, v in feeds.items()} == {"a": (3, 3), "b": (3, 5)}


def test_pillow_images_of_several_sizes_are_images() -> None:
    images = [picture(6, 9, 0), picture(12, 5, 1), picture(8, 8, 2)]
    data = load_data([(image, k) for k, image in enumerate(images)], model=MODEL)
    assert data.source.images
    assert data.y is not None
    assert data.y.tolist() == [0, 1, 2]
    assert inputs_of(data).shape == (3, 3, 8, 8)
    np.testing.assert_allclose(inputs_of(data)[2], np.asarray(images[2]).transpose(2, 0, 1) / 255, rtol=1e-6)


def test_samples_of_several_shapes_are_grouped() -> None:
    model = loaded(classifier(size=("h", "w")))
    shapes = [(3, 8, 8), (3, 8, 10), (3, 8, 8), (3, 8, 10), (3, 4, 8)]
    samples = [np.full(s, i, np.float32) for i, s in enumerate(shapes)]
    feeds = Feeds(model, load_data(iter(samples), model=model), Preprocess(), 8)
    found = {int(n): feeds[i][0]["x"][k] for i in range(len(feeds)) for k, n in enumerate(feeds.indices(i))}
    for i, sample in enumerate(samples):
        np.testing.assert_array_equal(found[i], sample)
    assert len(feeds) == 3


def test_images_limits_what_is_read_of_a_stream() -> None:
    drawn = []

    def endless() -> Iterator[Any]:
        while True:
            drawn.append(1)
            yield X[:4]

    data = load_data(endless(), model=MODEL, images=6)
    assert len(data) == 6
    assert len(drawn) == 2


def test_few_samples_of_a_stream_are_alive_at_a_time() -> None:
    alive: set[int] = set()
    most = 0

    class Sample(np.ndarray):
        pass

    def stream(count: int) -> Iterator[Any]:
        nonlocal most
        for i in range(count):
            sample = np.full((3, 8, 8), i, np.float32).view(Sample)
            alive.add(i)
            weakref.finalize(sample, alive.discard, i)
            most = max(most, len(alive))
            yield sample
            del sample

    gc.disable()
    try:
        data = load_data(stream(500), model=MODEL)
        Calibration(data).collect(MODEL, [Probe("a", Moments("a"))])
    finally:
        gc.enable()
    assert len(data) == 500
    assert most <= 3


@pytest.mark.parametrize("count", [40, 4000])
def test_calibration_holds_one_batch_whatever_the_number_of_samples(count: int) -> None:
    class Counting:
        largest = 0

        def __len__(self) -> int:
            return count

        def __getitem__(self, part: Any) -> Any:
            index = np.arange(count)[part]
            self.largest = max(self.largest, len(index))
            return np.ones((len(index), 3, 8, 8), np.float32)

    samples = Counting()
    from onnxprune.execution.data._sources import ArraySource

    data = Data(ArraySource({"": samples}), None, "d")  # type: ignore[dict-item]
    found = Moments("a")
    Calibration(data, batch=16).collect(MODEL, [Probe("a", found)])
    assert samples.largest == 16
    assert np.isfinite(found.variance).all()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has no samples"),
        ([X[:2], X[:2, :, :, :, None]], "has other axes than those before|does not fit"),
        ([(X[0], 1), X[1]], "has no target"),
        ([X[0], (X[1], 1)], "those before have none"),
        ([{"x": X[:2]}, {"z": X[:2]}], "the samples hold 'z', those before 'x'"),
        ([np.array(["a", "b"])], "not numbers"),
        ([(X[:2], Y[:2], Y[:2])], "an item is a tuple of 3"),
        ([(X[0], {"mask": 1})], "a target of 'list_iterator' is a dict of 'mask'"),
        ([(X[0], {"boxes": np.zeros((2, 4)), "labels": [1]})], "2 boxes and 1 labels"),
        ([[[1, 2], [3], [4]]], "no array of numbers"),
        ([(X[:4], Y[:3])], "a batch of 4 samples has 3 targets|integer labels"),
    ],
)
def test_streams_of_other_forms_are_one_error(items: list[Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        load_data(iter(items), model=MODEL)


def test_a_stream_that_fails_names_the_item() -> None:
    def stream() -> Iterator[Any]:
        yield X[:4]
        raise RuntimeError("gone")

    with pytest.raises(OnnxPruneError, match="failed after 4 samples: RuntimeError: gone") as caught:
        load_data(stream, model=MODEL)
    assert caught.value.where == "item 1"


def test_targets_of_torchvision_detectors_are_boxes() -> None:
    target = {"boxes": np.array([[1, 2, 5, 6]]), "labels": np.array([3])}
    for x, wanted in ((X[0], [[1, 2, 5, 6]]), (picture(16, 8), [[1, 1, 5, 3]])):
        data = load_data([(x, target)], model=MODEL)
        assert data.kind == "boxes"
        targets = Feeds(MODEL, data, Preprocess())[0][1]
        assert targets is not None
        [boxes] = targets
        np.testing.assert_allclose(boxes.boxes, wanted)  # type: ignore[union-attr]


def test_masks_of_a_stream_are_held_in_a_file() -> None:
    masks = [np.full((8, 8), i, np.uint8) for i in range(5)]
    data = load_data(((X[i], masks[i]) for i in range(5)), model=MODEL)
    assert data.kind == "masks"
    assert not isinstance(data.targets, list)
    feeds = Feeds(MODEL, data.take(np.array([4, 1])), Preprocess())
    targets = feeds[0][1]
    assert targets is not None
    np.testing.assert_array_equal(targets[0], masks[4])
    np.testing.assert_array_equal(targets[1], masks[1])


def test_a_stream_that_ends_early_is_pointed_out() -> None:
    class Short:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Iterator[Any]:
            yield from by_batch()

    with pytest.raises(OnnxPruneError, match="ended after 3 of the 5 items"):
        load_data(Short(), model=MODEL)
    assert "ended after 10 samples, and 300 were asked for" in load_data(by_batch, model=MODEL, images=300).warnings[0]


def test_a_used_generator_says_that_it_is_empty() -> None:
    used = by_batch()
    list(used)
    with pytest.raises(OnnxPruneError, match="a generator can be read once"):
        load_data(used, model=MODEL)


def test_streamed_data_reaches_other_processes_and_leaves_no_file() -> None:
    data = load_data(by_batch, model=MODEL)
    [path] = {spool.path for spool in data.source.spools.values()}  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(inputs_of(again), X)
    del again
    assert path.exists()
    del data
    gc.collect()
    assert not path.exists()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(1, 7), st.booleans())
def test_the_division_into_batches_of_a_stream_does_not_matter(parts: list[int], batch: int, labels: bool) -> None:
    total = sum(parts)
    x = np.arange(total * 192, dtype=np.float32).reshape(total, 3, 8, 8)
    edges = np.cumsum([0, *parts])
    items = [(x[a:b], np.arange(a, b)) if labels else x[a:b] for a, b in itertools.pairwise(edges)]
    data = load_data(iter(items), model=MODEL)
    np.testing.assert_array_equal(inputs_of(data, batch), x)
    chosen = data.take(np.arange(total)[::-1])
    np.testing.assert_array_equal(inputs_of(chosen, batch), x[::-1])
    if labels:
        assert chosen.y is not None
        assert chosen.y.tolist() == list(range(total))[::-1]


def test_whole_feeds_keep_axes_that_are_no_samples() -> None:
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "h"], ["s"]), helper.make_node("Mul", ["s", "rate"], ["y"])],
        "state",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, 1, 4]),
            helper.make_tensor_value_info("rate", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 1, 4])],
    )
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = loaded(proto)
    feed = {"x": np.ones((1, 4), np.float32), "h": np.zeros((2, 1, 4), np.float32), "rate": np.float32(2)}
    data = load_data([feed, feed, feed], model=model)
    feeds = Feeds(model, data, Preprocess())
    assert len(feeds) == 3
    assert {n: v.shape for n, v in feeds[1][0].items()} == {"x": (1, 4), "h": (2, 1, 4), "rate": ()}
    many = {"x": np.ones((3, 1, 4), np.float32), "h": np.zeros((3, 2, 1, 4), np.float32), "rate": np.float32(2)}
    for form, count in ((many, 3), ({**many, "rate": np.full(3, 2, np.float32)}, 3), (feed, 1)):
        feeds = Feeds(model, load_data(form, model=model), Preprocess())
        assert len(feeds) == count
        assert {n: v.shape for n, v in feeds[count - 1][0].items()} == {"x": (1, 4), "h": (2, 1, 4), "rate": ()}
    with pytest.raises(OnnxPruneError, match="no complete feeds"):
        load_data({**many, "h": np.zeros((2, 1, 4), np.float32)}, model=model)


def test_a_data_set_of_the_hub_is_read_from_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [picture(8, 8, k) for k in range(4)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c", "d"])})
    made = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2, 3]}, features=features)
    datasets.DatasetDict({"train": made, "test": made}).save_to_disk(str(tmp_path / "set"))
    data = load_data(f"hf:{tmp_path / 'set'}:test", model=MODEL)
    assert data.classes == ("a", "b", "c", "d")
    assert len(data) == 4
    np.testing.assert_allclose(inputs_of(data)[1], np.asarray(images[1]).transpose(2, 0, 1) / 255, rtol=1e-6)
    with pytest.raises(OnnxPruneError, match="no split 'val'"):
        load_data(f"hf:{tmp_path / 'set'}:val")


def test_without_the_library_of_the_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OnnxPruneError, match="needs the library datasets") as caught:
        load_data("hf:mnist:test")
    assert "onnxprune[datasets]" in str(caught.value.fix)
