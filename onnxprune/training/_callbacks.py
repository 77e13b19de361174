"""Callbacks of the training: history, best weights, moving average."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from onnxprune._utils.fields import Bounds, Index, read_options
from onnxprune._utils.progress import Progress
from onnxprune.training._learner import Learner, ValidationMetrics

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Epoch:
    """Line of the history.

    Attributes:
        epoch: from 1; 0 is the input model.
        train_loss: mean over the epoch's steps, penalties included; None for epoch 0.
        top1: on the validation data; None without labels.
        loss: on the validation data.
        lr: learning rate at the epoch's start; None for epoch 0.
        seconds: training and validation.
        metric, value, higher_is_better: of the task, on the validation data; see `ValidationMetrics`.
    """

    epoch: Index
    train_loss: float | None
    top1: Annotated[float, Bounds(at_least=0, at_most=1)] | None
    loss: float
    lr: float | None
    seconds: float
    metric: str = ""
    value: float | None = None
    higher_is_better: bool = True

    @property
    def figures(self) -> ValidationMetrics:
        """Return the validation figures of the epoch."""
        return ValidationMetrics(self.top1, self.loss, self.metric, self.value, self.higher_is_better)


class Recorder(Callback):
    """Records the history, the weights of the best epoch and those of the last.

    It precedes `MovingAverage` in the list of callbacks, so that it records the weights that were validated.

    Attributes:
        history: one line per epoch, beginning with the input model.
        best: the best epoch.
        stopped: reason of an early end of the training.
        began: whether a step has ended, which a damaged state of a resumed run does not reach.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self.history: list[Epoch] = []
        self.best = 0
        self.stopped: str | None = None
        self.best_weights: State | None = None
        self.last_weights: State | None = None
        self._progress = progress
        self._found: ValidationMetrics | None = None
        self._start, self._lr = 0.0, 0.0
        self.began = False

    def on_validation_start(self, trainer: Any, learner: Learner) -> None:
        """Start the clock of epoch 0, which is a validation only."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Any, learner: Learner) -> None:
        """Record figures and weights while they belong together."""
        self._found = learner.figures()
        if self._found.top1 is not None:
            learner.log("val_top1", self._found.top1, sync_dist=True)
        if self._found.value is not None:
            learner.log("val_metric", self._found.value, sync_dist=True)
        learner.log("val_loss", self._found.loss, sync_dist=True)
        if trainer.state.fn == TrainerFn.VALIDATING:
            took = time.perf_counter() - self._start
            self.history = [_line(0, None, self._found, None, took)]
        else:
            self.last_weights = weights_of(learner)

    def on_train_epoch_start(self, trainer: Any, learner: Learner) -> None:
        """Record the time and the learning rate."""
        self._start = time.perf_counter()
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, learner: Learner, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note that a step has ended, and report progress."""
        self.began = True
        if self._progress is not None and trainer.is_global_zero:
            self._progress(trainer.global_step, learner.steps)

    def on_train_epoch_end(self, trainer: Any, learner: Learner) -> None:
        """Add a line to the history."""
        assert self._found is not None
        learner.log("lr", self._lr, sync_dist=True)
        loss = float(trainer.callback_metrics["train_loss_epoch"])
        took = time.perf_counter() - self._start
        line = _line(trainer.current_epoch + 1, loss, self._found, self._lr, took)
        if line.figures.better_than(self.history[self.best].figures):
            self.best, self.best_weights = line.epoch, self.last_weights
        self.history.append(line)
        if trainer.should_stop and line.epoch < learner.settings.epochs:  # EarlyStopping has seen the validation
            self.stopped = f"no better for {learner.settings.patience} epochs"

    def state_dict(self) -> dict[str, Any]:
        """Return the state for the checkpoint."""
        return {"history": [asdict(e) for e in self.history], "best": self.best, "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from the checkpoint; the weights of the best epoch have their own file."""
        self.history = [read_options(Epoch, e, "history of the checkpoint") for e in state["history"]]
        self.best, self.stopped = state["best"], state["stopped"]


def _line(epoch: int, train_loss: float | None, found: ValidationMetrics, lr: float | None, took: float) -> Epoch:
    return Epoch(epoch, train_loss, found.top1, found.loss, lr, took, found.metric, found.value, found.higher_is_better)


class MovingAverage(WeightAveraging):
    """Exponential moving average of weights and BatchNorm statistics, used by validation and checkpoints.

    avg += (1 - d) (w - avg) after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps, so that a short
    training is not averaged with its initial weights. Integers and constants are copied.
    """

    def __init__(self, decay: float) -> None:
        def average(old: torch.Tensor, new: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
            if not old.is_floating_point():
                return new
            n = float(count)
            # Equal values are not averaged: the difference of two infinities (masks) is NaN.
            return torch.where(old == new, old, torch.lerp(old, new, 1 - min(decay, (1 + n) / (10 + n))))

        super().__init__(avg_fn=average)


def weights_of(learner: Learner) -> State:
    """Copy a learner's weights and statistics to the CPU."""
    return {name: t.detach().cpu().clone() for name, t in learner.net.state_dict().items()}
