"""How a network is retrained: one frozen record, checked when it is made. Loads neither PyTorch nor Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from onnxprune._utils.formatting import short_repr
from onnxprune.errors import OnnxPruneError, unknown

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("cosine", "onecycle", "step", "constant")
PRECISIONS = ("32", "bf16", "16")
DEVICES = ("auto", "cpu", "cuda")
KEEP = ("best", "last")
RUNTIMES = ("auto", "onnxruntime", "torch")
# What the optimizers are used with where nothing else is known: He et al. 2016 (ten times the rate, from scratch) for
# SGD, Loshchilov & Hutter 2019 for AdamW.
_LR = {"sgd": 0.01, "adamw": 1e-3}
_WEIGHT_DECAY = {"sgd": 5e-4, "adamw": 0.01}
# Settings that decide how fast or where a run goes, not what comes out: a resumed run may change them.
_FREE = ("device", "threads", "workers", "keep", "log_dir", "teacher_runtime")


@dataclass(frozen=True, repr=False)
class Settings:
    """Settings of `retrain`.

    Attributes:
        epochs: times every sample is seen.
        batch: samples per step and device; a model whose batch is fixed takes its own.
        lr: learning rate (the largest of the schedule); "auto" finds one by a range test (Smith 2017); None: 0.01 for
            SGD, 0.001 for AdamW.
        optimizer: "sgd" or "adamw".
        momentum: of SGD.
        nesterov: SGD looks ahead (with momentum only).
        weight_decay: for weights of two and more dimensions; norms, biases and per-channel scales are spared. None:
            5e-4 for SGD, 0.01 for AdamW.
        schedule: "cosine" (Loshchilov & Hutter 2017), "onecycle" (Smith & Topin 2018), "step" (a tenth at half and at
            three quarters of the way, He et al. 2016) or "constant".
        warmup: linear rise at the start: below 1 a share of all steps, from 1 on a number of epochs.
        label_smoothing: in [0, 1) (Szegedy et al. 2016).
        mixup: alpha of the Beta distribution that pairs of samples are mixed by; 0: off (Zhang et al. 2018).
        augment: of every training sample, in order: "crop" (pad by an eighth of the height, cut out the old size),
            "crop=4" (pad by four pixels), "flip" (left and right, every other sample), or a function of a sample
            as a CHW tensor in the data's own dtype, as such or as "package.module:function".
        precision: "32", "bf16" or "16" (mixed, the last on CUDA only).
        clip: largest norm of the gradient; None: any.
        patience: stop after so many epochs without a better validation; None: never.
        ema: decay of a moving average of weights and BatchNorm statistics, which is then what is validated and kept;
            None: off.
        seed: of the split, the order of samples, augmentation, mixup and dropout.
        device: "auto", "cpu" or "cuda".
        threads: CPU threads of PyTorch and of the teacher; 0: all cores. Small networks are fastest on one.
        devices: processes on this machine, one for each GPU (or, on the CPU, just so many).
        num_nodes: machines; the command runs on each, see Lightning's documentation of clusters.
        workers: processes that prepare batches, per device; 0: the training process itself.
        val_share: of the data, kept for validation where there is no validation data; the same share of every class.
        temperature: of distillation.
        alpha: share of distillation in the loss, cross-entropy has the rest; 4 and 0.9 are Zagoruyko & Komodakis' 2017.
        features: weight of the distance to the teacher's residual outputs; 0: off.
        teacher_runtime: "onnxruntime", "torch" or "auto".
        unlabelled: take no notice of labels: learn from the teacher alone.
        insert_batchnorm: give convolutions whose BatchNorm was folded a new one while they train.
        freeze: patterns of initializer names that do not train, such as "features.0.*". An inserted BatchNorm behind a
            frozen convolution still measures, and is folded into it: leave it out with `insert_batchnorm`.
        keep: "best" weights on the validation data, or those of the "last" epoch.
        log_dir: for CSV and TensorBoard logs; None: the run's own folder.

    Raises:
        OnnxPruneError: a value out of range.
    """

    epochs: int = 10
    batch: int = 64
    lr: float | str | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float | None = None
    schedule: str = "cosine"
    warmup: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    augment: tuple[str | Callable[..., Any], ...] = ()
    precision: str = "32"
    clip: float | None = None
    patience: int | None = None
    ema: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    devices: int = 1
    num_nodes: int = 1
    workers: int = 0
    val_share: float = 0.1
    temperature: float = 4.0
    alpha: float = 0.9
    features: float = 0.0
    teacher_runtime: str = "auto"
    unlabelled: bool = False
    insert_batchnorm: bool = True
    freeze: tuple[str, ...] = ()
    keep: str = "best"
    log_dir: str | None = None

    def __repr__(self) -> str:
        return short_repr(self)

    def __post_init__(self) -> None:
        for name, known in (
            ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("precision", PRECISIONS), ("device", DEVICES),
            ("keep", KEEP), ("teacher_runtime", RUNTIMES),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise unknown(name.replace("_", " "), str(getattr(self, name)), known)
        for name, least in (
            ("epochs", 1),
            ("batch", 1),
            ("devices", 1),
            ("num_nodes", 1),
            ("threads", 0),
            ("workers", 0),
            ("seed", 0),
        ):
            _check_count(name, getattr(self, name), least)
        if self.patience is not None:
            _check_count("patience", self.patience, 1)
        if isinstance(self.lr, str) and self.lr != "auto":
            raise OnnxPruneError(f"the learning rate is a number or 'auto', not {self.lr!r}")
        rules: tuple[tuple[str, float | None, str, Callable[[float], bool]], ...] = (
            ("lr", None if isinstance(self.lr, str) else self.lr, "above 0", lambda v: v > 0),
            ("momentum", self.momentum, "in [0, 1)", lambda v: 0 <= v < 1),
            ("weight_decay", self.weight_decay, "at least 0", lambda v: v >= 0),
            ("warmup", self.warmup, "at least 0", lambda v: v >= 0),
            ("label_smoothing", self.label_smoothing, "in [0, 1)", lambda v: 0 <= v < 1),
            ("mixup", self.mixup, "at least 0", lambda v: v >= 0),
            ("clip", self.clip, "above 0", lambda v: v > 0),
            ("ema", self.ema, "in (0, 1)", lambda v: 0 < v < 1),
            ("val_share", self.val_share, "in (0, 1)", lambda v: 0 < v < 1),
            ("temperature", self.temperature, "above 0", lambda v: v > 0),
            ("alpha", self.alpha, "in [0, 1]", lambda v: 0 <= v <= 1),
            ("features", self.features, "at least 0", lambda v: v >= 0),
        )
        for name, value, what, fits in rules:
            if value is not None and not (_number(value) and fits(value)):
                raise OnnxPruneError(f"{_title(name)} must be {what}; got {value!r}")
        if self.warmup >= self.epochs and self.warmup >= 1:
            raise OnnxPruneError(
                f"the warm-up takes {self.warmup:g} epochs and the training {self.epochs}", fix="a shorter warm-up"
            )
        for name in ("augment", "freeze"):
            if isinstance(value := getattr(self, name), str):
                raise OnnxPruneError(f"{name} is a tuple", fix=f"({value!r},)")

    @property
    def base_lr(self) -> float:
        """The learning rate where it is not "auto"."""
        return _LR[self.optimizer] if self.lr is None or isinstance(self.lr, str) else float(self.lr)

    @property
    def decay(self) -> float:
        """The weight decay."""
        return _WEIGHT_DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def world(self) -> int:
        """Processes that train together."""
        return self.devices * self.num_nodes

    def signature(self) -> dict[str, Any]:
        """What a run depends on, as JSON: a checkpoint of another signature is not resumed."""
        out: dict[str, Any] = {}
        for f in fields(self):
            if f.name not in _FREE:
                value = getattr(self, f.name)
                out[f.name] = [augment_name(a) for a in value] if f.name in ("augment", "freeze") else value
        return out


def augment_name(augment: str | Callable[..., Any]) -> str:
    """An augmentation by the name a user knows it by."""
    if isinstance(augment, str):
        return augment
    return f"{getattr(augment, '__module__', '')}:{getattr(augment, '__qualname__', type(augment).__qualname__)}"


def different(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys under which two records differ."""
    return sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_count(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OnnxPruneError(f"{_title(name)} must be a whole number, at least {least}; got {value!r}")


def _title(name: str) -> str:
    return {"lr": "the learning rate", "ema": "the decay of the moving average"}.get(name, name.replace("_", " "))
