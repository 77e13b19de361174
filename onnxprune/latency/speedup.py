"""Predicted and measured latency of a pruned model and its original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune._utils.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import measure
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.planning.targets import LatencyPredictor
from onnxprune.plans import Plan


@dataclass(frozen=True)
class LatencyPair:
    """Seconds per run before and after pruning."""

    before: float
    after: float

    @property
    def share(self) -> float:
        """Share of the latency that remains."""
        return self.after / self.before


@dataclass(frozen=True)
class Speedup:
    """Predicted and measured latency of the original and the pruned model.

    Attributes:
        predicted: Prediction of the latency model.
        measured: Medians of interleaved runs.
        batch: Samples per run.
        threads: Threads of onnxruntime; 0 for all cores.
        runs: Timed runs of each model.
        provider: Execution provider of the measurement.
    """

    predicted: LatencyPair
    measured: LatencyPair
    batch: int
    threads: int
    runs: int
    provider: str

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        pairs = {
            name: {"before": pair.before, "after": pair.after, "share": pair.share}
            for name, pair in (("predicted", self.predicted), ("measured", self.measured))
        }
        return {**pairs, "batch": self.batch, "threads": self.threads, "runs": self.runs, "provider": self.provider}


def measure_speedup(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    predictor: LatencyPredictor,
    *,
    device: str = "cpu",
    runs: int = 30,
    progress: Progress | None = None,
) -> Speedup:
    """Measure original and pruned model in turns, under the conditions of the latency model.

    Args:
        analysis: Coupling analysis of the original.
        plan: Channels that were removed.
        pruned: Pruned model.
        predictor: Latency model; defines batch and threads.
        device: "auto", "cpu" or "cuda".
        runs: Timed runs of each model.
        progress: Called with (done, total) runs.
    """
    feeds = random_feeds(analysis, predictor.batch)
    sessions = [Session(m, device=device, threads=predictor.threads) for m in (analysis.source, pruned)]
    before, after = measure(sessions, [feeds, feeds], runs=runs, progress=progress)
    return Speedup(
        LatencyPair(predictor.baseline, predictor.seconds(analysis.kept(plan))),
        LatencyPair(before.median, after.median),
        predictor.batch,
        predictor.threads,
        runs,
        sessions[1].provider,
    )
