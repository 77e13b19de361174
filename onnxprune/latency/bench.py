"""Benchmark of models: cost and measured latency side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune._utils.formatting import count, counted, seconds, shortened, size
from onnxprune._utils.html import html_table
from onnxprune._utils.progress import Progress
from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import Latency, measure
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.planning.analyze import analyze

_SHOWN = 4  # results in a repr


@dataclass(frozen=True, repr=False)
class BenchResult:
    """Figures of one model; speedup and efficiency relative to the first model of the benchmark.

    Attributes:
        latency: Latency of one batch.
        cost: MACs per sample, parameters, bytes.
        speedup: Latency of the first model divided by this one's.
        efficiency: Speedup times the share of the first model's MACs; 1 if latency shrinks like MACs.
        provider: Execution provider of onnxruntime.
        name: File name of the model, if it has one.
    """

    latency: Latency
    cost: Cost
    speedup: float
    efficiency: float
    provider: str
    name: str = ""

    def __repr__(self) -> str:
        figures = f"{seconds(self.latency.median)}, {count(self.cost.macs)} MACs, {count(self.cost.params)} parameters"
        return f"<BenchResult {shortened(self.name, 60)}: {figures}, speed-up {self.speedup:.2f}, {self.provider}>"

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        return BenchResults([self])._repr_html_()

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON object."""
        return {k: v for k, v in asdict(self).items() if k != "name"}


class BenchResults(tuple[BenchResult, ...]):
    """Results of `bench`, in the order of the models."""

    __slots__ = ()

    def __repr__(self) -> str:
        shown = [f"  {r!r}" for r in self[:_SHOWN]] + (["  ..."] if len(self) > _SHOWN else [])
        return "\n".join([f"<BenchResults: {counted(len(self), 'model')}", *shown]) + ">"

    def _repr_html_(self) -> str:
        """Table for notebooks: latency, cost and speed-up of every model."""
        rows = [
            [r.name, seconds(r.latency.median), count(r.cost.macs), count(r.cost.params), size(r.cost.bytes),
             f"{r.speedup:.2f}", f"{r.efficiency:.2f}"]
            for r in self
        ]  # fmt: skip
        columns = ["model", "latency", "MACs", "params", "bytes", "speed-up", "efficiency"]
        note = f"{self[0].provider}, median of {counted(self[0].latency.runs, 'run')}" if self else ""
        return html_table("measured", columns, rows, note=note)


def bench(
    models: Sequence[Model],
    *,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 5,
    device: str = "cpu",
    progress: Progress | None = None,
) -> BenchResults:
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
    for model, latency, cost, session in zip(models, times, costs, sessions, strict=True):
        speedup = times[0].median / latency.median
        efficiency, name = speedup * cost.ratio(costs[0], "macs"), model.path.name if model.path is not None else ""
        out.append(BenchResult(latency, cost, speedup, efficiency, session.provider, name))
    return BenchResults(out)
