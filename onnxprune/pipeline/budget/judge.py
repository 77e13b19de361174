"""Drop of a metric between the original and a smaller model, on samples held out of calibration."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import SHARES, Metric, MetricValue, Outcome, UndefinedMetric, kind_of
from onnxprune.execution.tasks.task import bind_task, find_metric
from onnxprune.ir.model import Array, Model
from onnxprune.options.tasks import TaskOptions

EVERY = 4  # every 4th sample is held out of calibration
LEAST = 32  # samples of which some can be held out


@dataclass(frozen=True)
class Judgement:
    """Metric of one model.

    Attributes:
        value: Value of the metric.
        error: Its standard error; None if it has none.
        drop: Loss against the original, positive if the model is worse: percentage points for a metric that is a share,
            the metric's own unit otherwise.
        drop_error: Standard error of the drop, from the differences of the samples, or where the metric is no mean of
            samples (mAP, mIoU) by the jackknife over blocks of them; None if it is not known.
    """

    value: float
    error: float | None
    drop: float
    drop_error: float | None


def held_out(data: Data) -> tuple[Data, Data]:
    """Return (samples for calibration, samples for evaluation): every 4th sample of each class is held out.

    Raises:
        OnnxPruneError: There are fewer than 32 samples.
    """
    if len(data) < LEAST:
        raise OnnxPruneError(
            f"a metric on held-out samples needs at least {LEAST} samples; there are {len(data)}",
            fix="use more data, or give samples for the metric alone (--val-data, in recipes --test-data)",
        )
    rank = np.arange(len(data))
    if isinstance(data.y, np.ndarray):
        for label in np.unique(data.y):
            own = np.flatnonzero(data.y == label)
            rank[own] = np.arange(len(own)) + int(label)  # classes smaller than 4 are held out in turn
    out = rank % EVERY == EVERY - 1
    return data.take(np.flatnonzero(~out)), data.take(np.flatnonzero(out))


class Judge:
    """Evaluation of models against the original on the same samples.

    Args:
        original: Original model.
        calibration: Samples for the evaluation, and how to run them.
        options: Task and metric. Default: guessed from the model and the targets; without targets the task's agreement
            with the original.

    Raises:
        OnnxPruneError: Task or metric are unknown or do not fit, the metric needs targets that the data lacks, or it is
            not finite for the original.
    """

    def __init__(self, original: Model, calibration: Calibration, options: TaskOptions | None = None) -> None:
        self.calibration = calibration
        c = calibration
        feed, targets = c.feeds(original)[0]
        self.metric, self._bound = _metric(original, options or TaskOptions(), kind_of(targets), feed)
        names = [t.name for t in original.graph.outputs]
        self._reads = self.metric.outputs_read(names)
        self._reference = Session(original, device=c.device, threads=c.threads)
        self._records, found = self._evaluate(original)
        self._left_out: Array | None = None
        self._check_finite(found.value, "original")
        self.original = Judgement(found.value, found.error, 0.0, 0.0)

    @property
    def unit(self) -> str:
        """Unit of a drop: "points" for a share, else the metric's name."""
        return "points" if self.metric.name in SHARES else self.metric.name

    def read(self, model: Model) -> Judgement:
        """Return the metric of a model and its drop.

        Raises:
            UndefinedMetric: The metric is not finite.
            OnnxPruneError: Outputs that the metric does not accept.
        """
        records, found = self._evaluate(model)
        self._check_finite(found.value, "smaller model")
        scale = (100.0 if self.unit == "points" else 1.0) * (1.0 if self.metric.higher_is_better else -1.0)
        error = self._error_of_difference(records)
        drop_error = None if error is None else abs(scale) * error
        return Judgement(found.value, found.error, scale * (self.original.value - found.value), drop_error)

    def _error_of_difference(self, records: Array | list[Any] | None) -> float | None:
        """Return the standard error of the difference from the original; None if it is not known."""
        known = self._records
        if isinstance(records, np.ndarray) and isinstance(known, np.ndarray):
            return float(np.std(known - records)) / sqrt(len(records))
        if not isinstance(records, list) or not isinstance(known, list):
            return None
        if self._left_out is None:
            self._left_out = self.metric.without_blocks(known)
        theirs, ours = self._left_out, self.metric.without_blocks(records)
        if not len(ours) or len(ours) != len(theirs):
            return None
        return float(np.sqrt((len(ours) - 1) * np.var(theirs - ours)))

    def _check_finite(self, value: float, what: str) -> None:
        if not np.isfinite(value):
            raise UndefinedMetric(
                f"the metric {self.metric.name!r} is {value} for the {what}",
                fix="check the data, or choose another --metric",
            )

    def _evaluate(self, model: Model) -> tuple[Array | list[Any] | None, MetricValue]:
        """Return the numbers or records of the samples (None for a user's function), and the value."""
        c, metric = self.calibration, self.metric
        session, feeds = Session(model, device=c.device, threads=c.threads), c.feeds(model)
        kept: list[Any] = []
        for i in range(len(feeds)):
            feed, targets = feeds[i]
            theirs = self._reference.run(feed, self._reads) if metric.wants_reference else ()
            size = self._bound.size(feed) if self._bound is not None else None
            real = feeds.real(i)
            outcome = Outcome(session.run(feed, self._reads), targets, theirs, real, size, feeds.fixed or real)
            kept.append(metric.reduced([outcome]))
        found = metric.joined(kept)
        if metric.samples is not None:
            return np.concatenate(kept), found
        if metric.collect is None:
            return None, found
        records = [record for batch in kept for record in batch]
        return (np.array(records, np.float64) if metric.combine is None else records), found


def _metric(model: Model, options: TaskOptions, targets: str, feed: Any) -> tuple[Metric, Any]:
    """Return the metric, and the task that it belongs to if any."""
    if options.metric is not None or targets != "none":
        return find_metric(model, options, targets=targets, feed=feed)
    bound = bind_task(model, options, targets=targets, feed=feed)
    shares = [m for m in bound.distances if m.name in SHARES]
    return (shares or bound.distances)[0], bound
