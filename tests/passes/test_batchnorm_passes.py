"""BatchNormalization put back behind folded convolutions, measured, and folded again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.structures import FOLDER, filled
from onnx import numpy_helper
from random_graphs.graphs import BATCH, PROPERTY, SIDE, Array, Builder, Spec, T, build, specs

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.channel_moments import measure_statistics
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import NORMALIZE, FuseBatchnorm, InsertBatchnorm, Pipeline
from onnxprune.passes.insert_batchnorm import inserted

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
KEPT, FOLDED = (MODELS / f"digits_cnn{suffix}.onnx" for suffix in ("", "_folded"))
# Relative to the largest output. float32: about 100 ulps, room for a network's depth. float16: 2^-11 is 5e-4, and
# gamma, beta and every activation are rounded to it.
TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-2}


def run(model: Model, feed: Mapping[str, Array]) -> Array:
    """The first output."""
    return np.asarray(Session(model, threads=1).run(feed)[0])


def gap(actual: Array, expected: Array) -> float:
    """Largest difference as a share of the largest magnitude."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert np.isfinite(expected).all()
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def assert_same(actual: Model, expected: Model, feeds: Sequence[Mapping[str, Array]]) -> None:
    for feed in feeds:
        wanted = run(expected, feed)
        assert gap(run(actual, feed), wanted) <= TOLERANCE[wanted.dtype]


def without_values(model: Model) -> bytes:
    """All of a file but the numbers in its weights."""
    proto = to_proto(model)
    for t in proto.graph.initializer:
        t.raw_data = b""
    return proto.SerializeToString()


def put_in(model: Model) -> list[str]:
    """Names of the nodes whose output an inserted normalization reads."""
    return [n.inputs[0].inputs[0].name for n in model.graph.nodes if inserted(n)]


def ops(model: Model) -> list[str]:
    return [n.op for n in model.graph.nodes]


def constants(model: Model) -> dict[str, Array]:
    return {n: np.asarray(t.values) for n, t in model.graph.tensors().items() if hasattr(t, "values")}


def random_feeds(model: Model, sizes: Sequence[int] = (3, 2), seed: int = 0) -> list[dict[str, Array]]:
    """Normal values for the model's one input; a batch that is not fixed has these sizes."""
    rng = np.random.default_rng(seed)
    t = model.graph.inputs[0]
    shapes = [[n if isinstance(n, int) else size for n in t.shape] for size in sizes]
    return [{t.name: rng.standard_normal(s).astype(t.dtype)} for s in shapes]


def net(text: str, seed: int = 0, opset: int = 17, **values: Any) -> Model:
    """A model as text; initializers are random, [0.5, 1.5] where their name says variance or scale.

    Args:
        text: "float[N,3,6,6] x) => (...) { ... }" after the name.
        values: of each initializer: an array, or a shape to fill.
    """
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}, "com.example" : 1]> g ({text}')
    rng = np.random.default_rng(seed)
    for name, value in values.items():
        if not isinstance(value, np.ndarray):
            positive = name.startswith(("var", "gamma"))
            value = rng.uniform(0.5, 1.5, value) if positive else rng.standard_normal(value)
            value = value.astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return load(proto)


# ------------------------------------------------------------------------------------------------- the pair, at random

LAYERS = ("conv", "plain", "grouped", "depthwise", "transpose", "transpose_grouped", "residual", "bottleneck", "kept",
          "ceil", "strided", "excite", "branch")  # fmt: skip


def network(layers: Sequence[str], seed: int, opset: int, half: bool, dynamic: bool) -> Model:
    """Layers with biases as folding leaves them, on a 3 x 7 x 5 image, whose sizes are odd for strides and pools."""
    b = Builder(Spec((), seed=seed, opset=opset, half=half))

    def transposed(x: T, group: int) -> T:
        w, kernel = b.weight(x.c, 8 // group, 3, 2, spread=0.3), [3, 2]
        y = b.node("ConvTranspose", x.name, w, b.weight(8, spread=0.5), strides=[2, 2], group=group,
                   kernel_shape=kernel)  # fmt: skip
        return b.act(T(y, 8, 0, 0))

    x = b.act(b.conv(T("x", 3, 7, 5), 8))
    for layer in layers:
        if layer in ("conv", "plain", "grouped", "strided", "depthwise"):
            group = {"grouped": 2, "depthwise": 8}.get(layer, 1)
            x = b.act(b.conv(x, 8, group=group, bias=layer != "plain", stride=2 if layer == "strided" else 1))
        elif layer in ("transpose", "transpose_grouped"):
            x = transposed(x, 4 if layer == "transpose_grouped" else 1)
        elif layer == "residual":
            y = b.conv(b.act(b.conv(x, 4)), 8)
            x = b.act(T(b.node("Add", y.name, x.name), 8, 0, 0))
        elif layer == "bottleneck":
            x = b.conv(b.conv(x, 4, kernel=1), 8)
        elif layer == "kept":
            x = b.act(b.bn(b.conv(x, 8)))
        elif layer == "ceil":
            x = b.conv(x, 8)
            x = b.act(T(b.node("MaxPool", x.name, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), 8, 0, 0))
        elif layer == "excite":
            x = b.conv(x, 8)
            s = b.conv(T(b.node("GlobalAveragePool", x.name), 8, 1, 1), 8, kernel=1)
            x = T(b.node("Mul", x.name, b.node("Sigmoid", s.name)), 8, 0, 0)
        else:
            y = [b.conv(x, 4), b.conv(x, 4, kernel=1)]
            x = b.act(T(b.node("Concat", *(t.name for t in y), axis=1), 8, 0, 0))
    y = b.node("Flatten", b.node("GlobalAveragePool", x.name))
    b.node("Gemm", y, b.weight(8, 5, spread=1.0), b.weight(5, spread=0.3))
    b.nodes[-1].output[0] = "y"
    kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
    batch: str | int = "N" if dynamic else 3
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        b.nodes, "g", [info("x", kind, [batch, 3, 7, 5])], [info("y", kind, [batch, 5])], b.initializers
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))


def assert_pair_is_identity(model: Model, feeds: Sequence[Mapping[str, Array]]) -> int:
    """Returns how many normalizations were put in."""
    given_data = InsertBatchnorm(feeds)(model)
    without_data = InsertBatchnorm()(model)
    assert put_in(without_data) == put_in(given_data)
    for changed in (given_data, without_data):
        onnx.checker.check_model(to_proto(changed))
        assert_same(changed, model, feeds)
        restored = FuseBatchnorm(only_inserted=True)(changed)
        assert_same(restored, model, feeds)
        assert without_values(restored) == without_values(model)
    return len(put_in(given_data))


