"""Accuracy of a model on data, in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from onnxprune.data import Data, Preprocess, model_batches
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model
from onnxprune.runtime import Session


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy and mean cross-entropy.

    Attributes:
        top1: share of samples whose largest output is their label.
        top1_error: its standard error, sqrt(p (1 - p) / n).
        top5: share whose label is among the five largest.
        loss: mean cross-entropy in nats; outputs that are probabilities already are taken as such.
        images: how many samples.
        provider: what onnxruntime ran on.
    """

    top1: float
    top1_error: float
    top5: float
    loss: float
    images: int
    provider: str


def evaluate(
    model: Model,
    data: Data,
    *,
    preprocess: Preprocess | None = None,
    batch: int = 64,
    threads: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Runs a classifier over labelled data.

    Raises:
        OnnxPruneError: no labels, samples or labels that do not fit the model, outputs that are not finite.
    """
    if data.y is None:
        raise OnnxPruneError(f"the data {data.name!r} has no labels", fix="add an array y")
    session = Session(model, device=device, threads=threads)
    hits = hits5 = 0
    loss = 0.0
    done = 0
    for feed, y in model_batches(model, data, preprocess or Preprocess(), batch):
        assert y is not None
        real = len(y)
        scores = _scores(session.run(feed)[0], len(next(iter(feed.values()))))[:real]
        if int(y.max()) >= scores.shape[1] or int(y.min()) < 0:
            raise OnnxPruneError(
                f"the data has labels up to {int(y.max())}, the model {scores.shape[1]} classes",
                where=f"data {data.name!r}",
            )
        top = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        hits += int((top[:, 0] == y).sum())
        hits5 += int((top == y[:, None]).any(1).sum())
        loss += _cross_entropy(scores, y)
        done += real
        if progress is not None:
            progress(done, len(data))
    p = hits / done
    return Accuracy(p, sqrt(p * (1 - p) / done), hits5 / done, loss / done, done, session.provider)


def _scores(output: Array, count: int) -> Array:
    scores = np.asarray(output, np.float64).reshape(count, -1) if output.ndim > 1 else np.asarray(output, np.float64)
    if scores.ndim != 2 or len(scores) != count:
        raise OnnxPruneError(f"the model's output {list(output.shape)} is not one score per class")
    if not np.isfinite(scores).all():
        raise OnnxPruneError("the model's outputs are not finite on this data", fix="check --mean and --std")
    return scores


def _cross_entropy(scores: Array, y: Array) -> float:
    probabilities = (scores >= 0).all() and np.allclose(scores.sum(1), 1, atol=1e-3)
    if probabilities:
        logs = np.log(np.maximum(scores, np.finfo(np.float64).tiny))
    else:
        top = scores.max(1, keepdims=True)
        logs = scores - top - np.log(np.exp(scores - top).sum(1, keepdims=True))
    return float(-logs[np.arange(len(y)), y].sum())
