"""Loops that no run can end: a hostile file would keep onnxruntime busy forever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import AttributeProto, NodeProto, numpy_helper

from onnxprune.errors import OnnxPruneError

_MOST = 2**31  # iterations; exporters count to 2^63 - 1 where a condition ends the loop
_NAMES = ("", "ai.onnx")  # of the domain of standard operators


def check_loops(graph: onnx.GraphProto) -> None:
    """Raise for a Loop with a constant, immense number of iterations and a condition that is always true.

    Args:
        graph: Graph of a model, without functions.

    Raises:
        OnnxPruneError: Names the first such Loop.
    """
    for node, around in _loops((graph,)):
        trips, condition = (*node.input, "", "")[:2]
        count = _single(trips, around)
        if trips and (count is None or count < _MOST):
            continue
        if condition and not _single(condition, around):
            continue
        body = next((a.g for a in node.attribute if a.name == "body"), None)
        if body is not None and _is_endless(body, around):
            raise OnnxPruneError(
                "the Loop never ends: its condition is always true, and it counts too far",
                where=f"Loop {node.name or (node.output[0] if node.output else '')!r}",
                fix="the file is damaged: export the model again",
            )


def _loops(around: Sequence[onnx.GraphProto]) -> Iterator[tuple[NodeProto, Sequence[onnx.GraphProto]]]:
    """Yield all Loops with the graphs around them, the innermost first."""
    for node in around[0].node:
        if node.op_type == "Loop" and node.domain in _NAMES:
            yield node, around
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from _loops((a.g, *around))


def _single(name: str, around: Sequence[onnx.GraphProto]) -> int | None:
    """Return the value of a constant of one integer or truth value; None for others, damaged ones among them."""
    for graph in around:
        found = [t for t in graph.initializer if t.name == name]
        found += [a.t for n in graph.node if n.op_type == "Constant" and name in n.output for a in n.attribute]
        for tensor in found:
            try:
                values = numpy_helper.to_array(tensor)
            except (TypeError, ValueError, KeyError):
                return None
            return int(values.reshape(-1)[0]) if values.size == 1 and values.dtype.kind in "biu" else None
    return None


def _is_endless(body: onnx.GraphProto, around: Sequence[onnx.GraphProto]) -> bool:
    """Return whether the condition that a body returns is the one it was given, or true."""
    if len(body.input) < 2 or not body.output:
        return False
    writer = {o: n for n in body.node for o in n.output}
    name = body.output[0].name
    while name in writer and writer[name].op_type == "Identity" and writer[name].input:
        name = writer.pop(name).input[0]
    return name == body.input[1].name or bool(_single(name, (body, *around)))
