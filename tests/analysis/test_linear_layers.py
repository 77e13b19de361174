"""Every linear node is its rows times its matrix: against onnxruntime, for all forms of Conv, Gemm and MatMul."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import PROPERTY

from onnxprune.analysis.linear_layers import LinearNode, linear_node
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model
from onnxprune.ir.reader import load

RNG = np.random.default_rng(0)
SAMPLES = 3


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(op: str, x: Array, constants: dict[str, Array], **attrs: Any) -> Model:
    """One node that reads x and some constants."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *constants], ["y"], **attrs)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list("nabcd"[: x.ndim]))],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def run(model: Model, x: Array) -> Array:
    [y] = Session(model, threads=1).run({"x": x})
    return y


def computed(node: LinearNode, x: Array, picks: Any = None) -> Array:
    """`rows @ matrix + shift` in float64, [n * positions, outputs]."""
    rows = node.rows(x, picks)
    assert rows.dtype == x.dtype
    assert rows.shape == (
        node.groups,
        len(x) * (node.count(x) if picks is None else len(picks)),
        node.matrix().shape[1],
    )
    parts = np.einsum("grk,gko->rgo", rows.astype(np.float64), node.matrix())
    return np.asarray(parts.reshape(rows.shape[1], -1) + node.shift())


def assert_linear(model: Model, x: Array, *, change: bool = True) -> LinearNode:
    """All that a view of the only linear node promises."""
    node = linear_node(model.graph.nodes[0])
    assert node is not None
    y = run(model, x)
    scale = np.abs(y).max()
    np.testing.assert_allclose(computed(node, x), node.picked(y), rtol=0, atol=1e-5 * scale)
    count = node.count(x)
    assert len(node.picked(y)) == len(x) * count
    assert node.picked(y).shape[1] == node.outputs == len(node.shift())
    picks = np.sort(RNG.choice(count, max(1, count // 2), replace=False))
    np.testing.assert_allclose(computed(node, x, picks), node.picked(y, picks), rtol=0, atol=1e-5 * scale)
    everywhere = node.rows(x).reshape(node.groups, len(x), count, -1)
    np.testing.assert_array_equal(
        node.rows(x, picks), everywhere[:, :, picks].reshape(node.groups, -1, node.rows(x).shape[2])
    )
    back = node.values_of(node.matrix())
    assert (back.shape, back.dtype) == (tuple(node.weight.shape), node.weight.dtype)
    np.testing.assert_allclose(back, node.weight.values, rtol=1e-6)  # alpha of a Gemm rounds
    if change:
        matrix = RNG.standard_normal(node.matrix().shape)
        shift = RNG.standard_normal(node.outputs) if node.intercept else None
        node.set_weights(matrix, shift)
        changed = linear_node(model.graph.nodes[0])
        assert changed is not None
        np.testing.assert_allclose(changed.matrix(), matrix, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(changed.shift(), np.zeros(node.outputs) if shift is None else shift, rtol=1e-6)
        assert_linear(model, x, change=False)
    return node


# ------------------------------------------------------------------------------------------------------ convolutions


@dataclass(frozen=True)
class Form:
    """A convolution; of each axis: size, kernel, stride, dilation, pad before, pad after, output padding."""

    axes: tuple[tuple[int, int, int, int, int, int, int], ...]
    groups: int
    inputs: int
    outputs: int
    bias: bool
    auto: str

    def attrs(self, *names: str) -> dict[str, Any]:
        columns = list(zip(*self.axes, strict=True))
        found = {
            "strides": list(columns[2]), "dilations": list(columns[3]), "pads": [*columns[4], *columns[5]],
            "output_padding": list(columns[6]), "group": self.groups, "auto_pad": self.auto,
        }  # fmt: skip
        return {name: found[name] for name in names}

    @property
    def x(self) -> Array:
        return normal(SAMPLES, self.groups * self.inputs, *(a[0] for a in self.axes))

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(a[1] for a in self.axes)


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, ...]:
    kernel, stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    extent = (kernel - 1) * dilation + 1
    size = draw(st.integers(extent, extent + 5))
    pads = [draw(st.integers(0, extent - 1)) for _ in range(2)]
    return size, kernel, stride, dilation, pads[0], pads[1], draw(st.integers(0, stride - 1))


def forms(*autos: str) -> st.SearchStrategy[Form]:
    one = st.integers(1, 3)
    return st.builds(
        Form, st.lists(axes(), min_size=1, max_size=3).map(tuple), one, one, one, st.booleans(), st.sampled_from(autos)
    )


@PROPERTY(max_examples=60)
@given(forms("NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"))
def test_any_conv(form: Form) -> None:
    names = ["strides", "group", "auto_pad"]
    names += {"NOTSET": ["dilations", "pads"], "VALID": ["dilations"]}.get(form.auto, [])  # SAME knows no dilation
    weight = normal(form.groups * form.outputs, form.inputs, *form.kernel)
    constants = {"w": weight} | ({"b": normal(len(weight))} if form.bias else {})
    node = assert_linear(model_of("Conv", form.x, constants, **form.attrs(*names)), form.x)
    assert (node.inputs, node.groups, node.kernel) == (form.inputs, form.groups, int(np.prod(form.kernel)))
    assert (node.intercept, node.output) == (True, "y")


@PROPERTY(max_examples=60)
@given(forms("NOTSET"))
def test_any_conv_transpose(form: Form) -> None:
    weight = normal(form.groups * form.inputs, form.outputs, *form.kernel)
    constants = {"w": weight} | ({"b": normal(form.groups * form.outputs)} if form.bias else {})
    attrs = form.attrs("strides", "group", "dilations", "pads", "output_padding")
    for size, kernel, stride, dilation, before, after, more in form.axes:
        if (size - 1) * stride + (kernel - 1) * dilation + 1 - before - after + more < 1:
            attrs.pop("pads", None)  # nothing would be left
    node = assert_linear(model_of("ConvTranspose", form.x, constants, **attrs), form.x)
    assert (node.inputs, node.groups) == (form.inputs, form.groups)


@pytest.mark.parametrize(("channels", "times"), [(4, 1), (4, 3)])
def test_depthwise_conv(channels: int, times: int) -> None:
    constants = {"w": normal(channels * times, 1, 3, 3), "b": normal(channels * times)}
    node = assert_linear(
        model_of("Conv", x := normal(2, channels, 5, 4), constants, group=channels, pads=[1, 1, 1, 1]), x
    )
    assert (node.groups, node.inputs, node.outputs) == (channels, 1, channels * times)


def test_rows_are_by_channel_then_by_place_of_the_kernel() -> None:
    x = np.arange(18, dtype=np.float32).reshape(1, 2, 3, 3)
    node = linear_node(model_of("Conv", x, {"w": normal(1, 2, 2, 2)}, pads=[1, 0, 0, 0]).graph.nodes[0])
    assert node is not None
    assert node.count(x) == 6
    np.testing.assert_array_equal(node.rows(x)[0, 0], [0, 0, 0, 1, 0, 0, 9, 10])  # the first row is padding
    np.testing.assert_array_equal(node.rows(x, np.array([5]))[0], [[4, 5, 7, 8, 13, 14, 16, 17]])


# ---------------------------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("attrs", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": -3.0}])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6)])
def test_any_gemm(attrs: dict[str, Any], bias: tuple[int, ...] | None) -> None:
    constants = {"w": normal(6, 4) if "transB" in attrs else normal(4, 6)}
    constants |= {"b": normal(*bias)} if bias else {}
    node = assert_linear(model_of("Gemm", x := normal(5, 4), constants, **attrs), x)
    assert (node.inputs, node.outputs, node.groups, node.kernel, node.intercept) == (4, 6, 1, 1, True)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_any_matmul(shape: tuple[int, ...]) -> None:
    node = assert_linear(model_of("MatMul", x := normal(*shape), {"w": normal(4, 6)}), x)
    assert (node.inputs, node.outputs, node.intercept) == (4, 6, False)
    assert node.count(x) == np.prod(shape[1:-1])


def parsed(body: str, constants: dict[str, Array], *, outputs: str = "float[N,?] y") -> Model:
    text = f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,4] x) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text.replace("?", "n"))
    proto.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    return load(proto)


