"""`retrain`: from a pruned model to the same graph with better weights, on Lightning's Trainer.

    insert BatchNorm -> to PyTorch, logits -> train, validate, keep the best -> write back -> fuse BatchNorm -> sign

With several devices every process runs all of this; what is random or measured is the same in each, and all of them
return the same model. `Retrained.rank` is the number of the process: the first one writes files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from onnxprune._utils.output.formatting import counted, decimal, percent
from onnxprune._utils.output.html import html_table
from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Preprocess, input_of, resolved
from onnxprune.execution.tasks.evaluation import evaluate, metric_text, metric_title
from onnxprune.ir.model import PROVENANCE, Model
from onnxprune.ir.writer import save
from onnxprune.options.tasks import TaskOptions
from onnxprune.passes import FuseBatchnorm, InsertBatchnorm
from onnxprune.planning.analyze import analyze
from onnxprune.plans import Plan
from onnxprune.torch_bridge import logits_of, to_torch, write_back
from onnxprune.torch_bridge.running import cpu_threads
from onnxprune.training._callbacks import Epoch
from onnxprune.training._datasets import (
    Batches,
    Loaders,
    Samples,
    check_classes,
    digest,
    find_transforms,
    split,
)
from onnxprune.training._distillation import Teacher, distillation_loss
from onnxprune.training._distillation_points import distillation_points
from onnxprune.training._guards import alone, known_errors, process_rank, quiet
from onnxprune.training._learner import Learner, ValidationMetrics
from onnxprune.training._preparation import (
    StatisticsFeeds,
    check_call,
    check_data,
    features_to_match,
    find_accelerator,
    listed_weights,
    load_teacher,
    probe,
)
from onnxprune.training._session import TrainingSession
from onnxprune.training._settings import Settings
from onnxprune.training._task_metric import ValidationMetric, training_task
from onnxprune.training.checkpoints import saved_run

if TYPE_CHECKING:
    from onnxprune.training.methods import Method


@dataclass(frozen=True, repr=False)
class Retrained:
    """Retrained model with the history of its training.

    Attributes:
        model: Model with the kept weights; the given model if no epoch was better.
        before: Metrics of the given model on the validation data.
        after: Metrics of the kept weights.
        epoch: Epoch of the kept weights; 0 is the given model.
        history: Record of each epoch, from 0 on.
        stopped: Reason why the training ended early; None if it did not.
        improved: True if `after` is better than `before`, and than `replaced`.
        replaced: Metrics of the model to be replaced on the same data.
        lr: Learning rate.
        trained: Names of the trained weights.
        frozen: Names of float constants of several numbers that were not trained.
        val: Validation data.
        logs: Folder of the logs.
        rank: Number of this process.
    """

    model: Model = field(repr=False)
    before: ValidationMetrics
    after: ValidationMetrics
    epoch: int
    history: tuple[Epoch, ...]
    stopped: str | None
    improved: bool
    replaced: ValidationMetrics | None
    lr: float
    trained: tuple[str, ...] = field(repr=False)
    frozen: tuple[str, ...] = field(repr=False)
    val: Data = field(repr=False)
    logs: Path | None
    rank: int

    def __repr__(self) -> str:
        kept = f"epoch {self.epoch} of {len(self.history) - 1}" if self.epoch else "no epoch was better"
        return f"<Retrained: {self._change}, {kept}, on {counted(len(self.val), 'validation sample')}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: the history; the epoch that was kept is marked."""
        rows = []
        for e in self.history:
            name = ("* " if e.epoch == self.epoch else "") + (str(e.epoch) if e.epoch else "as given")
            rows.append(
                [name, "-" if e.train_loss is None else decimal(e.train_loss), value_text(e.figures) or "-",
                 decimal(e.loss)]
            )  # fmt: skip
        title = metric_title(self.before.metric or "top1")
        return html_table("retrained", ["epoch", "training loss", title, "loss"], rows, note=self._change)

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> Path:
        """Write the model; see `onnxprune.save`."""
        return save(self.model, path, external=external)

    @property
    def _change(self) -> str:
        if self.before.metric:
            return f"{metric_title(self.before.metric)} {value_text(self.before)} -> {value_text(self.after)}"
        if self.before.top1 is None or self.after.top1 is None:
            return f"distillation loss {decimal(self.before.loss)} -> {decimal(self.after.loss)}"
        return f"top1 {percent(self.before.top1)} -> {percent(self.after.top1)}"

    @property
    def metric(self) -> str:
        """Metric that chooses the epoch: "top1", without labels the "distillation" loss, or that of the task."""
        if self.before.metric:
            return self.before.metric
        return "distillation" if self.before.top1 is None else "top1"

    def as_dict(self) -> dict[str, Any]:
        """Return everything but model and data, for JSON; numbers that are not finite become None."""
        return {
            "metric": self.metric,
            "before": _plain(asdict(self.before)),
            "after": _plain(asdict(self.after)),
            "replaced": _plain(asdict(self.replaced)) if self.replaced else None,
            "epoch": self.epoch,
            "improved": self.improved,
            "stopped": self.stopped,
            "lr": self.lr,
            "history": [_plain(asdict(e)) for e in self.history],
            "trained": list(self.trained),
            "frozen": list(self.frozen),
            "validation_samples": len(self.val),
            "logs": str(self.logs) if self.logs else None,
        }


