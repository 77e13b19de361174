"""Segmentation: mean intersection over union and pixel accuracy, per-pixel divergence without targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks._jackknife import of_sums
from onnxprune.execution.tasks._resize import resized
from onnxprune.execution.tasks.metrics import (
    METRICS,
    Metric,
    MetricValue,
    Outcome,
    check_finite,
    log_probabilities,
    numbers,
)
from onnxprune.execution.tasks.task import TASKS, BoundTask, ModelView, Task, Tensor, Watch
from onnxprune.ir.model import Array
from onnxprune.options.tasks import TaskOptions

IGNORE = 255  # in a mask: the pixel does not count
_ENOUGH = 8  # images from which a figure is judged implausible


@dataclass(frozen=True)
class Maps:
    """Output of a segmentation model.

    Attributes:
        axis: Axis of the classes; None: the output holds the class of each pixel.
        classes: Number of classes; None: dynamic. One logit of the foreground makes two classes.
        probabilities: Whether a single score is a probability, not a logit.
    """

    axis: int | None
    classes: int | None
    probabilities: bool = False

    def scores(self, output: Array, count: int) -> Array:
        """Return logits or probabilities [n, classes, h, w]; class maps are returned as [n, h, w].

        Raises:
            OnnxPruneError: The output is not finite.
        """
        values = np.asarray(output)[:count]
        if values.dtype.kind in "fV":
            values = values.astype(np.float32 if values.dtype.itemsize < 8 else np.float64)
            check_finite(values)
        if self.axis is None:
            return values.reshape(len(values), *values.shape[-2:])
        values = np.moveaxis(values, self.axis, 1)
        if values.shape[1] == 1:
            values = np.concatenate([(1 - values) if self.probabilities else -values / 2,
                                     values if self.probabilities else values / 2], 1)  # fmt: skip
        return values

    def labels(self, scores: Array, size: tuple[int, int] | None = None) -> npt.NDArray[np.int64]:
        """Return the class of each pixel [n, h, w], of maps resized to a size."""
        if self.axis is None:
            whole = np.rint(scores).astype(np.int64)
            return whole if size is None else resized(whole, size)
        return np.asarray((scores if size is None else resized(scores, size)).argmax(1), np.int64)


@dataclass(frozen=True)
class _Counts:
    """Records of a batch: for each image intersection, predicted and target pixels of each class."""

    maps: Maps

    def __call__(self, outcome: Outcome) -> Sequence[Array]:
        assert outcome.targets is not None
        scores = self.maps.scores(outcome.outputs[0], outcome.count)
        classes = self.maps.classes or (scores.shape[1] if scores.ndim == 4 else 256)
        classes = 2 if classes == 1 else classes
        return [self._of(scores[i : i + 1], np.asarray(t), classes) for i, t in enumerate(outcome.targets)]

    def _of(self, scores: Array, mask: Array, classes: int) -> Array:
        valid = mask != IGNORE
        wanted = mask[valid].astype(np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < classes:
            worst = int(wanted.max() if wanted.max() >= classes else wanted.min())
            raise OnnxPruneError(
                f"a mask has the class {worst}, the model {classes} classes",
                fix=f"number the classes from 0; {IGNORE} marks pixels that do not count",
            )
        found = self.maps.labels(scores, mask.shape)[0][valid]
        found = np.where((found >= 0) & (found < classes), found, classes)
        counts = [np.bincount(v, minlength=classes + 1)[:classes] for v in (found[found == wanted], found, wanted)]
        return np.stack(counts)

    def agreement(self, outcome: Outcome) -> Sequence[float]:
        """Return the share of the pixels of each image that have the original's class."""
        ours, theirs = (
            self.maps.labels(self.maps.scores(side[0], outcome.count)) for side in (outcome.outputs, outcome.reference)
        )
        return numbers((ours == theirs).mean((1, 2)))

    def divergence(self, outcome: Outcome) -> Sequence[float]:
        """Return the mean divergence of the classes of a pixel from the original's, for each image."""
        q, p = (
            log_probabilities(self.maps.scores(side[0], outcome.count)) for side in (outcome.outputs, outcome.reference)
        )
        return numbers((np.exp(p) * (p - q)).sum(1).mean((1, 2)))


def mean_iou(records: Sequence[Array]) -> MetricValue:
    """Return the mean over the classes that occur of intersection over union, both summed over all images."""

    def value(sums: Array) -> Array:
        union = sums[:, 1] + sums[:, 2] - sums[:, 0]
        each = np.divide(sums[:, 0], union, out=np.zeros_like(union), where=union > 0)
        return np.asarray(each.sum(1) / np.maximum((union > 0).sum(1), 1))

    return of_sums(records, value)


def pixel_accuracy(records: Sequence[Array]) -> MetricValue:
    """Return the share of all pixels that have the class of the mask."""
    return of_sums(records, lambda sums: np.asarray(sums[:, 0].sum(1) / np.maximum(sums[:, 2].sum(1), 1)))


