"""Records of operators that move axes without mixing indices: Transpose, Squeeze, Unsqueeze, Expand, Tile ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, Axes, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, follows, ints, normal_axis, register


def _perm(node: gs.Node, rank: int) -> list[int]:
    return ints(node.attrs["perm"]) if "perm" in node.attrs else list(reversed(range(rank)))


def couple_transpose(node: gs.Node, table: LabelTable) -> None:
    """Permute the axes; a transposed constant is a view of that constant."""
    source = node.inputs[0]
    perm = _perm(node, len(table.shape(source)))
    if table.is_const(source):
        table.view(node.outputs[0], source, perm)
        return
    axes = table.get(source)
    table.put(node.outputs[0], [axes[p] for p in perm])


def _listed_axes(node: gs.Node, value: Any) -> list[int] | None:
    if "axes" in node.attrs:
        return ints(node.attrs["axes"])
    if len(node.inputs) > 1 and node.inputs[1].name:
        found = value(node.inputs[1])
        return None if found is None else ints(found)
    return None


def couple_squeeze(node: gs.Node, table: LabelTable) -> None:
    """Drop axes of size 1, which have no labels."""
    source = node.inputs[0]
    axes, shape = table.get(source), table.shape(source)
    listed = _listed_axes(node, table.value)
    if listed is None and any(
        n == 1 and not isinstance(m, int) for n, m in zip(shape, table.size(source), strict=True)
    ):
        table.lock_tensor(source, "is squeezed to a rank that depends on input sizes")
        axes = table.get(source)
    drop = [i for i, n in enumerate(shape) if n == 1] if listed is None else [normal_axis(a, len(axes)) for a in listed]
    table.put(node.outputs[0], [a for i, a in enumerate(axes) if i not in drop])


def couple_unsqueeze(node: gs.Node, table: LabelTable) -> None:
    """Insert axes of size 1."""
    axes = table.get(node.inputs[0])
    listed = _listed_axes(node, table.value)
    if listed is None:
        table.lock_tensor(node.inputs[0], "gets axes at places computed at run time")
        return
    rank = len(axes) + len(listed)
    places = {normal_axis(a, rank) for a in listed}
    rest = iter(axes)
    table.put(node.outputs[0], [None if i in places else next(rest) for i in range(rank)])


def couple_expand(node: gs.Node, table: LabelTable) -> None:
    """Pass labels of axes that keep their size; stretched axes have none. A constant offers channels as a weight."""
    source = node.inputs[0]
    axes, shape, target = table.operand(source), table.size(source), table.size(node.outputs[0])
    pad = len(target) - len(shape)
    out: Axes = [None] * pad
    out += [a if n == target[pad + i] else None for i, (a, n) in enumerate(zip(axes, shape, strict=True))]
    for place, labels in enumerate(out):
        if not follows(node.inputs[1], place, len(target)):
            table.lock(labels, "is expanded to a shape computed at run time")
    table.put(node.outputs[0], out)


def patch_expand(node: gs.Node, patcher: Patcher) -> None:
    """Write the remaining sizes into the target shape."""
    value = patcher.constant(node, 1)
    if value is None:
        return
    value = value.copy()
    rank = len(patcher.shape(node.outputs[0]))
    for axis in range(rank):
        keep = patcher.keep(node.outputs[0], axis)
        place = axis - (rank - len(value))
        if keep is not None and place >= 0 and value[place] == len(keep):
            value[place] = keep.sum()
            patcher.replace(node, 1, value)


def couple_tile(node: gs.Node, table: LabelTable) -> None:
    """Repeat labels like the data; lock an axis whose repeat count is not a constant."""
    for labels, size in zip(table.get(node.inputs[0]), table.size(node.outputs[0]), strict=True):
        if not isinstance(size, int):
            table.lock(labels, "is repeated as often as is computed at run time")
    axes, shape, target = table.get(node.inputs[0]), table.shape(node.inputs[0]), table.shape(node.outputs[0])
    table.put(
        node.outputs[0],
        [None if a is None else np.tile(a, t // n) for a, n, t in zip(axes, shape, target, strict=True)],
    )


def couple_depth_to_space(node: gs.Node, table: LabelTable) -> None:
    """Tie the b*b channels that form one output channel."""
    axes = table.get(node.inputs[0])
    labels = axes[1]
    if labels is not None:
        block = int(node.attrs["blocksize"]) ** 2
        if node.attrs.get("mode", "DCR") == "DCR":
            labels = table.tie_within(labels.reshape(block, -1), 0)
        else:
            labels = table.tie_within(labels.reshape(-1, block), 1)
    table.put(node.outputs[0], [None, labels, None, None])


def couple_space_to_depth(node: gs.Node, table: LabelTable) -> None:
    """Repeat the channels b*b times, block after block."""
    labels = table.get(node.inputs[0])[1]
    block = int(node.attrs["blocksize"]) ** 2
    table.put(node.outputs[0], [None, None if labels is None else np.tile(labels, block), None, None])


def couple_col2im(node: gs.Node, table: LabelTable) -> None:
    """Tie the indices of a channel's block: [N, C * block, L] -> [N, C, space...]."""
    axes = table.get(node.inputs[0])
    table.lock(axes[2], "is laid out in space")
    labels, space = axes[1], len(table.shape(node.outputs[0])) - 2
    if labels is not None:
        labels = table.tie_within(labels.reshape(table.shape(node.outputs[0])[1], -1), 1)
    table.put(node.outputs[0], [None, labels, *[None] * space])


def couple_trilu(node: gs.Node, table: LabelTable) -> None:
    """Lock the last two axes, over which the triangle is cut."""
    axes = list(table.get(node.inputs[0]))
    for labels in axes[-2:]:
        table.lock(labels, "cuts a triangle over it")
    table.put(node.outputs[0], axes)


def _evaluate_squeeze(node: gs.Node, values: Sequence[Array]) -> Array:
    listed = _listed_axes(node, lambda _: values[1])
    return np.squeeze(values[0], None if listed is None else tuple(listed))


def _evaluate_unsqueeze(node: gs.Node, values: Sequence[Array]) -> Array:
    listed = _listed_axes(node, lambda _: values[1])
    assert listed is not None
    return np.expand_dims(values[0], tuple(listed))


def _evaluate_expand(node: gs.Node, values: Sequence[Array]) -> Array:
    shape = np.broadcast_shapes(values[0].shape, tuple(ints(values[1])))
    return np.broadcast_to(values[0], shape)


register(
    OpSpec("Transpose", couple_transpose, evaluate=lambda n, v: np.transpose(v[0], _perm(n, np.asarray(v[0]).ndim)))
)
register(OpSpec("Squeeze", couple_squeeze, evaluate=_evaluate_squeeze))
register(OpSpec("Unsqueeze", couple_unsqueeze, evaluate=_evaluate_unsqueeze))
register(OpSpec("Expand", couple_expand, patch=patch_expand, evaluate=_evaluate_expand))
register(OpSpec("Tile", couple_tile, evaluate=lambda n, v: np.tile(v[0], ints(v[1]))))
register(OpSpec("DepthToSpace", couple_depth_to_space))
register(OpSpec("Col2Im", couple_col2im))
register(OpSpec("SpaceToDepth", couple_space_to_depth))
register(OpSpec("Trilu", couple_trilu))
