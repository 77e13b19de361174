"""Records of Resize and Upsample: channels pass, resized axes are locked."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Axes, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, follows, ints, normal_axis, register


def couple_resize(node: gs.Node, table: LabelTable) -> None:
    """Pass labels of axes that keep their size; lock the others."""
    axes, source, target = table.get(node.inputs[0]), table.size(node.inputs[0]), table.size(node.outputs[0])
    out: Axes = []
    for labels, n, m in zip(axes, source, target, strict=True):
        if n != m:
            table.lock(labels, "is resized")
        out.append(labels if n == m else None)
    if len(node.inputs) > 3 and node.inputs[3].name and "axes" not in node.attrs:
        for axis, labels in enumerate(out):
            if not follows(node.inputs[3], axis, len(out)):
                table.lock(labels, "is resized to sizes computed at run time")
    table.put(node.outputs[0], out)


def patch_resize(node: gs.Node, patcher: Patcher) -> None:
    """Update constant sizes to the remaining channels."""
    sizes = patcher.constant(node, 3) if len(node.inputs) > 3 else None
    if sizes is None or not sizes.size:
        return
    rank = len(patcher.shape(node.inputs[0]))
    listed = [normal_axis(a, rank) for a in ints(node.attrs.get("axes", range(rank)))]
    sizes = sizes.copy()
    for place, axis in enumerate(listed):
        keep = patcher.keep(node.outputs[0], axis)
        if keep is not None:
            sizes[place] = keep.sum()
            patcher.replace(node, 3, sizes)


register(OpSpec("Resize", couple_resize, patch=patch_resize))
register(OpSpec("Upsample", couple_resize))
