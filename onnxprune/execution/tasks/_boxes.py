"""Boxes of detectors: decoding of raw heads, overlap, non-maximum suppression, agreement of two sets.

Boxes are x1 y1 x2 y2 in pixels of the model's input.

| head | outputs | scores |
|---|---|---|
| v5 | [n, boxes, 5 + classes]: centre, size, objectness, classes | objectness times class |
| yolox | [n, cells, 5 + classes]: offset in a cell, logarithm of size, objectness, classes | objectness times class |
| v8 | [n, 4 + classes (+ more), boxes]: centre, size, classes | class |
| end2end | [n, boxes, 6]: corners, score, class | score |
| detr | logits [n, queries, classes + 1], boxes [n, queries, 4]: centre, size, as shares of the image | softmax |
| rtdetr | logits [n, queries, classes], boxes likewise | sigmoid |
| torchvision | boxes [k, 4]: corners; scores [k]; labels [k], 0 for the background | scores |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import Outputs, check_finite
from onnxprune.ir.model import Array

LEAST_SCORE = 0.001  # of boxes that count for mean average precision
OVERLAP = 0.7  # from which a box with a lower score is suppressed
GRIDS = (8, 16, 32)  # strides of the usual three grids
MOST_BOXES = 100  # boxes of an image that COCO counts
_TINY = 1e-7  # least distance of a score from 0 and 1 in a divergence
CANDIDATES = 1000  # boxes of an image before suppression, those of the largest scores

HEADS = ("v5", "yolox", "v8", "end2end", "detr", "rtdetr", "torchvision")
RAW_HEADS = ("v5", "v8", "detr", "rtdetr")
"""Heads that return every box, before any is selected."""


class Detections(NamedTuple):
    """Boxes of one image, largest scores first: boxes [k, 4], classes [k], scores [k]."""

    boxes: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]

    def above(self, score: float) -> Detections:
        """Return the boxes of at least this score."""
        mask = self.scores >= score
        return Detections(self.boxes[mask], self.classes[mask], self.scores[mask])


class BoxTargets(Protocol):
    """Targets of one image: boxes [k, 4], classes [k], crowd [k] (boxes around many objects, which do not count)."""

    @property
    def boxes(self) -> Array: ...
    @property
    def classes(self) -> Array: ...
    @property
    def crowd(self) -> Array: ...


@dataclass(frozen=True)
class Head:
    """Outputs of a detector.

    Attributes:
        kind: One of `HEADS`.
        reads: Names of the outputs, in the order of the table above.
        classes: Number of classes; None: as many as the output has.
    """

    kind: str
    reads: tuple[str, ...]
    classes: int | None = None

    def decode(self, outputs: Outputs, count: int, size: tuple[int, int] | None) -> list[Detections]:
        """Return the boxes of each image.

        Args:
            outputs: Values of `reads`.
            count: Number of images.
            size: (height, width) of the model's input.

        Raises:
            OnnxPruneError: The outputs have other shapes, are not finite, or need the size of the image.
        """
        values = [np.asarray(o, np.float64) for o in outputs]
        check_finite(*values)
        if self.kind == "torchvision":
            return [self._torchvision(values, count)]
        if any(v.ndim != 3 or len(v) < count for v in values):
            raise OnnxPruneError(
                f"the outputs {[list(v.shape) for v in values]} are not those of {count} images of a {self.kind} head"
            )
        if self.kind in ("detr", "rtdetr", "yolox") and size is None:
            raise OnnxPruneError("boxes are relative to the image, and the model has no image input")
        return [self._one([v[i] for v in values], size or (1, 1)) for i in range(count)]

    def raw(self, outputs: Outputs) -> tuple[Array, Array] | None:
        """Return corners [n, boxes, 4] and scores [n, boxes, classes] before suppression; None for lists of boxes.

        The boxes of DETR are shares of the image.
        """
        rows = np.asarray(outputs[0], np.float64)
        if self.kind == "detr":
            return corners(np.asarray(outputs[1], np.float64)), softmax(rows)[..., :-1]
        if self.kind == "rtdetr":
            return corners(np.asarray(outputs[1], np.float64)), 1 / (1 + np.exp(-np.clip(rows, -60, 60)))
        if self.kind == "v8":
            rows = rows.swapaxes(1, 2)
            return corners(rows), rows[..., 4 : None if self.classes is None else 4 + self.classes]
        if self.kind == "v5":
            end = None if self.classes is None else 5 + self.classes
            return corners(rows), rows[..., 5:end] * rows[..., 4:5] if rows.shape[2] > 5 else rows[..., 4:5]
        return None

    def _torchvision(self, values: list[Array], count: int) -> Detections:
        boxes, scores, labels = values
        if count != 1:
            raise OnnxPruneError(f"the boxes of {count} images cannot be told apart", fix="--batch 1")
        return _ordered(boxes.reshape(-1, 4), labels.reshape(-1).astype(np.int64) - 1, scores.reshape(-1))

    def _one(self, values: list[Array], size: tuple[int, int]) -> Detections:
        rows = values[0]
        if self.kind == "end2end":
            used = rows[rows[:, 4] > 0]
            return _ordered(used[:, :4], np.rint(used[:, 5]).astype(np.int64), used[:, 4])
        if self.kind in ("detr", "rtdetr"):
            scale = np.array([size[1], size[0], size[1], size[0]], np.float64)
            scores = softmax(rows)[:, :-1] if self.kind == "detr" else 1 / (1 + np.exp(-np.clip(rows, -60, 60)))
            if self.kind == "detr":  # a query is one box: its best class
                scores = np.where(scores == scores.max(1, keepdims=True), scores, 0)
            return _best(corners(values[1]) * scale, scores, MOST_BOXES)
        if self.kind == "v8":
            rows = rows.T
            scores = rows[:, 4 : None if self.classes is None else 4 + self.classes]
        else:
            if self.kind == "yolox":
                rows = _on_grid(rows, size)
            end = None if self.classes is None else 5 + self.classes
            scores = rows[:, 5:end] * rows[:, 4:5] if rows.shape[1] > 5 else rows[:, 4:5]
        return suppressed(_best(corners(rows[:, :4]), scores, CANDIDATES))


def _on_grid(rows: Array, size: tuple[int, int]) -> Array:
    """Return rows of a YOLOX head with centres and sizes in pixels.

    Raises:
        OnnxPruneError: The rows are not those of the grids with strides 8, 16 and 32.
    """
    grids = []
    for stride in GRIDS:
        y, x = np.mgrid[: -(-size[0] // stride), : -(-size[1] // stride)]
        grids.append(np.stack([x, y, np.full_like(x, stride)], -1).reshape(-1, 3))
    grid = np.concatenate(grids)
    if len(grid) != len(rows):
        raise OnnxPruneError(f"{len(rows)} boxes are not those of an image of {size[0]} by {size[1]} pixels")
    strides = grid[:, 2:]
    centres, sizes = (rows[:, :2] + grid[:, :2]) * strides, np.exp(np.clip(rows[:, 2:4], -50, 50)) * strides
    return np.concatenate([centres, sizes, rows[:, 4:]], 1)


def softmax(x: Array) -> Array:
    """Return probabilities over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def corners(boxes: Array) -> Array:
    """Return corners of boxes that are given by centre and size."""
    centre, half = boxes[..., :2], boxes[..., 2:4] / 2
    return np.concatenate([centre - half, centre + half], -1)


