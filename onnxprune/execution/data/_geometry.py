"""Sizes of images: where an image lies in the frame that the model reads, for its pixels, boxes and mask alike."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._preprocess import DEFAULT_SIZES, Preprocess
from onnxprune.execution.data._targets import IGNORED, Boxes
from onnxprune.ir.model import Array


@dataclass(frozen=True)
class Placement:
    """Image resized to `inner` (height, width), with its corner at `offset` (top, left) of a frame of size `frame`."""

    source: tuple[int, int]
    inner: tuple[int, int]
    offset: tuple[int, int]
    frame: tuple[int, int]


def placement(how: Preprocess, height: int, width: int) -> Placement:
    """Return where an image of this size lies in its frame."""
    source, mode = (height, width), how.resize or "none"
    if mode == "none":
        return Placement(source, source, (0, 0), source)
    tall, wide = how.size or DEFAULT_SIZES.get(mode, (0, 0))
    if mode == "fit":
        ratio = min(1.0, how.limit / max(source)) if how.limit else 1.0
        inner = _multiple(height * ratio, how.multiple), _multiple(width * ratio, how.multiple)
        if tall and wide:
            inner = (tall, wide)
        return Placement(source, inner, (0, 0), inner)
    if mode == "height":
        scaled = max(1, ceil(width * tall / height))
        most = min(n for n in (wide, how.limit, scaled) if n)
        return Placement(source, (tall, most), (0, 0), (tall, wide or ceil(most / how.multiple) * how.multiple))
    if mode == "letterbox":
        ratio = min(tall / height, wide / width)
        inner = max(1, round(height * ratio)), max(1, round(width * ratio))
        return Placement(source, inner, ((tall - inner[0]) // 2, (wide - inner[1]) // 2), (tall, wide))
    if mode == "crop":
        ratio = max(round(tall / how.crop) / height, round(wide / how.crop) / width)
        inner = max(tall, round(height * ratio)), max(wide, round(width * ratio))
        return Placement(source, inner, ((tall - inner[0]) // 2, (wide - inner[1]) // 2), (tall, wide))
    return Placement(source, (tall, wide), (0, 0), (tall, wide))


def _multiple(side: float, of: int) -> int:
    return max(of, round(side / of) * of)


def constant_size(how: Preprocess) -> tuple[int, int] | None:
    """Return the size of all images; None if it follows that of each."""
    mode = how.resize or "none"
    if mode == "none":
        return None
    tall, wide = how.size or DEFAULT_SIZES.get(mode, (0, 0))
    return (tall, wide) if tall and wide else None


def placed_image(image: Any, how: Preprocess, at: Placement) -> Array:
    """Return a Pillow image in its frame, uint8 [height, width, channels]."""
    from PIL import Image

    mode = {"gray": "L", "rgba": "RGBA"}.get(how.color, "RGB")
    if image.mode.startswith("I"):  # 16 bits
        wide = np.asarray(image)
        image = Image.fromarray((wide >> 8 if wide.max(initial=0) > 255 else wide).astype(np.uint8))
    image = image.convert(mode)
    if at.inner != at.source:
        filters = Image.Resampling
        chosen = {"bilinear": filters.BILINEAR, "nearest": filters.NEAREST}.get(how.interpolation, filters.BICUBIC)
        image = image.resize(at.inner[::-1], chosen)
    if at.frame != at.inner or at.offset != (0, 0):
        fill = how.pad if mode == "L" else (how.pad,) * len(mode)
        frame = Image.new(mode, at.frame[::-1], fill)
        frame.paste(image, at.offset[::-1])
        image = frame
    pixels = np.asarray(image)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels[..., ::-1] if how.color == "bgr" else pixels


def placed_boxes(boxes: Boxes, at: Placement) -> Boxes:
    """Return boxes in the frame, clipped; those outside of it are removed."""
    scale = np.array([at.inner[1] / at.source[1], at.inner[0] / at.source[0]] * 2, np.float32)
    shift = np.array([at.offset[1], at.offset[0]] * 2, np.float32)
    most = np.array([at.frame[1], at.frame[0]] * 2, np.float32)
    moved = np.clip(boxes.boxes.reshape(-1, 4) * scale + shift, 0, most).astype(np.float32)
    inside = (moved[:, 2] > moved[:, 0]) & (moved[:, 3] > moved[:, 1])
    return Boxes(moved[inside], boxes.classes[inside], boxes.crowd[inside])


def placed_mask(mask: Array, at: Placement, where: str) -> Array:
    """Return a mask [height, width] in the frame, by the nearest pixel; padded pixels are ignored.

    Raises:
        OnnxPruneError: Mask and image differ in size.
    """
    if mask.shape != at.source:
        raise OnnxPruneError(
            f"the mask has {mask.shape[0]} x {mask.shape[1]} pixels, its image {at.source[0]} x {at.source[1]}",
            where=where,
        )
    rows = np.minimum(((np.arange(at.inner[0]) + 0.5) * at.source[0] / at.inner[0]).astype(int), at.source[0] - 1)
    columns = np.minimum(((np.arange(at.inner[1]) + 0.5) * at.source[1] / at.inner[1]).astype(int), at.source[1] - 1)
    inner = mask[rows[:, None], columns]
    if at.frame == at.inner and at.offset == (0, 0):
        return np.ascontiguousarray(inner)
    out = np.full(at.frame, IGNORED, inner.dtype)
    top, left = at.offset
    y, x = max(0, top), max(0, left)
    part = inner[max(0, -top) : at.frame[0] - top, max(0, -left) : at.frame[1] - left]
    out[y : y + part.shape[0], x : x + part.shape[1]] = part
    return out
