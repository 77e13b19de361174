"""Model-local functions: calls are replaced by what they stand for, so that every operator is seen.

Those of a domain that an installed package has records for stay calls: its records see the node as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from onnxprune.errors import OnnxPruneError

RECORDS = "onnxprune.ops"  # the group of entry points that bring records; they are named like the operators' domains
MOST_NODES = 2**20  # a few functions that call each other twice would make billions
_Key = tuple[str, str, str]


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions inlined; one written for another opset, or of a domain with records, stays a call.

    Args:
        proto: as the ONNX checker accepts it, which refuses functions that call themselves.

    Raises:
        OnnxPruneError: it would have more than `MOST_NODES` nodes; some functions stay, and others cannot be inlined.
    """
    if not proto.functions:
        return proto
    from importlib.metadata import entry_points

    known = {point.name for point in entry_points(group=RECORDS)}
    functions = {_key(f.domain, f.name, f.overload): f for f in proto.functions if f.domain not in known}
    sizes: dict[_Key, int] = {}
    count = _count(proto.graph.node, functions, sizes)
    if count > MOST_NODES:
        raise OnnxPruneError(
            f"its functions stand for {count} nodes; {MOST_NODES} are the most that is read",
            fix="export the model without functions",
        )
    from onnx import inliner

    if len(functions) == len(proto.functions):
        return inliner.inline_local_functions(proto)
    try:
        return inliner.inline_selected_functions(proto, [(f.domain, f.name) for f in functions.values()])
    except RuntimeError as err:  # here those for another opset are refused
        raise OnnxPruneError(f"its functions cannot be inlined: {err}", fix="export the model for one opset") from err


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
