"""Records of convolutions: Conv and ConvTranspose, 1-D to 3-D, grouped and depthwise."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Axes, Labels, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, Shape, register, remaining


def _start(
    node: gs.Node, table: LabelTable, weight: int = 1, bias_at: int = 2, last: bool = False
) -> tuple[gs.Tensor, gs.Tensor | None, int, Labels | None, Axes] | None:
    """Return (weight, bias, groups, input channels, labels over space); lock a computed weight and return None.

    `last`: The data's channels are its last axis.
    """
    x, w = node.inputs[0], node.inputs[weight]
    if not table.is_const(w):
        for t in node.inputs:
            if t.name:
                table.lock_tensor(t, "its weight is not a constant")
        return None
    axes = table.get(x)
    space: Axes = []
    for place, labels in enumerate(axes[1:-1] if last else axes[2:]):
        passed = _pointwise(node, place, table.shape(w)[2:])
        if not passed:
            table.lock(labels, "convolves over it")
        space.append(labels if passed else None)
    bias = node.inputs[bias_at] if len(node.inputs) > bias_at and node.inputs[bias_at].name else None
    return w, bias, int(node.attrs.get("group", 1)), axes[-1 if last else 1], space


def _pointwise(node: gs.Node, place: int, kernel: Shape) -> bool:
    """Return whether a spatial axis is unchanged: kernel and stride 1, no padding."""
    attrs, rank = node.attrs, len(kernel)
    pads = attrs.get("pads") or [0] * 2 * rank
    added = (pads[place], pads[place + rank], (attrs.get("output_padding") or [0] * rank)[place])
    return bool(kernel[place] == 1 and (attrs.get("strides") or [1] * rank)[place] == 1 and not any(added))


def _split(labels: Labels | None, groups: int, table: LabelTable, *, blocks: bool) -> Labels | None:
    """Return labels of a grouped axis per group (`blocks`) or per position within a group, tied accordingly."""
    if labels is None:
        return None
    return table.tie_within(labels.reshape(groups, -1), 1 if blocks else 0)


def _by_blocks(inputs: Labels | None, groups: int, per_group_in: int, per_group_out: int) -> bool:
    """Return whether whole groups are removed, not one position in every group: the larger factor is freed."""
    if per_group_in == 1 and per_group_out == 1:
        return True
    return groups >= per_group_in and (inputs is not None or per_group_out == 1)


def couple_conv(node: gs.Node, table: LabelTable) -> None:
    """Tie the weight's input axis to the input channels; the output axis is free, the kernel axes are fixed."""
    convolve(node, table)


def convolve(
    node: gs.Node, table: LabelTable, *, weight: int = 1, bias_at: int = 2, steps: tuple[int, int] | None = None,
    last: bool = False,
) -> Labels | None:  # fmt: skip
    """Couple a convolution of any kind and return its output channels.

    Args:
        weight: Input index of the weight [out, in/groups, ...].
        bias_at: Input index of the bias.
        steps: Integer data: input indices of its scale and zero point.
        last: The data's channels are its last axis.
    """
    start = _start(node, table, weight, bias_at, last)
    if start is None:
        return None
    w, bias, groups, xin, space = start
    filters, kin = table.shape(w)[:2]
    channels = -1 if last else 1
    if groups == 1:
        table.bind(w, 1, xin)
        out = table.produce(w, 0)
        table.contract(0, channels, steps)
    else:
        kout = filters // groups
        blocks = _by_blocks(xin, groups, kin, kout)
        part = _split(xin, groups, table, blocks=blocks)
        if blocks:
            table.bind(w, 1, None)
            out = None if part is None else np.repeat(part, kout)
            table.bind(w, 0, out)
        else:
            table.bind(w, 1, part)
            free = table.fresh(kout)
            out = None if free is None else np.tile(free, groups)
            table.bind(w, 0, out)
        if kin > 1:
            table.contract(0, channels, steps)
    table.filters(w, 0, out)
    if bias is not None:
        table.bind(bias, 0, out)
    table.put(node.outputs[0], [None, *space, out] if last else [None, out, *space])
    return out