@PROPERTY(max_examples=40)
@given(
    st.lists(st.sampled_from(LAYERS), min_size=1, max_size=4),
    st.integers(0, 2**16),
    st.sampled_from((9, 11, 13, 14, 17)),
    st.sampled_from((False, False, False, True)),
    st.booleans(),
)
def test_insert_and_fuse_is_the_identity(layers: list[str], seed: int, opset: int, half: bool, dynamic: bool) -> None:
    if opset == 9 and "ceil" in layers:
        opset = 11  # ceil_mode came with opset 10
    model = network(layers, seed, opset, half, dynamic)
    assert assert_pair_is_identity(model, random_feeds(model, seed=seed)) >= 1


@PROPERTY(max_examples=30)
@given(specs(half=True))
def test_insert_and_fuse_is_the_identity_on_any_network(spec: Spec) -> None:
    model = Pipeline(NORMALIZE)(load(build(spec)))
    rng = np.random.default_rng(spec.seed)
    sizes = (1, 4) if spec.dynamic else (BATCH, BATCH)
    dtype = np.float16 if spec.half else np.float32
    feeds = [{"x": rng.standard_normal((n, 3, SIDE, SIDE)).astype(dtype)} for n in sizes]
    assert_pair_is_identity(model, feeds)


@pytest.mark.parametrize(
    ("layer", "count"),
    [("conv", 2), ("plain", 1), ("grouped", 2), ("depthwise", 2), ("transpose", 2), ("transpose_grouped", 2),
     ("residual", 3), ("bottleneck", 3), ("kept", 1), ("ceil", 2), ("strided", 2), ("excite", 2), ("branch", 3)],
)  # fmt: skip
def test_each_layer_gets_its_normalizations(layer: str, count: int) -> None:
    # Without this the property above could hold because hardly anything is put in.
    assert len(put_in(InsertBatchnorm()(network([layer], 0, 17, False, True)))) == count


# ---------------------------------------------------------------------------------- which convolutions count as folded

W4, B4 = (4, 3, 3, 3), (4,)
SECOND = (4, 4, 1, 1)
CHANNEL = (1, 4, 1, 1)
A = "float[N,3,6,6] x) => (float[N,4,6,6] y) { c = Conv <pads=[1,1,1,1]> (x, w, b) "
SMALL = "float[N,3,6,6] x) => (float[N,4,4,4] y) { c = Conv (x, w, b) "

TOUCHED: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": (A + "d = Relu (c) y = Conv (d, v) }", {"v": SECOND}),
    "relu as the graph's output": (A + "y = Relu (c) }", {}),
    "relu6": (A + "y = Clip (c, low, high) }", {"low": np.zeros(()), "high": np.full((), 6.0)}),
    "swish": (A + "s = Sigmoid (c) d = Mul (c, s) y = Conv (d, v) }", {"v": SECOND}),
    "leaky": (A + "y = LeakyRelu (c) }", {}),
    "prelu": (A + "y = PRelu (c, slope) }", {"slope": (4, 1, 1)}),
    "mish in parts": (A + "s = Softplus (c) t = Tanh (s) d = Mul (c, t) y = Relu (d) }", {}),
    "gelu in parts": (
        A + "d = Div (c, r) e = Erf (d) f = Add (e, one) g = Mul (c, f) h = Mul (g, half) y = Conv (h, v) }",
        {"r": np.full((), 2**0.5), "one": np.ones((1,)), "half": np.full((1, 1, 1, 1), 0.5), "v": SECOND},
    ),
    "hard swish in parts": (
        A + "d = Add (c, three) e = Clip (d, low, six) f = Mul (c, e) g = Div (f, six) y = Conv (g, v) }",
        {"three": np.full((), 3.0), "low": np.zeros(()), "six": np.full((), 6.0), "v": SECOND},
    ),
    "shortcut": (A + "d = Conv (x, u) e = Add (c, d) y = Relu (e) }", {"u": (4, 3, 1, 1)}),
    "linear bottleneck": (A + "y = Conv (c, v) }", {"v": SECOND}),
    "before a transposed convolution": (A + "y = ConvTranspose (c, v) }", {"v": SECOND}),
    "concat": (A + "d = Concat <axis=1> (c, x) e = Relu (d) y = Conv (e, v) }", {"v": (4, 7, 1, 1)}),
    "pool": (A + "d = MaxPool <kernel_shape=[3,3],pads=[1,1,1,1]> (c) y = Relu (d) }", {}),
    "pad": (A + "d = Pad (c, pads) y = Conv (d, v) }",
            {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "v": (4, 4, 3, 3)}),
    "resize": (SMALL + "e = Resize (c, , twice) f = Relu (e) y = AveragePool <kernel_shape=[2,2],strides=[2,2]> (f) }",
               {"twice": np.array([1.0, 1, 2, 2])}),
    "gate": (A + "s = GlobalAveragePool (c) t = Conv (s, v, a) u = Sigmoid (t) d = Mul (c, u) y = Relu (d) }",
             {"v": SECOND, "a": B4}),
    "gate of a mean, reshaped": (
        A + "s = ReduceMean <axes=[-2,-1],keepdims=0> (c) r = Reshape (s, shape) t = Conv (r, v, a) u = Sigmoid (t) "
        "d = Mul (c, u) y = Relu (d) }", {"v": SECOND, "a": B4, "shape": np.array([-1, 4, 1, 1])},
    ),
    "pooled classifier": (
        "float[N,3,6,6] x) => (float[N,5] y) { c = Conv (x, w, b) p = GlobalAveragePool (c) f = Flatten (p) "
        "y = Gemm (f, v, a) }", {"v": (4, 5), "a": (5,)},
    ),
    "its size is read": (A + "s = Shape (c) d = Relu (c) y = Reshape (d, s) }", {}),
    "groups": ("float[N,3,6,6] x) => (float[N,6,4,4] y) { c = Conv <group=3> (x, w, b) y = Relu (c) }",
               {"w": (6, 1, 3, 3), "b": (6,)}),
    "depthwise": ("float[N,4,6,6] x) => (float[N,4,4,4] y) { c = Conv <group=4> (x, w, b) y = Relu (c) }",
                  {"w": (4, 1, 3, 3)}),
    "transposed": ("float[N,3,6,6] x) => (float[N,4,8,8] y) { c = ConvTranspose (x, w, b) y = Relu (c) }",
                   {"w": (3, 4, 3, 3)}),
    "1-D": ("float[N,3,6] x) => (float[N,4,4] y) { c = Conv (x, w, b) y = Relu (c) }", {"w": (4, 3, 3)}),
    "3-D": ("float[N,3,4,4,4] x) => (float[N,4,2,2,2] y) { c = Conv (x, w, b) y = Relu (c) }", {"w": (4, 3, 3, 3, 3)}),
    "sides unknown": ("float[N,3,H,W] x) => (float[N,4,H,W] y) { c = Conv <pads=[1,1,1,1]> (x, w, b) y = Relu (c) }",
                      {}),
}  # fmt: skip

