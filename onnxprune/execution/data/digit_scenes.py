"""The digits that ship, and scenes with them: several at varying scales on a cluttered, noisy background, with boxes.

The data source `digit-scenes:train` or `digit-scenes:test`, for models/digits_detector.onnx.

Every scene follows from (seed, part, index), so any one of them can be drawn without the others. Digits of the test
part occur in no scene of the train part.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from importlib import resources
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.files.input_files import read_resource
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.execution.data._sources import Arrays, Indices, Source
from onnxprune.execution.data._targets import Boxes, Target

SIZE = 96  # pixels of the scene's height and width
COUNTS = {"train": 8000, "test": 500}  # scenes of the data source `digit-scenes`
NAMES = tuple("0123456789")
_SMALLEST, _LARGEST = 14, 44  # height of a digit in pixels
_MOST = 7  # digits of one scene
_OVERLAP = 0.08  # share of the smaller box that two digits may share
_INK = 0.3  # coverage from which a pixel belongs to the box
Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Scene = tuple[Pixels, Floats, npt.NDArray[np.int64]]


def split_digits(count: int, part: str) -> npt.NDArray[np.int64]:
    """Return indices of the train (three of four) or test (every fourth) part of a dataset of `count` samples."""
    index = np.arange(count)
    return np.flatnonzero(index % 4 == 0 if part == "test" else index % 4 != 0)


@cache
def read_digits(part: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the digits that ship, [n, 8, 8] in [0, 1], and their labels, "train" or "test"."""
    data = read_resource(resources.files("onnxprune.models") / "digits.npz")
    with np.load(BytesIO(data)) as digits:
        images, labels = digits["x"], digits["y"]
    index = split_digits(len(labels), part)
    return (images[index] / 16).astype(np.float32), labels[index].astype(np.int64)


def _pillow() -> Any:
    try:
        from PIL import Image, ImageDraw
    except ImportError as err:
        raise OnnxPruneError(f"the digit scenes need pillow ({err})", fix="pip install 'onnxprune[data]'") from err
    return Image, ImageDraw


def _background(rng: np.random.Generator, size: tuple[int, int], paper: Floats) -> Pixels:
    """Return soft clouds around one colour, with strokes and outlines as clutter."""
    image_module, draw_module = _pillow()
    h, w = size
    clouds = np.clip(paper + rng.uniform(-28, 28, (4, 4, 3)), 0, 255).astype(np.uint8)
    image = image_module.fromarray(clouds).resize((w, h), image_module.Resampling.BILINEAR)
    draw = draw_module.Draw(image)
    for _ in range(int(rng.integers(0, 7) * h * w / SIZE**2)):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        dx, dy = rng.uniform(-30, 30, 2)
        colour = tuple(int(v) for v in np.clip(paper + rng.uniform(-90, 90, 3), 0, 255))
        box = (min(x, x + dx), min(y, y + dy), max(x, x + dx), max(y, y + dy))
        shape, width = rng.integers(3), int(rng.integers(1, 4))
        if shape == 0:
            draw.line((x, y, x + dx, y + dy), fill=colour, width=width)
        elif shape == 1:
            draw.rectangle(box, outline=colour, width=width)
        else:
            draw.ellipse(box, outline=colour, width=width)
    return np.array(image)


def _ink(rng: np.random.Generator, digit: Floats) -> tuple[Floats, tuple[int, int, int, int]] | None:
    """Return the coverage of one digit at a random scale and angle, and the box (x1, y1, x2, y2) of its ink."""
    image_module, _ = _pillow()
    height = round(float(np.exp(rng.uniform(np.log(_SMALLEST), np.log(_LARGEST)))))
    width = max(8, round(height * float(rng.uniform(0.75, 1.15))))
    image = image_module.fromarray((digit * 255).astype(np.uint8))
    image = image.resize((width, height), image_module.Resampling.BICUBIC)
    image = image.rotate(float(rng.uniform(-15, 15)), image_module.Resampling.BILINEAR, expand=True)
    ink: Floats = np.asarray(image, np.float32) / np.float32(255)
    rows, columns = np.flatnonzero((ink > _INK).any(1)), np.flatnonzero((ink > _INK).any(0))
    if not len(rows) or not len(columns):
        return None
    return ink, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _overlaps(box: Floats, others: list[Floats]) -> bool:
    for other in others:
        shared = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
        area = min(float(np.prod(box[2:] - box[:2])), float(np.prod(other[2:] - other[:2])))
        if (shared > 0).all() and float(np.prod(shared)) > _OVERLAP * area:
            return True
    return False


