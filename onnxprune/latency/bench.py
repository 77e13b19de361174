"""Cost and measured latency of models side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import Latency, measure
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.pipeline import analyze


@dataclass(frozen=True)
class BenchResult:
    """One model's figures; speed-up and efficiency over the first one measured with it.

    Attributes:
        latency: of one batch.
        cost: MACs per sample, parameters, bytes.
        speedup: latency of the first model over this one's.
        efficiency: speed-up times the share of the first model's MACs; 1 when fewer MACs are fully fewer milliseconds.
        provider: what onnxruntime ran on.
    """

    latency: Latency
    cost: Cost
    speedup: float
    efficiency: float
    provider: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bench(
    models: Sequence[Model],
    *,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 5,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[BenchResult]:
    """Measures models in turn on random inputs.

    Args:
        batch: samples per run where a model's batch is dynamic.
        threads: of onnxruntime; 0 for all cores.
        runs: timed runs of each; the median counts.
        warmup: runs of each before that are not counted.
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