LEFT_ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "1: no bias": ("float[N,3,6,6] x) => (float[N,4,4,4] y) { c = Conv (x, w) y = Relu (c) }", {"b": None}),
    "1: empty bias": ("float[N,3,6,6] x) => (float[N,4,4,4] y) { c = Conv (x, w, ) y = Relu (c) }", {"b": None}),
    "1: computed weight": (
        "float[N,3,6,6] x, float[4,3,3,3] u) => (float[N,4,4,4] y) { v = Abs (u) c = Conv (x, v, b) y = Relu (c) }",
        {"w": None},
    ),
    "1: computed bias": (
        "float[N,3,6,6] x, float[4] u) => (float[N,4,4,4] y) { a = Abs (u) c = Conv (x, w, a) y = Relu (c) }",
        {"b": None},
    ),
    "1: shared weight": (
        "float[N,3,6,6] x) => (float[N,3,2,2] y) { c = Conv (x, w, b) d = Relu (c) e = Conv (d, w, b) y = Relu (e) }",
        {"w": (3, 3, 3, 3), "b": (3,)},
    ),
    "1: Gemm": ("float[N,3] x) => (float[N,4] y) { c = Gemm (x, w, b) y = Relu (c) }", {"w": (3, 4)}),
    "2: a graph output": ("float[N,3,6,6] x) => (float[N,4,4,4] c, float[N,4,4,4] y) { c = Conv (x, w, b) "
                          "y = Relu (c) }", {}),
    "2: one position": ("float[N,3,3,3] x) => (float[N,4,1,1] y) { c = Conv (x, w, b) y = Relu (c) }", {}),
    "2: gates": ("float[N,3,6,6] x) => (float[N,3,6,6] y) { s = GlobalAveragePool (x) c = Conv (s, w, b) "
                 "g = Sigmoid (c) y = Mul (x, g) }", {"w": (3, 3, 1, 1), "b": (3,)}),
    "3: nothing reads it": ("float[N,3,6,6] x) => (float[N,3,6,6] y) { c = Conv (x, w, b) y = Relu (x) }", {}),
    "3: BatchNormalization": (A + "d = BatchNormalization (c, gamma, beta, mean, var) y = Relu (d) }",
                              {"gamma": B4, "beta": B4, "mean": B4, "var": B4}),
    "3: one reader of two normalizes": (
        A + "d = BatchNormalization (c, gamma, beta, mean, var) e = Relu (c) y = Add (d, e) }",
        {"gamma": B4, "beta": B4, "mean": B4, "var": B4},
    ),
    "3: InstanceNormalization": (A + "d = InstanceNormalization (c, gamma, beta) y = Relu (d) }",
                                 {"gamma": B4, "beta": B4}),
    "3: LayerNormalization behind a Transpose": (
        A + "d = Transpose <perm=[0,2,3,1]> (c) e = LayerNormalization (d, gamma, beta) "
        "f = Transpose <perm=[0,3,1,2]> (e) y = Relu (f) }", {"gamma": B4, "beta": B4},
    ),
    "3: a normalization behind a pool": (
        A + "d = MaxPool <kernel_shape=[3,3],pads=[1,1,1,1]> (c) y = InstanceNormalization (d, gamma, beta) }",
        {"gamma": B4, "beta": B4},
    ),
    "3: group normalization in parts": (
        A + "d = Reshape (c, s) e = InstanceNormalization (d, gamma, beta) f = Shape (c) g = Reshape (e, f) "
        "y = Relu (g) }", {"s": np.array([0, 2, -1]), "gamma": (2,), "beta": (2,)},
    ),
    "3: instance normalization in parts": (
        A + "m = ReduceMean <axes=[2,3]> (c) d = Sub (c, m) e = Mul (d, d) f = ReduceMean <axes=[2,3]> (e) "
        "g = Sqrt (f) h = Div (d, g) y = Relu (h) }", {},
    ),
    "3: layer normalization over channels in parts": (
        A + "m = ReduceMean <axes=[1]> (c) d = Sub (c, m) y = Relu (d) }", {},
    ),
    "3: the same, from the end": (A + "m = ReduceMean <axes=[-3]> (c) d = Sub (c, m) y = Relu (d) }", {}),
    "3: a mean over everything": (A + "m = ReduceMean (c) d = Sub (c, m) y = Relu (d) }", {}),
    "3: behind LayerNormalization": (
        "float[N,6,6,3] x) => (float[N,4,4,4] y) { n = LayerNormalization (x, gamma, beta) "
        "t = Transpose <perm=[0,3,1,2]> (n) c = Conv (t, w, b) y = Relu (c) }", {"gamma": (3,), "beta": (3,)},
    ),
    "3: LRN": (A + "y = LRN <size=3> (c) }", {}),
    "3: Softmax": (A + "y = Softmax <axis=1> (c) }", {}),
    "3: a detector's output": (
        "float[N,3,6,6] x) => (float[N,4,16] y) { c = Conv (x, w, b) y = Reshape (c, s) }",
        {"s": np.array([0, 4, 16])},
    ),
    "3: two levels of a detector": (
        "float[N,3,6,6] x) => (float[N,8,16] y) { c = Conv (x, w, b) d = Relu (x) e = Conv (d, v, b) "
        "f = Concat <axis=1> (c, e) y = Reshape (f, s) }", {"v": W4, "s": np.array([0, 8, 16])},
    ),
    "3: an operator nobody knows": (A + "d = com.example.Thing (c) y = Relu (d) }", {}),
    "3: somebody else's operator of a known name": (A + "d = com.example.Add (c, c) y = Relu (d) }", {}),
    "3: a mean over channels": (
        A + "m = ReduceMean <axes=[1]> (c) a = Conv (m, v) g = Sigmoid (a) d = Mul (c, g) y = Relu (d) }",
        {"v": (1, 1, 1, 1)},
    ),
    "3: a product over columns": (A + "d = MatMul (c, v) y = Relu (d) }", {"v": (6, 6)}),
    "3: reshaped before its activation": (
        "float[N,3,6,6] x) => (float[N,4,16] y) { c = Conv (x, w, b) d = Reshape (c, s) y = Relu (d) }",
        {"s": np.array([0, 4, 16])},
    ),
    "3: the weight of another": (
        "float[4,3,6,6] x, float[N,4,6,6] z) => (float[N,4,3,3] y) { c = Conv (x, w, b) y = Conv (z, c) }", {},
    ),
    "4: scale and shift per channel": (A + "d = Mul (c, s) e = Add (d, t) y = Relu (e) }",
                                       {"s": CHANNEL, "t": CHANNEL}),
    "4: shift per channel": (A + "d = Add (t, c) y = Relu (d) }", {"t": CHANNEL}),
    "4: a constant behind a node": (A + "s = Constant <value=float[1,4,1,1] {1.0, 2.0, 3.0, 4.0}> () d = Mul (c, s) "
                                    "y = Relu (d) }", {}),
    "5: Sigmoid at the end": (A + "y = Sigmoid (c) }", {}),
    "5: Tanh at the end": (A + "y = Tanh (c) }", {}),
    "5: residual prediction": (A + "d = Conv (x, u) y = Add (c, d) }", {"u": (4, 3, 1, 1)}),
    "5: Concat at the end": ("float[N,3,6,6] x) => (float[N,8,4,4] y) { c = Conv (x, w, b) y = Concat <axis=1> (c, c) "
                             "}", {}),
    "5: Resize at the end": ("float[N,3,6,6] x) => (float[N,4,8,8] y) { c = Conv (x, w, b) y = Resize (c, , twice) }",
                             {"twice": np.array([1.0, 1, 2, 2])}),
    "5: a pooled prediction": ("float[N,3,6,6] x) => (float[N,4] y) { c = Conv (x, w, b) p = GlobalAveragePool (c) "
                               "y = Flatten (p) }", {}),
}  # fmt: skip


