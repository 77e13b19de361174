"""Converters of QuantizeLinear and DequantizeLinear as fake quantization, in floats with a gradient.

Rounding passes the gradient straight through (Bengio et al. 2013, arXiv:1308.3432); saturated elements have none.
Weights stored as integers do not change: only weights stored in floats train.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.torch_bridge.converters._operands import (
    FunctionModule,
    attribute,
    has_input,
    is_constant,
    torch_dtype,
    unsupported,
)
from onnxprune.torch_bridge.registry import constant, converted, converts


def quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    *,
    axis: int,
    block: int,
    low: int,
    high: int,
) -> torch.Tensor:
    """Return round(x / scale) + zero_point within [low, high], as floats.

    Args:
        x: Data.
        scale: Scalar, one per index of an axis, or one per block along it.
        zero_point: Zero point of the same shape.
        axis: Axis along which scales differ.
        block: Number of elements along the axis that share a scale; 0 without blocks.
        low: Smallest integer of the type.
        high: Largest integer of the type.
    """
    ratio = x / _along(scale, x, axis, block)
    steps = ratio + (ratio.round() - ratio).detach()
    if zero_point is not None:
        steps = steps + _along(zero_point, x, axis, block)
    return steps.clamp(low, high)


def dequantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None = None,
    *,
    axis: int,
    block: int,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """Return (x - zero_point) * scale; arguments as in `quantize`."""
    steps = x.to(scale.dtype)
    if zero_point is not None:
        steps = steps - _along(zero_point, x, axis, block)
    y = steps * _along(scale, x, axis, block)
    return y if dtype is None else y.to(dtype)


def _along(values: torch.Tensor, x: torch.Tensor, axis: int, block: int) -> torch.Tensor:
    """Return scales or zero points in a shape that broadcasts to the data."""
    if block:
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if a == axis % x.dim() else 1 for a in range(x.dim())])


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Return the smallest and largest number of an integer type, including the sub-byte types of ml_dtypes."""
    name = dtype.name
    bits = name.removeprefix("uint").removeprefix("int")
    if not bits.isdigit():
        raise unsupported(f"the type {name}")
    return (0, 2 ** int(bits) - 1) if name.startswith("u") else (-(2 ** (int(bits) - 1)), 2 ** (int(bits) - 1) - 1)


def _with_integers(node: OnnxNode, graph: OnnxGraph, made: Any, **settings: Any) -> OperationConverterResult:
    """Convert with integer constants as floats: PyTorch has no 4-bit numbers, and the formulas need floats."""
    constants, live = {}, []
    for place, name in enumerate(node.input_values):
        value = constant(graph, name)
        if value is None or value.dtype.kind == "f" or value.dtype.name == "bfloat16":
            live.append(name)
        else:
            _range(value.dtype)
            constants[place] = torch.from_numpy(value.astype(np.float32))
    return converted(FunctionModule(made, constants, **settings), live, node)


@converts("QuantizeLinear")
def _quantize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    dtype = np.dtype(np.uint8)
    if has_input(node, 2):
        if not is_constant(node, graph, 2):
            raise unsupported("a zero point computed from the data")
        dtype = constant(graph, node.input_values[2]).dtype
    elif attribute(node, "output_dtype", 0):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(attribute(node, "output_dtype"))
    low, high = _range(dtype)
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    return _with_integers(node, graph, quantize, axis=axis, block=block, low=low, high=high)


@converts("DequantizeLinear")
def _dequantize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    kind = attribute(node, "output_dtype", 0)
    dtype = torch_dtype(kind) if kind else None
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    return _with_integers(node, graph, dequantize, axis=axis, block=block, dtype=dtype)
