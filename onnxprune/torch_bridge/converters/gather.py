"""Converters of operators that select or replace elements by index. Negative indices count from the end."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.torch_bridge.converters._operands import (
    apply,
    apply_numbers,
    apply_to,
    as_ints,
    attribute,
    has_input,
    is_constant,
    numbers,
    product,
    unsupported,
)
from onnxprune.torch_bridge.registry import constant, converts, same_as_before

same_as_before(11, "NonMaxSuppression")

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def gather(x: torch.Tensor, indices: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Select slices along an axis; the axes of `indices` replace it."""
    return x[(*_all_before(x, axis), indices.to(torch.int64))]


def select(x: torch.Tensor, *, index: int, axis: int) -> torch.Tensor:
    """Return one slice along an axis, without that axis; a view."""
    return x.select(axis, index)


def gather_elements(x: torch.Tensor, indices: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Return for every position of `indices` the element with that index along an axis."""
    return torch.gather(x, axis, _counted_from_start(indices, x.shape[axis]))


def gather_nd(x: torch.Tensor, indices: torch.Tensor, *, batch: int) -> torch.Tensor:
    """Select elements or slices by index tuples, the last axis of `indices`, within the leading batch axes."""
    return x[(*_batch_places(indices, batch), *indices.to(torch.int64).unbind(-1))]


def scatter_elements(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, axis: int, reduction: str
) -> torch.Tensor:
    """Return the data with elements replaced by (or combined with) updates at indices along an axis."""
    index = _counted_from_start(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, index, updates)
    return x.scatter_reduce(axis, index, updates, _REDUCTIONS[reduction])


def scatter_nd(x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, *, reduction: str) -> torch.Tensor:
    """Return the data with elements or slices replaced by (or combined with) updates at index tuples."""
    places = indices.to(torch.int64).unbind(-1)
    if reduction in ("none", "add"):
        return x.index_put(places, updates, accumulate=reduction == "add")
    sizes, rest = x.shape[: len(places)], x.shape[len(places) :]
    row = torch.zeros_like(places[0])
    for place, size in zip(places, sizes, strict=True):
        row = row * size + torch.where(place < 0, place + size, place)
    flat = x.reshape(product(sizes), product(rest))
    changes = updates.reshape(-1, product(rest))
    index = row.reshape(-1, 1).expand_as(changes)
    return flat.scatter_reduce(0, index, changes, _REDUCTIONS[reduction]).reshape(x.shape)


def slice_axes(x: torch.Tensor, *, bounds: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
    """Return part of the data.

    Args:
        x: Data.
        bounds: (axis, start, end, step). A step may be negative. As in numpy, but a start before the first element
            of a backward slice is the first element.
    """
    index, reversed_axes = [slice(None)] * x.dim(), []
    for axis, start, end, step in bounds:
        size = x.shape[axis]
        if step < 0 and size:
            start = max(start, -size)
        taken = range(*slice(start, end, step).indices(size))
        if step < 0:  # torch steps forward only
            taken = taken[::-1]
            reversed_axes.append(axis)
        index[axis] = slice(taken.start, taken.stop, taken.step) if taken else slice(0, 0)
    y = x[tuple(index)]
    return y.flip(reversed_axes) if reversed_axes else y


def computed_slice(
    x: torch.Tensor,
    starts: torch.Tensor,
    ends: torch.Tensor,
    axes: torch.Tensor | None = None,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply `slice_axes` with bounds that are computed at run time."""
    first, last = as_ints(starts), as_ints(ends)
    which = list(range(len(first))) if axes is None else as_ints(axes)
    step = [1] * len(first) if steps is None else as_ints(steps)
    return slice_axes(x, bounds=list(zip(which, first, last, step, strict=True)))


def one_hot(indices: torch.Tensor, values: torch.Tensor, *, depth: int, axis: int) -> torch.Tensor:
    """Return `values[1]` at each index along a new axis, `values[0]` elsewhere and for indices out of range."""
    index = indices.to(torch.int64)
    index = torch.where(index < 0, index + depth, index)
    inside = (index >= 0) & (index < depth)
    hot = F.one_hot(index.clamp(0, depth - 1), depth).to(torch.bool) & inside.unsqueeze(-1)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


def compress(x: torch.Tensor, condition: torch.Tensor, *, axis: int | None) -> torch.Tensor:
    """Return the slices (elements if `axis` is None) where a condition holds; those beyond its length are dropped."""
    data = x.reshape(-1) if axis is None else x
    return data.index_select(axis or 0, condition.nonzero().reshape(-1))


def nonzero(x: torch.Tensor) -> torch.Tensor:
    """Return the indices of the nonzero elements, [axes of the data, found]."""
    return torch.nonzero(x).T


def _all_before(x: torch.Tensor, axis: int) -> tuple[slice, ...]:
    return (slice(None),) * int(axis % x.dim())


def _counted_from_start(indices: torch.Tensor, size: int) -> torch.Tensor:
    index = indices.to(torch.int64)
    return torch.where(index < 0, index + size, index)


def _batch_places(indices: torch.Tensor, batch: int) -> list[torch.Tensor]:
    rank = indices.dim() - 1
    return [
        torch.arange(indices.shape[i], device=indices.device).reshape([-1 if j == i else 1 for j in range(rank)])
        for i in range(batch)
    ]


@converts("Gather")
def _gather(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis = attribute(node, "axis", 0)
    if is_constant(node, graph, 1):
        index = constant(graph, node.input_values[1])
        if index.ndim == 0:
            return apply_to(node, graph, node.input_values[:1], select, index=int(index), axis=axis)
    return apply(node, graph, gather, axis=axis)


@converts("GatherElements")
def _gather_elements(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, gather_elements, axis=attribute(node, "axis", 0))


@converts("GatherND")
def _gather_nd(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, gather_nd, batch=attribute(node, "batch_dims", 0))


@converts("ScatterElements", "Scatter")
def _scatter_elements(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis, reduction = attribute(node, "axis", 0), attribute(node, "reduction", "none")
    return apply(node, graph, scatter_elements, axis=axis, reduction=reduction)


@converts("ScatterND")
def _scatter_nd(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, scatter_nd, reduction=attribute(node, "reduction", "none"))


@converts("Slice")
def _slice(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    starts, ends = numbers(node, graph, 1, "starts"), numbers(node, graph, 2, "ends")
    computed = (
        starts is None or ends is None or any(has_input(node, i) and not is_constant(node, graph, i) for i in (3, 4))
    )
    if computed:
        return apply_numbers(node, graph, node.input_values, computed_slice)
    axes = numbers(node, graph, 3, "axes") or range(len(starts or ()))
    steps = numbers(node, graph, 4) or [1] * len(starts or ())
    bounds = tuple(zip(axes, starts or (), ends or (), steps, strict=True))
    return apply_to(node, graph, node.input_values[:1], slice_axes, bounds=bounds)


@converts("OneHot")
def _one_hot(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    depth = numbers(node, graph, 1)
    if depth is None:
        raise unsupported("a depth computed from the data")
    inputs = (node.input_values[0], node.input_values[2])
    return apply_to(node, graph, inputs, one_hot, depth=int(depth[0]), axis=attribute(node, "axis", -1))


@converts("Compress")
def _compress(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, compress, axis=attribute(node, "axis"))


@converts("NonZero")
def _nonzero(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, nonzero)


@converts("Det")
def _det(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, torch.linalg.det)
