"""Accuracy of a model on data, in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from onnxprune.data import Data, Preprocess, model_batches
from onnxprune.errors import OnnxPruneError
from onnxprune.metrics import Samples, cross_entropy, hits, scores_of
from onnxprune.model import Model
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
    found: list[list[Samples]] = []
    done = 0
    for feed, y in model_batches(model, data, preprocess or Preprocess(), batch):
        assert y is not None
        scores = scores_of(session.run(feed)[0], len(next(iter(feed.values()))))[: len(y)]
        found.append([hits(scores, y, 1), hits(scores, y, 5), cross_entropy(scores, y)])
        done += len(y)
        if progress is not None:
            progress(done, len(data))
    top1, top5, loss = (float(np.concatenate(column).mean()) for column in zip(*found, strict=True))
    return Accuracy(top1, sqrt(top1 * (1 - top1) / done), top5, loss, done, session.provider)
