"""Node data for Model Explorer: channels kept, importance and latency as colours on the graph of the original.

    from onnxprune.integrations.model_explorer import save_node_data

    save_node_data("model.onnx", "plan.json", "overlay/")

Load the model in Model Explorer, then the files under "Custom node data". This needs no other package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune._utils.files.atomic_files import write_text
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.latency.layer_figures import LayerFigures, layer_figures, layer_seconds
from onnxprune.pipeline import ModelSource, PlanSource, analyze_for, as_model, as_plan

_GRADIENTS = {
    "channels kept": ("#c2410c", "#fef3c7", "#0f766e"),
    "importance": ("#f8fafc", "#7c3aed"),
    "latency": ("#f8fafc", "#b91c1c"),
}


def node_data(
    model: ModelSource,
    plan: PlanSource,
    *,
    scores: Scores | None = None,
    latency: bool = False,
    threads: int = 1,
    runs: int = 20,
) -> dict[str, dict[str, Any]]:
    """Return the overlays by name, each a JSON document of Model Explorer's custom node data.

    Args:
        model: Original model, whose graph is shown.
        plan: Plan for it.
        scores: Scores of its channels, for the overlay "importance": the mean over the layer's group.
        latency: Measure the time of every layer of the original, for the overlay "latency" in milliseconds.
        threads: Threads of onnxruntime for it; 0: all cores.
        runs: Timed runs for it.

    Raises:
        OnnxPruneError: The plan or the scores are those of another model.
    """
    read, made = as_model(model), as_plan(plan)
    analysis = analyze_for(read, made)
    found = layer_figures(analysis, made)
    values = {"channels kept": {x.output: x.channels[1] / x.channels[0] for x in found if x.channels[0]}}
    if scores is not None:
        values["importance"] = _importance(analysis, found, scores)
    if latency:
        times = layer_seconds([analysis], threads=threads, runs=runs)[0]
        values["latency"] = {x.output: 1000 * times[x.output] for x in found if x.output in times}
    return {name: _document(read.graph.name or "graph", name, results) for name, results in values.items()}


def save_node_data(
    model: ModelSource,
    plan: PlanSource,
    folder: str | os.PathLike[str],
    *,
    scores: Scores | None = None,
    latency: bool = False,
    threads: int = 1,
    runs: int = 20,
) -> list[Path]:
    """Write a file for each overlay of `node_data`, whose other arguments these are, and return their paths.

    Raises:
        OnnxPruneError: See `node_data`; or the folder cannot be written.
    """
    documents = node_data(model, plan, scores=scores, latency=latency, threads=threads, runs=runs)
    out = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OnnxPruneError(
            f"cannot create the folder: {err.strerror or err}", where=str(folder), fix="name another folder"
        ) from err
    for name, document in documents.items():
        path = Path(folder) / f"{name.replace(' ', '_')}.json"
        write_text(path, json.dumps(document, indent=1) + "\n")
        out.append(path)
    return out


def _importance(analysis: Analysis, found: list[LayerFigures], scores: Scores) -> dict[str, float]:
    """Return the mean score of the channels that each layer produces."""
    strange = sorted(set(scores.groups) - {g.name for g in analysis.groups})
    if strange:
        raise OnnxPruneError(
            f"the scores have the group {strange[0]!r}, which the model has not", fix="score this model"
        )
    by_component = np.full(analysis.count, np.nan)
    for group in analysis.groups:
        if group.name in scores.groups:
            by_component[group.components] = scores.groups[group.name]
    outputs = {x.name: x.output for x in found}
    out = {}
    for site in analysis.filter_sites:
        values = by_component[analysis.component[site.labels]]
        if site.node in outputs and np.isfinite(values).any():
            out[outputs[site.node]] = float(np.nanmean(values))
    return out


def _document(graph: str, name: str, values: dict[str, float]) -> dict[str, Any]:
    colours = _GRADIENTS[name]
    gradient = [{"stop": i / (len(colours) - 1), "bgColor": c} for i, c in enumerate(colours)]
    results = {key: {"value": float(f"{value:.6g}")} for key, value in values.items()}
    return {graph: {"name": f"onnxprune: {name}", "results": results, "gradient": gradient}}
