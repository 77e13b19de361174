"""Variants of a model measured in any runtime, by the runtime's own times of layers where it has them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.files.journal import Journal
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Kernel
from onnxprune.ir.model import Model
from onnxprune.latency._measuring import MeasuringEffort, VariantMeasurement, design, variant
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import LayerTime, Runtime
from onnxprune.latency.runtimes.node_names import node_name
from onnxprune.passes import Pipeline, StripChannels

EFFORT = MeasuringEffort(variants=20, least_variants=12)
_TOGETHER = 4  # variants that are measured in turns with the original
_RUNS = 10
_PROFILED_RUNS = 8
_NAMED = 0.5  # share of the time of layers that must be of nodes; a compiled subgraph is one layer


@dataclass(frozen=True)
class _VariantTimes:
    """Figures of one variant: seconds, those of the original beside it, quiet rounds, and times of layers."""

    seconds: float
    reference: float
    quiet: bool
    ran: str
    layers: tuple[LayerTime, ...] | None

    @property
    def names_nodes(self) -> bool:
        """True if there are times of layers, and most of the time is of nodes of the model."""
        layers = self.layers or ()
        return sum(la.seconds for la in layers if la.nodes) > _NAMED * sum(la.seconds for la in layers)

    def as_dict(self) -> dict[str, Any]:
        layers = None
        if self.layers is not None:
            layers = [[la.name, la.op, la.seconds, list(la.nodes)] for la in self.layers]
        return {"seconds": self.seconds, "reference": self.reference, "quiet": self.quiet, "ran": self.ran,
                "layers": layers}  # fmt: skip

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> _VariantTimes:
        layers = value["layers"]
        if layers is not None:
            layers = tuple(LayerTime(n, op, s, "", tuple(nodes)) for n, op, s, nodes in layers)
        return cls(float(value["seconds"]), float(value["reference"]), bool(value["quiet"]), str(value["ran"]), layers)


class RuntimeVariants:
    """Measure variants of a model in a runtime; what was measured before a failure is kept in a journal.

    Args:
        analysis: Coupling analysis of the model.
        runtime: Runtime to measure in.
        batch: Samples per run.
        threads: CPU threads; 0: all cores.
        effort: Number of variants.
        journal: File for finished variants; None keeps them in memory.
        settings: Settings that the variants depend on.

    Attributes:
        ran: Device or provider that ran the variants.
        clocked: True if the runtime has times of layers.
    """

    def __init__(
        self,
        analysis: Analysis,
        runtime: Runtime,
        *,
        batch: int,
        threads: int,
        effort: MeasuringEffort | None = None,
        journal: Path | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.analysis = analysis
        self.runtime = runtime
        self.batch = batch
        self.threads = threads
        self.effort = effort or EFFORT
        self.feeds = random_feeds(analysis, batch)
        self.ran = ""
        self.clocked = False
        self._journal = _journal(journal, settings or {})

    def samples(self, block: int, progress: Progress | None = None) -> list[VariantMeasurement]:
        """Measure a designed set of variants, or read those that an interrupted run has measured.

        Raises:
            OnnxPruneError: The runtime refuses a variant, or failed; the next call continues from there.
        """
        variants = design(self.analysis, block, self.effort.variants)
        entries = self._journal.entries
        try:
            known = {i: _VariantTimes.read(entries[str(i)]) for i in range(len(variants)) if str(i) in entries}
        except (KeyError, TypeError, ValueError):
            known = {}
        profiled = all(t.names_nodes for t in known.values())
        missing = [i for i in range(len(variants)) if i not in known]
        for some in _chunks(missing, max(1, min(_TOGETHER, len(missing)))):
            if progress is not None:
                progress(len(known), len(variants))
            for i, timed in self._measure([(i, variants[i]) for i in some], profiled=profiled):
                known[i] = timed
                self._journal.add(str(i), timed.as_dict())
                profiled = timed.names_nodes
        if progress is not None:
            progress(len(variants), len(variants))
        self._journal.finish()
        self.ran = next(iter(known.values())).ran
        self.clocked = all(t.names_nodes for t in known.values())
        return self._sampled(variants, [known[i] for i in range(len(variants))])

    def close(self) -> None:
        """Close the journal; it remains for the next run."""
        self._journal.close()

    def _measure(
        self, variants: Sequence[tuple[int, Mapping[str, int]]], *, profiled: bool
    ) -> Iterator[tuple[int, _VariantTimes]]:
        models = [self._model(counts) for _, counts in variants]
        found = self.runtime.measure(
            [self.analysis.model, *models], [self.feeds] * (1 + len(models)), threads=self.threads, batch=self.batch,
            runs=_RUNS, warmup=2,
        )  # fmt: skip
        for (i, _), model, latency in zip(variants, models, found.latencies[1:], strict=True):
            layers = None
            if profiled:
                times = self.runtime.profile(model, self.feeds, threads=self.threads, runs=_PROFILED_RUNS)
                layers = tuple(times) if times is not None else None
            reference = found.latencies[0].median
            timed = _VariantTimes(latency.median, reference, 2 * found.quiet >= _RUNS, found.ran, layers)
            yield i, timed
            profiled = timed.names_nodes

    def _model(self, counts: Mapping[str, int]) -> Model:
        plan = variant(self.analysis, counts)
        return Pipeline([StripChannels(plan, self.analysis)])(self.analysis.model)

    def _sampled(
        self, variants: Sequence[Mapping[str, int]], timed: Sequence[_VariantTimes]
    ) -> list[VariantMeasurement]:
        """Return the measurements, scaled by the drift of the original."""
        usual = float(np.median([t.reference for t in timed]))
        out = []
        for counts, t in zip(variants, timed, strict=True):
            kept = self.analysis.kept(variant(self.analysis, counts))
            kernels = layer_kernels(self.analysis, kept, t.layers if self.clocked else None)
            out.append(VariantMeasurement(kept, kernels, t.seconds * usual / t.reference, t.quiet))
        return out


def _journal(path: Path | None, settings: Mapping[str, Any]) -> Journal:
    """Open a journal; measurements are kept in memory if the file cannot be used."""
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        return Journal(path, settings)
    except (OnnxPruneError, OSError):
        return Journal(None, settings)


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def layer_kernels(analysis: Analysis, kept: Kept, layers: Sequence[LayerTime] | None) -> list[Kernel]:
    """Return a kernel for each node of the model with its shapes under the kept channels, and the time of its layers.

    Args:
        analysis: Coupling analysis of the model.
        kept: Components of the variant.
        layers: Times of layers; None: kernels have no times. Layers of no node are kernels without shapes.
    """
    seconds: dict[str, float] = defaultdict(float)
    inserted: dict[str, float] = defaultdict(float)
    for layer in layers or ():
        if layer.nodes:
            seconds[layer.nodes[0]] += layer.seconds
        else:
            inserted[layer.op] += layer.seconds
    out = []
    for node in analysis.model.graph.nodes:
        name = node_name(node)
        if layers is not None and name not in seconds:
            continue  # fused into another one
        shapes = [
            tuple(_shape(analysis, kept, t) for t in side if t.name and not t.is_empty())
            for side in (node.inputs, node.outputs)
        ]
        out.append(Kernel(name, node.op, shapes[0], shapes[1], seconds.get(name, 0.0)))
    return out + [Kernel(f"inserted {op}", op, (), (), s) for op, s in inserted.items()]


def _shape(analysis: Analysis, kept: Kept, tensor: gs.Tensor) -> tuple[int, ...]:
    """Return the shape of a tensor under the kept channels."""
    full = analysis.table.shape(tensor)
    keeps = [analysis.keep(tensor.name, i, kept) for i in range(len(full))]
    return tuple(int(n) if k is None else int(k.sum()) for n, k in zip(full, keeps, strict=True))
