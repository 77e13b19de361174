"""A walk through a model's cuts gives what one run of the whole model gives, wherever its tensors are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs.graphs import BATCH, PROPERTY, SIDE, Spec, build, specs

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import exposing, is_finite
from onnxprune.execution.data import Data, Feeds, Preprocess, load_data
from onnxprune.execution.graph_segments import MEMORY, ActivationCursor, Segments
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


def feeds_of(analysis: Analysis, data: Data, batch: int = 2) -> Feeds:
    return Feeds(analysis.model, data, Preprocess(), batch)


def samples(spec: Spec) -> Data:
    """A last batch that is not full; where the batch is fixed it is filled up with a copy."""
    rng = np.random.default_rng(spec.seed)
    return Data(rng.standard_normal((2 * BATCH - 1, 3, SIDE, SIDE)).astype(np.float32), None, "random")


def by_sample(analysis: Analysis) -> list[str]:
    """Float tensors whose first axis holds the samples."""
    seen = analysis.witness
    batch = seen.shapes[analysis.model.graph.inputs[0].name][0]
    made = Segments(analysis.model, seen).producer_index
    return [
        n for n in made
        if seen.shapes.get(n, (0,))[:1] == (batch,) and seen.dtypes.get(n, np.dtype(np.float32)) == np.float32
    ]  # fmt: skip


def whole_run(model: Model, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
    """Tensors of one run of everything, without the copies that fill up the last batch."""
    session = Session(exposing(model, names), threads=1)
    runs = []
    for i in range(len(feeds)):
        length = feeds.batch if feeds.fixed else feeds.real(i)
        runs.append([v[: len(v) // length * feeds.real(i)] for v in session.run(feeds[i][0])])
    return {n: np.concatenate(c) for n, *c in zip(names, *runs, strict=True)}


def joined(batches: Sequence[dict[str, Array]]) -> dict[str, Array]:
    return {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}


def assert_same(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    for name, values in found.items():
        np.testing.assert_allclose(
            values, wanted[name], rtol=0, atol=1e-5 * max(1.0, float(np.abs(wanted[name]).max())), err_msg=name
        )


@PROPERTY(max_examples=30)
@given(specs(), st.lists(st.floats(0, 1), min_size=1, max_size=4), st.sampled_from((0, 5000, MEMORY)))
def test_a_walk_gives_the_tensors_of_one_run(spec: Spec, shares: list[float], memory: int) -> None:
    analysis = analyze(load(build(replace(spec, half=False))))
    segments, feeds = Segments(analysis.model, analysis.witness), feeds_of(analysis, samples(spec))
    names = by_sample(analysis)
    wanted = whole_run(analysis.model, feeds, names)
    rng = np.random.default_rng(spec.seed)
    with ActivationCursor(segments, feeds, threads=1, memory=memory) as cursor:
        assert len(cursor) == len(feeds)
        assert [i for b in range(len(cursor)) for i in cursor.samples(b)] == list(range(2 * BATCH - 1))
        for node_index in sorted(round(share * len(segments.nodes)) for share in shares):
            cursor.advance(node_index)
            assert cursor._store._used <= memory
            live = set(segments.live(node_index))
            ahead = [n for n in names if segments.producer_index[n] >= node_index or n in live]
            asked = [n for n in ahead if rng.random() < 0.5] or ahead
            if asked:
                assert_same(joined(list(cursor.values(asked))), wanted)
        outputs = segments.outputs
        assert_same(joined(list(cursor.values(outputs))), wanted)


def digits(count: int = 20) -> tuple[Analysis, Feeds]:
    analysis = analyze(load(DIGITS))
    return analysis, feeds_of(analysis, load_data("digits:test", images=count), batch=8)


def test_what_does_not_fit_into_memory_waits_in_a_folder_that_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)
    middle = len(segments.nodes) // 2
    each = segments.bytes_of(segments.live(middle))
    counts = {}
    for memory in (0, 12 * each, MEMORY):
        with ActivationCursor(segments, feeds, threads=1, memory=memory) as cursor:
            cursor.advance(middle)
            counts[memory] = len(list(tmp_path.rglob("*.npy")))
            cursor.advance(len(segments.nodes) - 1)
            if memory == 0:  # what lies behind is deleted on the way
                assert len(list(tmp_path.rglob("*.npy"))) == len(cursor) * len(segments.live(cursor.node_index))
        assert not list(tmp_path.iterdir())
    live = len(segments.live(middle))
    assert counts[0] == 3 * live
    assert counts[MEMORY] == 0 < counts[12 * each] < 3 * live  # of 20 samples those of 8 find room, those of 8 do not


def test_the_folder_goes_after_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)

    def fails() -> None:
        with ActivationCursor(segments, feeds, threads=1, memory=0) as cursor:
            cursor.advance(5)
            assert list(tmp_path.iterdir())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not list(tmp_path.iterdir())


def test_a_walk_does_not_go_back() -> None:
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)
    with ActivationCursor(segments, feeds, threads=1) as cursor:
        cursor.advance(6)
        held = cursor._held
        for node_index in (6, 3, 0):
            cursor.advance(node_index)
            assert (cursor.node_index, cursor._held) == (6, held)


def test_a_changed_segment_takes_the_place_of_the_model_s_own() -> None:
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)
    node_index = len(segments.nodes) - 1
    output = segments.outputs[0]
    with ActivationCursor(segments, feeds, threads=1) as cursor:
        cursor.advance(node_index)
        before = joined(list(cursor.values([output])))[output]
        model = segments.segment(node_index, node_index + 1, [output])
        [last] = model.graph.nodes
        assert last.op == "Gemm"
        last.inputs[2].values = last.inputs[2].values + np.arange(10, dtype=np.float32)
        after = joined(list(cursor.values([output], model=model)))[output]
        np.testing.assert_allclose(after - before, np.broadcast_to(np.arange(10), before.shape), atol=1e-4)
        np.testing.assert_array_equal(joined(list(cursor.values([output])))[output], before)  # the model is as it was


def test_weights_may_change_between_segments() -> None:
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)
    output = segments.outputs[0]
    with ActivationCursor(segments, feeds, threads=1) as cursor:
        cursor.advance(3)
        gemm = segments.nodes[-1]
        gemm.inputs[1].values = gemm.inputs[1].values * 0
        values = joined(list(cursor.values([output])))[output]
        np.testing.assert_array_equal(values, np.broadcast_to(gemm.inputs[2].values, values.shape))


def test_an_activation_that_is_not_finite_is_named() -> None:
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)
    node_index = next(i for i, n in enumerate(segments.nodes) if i > 3 and n.op == "Conv")
    conv = segments.nodes[node_index]
    conv.inputs[1].values = np.full_like(conv.inputs[1].values, np.inf)
    name = conv.outputs[0].name
    with ActivationCursor(segments, feeds, threads=1) as cursor:
        cursor.advance(node_index)
        with pytest.raises(OnnxPruneError, match="not finite") as err:
            cursor.advance(node_index + 1)
        assert repr(name) in str(err.value)
        assert "batch 0" in str(err.value)
        assert f"at: Conv {conv.name!r}" in str(err.value)
        with pytest.raises(OnnxPruneError, match="not finite"):
            list(cursor.values([name]))


def test_a_segment_computes_the_next_cut_from_this_one() -> None:
    analysis, feeds = digits()
    segments = Segments(analysis.model, analysis.witness)
    values: dict[str, Any] = dict(feeds[0][0])
    for start, stop in ((0, 4), (4, 9), (9, len(segments.nodes))):
        names = [n for n in segments.live(stop) if segments.producer_index[n] >= start]
        session = Session(segments.segment(start, stop, names), threads=1)
        assert session.inputs == segments.live(start)
        made = session.run({n: values[n] for n in session.inputs}, names)
        values |= dict(zip(names, made, strict=True))
    [wanted] = Session(analysis.model, threads=1).run(feeds[0][0])
    np.testing.assert_allclose(values[segments.outputs[0]], wanted, atol=1e-5)


def test_a_segment_holds_its_own_nodes_only() -> None:
    analysis, _ = digits()
    segments = Segments(analysis.model, analysis.witness)
    before = repr(segments.model.graph)
    names = [n for n in segments.live(9) if segments.producer_index[n] >= 4]
    graph = segments.segment(4, 9, names).graph
    assert [n.outputs[0].name for n in graph.nodes] == [n.outputs[0].name for n in segments.nodes[4:9]]
    for t in graph.tensors().values():
        assert {id(n) for n in [*t.inputs, *t.outputs]} <= {id(n) for n in graph.nodes}
    graph.nodes[0].attrs["changed"] = 1
    graph.inputs[0].name = "changed"
    assert repr(segments.model.graph) == before


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_are_finite_if_all_of_them_are(dtype: type) -> None:
    most = np.finfo(dtype).max
    assert is_finite(np.zeros((0, 3), dtype))
    if dtype != np.float64:
        assert is_finite(np.full((40, 3), most, dtype))  # their sum overflows in their own type
    for wrong in ([np.nan], [np.inf], [np.inf, -np.inf], [-np.inf, most]):
        values = np.ones(1000, dtype)
        values[500 : 500 + len(wrong)] = wrong
        assert not is_finite(values)


def test_bytes_are_those_of_one_sample() -> None:
    analysis, _ = digits()
    segments = Segments(analysis.model, analysis.witness)
    assert segments.bytes_of([analysis.model.graph.inputs[0].name]) == 4 * 64
    assert segments.bytes_of(segments.outputs) == 40
    assert segments.bytes_of(["unknown"]) == 0
    assert segments.largest() == max(segments.bytes_of([o.name for o in n.outputs]) for n in segments.nodes)
