"""Figures of single layers: channels and MACs from the analysis, times from onnxruntime's profile."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_graphsurgeon as gs

from onnxprune._utils.progress import Progress
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.sessions import Kernel, Session
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import Inputs, Runtime
from onnxprune.latency.runtimes.node_names import node_name
from onnxprune.plans import Plan

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_KERNELS = (*_LAYERS, "FusedConv", "FusedGemm", "FusedMatMul", "NhwcFusedConv", "MatMulAddFusion")
_WARMUP = 3


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
    device: str = "cpu",
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Measure the time of every layer of several models, run in turn with onnxruntime's profiler on.

    A kernel that onnxruntime made of several nodes counts for the layer among them. All other kernels count as the
    layer "". Each kernel counts with its least time, because disturbances only add time.

    Args:
        models: Analyses of the models.
        batch: Samples per run, for models with a dynamic batch.
        threads: Threads of onnxruntime; 0 for all cores.
        runs: Timed runs of each model.
        device: "auto", "cpu" or "cuda".
        runtime: Runtime whose own times of layers count instead of onnxruntime's.
        progress: Called with (done, total) rounds.

    Returns:
        For each model seconds per run, by the name of the first output of the layer's node; nothing if the runtime has
        no times of layers.

    Raises:
        OnnxPruneError: The runtime rejects a model.
    """
    feeds = [random_feeds(a, batch) for a in models]
    if runtime is not None:
        return _profiled(models, feeds, runtime, threads, runs)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        sessions = [
            Session(a.source, device=device, threads=threads, profile=_folder(folder, i)) for i, a in enumerate(models)
        ]
        for i in range(runs + _WARMUP):
            for session, feed in zip(sessions, feeds, strict=True):
                session.run(feed)
            if progress is not None:
                progress(i + 1, runs + _WARMUP)
        return [_by_layer(a.source, s.kernels()[_WARMUP:]) for a, s in zip(models, sessions, strict=True)]


def _profiled(
    models: Sequence[Analysis], feeds: Sequence[Inputs], runtime: Runtime, threads: int, runs: int
) -> list[dict[str, float]]:
    out: list[dict[str, float]] = []
    for analysis, feed in zip(models, feeds, strict=True):
        layers = runtime.profile(analysis.source, feed, threads=threads, runs=runs)
        if layers is None:
            return []
        outputs = {node_name(n): n.outputs[0].name for n in analysis.source.graph.nodes if n.op in _LAYERS}
        times: dict[str, float] = {}
        for layer in layers:
            output = outputs.get(layer.nodes[0], "") if layer.nodes else ""
            times[output] = times.get(output, 0.0) + layer.seconds
        out.append(times)
    return out


def _folder(folder: str, number: int) -> Path:
    path = Path(folder) / str(number)
    path.mkdir()
    return path


def _by_layer(model: Model, runs: Sequence[Sequence[Kernel]]) -> dict[str, float]:
    nodes = {n.name: n for n in model.graph.nodes if n.name}
    makers = {t.name: n for n in model.graph.nodes for t in n.outputs}
    least: dict[tuple[int, str], tuple[str, float]] = {}
    for run in runs:
        for place, kernel in enumerate(run):
            layer = _layer_of(kernel, nodes, makers)
            known = least.get((place, kernel.name), (layer, kernel.seconds))[1]
            least[place, kernel.name] = layer, min(known, kernel.seconds)
    out: dict[str, float] = {}
    for layer, seconds in least.values():
        out[layer] = out.get(layer, 0.0) + seconds
    return out


def _layer_of(kernel: Kernel, nodes: dict[str, gs.Node], makers: dict[str, gs.Node]) -> str:
    """Return the first output of the layer that a kernel computes; "" for a kernel of another kind.

    onnxruntime names a kernel after a node, or after the last output of the nodes that it fused; the layer is the
    first one met on the way back along the data.
    """
    if kernel.op not in _KERNELS:
        return ""
    tensor = kernel.name.removesuffix("_nchwc")
    node = nodes.get(kernel.name) or makers.get(tensor) or nodes.get(tensor)
    while node is not None:
        if node.op in _LAYERS:
            return str(node.outputs[0].name)
        before = next((t for t in node.inputs if isinstance(t, gs.Variable) and t.inputs), None)
        node = before.inputs[0] if before is not None else None
    return ""
