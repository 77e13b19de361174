"""Estimate of the memory that a model needs, before anything of that size is made."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.output.formatting import size
from onnxprune._utils.processes.memory import memory_at_hand
from onnxprune.errors import OnnxPruneError

_UNCHECKED = 2**28  # bytes of one node that every machine has
_WIDEST = 16  # bytes of the widest element
_EXPANSION = 1000  # no exporter computes constants so many times as large as all that the file stores


def check_memory(graph: gs.Graph, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]]) -> None:
    """Raise if a node of a model does not fit the memory at hand, or has a negative size.

    The estimate is a lower bound: the inputs and outputs of the largest node at the sizes that the analysis assumes.
    What is computed from constants alone must be in proportion to the file, too: a few bytes can ask for gigabytes.

    Args:
        graph: Graph of the model.
        shapes: Shapes of its tensors.
        dtypes: Element types of its tensors.

    Raises:
        OnnxPruneError: States the estimate and the memory at hand.
    """
    elements = max(map(prod, shapes.values()), default=0)
    most = max((len(node.inputs) + len(node.outputs) for node in graph.nodes), default=0)
    if elements * most * _WIDEST <= _UNCHECKED and min((min(s, default=0) for s in shapes.values()), default=0) >= 0:
        return
    bytes_of: dict[str, int] = {}
    largest, where = 0, None
    for node in graph.nodes:
        total = 0
        for t in (*node.inputs, *node.outputs):
            if t.name not in bytes_of:
                shape, dtype = shapes.get(t.name), dtypes.get(t.name)
                if shape is not None and any(n < 0 for n in shape):
                    raise OnnxPruneError(
                        f"the tensor {t.name!r} has a negative size: {list(shape)}",
                        where=_label(node), fix="the file is damaged, or needs other inputs (--shape)",
                    )  # fmt: skip
                each = dtype.itemsize if dtype is not None and dtype.itemsize else 4
                bytes_of[t.name] = prod(shape) * each if shape is not None and not isinstance(t, gs.Constant) else 0
            total += bytes_of[t.name]
        if total > largest:
            largest, where = total, node
    if where is None or largest <= _UNCHECKED:
        return
    _check_computed_constants(graph, bytes_of)
    free = memory_at_hand()
    if free is None or largest <= free:
        return
    raise OnnxPruneError(
        f"not enough memory: at the assumed sizes of its inputs one node of the model needs {_size(largest)}, and "
        f"{_size(free)} are free",
        where=_label(where),
        fix="smaller inputs (--shape), or a machine with more memory",
    )


def _check_computed_constants(graph: gs.Graph, bytes_of: Mapping[str, int]) -> None:
    """Raise if a tensor that depends on no input is large and far larger than all constants of the file."""
    stored, fixed = 0, set[str]()
    for node in graph.nodes:
        for t in node.inputs:
            if isinstance(t, gs.Constant) and t.name not in fixed:
                fixed.add(t.name)
                stored += prod(t.shape) * (np.dtype(t.dtype).itemsize or 4)
    for node in graph.nodes:
        bodies = any(isinstance(value, gs.Graph) for value in node.attrs.values())  # they may read inputs of the model
        if not bodies and all(not t.name or t.name in fixed for t in node.inputs):
            fixed.update(t.name for t in node.outputs)
            for t in node.outputs:
                if bytes_of.get(t.name, 0) > max(_UNCHECKED, _EXPANSION * stored):
                    raise OnnxPruneError(
                        f"the tensor {t.name!r} takes {_size(bytes_of[t.name])} and is computed from constants alone, "
                        f"and the constants in the file take {_size(stored)}",
                        where=_label(node), fix="the file is damaged; or store this constant in it",
                    )  # fmt: skip


def _label(node: gs.Node) -> str:
    name = node.name or (node.outputs[0].name if node.outputs else "")
    return f"{node.op} {name!r}"


def _size(count: int) -> str:
    return size(count) if count < 10**15 else "more than 1,000 TB"
