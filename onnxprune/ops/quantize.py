"""Records of QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: scales and zero points follow their channels.

A weight read by DequantizeLinear is a view of the integer constant; its scale and zero point get the final labels of
the weight's axis. Activations pass. Removed activations are masked to zero before they are quantized again, which is
exact: the zero point stands for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, LabelTable, Quantization
from onnxprune.ops.op_spec import OpSpec, normal_axis, register

MICROSOFT = "com.microsoft"


def _quantization_axes(node: gs.Node, table: LabelTable) -> list[tuple[gs.Tensor, int, int, int]]:
    """Return (scale or zero point, its axis, the data's axis, block) of every axis along which they vary."""
    rank = len(table.shape(node.inputs[0]))
    axis = normal_axis(int(node.attrs.get("axis", 1)), max(rank, 1))
    block = int(node.attrs.get("block_size", 0))
    out = []
    for t in node.inputs[1:3]:
        shape = table.shape(t) if t.name else ()
        if block:
            out += [(t, i, i, block if i == axis else 1) for i, n in enumerate(shape) if n > 1 or i == axis]
        elif len(shape) == 1 and shape[0] > 1:
            out.append((t, 0, axis, 1))
    return out


def couple_quantize(node: gs.Node, table: LabelTable) -> None:
    """Pass data; scale and zero point follow it per tensor, per channel or per block. A constant is a weight."""
    x, y = node.inputs[0], node.outputs[0]
    places = _quantization_axes(node, table)
    if table.is_const(x) and all(not t.name or isinstance(t, gs.Constant) for t in node.inputs[1:3]):
        table.view(y, x)
        for t, own, axis, block in places:
            table.follow(t, own, x, axis, block)
        return
    axes = list(table.get(x))
    for t, own, axis, block in places:
        labels = axes[axis]
        if labels is not None and not table.is_const(t):
            table.lock(labels, "has scales computed at run time")
        elif labels is not None and block > 1:
            table.lock(labels, "is quantized in blocks at run time")
        else:
            table.bind(t, own, labels)
    table.put(y, axes)


def couple_dynamic_quantize(node: gs.Node, table: LabelTable) -> None:
    """Pass labels and contract every axis: the range includes zero, so masking the input is exact."""
    axes = table.get(node.inputs[0])
    for axis, labels in enumerate(axes):
        if labels is not None:
            table.contract(0, axis)
    table.put(node.outputs[0], axes)


def along(values: Array, like: Array, axis: int, block: int = 0) -> Array:
    """Return scales or zero points in a shape that broadcasts against the data."""
    if block and values.ndim == like.ndim:
        return np.repeat(values, block, axis).take(np.arange(like.shape[axis]), axis)
    if values.ndim == 1 and values.size > 1:
        return values.reshape([-1 if i == normal_axis(axis, like.ndim) else 1 for i in range(like.ndim)])
    return values.reshape(()) if values.size == 1 else values


def dequantized(values: Array, steps: Quantization) -> Array:
    """Return the float32 values that integers stand for."""
    x = np.asarray(values).astype(np.float32)
    zero, scale = ((t.values if isinstance(t, gs.Constant) else None) for t in (steps.zero, steps.scale))
    if zero is not None:
        x = x - along(np.asarray(zero).astype(np.float32), x, steps.axis)
    return np.asarray(x if scale is None else x * along(np.asarray(scale), x, steps.axis))


def _dequantize(node: gs.Node, values: Sequence[Any]) -> Array:
    x = np.asarray(values[0])
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    scale = np.asarray(values[1])
    out = x.astype(np.float32)
    if len(values) > 2 and values[2] is not None:
        out = out - along(np.asarray(values[2]).astype(np.float32), x, axis, block)
    return np.asarray(out * along(scale.astype(np.float32), x, axis, block)).astype(scale.dtype)


def _quantize(node: gs.Node, values: Sequence[Any]) -> Array | None:
    x, scale = np.asarray(values[0]), np.asarray(values[1])
    axis, block = int(node.attrs.get("axis", 1)), int(node.attrs.get("block_size", 0))
    zero = np.asarray(values[2]) if len(values) > 2 and values[2] is not None else None
    stated = node.attrs.get("output_dtype", 0)
    dtype = zero.dtype if zero is not None else np.dtype(np.uint8)
    if zero is None and stated:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(int(stated))
    codes = np.rint(x / along(scale, x, axis, block)).astype(np.float32)
    if zero is not None:
        codes = codes + along(zero.astype(np.float32), x, axis, block)
    if dtype.kind not in "iu":  # rounding of 4-bit and 8-bit float types is not implemented
        return None if dtype.name.startswith("float") else codes.astype(dtype)
    return np.clip(codes, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def _as_standard(node: gs.Node) -> list[onnx.NodeProto]:
    names, out = [t.name for t in node.inputs], [t.name for t in node.outputs]
    if node.op == "DequantizeLinear":  # before opset 19 the standard operator accepts float32 scales only
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(node.inputs[1].dtype or np.float32))
        return [onnx.helper.make_node("Cast", names[:1], out, to=kind)]
    return [onnx.helper.make_node(node.op, names, out)]


for _op, _evaluate in (("QuantizeLinear", _quantize), ("DequantizeLinear", _dequantize)):
    register(OpSpec(_op, couple_quantize, evaluate=_evaluate))
    register(OpSpec(_op, couple_quantize, evaluate=_evaluate, domain=MICROSOFT, stand_in=_as_standard))
register(OpSpec("DynamicQuantizeLinear", couple_dynamic_quantize))
