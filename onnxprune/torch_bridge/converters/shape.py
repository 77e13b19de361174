"""Converters of operators that move elements or read sizes. Targets known at conversion are Python numbers.

Sizes read at run time, and values computed from them, are tensors on the CPU (see `operands`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.torch_bridge.converters._operands import (
    FunctionModule,
    apply,
    apply_numbers,
    apply_to,
    as_ints,
    attribute,
    axes_of,
    has_input,
    is_constant,
    numbers,
    product,
    torch_dtype,
    unsupported,
)
from onnxprune.torch_bridge.registry import constant, converted, converts


def reshape(
    x: torch.Tensor, computed: torch.Tensor | None = None, *, shape: Sequence[int] = (), copy_zeros: bool
) -> torch.Tensor:
    """Reshape the data.

    Args:
        x: Data.
        computed: Shape, if it is computed at run time.
        shape: Shape otherwise; one -1 is inferred.
        copy_zeros: 0 means the size of that axis of the data.
    """
    target = shape if computed is None else as_ints(computed)
    if copy_zeros:
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return x.reshape(tuple(target))


def flatten(x: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Flatten to two axes: those before `axis`, and the others."""
    return x.reshape(product(x.shape[:axis]), product(x.shape[axis:]))


def squeeze(x: torch.Tensor, *, axes: tuple[int, ...] | None) -> torch.Tensor:
    """Drop axes (all of size 1 if None)."""
    return x.squeeze() if axes is None else x.squeeze(axes)


