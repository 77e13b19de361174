"""Locks that depend on the graph around a node: axes of dynamic size, and axes of inputs of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnxprune.ir.symbolic import Expr
from onnxprune.ops.label_table import FIXED, Labels, LabelTable

# Operators that move values without computing: their results are an input's.
_MOVES = frozenset(
    ("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
)


def name_inputs(node: gs.Node, table: LabelTable, start: int, sources: dict[str, str]) -> None:
    """Name the input of the model that a node joins with channels, in the locks from `start` on.

    Args:
        node: Node whose rule has run.
        table: Labels and locks.
        start: Number of locks before the rule.
        sources: Tensor -> input of the model that it is a part of; extended by the node's outputs.
    """
    source = next((sources[t.name] for t in node.inputs if t.name in sources), None)
    if source is None:
        return
    for i, lock in enumerate(table.locks[start:], start):
        if lock.reason == FIXED:
            table.locks[i] = replace(lock, reason=f"is locked by input {source}")
    if node.op in _MOVES and not node.domain:
        sources.update(dict.fromkeys((t.name for t in node.outputs), source))


_BY_INDEX = frozenset(("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Slice", "Split"))


def lock_dynamic(node: gs.Node, table: LabelTable) -> None:
    """Lock channels on an axis of dynamic size, unless a Reshape merges them into it or they are only passed on.

    The index of a channel then depends on the size, so no operator may select it by number.
    """
    if node.op in ("Reshape", "Flatten"):
        return
    read = _on_dynamic(node.inputs, table)
    made = _on_dynamic(node.outputs, table)
    for labels, size in [*made, *(read if node.op in _BY_INDEX else ())]:
        if not any(size == n for _, n in read) or not any(size == n for _, n in made):
            table.lock(labels, "is on an axis whose size is not constant")


def _on_dynamic(tensors: Sequence[gs.Tensor], table: LabelTable) -> list[tuple[Labels, Expr]]:
    """Return the labels on axes whose size depends on a dimension, with that size."""
    out = []
    for t in tensors:
        sizes, axes = table.sizes.get(t.name), table.variables.get(t.name)
        for labels, size in zip(axes or (), sizes or (), strict=False):
            if labels is not None and isinstance(size, Expr):
                out.append((labels, size))
    return out
