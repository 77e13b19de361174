"""Small edits that passes share."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model import Array


def to_constant(t: gs.Variable, value: Array) -> None:
    """Makes a node's output a constant in place: all consumers see it, its producer lets go of it."""
    t.inputs.clear()
    t.to_constant(value)


def drop_dead(graph: gs.Graph) -> None:
    """Removes nodes none of whose outputs is used. Nodes with side effects do not exist in ONNX."""
    outputs = {id(t) for t in graph.outputs}
    kept: list[gs.Node] = []
    # Backwards, a node is seen after all of its consumers.
    for node in reversed(graph.nodes):
        for t in node.outputs:
            if t.outputs or id(t) in outputs:
                kept.append(node)
                break
        else:
            _detach(node)
    graph.nodes[:] = reversed(kept)


def _detach(node: gs.Node) -> None:
    """Takes a node from its inputs' readers and its outputs' producers, by identity and from the end.

    graphsurgeon compares nodes from the front, attribute by attribute; a constant that thousands read (an index 0)
    would make the removal of dead shape arithmetic quadratic.
    """
    for t in node.inputs:
        readers = t.outputs
        place = next((i for i in range(len(readers) - 1, -1, -1) if readers[i] is node), None)
        if place is not None:
            list.__delitem__(readers, place)
    list.clear(node.inputs)
    node.outputs.clear()


def bypass(node: gs.Node, graph: gs.Graph) -> None:
    """Takes a node out of the graph: consumers of its first output read its first input.

    A graph output keeps its name: the input takes it over where possible, else the node stays.
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
    """Names of all tensors that a graph's nodes read or write, and of its inputs and outputs."""
    names = {t.name for node in graph.nodes for part in (node.inputs, node.outputs) for t in part}
    return (names | {t.name for t in (*graph.inputs, *graph.outputs)}) - {""}


def unique_name(graph_names: set[str], base: str) -> str:
    """A name not yet in the set; it is added."""
    name, n = base, 1
    while name in graph_names:
        name, n = f"{base}__{n}", n + 1
    graph_names.add(name)
    return name


def int64(*values: int) -> Array:
    """A shape vector."""
    return np.array(values, np.int64)
