"""Records of integer products and convolutions: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger, QGemm ...

The masked reference dequantizes their data, masks it and quantizes it again; see the pass `insert_masks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.ops.concat import join
from onnxprune.ops.conv import convolve, patch_conv_group, patch_group
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.label_table import Axes, Labels, LabelTable, Quantization
from onnxprune.ops.op_spec import Macs, OpSpec, Patcher, Shape, StandIn, normal_axis, register
from onnxprune.ops.quantize import MICROSOFT


def _input(node: gs.Node, place: int) -> gs.Tensor | None:
    """Return an input, or None if it is absent."""
    return node.inputs[place] if 0 <= place < len(node.inputs) and node.inputs[place].name else None


def _steps_of_weight(
    node: gs.Node, table: LabelTable, weight: int, scale: int, zero: int, axis: int, labels: Labels | None
) -> None:
    """Record a weight's scale and zero point, and tie them to its outputs where they are per channel."""
    w, s, z = node.inputs[weight], _input(node, scale), _input(node, zero)
    bias = _input(node, {"QLinearConv": 8, "QGemm": 6}.get(node.op, -1))
    if isinstance(bias, gs.Constant):
        table.quantized[bias.name] = Quantization(None, None, 0)
    if isinstance(w, gs.Constant):
        table.quantized[w.name] = Quantization(s, z, axis)
    for t in (s, z):
        if t is None:
            continue
        shape = table.shape(t)
        # [N], or [1, N] as MatMulInteger allows; a scalar applies to all channels.
        if shape and shape[-1] > 1:
            if table.is_const(t):
                table.bind(t, len(shape) - 1, labels)
            else:
                table.lock(labels, "has scales computed at run time")


def couple_qlinear_conv(node: gs.Node, table: LabelTable) -> None:
    """Tie channels as for Conv, on integers; per-channel scales and zero points of the weight follow its outputs."""
    last = bool(node.attrs.get("channels_last", 0))
    out = convolve(node, table, weight=3, bias_at=8, steps=(1, 2), last=last)
    _steps_of_weight(node, table, 3, 4, 5, 0, out)


def couple_conv_integer(node: gs.Node, table: LabelTable) -> None:
    """Tie channels as for Conv, on integers that a later node scales."""
    out = convolve(node, table, bias_at=len(node.inputs), steps=(-1, 2))
    _steps_of_weight(node, table, 1, -1, 3, 0, out)


