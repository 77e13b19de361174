"""Rules that a graph must satisfy, checked after every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.ir import protobuf_wire


def _sorted(graph: gs.Graph) -> Iterator[tuple[str, str]]:
    """Yield violations of: every value is computed before it is used."""
    defined = {t.name for t in graph.inputs}
    for node in graph.nodes:
        for t in node.inputs:
            if t.name not in defined and t.name and not isinstance(t, gs.Constant):
                yield node.name or node.op, f"reads {t.name!r} before it is computed"
        defined.update(t.name for t in node.outputs)
    for t in graph.outputs:
        if t.name not in defined and not isinstance(t, gs.Constant):
            yield t.name, "is a graph output that nothing computes"


def _single_assignment(graph: gs.Graph) -> Iterator[tuple[str, str]]:
    """Yield violations of: every value is computed once, and constants are never computed."""
    seen: set[str] = {t.name for t in graph.inputs}
    constants: dict[str, int] = {}
    for node in graph.nodes:
        for t in node.inputs:
            if isinstance(t, gs.Constant) and constants.setdefault(t.name, id(t)) != id(t):
                yield node.name or node.op, f"reads a second constant named {t.name!r}"
        for t in node.outputs:
            if t.name and t.name in seen:
                yield node.name or node.op, f"computes {t.name!r}, which exists already"
            seen.add(t.name)
    for name in constants.keys() & seen:
        yield name, "is both a constant and computed"


RULES: tuple[Callable[[gs.Graph], Iterator[tuple[str, str]]], ...] = (_sorted, _single_assignment)


def check_weights(graph: gs.Graph) -> None:
    """Raise if a floating-point constant contains NaN; infinities are valid, attention masks use them.

    Raises:
        OnnxPruneError: Names the first such tensor.
    """
    for t in graph.tensors().values():
        if not isinstance(t, gs.Constant) or t.dtype.kind != "f":
            continue
        values = np.asarray(t.values)
        with np.errstate(all="ignore"):
            suspicious = np.isnan(values.sum())  # one fast reduction; opposite infinities give NaN as well
        if suspicious and np.isnan(values).any():
            raise OnnxPruneError(
                "the weights contain NaN", where=t.name, fix="export the model again from a sound checkpoint"
            )
        protobuf_wire.release(values)


def violation(graph: gs.Graph) -> tuple[str, str] | None:
    """Return the first violation as (node or tensor, description); None if there is none."""
    return next((found for rule in RULES for found in rule(graph)), None)


def check(graph: gs.Graph, after: str) -> None:
    """Check all rules.

    Args:
        graph: Graph to check.
        after: Name of the pass that ran last, for the message.

    Raises:
        OnnxPruneError: The first violation.
    """
    found = violation(graph)
    if found is not None:
        where, what = found
        raise OnnxPruneError(f"after {after}: {what}", where=where, fix="this is a bug in the pass; please report it")
