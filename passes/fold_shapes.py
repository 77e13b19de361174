"""Computes shape arithmetic and constant expressions ahead, without freezing what is dynamic.

Before:  Reshape(x, Concat(Gather(Shape(x), 0), [2], Div(Gather(Shape(x), 1), 2), ...))
After:   Reshape(x, [0, 2, 58, ...])
Conditions: 1. a value is folded if it is equal under two different assignments of the dynamic dimensions.
2. a Reshape target with elements that are not: an element equal to the input's dimension at the same place
becomes 0 (copy it); one other may become -1 (infer it); with more of them the Reshape stays as it is.
3. elements of an Expand target that do not stretch become 1, those of Resize sizes that do not resize are read from
the data's shape: either way they follow the data when it gets smaller.
4. a Gather that picks every element of a flattened tensor once and in order (`as_strided` of dynamo exports, whose
numbers depend on the batch) is a Reshape.
5. an Expand whose readers broadcast by themselves, against another operand of the whole shape, is not needed: what
divides by a norm that was stretched to the data's shape divides by the norm.
6. a ConstantOfShape that is scattered into becomes an Expand of a constant that has every size that is constant, and so
an axis for channels; numbers of places that are stretched to the size of what is scattered take it from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.model import Array, Model
from onnxprune.node_types import NodeTypes
from onnxprune.ops import find
from onnxprune.ops.scatter import as_large_as
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import drop_dead, int64, to_constant, unique_name
from onnxprune.shapes import Witness, assignments, with_nodes, witness


@register
@dataclass(frozen=True)
class FoldShapes(Pass):
    """Shape arithmetic becomes constants wherever it is constant."""

    name: ClassVar[str] = "fold_shapes"

    def rewrite(self, model: Model) -> Model:
        """Folds against one witness, or two where dimensions are dynamic and the graph asks for shapes."""
        graph = model.graph
        count = len(graph.nodes)
        dims = assignments(model)
        node_types = NodeTypes(model)
        first = witness(model, dims[0], node_types=node_types)
        asks = any(n.op in ("Shape", "Size") for n in graph.nodes)
        moving = len(dims) > 1 or first.assumed
        second = witness(model, dims[-1], like=first, node_types=node_types) if moving and asks else first
        outputs = {id(t) for t in graph.outputs}
        names = set(graph.tensors())
        for node in list(graph.nodes):
            if node.op == "Gather" and not node.domain and len(node.outputs) == 1:
                _unpick(node, first, second, names)
            if node.op == "Expand" and not node.domain and id(node.outputs[0]) not in outputs:
                _unstretch(node, first, second)
            if node.op == "ConstantOfShape" and not node.domain:
                _expand(node, first, second, names)
            if node.op == "ScatterElements" and not node.domain:
                _stretch_alike(node, graph, first, names)
        for node in list(graph.nodes[:count]):
            index = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op, len(node.inputs))
            alike = node.op == "Expand" and any(as_large_as(*n.inputs[1:3]) for n in _scatters(node))
            if not node.domain and index < len(node.inputs) and not alike:
                _soften(node, index, graph, first, second, names)
        first = with_nodes(first, graph.nodes[count:], model.opset)
        graph.nodes[:] = _placed(graph.nodes[:count], graph.nodes[count:])
        for node in graph.nodes:
            if not node.outputs or node.domain:
                continue
            t = node.outputs[0]
            value = first.values.get(t.name)
            if value is None or id(t) in outputs:
                continue
            if value is second.values.get(t.name) or _same(value, second.values.get(t.name)):  # condition 1
                to_constant(t, np.ascontiguousarray(value).reshape(value.shape))
        drop_dead(graph)
        model._shapes = first
        return model


def _same(a: Array, b: Array | None) -> bool:
    return b is not None and a.shape == b.shape and a.dtype == b.dtype and bool(np.array_equal(a, b))


def _unpick(node: gs.Node, first: Witness, second: Witness, names: set[str]) -> None:
    """Condition 4."""
    data, indices = node.inputs
    output = node.outputs[0].name
    for w in (first, second):
        source, places = w.shapes.get(data.name), w.values.get(indices.name)
        if source is None or places is None or len(source) != 1 or w.shapes.get(output) != places.shape:
            return
        if places.size != source[0] or not np.array_equal(places.reshape(-1), np.arange(places.size)):
            return
    target = _reshape_target(list(zip(first.shapes[output], second.shapes[output], strict=True)), [])
    if target is not None:
        node.op, node.attrs = "Reshape", {}
        node.inputs[1] = gs.Constant(unique_name(names, f"{output}_shape"), target)


_BROADCASTS = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "And", "Or", "Equal", "Less", "Greater")
)


def _unstretch(node: gs.Node, first: Witness, second: Witness) -> None:
    """Condition 5."""
    source, target = node.inputs[0], node.outputs[0]

    def whole(t: gs.Tensor) -> bool:
        return t is not target and all(
            target.name in w.shapes and w.shapes.get(t.name) == w.shapes[target.name] for w in (first, second)
        )

    readers = list(target.outputs)
    if all(n.op in _BROADCASTS and not n.domain and any(whole(t) for t in n.inputs) for n in readers):
        for reader in readers:
            for i, t in enumerate(reader.inputs):
                if t is target:
                    reader.inputs[i] = source


_MOST = 2**20  # elements of a constant that takes the place of a ConstantOfShape


def _expand(node: gs.Node, first: Witness, second: Witness, names: set[str]) -> None:
    """Condition 6."""
    output, operand = node.outputs[0], node.inputs[0]
    one, two = first.values.get(operand.name), second.values.get(operand.name)
    scattered = any(n.op == "ScatterElements" and n.inputs[0] is output for n in output.outputs)
    if not scattered or one is None or two is None or len(one) != len(two) or _same(one, two):
        return
    shape = tuple(int(a) if a == b else 1 for a, b in zip(one, two, strict=True))
    if int(np.prod(shape)) > _MOST:
        return
    spec = find(node)
    assert spec is not None
    assert spec.evaluate is not None
    constant = gs.Constant(unique_name(names, f"{output.name}_all"), spec.evaluate(node, [int64(*shape)]))
    first.shapes[constant.name] = second.shapes[constant.name] = shape
    node.op, node.attrs, node.inputs = "Expand", {}, [constant, operand]


def _scatters(node: gs.Node) -> list[gs.Node]:
    """Those ScatterElements that take their places from a node."""
    return [n for n in node.outputs[0].outputs if n.op == "ScatterElements" and n.inputs[1] is node.outputs[0]]


def _stretch_alike(node: gs.Node, graph: gs.Graph, first: Witness, names: set[str]) -> None:
    """Condition 6: Expand(places, [...]) becomes Expand(places, Shape(updates))."""
    places, updates = node.inputs[1:3]
    made = places.inputs[0] if places.inputs else None
    if made is None or made.op != "Expand" or made.domain or isinstance(updates, gs.Constant):
        return
    if places.name in first.values or as_large_as(places, updates):
        return
    shape = gs.Variable(unique_name(names, f"{updates.name}_shape"), np.int64)
    alike = gs.Variable(unique_name(names, f"{places.name}_alike"), np.int64)
    graph.nodes.append(gs.Node("Shape", shape.name, {}, [updates], [shape]))
    graph.nodes.append(gs.Node("Expand", alike.name, {}, [made.inputs[0], shape], [alike]))
    node.inputs[1] = alike


def _soften(node: gs.Node, index: int, graph: gs.Graph, first: Witness, second: Witness, names: set[str]) -> None:
    """Rewrites a shape operand that is only partly constant, so that it follows the data."""
    operand = node.inputs[index]
    one, two = first.values.get(operand.name), second.values.get(operand.name)
    x, y = node.inputs[0], node.outputs[0].name
    if isinstance(operand, gs.Constant) or one is None or two is None or one.shape != two.shape or _same(one, two):
        return
    if any(name not in w.shapes for name in (x.name, y) for w in (first, second)):
        return
    before = list(zip(first.shapes[x.name], second.shapes[x.name], strict=True))
    wanted = list(zip(one.tolist(), two.tolist(), strict=True))
    if node.op == "Reshape":
        target = _reshape_target(wanted, before)
        if target is None:  # a stated -1 may be a constant size, and another element have to be inferred
            target = _reshape_target(list(zip(first.shapes[y], second.shapes[y], strict=True)), before)
        if target is not None:
            node.attrs.pop("allowzero", None)  # no element was 0; copying an empty dimension is the same
            node.inputs[index] = gs.Constant(unique_name(names, f"{y}_shape"), target)
        return
    after = list(zip(first.shapes[y], second.shapes[y], strict=True))
    if len(wanted) != len(after):
        return  # Resize with `axes`: the other axes follow by themselves
    new: list[gs.Node] = []
    shape: gs.Variable | None = None

    def element(vector: gs.Tensor, i: int) -> gs.Variable:
        name = unique_name(names, f"{y}_shape_{i}")
        out = gs.Variable(name, np.int64, [1])
        new.append(gs.Node("Gather", name, {"axis": 0}, [vector, gs.Constant(f"{name}_index", int64(i))], [out]))
        return out

    parts: list[gs.Tensor] = []
    lead = len(after) - len(before)
    for i, (a, b) in enumerate(wanted):
        if i >= lead and after[i] == before[i - lead]:  # condition 3
            if node.op == "Expand":
                parts.append(gs.Constant(unique_name(names, f"{y}_shape_{i}"), int64(1)))
                continue
            if shape is None:
                shape = gs.Variable(unique_name(names, f"{x.name}_shape"), np.int64, [len(before)])
                new.append(gs.Node("Shape", shape.name, {}, [x], [shape]))
            parts.append(element(shape, i - lead))
        elif a == b:
            parts.append(gs.Constant(unique_name(names, f"{y}_shape_{i}"), int64(a)))
        else:
            parts.append(element(operand, i))
    joined = gs.Variable(unique_name(names, f"{y}_shape"), np.int64, [len(parts)])
    new.append(gs.Node("Concat", joined.name, {"axis": 0}, parts, [joined]))
    graph.nodes.extend(new)
    node.inputs[index] = joined


def _placed(old: list[gs.Node], new: list[gs.Node]) -> list[gs.Node]:
    """Both, every new node right before what reads it first."""
    waiting = {id(n) for n in new}
    out: list[gs.Node] = []

    def add(node: gs.Node) -> None:
        for t in node.inputs:
            for producer in t.inputs:
                if id(producer) in waiting:
                    waiting.remove(id(producer))
                    add(producer)
        out.append(node)

    for node in old:
        add(node)
    return out


def _reshape_target(wanted: list[tuple[int, int]], before: list[tuple[int, int]]) -> Array | None:
    target: list[int] = []
    if any(0 in pair for pair in wanted):
        return None
    for i, pair in enumerate(wanted):
        if pair[0] == pair[1]:
            target.append(int(pair[0]))
        elif i < len(before) and pair == before[i]:
            target.append(0)  # condition 2: copied
        else:
            target.append(-1)  # condition 2: inferred
    return int64(*target) if target.count(-1) <= 1 else None
