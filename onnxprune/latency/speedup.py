"""Predicted and measured latency of a pruned model beside its original's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import measure
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.planning.targets import LatencyPredictor
from onnxprune.plans import Plan


@dataclass(frozen=True)
class LatencyPair:
    """Seconds of one run before and after."""

    before: float
    after: float

    @property
    def share(self) -> float:
        """What is left."""
        return self.after / self.before


@dataclass(frozen=True)
class Speedup:
    """What the latency model promised, and what onnxruntime keeps of it.

    Attributes:
        predicted: by the model.
        measured: medians of interleaved runs.
        batch: samples per run.
        threads: of onnxruntime; 0 for all cores.
        runs: timed runs of each.
        provider: what it was measured on.
    """

    predicted: LatencyPair
    measured: LatencyPair
    batch: int
    threads: int
    runs: int
    provider: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    progress: Callable[[int, int], None] | None = None,
) -> Speedup:
    """Runs original and pruned model in turn, as the latency model was measured.

    Args:
        analysis: of the original.
        plan: what was removed.
        pruned: what is left.
        predictor: says batch and threads.
        device: "auto", "cpu" or "cuda".
        runs: timed runs of each.
        progress: called with (done, total) runs.
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
