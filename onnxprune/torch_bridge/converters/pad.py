"""Converter of Pad: with a constant, the edge, a reflection, or the other end of the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.torch_bridge.converters import _windows
from onnxprune.torch_bridge.converters._operands import (
    apply_numbers,
    apply_to,
    as_ints,
    attribute,
    has_input,
    is_constant,
    numbers,
    rank,
    unsupported,
)
from onnxprune.torch_bridge.registry import converts

_MODES = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def fixed_pad(
    x: torch.Tensor, *, begin: Sequence[int], end: Sequence[int], mode: str, value: float = 0.0
) -> torch.Tensor:
    """Pad every axis; negative numbers crop first.

    Args:
        x: Data.
        begin: Elements before the data, one number per axis.
        end: Elements after the data, one number per axis.
        mode: "constant", "reflect", "edge" or "wrap".
        value: Value of constant padding.
    """
    if mode == "constant":
        return _windows.pad(x, begin, end, value)
    x = _windows.pad(x, [min(n, 0) for n in begin], [min(n, 0) for n in end])
    begin, end = [max(n, 0) for n in begin], [max(n, 0) for n in end]
    axes = [i for i, pair in enumerate(zip(begin, end, strict=True)) if any(pair)]
    if not axes:
        return x
    # F.pad accepts the last one to three of three to five axes, and padding up to the size of the data.
    first = 2 if x.dim() in (3, 4, 5) and axes[0] >= 2 else None
    limit = 1 if mode == "reflect" else 0
    once = mode == "edge" or all(max(begin[i], end[i]) <= x.shape[i] - limit for i in axes)
    if first is not None and once and x.is_floating_point():
        return F.pad(x, _windows.flat(begin[first:], end[first:]), _MODES[mode])
    for axis in axes:
        x = x.index_select(axis, _places(x.shape[axis], begin[axis], end[axis], mode, x.device))
    return x


def computed_pad(
    x: torch.Tensor,
    pads: torch.Tensor,
    value: torch.Tensor | None = None,
    axes: torch.Tensor | None = None,
    *,
    mode: str,
) -> torch.Tensor:
    """Apply `fixed_pad` with computed amounts: [before every axis, after every axis], of some axes or all."""
    amounts = as_ints(pads)
    which = list(range(x.dim())) if axes is None else as_ints(axes)
    begin, end = _per_axis(amounts, which, x.dim())
    fill = 0.0 if value is None else value.item()
    return fixed_pad(x, begin=begin, end=end, mode=mode, value=fill)


def _places(size: int, before: int, after: int, mode: str, device: torch.device) -> torch.Tensor:
    """Return the index of the data element at each position of the padded axis."""
    place = torch.arange(-before, size + after, device=device)
    if mode == "edge":
        return place.clamp(0, size - 1)
    if mode == "wrap":
        return place.remainder(size)
    period = max(2 * (size - 1), 1)
    place = place.remainder(period)
    return torch.minimum(place, period - place) if size > 1 else place


def _per_axis(amounts: Sequence[int], axes: Sequence[int], rank: int) -> tuple[list[int], list[int]]:
    begin, end = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        begin[axis], end[axis] = int(amounts[i]), int(amounts[len(axes) + i])
    return begin, end


@converts("Pad", since=2)
def _pad(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    mode = attribute(node, "mode", "constant")
    if mode != "constant" and mode not in _MODES:
        raise unsupported(f"mode {mode!r}")
    amounts = numbers(node, graph, 1, "pads")
    if amounts is None or any(has_input(node, i) and not is_constant(node, graph, i) for i in (2, 3)):
        return apply_numbers(node, graph, node.input_values, computed_pad, mode=mode)
    axes = numbers(node, graph, 3)
    value = numbers(node, graph, 2, "value") or [0.0]
    axes_of_data = rank(node, graph) if axes is not None else len(amounts) // 2
    begin, end = _per_axis(amounts, range(axes_of_data) if axes is None else axes, axes_of_data)
    return apply_to(
        node, graph, node.input_values[:1], fixed_pad, begin=tuple(begin), end=tuple(end), mode=mode, value=value[0]
    )
