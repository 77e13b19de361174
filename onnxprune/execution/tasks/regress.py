"""Regression: squared and absolute error against numbers, squared error from the original's outputs without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks._jackknife import of_sums
from onnxprune.execution.tasks.metrics import METRICS, Metric, MetricValue, Outcome, check_finite, numbers
from onnxprune.execution.tasks.task import TASKS, BoundTask, ModelView, Task, Watch
from onnxprune.ir.model import Array
from onnxprune.options.tasks import TaskOptions

_ENOUGH = 20  # samples from which a figure is judged implausible


def pairs(outcome: Outcome) -> tuple[Array, Array]:
    """Return outputs and targets as float64 [n, values].

    Raises:
        OnnxPruneError: They do not have the same number of values, or an output is not finite.
    """
    assert outcome.targets is not None
    ours = np.asarray(outcome.outputs[0], np.float64)[: outcome.count].reshape(outcome.count, -1)
    theirs = np.stack([np.asarray(t, np.float64).reshape(-1) for t in outcome.targets])
    if ours.shape != theirs.shape:
        raise OnnxPruneError(
            f"the model returns {ours.shape[1]} numbers for each sample, the targets have {theirs.shape[1]}",
            fix="check the targets, or choose another --task",
        )
    check_finite(ours)
    return ours, theirs


def squares(outcome: Outcome) -> Sequence[float]:
    """Return the mean squared error of each sample."""
    ours, theirs = pairs(outcome)
    return numbers(np.square(ours - theirs).mean(1))


def gaps(outcome: Outcome) -> Sequence[float]:
    """Return the mean absolute error of each sample."""
    ours, theirs = pairs(outcome)
    return numbers(np.abs(ours - theirs).mean(1))


def moments(outcome: Outcome) -> Sequence[Array]:
    """Return squared errors, targets, squared targets and a one for each value of each sample."""
    ours, theirs = pairs(outcome)
    return list(np.stack([np.square(ours - theirs), theirs, np.square(theirs), np.ones_like(theirs)], 1))


def explained(records: Sequence[Array]) -> MetricValue:
    """Return r2: 1 - squared error / variance of the targets, both summed over the values of a sample.

    If all targets are equal it is 1 without an error and 0 otherwise, as in scikit-learn.
    """

    def value(sums: Array) -> Array:
        error, total, squared, count = (sums[:, i] for i in range(4))
        spread = (squared - np.square(total) / np.maximum(count, 1)).sum(1)
        wrong = error.sum(1)
        share = np.divide(wrong, spread, out=np.asarray(wrong > 0, np.float64), where=spread > 0)
        return np.asarray(1 - share)

    return of_sums(records, value)


@dataclass
class RegressionWatch(Watch):
    """Looks for predictions that are worse than a constant."""

    samples: int = 0

    def add(self, outcome: Outcome) -> None:
        self.samples += outcome.count

    def warnings(self, values: Mapping[str, MetricValue]) -> list[str]:
        r2 = values.get("r2")
        if r2 is None or self.samples < _ENOUGH or r2.value > 0:
            return []
        return [
            f"r2 {r2.value:.3g}: the mean of the targets would be a better prediction; check the scale of the targets "
            "and the preprocessing"
        ]


class Regress(Task):
    """Numbers."""

    name: ClassVar[str] = "regress"
    title: ClassVar[str] = "numbers"
    targets: ClassVar[tuple[str, ...]] = ("values", "labels")
    metrics: ClassVar[tuple[str, ...]] = ("mse", "mae", "r2", "cosine")
    precedence: ClassVar[int] = 5

    def guess(self, view: ModelView) -> str | None:
        return "no other task fits the outputs"

    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        reads = (view.outputs[0].name,)
        return BoundTask(
            self.name,
            "numbers",
            (
                Metric("mse", False, "labels", collect=squares, reads=reads),
                Metric("mae", False, "labels", collect=gaps, reads=reads),
                Metric("r2", True, "labels", collect=moments, combine=explained, reads=reads),
            ),
            (METRICS["mse"], METRICS["cosine"]),
            view,
            watch=RegressionWatch,
        )


TASKS.register(Regress())
