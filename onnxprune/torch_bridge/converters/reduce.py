"""Converters of reductions over axes, arg-extremes, sorting, and cumulative sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.torch_bridge.converters._operands import (
    apply,
    apply_numbers,
    apply_to,
    as_ints,
    attribute,
    axes_of,
    numbers,
    unsupported,
)
from onnxprune.torch_bridge.registry import converts

Reduction = Callable[[torch.Tensor, Sequence[int], bool], torch.Tensor]


def _sum(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keep, dtype=x.dtype)


def _product(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    # torch.prod accepts one axis; descending order keeps the indices of the remaining axes valid.
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keep, dtype=x.dtype)
    return x


def _l1(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    return _sum(x.abs(), axes, keep)


def _l2(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    # Unlike the root of a sum of squares, vector_norm has a gradient (zero) at zero.
    return torch.linalg.vector_norm(x, 2, axes, keep)


def _sum_square(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    return _sum(x * x, axes, keep)


def _log_sum(x: torch.Tensor, axes: Sequence[int], keep: bool) -> torch.Tensor:
    return torch.log(_sum(x, axes, keep))


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _sum, "ReduceMean": torch.mean, "ReduceProd": _product, "ReduceMax": torch.amax,
    "ReduceMin": torch.amin, "ReduceL1": _l1, "ReduceL2": _l2, "ReduceSumSquare": _sum_square,
    "ReduceLogSum": _log_sum, "ReduceLogSumExp": torch.logsumexp,
}  # fmt: skip


def reduce(x: torch.Tensor, *, by: Reduction, axes: Sequence[int], keep: bool, none: bool) -> torch.Tensor:
    """Reduce over axes.

    Args:
        x: Data.
        by: Reduction.
        axes: Axes to reduce; if empty, all of them unless `none`.
        keep: Keep reduced axes with size 1.
        none: Without axes, reduce every element separately.
    """
    if axes:
        return by(x, axes, keep)
    if none or x.dim() == 0:
        return by(x.unsqueeze(-1), (-1,), False)
    return by(x, tuple(range(x.dim())), keep)


def arg_extreme(x: torch.Tensor, *, smallest: bool, axis: int, keep: bool, last: bool) -> torch.Tensor:
    """Return the index of the first (or last) largest or smallest element along an axis."""
    find = torch.argmin if smallest else torch.argmax
    if not last:
        return find(x, axis, keep)
    return x.shape[axis] - 1 - find(x.flip(axis), axis, keep)


def top_k(
    x: torch.Tensor, k: torch.Tensor | int, *, axis: int, largest: bool, in_order: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest or smallest elements along an axis, and their indices."""
    count = as_ints(k)[0] if isinstance(k, torch.Tensor) else k
    values, indices = torch.topk(x, count, axis, largest, in_order)
    return values, indices


def cumulative_sum(x: torch.Tensor, *, axis: int, exclusive: bool, reverse: bool) -> torch.Tensor:
    """Return the cumulative sum along an axis, from the end if `reverse`, without the element itself if `exclusive`."""
    if reverse:
        x = x.flip(axis)
    y = torch.cumsum(x, axis, dtype=x.dtype)
    if exclusive:
        first = torch.zeros_like(y.narrow(axis, 0, 1))
        y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


@converts(*_REDUCTIONS)
def _reduce(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axes = axes_of(node, graph) or ()
    keep, none = bool(attribute(node, "keepdims", 1)), bool(attribute(node, "noop_with_empty_axes", 0))
    return apply_to(
        node, graph, node.input_values[:1], reduce, by=_REDUCTIONS[node.operation_type], axes=axes, keep=keep, none=none
    )


@converts("ArgMax", "ArgMin")
def _arg(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis, keep = attribute(node, "axis", 0), bool(attribute(node, "keepdims", 1))
    last = bool(attribute(node, "select_last_index", 0))
    return apply(node, graph, arg_extreme, smallest=node.operation_type == "ArgMin", axis=axis, keep=keep, last=last)


@converts("TopK")
def _top_k(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    settings = {
        "axis": attribute(node, "axis", -1),
        "largest": bool(attribute(node, "largest", 1)),
        "in_order": bool(attribute(node, "sorted", 1)),
    }
    k = numbers(node, graph, 1, "k")
    if k is None:
        return apply_numbers(node, graph, node.input_values, top_k, **settings)
    return apply_to(node, graph, node.input_values[:1], top_k, k=int(k[0]), **settings)


@converts("CumSum")
def _cum_sum(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis = numbers(node, graph, 1)
    if axis is None:
        raise unsupported("an axis computed from the data")
    exclusive, reverse = bool(attribute(node, "exclusive", 0)), bool(attribute(node, "reverse", 0))
    return apply_to(
        node, graph, node.input_values[:1], cumulative_sum, axis=int(axis[0]), exclusive=exclusive, reverse=reverse
    )
