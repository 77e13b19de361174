"""Model-local functions: calls are replaced by what they stand for, so that every operator is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from onnxprune.errors import OnnxPruneError

MOST_NODES = 2**20  # a few functions that call each other twice would make billions
_Key = tuple[str, str, str]


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions inlined; one that is written for another opset stays a call.

    Args:
        proto: as the ONNX checker accepts it, which refuses functions that call themselves.

    Raises:
        OnnxPruneError: it would have more than `MOST_NODES` nodes.
    """
    if not proto.functions:
        return proto
    functions = {_key(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[_Key, int] = {}
    count = _count(proto.graph.node, functions, sizes)
    if count > MOST_NODES:
        raise OnnxPruneError(
            f"its functions stand for {count} nodes; {MOST_NODES} are the most that is read",
            fix="export the model without functions",
        )
    from onnx import inliner

    return inliner.inline_local_functions(proto)


def _key(domain: str, name: str, overload: str) -> _Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _count(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto], sizes: dict[_Key, int]
) -> int:
    """Nodes after inlining, those of bodies included."""
    total = 0
    for node in nodes:
        key = _key(node.domain, node.op_type, node.overload)
        if key in functions:
            if key not in sizes:
                sizes[key] = _count(functions[key].node, functions, sizes)
            total += sizes[key]
        else:
            total += 1
        for a in node.attribute:
            total += sum(_count(g.node, functions, sizes) for g in (*a.graphs, *([a.g] if a.HasField("g") else [])))
    return total
