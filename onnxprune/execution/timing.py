"""Latency measurement: interleaved runs, medians and quartiles, robust against drift of the machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune._utils.progress import Progress
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array


@dataclass(frozen=True)
class Latency:
    """Seconds per run of one batch: median, quartiles, and number of runs."""

    median: float
    low: float
    high: float
    runs: int


def measure(
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, Array]],
    *,
    runs: int = 30,
    warmup: int = 3,
    progress: Progress | None = None,
) -> list[Latency]:
    """Time sessions in turns, A B C A B C ...

    Args:
        sessions: Loaded models.
        feeds: Inputs of each session.
        runs: Timed runs of each session.
        warmup: Untimed runs of each session before.
        progress: Called with (rounds done, rounds).
    """
    times = np.zeros((len(sessions), runs))
    for i in range(-warmup, runs):
        for k, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            start = time.perf_counter()
            session.raw.run(None, dict(feed))
            if i >= 0:
                times[k, i] = time.perf_counter() - start
        if progress is not None:
            progress(i + warmup + 1, runs + warmup)
    return [Latency(float(np.median(t)), float(np.percentile(t, 25)), float(np.percentile(t, 75)), runs) for t in times]
