"""Descent after recovery: a few epochs in PyTorch towards the original's outputs, kept if the metric gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune._utils.output.progress import Progress
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.model import Model
from onnxprune.pipeline.budget.judge import Judge, Judgement

LR = {True: 1e-3, False: 1e-2}
"""Learning rate of SGD without and with labels: weights that already fit move little without them."""


@dataclass(frozen=True)
class Polished:
    """Result of a descent.

    Attributes:
        model: Polished model, or the model before if it was not better.
        before: Metric before.
        after: Metric after.
        kept: True if the polished model is kept.
        epochs: Passes over the samples.
    """

    model: Model
    before: Judgement
    after: Judgement
    kept: bool
    epochs: int

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {"before": vars(self.before), "after": vars(self.after), "kept": self.kept, "epochs": self.epochs}


def polish(
    model: Model,
    original: Model,
    fit: Calibration,
    judge: Judge,
    *,
    epochs: int,
    unlabelled: bool = True,
    progress: Progress | None = None,
) -> Polished:
    """Train a recovered model with the original as teacher; labels are used only on request.

    Args:
        model: Recovered model.
        original: Original, the teacher.
        fit: Samples to train on.
        judge: Evaluation on other samples; a model with a larger drop than before is discarded.
        epochs: Passes over the samples.
        unlabelled: Ignore the labels of the samples.
        progress: Called with (done, total) steps.

    Raises:
        OnnxPruneError: The extra for training is not installed, or the model cannot be trained; see `retrain`.
    """
    from onnxprune.training import Settings, retrain

    alone = unlabelled or fit.data.y is None
    settings = Settings(
        epochs=epochs, unlabelled=alone, lr=LR[alone], device=fit.device, threads=fit.threads, keep="best",
    )  # fmt: skip
    trained = retrain(
        model, fit.data, preprocess=fit.preprocess, settings=settings, teacher=original, progress=progress
    )
    before, after = judge.read(model), judge.read(trained.model)
    kept = after.drop < before.drop
    return Polished(trained.model if kept else model, before, after, kept, epochs)