@pytest.mark.parametrize("body", ["a = MatMul (x, w) y = Add (a, b)", "a = MatMul (x, w) y = Add (b, a)"])
@pytest.mark.parametrize("shape", [(6,), (1, 6)])
def test_an_add_after_a_matmul_is_its_bias(body: str, shape: tuple[int, ...]) -> None:
    model = parsed(body, {"w": normal(4, 6), "b": normal(*shape)})
    node = assert_linear(model, normal(5, 4))
    assert (node.intercept, node.output) == (True, "y")
    assert node.bias is not None
    assert tuple(node.bias.shape) == shape


def test_a_single_column_takes_a_scalar() -> None:
    node = assert_linear(parsed("a = MatMul (x, w) y = Add (a, b)", {"w": normal(4, 1), "b": normal()}), normal(5, 4))
    assert (node.outputs, node.output) == (1, "y")


@pytest.mark.parametrize(
    ("body", "constants", "outputs"),
    [
        ("a = MatMul (x, w) y = Add (a, b)", {"b": (5, 1)}, "float[N,?] y"),  # one per row
        ("a = MatMul (x, w) y = Add (a, b)", {"b": (1, 1, 6)}, "float[1,N,?] y"),  # changes the rank
        ("a = MatMul (x, w) y = Add (a, b)", {"b": (1,)}, "float[N,?] y"),
        ("a = MatMul (x, w) y = Mul (a, b)", {"b": (6,)}, "float[N,?] y"),
        ("a = MatMul (x, w) y = Add (a, a)", {}, "float[N,?] y"),
        ("a = MatMul (x, w) y = Add (a, b)", {"b": (6,)}, "float[N,?] y, float[N,?] a"),  # is seen before the Add
        ("a = MatMul (x, w) y = Add (a, b) z = Neg (a)", {"b": (6,)}, "float[N,?] y, float[N,?] z"),
        ("a = MatMul (x, w) y = Add (a, b) z = Neg (b)", {"b": (6,)}, "float[N,?] y, float[?] z"),
    ],
)
def test_what_follows_a_matmul_is_not_always_its_bias(
    body: str, constants: dict[str, tuple[int, ...]], outputs: str
) -> None:
    model = parsed(body, {"w": normal(4, 6)} | {n: normal(*s) for n, s in constants.items()}, outputs=outputs)
    node = linear_node(model.graph.nodes[0], frozenset(t.name for t in model.graph.outputs))
    assert node is not None
    assert (node.bias, node.output, node.intercept) == (None, "a", False)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Relu (x)", {}),
        ("y = MatMul (x, x)", {}),
        ("y = MatMul (w, x)", {"w": (4, 4)}),
        ("y = MatMul (x, w)", {"w": (2, 4, 6)}),
        ("y = MatMul (x, w)", {"w": (4,)}),
        ("y = Gemm <transA = 1> (x, w)", {"w": (4, 4)}),
        ("y = Gemm <alpha = 0.0> (x, w, b)", {"w": (4, 6), "b": (6,)}),
        ("y = Gemm <beta = 0.0> (x, w, b)", {"w": (4, 6), "b": (6,)}),
        ("y = Gemm (x, w, b)", {"w": (4, 6), "b": (6, 1)}),
        ("y = Gemm (x, w, b)", {"w": (4, 6), "b": (1,)}),
        ("c = Relu (b) y = Gemm (x, w, c)", {"w": (4, 6), "b": (6,)}),
        ("a = Gemm (x, w, b) c = Gemm (x, v, b) y = Add (a, c)", {"w": (4, 6), "v": (4, 6), "b": (6,)}),
        ("a = MatMul (x, w) y = MatMul (a, w)", {"w": (4, 4)}),
    ],
)
def test_what_is_not_linear_in_a_constant_of_its_own_is_none(body: str, constants: dict[str, tuple[int, ...]]) -> None:
    nodes = parsed(body, {n: normal(*s) for n, s in constants.items()}).graph.nodes
    assert all(linear_node(n) is None for n in nodes)


