"""Evaluation of a model on data, in onnxruntime: the metrics of its task, with standard errors and warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune._utils.output.formatting import counted, decimal, percent
from onnxprune._utils.output.html import html_table
from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import SHARES, Metric, MetricValue, Outcome, Targets, get_metric, kind_of
from onnxprune.execution.tasks.saturation import saturation_warning
from onnxprune.execution.tasks.task import BoundTask, bind_task
from onnxprune.ir.model import Array, Model
from onnxprune.options.tasks import TaskOptions

_TITLES = {"map": "mAP", "map50": "mAP50", "miou": "mIoU", "kl": "KL"}
_SAME = 1e-6  # relative difference of outputs that count as equal


def metric_title(name: str) -> str:
    """Return the name of a metric as tables show it."""
    return _TITLES.get(name, name.replace("_", " ") if ":" not in name else name)


def metric_text(name: str, value: float) -> str:
    """Return a value of a metric as tables show it: shares in percent."""
    return percent(value) if name in SHARES else decimal(value)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Values of the metrics of a task.

    Attributes:
        task: Name of the task.
        reason: Reason for which the task was chosen.
        metrics: Value and standard error of each metric, the main one first.
        samples: Number of samples.
        provider: Execution provider of onnxruntime.
        warnings: Implausible results, each with the probable reason, and properties of the machine.
    """

    task: str
    metrics: Mapping[str, MetricValue]
    samples: int
    provider: str
    warnings: tuple[str, ...] = ()
    reason: str = field(default="", compare=False)

    def __repr__(self) -> str:
        figures = ", ".join(self._figure(name) for name in self.metrics)
        return f"<Evaluation: {figures}, {counted(self.samples, 'sample')}, {self.provider}>"

    def _figure(self, name: str) -> str:
        found = self.metrics[name]
        error = f" +- {metric_text(name, found.error)}" if found.error is not None and name != "loss" else ""
        return f"{metric_title(name)} {metric_text(name, found.value)}{error}"

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        note = f"{counted(self.samples, 'sample')}, {self.provider}. {' '.join(self.warnings)}".strip(". ")
        return html_table(self.task, ["metric", "value", "+-"], self.rows(), text=(0,), note=note)

    def rows(self) -> list[list[str]]:
        """Return the rows of a table: metric, value, standard error."""
        return [
            [metric_title(n), metric_text(n, v.value), "" if v.error is None else metric_text(n, v.error)]
            for n, v in self.metrics.items()
        ]

    @property
    def main(self) -> str:
        """Name of the main metric."""
        return next(iter(self.metrics))

    @property
    def value(self) -> float:
        """Value of the main metric."""
        return self.metrics[self.main].value

    @property
    def images(self) -> int:
        """Number of samples."""
        return self.samples

    @property
    def warning(self) -> str:
        """The warnings in one line; "" for none."""
        return "; ".join(self.warnings)

    @property
    def top1(self) -> float:
        """Share of samples whose largest output is their label."""
        return self._of("top1").value

    @property
    def top1_error(self) -> float:
        """Standard error of `top1`."""
        return self._of("top1").error or 0.0

    @property
    def top5(self) -> float:
        """Share of samples whose label is among the five largest outputs."""
        return self._of("top5").value

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats; outputs that are probabilities are used as such."""
        return self._of("loss").value

    def _of(self, name: str) -> MetricValue:
        found = self.metrics.get(name)
        if found is None:
            raise OnnxPruneError(f"{name} was not measured for the task {self.task}; {', '.join(self.metrics)} were")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object: each metric, and its error with the suffix _error."""
        out: dict[str, Any] = {"task": self.task, "reason": self.reason}
        for name, found in self.metrics.items():
            out[name] = found.value
            if found.error is not None:
                out[f"{name}_error"] = found.error
        return {
            **out, "metric": self.main, "samples": self.samples, "images": self.samples, "provider": self.provider,
            "warning": self.warning, "warnings": list(self.warnings),
        }  # fmt: skip


Accuracy = Evaluation
"""Name of `Evaluation` in earlier versions."""


class _Constancy:
    """Watches whether outputs change from sample to sample."""

    def __init__(self) -> None:
        self.first: list[Array] | None = None
        self.inputs: list[Array] | None = None
        self.changed = self.inputs_changed = False
        self.samples = 0

    def add(self, feed: Mapping[str, Array], outputs: Sequence[Array], count: int) -> None:
        """Compare the samples of a batch with the first sample."""
        self.samples += count
        if self.changed and self.inputs_changed:
            return
        if any(not o.ndim or len(o) < count or o.dtype.kind not in "fiub" for o in outputs):
            self.changed = True  # outputs that are not listed by sample are not compared
            return
        inputs = [v[:count] for v in feed.values() if v.ndim and len(v) >= count]
        if self.first is None or self.inputs is None:
            self.first, self.inputs = [o[:1].copy() for o in outputs], [v[:1].copy() for v in inputs]
        self.changed = self.changed or any(_differ(o[:count], f) for o, f in zip(outputs, self.first, strict=True))
        self.inputs_changed = self.inputs_changed or any(
            _differ(v, f) for v, f in zip(inputs, self.inputs, strict=True)
        )

    @property
    def warning(self) -> str:
        """One line if the outputs never change; "" otherwise."""
        if self.samples < 2 or self.changed:
            return ""
        if not self.inputs_changed:
            return f"all {self.samples} samples are equal"
        return (
            f"the outputs are the same for all {self.samples} samples: the values are outside the range that the model "
            "expects (--mean, --std, --preprocess), or its weights are broken"
        )


