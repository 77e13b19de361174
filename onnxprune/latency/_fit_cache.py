"""Cache of fitted latency models, keyed by machine, runtime, device, precision and the model's structure."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.strict import Format
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.latency._cache_files import SCHEMA
from onnxprune.latency._channel_axes import ChannelAxes
from onnxprune.latency._fitting import LatencyFit

_FORMAT = Format("latency cache", 64 * 2**20, SCHEMA)
_SAMPLED = 4096  # elements; larger integer constants are tables, not sizes


def structure(analysis: Analysis) -> str:
    """Return a digest of what determines the time: operators, attributes, shapes, sizes and axes that can shrink.

    Weights and names are not part of it.
    """
    digest = hashlib.sha256()

    def put(*values: object) -> None:
        digest.update(f"{values!r}\n".encode())

    graph = analysis.model.graph
    number: dict[str, int] = {}
    for t in graph.inputs:
        put("input", number.setdefault(t.name, len(number)), str(t.dtype), t.shape)
    put("opset", graph.opset, "dims", list(analysis.witness.dims.values()))
    for node in graph.nodes:
        put(node.op, node.domain, [(k, _attribute(v)) for k, v in sorted(node.attrs.items())])
        for t in node.inputs:
            if isinstance(t, gs.Constant) and t.name not in number:
                sized = t.dtype.kind in "iub" and prod(t.shape) <= _SAMPLED
                put("constant", str(t.dtype), tuple(t.shape), np.asarray(t.values).tolist() if sized else None)
            put(number.setdefault(t.name, len(number)))
        put([number.setdefault(t.name, len(number)) for t in node.outputs])
    put("outputs", [number.get(t.name) for t in graph.outputs])
    for components in ChannelAxes.of(analysis, 1).components:
        digest.update(np.ascontiguousarray(components, np.int64).tobytes() + b"\n")
    return digest.hexdigest()


def _attribute(value: Any) -> object:
    if isinstance(value, gs.Graph):
        return [(n.op, [(k, _attribute(v)) for k, v in sorted(n.attrs.items())]) for n in value.nodes]
    if isinstance(value, gs.Tensor | np.ndarray):
        return [str(value.dtype), tuple(value.shape or ())]
    return str(value) if not isinstance(value, list | tuple) else [str(v) for v in value]


def write_fit(path: Path, settings: Mapping[str, Any], fitted: LatencyFit) -> None:
    """Write the cache; I/O errors are ignored (best effort)."""
    terms = [[c, *m] for c, m in fitted.terms]
    data = {"schema": SCHEMA, "settings": dict(settings), "curve": list(fitted.curve), "terms": terms}
    with contextlib.suppress(OSError, OnnxPruneError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(data) + "\n")


@dataclass(frozen=True)
class _CacheFile:
    """Contents of a cache file."""

    settings: Mapping[str, Any]
    curve: tuple[float, float, float]
    terms: tuple[tuple[float | int, ...], ...]


def read_fit(path: Path, settings: Mapping[str, Any], axes: ChannelAxes) -> LatencyFit | None:
    """Return the fit of a cache file; None if it is missing, damaged or of other settings."""
    try:
        found = _FORMAT.read(_CacheFile, path)
    except OnnxPruneError:
        return None
    top = 1 + 2 * len(axes.components) + len(axes.switches)
    if found.settings != settings:
        return None
    terms = []
    for term in found.terms:
        axes_of_term = tuple(p for p in term[1:] if isinstance(p, int) and 0 < p < top)
        if not term or len(axes_of_term) != len(term) - 1:
            return None
        terms.append((float(term[0]), axes_of_term))
    return LatencyFit(terms, found.curve)
