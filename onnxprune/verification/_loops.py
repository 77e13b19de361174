"""Loops: the induction over iterations.

The body of a Loop is checked like the graph around it, on states of the checker's choice. By induction over
iterations, all states are equal at the kept entries if (1) the initial states are, (2) an iteration preserves this, and
(3) the kept entries of a state are the same before, in and after an iteration. Condition 3 and the wiring are compared
here; the values that enter and leave the body are compared as tensors of the graph.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import NodeProto

from onnxprune.errors import VerificationError
from onnxprune.ir.branches import is_loop_end, is_loop_start
from onnxprune.ir.proto_graph import Graph
from onnxprune.verification._claims import Claims, Mask


def check_loops(reference: Graph, pruned: Graph, claims: Claims, cuts: Collection[str]) -> set[str]:
    """Compare the wiring and the kept entries of every Loop; return computed operands that must be compared by value.

    Args:
        reference: Masked reference.
        pruned: Pruned model.
        claims: Kept entries of each tensor.
        cuts: Tensors that are compared anyway.

    Raises:
        VerificationError: A Loop has other operands than the original's, or keeps other entries of a state.
    """
    values: set[str] = set()
    for node in pruned.nodes:
        if not (is_loop_start(node) or is_loop_end(node)):
            continue
        where = pruned.where(node.output[0])
        source = reference.nodes[reference.writer[node.output[0]]] if node.output[0] in reference.writer else None
        if source is None or source.op_type != node.op_type or list(source.output) != list(node.output):
            raise VerificationError("the Loop has other results than the original's", where=where)
        own = [_origin(n, pruned) for n in node.input]
        wanted = [_origin(n, reference) for n in source.input]
        if len(own) != len(wanted):
            raise VerificationError("the Loop has other operands than the original's", where=where)
        for a, b in zip(own, wanted, strict=True):
            constant = a in pruned.constants and b in reference.constants
            if constant and not claims.removes(a):
                constant = np.array_equal(pruned.value(a), reference.value(b))
            if a != b and not constant:
                raise VerificationError(f"the Loop reads {a!r} where the original reads {b!r}", where=where)
            if b in reference.writer and b not in cuts:
                values.add(b)
        if is_loop_end(node):
            _check_kept(node, pruned, claims, where)
    return values


def _origin(name: str, graph: Graph) -> str:
    while name in graph.writer and graph.nodes[graph.writer[name]].op_type == "Identity":
        name = graph.nodes[graph.writer[name]].input[0]
    return name


def _check_kept(node: NodeProto, graph: Graph, claims: Claims, where: str) -> None:
    start = graph.nodes[graph.writer[node.input[0]]]
    states = len(start.output) - 3
    for k, output in enumerate(node.output):
        result = node.input[2 + k]
        names = [result, output] if output else [result]
        if k < states:
            names += [start.input[2 + k], start.output[3 + k]]
        kept = [claims.kept.get(_origin(n, graph) if n in graph.writer else n, ()) for n in names]
        if k >= states and output:  # one more axis, for the iterations
            if kept[1] and kept[1][0] is not None:
                raise VerificationError("a Loop loses iterations", where=where)
            kept[1] = kept[1][1:]
        if any(not _same(kept[0], other) for other in kept[1:]):
            raise VerificationError("a state of the Loop keeps other entries before, in and after it", where=where)
    for name in (node.input[1], *start.output[:3], *start.input[:2]):
        if claims.removes(name):
            raise VerificationError("a Loop is controlled by a value that loses channels", where=where)


def _same(a: tuple[Mask | None, ...], b: tuple[Mask | None, ...]) -> bool:
    a, b = (() if all(m is None for m in kept) else kept for kept in (a, b))
    return len(a) == len(b) and all(
        m is n or (m is not None and n is not None and np.array_equal(m, n)) for m, n in zip(a, b, strict=True)
    )
