"""Options of training: optimizer, schedule, validation, distillation, methods that prune while training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.options._declare import (
    BUDGET,
    DATA,
    OUTPUT,
    RUNTIME,
    TEACHER,
    TRAINING,
    Options,
    option,
)
from onnxprune.options._text import NUMBER_OR_AUTO, PAIRS

OPTIMIZERS = ("sgd", "adamw")
LR_SCHEDULES = ("cosine", "onecycle", "step", "constant")
PRECISIONS = ("32", "bf16", "16")
DEVICES = ("auto", "cpu", "cuda")
KEEP = ("best", "last")
TEACHER_RUNTIMES = ("auto", "onnxruntime", "torch")
# Usual values of the optimizers: He et al. 2016 (ten times the rate, from scratch) for SGD, Loshchilov & Hutter 2019
# for AdamW.
_LR = {"sgd": 0.01, "adamw": 1e-3}
_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.01}
# Options that decide how fast or where a run works, not its result: a resumed run may change them.
_FREE = ("device", "threads", "workers", "keep", "log_dir", "teacher_runtime")


@dataclass(frozen=True, kw_only=True, repr=False)
class Distillation(Options):
    """How the original teaches the pruned model.

    Attributes:
        temperature: of distillation.
        alpha: share of distillation in the loss, cross-entropy has the rest; 4 and 0.9 are Zagoruyko & Komodakis' 2017.
        features: weight of the distance to the teacher's residual outputs; 0: off.
        teacher_runtime: "onnxruntime", "torch" or "auto".
        unlabelled: ignore labels: learn from the teacher alone.
    """

    temperature: float = option(4.0, help="Temperature of distillation.", heading=TEACHER, advanced=True, gt=0)
    alpha: float = option(0.9, help="Share of distillation in the loss.", heading=TEACHER, advanced=True, ge=0, le=1)
    features: float = option(
        0.0, help="Weight of the distance to the teacher's residual outputs.", heading=TEACHER, ge=0
    )
    teacher_runtime: str = option(
        "auto", help="Runtime of the teacher: auto, onnxruntime or torch.", heading=TEACHER, advanced=True,
        choices=TEACHER_RUNTIMES,
    )  # fmt: skip
    unlabelled: bool = option(False, help="Ignore labels: learn from the teacher alone.", heading=TEACHER)


@dataclass(frozen=True, kw_only=True, repr=False)
class Training(Distillation):
    """Settings of `retrain`.

    Attributes:
        epochs: times every sample is seen.
        batch: samples per step and device; a model whose batch is fixed has its own.
        lr: learning rate (the largest of the schedule); "auto": found by a range test (Smith 2017); None: 0.01 for
            SGD, 0.001 for AdamW.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        nesterov: Nesterov momentum (SGD with momentum only).
        weight_decay: for weights of two and more dimensions, not for norms, biases and per-channel scales. None: 5e-4
            for SGD, 0.01 for AdamW.
        schedule: "cosine" (Loshchilov & Hutter 2017), "onecycle" (Smith & Topin 2018), "step" (a tenth after half and
            after three quarters of the steps, He et al. 2016) or "constant".
        warmup: linear rise at the start: below 1 a share of all steps, from 1 on a number of epochs.
        label_smoothing: in [0, 1) (Szegedy et al. 2016).
        mixup: alpha of the Beta distribution that pairs of samples are mixed by; 0: off (Zhang et al. 2018).
        augment: augmentations of every training sample, in order: "crop" (pad by an eighth of the height, crop to the
            old size), "crop=4" (pad by four pixels), "flip" (left and right, every other sample), or a function of a
            sample as a CHW tensor in the data's own dtype, as such or as "package.module:function".
        precision: "32", "bf16" or "16" (mixed, the last on CUDA only).
        clip: largest norm of the gradient; None: any.
        patience: stop after so many epochs without a better validation; None: never.
        ema: decay of a moving average of weights and BatchNorm statistics, which is then validated and kept; None: off.
        seed: of the split, the order of samples, augmentation, mixup and dropout.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of PyTorch and of the teacher; 0: all cores. Small networks are fastest on one.
        devices: processes on this machine, one for each GPU (on the CPU: this many).
        num_nodes: machines; the command runs on each, see Lightning's documentation of clusters.
        workers: processes that prepare batches, per device; 0: the training process itself.
        val_share: share of the data kept for validation without validation data; the same share of every class.
        insert_batchnorm: add a new BatchNorm behind convolutions whose BatchNorm was folded, while they train.
        freeze: patterns of initializer names that do not train, such as "features.0.*". An inserted BatchNorm behind a
            frozen convolution still measures, and is folded into it: switch it off with `insert_batchnorm`.
        keep: "best" weights on the validation data, or those of the "last" epoch.
        log_dir: folder of CSV and TensorBoard logs; None: the run's own folder.

    Raises:
        OnnxPruneError: a value out of range.
    """

    epochs: int = option(10, help="Times every sample is seen.", heading=TRAINING, ge=1)
    batch: int = option(64, help="Samples per step and device.", heading=TRAINING, ge=1)
    lr: float | str | None = option(
        None, help="Learning rate; auto: found by a range test.", heading=TRAINING, gt=0, text=NUMBER_OR_AUTO,
        metavar="RATE|auto", shown="0.01 for sgd, 0.001 for adamw", title="the learning rate",
    )  # fmt: skip
    optimizer: str = option("sgd", help="sgd or adamw.", heading=TRAINING, choices=OPTIMIZERS)
    momentum: float = option(0.9, help="Momentum of SGD.", heading=TRAINING, advanced=True, ge=0, lt=1)
    nesterov: bool = option(
        True, help="Nesterov momentum of SGD (default) or not.", heading=TRAINING, advanced=True,
        flag="--nesterov/--no-nesterov",
    )  # fmt: skip
    weight_decay: float | None = option(
        None, help="Weight decay; not for norms, biases and per-channel scales.", heading=TRAINING, advanced=True, ge=0,
        shown="5e-4 for sgd, 0.01 for adamw",
    )  # fmt: skip
    schedule: str = option(
        "cosine", help="Learning rate schedule: cosine, onecycle, step or constant.", heading=TRAINING, advanced=True,
        choices=LR_SCHEDULES,
    )  # fmt: skip
    warmup: float = option(
        0.0, help="Below 1 a share of all steps, else epochs.", heading=TRAINING, advanced=True, ge=0
    )
    label_smoothing: float = option(0.0, help="Label smoothing.", heading=TRAINING, advanced=True, ge=0, lt=1)
    mixup: float = option(
        0.0, help="Alpha of mixup's Beta distribution; 0: off.", heading=TRAINING, advanced=True, ge=0
    )
    augment: tuple[str | Callable[..., Any], ...] = option(
        (), heading=TRAINING, advanced=True, metavar="NAME",
        help="crop, crop=PIXELS, flip, or package.module:function of a CHW tensor (repeatable).",
    )  # fmt: skip
    precision: str = option(
        "32", help="32, bf16 or 16 (mixed; 16 on CUDA only).", heading=RUNTIME, advanced=True, choices=PRECISIONS
    )
    clip: float | None = option(None, help="Largest norm of the gradient.", heading=TRAINING, advanced=True, gt=0)
    patience: int | None = option(
        None, help="Stop after so many epochs without a better validation.", heading=TRAINING, advanced=True, ge=1
    )
    ema: float | None = option(
        None, help="Validate and keep a moving average, e.g. of decay 0.999.", heading=TRAINING, advanced=True, gt=0,
        lt=1, metavar="DECAY", title="the decay of the moving average",
    )  # fmt: skip
    seed: int = option(0, help="Seed of everything that is random.", heading=TRAINING, advanced=True, ge=0)
    device: str = option("auto", help="auto, cpu or cuda.", heading=RUNTIME, advanced=True, choices=DEVICES)
    threads: int = option(
        0, help="CPU threads; small networks are fastest on one.", heading=RUNTIME, advanced=True, ge=0,
        shown="all cores",
    )  # fmt: skip
    devices: int = option(1, help="Processes on this machine, one per GPU.", heading=RUNTIME, advanced=True, ge=1)
    num_nodes: int = option(1, help="Machines; run the command on each.", heading=RUNTIME, advanced=True, ge=1)
    workers: int = option(0, help="Processes that prepare batches.", heading=RUNTIME, advanced=True, ge=0)
    val_share: float = option(
        0.1, help="Share kept for validation without --val-data.", heading=DATA, advanced=True, gt=0, lt=1
    )
    insert_batchnorm: bool = option(
        True, heading=TRAINING, advanced=True, flag="--insert-batchnorm/--no-insert-batchnorm",
        help="Train with new BatchNorm where it was folded, and fold it again (default), or not.",
    )  # fmt: skip
    freeze: tuple[str, ...] = option(
        (), help="Names of weights that do not train (repeatable).", heading=TRAINING, advanced=True, metavar="GLOB"
    )
    keep: str = option(
        "best", help="Weights to keep: best on the validation data, or last.", heading=OUTPUT, choices=KEEP
    )
    log_dir: str | None = option(
        None, help="Folder of CSV and TensorBoard logs.", heading=OUTPUT, advanced=True, shown="OUTPUT.training"
    )

    def __post_init__(self) -> None:
        for name in ("augment", "freeze"):
            if isinstance(value := getattr(self, name), str):
                raise OnnxPruneError(f"{name} is a tuple", fix=f"({value!r},)")
        if isinstance(self.lr, str) and self.lr != "auto":
            raise OnnxPruneError(f"the learning rate is a number or 'auto', not {self.lr!r}")
        super().__post_init__()
        if self.warmup >= self.epochs and self.warmup >= 1:
            raise OnnxPruneError(
                f"the warm-up takes {self.warmup:g} epochs and the training {self.epochs}", fix="a shorter warm-up"
            )

    @property
    def base_lr(self) -> float:
        """The learning rate if it is not "auto"."""
        return _LR[self.optimizer] if self.lr is None or isinstance(self.lr, str) else float(self.lr)

    @property
    def decay(self) -> float:
        """The weight decay."""
        return _WEIGHT_DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def world(self) -> int:
        """Number of processes that train together."""
        return self.devices * self.num_nodes

    def signature(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON: a checkpoint of another signature is not resumed."""
        out: dict[str, Any] = {}
        for f in fields(self):
            if f.name not in _FREE:
                value = getattr(self, f.name)
                out[f.name] = [augment_name(a) for a in value] if f.name in ("augment", "freeze") else value
        return out


def augment_name(augment: str | Callable[..., Any]) -> str:
    """Return the name that a user knows an augmentation by."""
    if isinstance(augment, str):
        return augment
    return f"{getattr(augment, '__module__', '')}:{getattr(augment, '__qualname__', type(augment).__qualname__)}"


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainingMethod(Options):
    """A method that prunes while training, and the budget of the plan that it ends in."""

    method: str | None = option(
        None, help="Prune while training: slimming, polarization, group_lasso, soft_filter.", heading=BUDGET
    )
    params: Mapping[str, Any] = option(
        {}, help="Parameter of the method (repeatable).", heading=BUDGET, advanced=True, flag=("-p", "--param"),
        metavar="NAME=VALUE", text=PAIRS,
    )  # fmt: skip
    ratio: float | None = option(None, help="With --method: share of the channels removed.", heading=BUDGET, ge=0, lt=1)
    target: str | None = option(
        None, help="With --method: share kept, e.g. macs=0.5.", heading=BUDGET, metavar="WHAT=SHARE"
    )
