"""`retrain`: from a pruned model to the same graph with better weights, on Lightning's Trainer.

    insert BatchNorm -> to PyTorch, logits -> train, validate, keep the best -> write back -> fuse BatchNorm -> sign

With several devices every process runs all of this; what is random or measured is the same in each, and all of them
return the same model. `Retrained.rank` says which process one is in: the first writes files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from onnxprune._utils.formatting import counted, percent
from onnxprune._utils.html import html_table
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess, input_of, subset
from onnxprune.execution.evaluation import evaluate
from onnxprune.ir.model import PROVENANCE, Array, Model, save
from onnxprune.passes import NORMALIZE, FuseBatchnorm, InsertBatchnorm, Pipeline
from onnxprune.planning.analyze import analyze
from onnxprune.plans import Plan
from onnxprune.torch_bridge import bindings, logits_of, to_torch, write_back
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
from onnxprune.training._distillation import KeptIndices, Teacher, distillation_loss, features_under, matching_features
from onnxprune.training._guards import known_errors, process_rank, quiet
from onnxprune.training._learner import Learner, ValidationMetrics
from onnxprune.training._session import Progress, TrainingSession
from onnxprune.training._settings import Settings
from onnxprune.training.checkpoints import saved_run

if TYPE_CHECKING:
    from onnxprune.training.methods import Method

STATISTICS = 1000  # samples that inserted BatchNorm is measured on


@dataclass(frozen=True, repr=False)
class Retrained:
    """A retrained model and how it came about.

    Attributes:
        model: with the weights that were kept; the model as it was given where no epoch was better.
        before: the model as it was given, on the validation data.
        after: the weights that were kept.
        epoch: which epoch they are from; 0 is the model as it was given.
        history: one line per epoch, from 0 on.
        stopped: why the training ended before its time; None if it did not.
        improved: whether `after` is better than `before`, and than `replaced`.
        replaced: what the model that is to be replaced is worth on the same data.
        lr: the learning rate.
        trained: names of the weights that trained.
        frozen: names of float constants of several numbers that did not.
        val: the validation data.
        logs: folder of the logs.
        rank: which process this is, of several.
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
            top1 = "-" if e.top1 is None else percent(e.top1)
            rows.append([name, "-" if e.train_loss is None else f"{e.train_loss:.4f}", top1, f"{e.loss:.4f}"])
        return html_table("retrained", ["epoch", "training loss", "top-1", "loss"], rows, note=self._change)

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> Path:
        """Write the model; see `onnxprune.save`."""
        return save(self.model, path, external=external)

    @property
    def _change(self) -> str:
        if self.before.top1 is None or self.after.top1 is None:
            return f"distillation loss {self.before.loss:.4f} -> {self.after.loss:.4f}"
        return f"top-1 {percent(self.before.top1)} -> {percent(self.after.top1)}"

    @property
    def metric(self) -> str:
        """What decides: "top1", or without labels the "distillation" loss."""
        return "distillation" if self.before.top1 is None else "top1"

    def as_dict(self) -> dict[str, Any]:
        """Everything but model and data, as JSON; numbers that are not finite become None."""
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