def case(text: str, values: Mapping[str, Any]) -> Model:
    """A network whose convolution c is the question; arrays of integers are shapes, all others float32."""
    found = {"w": W4, "b": B4, **values}
    arrays = {k: v if v.dtype == np.int64 else v.astype(np.float32) for k, v in found.items() if hasattr(v, "dtype")}
    return net(text, **{k: v for k, v in {**found, **arrays}.items() if v is not None})


@pytest.mark.parametrize("name", TOUCHED)
def test_folded_convolution_gets_a_normalization(name: str) -> None:
    model = case(*TOUCHED[name])
    if any(isinstance(n, str) for n in model.graph.inputs[0].shape[2:]):
        feeds = [{"x": np.random.default_rng(0).standard_normal((2, 3, 5, 7)).astype(np.float32)}]
    else:
        feeds = random_feeds(model)
    changed = InsertBatchnorm(feeds)(model)
    readers = [n for n in changed.graph.nodes if any(t.name == "c" for t in n.inputs)]
    assert [inserted(n) for n in readers] == [True]
    assert_same(changed, model, feeds)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_convolutions_are_left_alone(name: str) -> None:
    model = case(*LEFT_ALONE[name])
    changed = InsertBatchnorm()(model)
    assert not [n for n in changed.graph.nodes if inserted(n) and n.inputs[0].name == "c"]
    if sum(n.op.startswith("Conv") for n in model.graph.nodes) == 1:
        assert to_proto(changed).SerializeToString() == to_proto(model).SerializeToString()


