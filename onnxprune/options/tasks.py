"""Options of the task and its metric."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.options._declare import DATA, Options, option

TASK_NAMES = ("classify", "detect", "segment", "recognize", "embed", "regress")
_NOUNS = {
    "classification": "classify", "detection": "detect", "segmentation": "segment", "recognition": "recognize",
    "embedding": "embed", "regression": "regress",
}  # fmt: skip
BLANKS = ("auto", "first", "last")
_METRICS = {
    "top_1": "top1", "top_5": "top5", "acc": "top1", "accuracy": "top1", "acc1": "top1", "acc5": "top5",
    "top1_accuracy": "top1", "top5_accuracy": "top5", "acc@1": "top1", "acc@5": "top5", "mean_iou": "miou",
    "iou": "miou", "map50_95": "map", "cross_entropy": "loss", "kl_divergence": "kl",
}  # fmt: skip


def metric_name(name: str) -> str:
    """Return the name of a metric for another spelling or a common other name: top1 for top-1 and accuracy."""
    if ":" in name:
        return name
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    return _METRICS.get(folded, folded)


@dataclass(frozen=True, kw_only=True, repr=False)
class TaskOptions(Options):
    """Task of the model, and the metric."""

    task: str | None = option(
        None, heading=DATA, choices=TASK_NAMES, shown="guessed",
        help="classify, detect, segment, recognize, embed or regress.",
    )  # fmt: skip
    metric: str | None = option(
        None, heading=DATA, shown="those of the task", metavar="NAME",
        help="Metric of the task (docs/tasks.md).",
    )  # fmt: skip
    alphabet: str | None = option(
        None, heading=DATA, advanced=True, metavar="FILE", shown="the model's metadata",
        help="Characters that a recognizer reads, one a line, in the order of its classes.",
    )  # fmt: skip
    blank: str = option(
        "auto", heading=DATA, advanced=True, choices=BLANKS,
        help="Class of a recognizer that stands for no character: first, last, or auto (the most frequent one).",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric is not None:
            object.__setattr__(self, "metric", metric_name(self.metric))


@dataclass(frozen=True, kw_only=True, repr=False)
class ReportedMetric(TaskOptions):
    """Task of the model, and the metric that is reported on held-out samples."""

    task: str | None = option(
        None, heading=DATA, advanced=True, choices=TASK_NAMES, shown="guessed from the model and the targets",
        help="Kind of the outputs: classify, detect, segment, recognize, embed or regress.",
    )  # fmt: skip
    metric: str | None = option(
        None, heading=DATA, advanced=True, shown="the first of the task", metavar="NAME",
        help="Metric on held-out samples that keeps or undoes stages (docs/tasks.md), or package.module:function.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class ReferenceModel(Options):
    """Original that a model is compared with."""

    reference: Path | None = option(
        None, heading=DATA, metavar="ORIGINAL",
        help="Compare with the outputs of this model: agreement, also without targets.",
    )  # fmt: skip


def task_options(task: TaskOptions | str | None, metric: str | None = None) -> TaskOptions:
    """Return the options of a task that is given by name or with options, and a metric if it is named.

    A name may be the noun as well: "detection" for detect.
    """
    if isinstance(task, TaskOptions):
        return TaskOptions(task=task.task, metric=metric or task.metric, alphabet=task.alphabet, blank=task.blank)
    return TaskOptions(task=_NOUNS.get(task, task) if task is not None else None, metric=metric)
