"""Inputs that are made up: their spectrum, their scale, their layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import Spec, build
from recovering import constants, parsed, tensors

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Feeds, Preprocess
from onnxprune.execution.sessions import Session
from onnxprune.execution.synthetic_data import synthetic_data
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto

Array = NDArray[Any]
MODELS = Path(__file__).parent.parent.parent / "models"


def taking(*shape: int | str, kind: int = TensorProto.FLOAT, inputs: int = 1) -> Model:
    """A model that hands its input on."""
    values = [helper.make_tensor_value_info(f"x{i}", kind, shape) for i in range(inputs)]
    out = helper.make_tensor_value_info("y", kind, shape)
    node = helper.make_node("Neg" if inputs == 1 else "Add", [v.name for v in values], ["y"])
    graph = helper.make_graph([node], "taking", values, [out])
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_power_falls_with_the_square_of_the_frequency() -> None:
    x = synthetic_data(taking("N", 3, 64, 64), 40).x
    power = np.square(np.abs(np.fft.fft2(x))).mean((0, 1))
    along = np.fft.fftfreq(64)
    frequency = np.hypot(along[:, None], along[None])
    rings = [(2, 4), (4, 8), (8, 16), (16, 31)]
    means = np.array([power[(frequency >= a / 64) & (frequency < b / 64)].mean() for a, b in rings])
    # From ring to ring the frequency doubles: its power is a quarter.
    np.testing.assert_allclose(means[1:] / means[:-1], 0.25, rtol=0.2)


def test_samples_differ_and_colours_go_together() -> None:
    x = synthetic_data(taking("N", 3, 32, 32), 60).x
    assert x.dtype == np.float32
    assert x.shape == (60, 3, 32, 32)
    flat = x.transpose(1, 0, 2, 3).reshape(3, -1)
    shared = np.corrcoef(flat)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(shared, 0.8, atol=0.08)
    between = np.corrcoef(x.reshape(60, -1))[np.triu_indices(60, 1)]
    assert abs(between.mean()) < 0.1
    assert x.mean((1, 2, 3)).std() > 0.3  # some are bright, others dark
    assert x.std() == pytest.approx(1, abs=1e-3)
    assert abs(x.mean()) < 0.2


def test_a_seed_gives_the_same_samples() -> None:
    model = taking("N", 3, 8, 8)
    one, same, other = (synthetic_data(model, 5, seed=s).x for s in (1, 1, 2))
    assert one.tobytes() == same.tobytes()
    assert one.tobytes() != other.tobytes()
    assert synthetic_data(model, 5).y is None


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        (("N", 3, 12, 10), (3, 12, 10)),
        (("N", 12, 10, 3), (12, 10, 3)),  # channels last
        ((4, 1, 8, 8), (1, 8, 8)),
        (("N", 1, 5, 3), (1, 5, 3)),  # ambiguous: channels first
        (("N", 3, "H", "W"), (3, 224, 224)),
        (("N", "C", 9, 9), (3, 9, 9)),
        (("N", 20), (20,)),
        (("N", "T", 7), (16, 7)),
    ],
)
def test_shapes(shape: tuple[int | str, ...], wanted: tuple[int, ...]) -> None:
    model = taking(*shape)
    data = synthetic_data(model, 6)
    assert data.x.shape == (6, *wanted)
    feed, _ = Feeds(model, data, Preprocess())[0]
    assert np.isfinite(Session(model, threads=1).run(feed)[0]).all()


def test_channels_last_are_the_same_pictures() -> None:
    first, last = (synthetic_data(taking("N", *shape), 4).x for shape in ((3, 16, 16), (16, 16, 3)))
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)


def test_flat_inputs_are_white() -> None:
    x = synthetic_data(taking("N", 50), 2000).x
    np.testing.assert_allclose(np.cov(x.T), np.eye(50), atol=0.15)


def net(scale: float) -> Model:
    """A convolution whose BatchNormalization remembers outputs `scale` times as large as those of unit noise."""
    analysis = parsed("a = Conv <pads = [1, 1, 1, 1]> (x, w) n = BatchNormalization (a, s, t, m, v) y = Relu (n)",
                      {"w": (6, 3, 3, 3), "s": (6,), "t": (6,), "m": (6,)}, x="float[N,3,16,16]",
                      values={"v": np.ones(6)})  # fmt: skip
    model = analysis.source
    [a] = tensors(model, ["a"], synthetic_like(model))
    variance = a.var((0, 2, 3)) * scale**2
    proto = to_proto(model)
    [v] = [t for t in proto.graph.initializer if t.name == "v"]
    v.CopyFrom(numpy_helper.from_array(variance.astype(np.float32), "v"))
    return load(proto)


def synthetic_like(model: Model) -> Array:
    """Unit noise of the same spectrum, from a model that remembers nothing."""
    x: Array = synthetic_data(taking("N", *model.graph.inputs[0].shape[1:]), 16).x
    return x


@pytest.mark.parametrize("scale", [1.0, 0.2, 30.0])
def test_the_first_batchnorm_tells_how_large_inputs_were(scale: float) -> None:
    model = net(scale)
    data = synthetic_data(model, 16)
    [a] = tensors(model, ["a"], data.x)
    assert a.var((0, 2, 3)).sum() == pytest.approx(constants(model)["v"].sum(), rel=1e-3)
    np.testing.assert_allclose(data.x, synthetic_like(model) * np.float32(scale), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["digits_cnn_folded", "digits_keras"])
def test_where_batchnorm_was_folded_the_scale_is_one(name: str) -> None:
    assert synthetic_data(load(MODELS / f"{name}.onnx"), 8).x.std() == pytest.approx(1, abs=1e-3)


def test_a_batchnorm_of_computed_statistics_tells_nothing() -> None:
    proto = to_proto(net(5.0))
    proto.graph.node.insert(0, helper.make_node("Abs", ["v"], ["v2"]))
    node = next(n for n in proto.graph.node if n.op_type == "BatchNormalization")
    node.input[4] = "v2"
    assert synthetic_data(load(proto), 8).x.std() == pytest.approx(1, abs=1e-3)


def test_half_precision_and_fixed_batches() -> None:
    for spec in (Spec(("conv",), half=True), Spec(("conv",), dynamic=False)):
        model = load(build(spec))
        data = synthetic_data(model, 5)
        feeds = Feeds(model, data, Preprocess())
        assert all(np.isfinite(Session(model, threads=1).run(feeds[i][0])[0]).all() for i in range(len(feeds)))


def test_other_inputs_are_refused() -> None:
    with pytest.raises(OnnxPruneError, match="one floating-point input") as err:
        synthetic_data(taking("N", 3, 8, 8, inputs=2), 4)
    assert err.value.fix == "use --data"
    with pytest.raises(OnnxPruneError, match="one floating-point input"):
        synthetic_data(taking("N", 16, kind=TensorProto.INT64), 4)
