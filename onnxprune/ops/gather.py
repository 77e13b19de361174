"""Records of operators that select indices: Gather and Slice with constant indices index the label array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, Axes, LabelTable
from onnxprune.ops.op_spec import Mask, OpSpec, Patcher, ints, normal_axis, register


def couple_gather(node: gs.Node, table: LabelTable) -> None:
    """Select labels by constant indices; lock an axis indexed by data. A constant table offers channels as a weight."""
    data, indices = node.inputs[:2]
    axes = table.get(data) if not table.is_const(data) else _table_axes(node, table)
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(axes))
    labels = axes[axis]
    rank = len(table.shape(indices))
    picked: Axes = [None] * rank if isinstance(indices, gs.Constant) else list(table.get(indices))
    if labels is not None:
        value = np.asarray(indices.values) if isinstance(indices, gs.Constant) else None
        if value is None:
            table.lock(labels, "is indexed by data")
        elif rank == 1:
            picked = [labels[value]]
        else:
            table.lock(labels[value.reshape(-1)], "is picked one index at a time")
    table.put(node.outputs[0], [*axes[:axis], *picked, *axes[axis + 1 :]])


def _table_axes(node: gs.Node, table: LabelTable) -> Axes:
    """Return the labels of an embedding table: None on the indexed axis, fresh channels on the others."""
    data = node.inputs[0]
    rank = len(table.shape(data))
    axis = normal_axis(int(node.attrs.get("axis", 0)), rank)
    out: Axes = []
    for place in range(rank):
        labels = None if place == axis else table.produce(data, place)
        if labels is not None:
            table.filters(data, place, labels)
        out.append(labels)
    return out


def patch_gather(node: gs.Node, patcher: Patcher) -> None:
    """Drop removed indices and renumber the others."""
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(patcher.shape(node.inputs[0])))
    keep = patcher.keep(node.inputs[0], axis)
    value = patcher.constant(node, 1)
    if keep is None or value is None:
        return
    patcher.replace(node, 1, _renumbered(keep, value))


def _renumbered(keep: Mask, value: Array) -> Array:
    index = np.where(value < 0, value + len(keep), value)
    place = np.cumsum(keep) - 1
    if value.ndim == 1:
        index = index[keep[index]]
    return np.asarray(place[index]).astype(value.dtype)


def _slice_spec(node: gs.Node, rank: int, values: Sequence[Array | None]) -> dict[int, slice] | None:
    """Return axis -> slice, None if a bound is unknown. `values`: starts, ends, axes, steps; missing ones None."""
    starts, ends, axes, steps = values
    if starts is None or ends is None:
        return None
    places = ints(axes) if axes is not None else list(range(len(starts)))
    strides = ints(steps) if steps is not None else [1] * len(starts)
    return {
        normal_axis(a, rank): slice(s, _end(e, k), k)
        for a, s, e, k in zip(places, ints(starts), ints(ends), strides, strict=True)
    }


def _end(end: int, step: int) -> int | None:
    # With a negative step numpy reads an end of -1 as the last index; ONNX uses a very small end for "past the first".
    return None if step < 0 and end < -(2**30) else end


def _operands(node: gs.Node, value: object) -> list[Array | None]:
    """Return starts, ends, axes, steps, read by `value` from the inputs or, before opset 10, from attributes."""
    if "starts" in node.attrs:
        found = [node.attrs.get(k) for k in ("starts", "ends", "axes", "steps")]
        return [None if f is None else np.asarray(f) for f in found]
    out: list[Array | None] = []
    for i in range(1, 5):
        present = i < len(node.inputs) and node.inputs[i].name
        out.append(value(i) if present else None)  # type: ignore[operator]
    return out


def _has_input(node: gs.Node, place: int) -> bool:
    return place < len(node.inputs) and bool(node.inputs[place].name)


def couple_slice(node: gs.Node, table: LabelTable) -> None:
    """Slice labels by constant bounds; with computed bounds lock every axis that is not sliced whole."""
    axes = list(table.get(node.inputs[0]))
    values = _operands(node, lambda i: table.value(node.inputs[i]))
    fixed = all(isinstance(t, gs.Constant) for t in node.inputs[1:] if t.name)
    spec = _slice_spec(node, len(axes), values)
    listed = range(len(axes)) if values[2] is None else [normal_axis(a, len(axes)) for a in ints(values[2])]
    forward = not _has_input(node, 4) or (values[3] is not None and set(ints(values[3])) == {1})
    source, target = table.size(node.inputs[0]), table.size(node.outputs[0])
    for axis, labels in enumerate(axes):
        if labels is None or (axis not in listed and (values[2] is not None or not _has_input(node, 3))):
            continue
        if spec is None or not fixed:
            if source[axis] != target[axis] or not forward:
                table.lock(labels, "is sliced at places computed at run time")
                axes[axis] = None
        elif len(spec) > 1 and (spec[axis].step or 1) != 1:
            table.lock(labels, "is sliced with a stride, together with other axes")
            axes[axis] = None
        else:
            axes[axis] = labels[spec[axis]]
    table.put(node.outputs[0], axes)


def patch_slice(node: gs.Node, patcher: Patcher) -> None:
    """Move the bounds to the kept indices; a stride over a pruned axis becomes a Gather."""
    rank = len(patcher.shape(node.inputs[0]))
    values = _operands(node, lambda i: patcher.constant(node, i))
    spec = _slice_spec(node, rank, values)
    if spec is None:
        return
    starts, ends = list(map(int, np.asarray(values[0]))), list(map(int, np.asarray(values[1])))
    changed = False
    for i, (axis, piece) in enumerate(spec.items()):
        keep = patcher.keep(node.inputs[0], axis)
        if keep is None:
            continue
        changed = True
        chosen = np.arange(len(keep))[piece]
        place = (np.cumsum(keep) - 1)[chosen[keep[chosen]]]
        if (piece.step or 1) != 1:  # indices between chosen ones may be removed: no constant stride fits
            _to_gather(node, patcher, axis, place)
            return
        starts[i], ends[i] = (int(place[0]), int(place[-1]) + 1) if len(place) else (0, 0)
    if not changed:
        return
    if "starts" in node.attrs:
        node.attrs["starts"], node.attrs["ends"] = starts, ends
    else:
        dtype = np.asarray(values[0]).dtype
        patcher.replace(node, 1, np.array(starts, dtype))
        patcher.replace(node, 2, np.array(ends, dtype))


def _to_gather(node: gs.Node, patcher: Patcher, axis: int, place: Array) -> None:
    node.op, node.attrs = "Gather", {"axis": axis}
    while len(node.inputs) > 1:  # graphsurgeon updates both ends of an edge only on single-item changes
        node.inputs.pop()
    patcher.replace(node, 1, np.asarray(place, np.int64))


def _evaluate_gather(node: gs.Node, values: Sequence[Array]) -> Array:
    return np.take(values[0], values[1], axis=int(node.attrs.get("axis", 0)))


def _evaluate_slice(node: gs.Node, values: Sequence[Array]) -> Array:
    spec = _slice_spec(node, values[0].ndim, _operands(node, lambda i: values[i]))
    assert spec is not None
    return np.asarray(values[0][tuple(spec.get(a, slice(None)) for a in range(values[0].ndim))])


register(OpSpec("Gather", couple_gather, patch=patch_gather, evaluate=_evaluate_gather))
register(OpSpec("Slice", couple_slice, patch=patch_slice, evaluate=_evaluate_slice))