def _ordered(boxes: Array, classes: Array, scores: Array) -> Detections:
    order = np.argsort(-scores, kind="stable")
    return Detections(boxes[order], classes[order].astype(np.int64), scores[order])


def _best(boxes: Array, scores: Array, most: int) -> Detections:
    """Return the pairs of a box and a class with the largest scores."""
    where = np.flatnonzero(scores.reshape(-1) >= LEAST_SCORE)
    found = scores.reshape(-1)[where]
    if len(where) > most:
        where = where[np.argpartition(-found, most)[:most]]
        found = scores.reshape(-1)[where]
    rows, classes = np.divmod(where, scores.shape[1])
    return _ordered(boxes[rows], classes, found)


def overlaps(a: Array, b: Array) -> Array:
    """Return intersection over union of boxes [k, 4] and [m, 4] -> [k, m]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def suppressed(found: Detections, threshold: float = OVERLAP) -> Detections:
    """Return the boxes that no box of the same class with a larger score overlaps by more than the threshold.

    The suppression of the boxes one after the other is the fixed point of suppressing all at once.
    """
    if not len(found.scores):
        return found
    rivals = np.triu(overlaps(found.boxes, found.boxes) > threshold, 1)
    rivals &= found.classes[:, None] == found.classes[None]
    kept: npt.NDArray[np.bool_] = np.ones(len(rivals), np.bool_)
    while True:
        new = np.asarray(~rivals[kept].any(0), np.bool_)
        if (new == kept).all():
            break
        kept = new
    chosen = np.flatnonzero(kept)[:MOST_BOXES]
    return Detections(found.boxes[chosen], found.classes[chosen], found.scores[chosen])


def divergence(ours: tuple[Array, Array], theirs: tuple[Array, Array]) -> npt.NDArray[np.float64]:
    """Return the distance of raw boxes and scores from a reference's, of each image; 0: equal.

    The divergence of every score, in nats, plus 1 - overlap of every box times the reference's largest score for it:
    boxes of the background do not count. It has no threshold, so small changes give small distances.
    """
    q, p = (np.clip(side[1], _TINY, 1 - _TINY) for side in (ours, theirs))
    scores = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    a, b = ours[0], theirs[0]
    shared = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = sum(np.clip(x[..., 2:] - x[..., :2], 0, None).prod(-1) for x in (a, b)) - shared
    overlap = np.divide(shared, union, out=np.ones_like(shared), where=union > 0)
    return np.asarray(scores.sum((1, 2)) + ((1 - overlap) * theirs[1].max(-1)).sum(1), np.float64)


def agreement(found: Detections, reference: Detections) -> float:
    """Return the agreement of two sets of boxes: twice the overlap of matching boxes over the number of all boxes.

    Boxes match if they have the same class and overlap by half, best overlap first. 1: equal; 0: none matches.
    """
    total = len(found.scores) + len(reference.scores)
    if not total:
        return 1.0
    shared = overlaps(found.boxes, reference.boxes)
    shared = np.where(found.classes[:, None] == reference.classes[None], shared, 0)
    rows, columns = np.nonzero(shared >= 0.5)
    order = np.argsort(-shared[rows, columns], kind="stable")
    used_rows, used_columns, score = set(), set(), 0.0
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            score += float(shared[row, column])
    return 2 * score / total