def unsqueeze(x: torch.Tensor, *, axes: Sequence[int]) -> torch.Tensor:
    """Insert axes of size 1, numbered as in the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(x: torch.Tensor, *, axes: Sequence[int] | None) -> torch.Tensor:
    """Permute the axes, reversed if None; a view."""
    return x.permute(tuple(reversed(range(x.dim()))) if axes is None else tuple(axes))


def concat(*tensors: torch.Tensor, axis: int) -> torch.Tensor:
    """Join tensors along an axis."""
    return torch.cat(tensors, axis)


def split(
    x: torch.Tensor, *, sizes: Sequence[int] | None, parts: int, axis: int
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Split along an axis into given sizes, or into `parts` equal sizes (the last may be smaller)."""
    made = torch.split(x, list(sizes) if sizes is not None else -(-x.shape[axis] // parts), axis)
    return made[0] if parts == 1 else tuple(made)


def expand(x: torch.Tensor, computed: torch.Tensor | None = None, *, shape: Sequence[int] = ()) -> torch.Tensor:
    """Broadcast data and shape against each other."""
    target = shape if computed is None else as_ints(computed)
    return x.expand(torch.broadcast_shapes(x.shape, tuple(target)))


def tile(x: torch.Tensor, computed: torch.Tensor | None = None, *, repeats: Sequence[int] = ()) -> torch.Tensor:
    """Repeat the data along every axis."""
    return x.repeat(tuple(repeats if computed is None else as_ints(computed)))


def shape_of(x: torch.Tensor, *, start: int, end: int | None) -> torch.Tensor:
    """Return the sizes of some axes, as a tensor on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def size_of(x: torch.Tensor) -> torch.Tensor:
    """Return the number of elements, as a tensor on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


def filled(shape: torch.Tensor, *, value: float, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of one value, on the CPU; a consumer moves it to its device."""
    return torch.full(tuple(as_ints(shape)), value, dtype=dtype)


def constant_tensor(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor known at conversion."""
    return x


def arange(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Return numbers from start to limit (excluded), on the CPU."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def eye_like(x: torch.Tensor, *, diagonal: int, dtype: torch.dtype | None) -> torch.Tensor:
    """Return ones on a diagonal of a matrix of the data's shape."""
    return torch.ones_like(x, dtype=dtype).triu(diagonal).tril(diagonal)


def depth_to_space(x: torch.Tensor, *, block: int, depth_first: bool) -> torch.Tensor:
    """Move blocks of channels into blocks of pixels; `depth_first`: ONNX's mode DCR, else CRD, as in pixel shuffle."""
    if not depth_first:
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    y = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(x: torch.Tensor, *, block: int, depth_first: bool) -> torch.Tensor:
    """Move blocks of pixels into channels: the inverse of `depth_to_space`."""
    if not depth_first:
        return F.pixel_unshuffle(x, block)
    n, c, h, w = x.shape
    y = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


def triangle(x: torch.Tensor, *, upper: bool, diagonal: int) -> torch.Tensor:
    """Set one side of a diagonal of the last two axes to zero."""
    return x.triu(diagonal) if upper else x.tril(diagonal)


def reverse_sequence(x: torch.Tensor, lengths: torch.Tensor, *, time: int, batch: int) -> torch.Tensor:
    """Reverse the first `lengths[b]` elements of the time axis of sample b."""
    y = x.movedim((batch, time), (0, 1))
    places = torch.arange(y.shape[1], device=x.device)
    last = lengths.to(torch.int64).unsqueeze(1)
    index = torch.where(places < last, last - 1 - places, places)
    rows = torch.arange(y.shape[0], device=x.device).unsqueeze(1)
    return y[rows, index].movedim((0, 1), (batch, time))


@converts("Reshape", since=5)
def _reshape(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    copy_zeros = not attribute(node, "allowzero", 0)
    target = numbers(node, graph, 1)
    if target is None:
        return apply_numbers(node, graph, node.input_values, reshape, copy_zeros=copy_zeros)
    copy_zeros = copy_zeros and 0 in target
    return apply_to(node, graph, node.input_values[:1], reshape, shape=tuple(target), copy_zeros=copy_zeros)


@converts("Flatten")
def _flatten(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, flatten, axis=attribute(node, "axis", 1))


@converts("Squeeze")
def _squeeze(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply_to(node, graph, node.input_values[:1], squeeze, axes=axes_of(node, graph) or None)


@converts("Unsqueeze")
def _unsqueeze(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply_to(node, graph, node.input_values[:1], unsqueeze, axes=axes_of(node, graph) or ())


@converts("Transpose")
def _transpose(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, transpose, axes=attribute(node, "perm"))


@converts("Concat", since=4)
def _concat(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, concat, axis=attribute(node, "axis"))


@converts("Split")
def _split(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    sizes = numbers(node, graph, 1, "split")
    if sizes is None and has_input(node, 1):
        raise unsupported("sizes computed from the data")
    parts = len(node.output_values)
    return apply_to(
        node, graph, node.input_values[:1], split, sizes=sizes, parts=parts, axis=attribute(node, "axis", 0)
    )


@converts("Expand")
def _expand(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    target = numbers(node, graph, 1)
    if target is None:
        return apply_numbers(node, graph, node.input_values, expand)
    return apply_to(node, graph, node.input_values[:1], expand, shape=tuple(target))


@converts("Tile", since=6)
def _tile(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    repeats = numbers(node, graph, 1)
    if repeats is None:
        return apply_numbers(node, graph, node.input_values, tile)
    return apply_to(node, graph, node.input_values[:1], tile, repeats=tuple(repeats))


@converts("Shape")
def _shape(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, shape_of, start=attribute(node, "start", 0), end=attribute(node, "end"))


@converts("Size")
def _size(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, size_of)


@converts("ConstantOfShape")
def _constant_of_shape(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    value = attribute(node, "value")
    tensor = torch.zeros(1) if value is None else value.to_torch().reshape(-1)
    if is_constant(node, graph, 0):
        full = tensor.expand(tuple(numbers(node, graph, 0) or ())).clone()
        return converted(FunctionModule(constant_tensor, {0: full}), (), node)
    return apply_numbers(node, graph, node.input_values, filled, value=tensor.item(), dtype=tensor.dtype)


@converts("Range")
def _range(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply_numbers(node, graph, node.input_values, arange)


@converts("EyeLike")
def _eye_like(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    kind = attribute(node, "dtype")
    dtype = None if kind is None else torch_dtype(kind)
    return apply(node, graph, eye_like, diagonal=attribute(node, "k", 0), dtype=dtype)


@converts("DepthToSpace")
def _depth_to_space(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    depth_first = attribute(node, "mode", "DCR") == "DCR"
    return apply(node, graph, depth_to_space, block=attribute(node, "blocksize"), depth_first=depth_first)


@converts("SpaceToDepth")
def _space_to_depth(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    depth_first = attribute(node, "mode", "DCR") == "DCR"
    return apply(node, graph, space_to_depth, block=attribute(node, "blocksize"), depth_first=depth_first)


@converts("Trilu")
def _trilu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    if has_input(node, 1) and not is_constant(node, graph, 1):
        raise unsupported("a diagonal computed from the data")
    diagonal = int(constant(graph, node.input_values[1]).item()) if has_input(node, 1) else 0
    return apply_to(
        node, graph, node.input_values[:1], triangle, upper=bool(attribute(node, "upper", 1)), diagonal=diagonal
    )


@converts("ReverseSequence")
def _reverse_sequence(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    time, batch = attribute(node, "time_axis", 0), attribute(node, "batch_axis", 1)
    return apply(node, graph, reverse_sequence, time=time, batch=batch)
