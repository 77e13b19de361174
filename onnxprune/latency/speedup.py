"""Predicted and measured latency of a pruned model and its original."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import Runtime, make_runtime
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
class TargetRound:
    """One plan on the way to a latency target.

    Attributes:
        target: Share that the plan was made for, in the corrected latency model.
        predicted: Share that the latency model predicts, before correction.
        measured: Measured share.
        error: Standard error of the measured share.
    """

    target: float
    predicted: float
    measured: float
    error: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures as a JSON object."""
        return {"target": self.target, "predicted": self.predicted, "measured": self.measured, "error": self.error}


@dataclass(frozen=True)
class Speedup:
    """Predicted and measured latency of the original and the pruned model.

    Attributes:
        predicted: Prediction of the latency model.
        measured: Medians of interleaved runs.
        batch: Samples per run.
        threads: Threads of onnxruntime; 0 for all cores.
        runs: Timed runs of each model.
        provider: Execution provider of the measurement, or the runtime and its device.
        error: Standard error of the measured share.
        rounds: Plans that were measured on the way to a latency target, the chosen one among them.
        note: Reason for which a latency target is not met as measured; "" if it is, or if there is none.
    """

    predicted: LatencyPair
    measured: LatencyPair
    batch: int
    threads: int
    runs: int
    provider: str
    error: float = 0.0
    rounds: tuple[TargetRound, ...] = ()
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        pairs = {
            name: {"before": pair.before, "after": pair.after, "share": pair.share}
            for name, pair in (("predicted", self.predicted), ("measured", self.measured))
        }
        out: dict[str, Any] = {
            **pairs, "batch": self.batch, "threads": self.threads, "runs": self.runs, "provider": self.provider,
            "error": self.error,
        }  # fmt: skip
        if self.rounds:
            out["rounds"] = [r.as_dict() for r in self.rounds]
            out["note"] = self.note or None
        return out


def measure_speedup(
    analysis: Analysis,
    plan: Plan,
    pruned: Model,
    predictor: LatencyPredictor,
    *,
    device: str = "cpu",
    runtime: Runtime | None = None,
    runs: int = 30,
    progress: Progress | None = None,
) -> Speedup:
    """Measure original and pruned model in turns, under the conditions of the latency model.

    Args:
        analysis: Coupling analysis of the original.
        plan: Channels that were removed.
        pruned: Pruned model.
        predictor: Latency model; defines batch and threads.
        device: For onnxruntime: "auto", "cpu" or "cuda".
        runtime: Runtime to measure in; default: onnxruntime on the device.
        runs: Timed runs of each model.
        progress: Called with (done, total) runs.
    """
    feeds = random_feeds(analysis, predictor.batch)
    where = runtime or make_runtime(device=device)
    found = where.measure(
        [analysis.source, pruned], [feeds, feeds], threads=predictor.threads, batch=predictor.batch, runs=runs,
        progress=progress,
    )  # fmt: skip
    before, after = found.latencies
    return Speedup(
        LatencyPair(predictor.baseline, predictor.seconds(analysis.kept(plan))),
        LatencyPair(before.median, after.median),
        predictor.batch,
        predictor.threads,
        runs,
        found.ran,
        found.error(1),
    )