def retrain(
    model: Model,
    data: Data,
    *,
    val: Data | None = None,
    preprocess: Preprocess | None = None,
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
    """Trains a model's weights in PyTorch and writes them back into its graph.

    Args:
        model: with one input; its first output is taken as logits, or as their Softmax, which stays in the graph.
        data: samples and, unless a teacher is learnt from alone, labels.
        val: validation data; default: a share of the data, the same of every class.
        preprocess: how pixels become the model's input.
        settings: of the training.
        teacher: the original, for distillation; it takes the same input.
        plan: by which the model was cut from the teacher: features are then matched in pruned channels, too, and behind
            every activation function.
        method: of training-time pruning, attached here; the weights of the last epoch are then kept, and
            `method.plan(result.model, ...)` says what to remove from them.
        replaces: a model that the result must be better than, too, to count as improved.
        folder: for checkpoints and logs; None: none are written.
        resume: go on from the folder's checkpoint. On the CPU the result is that of a run that was never interrupted.
        restart: throw that checkpoint away.
        progress: called with (done, total) steps, in the first process.
        notice: called with lines for people, in the first process.

    Raises:
        OnnxPruneError: data, teacher or settings that do not fit the model; a checkpoint of another run, or one that
            neither `resume` nor `restart` was said about; a loss that is not finite before any epoch was better; no
            memory; an operator that cannot be converted.
    """
    settings, how = settings or Settings(), preprocess or Preprocess()
    labelled = data.y is not None and not settings.unlabelled
    _check_call(data, labelled, settings, teacher, plan, method)
    rank = process_rank()
    say = notice if notice is not None and rank == 0 else _unsaid
    train, held = (data, val) if val is not None else split(data, settings.val_share, settings.seed)
    if not len(held):
        raise OnnxPruneError(f"the validation data {held.name!r} is empty")
    if labelled and held.y is None:
        raise OnnxPruneError(f"the validation data {held.name!r} has no labels", fix="add an array y")
    into = input_of(model)
    batch = into.batch or settings.batch
    if batch * settings.world > len(train):
        raise OnnxPruneError(
            f"{batch * settings.world} samples per step are more than the {len(train)} there are to train on",
            fix="a smaller --batch" if into.batch is None else "more data, or export the model with a dynamic batch",
        )
    if settings.mixup and into.dtype.kind not in "fV":
        raise OnnxPruneError(f"mixup mixes floats; the model takes {into.dtype}", fix="--mixup 0")
    accelerator = _accelerator(settings)
    run = {
        "model": model.fingerprint, "data": digest(train, held, how), "samples": [len(train), len(held)],
        "teacher": teacher.fingerprint if teacher is not None else None,
        "plan": plan.digest if plan is not None else None,
        "method": [method.name, method.params] if method is not None else None, "settings": settings.signature(),
    }  # fmt: skip
    saved = saved_run(folder, run, resume=resume, restart=restart, rank=rank)

    val_samples = Samples(held, into, how, labelled=labelled)
    transforms = find_transforms(settings.augment, train, val_samples.last)
    train_samples = Samples(train, into, how, transforms, labelled=labelled)
    with known_errors(), quiet(), isolate_rng(include_cuda=False), cpu_threads(settings.threads):
        torch.manual_seed(settings.seed)
        base = model
        if settings.insert_batchnorm:
            base = InsertBatchnorm(feeds=_Statistics(model, train, how, batch))(model)
        cut = logits_of(base)
        kept = _features(cut, teacher, plan) if teacher is not None and settings.features else {}
        features = tuple(kept)
        net = to_torch(cut, outputs=[cut.graph.outputs[0].name, *features], freeze=settings.freeze)
        trained, frozen = _listed(net, base, model)
        guide = _teacher(teacher, kept, settings, accelerator) if teacher is not None else None
        classes = _probe(net, train_samples, val_samples, batch, guide)
        if labelled:
            check_classes(train, classes)
            check_classes(held, classes)
        judge = None if labelled else guide
        replaced = measure(replaces, held, how, settings=settings, teacher=judge) if replaces is not None else None
        if method is not None:
            method.attach(net, analyze(cut))

        loaders = Loaders(
            train_samples, val_samples, settings, batch, len(saved["recorder"]["history"]) - 1 if saved else 0
        )
        steps = settings.epochs * loaders.steps
        learner = Learner(net, settings, steps, labelled=labelled, teacher=guide, method=method)
        session = TrainingSession(learner, loaders, accelerator, folder, run, progress)
        say(_statement(settings, accelerator, train, held, batch, trained, frozen))
        session.run(saved, say)

    recorder = session.recorder
    before = recorder.history[0].figures
    last = settings.keep == "last" or method is not None
    epoch = len(recorder.history) - 1 if last else recorder.best
    if session.diverged is not None:
        recorder.stopped = str(session.diverged)
        if epoch == 0 and process_rank() == 0:
            raise OnnxPruneError(
                f"{session.diverged}, and no epoch before {'was done' if last else 'was better than the model given'}",
                fix="a lower --lr, --clip 1, or --warmup 1",
            )
    after = recorder.history[epoch].figures
    result = model
    if epoch > 0:
        weights = recorder.last_weights if last else recorder.best_weights
        assert weights is not None
        net.load_state_dict(weights)
        result = write_back(net.cpu(), base)
        if settings.insert_batchnorm:
            result = FuseBatchnorm(only_inserted=True)(result)
        result = _signed(result, epoch, recorder.history, before, after)
    improved = after.better_than(before)
    if replaced is not None and improved:
        # By the same program as what it replaces: equal models then come out equal.
        improved = measure(result, held, how, settings=settings, teacher=judge).better_than(replaced)
    return Retrained(
        result, before, after, epoch, tuple(recorder.history), recorder.stopped, improved, replaced, learner.lr,
        trained, frozen, held, session.logs, process_rank(),
    )  # fmt: skip


def measure(
    model: Model, data: Data, how: Preprocess, *, settings: Settings, teacher: Teacher | None = None
) -> ValidationMetrics:
    """What a model is worth as it is, in onnxruntime: on labels, or by its distance from a teacher.

    Raises:
        OnnxPruneError: the data does not fit the model.
    """
    if teacher is None:
        found = evaluate(model, data, preprocess=how, batch=settings.batch)
        return ValidationMetrics(found.top1, found.loss)
    student = Teacher(model, runtime="onnxruntime")
    into = input_of(model)
    samples = Samples(data, into, how, labelled=False)
    total = 0.0
    for pick in Batches(len(data), into.batch or settings.batch):
        x = samples[pick].x
        ours, theirs = (side(x)[0].float().cpu()[: pick.real] for side in (student, teacher))
        total += float(distillation_loss(ours, theirs, settings.temperature)) * pick.real
    return ValidationMetrics(None, total / len(data))


def _unsaid(text: str) -> None:
    pass


def _check_call(
    data: Data, labelled: bool, settings: Settings, teacher: Model | None, plan: Plan | None, method: Method | None
) -> None:
    if not labelled and teacher is None:
        why = "labels are left out (--unlabelled)" if settings.unlabelled else f"the data {data.name!r} has no labels"
        raise OnnxPruneError(f"{why}, so there is nothing to learn from", fix="name the original with --teacher")
    if settings.features and teacher is None:
        raise OnnxPruneError("features are matched with a teacher's", fix="name the original with --teacher")
    if plan is not None and not settings.features:
        raise OnnxPruneError(
            "the plan says which of the teacher's features are left, and none are matched",
            fix="name the original with --teacher, and --features 20",
        )
    if method is not None and settings.ema is not None:
        raise OnnxPruneError(
            f"the method {method.name!r} changes weights that a moving average would bring back", fix="leave out --ema"
        )


def _accelerator(settings: Settings) -> str:
    """Lightning's name of the device.

    Raises:
        OnnxPruneError: there is no such device here, or not so many.
    """
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise OnnxPruneError("this PyTorch finds no CUDA device", fix="check the driver, or use --device cpu")
    name = "gpu" if cuda and settings.device != "cpu" else "cpu"
    if settings.precision == "16" and name == "cpu":
        raise OnnxPruneError("mixed precision in float16 needs CUDA", fix="--precision bf16, or 32")
    if name == "gpu" and settings.devices > torch.cuda.device_count():
        raise OnnxPruneError(f"{settings.devices} devices were asked for, there are {torch.cuda.device_count()}")
    return name


class _Statistics(Sequence[Mapping[str, Array]]):
    """Feeds that the statistics of inserted BatchNorm are measured on, prepared when asked for."""

    def __init__(self, model: Model, data: Data, how: Preprocess, batch: int) -> None:
        self.feeds = Feeds(model, subset(data, min(STATISTICS, len(data))), how, batch)

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, i: Any) -> Any:
        return self.feeds[i][0]


