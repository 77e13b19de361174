"""Loops that no run can end: a hostile file would keep onnxruntime busy forever."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import AttributeProto, NodeProto, numpy_helper

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Array

_MOST = 2**31  # iterations; exporters count to 2^63 - 1 where a condition ends the loop
Constants = Mapping[str, Array]


def check_loops(proto: onnx.ModelProto, arrays: Constants) -> None:
    """Raise for a Loop with a constant, immense number of iterations and a condition that is always true.

    Args:
        proto: Model, without functions.
        arrays: Values of its initializers.

    Raises:
        OnnxPruneError: Names the first such Loop.
    """
    for node, known in _loops(proto.graph, arrays):
        count, go = (known.get(n) if n else None for n in (*node.input, "", "")[:2])
        if node.input[0] and (count is None or count.size != 1 or int(count.reshape(-1)[0]) < _MOST):
            continue
        if len(node.input) > 1 and node.input[1] and (go is None or go.size != 1 or not go.reshape(-1)[0]):
            continue
        body = next((a.g for a in node.attribute if a.name == "body"), None)
        if body is not None and _is_endless(body):
            raise OnnxPruneError(
                "the Loop never ends: its condition is always true, and it counts too far",
                where=f"Loop {node.name or (node.output[0] if node.output else '')!r}",
                fix="the file is damaged: export the model again",
            )


def _loops(graph: onnx.GraphProto, outside: Constants) -> Iterator[tuple[NodeProto, Constants]]:
    known = {**outside, **_small(graph)} if len(graph.node) else outside
    for node in graph.node:
        if node.op_type == "Loop" and node.domain in ("", "ai.onnx") and node.input:
            yield node, known
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from _loops(a.g, known)


def _small(graph: onnx.GraphProto) -> dict[str, Array]:
    """Return the single values among the constants of a graph."""
    found = [(t.name, t) for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    for node in graph.node:
        if node.op_type == "Constant" and node.output:
            found += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
    return {name: numpy_helper.to_array(t) for name, t in found if all(n == 1 for n in t.dims)}


def _is_endless(body: onnx.GraphProto) -> bool:
    """Return whether the condition that a body returns is the one it was given, or true."""
    if len(body.input) < 2 or not body.output:
        return False
    writer = {o: n for n in body.node for o in n.output}
    name = body.output[0].name
    while name in writer and writer[name].op_type == "Identity" and writer[name].input:
        name = writer[name].input[0]
    fixed = _small(body).get(name)
    return name == body.input[1].name or (fixed is not None and fixed.size == 1 and bool(fixed.reshape(-1)[0]))