@alone
def retrain(
    model: Model,
    data: Data,
    *,
    val: Data | None = None,
    preprocess: Preprocess | None = None,
    task: TaskOptions | None = None,
    settings: Settings | None = None,
    teacher: Model | None = None,
    plan: Plan | None = None,
    method: Method | None = None,
    replaces: Model | None = None,
    folder: Path | None = None,
    resume: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Retrained:
    """Train a model's weights in PyTorch and write them back into its graph.

    Args:
        model: Model with one input. The first output of a classifier is logits, or their Softmax, which remains in the
            graph; models of other tasks are trained on the outputs of a teacher.
        data: Samples and, unless only a teacher is learnt from, labels.
        val: Validation data; default: a share of the data, the same of every class.
        preprocess: Conversion of pixels to the model's input.
        task: Task, and the metric that chooses the epoch; default: guessed from the model and the targets.
        settings: Settings of the training.
        teacher: The original, for distillation; it has the same input.
        plan: Plan that pruned the teacher to the model: features are then matched in pruned channels, too, and after
            every activation function.
        method: Method of training-time pruning, attached here; the weights of the last epoch are then kept, and
            `method.plan(result.model, ...)` returns the plan for them.
        replaces: Model that the result must also exceed to count as improved.
        folder: Folder of checkpoints and logs; None: none are written.
        resume: Require a checkpoint in the folder. One of the same run is continued anyway; on the CPU the result
            equals that of an uninterrupted run.
        restart: Discard that checkpoint.
        progress: Called with (done, total) steps, in the first process.
        notice: Called with lines for users, in the first process.

    Raises:
        OnnxPruneError: Data, teacher or settings do not fit the model; the checkpoint is of another run; another
            process trains in the folder; the loss is not finite before any epoch was better; memory is exhausted; an
            operator cannot be converted.
    """
    settings, how = settings or Settings(), resolved(preprocess or Preprocess(), model, data)
    labelled = data.y is not None and not settings.unlabelled
    judging = training_task(model, val or data, how, task or TaskOptions(), unlabelled=settings.unlabelled)
    if judging is not None and not judging.classifies:
        labelled = False
    check_call(data, labelled, settings, teacher, plan, method, judging)
    rank = process_rank()
    say = notice if notice is not None and rank == 0 else _unsaid
    train, held = (data, val) if val is not None else split(data, settings.val_share, settings.seed)
    batch = check_data(model, train, held, labelled, settings)
    accelerator = find_accelerator(settings)
    run = {
        "model": model.fingerprint, "data": digest(train, held, how), "samples": [len(train), len(held)],
        "teacher": teacher.fingerprint if teacher is not None else None,
        "plan": plan.digest if plan is not None else None,
        "method": [method.name, method.params] if method is not None else None, "settings": settings.signature(),
        **({"task": judging.options.task, "metric": judging.metric.name} if judging is not None else {}),
    }  # fmt: skip
    saved = saved_run(folder, run, resume=resume, restart=restart, rank=rank)

    into = input_of(model)
    val_samples = Samples(held, into, how, labelled=labelled)
    train_samples = Samples(train, into, how, labelled=labelled)
    train_samples.transforms = find_transforms(settings.augment, train, train_samples.last, train_samples.shape)
    with known_errors(), quiet(), isolate_rng(include_cuda=False), cpu_threads(settings.threads):
        torch.manual_seed(settings.seed)
        base = model
        if settings.insert_batchnorm:
            base = InsertBatchnorm(feeds=StatisticsFeeds(model, train, how, batch))(model)
        raw = judging is not None and not judging.classifies
        cut = base if raw else logits_of(base)
        points = distillation_points(base, teacher) if raw and teacher is not None else ()
        first = tuple(p.name for p in points) or (cut.graph.outputs[0].name,)
        kept = features_to_match(cut, teacher, plan) if teacher is not None and settings.features else {}
        kept = {name: axes for name, axes in kept.items() if name not in first}
        features = tuple(kept)
        net = to_torch(cut, outputs=[*first, *features], freeze=settings.freeze)
        trained, frozen = listed_weights(net, base, model)
        guide = None
        if teacher is not None:
            guide = load_teacher(teacher, kept, settings, accelerator, first if points else ())
        classes = probe(net, train_samples, val_samples, batch, guide, points=bool(points))
        if labelled:
            check_classes(train, classes)
            check_classes(held, classes)
        judge = None if labelled else guide
        valued = None
        if judging is not None:
            valued = ValidationMetric(judging, base, settings.insert_batchnorm, held, how, teacher, settings.batch)
        figures = partial(measure, data=held, how=how, settings=settings, teacher=judge, valued=valued)
        replaced = figures(replaces) if replaces is not None else None
        if method is not None:
            method.attach(net, analyze(cut))

        loaders = Loaders(
            train_samples, val_samples, settings, batch, len(saved["recorder"]["history"]) - 1 if saved else 0
        )
        steps = settings.epochs * loaders.steps
        learner = Learner(
            net, settings, steps, labelled=labelled, teacher=guide, method=method, points=points, judge=valued
        )
        session = TrainingSession(learner, loaders, accelerator, folder, run, progress)
        if judging is not None:
            say(judging.bound.statement)
        say(_statement(settings, accelerator, train, held, batch, trained, frozen))
        session.run(saved, say)

    weights, epoch = _kept_weights(session, last=settings.keep == "last" or method is not None)
    history = tuple(session.recorder.history)
    before, after = history[0].figures, history[epoch].figures
    result = model
    if weights is not None:
        net.load_state_dict(weights)
        result = write_back(net.cpu(), base)
        if settings.insert_batchnorm:
            result = FuseBatchnorm(only_inserted=True)(result)
        result = _signed(result, epoch, history, before, after, how)
    improved = after.better_than(before)
    if replaced is not None and improved:
        # Evaluate by the same runtime as `replaced`, so that equal models give equal metrics.
        improved = figures(result).better_than(replaced)
    return Retrained(
        result, before, after, epoch, history, session.recorder.stopped, improved, replaced, learner.lr, trained,
        frozen, held, session.logs, process_rank(),
    )  # fmt: skip


def value_text(found: ValidationMetrics) -> str:
    """Return the metric that chooses the epoch as tables show it; "" if that is the loss."""
    if found.value is not None:
        return metric_text(found.metric, found.value)
    return "" if found.top1 is None else percent(found.top1)


def _kept_weights(session: TrainingSession, *, last: bool) -> tuple[Mapping[str, Any] | None, int]:
    """Return the weights of the best or the last epoch and its number; None and 0: the model as it was given.

    Raises:
        OnnxPruneError: The loss became not finite before any epoch could be kept.
    """
    recorder = session.recorder
    epoch = len(recorder.history) - 1 if last else recorder.best
    if session.diverged is not None:
        recorder.stopped = str(session.diverged)
        if epoch == 0 and process_rank() == 0:
            raise OnnxPruneError(
                f"{session.diverged}, and no epoch before {'was done' if last else 'was better than the model given'}",
                fix="a lower --lr, --clip 1, or --warmup 1",
            )
    if epoch == 0:
        return None, 0
    weights = recorder.last_weights if last else recorder.best_weights
    assert weights is not None
    return weights, epoch


def measure(
    model: Model, data: Data, how: Preprocess, *, settings: Settings, teacher: Teacher | None = None,
    valued: ValidationMetric | None = None,
) -> ValidationMetrics:  # fmt: skip
    """Evaluate a model in onnxruntime: by a task's metric, on labels, or by its distance from a teacher.

    Raises:
        OnnxPruneError: The data does not fit the model.
    """
    if valued is not None:
        metric = valued.task.metric
        return ValidationMetrics(None, 0.0, metric.name, valued.of_model(model), metric.higher_is_better)
    if teacher is None:
        found = evaluate(
            model, data, preprocess=how, task=TaskOptions(task="classify"), batch=settings.batch, check=False
        )
        return ValidationMetrics(found.top1, found.loss)
    student = Teacher(model, runtime="onnxruntime")
    into = input_of(model)
    samples = Samples(data, into, how, labelled=False)
    total = 0.0
    for pick in Batches(len(data), into.batch or settings.batch, sizes=samples.sizes):
        x = samples[pick].x
        ours, theirs = (side(x)[0].float().cpu()[: pick.real] for side in (student, teacher))
        total += float(distillation_loss(ours, theirs, settings.temperature)) * pick.real
    return ValidationMetrics(None, total / len(data))


def _unsaid(text: str) -> None:
    pass


def _signed(
    model: Model, epoch: int, history: Sequence[Epoch], before: ValidationMetrics, after: ValidationMetrics,
    how: Preprocess,
) -> Model:  # fmt: skip
    note = {
        "epoch": epoch, "epochs": len(history) - 1, "before": _plain(asdict(before)), "after": _plain(asdict(after)),
    }  # fmt: skip
    notes = {"retrained": note} | ({"preprocess": how.as_dict()} if how.as_dict() else {})
    return model.with_metadata(
        {f"{PROVENANCE}.{name}": json.dumps(v, sort_keys=True, allow_nan=False) for name, v in notes.items()}
    )


def _statement(
    settings: Settings, accelerator: str, train: Data, held: Data, batch: int, trained: Sequence[str],
    frozen: Sequence[str],
) -> str:  # fmt: skip
    where = {"gpu": "CUDA", "cpu": "the CPU"}[accelerator]
    processes = f", {settings.world} processes" if settings.world > 1 else ""
    still = f", {len(frozen)} do not: {', '.join(frozen[:3])}{', ...' if len(frozen) > 3 else ''}" if frozen else ""
    return (
        f"training on {where}{processes}: {len(train)} samples and {len(held)} to validate, batch {batch}; "
        f"{len(trained)} weights train{still}"
    )


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record for JSON; without a task's metric its fields are left out."""
    unused = ("metric", "value", "higher_is_better") if record.get("metric") == "" else ()
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in record.items() if k not in unused}
