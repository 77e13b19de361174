"""Folding of shape arithmetic and constant expressions; dynamic dimensions stay dynamic.

Before:  Reshape(x, Concat(Gather(Shape(x), 0), [2], Div(Gather(Shape(x), 1), 2), ...))
After:   Reshape(x, [0, 2, 58, ...])
Conditions: 1. a value is folded if its symbolic value contains no dynamic dimension.
2. a Reshape target with elements that depend on one: an element equal to the input's dimension of the same index
becomes 0 (copy it); one other may become -1 (infer it); with more of them see condition 8.
3. elements of an Expand target that do not stretch become 1, those of Resize sizes that do not resize are read from
the data's shape: both then follow the data when channels are removed.
4. a Gather that selects every element of a flattened tensor once and in order (`as_strided` of dynamo exports, whose
indices depend on the batch) becomes a Reshape.
5. an Expand is removed if all consumers broadcast against another operand of the full shape: the division by a norm
that was expanded to the data's shape becomes a division by the norm.
6. a ConstantOfShape that is the data of a ScatterElements becomes an Expand of a constant with the known sizes, and so
has an axis for channels; indices expanded to the size of the updates read that size from the updates.
7. float32 weights computed with a sum, a root or a power (weight standardization) are computed in float64 and rounded
once: runtimes round such operators differently, and the exact value can be checked on any CPU.
8. a Reshape target with several computed elements (height and width of a sequence of places) is joined anew, for this
Reshape alone, from these elements and constants, so that constants can be patched when channels are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes.node_evaluation import compute_node
from onnxprune.analysis.shapes.shape_inference import Witness, with_nodes, witness
from onnxprune.ir.model import Array, Model
from onnxprune.ir.symbolic import Size
from onnxprune.ops import find
from onnxprune.ops.scatter import as_large_as
from onnxprune.passes.base import Pass, Rewritten, register
from onnxprune.passes.edit import drop_dead, int64, tensor_names, to_constant, unique_name


@register
@dataclass(frozen=True)
class FoldShapes(Pass):
    """Fold shape arithmetic into constants where it is constant."""

    name: ClassVar[str] = "fold_shapes"

    def rewrite(self, model: Model) -> Model:
        """Fold every value whose symbolic form is constant."""
        return self.rewrite_with_shapes(model, None).model

    def rewrite_with_shapes(self, model: Model, known: Witness | None) -> Rewritten:
        """Fold, and return the shapes that were inferred for it."""
        graph = model.graph
        count = len(graph.nodes)
        seen = witness(model)
        outputs = {id(t) for t in graph.outputs}
        names = tensor_names(graph)
        for node in list(graph.nodes):
            if node.op == "Gather" and not node.domain and len(node.outputs) == 1:
                _unpick(node, seen, names)
            if node.op == "Expand" and not node.domain and id(node.outputs[0]) not in outputs:
                _unstretch(node, seen)
            if node.op == "ConstantOfShape" and not node.domain:
                _expand(node, seen, names)
            if node.op == "ScatterElements" and not node.domain:
                _stretch_alike(node, graph, seen, names)
        for node in list(graph.nodes[:count]):
            index = {"Reshape": 1, "Expand": 1, "Resize": 3}.get(node.op, len(node.inputs))
            alike = node.op == "Expand" and any(as_large_as(*n.inputs[1:3]) for n in _scatters(node))
            if not node.domain and index < len(node.inputs) and not alike:
                _soften(node, index, graph, seen, names)
        seen = with_nodes(seen, graph.nodes[count:], model.opset)
        old, new = graph.nodes[:count], graph.nodes[count:]
        if new:
            graph.nodes[:] = _in_order(old, new)
        folded: dict[int, tuple[gs.Variable, Array]] = {}
        for node in old:  # new nodes depend on the data
            if node.outputs and not node.domain:
                t = node.outputs[0]
                value = seen.constant(t.name)  # condition 1
                if value is not None and id(t) not in outputs:
                    folded[id(node)] = t, value
        bodies = any(isinstance(a, gs.Graph) for node in old for a in node.attrs.values())  # may return outer tensors
        # What only others read that are folded as well is dead without being made a constant.
        kept = [
            (t, v) for t, v in folded.values() if bodies or not t.outputs or any(id(n) not in folded for n in t.outputs)
        ]
        # All values before the first constant is made: a constant ends the chain of nodes that computes the next one.
        exact = [(t, _rounded_once(t, value, folded, model.opset)) for t, value in kept]  # condition 7
        for t, value in exact:
            seen.values[t.name] = value
            to_constant(t, np.ascontiguousarray(value).reshape(value.shape))
        drop_dead(graph)
        return Rewritten(model, seen)


# Operators that every runtime rounds correctly or computes exactly.
_EXACT = frozenset(
    ("Abs", "Add", "Concat", "Constant", "ConstantOfShape", "Div", "Expand", "Flatten", "Gather", "Identity", "Max",
     "Min", "Mul", "Neg", "Reshape", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze")
)  # fmt: skip
_SMOOTH = frozenset(
    ("BatchNormalization", "Exp", "InstanceNormalization", "LayerNormalization", "Log", "MatMul", "Pow", "Reciprocal",
     "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sigmoid", "Softmax", "Softplus", "Sum",
     "Tanh")
)  # fmt: skip


def _rounded_once(t: gs.Tensor, value: Array, folded: dict[int, tuple[gs.Variable, Array]], opset: int) -> Array:
    """Return a folded float32 constant computed in float64 where rounding differs between runtimes."""
    if value.dtype != np.float32 or not value.size:
        return value
    chain: list[gs.Node] = []
    seen: set[int] = set()
    stack: list[tuple[gs.Node, bool]] = [(t.inputs[0], False)]
    while stack:
        node, done = stack.pop()
        if done:
            chain.append(node)
        elif id(node) not in seen and id(node) in folded and folded[id(node)][1].dtype == np.float32:
            if node.op not in _EXACT and node.op not in _SMOOTH:
                return value
            seen.add(id(node))
            stack.append((node, True))
            stack += [(p, False) for x in node.inputs for p in x.inputs]
    if all(node.op in _EXACT for node in chain):
        return value
    wide: dict[int, Array] = {}

    def operand(x: gs.Tensor) -> Array | None:
        if id(x) in wide:
            return wide[id(x)]
        known = x.values if isinstance(x, gs.Constant) else folded[id(x.inputs[0])][1] if x.inputs else None
        narrow = known is not None and known.dtype == np.float32
        return np.asarray(known, np.float64) if narrow else known

    for node in chain:
        result = compute_node(node, [operand(x) for x in node.inputs], opset)
        if result is None:
            return value
        wide[id(node.outputs[0])] = np.asarray(result, np.float64)
    exact = wide[id(t)].astype(np.float32)
    return exact if exact.shape == value.shape and np.isfinite(exact).all() else value


def _unpick(node: gs.Node, witness: Witness, names: set[str]) -> None:
    """Rewrite a Gather that selects all elements in order (condition 4)."""
    data, indices = node.inputs
    output = node.outputs[0].name
    source, picked = witness.symbolic(data.name), witness.symbolic(indices.name)
    if isinstance(indices, gs.Constant) or source is None or picked is None or len(source) != 1:
        return
    places = _counted(indices, witness)
    step: Size = 1
    for axis in reversed(range(len(picked))):
        size = picked[axis]
        if places is None or size is None or (size != 1 and places[axis] != step):
            return
        step = step * size
    if places is None or places[-1] != 0 or step != source[0]:
        return
    target = _reshape_target(picked, [])
    if target is not None:
        node.op, node.attrs = "Reshape", {}
        node.inputs[1] = gs.Constant(unique_name(names, f"{output}_shape"), target)


def _counted(t: gs.Tensor, witness: Witness) -> list[Size] | None:
    """Return the step along every axis and the first element of an evenly spaced integer tensor, else None."""
    shape = witness.symbolic(t.name) if not isinstance(t, gs.Constant) else tuple(int(n) for n in t.shape)
    value = np.asarray(t.values) if isinstance(t, gs.Constant) else witness.constant(t.name)
    if value is not None and value.dtype.kind == "i" and value.size:
        first = int(value.reshape(-1)[0])
        steps = [int(np.diff(value, axis=i).reshape(-1)[0]) if n > 1 else 0 for i, n in enumerate(value.shape)]
        even = first + sum(step * i for step, i in zip(steps, np.indices(value.shape), strict=True))
        return [*steps, first] if np.array_equal(even, value) else None
    node = t.inputs[0] if t.inputs else None
    elements = witness.elements(t.name)
    if shape == () and elements is not None and elements[0] is not None:
        return [elements[0]]
    if node is None or node.domain or shape is None:
        return None
    if node.op == "Range":
        ends = [_counted(operand, witness) for operand in node.inputs]
        return None if ends[0] is None or ends[2] is None else [ends[2][0], ends[0][0]]
    if node.op not in ("Add", "Mul", "Unsqueeze", "Identity", "Cast"):
        return None
    if node.op == "Cast" and node.attrs["to"] not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
        return None
    parts: list[list[Size]] = []
    for operand in node.inputs[: 2 if node.op in ("Add", "Mul") else 1]:
        part = _counted(operand, witness)
        if part is None:
            return None
        parts.append(part)
    if node.op == "Unsqueeze":
        listed = node.attrs.get("axes")
        if len(node.inputs) > 1:
            constant = isinstance(node.inputs[1], gs.Constant)
            listed = node.inputs[1].values.tolist() if constant else witness.elements(node.inputs[1].name)
        if listed is None or not all(isinstance(a, int) for a in listed):
            return None
        new, rest = {a % len(shape) for a in listed}, iter(parts[0])
        return [0 if i in new else next(rest) for i in range(len(shape) + 1)]
    full = [[*[0] * (len(shape) + 1 - len(part)), *part] for part in parts]
    if node.op == "Add":
        return [a + b for a, b in zip(*full, strict=True)]
    if node.op == "Mul":
        one, two = full if not any(full[1][:-1]) else full[::-1]
        return None if any(two[:-1]) else [n * two[-1] for n in one]
    return full[0]


_BROADCASTS = frozenset(
    ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Where", "And", "Or", "Equal", "Less", "Greater")
)


def _unstretch(node: gs.Node, witness: Witness) -> None:
    """Remove an Expand whose consumers broadcast by themselves (condition 5)."""
    source, target = node.inputs[0], node.outputs[0]

    def whole(t: gs.Tensor) -> bool:
        shape = witness.symbolic(target.name)
        return t is not target and shape is not None and witness.symbolic(t.name) == shape

    readers = list(target.outputs)
    if all(n.op in _BROADCASTS and not n.domain and any(whole(t) for t in n.inputs) for n in readers):
        for reader in readers:
            for i, t in enumerate(reader.inputs):
                if t is target:
                    reader.inputs[i] = source


_MOST = 2**20  # most elements of a constant that replaces a ConstantOfShape


def _expand(node: gs.Node, witness: Witness, names: set[str]) -> None:
    """Replace a ConstantOfShape that is scattered into by an Expand (condition 6)."""
    output, operand = node.outputs[0], node.inputs[0]
    wanted = witness.elements(operand.name)
    scattered = any(n.op == "ScatterElements" and n.inputs[0] is output for n in output.outputs)
    if not scattered or wanted is None or operand.name not in witness.formulas:
        return
    shape = tuple(n if isinstance(n, int) else 1 for n in wanted)
    if int(np.prod(shape)) > _MOST:
        return
    spec = find(node)
    assert spec is not None
    assert spec.evaluate is not None
    constant = gs.Constant(unique_name(names, f"{output.name}_all"), spec.evaluate(node, [int64(*shape)]))
    witness.shapes[constant.name] = shape
    node.op, node.attrs, node.inputs = "Expand", {}, [constant, operand]


def _scatters(node: gs.Node) -> list[gs.Node]:
    """Return the ScatterElements that read their indices from a node."""
    return [n for n in node.outputs[0].outputs if n.op == "ScatterElements" and n.inputs[1] is node.outputs[0]]


def _stretch_alike(node: gs.Node, graph: gs.Graph, witness: Witness, names: set[str]) -> None:
    """Rewrite Expand(indices, [...]) to Expand(indices, Shape(updates)) (condition 6)."""
    places, updates = node.inputs[1:3]
    made = places.inputs[0] if places.inputs else None
    if made is None or made.op != "Expand" or made.domain or isinstance(updates, gs.Constant):
        return
    if places.name in witness.values or as_large_as(places, updates):
        return
    shape = gs.Variable(unique_name(names, f"{updates.name}_shape"), np.int64)
    alike = gs.Variable(unique_name(names, f"{places.name}_alike"), np.int64)
    graph.nodes.append(gs.Node("Shape", shape.name, {}, [updates], [shape]))
    graph.nodes.append(gs.Node("Expand", alike.name, {}, [made.inputs[0], shape], [alike]))
    node.inputs[1] = alike


def _soften(node: gs.Node, index: int, graph: gs.Graph, witness: Witness, names: set[str]) -> None:
    """Rewrite a partly constant shape operand so that it follows the data (conditions 2 and 3)."""
    operand = node.inputs[index]
    x, y = node.inputs[0], node.outputs[0].name
    before, after = witness.symbolic(x.name), witness.symbolic(y)
    if isinstance(operand, gs.Constant) or before is None or after is None or operand.name not in witness.formulas:
        return
    wanted = witness.elements(operand.name)
    if wanted is None:
        return
    if node.op == "Reshape":
        target = _reshape_target(wanted, before)
        if target is None:  # a stated -1 may be a constant size while another element must be inferred
            target = _reshape_target(after, before)
        if target is not None:
            node.attrs.pop("allowzero", None)  # no element was 0; copying an empty dimension is equivalent
            node.inputs[index] = gs.Constant(unique_name(names, f"{y}_shape"), target)
        if target is not None or not any(isinstance(n, int) and n > 1 for n in wanted) or _in_elements(operand):
            return
    if len(wanted) != len(after):
        return  # Resize with `axes`: the other axes follow the data
    new: list[gs.Node] = []
    shape: gs.Variable | None = None

    def element(vector: gs.Tensor, i: int) -> gs.Variable:
        name = unique_name(names, f"{y}_shape_{i}")
        out = gs.Variable(name, np.int64, [1])
        new.append(gs.Node("Gather", name, {"axis": 0}, [vector, gs.Constant(f"{name}_index", int64(i))], [out]))
        return out

    parts: list[gs.Tensor] = []
    lead = len(after) - len(before)
    for i, n in enumerate(wanted):
        if node.op != "Reshape" and i >= lead and after[i] is not None and after[i] == before[i - lead]:  # condition 3
            if node.op == "Expand":
                parts.append(gs.Constant(unique_name(names, f"{y}_shape_{i}"), int64(1)))
                continue
            if shape is None:
                shape = gs.Variable(unique_name(names, f"{x.name}_shape"), np.int64, [len(before)])
                new.append(gs.Node("Shape", shape.name, {}, [x], [shape]))
            parts.append(element(shape, i - lead))
        elif isinstance(n, int):
            parts.append(gs.Constant(unique_name(names, f"{y}_shape_{i}"), int64(n)))
        else:
            parts.append(element(operand, i))
    joined = gs.Variable(unique_name(names, f"{y}_shape"), np.int64, [len(parts)])
    new.append(gs.Node("Concat", joined.name, {"axis": 0}, parts, [joined]))
    graph.nodes.extend(new)
    node.inputs[index] = joined


def _in_elements(operand: gs.Tensor) -> bool:
    """Return whether a shape operand is joined from single elements for one node (condition 8)."""
    joined = operand.inputs[0] if operand.inputs else None
    return joined is not None and joined.op == "Concat" and len(operand.outputs) == 1 and all(
        list(t.shape or ()) == [1] for t in joined.inputs
    )  # fmt: skip


def _in_order(old: list[gs.Node], new: list[gs.Node]) -> list[gs.Node]:
    """Return all nodes, every new one right before its first consumer."""
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


def _reshape_target(wanted: Sequence[Size | None], before: Sequence[Size | None]) -> Array | None:
    """Return a Reshape target (condition 2), or None. An element that may be 0 or -1 at some size is not inferred."""
    target: list[int] = []
    for i, n in enumerate(wanted):
        if n is None or n == 0:
            return None
        if isinstance(n, int):
            target.append(n)
        elif i < len(before) and n == before[i]:
            target.append(0)
        else:
            target.append(-1)
    return int64(*target) if target.count(-1) <= 1 else None