def _differ(values: Array, first: Array) -> bool:
    if values.shape[1:] != first.shape[1:]:
        return True
    if values.dtype.kind != "f":
        return bool((values != first).any())
    a, b = values.astype(np.float64), first.astype(np.float64)
    scale = max(float(np.abs(b).max(initial=0)), 1e-12)
    return bool((np.abs(a - b) > _SAME * scale).any())


def evaluate(
    model: Model,
    data: Data,
    *,
    preprocess: Preprocess | None = None,
    task: TaskOptions | None = None,
    reference: Model | None = None,
    batch: int = 64,
    threads: int = 0,
    device: str = "cpu",
    check: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Return the metrics of a model's task on data: against its targets, or without them against another model.

    Args:
        model: The model.
        data: Samples, and targets unless there is a reference.
        preprocess: Conversion of pixels to the model's input.
        task: Task and metric; default: guessed from the model and the targets.
        reference: The original, whose outputs serve as targets if the data has none.
        batch: Samples per run.
        threads: CPU threads; 0: all cores.
        device: "auto", "cpu" or "cuda".
        check: Look for implausible results.
        progress: Called with (done, total) samples.

    Raises:
        OnnxPruneError: The data has no targets and there is no reference; samples or targets do not fit the model;
            outputs are not finite, or the labels are those of other classes.
    """
    how, options = preprocess or Preprocess(), task or TaskOptions()
    feed, targets = Feeds(model, data, how, 1)[0]
    kind = kind_of(targets)
    bound = bind_task(model, options, targets=kind, feed=feed)
    metrics = _metrics(bound, options, labelled=targets is not None, compares=reference is not None)
    if targets is None and reference is None and any(m.needs for m in metrics):
        raise OnnxPruneError(
            f"the data {data.name!r} has no labels",
            fix="put images into a folder for each class (arrays: add y), or --reference ORIGINAL to compare without",
        )
    names = [t.name for t in model.graph.outputs]
    watched = bound.metrics[0].outputs_read(names)
    reads = list(dict.fromkeys([*(n for m in metrics for n in m.outputs_read(names)), *watched]))
    session = Session(model, device=device, threads=threads)
    compares = reference is not None and any(m.wants_reference for m in metrics)
    judge = Session(reference, device=device, threads=threads) if reference is not None and compares else None
    feeds = Feeds(model, data, how, bound.batch or batch)
    kept: list[list[Any]] = [[] for _ in metrics]
    watch, constancy, done = bound.watch(), _Constancy(), 0
    for i in range(len(feeds)):
        feed, targets = feeds[i]
        real, size, filled = feeds.real(i), bound.size(feed), feeds.size(i)
        found = dict(zip(reads, session.run(feed, reads), strict=True))
        theirs = dict(zip(reads, judge.run(feed, reads), strict=True)) if judge is not None else {}
        shared: dict[int, Any] = {}
        for metric, records in zip(metrics, kept, strict=True):
            key = id(metric.collect) if metric.collect is not None else id(metric)
            if key not in shared:  # several metrics may have the same records
                shared[key] = metric.reduced(
                    [_outcome(metric.outputs_read(names), found, theirs, targets, real, size, filled)]
                )
            records.append(shared[key])
        if check:
            watch.add(_outcome(watched, found, {}, targets, real, size, filled))
            constancy.add(feed, [found[n] for n in reads], real)
        done += real
        if progress is not None:
            progress(done, len(data))
    values = {m.name: m.joined(records) for m, records in zip(metrics, kept, strict=True)}
    warnings: list[str] = []
    if check:
        warnings = [constancy.warning] if constancy.warning else watch.warnings(values)
    warnings += [w for w in (saturation_warning(model),) if w]
    return Evaluation(bound.name, values, done, session.provider, tuple(warnings), bound.statement)


def _outcome(
    names: Sequence[str], found: Mapping[str, Array], theirs: Mapping[str, Array], targets: Targets, real: int,
    size: tuple[int, int] | None, filled: int,
) -> Outcome:  # fmt: skip
    reference = [theirs[n] for n in names] if theirs else ()
    return Outcome([found[n] for n in names], targets, reference, real, size, filled)


def _metrics(bound: BoundTask, options: TaskOptions, *, labelled: bool, compares: bool) -> list[Metric]:
    """Return the metrics to measure, the main one first.

    Raises:
        OnnxPruneError: The metric is unknown, or needs outputs of an original that is not given.
    """
    if options.metric is None:
        against = list(bound.metrics) if labelled else []
        return against + [m for m in bound.distances if compares and m.name not in {a.name for a in against}] or list(
            bound.metrics
        )
    metric = get_metric(options.metric) if ":" in options.metric else bound.metric(options.metric, labelled=labelled)
    if metric.wants_reference and not compares:
        raise OnnxPruneError(
            f"the metric {metric.name!r} compares with the outputs of the original", fix="--reference ORIGINAL"
        )
    return [metric]
