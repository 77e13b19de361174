"""Figures of single layers: channels and MACs from the analysis, times from a runtime's profiler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import Runtime, make_runtime
from onnxprune.latency.runtimes.node_names import node_name
from onnxprune.plans import Plan

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")


@dataclass(frozen=True)
class LayerFigures:
    """Layer that produces channels or has MACs.

    Attributes:
        name: Name of its node; of its first output if the node has none.
        output: Name of its first output, which identifies it in the model's file.
        op: Operator.
        channels: Channels that it produces, before and after; (0, 0) if it produces none from a weight.
        macs: MACs per sample, before and after.
    """

    name: str
    output: str
    op: str
    channels: tuple[int, int]
    macs: tuple[int, int]


def layer_figures(analysis: Analysis, plan: Plan | None = None) -> list[LayerFigures]:
    """Return the layers of a model in graph order, before and after a plan; without one they are equal.

    Raises:
        OnnxPruneError: The plan was made for another model.
    """
    cost = CostModel(analysis)
    full, kept = analysis.kept(), analysis.kept(plan)
    before, after = cost.by_node(full), cost.by_node(kept)
    channels: dict[str, tuple[int, int]] = {}
    for site in analysis.filter_sites:
        known = channels.get(site.node, (0, 0))
        left = int(kept[analysis.component[site.labels]].sum())
        channels[site.node] = known[0] + len(site.labels), known[1] + left
    out = []
    for node in analysis.model.graph.nodes:
        name = node.outputs[0].name if node.outputs else ""
        if name in before or (node.op in _LAYERS and node.name in channels):
            out.append(
                LayerFigures(
                    node.name or name, name, node.op, channels.get(node.name, (0, 0)),
                    (before.get(name, 0), after.get(name, 0)),
                )
            )  # fmt: skip
    return out


def layer_seconds(
    models: Sequence[Analysis],
    *,
    batch: int = 1,
    threads: int = 1,
    runs: int = 20,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Measure the time of every layer of several models with the profiler of a runtime.

    A kernel that the runtime made of several nodes counts for the layer among them. All other kernels count as the
    layer "".

    Args:
        models: Analyses of the models.
        batch: Samples per run, for models with a dynamic batch.
        threads: Threads of the runtime; 0 for all cores.
        runs: Timed runs of each model.
        runtime: Runtime to measure in; None: onnxruntime on the CPU.
        progress: Called with (models done, models).

    Returns:
        For each model seconds per run, by the name of the first output of the layer's node; nothing if the runtime has
        no times of layers.

    Raises:
        OnnxPruneError: The runtime rejects a model.
    """
    where = runtime or make_runtime()
    out: list[dict[str, float]] = []
    for analysis in models:
        layers = where.profile(analysis.source, random_feeds(analysis, batch), threads=threads, runs=runs)
        if layers is None:
            return []
        outputs = {node_name(n): n.outputs[0].name for n in analysis.source.graph.nodes if n.op in _LAYERS}
        times: dict[str, float] = {}
        for layer in layers:
            output = next((outputs[name] for name in layer.nodes if name in outputs), "")
            times[output] = times.get(output, 0.0) + layer.seconds
        out.append(times)
        if progress is not None:
            progress(len(out), len(models))
    return out