def test_readers_inside_a_branch_follow() -> None:
    model = net(
        "float[N,3,6,6] x, bool k) => (float[N,4,4,4] y) { c = Conv (x, w, b) y = If (k) "
        "<then_branch = g1 () => (float[N,4,4,4] t) { t = Relu (c) }, "
        "else_branch = g2 () => (float[N,4,4,4] e) { e = LeakyRelu (c) }> }", w=W4, b=B4,
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    feeds = [{"x": x, "k": np.array(k)} for k in (True, False)]
    changed = InsertBatchnorm(feeds)(model)
    assert {n.op: n.inputs[0].name for n in changed.graph.nodes if "Relu" in n.op} == {
        "Relu": "c.bn",
        "LeakyRelu": "c.bn",
    }
    assert_same(changed, model, feeds)
    assert_same(FuseBatchnorm()(changed), model, feeds)


def test_inserting_twice_is_inserting_once() -> None:
    once = InsertBatchnorm()(load(FOLDED))
    assert put_in(once)
    assert to_proto(InsertBatchnorm()(once)).SerializeToString() == to_proto(once).SerializeToString()


def test_names_tell_what_was_put_in_and_are_unique() -> None:
    model = net(
        "float[N,3,6,6] x) => (float[N,4,6,6] y) { c = Conv (x, w, b) d = Relu (c) e = Conv (d, v, b) f = Relu (e) "
        "g = Conv (f, u, b) y = Relu (g) }", w=(4, 3, 1, 1), v=SECOND, u=SECOND, b=B4,
    )  # fmt: skip
    named = ("one", "r", "one", "r", "", "r")
    for node, name in zip(model.graph.nodes, named, strict=True):
        node.name = name
    model.graph.tensors()["w"].name = "first.weight"
    changed = InsertBatchnorm()(model)
    new = [n for n in changed.graph.nodes if n.op == "BatchNormalization"]
    assert [n.name for n in new] == ["one/inserted_batchnorm", "one/inserted_batchnorm__1", "g/inserted_batchnorm"]
    assert all(inserted(n) for n in new)
    roles = ("weight", "bias", "running_mean", "running_var")
    for node, base in zip(new, ("first", "v", "u"), strict=True):
        assert [t.name for t in node.inputs[1:]] == [f"{base}.bn.{role}" for role in roles]
    assert tuple(n.name for n in changed.graph.nodes if not inserted(n)) == named


def test_a_file_keeps_what_tells_them(tmp_path: Path) -> None:
    changed = InsertBatchnorm()(load(FOLDED))
    again = load(op.save(changed, tmp_path / "m.onnx"))
    assert put_in(again) == put_in(changed) != []
    assert without_values(FuseBatchnorm(only_inserted=True)(again)) == without_values(load(FOLDED))


def test_a_normalization_of_the_model_is_not_an_inserted_one() -> None:
    assert not any(inserted(n) for n in load(KEPT).graph.nodes)
    assert not inserted(gs.Node("BatchNormalization", "conv/inserted_batchnorm/of_a_user"))
    assert not inserted(gs.Node("Relu", "conv/inserted_batchnorm"))


@pytest.mark.parametrize("bad", [{"epsilon": 0.0}, {"epsilon": float("nan")}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_parameters_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(OnnxPruneError, match=next(iter(bad))):
        InsertBatchnorm(**bad)


# ---------------------------------------------------------------------------------------------- public architectures


def architecture(name: str) -> Model:
    return Pipeline(NORMALIZE)(filled(FOLDER / f"{name}.onnx.xz"))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_exactly_the_convolutions_that_had_one_are_found(name: str) -> None:
    kept = architecture(f"{name}.bn")
    had = {n.inputs[0].inputs[0].name for n in kept.graph.nodes if n.op == "BatchNormalization"}
    assert set(put_in(InsertBatchnorm()(architecture(f"{name}.ts")))) == had
    assert len(put_in(InsertBatchnorm()(architecture(f"{name}.dyn")))) == len(had)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mobilenet_v3_large.ts", 46),  # as many as torchvision's module has; squeeze-excite has none
        ("efficientnet_b0.dyn", 49),
        ("shufflenet_v2_x1_0.ts", 56),
        ("densenet121.ts", 59),  # of 121: the others stand before their convolution and were not folded
        ("keras_resnet50", 0),  # all 53 stand as scale and shift, its convolutions having biases of their own
        ("keras_mobilenetv2", 35),  # of 52: behind depthwise convolutions they are scale and shift
        ("convnext_tiny.ts", 0),  # LayerNormalization, behind a Transpose
    ],
)
def test_architectures_get_what_they_had(name: str, count: int) -> None:
    assert len(put_in(InsertBatchnorm()(architecture(name)))) == count


# ------------------------------------------------------------------------------------------------------- statistics


def exposed(model: Model, names: Sequence[str], feeds: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Whole tensors inside a model, all batches, float64; by onnx alone."""
    proto = to_proto(model)
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in names)
    session = Session(proto, threads=1)
    runs = [session.run(feed) for feed in feeds]
    return {n: np.concatenate([r[i] for r in runs]).astype(np.float64) for i, n in enumerate(names)}


def test_statistics_are_numpys() -> None:
    model = load(FOLDED)
    x = op.load_data("digits:train", images=50).x
    feeds = [{"input": x[:33]}, {"input": x[33:34]}, {"input": x[34:]}]
    feeds = [{model.graph.inputs[0].name: f["input"]} for f in feeds]
    names = [n.outputs[0].name for n in model.graph.nodes if n.op in ("Conv", "Gemm")]
    found = measure_statistics(model, names, feeds)
    assert list(found) == names
    for name, values in exposed(model, names, feeds).items():
        axes = (0, *range(2, values.ndim))
        mean, var = found[name]
        assert mean.dtype == var.dtype == np.float64
        # onnxruntime's kernels differ with what reads them, by some ulps of float32.
        size = np.abs(values).max()
        assert np.allclose(mean, values.mean(axes), rtol=0, atol=1e-6 * size)
        assert np.allclose(var, values.var(axes), rtol=1e-5, atol=1e-6 * size**2)


@pytest.mark.parametrize("opset", [9, 12, 13, 18, 21])
def test_statistics_are_float64_sums_over_unequal_batches(opset: int) -> None:
    # Channel 0 lies far from 0, channel 1 does not vary: sums in float32 would get both wrong.
    model = net("float[N,3,4,5] x) => (float[N,3,4,5] y) { y = Relu (x) }", opset=opset)
    x = np.random.default_rng(0).standard_normal((6, 3, 4, 5)) * np.array([0.01, 0, 1]).reshape(3, 1, 1)
    x = (x + np.array([1000, 3, 0]).reshape(3, 1, 1)).astype(np.float32)
    mean, var = measure_statistics(model, ["x"], [{"x": x[:5]}, {"x": x[5:]}])["x"]
    wide = x.astype(np.float64)
    assert np.allclose(mean, wide.mean((0, 2, 3)), rtol=1e-12, atol=1e-12)
    assert np.allclose(var, wide.var((0, 2, 3)), rtol=1e-4, atol=1e-12)
    assert (var >= 0).all()


def test_statistics_of_vectors_and_sequences() -> None:
    model = net("float[N,3] x, float[N,3,4,2,2] z) => (float[N,3] y, float[N,3,4,2,2] u) { y = Relu (x) u = Relu (z) }")
    rng = np.random.default_rng(0)
    x, z = rng.standard_normal((6, 3)).astype(np.float32), rng.standard_normal((6, 3, 4, 2, 2)).astype(np.float32)
    found = measure_statistics(model, ["y", "u", "y"], [{"x": x, "z": z}])
    for name, values in (("y", np.maximum(x, 0)), ("u", np.maximum(z, 0))):
        axes = (0, *range(2, values.ndim))
        assert np.allclose(found[name][0], values.astype(np.float64).mean(axes), rtol=1e-12)
        assert np.allclose(found[name][1], values.astype(np.float64).var(axes), rtol=1e-9)


def test_batches_are_run_in_parts_that_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run_session = Session.run

    def recorded(self: Session, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        sizes.append(len(feeds["x"]))
        return run_session(self, feeds, outputs)

    monkeypatch.setattr(Session, "run", recorded)
    text = "float[{},3,4,4] x) => (float[{},3,4,4] y) {{ y = Relu (x) }}"
    model, fixed = net(text.format("N", "N")), net(text.format(7, 7))
    x = np.random.default_rng(0).standard_normal((7, 3, 4, 4)).astype(np.float32)
    whole = measure_statistics(model, ["y"], [{"x": x}])
    assert sizes == [1, 7]
    bounds = {"memory": 3 * 4 * 3 * 16, "block": 2 * 3 * 16}  # three samples of float32, two at a time in float64
    sizes.clear()
    parts = measure_statistics(model, ["y"], [{"x": x}, {"x": x[:2]}, {"x": x[2:]}], **bounds)
    assert sizes == [1, 3, 3, 1, 2, 3, 2]
    assert np.allclose(parts["y"], whole["y"], rtol=1e-12)
    sizes.clear()
    assert np.allclose(measure_statistics(fixed, ["y"], [{"x": x}], **bounds)["y"], whole["y"], rtol=1e-12)
    assert sizes == [7]


@pytest.mark.parametrize("kind", ["float16", "float", "double"])
def test_statistics_of_tensors_whose_type_the_file_does_not_give(kind: str) -> None:
    dtype = {"float16": np.float16, "float": np.float32, "double": np.float64}[kind]
    model = net(f"{kind}[N,3] x) => ({kind}[N,3] y) {{ onnxprune_statistics_0 = Relu (x) "
                "y = Identity (onnxprune_statistics_0) }")  # fmt: skip
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(dtype)
    mean, var = measure_statistics(model, ["onnxprune_statistics_0"], [{"x": x}])["onnxprune_statistics_0"]
    wanted = np.maximum(x, 0).astype(np.float64)
    assert np.allclose(mean, wanted.mean(0), rtol=1e-6)
    assert np.allclose(var, wanted.var(0), rtol=1e-6)


def test_statistics_of_float64_are_not_rounded_to_float32() -> None:
    model = net("double[N,2] x) => (double[N,2] y) { y = Relu (x) }")
    x = 1 + 1e-9 * np.random.default_rng(0).standard_normal((50, 2))
    for name in ("x", "y"):
        mean, _ = measure_statistics(model, [name], [{"x": x}])[name]
        assert np.allclose(mean - 1, x.mean(0) - 1, rtol=1e-4, atol=0)


def test_variance_of_constants_is_never_negative() -> None:
    values = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    x = np.broadcast_to(values[:, None], (7, 64, 11)).copy()
    model = net("float[N,64,11] x) => (float[N,64,11] y) { y = Relu (x) }")
    _, var = measure_statistics(model, ["x"], [{"x": x}])["x"]
    assert ((var >= 0) & (var < 1e-14)).all()


def test_what_lies_behind_the_tensors_is_not_run() -> None:
    model = net("float[N,3] x) => (float[N,1] y) { c = Relu (x) y = Gather <axis=1> (c, beyond) }",
                beyond=np.array([7]))  # fmt: skip
    feeds = random_feeds(model)
    with pytest.raises(OnnxPruneError, match="fails to run"):
        run(model, feeds[0])
    assert set(measure_statistics(model, ["c"], feeds)) == {"c"}


def test_opposite_infinities_are_not_finite() -> None:
    model = net("float[N,1] x) => (float[N,1] y) { y = Relu (x) }")
    with pytest.raises(OnnxPruneError, match="not finite") as caught:
        measure_statistics(model, ["x"], [{"x": np.array([[np.inf], [-np.inf]], np.float32)}])
    assert caught.value.where == "input 'x'"


def test_statistics_need_an_axis_of_channels() -> None:
    model = net("float[N,3] x) => (float[N] y) { y = ReduceSum <keepdims=0> (x, axes) }", axes=np.array([1]))
    with pytest.raises(OnnxPruneError, match="'y' has no channels"):
        measure_statistics(model, ["y"], random_feeds(model))


def test_statistics_leave_the_model_and_need_no_data_for_nothing() -> None:
    model = load(FOLDED)
    before = to_proto(model).SerializeToString()
    assert measure_statistics(model, [], []) == {}
    feeds = random_feeds(model)
    measure_statistics(model, [model.graph.nodes[0].outputs[0].name], feeds)
    assert to_proto(model).SerializeToString() == before


def test_parameters_hold_the_statistics() -> None:
    model = load(FOLDED)
    feeds = random_feeds(model, (16, 7))
    changed = InsertBatchnorm(feeds, epsilon=1e-3, momentum=0.8)(model)
    new = [n for n in changed.graph.nodes if inserted(n)]
    assert len(new) == len([n for n in InsertBatchnorm()(model).graph.nodes if inserted(n)]) > 0
    found = measure_statistics(model, [n.inputs[0].name for n in new], feeds)
    for node in new:
        gamma, beta, mean, var = (np.asarray(t.values) for t in node.inputs[1:])
        assert {a.dtype for a in (gamma, beta, mean, var)} == {np.dtype(np.float32)}
        assert np.array_equal(mean, found[node.inputs[0].name][0].astype(np.float32))
        assert np.array_equal(var, found[node.inputs[0].name][1].astype(np.float32))
        assert np.array_equal(beta, mean)
        assert np.allclose(gamma.astype(np.float64) ** 2, var.astype(np.float64) + 1e-3, rtol=1e-6)
        assert node.attrs["epsilon"] == 1e-3
        assert node.attrs["momentum"] == 0.8
    for node in (n for n in InsertBatchnorm()(model).graph.nodes if inserted(n)):
        gamma, beta, mean, var = (np.asarray(t.values) for t in node.inputs[1:])
        assert np.allclose(gamma, (1 + 1e-5) ** 0.5, rtol=1e-6)
        assert not beta.any()
        assert not mean.any()
        assert (var == 1).all()


def test_a_channel_that_never_varies_stays_what_it_is() -> None:
    w, b = np.zeros(W4, np.float32), np.array([0.5, -1, 0, 2], np.float32)
    w[3] = 0.1
    model = net("float[N,3,6,6] x) => (float[N,4,4,4] y) { c = Conv (x, w, b) y = LeakyRelu (c) }", w=w, b=b)
    feeds = random_feeds(model)
    changed = InsertBatchnorm(feeds)(model)
    var = next(n for n in changed.graph.nodes if inserted(n)).inputs[4].values
    assert (var[:3] == 0).all()
    assert var[3] > 0
    assert_same(changed, model, feeds)
    assert_same(FuseBatchnorm()(changed), model, feeds)


def test_float16_keeps_its_type_and_survives_variances_it_cannot_hold() -> None:
    text = "float16[N,3,6,6] x) => (float16[N,4,4,4] y) { c = Conv (x, w, b) y = Relu (c) }"
    rng = np.random.default_rng(0)
    w = rng.standard_normal(W4).astype(np.float16)
    w[0] *= 100  # deviation above 256: a variance beyond 65504
    w[1] /= 4096  # a variance below the normal numbers
    model = net(text, w=w, b=rng.standard_normal(4).astype(np.float16))
    feeds = random_feeds(model, (8, 8))
    assert measure_statistics(model, ["c"], feeds)["c"][1][0] > np.finfo(np.float16).max
    changed = InsertBatchnorm(feeds)(model)
    node = next(n for n in changed.graph.nodes if inserted(n))
    assert {t.values.dtype for t in node.inputs[1:]} == {np.dtype(np.float16)}
    assert all(np.isfinite(t.values).all() for t in node.inputs[1:])
    assert_same(changed, model, feeds)
    restored = FuseBatchnorm()(changed)
    assert constants(restored)["w"].dtype == np.float16
    assert_same(restored, model, feeds)


# -------------------------------------------------------------------------------------------------------- bad input

PLAIN = ("float[N,3,6,6] x) => (float[N,4,2,2] y) { c = Conv (x, w, b) d = Relu (c) e = Conv (d, v, b) y = Relu (e) }",
         {"v": (4, 4, 3, 3)})  # fmt: skip


@pytest.mark.parametrize(
    "feed",
    [{}, {"z": np.zeros((1, 3, 6, 6), np.float32)}, {"x": np.zeros((1, 2, 6, 6), np.float32)},
     {"x": np.zeros((1, 3, 6, 6), np.float64)}],
    ids=["nothing", "name", "shape", "type"],
)  # fmt: skip
def test_feeds_that_do_not_fit_are_named(feed: dict[str, Array]) -> None:
    model = case(*PLAIN)
    good = random_feeds(model, (1,))[0]
    with pytest.raises(OnnxPruneError, match="fails to run") as caught:
        InsertBatchnorm([good, feed])(model)
    assert caught.value.where == "batch 1"


@pytest.mark.parametrize("feeds", [[], [{"x": np.zeros((0, 3, 6, 6), np.float32)}]], ids=["no batch", "no sample"])
def test_no_data_to_measure_on_is_refused(feeds: list[dict[str, Array]]) -> None:
    with pytest.raises(OnnxPruneError, match="the data has no samples"):
        measure_statistics(case(*PLAIN), ["c"], feeds)


def test_unknown_tensor_is_refused_with_the_nearest() -> None:
    with pytest.raises(OnnxPruneError, match="unknown tensor 'w'"):
        measure_statistics(case(*PLAIN), ["w"], random_feeds(case(*PLAIN)))


def test_activations_that_are_not_finite_name_the_node() -> None:
    model = case(*PLAIN)
    for i, node in enumerate(model.graph.nodes):
        node.name = f"node{i}"
    x = np.zeros((1, 3, 6, 6), np.float32)
    x[0, 1, 2, 3] = np.nan
    with pytest.raises(OnnxPruneError, match="not finite on this data \\(batch 1\\)") as caught:
        InsertBatchnorm([*random_feeds(model, (1,)), {"x": x}])(model)
    assert caught.value.where == "Conv 'node0'"
    # The second convolution overflows on sound data.
    huge = case(PLAIN[0], {"v": np.full((4, 4, 3, 3), 1e38)})
    with pytest.raises(OnnxPruneError, match="'e' is not finite") as caught:
        InsertBatchnorm(random_feeds(huge))(huge)
    assert caught.value.where == "Conv 'e'"


# ----------------------------------------------------------------------------------------------------------- fusing


def test_the_demo_model_fused_is_what_the_exporter_folds() -> None:
    kept, by_exporter = load(KEPT), load(FOLDED)
    fused = FuseBatchnorm()(kept)
    assert "BatchNormalization" in ops(kept)
    assert ops(fused) == ops(by_exporter)
    name = kept.graph.inputs[0].name
    assert_same(fused, kept, [{name: op.load_data("digits:test", images=64).x}])
    convolutions = [[n for n in m.graph.nodes if n.op == "Conv"] for m in (fused, by_exporter)]
    for mine, theirs in zip(*convolutions, strict=True):
        for t, other in zip(mine.inputs[1:], theirs.inputs[1:], strict=True):
            assert gap(np.asarray(t.values), np.asarray(other.values)) <= 1e-5


def test_folding_is_rounded_once() -> None:
    text = ("float[N,3,6,6] x) => (float[N,4,4,4] y) { c = Conv (x, w, b) "
            "y = BatchNormalization <epsilon=0.25> (c, gamma, beta, mean, var) }")  # fmt: skip
    model = net(text, w=W4, b=B4, gamma=B4, beta=B4, mean=B4, var=B4)
    old = {n: v.astype(np.float64) for n, v in constants(model).items()}
    new = constants(FuseBatchnorm()(model))
    for c in range(4):
        s = old["gamma"][c] / (old["var"][c] + 0.25) ** 0.5
        assert np.array_equal(new["w"][c], (old["w"][c] * s).astype(np.float32))
        assert new["b"][c] == np.float32((old["b"][c] - old["mean"][c]) * s + old["beta"][c])


BN = {"gamma": B4, "beta": B4, "mean": B4, "var": B4}
NORM = "n = BatchNormalization (c, gamma, beta, mean, var) y = Relu (n) }"
IMAGE = "float[N,4,6,6] x) => (float[N,4,H,W] y) { "
ROWS = "float[N,3] x) => (float[N,4] y) { "
FUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "conv": (IMAGE + "c = Conv (x, w, b) " + NORM, {"w": (4, 4, 3, 3), "b": B4}),
    "no bias": (IMAGE + "c = Conv (x, w) " + NORM, {"w": (4, 4, 3, 3)}),
    "empty bias": (IMAGE + "c = Conv (x, w, ) " + NORM, {"w": (4, 4, 3, 3)}),
    "groups": (IMAGE + "c = Conv <group=2> (x, w, b) " + NORM, {"w": (4, 2, 3, 3), "b": B4}),
    "depthwise": (IMAGE + "c = Conv <group=4> (x, w) " + NORM, {"w": (4, 1, 3, 3)}),
    "transposed": (IMAGE + "c = ConvTranspose <strides=[2,2]> (x, w, b) " + NORM, {"w": (4, 4, 3, 3), "b": B4}),
    "transposed, groups": (IMAGE + "c = ConvTranspose <group=2> (x, w) " + NORM, {"w": (4, 2, 3, 2)}),
    "transposed, depthwise": (IMAGE + "c = ConvTranspose <group=4> (x, w) " + NORM, {"w": (4, 1, 3, 2)}),
    "gemm": (ROWS + "c = Gemm (x, w, b) " + NORM, {"w": (3, 4), "b": B4}),
    "gemm, no bias": (ROWS + "c = Gemm <transB=1,beta=0.5> (x, w) " + NORM, {"w": (4, 3)}),
    "gemm, transposed and scaled": (ROWS + "c = Gemm <transB=1,alpha=0.7,beta=2.0> (x, w, b) " + NORM,
                                    {"w": (4, 3), "b": B4}),
    "gemm, a row as bias": (ROWS + "c = Gemm <beta=0.3> (x, w, b) " + NORM, {"w": (3, 4), "b": (1, 4)}),
    "gemm, a number as bias": (ROWS + "c = Gemm (x, w, b) " + NORM, {"w": (3, 4), "b": ()}),
    "two in a row": (IMAGE + "c = Conv (x, w, b) d = BatchNormalization (c, gamma, beta, mean, var) "
                     "n = BatchNormalization <epsilon=0.1> (d, gamma, beta, mean, var) y = Relu (n) }",
                     {"w": (4, 4, 3, 3), "b": B4}),
    "the graph's output": (IMAGE + "c = Conv (x, w, b) y = BatchNormalization (c, gamma, beta, mean, var) }",
                           {"w": (4, 4, 3, 3), "b": B4}),
    "the graph's output, read inside as well": (
        "float[N,4,6,6] x) => (float[N,4,4,4] n, float[N,4,4,4] y) { c = Conv (x, w, b) " + NORM,
        {"w": (4, 4, 3, 3), "b": B4},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_fused_computes_the_same(name: str) -> None:
    text, values = FUSED[name]
    model = net(text, **values, **BN)
    model.graph.nodes[0].name = "producer"
    fused = FuseBatchnorm()(model)
    assert "BatchNormalization" not in ops(fused)
    onnx.checker.check_model(to_proto(fused))
    feeds = random_feeds(model)
    assert_same(fused, model, feeds)
    new = constants(fused)
    assert fused.graph.nodes[0].name == "producer"
    assert set(new) == {"w", "b" if "b" in values else "w.bias"}
    assert new["w"].shape == values["w"]
    assert [t.name for t in fused.graph.outputs] == [t.name for t in model.graph.outputs]


STAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "1: training form": (
        IMAGE + "c = Conv (x, w, b) n, m, v = BatchNormalization <training_mode=1> (c, gamma, beta, mean, var) "
        "y = Relu (n) }", {"w": (4, 4, 3, 3), "b": B4},
    ),
    "1: training form of one output": (
        IMAGE + "c = Conv (x, w, b) n = BatchNormalization <training_mode=1> (c, gamma, beta, mean, var) "
        "y = Relu (n) }",
        {"w": (4, 4, 3, 3), "b": B4},
    ),
    "1: statistics as outputs": (
        IMAGE + "c = Conv (x, w, b) n, m, v = BatchNormalization (c, gamma, beta, mean, var) y = Relu (n) }",
        {"w": (4, 4, 3, 3), "b": B4},
    ),
    "1: computed parameters": (
        IMAGE + "c = Conv (x, w, b) g = Abs (gamma) n = BatchNormalization (c, g, beta, mean, var) y = Relu (n) }",
        {"w": (4, 4, 3, 3), "b": B4},
    ),
    "2: another producer": (IMAGE + "c = Relu (x) " + NORM, {}),
    "2: a product without bias": (ROWS + "c = MatMul (x, w) " + NORM, {"w": (3, 4)}),
    "2: a matrix as bias": ("float[4,3] x) => (float[4,4] y) { c = Gemm (x, w, b) " + NORM, {"w": (3, 4), "b": (4, 4)}),
    "2: a column as bias": ("float[4,3] x) => (float[4,4] y) { c = Gemm (x, w, b) " + NORM, {"w": (3, 4), "b": (4, 1)}),
    "2: computed weight": (IMAGE + "u = Abs (w) c = Conv (x, u, b) " + NORM, {"w": (4, 4, 3, 3), "b": B4}),
    "2: computed bias": (IMAGE + "u = Abs (b) c = Conv (x, w, u) " + NORM, {"w": (4, 4, 3, 3), "b": B4}),
    "3: another reader": (IMAGE + "c = Conv (x, w, b) n = BatchNormalization (c, gamma, beta, mean, var) "
                          "y = Add (n, c) }", {"w": (4, 4, 3, 3), "b": B4}),
    "3: a graph output": ("float[N,4,6,6] x) => (float[N,4,4,4] c, float[N,4,4,4] y) { c = Conv (x, w, b) " + NORM,
                          {"w": (4, 4, 3, 3), "b": B4}),
    "3: the graph's input": ("float[N,4,6,6] c) => (float[N,4,6,6] y) { " + NORM, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_folded_stays(name: str) -> None:
    text, values = STAYS[name]
    model = net(text, **values, **BN)
    assert to_proto(FuseBatchnorm()(model)).SerializeToString() == to_proto(model).SerializeToString()


def test_bias_that_is_spelled_as_missing_is_filled_in() -> None:
    model = net(IMAGE + "c = Conv (x, w) " + NORM, w=(4, 4, 3, 3), **BN)
    model.graph.nodes[0].inputs.append(gs.Variable.empty())
    fused = FuseBatchnorm()(model)
    assert [t.name for t in fused.graph.nodes[0].inputs] == ["x", "w", "w.bias"]
    assert_same(fused, model, random_feeds(model))


def test_weight_that_is_an_output_stays() -> None:
    model = net(IMAGE + "c = Conv (x, w, b) " + NORM, w=(4, 4, 3, 3), b=B4, **BN)
    weight = model.graph.nodes[0].inputs[1]
    model.graph.outputs.append(weight)
    fused = FuseBatchnorm()(model)
    assert "BatchNormalization" in ops(fused)
    assert np.array_equal(constants(fused)["w"], weight.values)


def test_shared_weights_are_copied_first() -> None:
    text = IMAGE + (
        "c = Conv <pads=[1,1,1,1]> (x, w, b) n = BatchNormalization (c, gamma, beta, mean, var) r = Relu (n) "
        "d = Conv (r, w, b) y = Sigmoid (d) }"
    )
    model = net(text, w=(4, 4, 3, 3), b=B4, **BN)
    fused = FuseBatchnorm()(model)
    assert [[t.name for t in n.inputs[1:]] for n in fused.graph.nodes if n.op == "Conv"] == [
        ["w__1", "b__1"],
        ["w", "b"],
    ]
    assert np.array_equal(constants(fused)["w"], constants(model)["w"])
    assert_same(fused, model, random_feeds(model))


def test_only_inserted_leaves_the_models_own() -> None:
    model = network(["kept", "conv"], 0, 17, False, True)
    changed = InsertBatchnorm(random_feeds(model))(model)
    assert ops(changed).count("BatchNormalization") == 3
    assert ops(FuseBatchnorm(only_inserted=True)(changed)).count("BatchNormalization") == 1
    assert ops(FuseBatchnorm()(changed)).count("BatchNormalization") == 0


def test_trained_parameters_are_folded() -> None:
    # What training changes: the convolution, gamma, beta and the running statistics.
    model = load(FOLDED)
    feeds = random_feeds(model)
    changed = InsertBatchnorm(feeds)(model)
    rng = np.random.default_rng(0)
    for node in (n for n in changed.graph.nodes if n.op in ("Conv", "BatchNormalization")):
        for t in node.inputs[1:]:
            t.values = (t.values * rng.uniform(0.8, 1.2, t.values.shape)).astype(t.values.dtype)
    trained = changed.copy()
    restored = FuseBatchnorm(only_inserted=True)(trained)
    assert gap(run(trained, feeds[0]), run(model, feeds[0])) > 1e-2
    assert_same(restored, trained, feeds)
    assert without_values(restored) == without_values(model)


def test_documentation_and_metadata_survive_the_pair() -> None:
    proto = to_proto(load(FOLDED))
    for node in proto.graph.node:
        node.doc_string = f"about {node.output[0]}"
    proto.graph.initializer[0].doc_string = "a weight"
    proto.metadata_props.add(key="author", value="someone")
    proto.graph.doc_string = "digits"
    model = load(proto)
    feeds = random_feeds(model)
    restored = FuseBatchnorm(only_inserted=True)(InsertBatchnorm(feeds)(model))
    assert b"about " in without_values(restored)
    assert without_values(restored) == without_values(model)


@pytest.mark.parametrize(("var", "scale", "dtype"), [(-1.0, 1.0, "float"), (1.0, 60000.0, "float16")])
def test_folded_weights_that_are_not_finite_name_the_node(var: float, scale: float, dtype: str) -> None:
    kind = np.float16 if dtype == "float16" else np.float32
    text = f"{dtype}[N,1,2,2] x) => ({dtype}[N,1,2,2] y) {{ c = Conv (x, w) n = BatchNormalization (c, g, z, z, v) " \
        "y = Relu (n) }"  # fmt: skip
    one = np.ones(1, kind)
    model = net(text, w=np.full((1, 1, 1, 1), 2, kind), g=one * kind(scale), z=one * kind(0), v=one * kind(var))
    model.graph.nodes[1].name = "norm"
    with pytest.raises(OnnxPruneError, match="not finite") as caught:
        FuseBatchnorm()(model)
    assert caught.value.where == "norm"


# ------------------------------------------------------------------------------------------------- pruned in between


def test_folded_model_can_be_scored_by_scales_pruned_proved_and_folded_again() -> None:
    folded = load(FOLDED)
    x = op.load_data("digits:train", images=128).x
    name = folded.graph.inputs[0].name
    model = InsertBatchnorm([{name: x[:64]}, {name: x[64:]}])(folded)
    analysis = op.analyze(model)
    assert [(g.name, g.channels) for g in analysis] == [(g.name, g.channels) for g in op.analyze(folded)]
    scores = op.score(analysis, "bn_scale")
    assert all(len(np.unique(s)) > len(s) / 2 for s in scores.groups.values())  # channels that are dead score alike
    compiled = op.compile_plan(model, op.plan(scores, op.Target(macs=0.3)), analysis=analysis)
    assert compiled.verification is not None
    assert compiled.verification.max_relative <= 1e-4
    assert compiled.verification.effect > 1e-3
    assert compiled.after.macs < compiled.before.macs
    small = FuseBatchnorm(only_inserted=True)(compiled.model)
    assert ops(small) == ops(folded)
    assert_same(small, compiled.model, [{name: op.load_data("digits:test", images=64).x}])


def test_folded_model_without_normalization_cannot_be_scored_by_scales() -> None:
    model = load(FOLDED)
    with pytest.raises(OnnxPruneError, match="insert_batchnorm"):
        op.score(op.analyze(model), "bn_scale")
