"""Boxes of detectors: decoding of raw heads, overlap, non-maximum suppression, agreement of two sets.

Boxes are x1 y1 x2 y2 in pixels of the model's input.

| head | outputs | scores |
|---|---|---|
| v5 | [n, boxes, 5 + classes]: centre, size, objectness, classes | objectness times class |
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
from onnxprune.execution.tasks.metrics import Outputs
from onnxprune.ir.model import Array

LEAST_SCORE = 0.001  # of boxes that count for mean average precision
OVERLAP = 0.7  # from which a box with a lower score is suppressed
MOST_BOXES = 100  # boxes of an image that COCO counts
CANDIDATES = 1000  # boxes of an image before suppression, those of the largest scores

HEADS = ("v5", "v8", "end2end", "detr", "rtdetr", "torchvision")


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
        if not all(np.isfinite(v).all() for v in values):
            raise OnnxPruneError("the model's outputs are not finite on this data", fix="check --mean and --std")
        if self.kind == "torchvision":
            return [self._torchvision(values, count)]
        if any(v.ndim != 3 or len(v) < count for v in values):
            raise OnnxPruneError(
                f"the outputs {[list(v.shape) for v in values]} are not those of {count} images of a {self.kind} head"
            )
        if self.kind in ("detr", "rtdetr") and size is None:
            raise OnnxPruneError("boxes are shares of the image, and the model has no image input")
        return [self._one([v[i] for v in values], size or (1, 1)) for i in range(count)]

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
            end = None if self.classes is None else 5 + self.classes
            scores = rows[:, 5:end] * rows[:, 4:5] if rows.shape[1] > 5 else rows[:, 4:5]
        return suppressed(_best(corners(rows[:, :4]), scores, CANDIDATES))


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
