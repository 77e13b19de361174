"""Records of normalizations: per-channel ones follow their channels; a statistic over channels is inexact to prune."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, normal_axis, register


def couple_batchnorm(node: gs.Node, table: LabelTable) -> None:
    """Tie scale, shift, mean and variance [C] to the channels."""
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
    """Tie scale and shift [C] to the channels; the statistics over space are inexact locks."""
    axes = table.get(node.inputs[0])
    for t in node.inputs[1:3]:
        table.bind(t, 0, axes[1])
    for axis in range(2, len(axes)):
        table.statistic(axis)
    table.put(node.outputs[0], axes)


def couple_layernorm(node: gs.Node, table: LabelTable) -> None:
    """Tie scale and shift; the statistics over the axes from `axis` on are inexact locks."""
    axes = table.get(node.inputs[0])
    axis = normal_axis(int(node.attrs.get("axis", -1)), len(axes))
    params = [(i, table.shape(t)) for i, t in enumerate(node.inputs) if i and t.name]
    for place in range(axis, len(axes)):
        along = [(i, place - len(axes) + len(shape)) for i, shape in params]
        sizes = dict(params)
        table.statistic(place, params=[(i, a) for i, a in along if a >= 0 and sizes[i][a] > 1])
    for t in node.inputs[1:]:
        if t.name:
            table.bind_broadcast(t, axes)
    table.put(node.outputs[0], axes)
    for t in node.outputs[1:]:  # mean and 1 / deviation
        table.put(t, [*axes[:axis], *[None] * (len(axes) - axis)])


def couple_groupnorm(node: gs.Node, table: LabelTable) -> None:
    """Free whole groups exactly, or, as inexact channels, the same position in every group.

    With inexact channels allowed the larger factor decides. Scale and shift are [C], before opset 21 [G].
    """
    axes = list(table.get(node.inputs[0]))
    groups = int(node.attrs["num_groups"])
    channels = axes[1]
    per_group = None
    if channels is not None:
        grid = channels.reshape(groups, -1)
        each = grid.shape[1]
        if each > 1 and (groups == 1 or (table.choices.inexact and each > groups)):
            along = [(i, 0) for i, t in enumerate(node.inputs) if i in (1, 2) and table.shape(t)[0] == len(channels)]
            table.statistic(1, params=along)
            axes[1] = channels = np.tile(table.tie_within(grid, 0), groups)
        else:
            per_group = table.tie_within(grid, 1)
            axes[1] = channels = np.repeat(per_group, each)
    for t in node.inputs[1:3]:
        whole = channels is not None and table.shape(t)[0] == len(channels)
        table.bind(t, 0, channels if whole else per_group)
    for axis in range(2, len(axes)):
        table.statistic(axis)
    table.put(node.outputs[0], axes)


def patch_groupnorm(node: gs.Node, patcher: Patcher) -> None:
    """Update `num_groups` to the groups that have remaining channels."""
    keep = patcher.keep(node.inputs[0], 1)
    if keep is not None:
        node.attrs["num_groups"] = int(keep.reshape(int(node.attrs["num_groups"]), -1).any(1).sum())


def couple_lrn(node: gs.Node, table: LabelTable) -> None:
    """Lock (inexact) the channels: a window over neighbours changes when one is removed."""
    axes = table.get(node.inputs[0])
    table.statistic(1)
    table.put(node.outputs[0], axes)


def couple_over_axis(node: gs.Node, table: LabelTable) -> None:
    """Lock (inexact) the axis of the statistic (Softmax and others), before opset 13 all axes from it on."""
    axes = table.get(node.inputs[0])
    default, to_end = node.attrs.get("axis"), False
    if node.op in ("Softmax", "LogSoftmax", "Hardmax") and table.opset < 13:
        to_end = True
        default = 1 if default is None else default
    axis = normal_axis(int(-1 if default is None else default), len(axes))
    for place in range(axis, len(axes)) if to_end else [axis]:
        table.statistic(place)
    table.put(node.outputs[0], axes)


def couple_lp_norm(node: gs.Node, table: LabelTable) -> None:
    """Contract the axis of the norm, to which a masked (zero) channel adds nothing: exact."""
    table.contract(0, int(node.attrs.get("axis", -1)))
    table.put(node.outputs[0], table.get(node.inputs[0]))


def couple_mvn(node: gs.Node, table: LabelTable) -> None:
    """Lock (inexact) the axes of the statistics, `axes`."""
    axes = table.get(node.inputs[0])
    for axis in node.attrs.get("axes", [0, 2, 3]):
        table.statistic(normal_axis(int(axis), len(axes)))
    table.put(node.outputs[0], axes)


def _evaluate_batchnorm(node: gs.Node, values: Sequence[Array]) -> Array:
    """Evaluate on a constant: exporters write weight standardization (mean 0, variance 1 per filter) as BatchNorm."""
    x, scale, shift, mean, variance = values[:5]
    if int(node.attrs.get("training_mode", 0)):
        others = tuple(i for i in range(x.ndim) if i != 1)
        mean, variance = x.mean(others, np.float64), x.var(others, np.float64)
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    columns = (1, -1, *[1] * (x.ndim - 2))
    gain = scale / np.sqrt(variance.astype(np.float64) + epsilon)
    wide = np.result_type(x.dtype, np.float32)
    mean, gain, shift = (v.astype(wide).reshape(columns) for v in (mean, gain, shift))
    return np.asarray((x - mean) * gain + shift).astype(x.dtype)


register(OpSpec("BatchNormalization", couple_batchnorm, evaluate=_evaluate_batchnorm))
register(OpSpec("InstanceNormalization", couple_instancenorm))
register(OpSpec("LayerNormalization", couple_layernorm))
register(OpSpec("RMSNormalization", couple_layernorm))
register(OpSpec("SimplifiedLayerNormalization", couple_layernorm))
register(OpSpec("GroupNormalization", couple_groupnorm, patch=patch_groupnorm))
register(OpSpec("LRN", couple_lrn))
register(OpSpec("MeanVarianceNormalization", couple_mvn))
register(OpSpec("LpNormalization", couple_lp_norm))
for _op in ("Softmax", "LogSoftmax", "Hardmax"):
    register(OpSpec(_op, couple_over_axis))
