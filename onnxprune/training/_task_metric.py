"""Validation of a training by the metric of a task, in onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.execution.tasks.metrics import Metric, kind_of
from onnxprune.execution.tasks.task import BoundTask, bind_task
from onnxprune.ir.model import Model
from onnxprune.options.tasks import TaskOptions
from onnxprune.passes import FuseBatchnorm
from onnxprune.torch_bridge import write_back


@dataclass(frozen=True)
class TrainingTask:
    """Task of a training.

    Attributes:
        bound: Task of the model.
        metric: Metric that chooses the epoch.
        options: Task and metric by name.
        labelled: Whether the metric compares with targets.
    """

    bound: BoundTask
    metric: Metric
    options: TaskOptions
    labelled: bool

    @property
    def classifies(self) -> bool:
        """True if the model is trained on scores of classes."""
        return self.bound.name == "classify"


def training_task(
    model: Model, held: Data, how: Preprocess, options: TaskOptions, *, unlabelled: bool
) -> TrainingTask | None:
    """Return the task of a training; None for a classifier that is validated by top1 or its distillation loss.

    Raises:
        OnnxPruneError: Task or metric are unknown, or do not fit the model or the targets.
    """
    feed, targets = Feeds(model, held, how, 1)[0]
    kind = "none" if unlabelled else kind_of(targets)
    bound = bind_task(model, options, targets=kind, feed=feed)
    labelled = kind != "none"
    if bound.name == "classify" and options.metric in (None, "top1" if labelled else None):
        return None
    metric = bound.metric(options.metric, labelled=labelled)
    if metric.needs == "labels" and not labelled:
        raise OnnxPruneError(
            f"the metric {metric.name!r} needs targets, and the validation data {held.name!r} has none",
            fix=f"--metric {' or '.join(m.name for m in bound.distances)}",
        )
    chosen = TaskOptions(task=bound.name, metric=metric.name, alphabet=options.alphabet, blank=options.blank)
    return TrainingTask(bound, metric, chosen, labelled)


@dataclass(frozen=True)
class ValidationMetric:
    """Measures a module as the model that it is written back to.

    Attributes:
        task: Task of the training.
        base: Model that the module was converted from.
        fuse: Whether inserted BatchNorm is folded first.
        held: Validation data.
        how: Conversion of the data.
        teacher: The original, for metrics that compare with its outputs.
        batch: Samples per run.
    """

    task: TrainingTask
    base: Model
    fuse: bool
    held: Data
    how: Preprocess
    teacher: Model | None
    batch: int

    def of_module(self, net: nn.Module) -> float:
        """Return the metric of a module."""
        model = write_back(net, self.base)
        return self.of_model(FuseBatchnorm(only_inserted=True)(model) if self.fuse else model)

    def of_model(self, model: Model) -> float:
        """Return the metric of a model."""
        return evaluate(
            model, self.held, preprocess=self.how, task=self.task.options, reference=self.teacher, batch=self.batch,
            check=False,
        ).value  # fmt: skip
