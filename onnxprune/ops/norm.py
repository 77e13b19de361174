"""Normalisations. Per-channel ones follow their channels; statistics over channels make a removal inexact."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.labels import LabelTable
from onnxprune.ops.record import OpSpec, Patcher, normal_axis, register

STATISTIC = "takes a statistic over these channels: removing one is not masking it"


def couple_batchnorm(node: gs.Node, table: LabelTable) -> None:
    """Scale, shift, mean and variance [C] are tied to the channels."""
    axes = table.get(node.inputs[0])
    channels = axes[1] if len(axes) > 1 else None
    for t in node.inputs[1:5]:
        if table.is_const(t):
            table.bind(t, 0, channels)
        else:
            table.lock(channels, "its parameters are not constants")
    table.scale(node.inputs[1], channels)
    table.put(node.outputs[0], axes)


def couple_instancenorm(node: gs.Node, table: LabelTable) -> None:
    """Statistics per channel over space; scale and shift [C]."""
    axes = table.get(node.inputs[0])
    for t in node.inputs[1:3]:
        table.bind(t, 0, axes[1])
    for labels in axes[2:]:
        table.lock(labels, STATISTIC, inexact=True)
    table.put(node.outputs[0], axes)


def couple_layernorm(node: gs.Node, table: LabelTable) -> None:
    """Statistics over the axes from `axis` on."""
    axes = table.get(node.inputs[0])
    axis = normal_axis(int(node.attrs.get("axis", -1)), len(axes))
    for labels in axes[axis:]:
        table.lock(labels, STATISTIC, inexact=True)
    for t in node.inputs[1:]:
        if t.name:
            table.bind_broadcast(t, axes)
    table.put(node.outputs[0], axes)
    for t in node.outputs[1:]:  # mean and 1 / deviation
        table.put(t, [*axes[:axis], *[None] * (len(axes) - axis)])


def couple_groupnorm(node: gs.Node, table: LabelTable) -> None:
    """Statistics over groups of channels: whole groups can go exactly. Scale and shift are [C], before opset 21 [G]."""
    axes = list(table.get(node.inputs[0]))
    groups = int(node.attrs["num_groups"])
    channels = axes[1]
    per_group = None
    if channels is not None:
        per_group = table.tie_within(channels.reshape(groups, -1), 1)
        if groups == 1:
            table.lock(channels, STATISTIC, inexact=True)
        axes[1] = channels = np.repeat(per_group, len(channels) // groups)
    for t in node.inputs[1:3]:
        table.bind(t, 0, per_group if table.shape(t)[0] == groups else channels)
    for labels in axes[2:]:
        table.lock(labels, STATISTIC, inexact=True)
    table.put(node.outputs[0], axes)


def patch_groupnorm(node: gs.Node, patcher: Patcher) -> None:
    """`num_groups` counts the groups that stay."""
    keep = patcher.keep(node.inputs[0], 1)
    if keep is not None:
        node.attrs["num_groups"] = int(keep.sum()) * int(node.attrs["num_groups"]) // len(keep)


def couple_lrn(node: gs.Node, table: LabelTable) -> None:
    """A window over neighbouring channels: neighbours change when one goes."""
    axes = table.get(node.inputs[0])
    table.lock(axes[1], STATISTIC, inexact=True)
    table.put(node.outputs[0], axes)


def couple_over_axis(node: gs.Node, table: LabelTable) -> None:
    """Softmax and its kin: a statistic over one axis, before opset 13 over all from it on."""
    axes = table.get(node.inputs[0])
    default, to_end = node.attrs.get("axis"), False
    if node.op in ("Softmax", "LogSoftmax", "Hardmax") and table.opset < 13:
        to_end = True
        default = 1 if default is None else default
    axis = normal_axis(int(-1 if default is None else default), len(axes))
    for labels in axes[axis:] if to_end else [axes[axis]]:
        table.lock(labels, STATISTIC, inexact=True)
    table.put(node.outputs[0], axes)


def couple_mvn(node: gs.Node, table: LabelTable) -> None:
    """MeanVarianceNormalization over `axes`."""
    axes = table.get(node.inputs[0])
    for axis in node.attrs.get("axes", [0, 2, 3]):
        table.lock(axes[axis], STATISTIC, inexact=True)
    table.put(node.outputs[0], axes)


register(OpSpec("BatchNormalization", couple_batchnorm))
register(OpSpec("InstanceNormalization", couple_instancenorm))
register(OpSpec("LayerNormalization", couple_layernorm))
register(OpSpec("RMSNormalization", couple_layernorm))
register(OpSpec("SimplifiedLayerNormalization", couple_layernorm))
register(OpSpec("GroupNormalization", couple_groupnorm, patch=patch_groupnorm))
register(OpSpec("LRN", couple_lrn))
register(OpSpec("MeanVarianceNormalization", couple_mvn))
for _op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"):
    register(OpSpec(_op, couple_over_axis))
