"""Learning-rate schedules, and parameter groups with and without weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR

from onnxprune.training._settings import Settings

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
)
_ONE_CYCLE_RISE = 0.3  # Smith & Topin 2018


def warmup_steps(settings: Settings, steps: int) -> int:
    """Return the number of warmup steps, of `steps` in all."""
    share = settings.warmup if settings.warmup < 1 else settings.warmup / settings.epochs
    return min(steps - 1, round(share * steps))


def factor(step: int, *, kind: str, steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at a step (from 0) of `steps`.

    It rises linearly over the first `warmup` steps; then, t the finished share of the rest: cosine (1 + cos pi t) / 2,
    step 1, 0.1 from the middle and 0.01 from three quarters of all steps on, constant 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
    if kind == "step":
        return float(0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps)))
    return 1.0


def make_optimizer(module: nn.Module, settings: Settings, lr: float) -> torch.optim.Optimizer:
    """Make SGD or AdamW over all parameters of a module."""
    groups = parameter_groups(module, settings.decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=lr, momentum=settings.momentum, nesterov=nesterov)


def make_schedule(optimizer: torch.optim.Optimizer, settings: Settings, steps: int) -> Any:
    """Make the schedule of an optimizer, stepped after every one of `steps` steps."""
    warmup = warmup_steps(settings, steps)
    if settings.schedule == "onecycle":
        return OneCycleLR(
            optimizer, [g["lr"] for g in optimizer.param_groups], total_steps=steps,
            pct_start=warmup / steps or _ONE_CYCLE_RISE,
            cycle_momentum=settings.optimizer == "adamw" or settings.momentum > 0,
        )  # fmt: skip
    rule: Callable[[int], float] = partial(factor, kind=settings.schedule, steps=steps, warmup=warmup)
    return LambdaLR(optimizer, rule)


def parameter_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return two groups for an optimizer: parameters with and without weight decay.

    Without decay are parameters of normalisations, everything called a bias, and parameters that vary along at most one
    axis (per-channel scales, slopes, layer scale).
    """
    norms = {id(p) for m in module.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    weights: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, p in module.named_parameters():
        one_axis = sum(n > 1 for n in p.shape) <= 1
        is_bias = name.rpartition(".")[2].startswith("bias")
        (spared if one_axis or is_bias or id(p) in norms else weights).append(p)
    groups = [{"params": weights, "weight_decay": decay}, {"params": spared, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
