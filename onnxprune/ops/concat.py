"""Records of Concat and Split: label arrays are joined and split like the data."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, Axes, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, normal_axis, register


def couple_concat(node: gs.Node, table: LabelTable) -> None:
    """Join labels along `axis`; tie the other axes across the inputs."""
    join(node, table, node.inputs)


def join(node: gs.Node, table: LabelTable, inputs: Sequence[gs.Tensor]) -> None:
    """Couple some of a node's inputs like those of a Concat."""
    rank = len(table.shape(inputs[0]))
    axis = normal_axis(int(node.attrs["axis"]), rank)
    out: Axes = []
    for place in range(rank):
        if place == axis:
            sizes = [table.shape(t)[axis] for t in inputs]
            parts = [table.produce(t, axis) if table.is_const(t) else table.get(t)[axis] for t in inputs]
            out.append(table.concat(parts, sizes))
            continue
        data = [t for t in inputs if not table.is_const(t)]
        if not data:
            out.append(None)
            continue
        labels = table.get(data[0])[place]
        for t in data[1:]:
            other = table.get(t)[place]
            table.tie(labels, other)
            labels = other if labels is None else labels
        for t in inputs:
            if table.is_const(t):
                table.bind(t, place, labels)
        out.append(labels)
    table.put(node.outputs[0], out)


def couple_split(node: gs.Node, table: LabelTable) -> None:
    """Split labels along `axis` into the outputs' sizes."""
    axes = table.get(node.inputs[0])
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(axes))
    labels = axes[axis]
    if labels is not None and len(node.inputs) > 1 and not isinstance(node.inputs[1], gs.Constant):
        table.lock(labels, "is split at places computed at run time")
    start = 0
    for t in node.outputs:
        n = table.shape(t)[axis]
        table.put(t, [*axes[:axis], None if labels is None else labels[start : start + n], *axes[axis + 1 :]])
        start += n


def patch_split(node: gs.Node, patcher: Patcher) -> None:
    """Write the remaining sizes; an implicit equal split becomes explicit."""
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(patcher.shape(node.inputs[0])))
    keep = patcher.keep(node.inputs[0], axis)
    if keep is None:
        return
    bounds = np.cumsum([0, *[patcher.shape(t)[axis] for t in node.outputs]])
    sizes = [int(keep[a:b].sum()) for a, b in pairwise(bounds)]
    if patcher.opset < 13:
        node.attrs["split"] = sizes
    else:
        node.attrs.pop("num_outputs", None)
        patcher.replace(node, 1, np.array(sizes, np.int64))


def _evaluate_concat(node: gs.Node, values: Sequence[Array]) -> Array:
    return np.concatenate(values, int(node.attrs["axis"]))


register(OpSpec("Concat", couple_concat, evaluate=_evaluate_concat))
register(OpSpec("Split", couple_split, patch=patch_split))