@pytest.mark.parametrize("attrs", [{"auto_pad": "SAME_UPPER"}, {"output_shape": [9, 9]}])
def test_conv_transpose_whose_pads_follow_from_the_output_is_none(attrs: dict[str, Any]) -> None:
    model = model_of("ConvTranspose", normal(1, 2, 4, 4), {"w": normal(2, 3, 3, 3)}, strides=[2, 2], **attrs)
    assert linear_node(model.graph.nodes[0]) is None


@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_node_without_a_bias_takes_one(op: str) -> None:
    x, w = (normal(2, 3, 4, 4), normal(5, 3, 1, 1)) if op == "Conv" else (normal(2, 3), normal(3, 5))
    model = model_of(op, x, {"w": w})
    before = run(model, x)
    node = linear_node(model.graph.nodes[0])
    assert node is not None
    node.set_weights(node.matrix(), np.arange(5.0))
    np.testing.assert_allclose(
        run(model, x) - before, np.arange(5.0).reshape(5, *[1] * (x.ndim - 2)) + 0 * before, atol=1e-5
    )


def test_half_precision_stays_what_it_is() -> None:
    weight = normal(5, 3, 2, 2).astype(np.float16)
    node = linear_node(
        model_of("Conv", normal(1, 3, 4, 4), {"w": weight, "b": normal(5).astype(np.float16)}).graph.nodes[0]
    )
    assert node is not None
    assert node.matrix().dtype == np.float64
    np.testing.assert_array_equal(node.values_of(node.matrix()), weight)
    node.set_weights(node.matrix(), np.ones(5))
    assert node.bias is not None
    assert (node.weight.dtype, node.bias.dtype) == (np.float16, np.float16)