def _features(model: Model, teacher: Model, plan: Plan | None) -> KeptIndices:
    """What is matched, with the channels that are left of it."""
    if plan is not None:
        found = features_under(plan, model, teacher)
        if not found:
            raise OnnxPruneError(
                "model and teacher have no activations in common under this plan",
                fix="give the plan by which this model was cut from that teacher",
            )
        return found
    names = matching_features(model, teacher)
    if not names:
        raise OnnxPruneError(
            "model and teacher have no residual outputs of equal shape in common",
            fix="say by which plan the model was cut (--teacher-plan), --features 0, or keep the residual streams when "
            "pruning: --protect residual",
        )
    return dict.fromkeys(names, ())


def _teacher(model: Model, kept: KeptIndices, settings: Settings, accelerator: str) -> Teacher:
    # Lightning gives the processes of a machine one device each, in this order.
    place = int(os.environ.get("LOCAL_RANK", 0))
    device = (
        f"cuda:{place}" if accelerator == "gpu" and settings.devices > 1 else "cuda" if accelerator == "gpu" else "cpu"
    )
    shared = 0 if settings.devices == 1 else max(1, (os.cpu_count() or 1) // settings.devices)
    threads = settings.threads or shared
    return Teacher(
        model, features=tuple(kept), kept=kept, runtime=settings.teacher_runtime, device=device, threads=threads
    )


def _listed(net: nn.Module, base: Model, model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the model's own constants that train, and of float constants of several numbers that do not.

    Raises:
        OnnxPruneError: weights in half precision.
    """
    bound, state = bindings(net), net.state_dict()
    for b in bound:
        if b.kind == "trained" and state[b.path].dtype == torch.float16:
            raise OnnxPruneError(
                "weights in float16 are too coarse to train",
                where=f"initializer {b.initializer!r}",
                fix="retrain the float32 model, and convert it afterwards",
            )
    own = set(Pipeline(NORMALIZE)(model).graph.tensors())
    trained = {b.initializer for b in bound if b.kind == "trained"}
    values = {name: t.values for name, t in Pipeline(NORMALIZE)(base).graph.tensors().items() if hasattr(t, "values")}
    frozen = {
        b.initializer for b in bound
        if b.kind == "frozen" and values[b.initializer].dtype.kind in "fV" and values[b.initializer].size > 1
    }  # fmt: skip
    return tuple(sorted(trained & own)), tuple(sorted(frozen - trained))


def _probe(net: nn.Module, train: Samples, val: Samples, batch: int, teacher: Teacher | None) -> int:
    """Runs a batch through model and teacher; returns the number of classes.

    Raises:
        OnnxPruneError: PyTorch cannot run the model on these samples, or the teacher has other outputs.
    """
    for samples in (val, train):
        x = samples[next(iter(Batches(len(samples), batch)))].x
        net.eval()
        try:
            with torch.no_grad():
                found = net(x)
        except Exception as err:  # converted operators raise many kinds
            raise OnnxPruneError(
                f"PyTorch cannot run the model on samples {list(x.shape[1:])}: {str(err).splitlines()[0]}",
                where=samples.data.name,
                fix="check the size of the images (--size): constants in the graph may allow one only",
            ) from err
        finally:
            net.train()
    logits = found[0] if isinstance(found, tuple | list) else found
    if logits.ndim < 2 or len(logits) != len(x) or not logits.is_floating_point():
        raise OnnxPruneError(f"the model's output {list(logits.shape)} is not one score per class")
    if teacher is not None:
        wanted = teacher(x)[0]
        if wanted.shape != logits.shape:
            raise OnnxPruneError(
                f"the teacher's output is {list(wanted.shape)}, the model's {list(logits.shape)}",
                fix="the teacher is the model before it was pruned",
            )
    return int(logits[0].numel())


def _signed(
    model: Model, epoch: int, history: Sequence[Epoch], before: ValidationMetrics, after: ValidationMetrics
) -> Model:
    note = {
        "epoch": epoch, "epochs": len(history) - 1, "before": _plain(asdict(before)), "after": _plain(asdict(after)),
    }  # fmt: skip
    return model.with_metadata({f"{PROVENANCE}.retrained": json.dumps(note, sort_keys=True, allow_nan=False)})


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
    return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in record.items()}
