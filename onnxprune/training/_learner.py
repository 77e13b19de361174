"""LightningModule around a converted model: losses and validation metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional

from onnxprune.training._datasets import Batch, seed_of
from onnxprune.training._distillation import Teacher, distillation_loss, feature_loss
from onnxprune.training._distillation_points import DistillationPoint
from onnxprune.training._schedules import make_optimizer, make_schedule
from onnxprune.training._settings import Settings

if TYPE_CHECKING:
    from onnxprune.training._task_metric import ValidationMetric
    from onnxprune.training.methods import Method


@dataclass(frozen=True)
class ValidationMetrics:
    """Figures of a model on validation data.

    Attributes:
        top1: share of samples whose largest output is their label; None without labels and for other metrics.
        loss: mean cross-entropy in nats; without labels the distillation loss.
        metric: name of the task's metric; "" for top1 accuracy or the distillation loss.
        value: value of that metric.
        higher_is_better: whether larger values of it are better.
    """

    top1: float | None
    loss: float
    metric: str = ""
    value: float | None = None
    higher_is_better: bool = True

    def better_than(self, other: ValidationMetrics) -> bool:
        """Return True for a better metric, or the same and a lower loss; False if the loss is not finite."""
        if not math.isfinite(self.loss):
            return False
        if not math.isfinite(other.loss):
            return True
        if self.value is not None and other.value is not None:
            sign = 1 if self.higher_is_better else -1
            return (sign * self.value, -self.loss) > (sign * other.value, -other.loss)
        if self.top1 is None or other.top1 is None:
            return self.loss < other.loss
        return (self.top1, -self.loss) > (other.top1, -other.loss)


class Diverged(Exception):
    """Loss that is not finite; epoch and step count from 1."""

    def __init__(self, epoch: int, step: int, loss: float) -> None:
        super().__init__(f"the loss became {loss} at epoch {epoch}, step {step}")
        self.epoch, self.step, self.loss = epoch, step, loss


class _Unowned:
    """Reference of a module that is not copied, moved or saved with it."""

    def __init__(self, teacher: Teacher | None, method: Method | None, judge: ValidationMetric | None) -> None:
        self.teacher, self.method, self.judge = teacher, method, judge

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unowned:
        return self


class Learner(pl.LightningModule):
    """Trains a module that returns logits, or logits and features.

    loss = (1 - a) cross-entropy + a distillation + f features + the method's penalty, where a is `settings.alpha` with
    a teacher and 0 without, 1 without labels; and f is `settings.features`.

    Args:
        net: float inputs -> logits [n, classes, ...], or a tuple that begins with them.
        settings: settings of the training.
        steps: number of steps of the whole training.
        labelled: whether labels are used.
        teacher: target of the distillation, by logits and features.
        method: training-time pruning method; adds to the loss, changes weights after an epoch.
        points: tensors that are compared with the teacher's, for outputs that are no scores of classes: the first
            outputs of `net` and of the teacher; without them both begin with logits.
        judge: measures the task's metric after an epoch; None: top1 accuracy or the distillation loss.
    """

    def __init__(
        self, net: nn.Module, settings: Settings, steps: int, *, labelled: bool, teacher: Teacher | None = None,
        method: Method | None = None, points: Sequence[DistillationPoint] = (), judge: ValidationMetric | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.net, self.points = net, tuple(points)
        self.settings, self.steps, self.labelled = settings, steps, labelled
        self.lr = settings.base_lr
        self.searching = False  # during the range test the loss may diverge
        self.aside = _Unowned(teacher, method, judge)
        self._hits, self._loss, self._count = 0.0, 0.0, 0

    def configure_optimizers(self) -> Any:
        """Return an optimizer and its schedule."""
        optimizer = make_optimizer(self.net, self.settings, self.lr)
        schedule = make_schedule(optimizer, self.settings, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --------------------------------------------------------------------------------------------------- training

    def on_train_epoch_start(self) -> None:
        """Seed the model's random operators by the epoch, so that a resumed run draws the same numbers."""
        torch.manual_seed(seed_of(self.settings.seed, self.current_epoch, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch.

        Raises:
            Diverged: it is not finite, in any process.
        """
        x, y, share = batch.x, batch.y, 1.0
        other = None
        if self.settings.mixup:
            share, other = _pairs(len(x), self.settings.mixup)
            x = share * x + (1 - share) * x[other.to(x.device)]
        outputs = self._outputs(x)
        loss = self._loss_of(outputs, x, y, share, other)
        method = self.aside.method
        penalty = method.penalty() if method is not None else None
        if penalty is not None:
            loss = loss + penalty
        if not self.searching:
            finite = torch.isfinite(loss.detach()).float()
            if self.trainer.world_size > 1:  # all processes stop together
                torch.distributed.all_reduce(finite, torch.distributed.ReduceOp.MIN)
            if not finite:
                value = float(loss.detach())
                raise Diverged(self.current_epoch + 1, batch_idx + 1, math.nan if math.isfinite(value) else value)
            self.log("train_loss", loss.detach(), on_step=True, on_epoch=True, batch_size=len(x), sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Let a method change weights after the last step of an epoch, before validation."""
        method = self.aside.method
        if method is not None and not self.searching and self.trainer.is_last_batch:
            method.after_epoch(self.current_epoch, self.settings.epochs)

    def _outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        found = self.net(x)
        return list(found) if isinstance(found, tuple | list) else [found]

    def _loss_of(
        self, outputs: list[torch.Tensor], x: torch.Tensor, y: torch.Tensor | None, share: float,
        other: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        s = self.settings
        if self.points:
            return self._distance(outputs, self._taught(x))
        logits = outputs[0].float()
        alpha = 0.0 if self.aside.teacher is None else s.alpha if self.labelled else 1.0
        loss = logits.new_zeros(())
        if alpha < 1 and y is not None:
            flat = logits.flatten(1)
            entropy = functional.cross_entropy(flat, y, label_smoothing=s.label_smoothing)
            if other is not None:
                twin = functional.cross_entropy(flat, y[other.to(y.device)], label_smoothing=s.label_smoothing)
                entropy = share * entropy + (1 - share) * twin
            loss = loss + (1 - alpha) * entropy
        if self.aside.teacher is not None and (alpha > 0 or s.features):
            wanted = self._taught(x)
            loss = loss + alpha * distillation_loss(logits, wanted[0].float(), s.temperature)
            if s.features:
                loss = loss + s.features * feature_loss(
                    [f.float() for f in outputs[1:]], [f.float() for f in wanted[1:]]
                )
        return loss

    def _distance(self, outputs: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
        """Return the mean distance of the points from the teacher's, and that of the features."""
        s, count = self.settings, len(self.points)
        terms = [
            point.loss(ours, theirs, s.temperature)
            for point, ours, theirs in zip(self.points, outputs[:count], wanted[:count], strict=True)
        ]
        loss = torch.stack(terms).mean()
        if s.features:
            pairs = [f.float() for f in outputs[count:]], [f.float() for f in wanted[count:]]
            loss = loss + s.features * feature_loss(*pairs)
        return loss

    def _taught(self, x: torch.Tensor) -> list[torch.Tensor]:
        assert self.aside.teacher is not None
        with torch.autocast(x.device.type, enabled=False):  # mixed precision is for the student only
            found: list[torch.Tensor] = self.aside.teacher(x)
        return found

    # ------------------------------------------------------------------------------------------------- validation

    def on_validation_epoch_start(self) -> None:
        """Reset the sums. Every process validates with the statistics of the first one."""
        self._hits, self._loss, self._count = 0.0, 0.0, 0
        if self.trainer.world_size > 1:
            measured = self.net.state_dict().keys()  # the other buffers are constants
            for name, buffer in self.net.named_buffers():
                if name in measured:
                    torch.distributed.broadcast(buffer, src=0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the sums; fill-up samples do not count."""
        outputs = self._outputs(batch.x)
        if not batch.real:
            return
        if self.points:  # rows of points may be others than those of samples, so fill-up samples count here
            self._loss += float(self._distance(outputs, self._taught(batch.x))) * batch.real
            self._count += batch.real
            return
        logits = outputs[0].float()[: batch.real]
        if self.labelled and batch.y is not None:
            y, flat = batch.y[: batch.real], logits.flatten(1)
            self._hits += float((flat.argmax(1) == y).sum())
            self._loss += float(functional.cross_entropy(flat, y, reduction="sum"))
        else:
            wanted = self._taught(batch.x)[0].float()[: batch.real]
            self._loss += float(distillation_loss(logits, wanted, self.settings.temperature)) * batch.real
        self._count += batch.real

    def figures(self) -> ValidationMetrics:
        """Return the figures of the last validation epoch over all processes."""
        sums = torch.tensor([self._hits, self._loss, self._count], dtype=torch.float64, device=self.device)
        hits, loss, count = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        judge = self.aside.judge
        if judge is None:
            return ValidationMetrics(hits / count if self.labelled else None, loss / count)
        # All processes have the same weights; the first one measures for all.
        value = judge.of_module(self.net) if self.trainer.is_global_zero else 0.0
        if self.trainer.world_size > 1:
            value = float(self.trainer.strategy.broadcast(value))
        metric = judge.task.metric
        return ValidationMetrics(None, loss / count, metric.name, value, metric.higher_is_better)


def _pairs(count: int, alpha: float) -> tuple[float, torch.Tensor]:
    """Draw mixup's share from Beta(alpha, alpha), and the other sample of the batch for each one."""
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    return share, torch.randperm(count)
