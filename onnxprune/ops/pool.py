"""Pooling and other spatial operators: channels pass, space stays whole."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ops.labels import LabelTable
from onnxprune.ops.record import OpSpec, register, register_locked


def couple_pool(node: gs.Node, table: LabelTable) -> None:
    """[N, C, space...]: the channels pass through; further outputs (MaxPool's indices) index a flat image."""
    axes = table.get(node.inputs[0])
    for labels in axes[2:]:
        table.lock(labels, "pools over it")
    out = [*axes[:2], *[None] * (len(axes) - 2)]
    for t in node.outputs[1:]:
        if t.name and t.outputs:
            table.lock(axes[1], "its indices count through all channels")
        table.put(t, out)  # as an output of the model they lock these by themselves
    table.put(node.outputs[0], out)


def couple_grid_sample(node: gs.Node, table: LabelTable) -> None:
    """The grid picks places, the same in every channel."""
    axes = table.get(node.inputs[0])
    for labels in axes[2:]:
        table.lock(labels, "samples over it")
    table.lock_tensor(node.inputs[1], "is a grid of places")
    table.put(node.outputs[0], [*axes[:2], *[None] * (len(axes) - 2)])


def couple_roi(node: gs.Node, table: LabelTable) -> None:
    """Regions are cut out of every channel alike; which ones stays whole."""
    axes = table.get(node.inputs[0])
    for labels in axes[2:]:
        table.lock(labels, "cuts regions out of it")
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
register_locked("counts places through all channels", "MaxUnpool")
