"""Checks and preparation of a training run: device, features, teacher, trained weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Feeds, Preprocess, input_of, subset
from onnxprune.ir.model import Array, Model
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.plans import Plan
from onnxprune.torch_bridge import bindings
from onnxprune.training._datasets import (
    Batches,
    Samples,
)
from onnxprune.training._distillation import KeptIndices, Teacher, features_under, matching_features
from onnxprune.training._settings import Settings

if TYPE_CHECKING:
    from onnxprune.training._task_metric import TrainingTask
    from onnxprune.training.methods import Method


STATISTICS = 1000  # samples for the statistics of inserted BatchNorm


def check_call(
    data: Data, labelled: bool, settings: Settings, teacher: Model | None, plan: Plan | None, method: Method | None,
    task: TrainingTask | None = None,
) -> None:  # fmt: skip
    """Raise on arguments that do not fit each other.

    Raises:
        OnnxPruneError: Nothing to learn from, or options without the others that they need.
    """
    if task is not None and not task.classifies and teacher is None:
        raise OnnxPruneError(
            f"a model of the task {task.bound.name} ({task.bound.reason}) is trained on the outputs of its original",
            fix="name the original with --teacher; for a classifier --task classify",
        )
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


def check_data(model: Model, train: Data, held: Data, labelled: bool, settings: Settings) -> int:
    """Return the samples per batch.

    Raises:
        OnnxPruneError: Validation data that is empty or has no labels, fewer samples than a step takes, or mixup of
            integers.
    """
    if not len(held):
        raise OnnxPruneError(f"the validation data {held.name!r} is empty")
    if labelled and held.y is None:
        raise OnnxPruneError(f"the validation data {held.name!r} has no labels", fix="add an array y")
    into = input_of(model)
    if into.single:
        raise OnnxPruneError(
            f"the input {into.name!r} is one image without a batch axis, which training does not support",
            fix="recover without training: onnxprune recover",
        )
    batch = into.batch or settings.batch
    if batch * settings.world > len(train):
        raise OnnxPruneError(
            f"{batch * settings.world} samples per step are more than the {len(train)} there are to train on",
            fix="a smaller --batch" if into.batch is None else "more data, or export the model with a dynamic batch",
        )
    if settings.mixup and into.dtype.kind not in "fV":
        raise OnnxPruneError(f"mixup mixes floats; the model takes {into.dtype}", fix="--mixup 0")
    return batch


def find_accelerator(settings: Settings) -> str:
    """Return Lightning's name of the device.

    Raises:
        OnnxPruneError: There is no such device, or too few of them.
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


class StatisticsFeeds(Sequence[Mapping[str, Array]]):
    """Feeds for the statistics of inserted BatchNorm, prepared on access."""

    def __init__(self, model: Model, data: Data, how: Preprocess, batch: int) -> None:
        self.feeds = Feeds(model, subset(data, min(STATISTICS, len(data))), how, batch)

    def __len__(self) -> int:
        return len(self.feeds)

    def __getitem__(self, i: Any) -> Any:
        return self.feeds[i][0]


def features_to_match(model: Model, teacher: Model, plan: Plan | None) -> KeptIndices:
    """Return the names of the features to match, with their remaining channels."""
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


def load_teacher(
    model: Model, kept: KeptIndices, settings: Settings, accelerator: str, outputs: Sequence[str] = ()
) -> Teacher:
    # Lightning assigns one device to each process of a machine, in this order.
    place = int(os.environ.get("LOCAL_RANK", 0))
    device = (
        f"cuda:{place}" if accelerator == "gpu" and settings.devices > 1 else "cuda" if accelerator == "gpu" else "cpu"
    )
    shared = 0 if settings.devices == 1 else max(1, (os.cpu_count() or 1) // settings.devices)
    threads = settings.threads or shared
    return Teacher(
        model, features=tuple(kept), kept=kept, runtime=settings.teacher_runtime, device=device, threads=threads,
        outputs=outputs,
    )  # fmt: skip


def listed_weights(net: nn.Module, base: Model, model: Model) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names of the model's own constants that train, and of float constants of several numbers that do not.

    Raises:
        OnnxPruneError: Weights are in half precision.
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


def probe(
    net: nn.Module, train: Samples, val: Samples, batch: int, teacher: Teacher | None, *, points: bool = False
) -> int:
    """Run a batch through model and teacher, and return the number of classes; 0 for outputs that are no scores.

    Raises:
        OnnxPruneError: PyTorch cannot run the model on these samples, or the teacher has other outputs.
    """
    for samples in (val, train):
        x = samples[next(iter(Batches(len(samples), batch, sizes=samples.sizes)))].x
        net.eval()
        try:
            with torch.no_grad():
                found = net(x)
        except Exception as err:  # converted operators raise many types
            raise OnnxPruneError(
                f"PyTorch cannot run the model on samples {list(x.shape[1:])}: {str(err).splitlines()[0]}",
                where=samples.data.name,
                fix="check the size of the images (--size): constants in the graph may allow one only",
            ) from err
        finally:
            net.train()
    logits = found[0] if isinstance(found, tuple | list) else found
    if points:
        return 0
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
