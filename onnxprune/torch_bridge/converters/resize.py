"""Converters of Resize and Upsample: `F.interpolate` where it is equivalent, else a few taps per axis.

Every mode of the standard is separable: along an axis, an output element is a weighted sum of the input's elements near
a coordinate. `F.interpolate` covers the usual coordinates; the others are computed here, on the data's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.errors import OnnxPruneError
from onnxprune.torch_bridge.converters._operands import (
    apply_numbers,
    apply_to,
    attribute,
    has_input,
    numbers,
    unsupported,
)
from onnxprune.torch_bridge.registry import converts

_COORDINATES = (
    "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric", "tf_half_pixel_for_nn",
)  # fmt: skip
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil", "simple")


@dataclass(frozen=True)
class Resampling:
    """Attributes of a Resize.

    Attributes:
        mode: "nearest", "linear" or "cubic".
        coordinates: Input coordinate of an output element (coordinate_transformation_mode).
        nearest: Rounding of coordinates; "simple" is onnxruntime's before opset 11.
        cubic_a: Coefficient of the cubic kernel (Keys 1981).
        exclude_outside: Give elements beyond the edge no weight, instead of the edge's value.
        antialias: Widen the kernel when the data shrinks.
        policy: keep_aspect_ratio_policy.
        axes: Axes that sizes or scales are for; None for all.
    """

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False
    policy: str = "stretch"
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class _ResampledAxis:
    """Resized axis: its index, size before and after, and the scale of its coordinates."""

    axis: int
    size: int
    target: int
    scale: float

    @property
    def exact(self) -> bool:
        """Return whether the scale is the ratio of the sizes, up to float32."""
        return abs(self.target - self.size * self.scale) <= 1e-6 * self.target


def resize(
    x: torch.Tensor,
    computed: torch.Tensor | None = None,
    *,
    how: Resampling,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    by_scale: bool = False,
) -> torch.Tensor:
    """Resample axes.

    Args:
        x: Data.
        computed: Scales or sizes computed at run time.
        how: Attributes of the node.
        scales: Output size over input size.
        sizes: Output sizes.
        by_scale: `computed` holds scales.
    """
    if computed is not None:
        numbers_now = computed.reshape(-1).tolist()
        scales, sizes = (numbers_now, None) if by_scale else (None, [int(n) for n in numbers_now])
    changes = _changes(x, how, scales, sizes)
    if all(c.target == c.size for c in changes):  # onnxruntime copies in this case, whatever the scales
        return x
    if any(c.axis == 0 for c in changes) and x.dim() > 2:
        raise OnnxPruneError(
            f"a Resize changes the batch size from {x.shape[0]} to {changes[0].target}",
            fix="use the batch size that the model fixes",
        )
    fast = _interpolate(x, how, changes)
    if fast is not None:
        return fast
    for change in changes:
        x = _resample(x, how, change)
    return x


def _changes(
    x: torch.Tensor, how: Resampling, scales: Sequence[float] | None, sizes: Sequence[int] | None
) -> list[_ResampledAxis]:
    axes = list(range(x.dim())) if how.axes is None else [a % x.dim() for a in how.axes]
    before = [x.shape[a] for a in axes]
    if scales is not None:
        # In float32, as onnxruntime computes it: 5/3 of 3 is 5, not 4.
        targets = [int(np.floor(np.float32(n) * np.float32(s))) for n, s in zip(before, scales, strict=True)]
    else:
        targets = [int(n) for n in sizes or ()]
        scales = [t / n for t, n in zip(targets, before, strict=True)]
        if how.policy != "stretch":
            common = (min if how.policy == "not_larger" else max)(scales)
            scales = [common] * len(scales)
            targets = [int(np.floor(common * n + 0.5)) for n in before]
    found = [_ResampledAxis(*change) for change in zip(axes, before, targets, scales, strict=True)]
    return [c for c in found if c.target != c.size or abs(c.scale - 1) > 1e-6]


def _interpolate(x: torch.Tensor, how: Resampling, changes: Sequence[_ResampledAxis]) -> torch.Tensor | None:
    """Return the result of F.interpolate, or None if it is not equivalent."""
    spatial = x.dim() - 2
    if spatial not in (1, 2, 3) or min(c.axis for c in changes) < 2 or not x.is_floating_point():
        return None
    if how.antialias or not all(c.exact for c in changes):  # PyTorch's antialiasing treats edges differently
        return None
    size = list(x.shape[2:])
    for c in changes:
        size[c.axis - 2] = c.target
    single = any(c.target == 1 for c in changes)
    pixels = ("half_pixel", "half_pixel_symmetric") if single else (
        "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel",
    )  # fmt: skip
    if how.mode == "nearest":
        # With other ratios F.interpolate and the standard round coordinates differently.
        growing = all(c.target % c.size == 0 for c in changes)
        floors = how.coordinates == "asymmetric" and how.nearest in ("floor", "simple")
        rounds = how.coordinates in pixels and how.nearest.startswith("round")
        return F.interpolate(x, size, mode="nearest") if growing and (floors or rounds) else None
    corners = how.coordinates == "align_corners"
    if not corners and how.coordinates not in pixels:
        return None
    if how.mode == "linear":
        mode = ("linear", "bilinear", "trilinear")[spatial - 1]
    elif spatial == 2 and how.cubic_a == -0.75 and not how.exclude_outside:
        mode = "bicubic"
    else:
        return None
    return F.interpolate(x, size, mode=mode, align_corners=corners)


def _coordinates(how: Resampling, change: _ResampledAxis, device: torch.device) -> torch.Tensor:
    """Return the input coordinate of every output element, in float32 as in onnxruntime."""
    place = torch.arange(change.target, device=device, dtype=torch.float32)
    size, target, scale = change.size, change.target, change.scale
    if how.coordinates == "align_corners":
        return place * (size - 1) / (target - 1) if target > 1 else place * 0
    if how.coordinates == "asymmetric":
        return place / scale
    if how.coordinates == "tf_half_pixel_for_nn":
        return (place + 0.5) / scale
    if how.coordinates == "pytorch_half_pixel" and target == 1:
        return place * 0
    shift = 0.0
    if how.coordinates == "half_pixel_symmetric":
        shift = size / 2 * (1 - target / (scale * size))
    return shift + (place + 0.5) / scale - 0.5


def _resample(x: torch.Tensor, how: Resampling, change: _ResampledAxis) -> torch.Tensor:
    """Resample one axis by taps: weights and indices of the elements that form each output element."""
    at = _coordinates(how, change, x.device)
    shape = [-1 if a == change.axis else 1 for a in range(x.dim())]
    if how.mode == "nearest":
        place = _rounded(at, how.nearest, change.scale).clamp(0, change.size - 1)
        return x.index_select(change.axis, place.to(torch.int64))
    base = at.floor()
    taps = _taps(how, at - base, change.scale)
    if how.exclude_outside:
        inside = {n: (base + n >= 0) & (base + n <= change.size - 1) for n in taps}
        taps = {n: tap * inside[n] for n, tap in taps.items()}
    if how.exclude_outside or how.antialias:
        whole = torch.stack(list(taps.values())).sum(0)
        taps = {n: tap / whole for n, tap in taps.items()}
    y = torch.zeros((), dtype=x.dtype, device=x.device)
    for n, tap in taps.items():
        index = (base + n).clamp(0, change.size - 1).to(torch.int64)
        y = y + x.index_select(change.axis, index) * tap.to(x.dtype).reshape(shape)
    return y


def _taps(how: Resampling, offset: torch.Tensor, scale: float) -> dict[int, torch.Tensor]:
    """Return the weights of the elements around a coordinate, by their distance from the element before it.

    Args:
        how: Attributes of the node.
        offset: Distance from the element before the coordinate to the coordinate, in [0, 1).
        scale: Output size over input size; below 1 antialiasing stretches the kernel by it.
    """
    stretch = min(scale, 1.0) if how.antialias else 1.0
    reach = 1 if how.mode == "linear" else 2
    first = math.floor(-reach / stretch) + 1
    distances = {n: ((n - offset) * stretch).abs() for n in range(first, 2 - first)}
    if how.mode == "linear":
        return {n: (1 - d).clamp(0, 1) for n, d in distances.items()}
    return {n: _cubic(d, how.cubic_a) for n, d in distances.items()}


def _rounded(at: torch.Tensor, how: str, scale: float) -> torch.Tensor:
    # onnxruntime treats a coordinate within 1e-6 of a half as a half.
    if how == "round_prefer_floor":
        return torch.ceil(at.double() - (0.5 + 1e-6))
    if how == "round_prefer_ceil":
        return torch.floor(at.double() + (0.5 + 1e-6))
    return torch.ceil(at) if how == "ceil" or (how == "simple" and scale < 1) else torch.floor(at)


def _cubic(d: torch.Tensor, a: float) -> torch.Tensor:
    """Return the weight of an element at a distance (Keys 1981, eq. 4, with any coefficient)."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _how(node: OnnxNode) -> Resampling:
    mode = attribute(node, "mode", "nearest")
    coordinates = attribute(node, "coordinate_transformation_mode", "half_pixel")
    nearest = attribute(node, "nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear", "cubic") or coordinates not in _COORDINATES or nearest not in _NEAREST:
        raise unsupported(f"mode {mode!r}, coordinate_transformation_mode {coordinates!r}")
    axes = attribute(node, "axes")
    return Resampling(
        mode=mode,
        coordinates=coordinates,
        nearest=nearest,
        cubic_a=attribute(node, "cubic_coeff_a", -0.75),
        exclude_outside=bool(attribute(node, "exclude_outside", 0)),
        antialias=bool(attribute(node, "antialias", 0)),
        policy=attribute(node, "keep_aspect_ratio_policy", "stretch"),
        axes=None if axes is None else tuple(axes),
    )


