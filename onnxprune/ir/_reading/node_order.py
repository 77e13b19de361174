"""Topological order of nodes: onnxruntime accepts nodes in any order, the ONNX checker and the analysis do not.

Converters to float16 append the Cast nodes that they insert. A sorted list of nodes keeps its order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.branches import describe, reads


def in_order(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with the nodes of its graph, its bodies and its functions in topological order.

    The given model is returned if it is sorted, and never changed.

    Raises:
        OnnxPruneError: Nodes depend on each other in a cycle; names one of them.
    """
    if all(order is None for _, order in _orders(proto)):
        return proto
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    for owner, order in _orders(out):
        if order is not None:
            nodes = [onnx.NodeProto.FromString(owner.node[i].SerializeToString()) for i in order]
            del owner.node[:]
            owner.node.extend(nodes)
    return out


def _orders(
    proto: onnx.ModelProto,
) -> Iterator[tuple[onnx.GraphProto | onnx.FunctionProto, list[int] | None]]:
    """Yield every graph and function, bodies before the graph around them, with its order; None if it is sorted."""
    for owner in (proto.graph, *proto.functions):
        yield from _orders_within(owner)


def _orders_within(
    owner: onnx.GraphProto | onnx.FunctionProto,
) -> Iterator[tuple[onnx.GraphProto | onnx.FunctionProto, list[int] | None]]:
    for node in owner.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from _orders_within(body)
    yield owner, _order(owner.node)


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int] | None:
    """Return the indices of the nodes in an order in which none reads a later one; None for the given order."""
    producer = {o: i for i, n in enumerate(nodes) for o in n.output if o}
    waits = [sorted({producer[r] for r in reads(n) if r in producer}) for n in nodes]
    if all(not w or w[-1] < i for i, w in enumerate(waits)):
        return None
    order: list[int] = []
    done, open_ = [False] * len(nodes), [False] * len(nodes)
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            missing = [] if done[i] else [w for w in waits[i] if not done[w]]
            if not missing:
                stack.pop()
                if not done[i]:
                    done[i] = True
                    order.append(i)
                continue
            open_[i] = True
            cycle = next((w for w in missing if open_[w]), None)
            if cycle is not None:
                raise OnnxPruneError(
                    "its inputs depend on its own outputs, so the nodes have no order",
                    where=describe(nodes[cycle]),
                    fix="the file is damaged: export it again",
                )
            stack += reversed(missing)
    return order
