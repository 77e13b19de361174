"""Records of pooling and other spatial operators: channels pass, space is locked."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import LabelTable
from onnxprune.ops.op_spec import OpSpec, register, register_locked


def couple_pool(node: gs.Node, table: LabelTable) -> None:
    """Pass the channels of [N, C, space...] and lock space; MaxPool indices in use, which are flat, lock channels."""
    axes = table.get(node.inputs[0])
    for labels in axes[2:]:
        table.lock(labels, "pools over it")
    out = [*axes[:2], *[None] * (len(axes) - 2)]
    for t in node.outputs[1:]:
        if t.name and t.outputs:
            table.lock(axes[1], "its indices count through all channels")
        table.put(t, out)  # indices that are a model output lock the channels as such
    table.put(node.outputs[0], out)


def couple_grid_sample(node: gs.Node, table: LabelTable) -> None:
    """Pass the channels; lock space and the grid, which all channels share."""
    axes = table.get(node.inputs[0])
    for labels in axes[2:]:
        table.lock(labels, "samples over it")
    table.lock_tensor(node.inputs[1], "is a sampling grid")
    table.put(node.outputs[0], [*axes[:2], *[None] * (len(axes) - 2)])


def couple_roi(node: gs.Node, table: LabelTable) -> None:
    """Pass the channels; lock space and the regions, which all channels share."""
    axes = table.get(node.inputs[0])
    for labels in axes[2:]:
        table.lock(labels, "reads regions of it")
    for t in node.inputs[1:]:
        table.lock_tensor(t, "are regions")
    table.put(node.outputs[0], [None, axes[1], None, None])


for _op in (
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
):  # fmt: skip
    register(OpSpec(_op, couple_pool))
register(OpSpec("GridSample", couple_grid_sample))
register(OpSpec("RoiAlign", couple_roi))
register(OpSpec("MaxRoiPool", couple_roi))
register_locked("indexes all channels as one flat array", "MaxUnpool")
