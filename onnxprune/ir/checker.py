"""Rules that a graph must satisfy, checked after every pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.ir import protobuf_wire


def _violations(graph: gs.Graph) -> Iterator[tuple[str, str]]:
    """Yield violations of: every value is computed once and before it is used, and constants are never computed.

    One walk for all, since it runs after every pass.
    """
    defined = {t.name for t in graph.inputs}
    constants: dict[str, gs.Constant] = {}
    for node in graph.nodes:
        for t in node.inputs:
            name = t.name
            if isinstance(t, gs.Constant):
                if constants.setdefault(name, t) is not t:
                    yield node.name or node.op, f"reads a second constant named {name!r}"
            elif name and name not in defined:
                yield node.name or node.op, f"reads {name!r} before it is computed"
        for t in node.outputs:
            name = t.name
            if name and name in defined:
                yield node.name or node.op, f"computes {name!r}, which exists already"
            defined.add(name)
    for t in graph.outputs:
        if t.name not in defined and not isinstance(t, gs.Constant):
            yield t.name, "is a graph output that nothing computes"
    for name in constants.keys() & defined:
        yield name, "is both a constant and computed"


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
    return next(_violations(graph), None)


def check(graph: gs.Graph, after: str) -> None:
    """Raise if a graph is not well-formed.

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
