"""Layouts of image data and of image inputs, and the transposition between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.options.data import LAYOUTS as LAYOUTS

OTHER = {"nchw": "nhwc", "nhwc": "nchw"}
PERMUTATION = {"nchw": (0, 2, 3, 1), "nhwc": (0, 3, 1, 2)}  # from this layout to the other
COLOURS = (1, 3, 4)  # channels of images in files

# Operators with channels on axis 1, or on the last axis if the attribute `channels_last` is true.
_CHANNELS = {
    "Conv", "ConvInteger", "ConvTranspose", "FusedConv", "QLinearConv", "AveragePool", "LpPool", "MaxPool",
    "QLinearAveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "QLinearGlobalAveragePool",
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
# Operators whose output has the axes of their image input; their other inputs are not images.
_SAME_AXES = {
    "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Identity", "Max", "Min",
    "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Relu", "Resize", "Sigmoid", "Slice", "Split", "Sub", "Tanh",
    "Upsample",
}  # fmt: skip

Shape = Sequence[int | str | None]


def layout_of(tensor: gs.Tensor) -> str | None:
    """Return the layout of an image input: "nchw", "nhwc", or None if it is unknown or the input is not an image.

    The first convolutions, poolings or channel norms reached through transpositions decide. Without one, the layout is
    known only if exactly one end has an image's number of channels.
    """
    shape = list(tensor.shape or [])
    if len(shape) != 4:
        return None
    said: set[int] = set()
    seen: set[int] = set()
    todo: list[tuple[gs.Tensor, tuple[int, ...]]] = [(tensor, (0, 1, 2, 3))]  # for each axis: the axis of the input
    while todo:
        at, axes = todo.pop()
        for node in at.outputs:
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.op in _CHANNELS and at is node.inputs[0]:
                said.add(axes[-1] if node.attrs.get("channels_last") else axes[1])
            elif node.op == "Transpose":
                permutation = node.attrs.get("perm") or (3, 2, 1, 0)
                if sorted(permutation) == [0, 1, 2, 3]:
                    todo.append((node.outputs[0], tuple(axes[i] for i in permutation)))
            elif node.op in _SAME_AXES:
                todo += [(t, axes) for t in (node.outputs if node.op == "Split" else node.outputs[:1])]
    if said in ({1}, {3}):
        return "nchw" if said == {1} else "nhwc"
    first, last = shape[1] in COLOURS, shape[3] in COLOURS
    return None if first == last else "nchw" if first else "nhwc"


def is_single_image(tensor: gs.Tensor) -> bool:
    """Return whether an input is one colour image [3, height, width], as detectors of torchvision take it.

    The image becomes a batch of one by an Unsqueeze of the first axis before anything but arithmetic reads it.
    """
    shape = list(tensor.shape or [])
    if len(shape) != 3 or shape[0] != 3:
        return False
    todo, seen = [tensor], {tensor.name}
    while todo:
        for node in todo.pop().outputs:
            if node.op == "Unsqueeze" and _axes(node) == [0]:
                return True
            if node.op in _SAME_AXES:
                todo += [t for t in node.outputs if t.name not in seen]
                seen.update(t.name for t in node.outputs)
    return False


def _axes(node: gs.Node) -> list[int]:
    found = node.attrs.get("axes")
    if found is None and len(node.inputs) > 1:
        t = node.inputs[1]
        if not isinstance(t, gs.Constant) and t.inputs and t.inputs[0].op == "Constant":
            t = t.inputs[0].attrs.get("value", t)
        found = t.values if isinstance(t, gs.Constant) else None
    return [] if found is None else [int(axis) for axis in np.asarray(found).reshape(-1)]


@dataclass(frozen=True)
class Arrangement:
    """Layout of samples and the transposition into the model.

    Attributes:
        layout: Layout of the data; "nchw" also for data other than images with channels on axis 1.
        moved: Whether samples are transposed on the way into the model.
    """

    layout: str
    moved: bool


def arrange(sizes: Sequence[int], pixels: bool, stated: str, shape: Shape, own: str | None, name: str) -> Arrangement:
    """Return the layout of data and its transposition for the model.

    Args:
        sizes: Shape of the data, samples first.
        pixels: Whether the data are bytes. With "auto", bytes with 1, 3 or 4 on the last axis are nhwc; all other data
            has the layout of the model.
        stated: Layout of the data: "auto", "nchw", "nhwc".
        shape: Shape of the model's input, batch first; entries of unknown dimensions are not numbers.
        own: Layout of the model's input, from `layout_of`.
        name: Name of the data, for messages.

    Raises:
        OnnxPruneError: The layout is unknown, or leaves open whether samples are transposed.
    """
    if stated not in LAYOUTS:
        raise unknown("layout", stated, LAYOUTS)
    images = len(sizes) == 4
    guess = "nhwc" if images and pixels and sizes[-1] in COLOURS else None
    layout = stated if stated != "auto" else guess or own or "nchw"
    if not images or len(shape) != 4 or (stated == "auto" and guess is None):
        return Arrangement(layout, False)
    as_is, moved = fits(sizes, shape), fits(turned(sizes, layout), shape)
    if stated == "auto" and own == "nchw" and as_is and not moved:  # the width is 1, 3 or 4
        return Arrangement(own, False)
    if own is not None:
        return Arrangement(layout, layout != own)
    if as_is and moved:
        raise OnnxPruneError(
            f"cannot tell whether samples {list(sizes[1:])} of {name!r} ({layout}) have to be transposed: the model's "
            f"input {list(shape)} accepts both, and no convolution or pooling shows which axis holds the channels",
            fix="pass floats in the layout of the model, without --layout",
        )
    return Arrangement(layout, moved)


def turned(sizes: Sequence[int], layout: str) -> list[int]:
    """Return a shape transposed to the other layout."""
    return [sizes[i] for i in PERMUTATION[layout]]


def fits(sizes: Sequence[int], shape: Shape) -> bool:
    """Return whether samples of this shape match an input; the batch is free."""
    return len(sizes) == len(shape) and all(
        not isinstance(n, int) or n <= 0 or n == m for n, m in zip(shape[1:], sizes[1:], strict=True)
    )


def layouts_that_fit(sizes: Sequence[int], shape: Shape, own: str | None) -> list[str]:
    """Return the layouts that could be stated for images so that they match an input."""
    found = []
    for layout in OTHER:
        as_is, moved = fits(sizes, shape), fits(turned(sizes, layout), shape)
        if (as_is != moved) if own is None else (as_is if layout == own else moved):
            found.append(layout)
    return found
