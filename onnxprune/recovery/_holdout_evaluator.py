"""Comparison of pruned models with their original on samples held out of a recovery."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.graph_segments import Segments
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.execution.tasks.metrics import SHARES, Metric, kind_of
from onnxprune.execution.tasks.output_distance import OutputDistance, detection_divergence
from onnxprune.execution.tasks.task import bind_task
from onnxprune.ir.model import Model
from onnxprune.options.tasks import TaskOptions

MEMORY = 2**28  # bytes of the original's outputs on held-out samples
_RUN = 2**25  # bytes of the largest activation of one run


@dataclass(frozen=True)
class RecoveryStage:
    """Result of one stage.

    Attributes:
        name: "as cut" for the pruned model, or the name of the stage.
        distance: Distance of the outputs from the original's on held-out samples (`OutputDistance`); inf if one is not
            finite.
        top1: Accuracy on held-out samples, if that is the metric; else None.
        seconds: Duration.
        kept: Whether the result was kept; a stage without improvement is undone.
        note: Remark for the user, such as the number of solved layers.
        value: Value of the metric on held-out samples; None without one, or with outputs that are not finite.
    """

    name: str
    distance: float
    top1: float | None
    seconds: float
    kept: bool
    note: str = ""
    value: float | None = None


class HoldoutEvaluator:
    """Comparison of models with the original on held-out samples."""

    def __init__(self, analysis: Analysis, calibration: Calibration, task: TaskOptions, memory: int) -> None:
        self.original = analysis.source
        self._known: tuple[float | None, ...] = ()
        seen = analysis.witness
        outputs = [t.name for t in analysis.source.graph.outputs]
        self.names = [n for n in outputs if n in seen.shapes and seen.dtypes.get(n, np.dtype(np.float32)).kind in "fV"]
        if detection := detection_divergence(analysis.source, outputs):  # boxes have labels of integers
            self.names += [n for n in detection.reads or () if n not in self.names]
        if not self.names:
            raise OnnxPruneError(
                "the model has no output of floats whose size is known, so recovery cannot be evaluated",
                fix="use a model with its scores as an output",
            )
        batch = (seen.shapes.get(analysis.source.graph.inputs[0].name) or (1,))[0]
        each = sum(prod(seen.shapes.get(n, ())) * 8 for n in self.names) // max(1, batch)
        self.calibration = calibration.spread(max(1, memory // max(1, each)))
        reference = list(self._outputs(analysis.source))
        if not all(np.isfinite(v).all() for values in reference for v in values.values()):
            raise OnnxPruneError(
                "the original's outputs are not finite on this data",
                fix="check the data and its scaling (--mean, --std); a float16 model may overflow",
            )
        self.measure = OutputDistance(self.names, reference, analysis.source)
        self.task, found, self.decides = self._task(task)
        self.metric = found.name if found is not None else ""
        self.higher = found is None or found.higher_is_better

    def _task(self, options: TaskOptions) -> tuple[TaskOptions, Metric | None, bool]:
        """Return the task with its metric, the metric, and whether it decides about stages.

        Classifiers report none without labels, unless it is named: their distance from the original is shown anyway.
        """
        c = self.calibration
        feed, targets = replace(c, batch=1).feeds(self.original)[0]
        try:
            bound = bind_task(self.original, options, targets=kind_of(targets), feed=feed)
        except OnnxPruneError:
            if options != TaskOptions():
                raise
            return options, None, False  # targets of another kind are not needed
        if options == TaskOptions() and (
            (bound.name == "classify" and (targets is None or not self.measure.classifier))
            or (bound.name == "regress" and targets is None)
        ):
            return options, None, False
        metric = bound.metric(options.metric, labelled=targets is not None)
        decides = options.metric is not None or (targets is not None and metric.needs == "labels")
        own = TaskOptions(task=bound.name, metric=metric.name, alphabet=options.alphabet, blank=options.blank)
        return own, metric, decides

    def _outputs(self, model: Model) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield outputs batch by batch, without the copies that pad the last one."""
        feeds = self.calibration.feeds(model)
        session = Session(model, device=self.calibration.device, threads=self.calibration.threads)
        for i in range(len(feeds)):
            values = dict(zip(self.names, session.run(feeds[i][0], self.names), strict=True))
            length, real = feeds.size(i), feeds.real(i)
            yield {n: v[: len(v) // length * real] if v.ndim and real < length else v for n, v in values.items()}

    def distance(self, model: Model) -> float:
        """Return the distance from the original; infinite if an output is not finite."""
        found = []
        for values in self._outputs(model):
            if not all(np.isfinite(v).all() for v in values.values()):
                return float("inf")
            found.append(values)
        return self.measure(found)

    def value(self, model: Model) -> float | None:
        """Return the value of the metric; None if there is none."""
        if not self.metric:
            return None
        c = self.calibration
        return evaluate(
            model, c.data, preprocess=c.preprocess, task=self.task, reference=self.original, device=c.device,
            threads=c.threads, check=False,
        ).value  # fmt: skip

    def value_of_original(self) -> float | None:
        """Return the value of the metric for the original; None if there is none."""
        if not self._known:
            self._known = (self.value(self.original),)
        return self._known[0]

    def stage(self, name: str, model: Model, seconds: float, note: str = "") -> RecoveryStage:
        """Return the result of a stage, kept."""
        distance = self.distance(model)
        value = self.value(model) if np.isfinite(distance) else None
        return RecoveryStage(name, distance, value if self.metric == "top1" else None, seconds, True, note, value)

    def improves(self, new: RecoveryStage, best: RecoveryStage) -> bool:
        """Return whether a stage is better than the best one so far.

        The metric decides if it differs, and if it is a share, by more than its standard error.
        """
        if not np.isfinite(new.distance):
            return False
        if not self.decides or best.value is None or new.value is None:
            return new.distance < best.distance
        share = min(max(best.value, 0.0), 1.0) if self.metric in SHARES else 0.0
        if abs(new.value - best.value) <= sqrt(share * (1 - share) / max(1, len(self.calibration))):
            return new.distance < best.distance
        return (new.value > best.value) == self.higher


def bounded_batch(analysis: Analysis, calibration: Calibration) -> Calibration:
    """Reduce the batch if activations are large: the cursors of both models hold several of them."""
    segments = Segments(analysis.model, analysis.witness)
    segments.set_sizes(replace(calibration, batch=1).feeds(analysis.model))
    each = segments.largest()
    return replace(calibration, batch=max(1, min(calibration.batch, _RUN // max(1, each))))