def _converted(
    node: OnnxNode, graph: OnnxGraph, how: Resampling, scales: int, sizes: int | None
) -> OperationConverterResult:
    """Convert a node whose scales and sizes are at the given input indices."""
    x = node.input_values[0]
    for index, by_scale in ((sizes, False), (scales, True)):
        if index is None or not (has_input(node, index) or (by_scale and "scales" in node.attributes)):
            continue
        known = numbers(node, graph, index, "scales" if by_scale else None)
        if known == []:  # opset 11 requires one of the two, and allows it to be empty
            continue
        if known is None:
            return apply_numbers(node, graph, (x, node.input_values[index]), resize, how=how, by_scale=by_scale)
        given = {"scales": tuple(known)} if by_scale else {"sizes": tuple(known)}
        return apply_to(node, graph, (x,), resize, how=how, **given)
    raise OnnxPruneError("the node has neither scales nor sizes")


@converts("Resize", since=11)
def _resize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return _converted(node, graph, _how(node), 2, 3)


@converts("Upsample", since=7)
@converts("Resize", since=10)
def _old_resize(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    mode = attribute(node, "mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise unsupported(f"mode {mode!r}")
    return _converted(node, graph, Resampling(mode=mode, coordinates="asymmetric", nearest="simple"), 1, None)
