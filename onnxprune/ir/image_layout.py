"""Where the channels of images are: in the data, in a model's input, and what that means for the way from one to the
other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.options.data import LAYOUTS as LAYOUTS

OTHER = {"nchw": "nhwc", "nhwc": "nchw"}
PERMUTATION = {"nchw": (0, 2, 3, 1), "nhwc": (0, 3, 1, 2)}  # out of this layout, into the other
COLOURS = (1, 3, 4)  # channels of images as files hold them

# Operators with channels on axis 1, and on the last one where they have a true attribute `channels_last`.
_CHANNELS = {
    "Conv", "ConvInteger", "ConvTranspose", "FusedConv", "QLinearConv", "AveragePool", "LpPool", "MaxPool",
    "QLinearAveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "QLinearGlobalAveragePool",
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip
# Operators whose output has the axes of their images; what else they read is no image.
_SAME_AXES = {
    "Add", "Cast", "Clip", "Concat", "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Identity", "Max", "Min",
    "Mul", "Neg", "Pad", "Pow", "QuantizeLinear", "Relu", "Resize", "Sigmoid", "Slice", "Split", "Sub", "Tanh",
    "Upsample",
}  # fmt: skip

Shape = Sequence[int | str | None]


def layout_of(tensor: gs.Tensor) -> str | None:
    """Layout of an image input: "nchw", "nhwc", or None where the model does not say or the input is no image.

    The first convolution, pooling or norm over channels says it, whatever was transposed before; without one a known
    number of colours at one end only does.
    """
    shape = list(tensor.shape or [])
    if len(shape) != 4:
        return None
    said: set[int] = set()
    seen: set[int] = set()
    todo: list[tuple[gs.Tensor, tuple[int, ...]]] = [(tensor, (0, 1, 2, 3))]  # for each axis: which of the input's
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


@dataclass(frozen=True)
class Arrangement:
    """How samples lie, and whether they lie otherwise in the model.

    Attributes:
        layout: of the data; "nchw" stands for everything whose channels are on axis 1, images or not.
        moved: whether the axes change on the way into the model.
    """

    layout: str
    moved: bool


def arrange(sizes: Sequence[int], pixels: bool, stated: str, shape: Shape, own: str | None, name: str) -> Arrangement:
    """Decides how data becomes the input of a model.

    Args:
        sizes: of the data, samples first.
        pixels: whether it holds bytes: as "auto" those with 1, 3 or 4 last are nhwc, and all else lies as in the model.
        stated: layout of the data: "auto", "nchw", "nhwc".
        shape: of the model's input, batch first; unknown dimensions are not numbers.
        own: layout of the model's input, as `layout_of` finds it.
        name: of the data, for messages.

    Raises:
        OnnxPruneError: an unknown layout; one that leaves open whether the samples are to be transposed.
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
            f"input {list(shape)} takes them either way, and no convolution or pooling says which axis is its channels",
            fix="give floats that lie as the model takes them, without --layout",
        )
    return Arrangement(layout, moved)


def turned(sizes: Sequence[int], layout: str) -> list[int]:
    """Sizes in the other layout."""
    return [sizes[i] for i in PERMUTATION[layout]]


def fits(sizes: Sequence[int], shape: Shape) -> bool:
    """Whether samples of these sizes go into an input; the batch is free."""
    return len(sizes) == len(shape) and all(
        not isinstance(n, int) or n <= 0 or n == m for n, m in zip(shape[1:], sizes[1:], strict=True)
    )


def layouts_that_fit(sizes: Sequence[int], shape: Shape, own: str | None) -> list[str]:
    """What the layout of images could be said to be, so that they go into an input."""
    found = []
    for layout in OTHER:
        as_is, moved = fits(sizes, shape), fits(turned(sizes, layout), shape)
        if (as_is != moved) if own is None else (as_is if layout == own else moved):
            found.append(layout)
    return found
