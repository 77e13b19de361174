"""Drop of a metric between the original and a smaller model, on samples held out of calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.metrics import Labels, Metric, Outputs, Samples, get_metric, scores_of
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model

EVERY = 4  # every 4th sample is held out of calibration
_SHARES = ("top1", "top5", "agreement")  # metrics that are shares of the samples, given in points


@dataclass(frozen=True)
class Reading:
    """Metric of one model.

    Attributes:
        value: Value of the metric.
        error: Its standard error; None if it has none.
        drop: Loss against the original, positive if the model is worse: percentage points for a metric that is a share
            of the samples, the metric's own unit otherwise.
        drop_error: Standard error of the drop, from the differences of the samples; None if it is not known.
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
    if len(data) < 32:
        raise OnnxPruneError(
            f"a budget needs at least 32 samples; there are {len(data)}",
            fix="use more data, or give samples for the evaluation with --val-data",
        )
    rank = np.arange(len(data))
    if data.y is not None:
        for label in np.unique(data.y):
            own = np.flatnonzero(data.y == label)
            rank[own] = np.arange(len(own)) + int(label)  # classes smaller than 4 are held out in turn
    out = rank % EVERY == EVERY - 1
    parts = [Data(data.x[w], None if data.y is None else data.y[w], data.name) for w in (~out, out)]
    return parts[0], parts[1]


class Judge:
    """Evaluation of models against the original on the same samples.

    Args:
        original: Original model.
        calibration: Samples for the evaluation, and how to run them.
        metric: Name of a metric, or `package.module:function`; None: top1 with labels, else agreement with the
            original's largest outputs.

    Raises:
        OnnxPruneError: The metric is unknown, or the data has no labels that it needs.
    """

    def __init__(self, original: Model, calibration: Calibration, metric: str | None = None) -> None:
        self.calibration = calibration
        self.metric = _metric(metric, calibration.data)
        self._reference = self._outputs(original)
        self._samples, value, error = self._evaluate(self._reference)
        self.original = Reading(value, error, 0.0, 0.0)

    @property
    def unit(self) -> str:
        """Unit of a drop: "points" or the metric's name."""
        return "points" if self.metric.name in _SHARES else self.metric.name

    def read(self, model: Model) -> Reading:
        """Return the metric of a model and its drop.

        Raises:
            OnnxPruneError: Outputs that are not finite, or that the metric does not accept.
        """
        samples, value, error = self._evaluate(self._outputs(model))
        scale = (100.0 if self.unit == "points" else 1.0) * (1.0 if self.metric.higher_is_better else -1.0)
        drop_error = None
        if samples is not None and self._samples is not None:
            drop_error = abs(scale) * float(np.std(self._samples - samples)) / sqrt(len(samples))
        return Reading(value, error, scale * (self.original.value - value), drop_error)

    def _outputs(self, model: Model) -> list[Array]:
        c = self.calibration
        session, feeds = Session(model, device=c.device, threads=c.threads), c.feeds(model)
        found: list[list[Array]] = []
        for i in range(len(feeds)):
            length, real = feeds.fixed or feeds.real(i), feeds.real(i)
            values = session.run(feeds[i][0])
            found.append([v[: len(v) // length * real] if v.ndim and real < length else v for v in values])
        return [np.concatenate(column) for column in zip(*found, strict=True)]

    def _evaluate(self, outputs: Sequence[Array]) -> tuple[Samples | None, float, float | None]:
        labels = self.calibration.data.y
        if self.metric.samples is None:
            found = self.metric.of_all(outputs, labels, self._reference)
            return None, found.value, found.error
        samples = self.metric.samples(outputs, labels, self._reference)
        mean = self.metric.mean(samples)
        return samples, mean.value, mean.error


def _metric(name: str | None, data: Data) -> Metric:
    if name == "agreement" or (name is None and data.y is None):
        return Metric("agreement", True, "reference", _agreement)
    return get_metric(name or "top1")


def _agreement(outputs: Outputs, labels: Labels, reference: Outputs) -> Samples:
    """Return 1.0 where the largest output is that of the original, [n]."""
    ours, theirs = (scores_of(o[0], len(o[0])).argmax(1) for o in (outputs, reference))
    return np.asarray(ours == theirs, np.float64)