def couple_conv_transpose(node: gs.Node, table: LabelTable) -> None:
    """Tie the input axis of the weight [in, out/groups, ...] to the input channels; the output axis is free."""
    start = _start(node, table)
    if start is None:
        return
    w, bias, groups, xin, space = start
    kin, kout = table.shape(w)[0] // groups, table.shape(w)[1]
    out: Labels | None
    if groups == 1:
        table.bind(w, 0, xin)
        out = table.produce(w, 1)
        table.filters(w, 1, out)
    elif _by_blocks(xin, groups, kin, kout):
        part = _split(xin, groups, table, blocks=True)
        table.bind(w, 0, None if part is None else np.repeat(part, kin))
        table.bind(w, 1, None)
        out = None if part is None else np.repeat(part, kout)
        table.filters(w, 1, out, groups)
    else:
        part = _split(xin, groups, table, blocks=False)
        table.bind(w, 0, None if part is None else np.tile(part, groups))
        free = table.produce(w, 1)
        out = None if free is None else np.tile(free, groups)
        table.filters(w, 1, out, groups)
    table.contract(0, 1)
    if bias is not None:
        table.bind(bias, 0, out)
    table.put(node.outputs[0], [None, out, *space])


def patch_conv_group(node: gs.Node, patcher: Patcher) -> None:
    """Update `group` when whole groups are removed: remaining channels over remaining channels per group."""
    patch_group(node, patcher, 1)


def patch_group(node: gs.Node, patcher: Patcher, weight: int, channels: int = 1) -> None:
    """Update `group` for a weight at input `weight` and channels on axis `channels`."""
    if int(node.attrs.get("group", 1)) > 1:
        node.attrs["group"] = remaining(patcher, node.inputs[0], channels) // remaining(patcher, node.inputs[weight], 1)


def patch_conv_transpose_group(node: gs.Node, patcher: Patcher) -> None:
    """Update `group` from the output side: the weight of ConvTranspose states the outputs per group."""
    if int(node.attrs.get("group", 1)) > 1:
        node.attrs["group"] = remaining(patcher, node.outputs[0], 1) // remaining(patcher, node.inputs[1], 1)


def macs_conv(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the MACs of one pass of the weight per output pixel."""
    return outs[0][0] * prod(outs[0][2:]) * prod(ins[1])


def macs_conv_transpose(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the MACs of one pass of the weight per input pixel."""
    return ins[0][0] * prod(ins[0][2:]) * prod(ins[1])


def couple_deform_conv(node: gs.Node, table: LabelTable) -> None:
    """Tie channels as for Conv; offsets and mask, shared by all channels, are locked."""
    for place in (2, 4):
        t = table.optional_input(place)
        if t is not None:
            table.lock_tensor(t, "holds sampling positions")
    if int(node.attrs.get("offset_group", 1)) > 1:
        table.lock(table.get(node.inputs[0])[1], "is sampled with offsets per channel group")
    convolve(node, table, bias_at=3)


def couple_causal_conv(node: gs.Node, table: LabelTable) -> None:
    """Tie every channel to its own kernel [C, 1, k], bias and state."""
    axes = table.get(node.inputs[0])
    table.lock(axes[2], "convolves over it")
    for t in node.inputs[1:]:
        if t.name:
            table.bind(t, 1 if t is table.optional_input(3) else 0, axes[1])
    for t in node.outputs:
        if t.name:
            table.put(t, [None, axes[1], None])


register(OpSpec("Conv", couple_conv, patch=patch_conv_group, macs=macs_conv))
register(OpSpec("ConvTranspose", couple_conv_transpose, patch=patch_conv_transpose_group, macs=macs_conv_transpose))
register(OpSpec("DeformConv", couple_deform_conv, patch=patch_conv_group, macs=macs_conv))
register(OpSpec("CausalConvWithState", couple_causal_conv))