def digit_scene(part: str, index: int, *, size: tuple[int, int] = (SIZE, SIZE), seed: int = 0) -> Scene:
    """Draw one scene.

    Args:
        part: "train" or "test".
        index: Number of the scene.
        size: Height and width in pixels.
        seed: Seed of all scenes.

    Returns:
        Pixels uint8 [h, w, 3] (RGB), boxes float32 [k, 4] (x1, y1, x2, y2 in pixels) and classes int64 [k].
    """
    if part not in COUNTS:
        raise OnnxPruneError(f"the digit scenes have no part {part!r}", fix="use digit-scenes:train or :test")
    rng = np.random.default_rng([seed, int(part == "test"), index])
    images, labels = read_digits(part)
    h, w = size
    paper = rng.uniform(20, 235, 3).astype(np.float32)
    canvas = _background(rng, size, paper).astype(np.float32)
    boxes: list[Floats] = []
    classes: list[int] = []
    most = max(1, round(_MOST * h * w / SIZE**2))
    for _ in range(int(rng.integers(1, most + 1))):
        chosen = int(rng.integers(len(images)))
        drawn = _ink(rng, images[chosen])
        if drawn is None:
            continue
        ink, (x1, y1, x2, y2) = drawn
        if x2 - x1 >= w or y2 - y1 >= h:
            continue
        x, y = int(rng.integers(-x1, w - x2 + 1)), int(rng.integers(-y1, h - y2 + 1))
        box = np.array([x + x1, y + y1, x + x2, y + y2], np.float32)
        if _overlaps(box, boxes):
            continue
        shift = rng.uniform(70, 200, 3) * np.where(paper > rng.uniform(90, 165), -1, 1)
        colour = np.clip(paper + shift, 0, 255).astype(np.float32)
        top, left = max(0, -y), max(0, -x)
        part_of = ink[top : top + h - max(0, y), left : left + w - max(0, x)]
        region = canvas[max(0, y) : max(0, y) + part_of.shape[0], max(0, x) : max(0, x) + part_of.shape[1]]
        region += part_of[: region.shape[0], : region.shape[1], None] * (colour - region)
        boxes.append(box)
        classes.append(int(labels[chosen]))
    canvas += rng.normal(0, rng.uniform(2, 14), canvas.shape).astype(np.float32)
    pixels = np.clip(canvas, 0, 255).astype(np.uint8)
    return pixels, np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64)


class SceneSource(Source):
    """Scenes of one part, drawn when they are read."""

    targets = "boxes"

    def __init__(self, part: str) -> None:
        if part not in COUNTS:
            raise OnnxPruneError(f"the digit scenes have no part {part!r}", fix="use digit-scenes:train or :test")
        read_digits(part)  # an error names what is not installed
        _pillow()
        self.part = part

    def __len__(self) -> int:
        return COUNTS[self.part]

    @property
    def names(self) -> tuple[str, ...]:
        return ("",)

    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        scenes = [digit_scene(self.part, int(i)) for i in indices]
        targets = [Boxes(boxes, classes, np.zeros(len(classes), np.bool_)) for _, boxes, classes in scenes]
        return {"": np.stack([pixels for pixels, _, _ in scenes])}, list(targets)

    def sizes(self, how: Preprocess) -> Sequence[Hashable] | None:
        return None

    def update(self, digest: Any) -> None:
        digest.update(f"digit-scenes {self.part} 1".encode())

    def shown(self) -> str:
        return f"[{SIZE}, {SIZE}, 3] uint8"


def read_scenes(part: str) -> Data:
    """Return the scenes of one part as data, with boxes."""
    return Data(SceneSource(part), None, f"digit-scenes:{part}")
