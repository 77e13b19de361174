"""What happens beside the training: history, best weights, a moving average."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from onnxprune._utils.progress import Progress
from onnxprune.training._learner import Learner, ValidationMetrics

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Epoch:
    """A line of the history.

    Attributes:
        epoch: from 1; 0 is the model as it was given.
        train_loss: mean over the epoch's steps, penalties included; None for epoch 0.
        top1: on the validation data; None without labels.
        loss: on the validation data.
        lr: learning rate at the epoch's start; None for epoch 0.
        seconds: training and validation.
    """

    epoch: int
    train_loss: float | None
    top1: float | None
    loss: float
    lr: float | None
    seconds: float

    @property
    def figures(self) -> ValidationMetrics:
        """What the weights were worth after it."""
        return ValidationMetrics(self.top1, self.loss)


class Recorder(Callback):
    """Keeps the history, the weights of the best epoch and those of the last.

    Stands before `MovingAverage` in the list of callbacks, so that what it takes are the weights that were validated.

    Attributes:
        history: one line per epoch, from the model as it was given on.
        best: the best epoch.
        stopped: why the training ended before its time.
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

    def on_validation_start(self, trainer: Any, learner: Learner) -> None:
        """The clock of epoch 0 is its validation."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._start = time.perf_counter()

    def on_validation_epoch_end(self, trainer: Any, learner: Learner) -> None:
        """Takes figures and weights while they belong together."""
        self._found = learner.figures()
        if self._found.top1 is not None:
            learner.log("val_top1", self._found.top1, sync_dist=True)
        learner.log("val_loss", self._found.loss, sync_dist=True)
        if trainer.state.fn == TrainerFn.VALIDATING:
            took = time.perf_counter() - self._start
            self.history = [Epoch(0, None, self._found.top1, self._found.loss, None, took)]
        else:
            self.last_weights = weights_of(learner)

    def on_train_epoch_start(self, trainer: Any, learner: Learner) -> None:
        """Notes the time and the learning rate."""
        self._start = time.perf_counter()
        self._lr = float(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(self, trainer: Any, learner: Learner, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Says how far the training is."""
        if self._progress is not None and trainer.is_global_zero:
            self._progress(trainer.global_step, learner.steps)

    def on_train_epoch_end(self, trainer: Any, learner: Learner) -> None:
        """Adds a line to the history."""
        assert self._found is not None
        learner.log("lr", self._lr, sync_dist=True)
        loss = float(trainer.callback_metrics["train_loss_epoch"])
        took = time.perf_counter() - self._start
        line = Epoch(trainer.current_epoch + 1, loss, self._found.top1, self._found.loss, self._lr, took)
        if line.figures.better_than(self.history[self.best].figures):
            self.best, self.best_weights = line.epoch, self.last_weights
        self.history.append(line)
        if trainer.should_stop and line.epoch < learner.settings.epochs:  # EarlyStopping has looked at the validation
            self.stopped = f"no better for {learner.settings.patience} epochs"

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"history": [asdict(e) for e in self.history], "best": self.best, "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint; the weights of the best epoch lie in a file of their own."""
        self.history = [Epoch(**e) for e in state["history"]]
        self.best, self.stopped = state["best"], state["stopped"]


class MovingAverage(WeightAveraging):
    """An exponential moving average of weights and BatchNorm statistics; validation and checkpoints use it.

    avg += (1 - d) (w - avg) after each step, with d = min(decay, (1 + n) / (10 + n)) after n steps, so that a short
    training is not averaged with the weights it began from. Whole numbers and constants are taken over as they are.
    """

    def __init__(self, decay: float) -> None:
        def average(old: torch.Tensor, new: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
            if not old.is_floating_point():
                return new
            n = float(count)
            # Equal ones are left alone: the difference of two infinities (masks) is no number.
            return torch.where(old == new, old, torch.lerp(old, new, 1 - min(decay, (1 + n) / (10 + n))))

        super().__init__(avg_fn=average)


def weights_of(learner: Learner) -> State:
    """A copy of a learner's weights and statistics, on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in learner.net.state_dict().items()}
