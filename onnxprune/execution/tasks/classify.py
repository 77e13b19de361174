"""Classification: accuracy and loss against labels, divergence from the original's scores without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import ClassVar

import numpy as np

from onnxprune._utils.output.formatting import percent
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import METRICS, Metric, MetricValue, Outcome, numbers, scores_of
from onnxprune.execution.tasks.task import TASKS, BoundTask, ModelView, Task, Watch
from onnxprune.ir.model import Array
from onnxprune.options.tasks import TaskOptions

_ENOUGH = 30  # samples from which a figure is judged implausible


def agreement_of_classes(outcome: Outcome) -> Sequence[float]:
    """Return 1 for each sample whose largest score is that of the original's largest."""
    ours, theirs = (scores_of(side[0], len(side[0])).argmax(1) for side in (outcome.outputs, outcome.reference))
    return numbers((ours == theirs)[: outcome.count])


def chance_warning(hits: int, samples: int, classes: int) -> str:
    """Return a line if so many hits are no better than guessing; "" otherwise, or with too few samples to tell."""
    if samples < _ENOUGH or classes < 2:
        return ""
    from scipy.special import bdtrc  # slow import, rarely needed

    chance = 1 / classes
    # Probability of at least as many hits by guessing.
    if hits > 0 and bdtrc(hits - 1, samples, chance) < 0.05:
        return ""
    return (
        f"top1 {percent(hits / samples)} is no better than guessing among {classes} classes: check the labels and the "
        "preprocessing (--mean, --std, --layout), unless the model lost its accuracy"
    )


class ClassificationWatch(Watch):
    """Looks for accuracy at chance, shifted labels and a huge loss."""

    def __init__(self) -> None:
        self.classes = 0
        self.predictions: list[Array] = []
        self.labels: list[Array] = []

    def add(self, outcome: Outcome) -> None:
        if not isinstance(outcome.targets, np.ndarray):
            return
        scores = scores_of(outcome.outputs[0], len(outcome.outputs[0]))[: outcome.count]
        self.classes = scores.shape[1]
        self.predictions.append(scores.argmax(1))
        self.labels.append(np.asarray(outcome.targets))

    def warnings(self, values: Mapping[str, MetricValue]) -> list[str]:
        if not self.labels:
            return []
        predicted, labels = np.concatenate(self.predictions), np.concatenate(self.labels)
        hits, samples = int((predicted == labels).sum()), len(labels)
        found = []
        low = chance_warning(hits, samples, self.classes)
        shifted = self._shifted(predicted, labels, hits)
        if shifted or low:
            found.append(shifted or low)
        loss = values.get("loss")
        if loss is not None and self.classes > 1 and samples >= _ENOUGH and loss.value > 3 * log(self.classes) + 2:
            found.append(
                f"the loss {loss.value:.3g} is far above that of guessing ({log(self.classes):.3g}): the model is sure "
                "of wrong classes; check the labels and the preprocessing"
            )
        return found

    def _shifted(self, predicted: Array, labels: Array, hits: int) -> str:
        """Return a line if the labels fit better when all are moved by a constant.

        Raises:
            OnnxPruneError: They fit half of the samples when moved, and fewer than guesses would as they are.
        """
        samples = len(labels)
        if samples < _ENOUGH or len(np.unique(labels)) < 3:
            return ""
        shifts, counts = np.unique(predicted - labels, return_counts=True)
        best = int(counts.argmax())
        shift, fits = int(shifts[best]), int(counts[best])
        if not shift or fits < 2 * hits + samples // 10:
            return ""
        moved = f"{abs(shift)} {'larger' if shift > 0 else 'smaller'}"
        what = (
            f"the labels are off by {abs(shift)}: top1 is {percent(hits / samples)}, and would be "
            f"{percent(fits / samples)} if every label were {moved}"
        )
        fix = (
            "number the labels as the model's outputs (class folders are numbered in alphabetical order unless a class "
            "map names them)"
        )
        if hits * self.classes <= samples and fits >= samples / 2:
            raise OnnxPruneError(what, fix=fix)
        return f"{what}; {fix}"


def is_classifier(view: ModelView) -> bool:
    """Return whether the first output is one score for each of several classes.

    Outputs of two axes and other sizes beside it are not those of a classifier, such as landmarks beside boxes.
    """
    first = view.outputs[0]
    if first.rank < 2 or (first.size(1) or 0) < 2 or first.dtype.kind not in "fV":
        return False
    others = {t.size(1) for t in view.outputs[1:] if t.rank == 2}
    return all(n == 1 for n in first.shape[2:]) and others <= {first.size(1)}


class Classify(Task):
    """One score for each class."""

    name: ClassVar[str] = "classify"
    title: ClassVar[str] = "one score for each class"
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    metrics: ClassVar[tuple[str, ...]] = ("top1", "top5", "loss", "kl", "agreement", "cosine", "mse")
    precedence: ClassVar[int] = 4

    def guess(self, view: ModelView) -> str | None:
        if view.metadata.get("task") == "classify":
            return "Ultralytics metadata"
        return f"one output {_shown(view.outputs[0].shape)}" if is_classifier(view) else None

    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        first = (view.outputs[0].name,)
        return BoundTask(
            self.name,
            "one score for each class",
            (METRICS["top1"], METRICS["top5"], METRICS["loss"]),
            (
                METRICS["kl"],
                Metric("agreement", True, "reference", collect=agreement_of_classes, reads=first),
                METRICS["cosine"],
                METRICS["mse"],
            ),
            view,
            watch=ClassificationWatch,
        )


def _shown(shape: tuple[int | str | None, ...]) -> str:
    return f"[{', '.join(['n', *(str(n if n is not None else '?') for n in shape[1:])])}]"


TASKS.register(Classify())
