"""Inlining of model-local functions, so that the analysis sees every operator.

Functions of a domain for which an installed package has operator records remain calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from onnxprune.errors import OnnxPruneError

RECORDS = "onnxprune.ops"  # entry points of operator records, named like the operators' domains
MOST_NODES = 2**20  # nested calls multiply: a few small functions can expand to billions of nodes
_Key = tuple[str, str, str]


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with its functions inlined.

    Functions of a domain with operator records remain calls; so do, if there are none of these, functions for another
    opset.

    Args:
        proto: Model that passed the ONNX checker, which rejects recursive functions.

    Raises:
        OnnxPruneError: The result would have more than `MOST_NODES` nodes, or some functions must remain calls and
            the others cannot be inlined.
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
            f"inlining the model's functions gives {count} nodes; the maximum is {MOST_NODES}",
            fix="export the model without functions",
        )
    from onnx import inliner

    if len(functions) == len(proto.functions):
        return inliner.inline_local_functions(proto)
    try:
        return inliner.inline_selected_functions(proto, [(f.domain, f.name) for f in functions.values()])
    except RuntimeError as err:  # functions for another opset are rejected here
        raise OnnxPruneError(f"the functions cannot be inlined: {err}", fix="export the model for one opset") from err


def _key(domain: str, name: str, overload: str) -> _Key:
    return "" if domain == "ai.onnx" else domain, name, overload


def _count(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, onnx.FunctionProto], sizes: dict[_Key, int]
) -> int:
    """Return the number of nodes after inlining, nodes of bodies included."""
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
