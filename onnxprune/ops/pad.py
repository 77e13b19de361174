"""Record of Pad: on the channel axis the padding is channels of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, ints, normal_axis, register


def _pads(node: gs.Node, rank: int, value: Callable[[int], Array | None]) -> dict[int, tuple[int, int]] | None:
    """Return axis -> (before, after), each -1 if not a constant; None if all are computed at run time."""
    if "pads" in node.attrs:
        pads, axes = ints(node.attrs["pads"]), list(range(rank))
    else:
        found = value(1)
        if found is None:
            return None
        pads, axes = np.asarray(found).reshape(-1).tolist(), list(range(rank))
        if len(node.inputs) > 3 and node.inputs[3].name:
            listed = value(3)
            if listed is None:
                return None
            axes = [normal_axis(a, rank) for a in ints(listed)]
    half = len(pads) // 2
    pads = [n if isinstance(n, int) else -1 for n in pads]
    return {a: (pads[i], pads[half + i]) for i, a in enumerate(axes)}


def couple_pad(node: gs.Node, table: LabelTable) -> None:
    """Join fresh labels for the padding around the input's."""
    source = node.inputs[0]
    axes = list(table.get(source))
    shape = table.shape(source)
    constant = len(node.inputs) < 2 or isinstance(node.inputs[1], gs.Constant)
    pads = _pads(node, len(axes), lambda i: table.elements(node.inputs[i]))
    for axis, labels in enumerate(axes):
        if labels is None:
            continue
        before, after = (0, 0) if pads is None else pads.get(axis, (0, 0))
        if pads is None or (not constant and (before or after)) or min(before, after) < 0:
            table.lock(labels, "is padded or cropped by amounts computed at run time")
            axes[axis] = None
        elif before or after:
            if node.attrs.get("mode", "constant") != "constant":
                table.lock(labels, "is padded with copies of its own indices")
                axes[axis] = None
                continue
            parts = [table.fresh(before), labels, table.fresh(after)]
            axes[axis] = table.concat(parts, [before, shape[axis], after])
    table.put(node.outputs[0], axes)


def patch_pad(node: gs.Node, patcher: Patcher) -> None:
    """Update the amounts to the remaining padding channels."""
    rank = len(patcher.shape(node.inputs[0]))
    pads = _pads(node, rank, lambda i: patcher.constant(node, i))
    if pads is None:
        return
    changed = False
    for axis, (before, after) in pads.items():
        keep = patcher.keep(node.outputs[0], axis)
        if keep is not None and (before or after):
            pads[axis] = (int(keep[:before].sum()), int(keep[len(keep) - after :].sum()) if after else 0)
            changed = True
    if not changed:
        return
    flat = [p[0] for p in pads.values()] + [p[1] for p in pads.values()]
    if "pads" in node.attrs:
        node.attrs["pads"] = flat
    else:
        patcher.replace(node, 1, np.array(flat, np.int64))


def couple_center_crop(node: gs.Node, table: LabelTable) -> None:
    """Lock the listed axes; the others pass."""
    axes = list(table.get(node.inputs[0]))
    listed = [normal_axis(a, len(axes)) for a in ints(node.attrs.get("axes", range(len(axes))))]
    for axis in listed:
        table.lock(axes[axis], "is cropped or padded to a size")
        axes[axis] = None
    table.put(node.outputs[0], axes)


register(OpSpec("CenterCropPad", couple_center_crop))
register(OpSpec("Pad", couple_pad, patch=patch_pad))