def _macs_conv(weight: int) -> Macs:
    def macs(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
        pixels = outs[0][1:-1] if node.attrs.get("channels_last", 0) else outs[0][2:]
        return outs[0][0] * prod(pixels) * prod(ins[weight])

    return macs


def _product(
    node: gs.Node, table: LabelTable, *, b: int, steps_a: tuple[int, int] | None, steps_b: tuple[int, int], bias: int
) -> None:
    """Couple [..., M, K] x [..., K, N] with the second operand at input `b`; transA and transB as in Gemm."""
    left, right = node.inputs[0], node.inputs[b]
    ra, rb = len(table.shape(left)), len(table.shape(right))
    rows, summed = (ra - 1, ra - 2) if node.attrs.get("transA", 0) else (ra - 2, ra - 1)
    inner, cols = (rb - 1, rb - 2) if node.attrs.get("transB", 0) else (rb - 2, rb - 1)
    if table.is_const(left) or min(ra, rb) < 2:
        table.lock_inputs("multiplies a constant from the left, or vectors")
        return
    table.bind(right, inner, table.get(left)[summed])
    table.contract(0, summed, steps_a)
    if table.is_const(right):
        out = table.produce(right, cols)
        table.filters(right, cols, out)
    else:
        out = table.get(right)[cols]
    _steps_of_weight(node, table, b, *steps_b, cols, out)
    c = _input(node, bias)
    if c is not None:
        table.bind_broadcast(c, [None, out])
    for place in steps_a or ():
        t = _input(node, place)
        if t is not None and prod(table.shape(t)) > 1:
            table.lock(table.get(left)[rows], "has a scale for each row")
    lead = broadcast(table, [(t, len(table.shape(t)) - 2) for t in (left, right) if len(table.shape(t)) > 2])
    table.put(node.outputs[0], [*lead, table.get(left)[rows], out])


def couple_qlinear_matmul(node: gs.Node, table: LabelTable) -> None:
    """Tie axes as for MatMul, on integers."""
    _product(node, table, b=3, steps_a=(1, 2), steps_b=(4, 5), bias=-1)


def couple_matmul_integer(node: gs.Node, table: LabelTable) -> None:
    """Tie axes as for MatMul, on integers that a later node scales."""
    _product(node, table, b=1, steps_a=(-1, 2), steps_b=(-1, 3), bias=-1)


def couple_matmul_integer_to_float(node: gs.Node, table: LabelTable) -> None:
    """Tie axes as for MatMul with a bias, from integers to floats."""
    _product(node, table, b=1, steps_a=(2, 4), steps_b=(3, 5), bias=6)


def couple_dynamic_matmul(node: gs.Node, table: LabelTable) -> None:
    """Tie axes as for MatMul with a bias; the node quantizes its data, in a range that includes zero."""
    _product(node, table, b=1, steps_a=None, steps_b=(2, 3), bias=4)


def couple_qgemm(node: gs.Node, table: LabelTable) -> None:
    """Tie axes as for Gemm, on integers."""
    _product(node, table, b=3, steps_a=(1, 2), steps_b=(4, 5), bias=6)


def macs_product(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the output elements times the summed length."""
    return prod(outs[0]) * ins[0][-2 if node.attrs.get("transA", 0) else -1]


def _single(node: gs.Node, table: LabelTable, places: Sequence[int]) -> bool:
    """Return whether the scales and zero points are scalars, and lock all inputs if not."""
    if all(t is None or prod(table.shape(t)) == 1 for t in (_input(node, p) for p in places)):
        return True
    for t in node.inputs:
        if t.name:
            table.lock_tensor(t, "has several scales")
    return False


def couple_qlinear_binary(node: gs.Node, table: LabelTable) -> None:
    """Tie operands that broadcast against each other; lock them if a scale is not a scalar."""
    out: Axes = [None] * len(table.shape(node.outputs[0]))
    if _single(node, table, (1, 2, 4, 5, 6, 7)):
        out = broadcast(table, [(node.inputs[i], len(table.shape(node.inputs[i]))) for i in (0, 3)])
    table.put(node.outputs[0], out)


def couple_qlinear_unary(node: gs.Node, table: LabelTable) -> None:
    """Pass labels; lock them if a scale is not a scalar."""
    single = _single(node, table, (1, 2, 3, 4))
    table.put(node.outputs[0], table.get(node.inputs[0]) if single else [None] * len(table.shape(node.inputs[0])))


def couple_qlinear_pool(node: gs.Node, table: LabelTable) -> None:
    """Pass channels, lock space; lock all axes if a scale is not a scalar."""
    axes = table.get(node.inputs[0])
    if not _single(node, table, (1, 2, 3, 4)):
        axes = [None] * len(axes)
    last = bool(node.attrs.get("channels_last", 0))
    for labels in axes[1:-1] if last else axes[2:]:
        table.lock(labels, "pools over it")
    middle: Axes = [None] * (len(axes) - 2)
    table.put(node.outputs[0], [axes[0], *middle, axes[-1]] if last else [*axes[:2], *middle])


def couple_qlinear_concat(node: gs.Node, table: LabelTable) -> None:
    """Join labels along `axis`; lock them if a scale is not a scalar."""
    steps = [i for i in range(len(node.inputs)) if i % 3 != 2]
    if _single(node, table, steps):
        join(node, table, node.inputs[2::3])
    else:
        table.put(node.outputs[0], [None] * len(table.shape(node.outputs[0])))


def couple_qlinear_softmax(node: gs.Node, table: LabelTable) -> None:
    """Lock (inexact) the axis of the statistic, before opset 13 all axes from it on."""
    axes = table.get(node.inputs[0])
    axis = normal_axis(int(node.attrs.get("axis", -1)), len(axes))
    for place in range(axis, len(axes)) if int(node.attrs.get("opset", 13)) < 13 else [axis]:
        table.statistic(place)
    table.put(node.outputs[0], axes)


def patch_qlinear_conv(node: gs.Node, patcher: Patcher) -> None:
    """Update `group` when whole groups are removed."""
    last = bool(node.attrs.get("channels_last", 0))
    patch_group(node, patcher, 3, len(patcher.shape(node.inputs[0])) - 1 if last else 1)


def _like(op: str, *places: int) -> StandIn:
    """Return a stand-in: a standard operator on some of the inputs; its output has the type of the first."""

    def stand_in(node: gs.Node) -> list[onnx.NodeProto]:
        known = onnx.defs.get_schema(op).attributes
        attrs = {k: v for k, v in node.attrs.items() if k in known}
        names = [node.inputs[p].name for p in places or range(len(node.inputs))]
        out = node.outputs[0].name
        if not node.attrs.get("channels_last", 0):
            return [onnx.helper.make_node(op, names, [out], **attrs)]
        # channels_last kernels accept images [N, H, W, C] only.
        return [
            onnx.helper.make_node("Transpose", names[:1], [f"{out}/first"], perm=[0, 3, 1, 2]),
            onnx.helper.make_node(op, [f"{out}/first", *names[1:]], [f"{out}/last"], **attrs),
            onnx.helper.make_node("Transpose", [f"{out}/last"], [out], perm=[0, 2, 3, 1]),
        ]

    return stand_in


def _like_concat(node: gs.Node) -> list[onnx.NodeProto]:
    names = [t.name for t in node.inputs[2::3]]
    return [onnx.helper.make_node("Concat", names, [node.outputs[0].name], axis=int(node.attrs["axis"]))]


def _like_product(b: int, floats: bool) -> StandIn:
    """Return a stand-in: an integer product, cast to the output's type."""

    def stand_in(node: gs.Node) -> list[onnx.NodeProto]:
        out = node.outputs[0].name
        names = [node.inputs[0].name, node.inputs[b].name]
        flip = "ji" if node.attrs.get("transA", 0) else "ij", "kj" if node.attrs.get("transB", 0) else "jk"
        op = "MatMul"
        attrs = {}
        if node.op == "QGemm":
            op, attrs = "Einsum", {"equation": f"{flip[0]},{flip[1]}->ik"}
        nodes = [onnx.helper.make_node(op, names, [f"{out}/product"], **attrs)]
        to = onnx.TensorProto.FLOAT
        if not floats:
            zero = _input(node, 8)
            if zero is not None:
                return [*nodes, onnx.helper.make_node("CastLike", [f"{out}/product", zero.name], [out])]
        return [*nodes, onnx.helper.make_node("Cast", [f"{out}/product"], [out], to=to)]

    return stand_in


PACKED = "packs several weights into each byte; prune the model before it is quantized to 4 bits"


def couple_packed(node: gs.Node, table: LabelTable) -> None:
    """Lock every input: weights of a few bits are packed in blocks along the summed axis."""
    table.lock_inputs(PACKED)


def _macs_packed(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    return prod(ins[0]) * int(node.attrs["N"])


def _like_packed(node: gs.Node) -> list[onnx.NodeProto]:
    """Return a product with a weight [K, N] of zeros in the data's element type."""
    out, data = node.outputs[0].name, node.inputs[0].name
    size = onnx.numpy_helper.from_array(np.array([node.attrs["K"], node.attrs["N"]], np.int64))
    return [
        onnx.helper.make_node("Constant", [], [f"{out}/size"], value=size),
        onnx.helper.make_node("ConstantOfShape", [f"{out}/size"], [f"{out}/zeros"]),
        onnx.helper.make_node("CastLike", [f"{out}/zeros", data], [f"{out}/weight"]),
        onnx.helper.make_node("MatMul", [data, f"{out}/weight"], [out]),
    ]


register(OpSpec("QLinearConv", couple_qlinear_conv, patch=patch_qlinear_conv, macs=_macs_conv(3)))
register(OpSpec("ConvInteger", couple_conv_integer, patch=patch_conv_group, macs=_macs_conv(1)))
register(OpSpec("QLinearMatMul", couple_qlinear_matmul, macs=macs_product))
register(OpSpec("MatMulInteger", couple_matmul_integer, macs=macs_product))
for _spec in (
    OpSpec("QLinearConv", couple_qlinear_conv, patch_qlinear_conv, _macs_conv(3), stand_in=_like("Conv", 0, 3)),
    OpSpec("QGemm", couple_qgemm, macs=macs_product, stand_in=_like_product(3, floats=False)),
    OpSpec("MatMulIntegerToFloat", couple_matmul_integer_to_float, macs=macs_product,
           stand_in=_like_product(1, floats=True)),
    OpSpec("DynamicQuantizeMatMul", couple_dynamic_matmul, macs=macs_product, stand_in=_like_product(1, floats=True)),
    OpSpec("MatMulNBits", couple_packed, macs=_macs_packed, stand_in=_like_packed, locked_reason=PACKED),
    OpSpec("QLinearAdd", couple_qlinear_binary, stand_in=_like("Add", 0, 3)),
    OpSpec("QLinearMul", couple_qlinear_binary, stand_in=_like("Mul", 0, 3)),
    OpSpec("QLinearLeakyRelu", couple_qlinear_unary, stand_in=_like("LeakyRelu", 0)),
    OpSpec("QLinearSigmoid", couple_qlinear_unary, stand_in=_like("Sigmoid", 0)),
    OpSpec("QLinearSoftmax", couple_qlinear_softmax, stand_in=_like("Identity", 0)),
    OpSpec("QLinearAveragePool", couple_qlinear_pool, stand_in=_like("AveragePool", 0)),
    OpSpec("QLinearGlobalAveragePool", couple_qlinear_pool, stand_in=_like("GlobalAveragePool", 0)),
    OpSpec("QLinearConcat", couple_qlinear_concat, stand_in=_like_concat),
):  # fmt: skip
    register(replace(_spec, domain=MICROSOFT))
