"""Benchmark of models: cost and measured latency side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune._utils.progress import Progress
from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import Latency, measure
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.pipeline import analyze


@dataclass(frozen=True)
class BenchResult:
    """Figures of one model; speedup and efficiency relative to the first model of the benchmark.

    Attributes:
        latency: Latency of one batch.
        cost: MACs per sample, parameters, bytes.
        speedup: Latency of the first model divided by this one's.
        efficiency: Speedup times the share of the first model's MACs; 1 if latency shrinks like MACs.
        provider: Execution provider of onnxruntime.
    """

    latency: Latency
    cost: Cost
    speedup: float
    efficiency: float
    provider: str

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return asdict(self)


def bench(
    models: Sequence[Model],
    *,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 5,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[BenchResult]:
    """Measure models in turns on random inputs.

    Args:
        models: Models to measure; the first is the baseline.
        batch: Samples per run, for models with a dynamic batch.
        threads: Threads of onnxruntime; 0 for all cores.
        runs: Timed runs of each model; the median counts.
        warmup: Untimed runs of each model before.
        device: "auto", "cpu" or "cuda".
        progress: Called with (done, total) rounds.
    """
    analyses = [analyze(m) for m in models]
    feeds = [random_feeds(a, batch) for a in analyses]
    costs = [CostModel(a).baseline for a in analyses]
    sessions = [Session(m, device=device, threads=threads) for m in models]
    times = measure(sessions, feeds, runs=runs, warmup=warmup, progress=progress)
    out = []
    for latency, cost, session in zip(times, costs, sessions, strict=True):
        speedup = times[0].median / latency.median
        out.append(BenchResult(latency, cost, speedup, speedup * cost.ratio(costs[0], "macs"), session.provider))
    return out