class SegmentationWatch(Watch):
    """Looks for masks off by one and models that give every pixel one class."""

    def __init__(self, maps: Maps) -> None:
        self.maps, self.images = maps, 0
        self.hits = dict.fromkeys((0, 1, -1), 0)
        self.pixels = 0
        self.classes: set[int] = set()
        self.wanted: set[int] = set()

    def add(self, outcome: Outcome) -> None:
        scores = self.maps.scores(outcome.outputs[0], outcome.count)
        for i, target in enumerate(outcome.targets if outcome.targets is not None else ()):
            mask = np.asarray(target)
            valid = mask != IGNORE
            found = self.maps.labels(scores[i : i + 1], mask.shape)[0][valid]
            wanted = mask[valid].astype(np.int64)
            self.classes |= set(np.unique(found).tolist())
            self.wanted |= set(np.unique(wanted).tolist())
            self.pixels += len(wanted)
            self.images += 1
            for shift in self.hits:
                self.hits[shift] += int((found == wanted + shift).sum())

    def warnings(self, values: Mapping[str, MetricValue]) -> list[str]:
        if self.images < _ENOUGH or not self.pixels:
            return []
        best = max(self.hits, key=lambda s: self.hits[s])
        share = {s: n / self.pixels for s, n in self.hits.items()}
        if best and share[best] > 2 * share[0] + 0.1:
            more = "larger" if best > 0 else "smaller"
            return [
                f"the classes of the masks look off by one: {share[best]:.1%} of the pixels fit if every class were "
                f"one {more}, {share[0]:.1%} as they are ({IGNORE} marks pixels that do not count)"
            ]
        if len(self.classes) == 1 and len(self.wanted) > 1:
            return [f"the model gives every pixel the class {min(self.classes)}: check the preprocessing"]
        return []


def class_axis(view: ModelView, output: Tensor) -> int | None:
    """Return the axis of the classes of an output of four axes, by the layout of the image input."""
    return 3 if view.image is not None and view.image[1] == "nhwc" else 1


class Segment(Task):
    """Class of every pixel."""

    name: ClassVar[str] = "segment"
    title: ClassVar[str] = "scores of classes for every pixel"
    targets: ClassVar[tuple[str, ...]] = ("masks",)
    metrics: ClassVar[tuple[str, ...]] = ("miou", "pixel_accuracy", "agreement", "kl", "mse")
    precedence: ClassVar[int] = 2

    def guess(self, view: ModelView) -> str | None:
        first = view.outputs[0]
        if view.image is None:
            return None
        if first.rank == 3 and first.dtype.kind in "iu" and _spatial(view, first.shape[1:]):
            return "classes of pixels"
        if first.rank != 4 or first.dtype.kind not in "fV":
            return None
        axis = class_axis(view, first)
        height_width = first.shape[2:] if axis == 1 else first.shape[1:3]
        if not _spatial(view, height_width):
            return None
        classes = first.size(axis or 1)
        if classes is not None and (classes > 4 or first.operator in ("Softmax", "LogSoftmax", "ArgMax")):
            return f"one output [n, {classes} classes, height, width]"
        if classes == 2:
            return "one output [n, 2 classes, height, width]"
        return "one probability for each pixel" if classes == 1 and first.operator == "Sigmoid" else None

    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        first = view.outputs[0]
        if first.rank not in (3, 4):
            raise OnnxPruneError(
                f"the first output {first.name} {list(first.shape)} is not a map of classes",
                fix="scores [n, classes, height, width], or classes [n, height, width]",
            )
        axis = class_axis(view, first) if first.rank == 4 and first.dtype.kind in "fV" else None
        maps = Maps(axis, first.size(axis) if axis is not None else None, first.operator == "Sigmoid")
        counts, reads = _Counts(maps), (first.name,)
        agreement = Metric("agreement", True, "reference", collect=counts.agreement, reads=reads)
        divergence = Metric("kl", False, "reference", collect=counts.divergence, reads=reads)
        return BoundTask(
            self.name,
            "classes of pixels",
            (
                Metric("miou", True, "labels", collect=counts, combine=mean_iou, reads=reads),
                Metric("pixel_accuracy", True, "labels", collect=counts, combine=pixel_accuracy, reads=reads),
            ),
            (agreement, divergence, METRICS["mse"]) if axis is not None else (agreement,),
            view,
            watch=lambda: SegmentationWatch(maps),
        )


def _spatial(view: ModelView, size: Sequence[int | str | None]) -> bool:
    """Return whether a size is that of a map: dynamic, or a share of the image's."""
    assert view.image is not None
    whole = [view.image[0].size(axis) for axis in view.image_axes]
    known = [(n, w) for n, w in zip(size, whole, strict=True) if isinstance(n, int) and n > 0]
    return all(n > 1 and (w is None or (w % n == 0 and w // n <= 8)) for n, w in known)


TASKS.register(Segment())
