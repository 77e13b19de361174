"""Records of operators that address elements by index: GatherElements, GatherND, ScatterElements, ScatterND ...

Axes that the indices do not address pass. An addressed axis is locked, with one exception: ScatterND with constant
indices that form a grid, as exporters write `x[:, a:b] = y`. There every axis is indexed separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, Axes, Labels, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, normal_axis, register

NUMBERED = "addresses its indices by number"


def couple_elements(node: gs.Node, table: LabelTable) -> None:
    """Lock the addressed axis; on the others tie indices and data."""
    data, indices = node.inputs[:2]
    axes, shape, counts = list(table.get(data)), table.shape(data), table.shape(indices)
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(axes))
    out: Axes = []
    updates = node.inputs[2] if len(node.inputs) > 2 else None
    for place, labels in enumerate(axes):
        if place == axis:
            table.lock(labels, NUMBERED)
            for t in (indices, updates):
                if t is not None:
                    table.lock(table.get(t)[place], NUMBERED)
            labels = None
        elif counts[place] != shape[place]:
            table.lock(labels, "is addressed in part")
            for t in (indices, updates):
                if t is not None:
                    table.lock(table.get(t)[place], "is addressed in part")
            labels = None
        else:
            for t in (indices, updates):
                if t is not None and not (t is indices and updates is not None and as_large_as(t, updates)):
                    table.bind(t, place, labels)
        out.append(labels)
    table.put(node.outputs[0], out)


def as_large_as(indices: gs.Tensor, updates: gs.Tensor) -> bool:
    """Return whether indices are expanded to the shape of the updates, at any size."""
    made = indices.inputs[0] if indices.inputs else None
    if made is None or made.op != "Expand" or not made.inputs[1].inputs:
        return False
    shape = made.inputs[1].inputs[0]
    return bool(shape.op == "Shape" and not shape.attrs and shape.inputs[0] is updates)


def couple_gather_nd(node: gs.Node, table: LabelTable) -> None:
    """Pass the axes after the addressed ones; lock those."""
    data, indices = node.inputs[:2]
    axes, places = table.get(data), table.get(indices)
    first = int(node.attrs.get("batch_dims", 0))
    addressed = first + table.shape(indices)[-1]
    for labels in axes[:addressed]:
        table.lock(labels, NUMBERED)
    for labels in places:
        table.lock(labels, NUMBERED)
    table.put(node.outputs[0], [*[None] * (len(places) - 1), *axes[addressed:]])


@dataclass(frozen=True)
class Grid:
    """Indices that address a box: a list of indices on every addressed axis, independent of the other axes.

    Attributes:
        lists: Indices on each addressed axis.
        dims: Dimension of the index array that runs through each list; -1 for a list of one entry.
    """

    lists: tuple[Array, ...]
    dims: tuple[int, ...]


def grid_of(numbers: Array, sizes: Sequence[int]) -> Grid | None:
    """Return the grid that an index array [..., axes] forms, or None."""
    lists, dims = [], []
    rank = numbers.ndim - 1
    for axis in range(numbers.shape[-1]):
        here = numbers[..., axis]
        here = np.where(here < 0, here + sizes[axis], here)
        varying = [d for d in range(rank) if here.shape[d] > 1 and not (here == here.take([0], d)).all()]
        if len(varying) > 1 or not here.size:
            return None
        dim = varying[0] if varying else -1
        line = here[tuple(slice(None) if d == dim else 0 for d in range(rank))].reshape(-1)
        if dim in dims and dim >= 0:
            return None  # a diagonal
        lists.append(line)
        dims.append(dim)
    return Grid(tuple(lists), tuple(dims))


def _grid(node: gs.Node, sizes: Sequence[int], numbers: Array | None) -> Grid | None:
    if numbers is None:
        return None
    found = grid_of(numbers, sizes)
    if found is None:
        return None
    # A dimension of the indices that runs through no list writes the same element several times.
    free = set(range(numbers.ndim - 1)) - set(found.dims)
    return found if all(numbers.shape[d] == 1 for d in free) else None


def couple_scatter_nd(node: gs.Node, table: LabelTable) -> None:
    """Pass the axes after the addressed ones; addressed ones pass where the indices are a constant grid."""
    data, indices, updates = node.inputs[:3]
    axes = list(table.get(data))
    count = table.shape(indices)[-1]
    lead = len(table.shape(indices)) - 1
    numbers = np.asarray(indices.values) if isinstance(indices, gs.Constant) else None
    grid = _grid(node, table.shape(data), numbers)
    bound: dict[int, Labels | None] = dict.fromkeys(range(lead))
    for axis in range(count):
        labels = axes[axis]
        if labels is None:
            continue
        if grid is None or grid.dims[axis] < 0:
            table.lock(labels if grid is None else labels[grid.lists[axis]], NUMBERED)
            if grid is None:
                axes[axis] = None
            continue
        bound[grid.dims[axis]] = labels[grid.lists[axis]]
    own = table.get(updates)
    for dim, labels in bound.items():
        if labels is not None or own[dim] is not None:
            table.bind(updates, dim, labels)
    for axis in range(count, len(axes)):
        place = lead + axis - count
        if axes[axis] is not None or own[place] is not None:
            table.bind(updates, place, axes[axis])
    table.put(node.outputs[0], axes)


def patch_scatter_nd(node: gs.Node, patcher: Patcher) -> None:
    """Drop removed indices and renumber the others."""
    numbers = patcher.constant(node, 1)
    sizes = patcher.shape(node.inputs[0])
    grid = _grid(node, sizes, numbers)
    if grid is None or numbers is None:
        return
    numbers, changed = np.where(numbers < 0, numbers + np.array(sizes[: numbers.shape[-1]]), numbers), False
    for axis, (line, dim) in enumerate(zip(grid.lists, grid.dims, strict=True)):
        keep = patcher.keep(node.inputs[0], axis)
        if keep is None:
            continue
        changed = True
        place = np.cumsum(keep) - 1
        if dim >= 0:
            numbers = numbers.take(np.flatnonzero(keep[line]), dim)
        numbers[..., axis] = place[numbers[..., axis]]
    if changed:
        patcher.replace(node, 1, numbers)


def _evaluate_scatter_nd(node: gs.Node, values: Sequence[Array]) -> Array:
    data, indices, updates = values
    out, places = data.copy(), tuple(np.moveaxis(indices, -1, 0))
    reduction = node.attrs.get("reduction", "none")
    if reduction == "none":
        out[places] = updates
    else:
        {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction].at(out, places, updates)
    return out


def couple_tensor_scatter(node: gs.Node, table: LabelTable) -> None:
    """Tie the cache to the update on every axis but the written one, which is locked."""
    cache, update = node.inputs[:2]
    axes = list(table.get(cache))
    axis = normal_axis(int(node.attrs.get("axis", -2)), len(axes))
    for place, labels in enumerate(axes):
        if place == axis:
            table.lock(labels, NUMBERED)
            table.lock(table.get(update)[place], NUMBERED)
            axes[place] = None
        else:
            table.bind(update, place, labels)
    table.put(node.outputs[0], axes)


for _op in ("GatherElements", "ScatterElements", "Scatter"):
    register(OpSpec(_op, couple_elements))
register(OpSpec("GatherND", couple_gather_nd))
register(OpSpec("ScatterND", couple_scatter_nd, patch=patch_scatter_nd, evaluate=_evaluate_scatter_nd))
register(OpSpec("TensorScatter", couple_tensor_scatter))
