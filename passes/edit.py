"""Graph edits that passes share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Array


def to_constant(t: gs.Variable, value: Array) -> None:
    """Make a node's output a constant in place: its consumers read it, its producer no longer writes it."""
    t.inputs.clear()
    t.to_constant(value)


def drop_dead(graph: gs.Graph) -> None:
    """Remove nodes none of whose outputs is used. ONNX nodes have no side effects."""
    outputs = {id(t) for t in graph.outputs}
    kept: list[gs.Node] = []
    dead: dict[int, gs.Node] = {}
    # In reverse order a node is visited after all of its consumers.
    for node in reversed(graph.nodes):
        for t in node.outputs:
            if id(t) in outputs or (t.outputs and _is_read(t, dead)):
                kept.append(node)
                break
        else:
            dead[id(node)] = node
    if not dead:
        return
    graph.nodes[:] = reversed(kept)
    # Compare by identity, tensor by tensor: graphsurgeon compares nodes attribute by attribute, which is quadratic for
    # dead shape arithmetic that reads one constant (an index 0) thousands of times.
    for t in {id(t): t for node in dead.values() for t in node.inputs}.values():
        readers = [n for n in t.outputs if id(n) not in dead]
        list.clear(t.outputs)
        list.extend(t.outputs, readers)
    for node in dead.values():
        for t in node.outputs:
            list.clear(t.inputs)
        list.clear(node.inputs)
        list.clear(node.outputs)


def _is_read(t: gs.Tensor, dead: Mapping[int, gs.Node]) -> bool:
    return not dead or any(id(n) not in dead for n in t.outputs)


def set_input(node: gs.Node, index: int, t: gs.Tensor) -> None:
    """Replace an input of a node, by identity: graphsurgeon compares nodes attribute by attribute."""
    readers = node.inputs[index].outputs
    del_at = next(i for i in range(len(readers) - 1, -1, -1) if readers[i] is node)
    list.__delitem__(readers, del_at)
    list.__setitem__(node.inputs, index, t)
    list.append(t.outputs, node)


def bypass(node: gs.Node, graph: gs.Graph) -> None:
    """Disconnect a node: consumers of its first output read its first input.

    The producer of a graph output cannot be disconnected, because the output keeps its name; the node then remains.
    """
    source, target = node.inputs[0], node.outputs[0]
    consumers = list(target.outputs)
    for consumer in consumers:
        for i, t in enumerate(consumer.inputs):
            if t is target:
                consumer.inputs[i] = source
    if any(t is target for t in graph.outputs):
        return
    node.inputs.clear()
    node.outputs.clear()


def tensor_names(graph: gs.Graph) -> set[str]:
    """Return the names of all tensors that a graph's nodes read or write, and of its inputs and outputs."""
    names = {t.name for node in graph.nodes for part in (node.inputs, node.outputs) for t in part}
    return (names | {t.name for t in (*graph.inputs, *graph.outputs)}) - {""}


def unique_name(graph_names: set[str], base: str) -> str:
    """Return a name that is not in the set, and add it."""
    name, n = base, 1
    while name in graph_names:
        name, n = f"{base}__{n}", n + 1
    graph_names.add(name)
    return name


def int64(*values: int) -> Array:
    """Return a shape vector."""
    return np.array(values, np.int64)
