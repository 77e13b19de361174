"""Benchmark of models: cost and measured latency side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onnxprune._utils.output.formatting import count, counted, seconds, shortened, size
from onnxprune._utils.output.html import html_table
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.timing import Latency
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import MeasurementStopped, Runtime, make_runtime
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
        provider: Execution provider of onnxruntime, or the device that another runtime used.
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


class BenchStopped(OnnxPruneError):
    """Benchmark in which the runtime failed after some models.

    Attributes:
        results: Results of the models that were measured.
        measured: Their indices.
    """

    def __init__(self, cause: MeasurementStopped, results: BenchResults, measured: tuple[int, ...]) -> None:
        super().__init__(cause.what, where=cause.where, fix=cause.fix)
        self.results = results
        self.measured = measured


def bench(
    models: Sequence[Model],
    *,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 5,
    device: str = "cpu",
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> BenchResults:
    """Measure models in turns on random inputs.

    Args:
        models: Models to measure; the first is the baseline.
        batch: Samples per run, for models with a dynamic batch.
        threads: Threads of onnxruntime; 0 for all cores.
        runs: Timed runs of each model; the median counts.
        warmup: Untimed runs of each model before.
        device: For onnxruntime: "auto", "cpu" or "cuda".
        runtime: Runtime to measure in; default: onnxruntime on the device.
        progress: Called with (done, total) rounds.

    Raises:
        BenchStopped: The runtime failed; what it measured before is in the error.
        OnnxPruneError: The runtime refuses a model.
    """
    analyses = [analyze(m) for m in models]
    feeds = [random_feeds(a, batch) for a in analyses]
    costs = [CostModel(a).baseline for a in analyses]
    where = runtime or make_runtime(device=device)
    names = [m.path.name if m.path is not None else "" for m in models]
    try:
        found = where.measure(models, feeds, threads=threads, batch=batch, runs=runs, warmup=warmup, progress=progress)
    except MeasurementStopped as err:
        some = [(i, la) for i, la in enumerate(err.latencies) if la is not None]
        results = _results(some, costs, names, str(where.describe()))
        raise BenchStopped(err, results, tuple(i for i, _ in some)) from err
    return _results(list(enumerate(found.latencies)), costs, names, found.ran)


def _results(
    latencies: Sequence[tuple[int, Latency]], costs: Sequence[Cost], names: Sequence[str], ran: str
) -> BenchResults:
    """Return the results of the models that were measured, relative to the first of them."""
    out = []
    for i, latency in latencies:
        first, whole = latencies[0]
        speedup = whole.median / latency.median
        efficiency = speedup * costs[i].ratio(costs[first], "macs")
        out.append(BenchResult(latency, costs[i], speedup, efficiency, ran, names[i]))
    return BenchResults(out)
