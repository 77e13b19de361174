"""Witness shapes: every dimension a number, so that reshapes can be reasoned about.

Dynamic dimensions break the arithmetic of Reshape. A *witness* sets each of them to a distinct number and goes through
the graph once, in order: of every node it infers the shapes, or computes the shape arithmetic with numpy. Comparing two
witnesses tells what depends on a dynamic dimension: whatever is equal in both is a constant of the model. How many
boxes a detector keeps depends on the data itself; such dimensions are set to numbers just so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.model import Array, Model
from onnxprune.node_types import SMALL, NodeTypes, of_array, of_input, shape_and_dtype, with_number
from onnxprune.ops import find

# The batch: a prime that divides no usual channel count, so that no factor of a Reshape is ambiguous.
_BATCH = (11, 23)
# Sequence-like ones (of token inputs).
_LENGTH = ((41, 43, 47, 53), (59, 61, 67, 71))
# Image sides: large enough for five strided layers, divisible by what strided networks and windows divide by.
_SIDE = ((224, 448, 672, 896), (1120, 1344, 1568, 1792))

# How many a selection finds: a prime, and few, so that "at most 100 of them" is not taken for a constant.
_SELECTED = (101, 2)
_ASK = frozenset(("Shape", "Size"))
_SELECTIONS = frozenset(("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Unique"))

_VIEWS = frozenset(("Transpose", "Cast", "Identity"))  # large constants seen through these stay weights behind a view
# What shape arithmetic consists of. Of a few numbers they make no more than a few, so nobody has to ask how many first.
_FEW = 64
_MAKE_FEW = frozenset(
    ("Add", "And", "Cast", "Ceil", "Concat", "Constant", "Div", "Equal", "Floor", "Gather", "Greater", "Identity",
     "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub",
     "Unsqueeze", "Where")
)  # fmt: skip
_LARGEST = 2**24  # elements of a folded constant expression
_LARGEST_OF_BATCH = 2**16  # of one that grows with the batch: no constant, at best a shape may come of it
_NOT_A_FUNCTION = ("Random", "Multinomial", "Bernoulli", "Dropout")
# What they say is how the runtime should compute: a weight of integers stays one.
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Witness:
    """Shapes and known values of a graph under one assignment of its dynamic dimensions.

    Attributes:
        dims: the number given to each dynamic dimension, by (input name, axis).
        shapes: shape of every tensor that has one; where a selection finds as many as the data say, the number is
            101 (2 in a witness that is `like` another). Other shapes that depend on data are missing.
        values: computed values of shape arithmetic and constant expressions, by tensor name.
        dtypes: element type of every tensor that has one.
        types: of every tensor, as far as it is known (see `onnxprune.node_types`).
        assumed: tensors with a dimension that depends on data, and was set to a number.
        names: of all tensors that the graph had.
    """

    dims: Mapping[tuple[str, int], int]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Array]
    dtypes: dict[str, np.dtype[Any]]
    types: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    assumed: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


def assignments(model: Model, *, single: bool = False) -> list[dict[tuple[str, int], int]]:
    """Numbers for the dynamic input dimensions: two different sets of them, or one where nothing is dynamic."""
    sets: list[dict[tuple[str, int], int]] = []
    for which in range(2):
        numbers: dict[object, int] = {}
        used = {"length": 0, "side": 0}
        out: dict[tuple[str, int], int] = {}
        dynamic = [
            (t, axis, dim)
            for t in model.graph.inputs
            for axis, dim in enumerate(t.shape or ())
            if not (isinstance(dim, int) and dim > 0)
        ]
        for t, axis, dim in sorted(dynamic, key=lambda item: item[1]):
            key: object = dim if isinstance(dim, str) and dim else (t.name, axis)
            if axis == 0:
                # Exporters name the batch of every input differently, or not at all; it is one batch all the same.
                numbers[key] = _BATCH[which]
            elif key not in numbers:
                kind = "side" if len(t.shape) > 3 else "length"
                table = (_SIDE if kind == "side" else _LENGTH)[which]
                numbers[key] = table[used[kind] % len(table)] * (1 + used[kind] // len(table))
                used[kind] += 1
            out[t.name, axis] = numbers[key]
        sets.append(out)
    return sets[:1] if single or not sets[0] else sets


def known_or_witness(model: Model) -> Witness:
    """What the pass fold_shapes has found out, of what the graph still has; a new witness where it has not seen all.

    What it has seen and found no shape for, it would find none for again: folding only writes down what it knew.
    """
    seen: Witness | None = model._shapes
    if seen is None:
        return witness(model)
    tensors = [*model.graph.tensors().values(), *model.graph.inputs, *model.graph.outputs]
    names = {t.name for t in tensors if t.name and not isinstance(t, gs.Constant)}
    if not names <= seen.names:
        return witness(model)
    constants = [t for t in tensors if isinstance(t, gs.Constant)]
    shapes = {name: seen.shapes[name] for name in names & seen.shapes.keys()}
    shapes |= {t.name: tuple(int(n) for n in t.shape) for t in constants}
    values = {name: seen.values[name] for name in names & seen.values.keys()}
    dtypes = {name: seen.dtypes[name] for name in names & seen.dtypes.keys()}
    dtypes |= {t.name: np.dtype(t.dtype) for t in constants}
    return Witness(seen.dims, shapes, values, dtypes, seen.types, seen.assumed & names, seen.names)


def with_nodes(seen: Witness, nodes: Sequence[gs.Node], opset: int) -> Witness:
    """A witness that knows shape arithmetic that was added to the graph; other nodes are left out.

    Args:
        seen: of the graph without them.
        nodes: new ones, in graph order.
        opset: of the model.
    """
    found = _Found(dict(seen.shapes), dict(seen.dtypes), dict(seen.values))
    for node in nodes:
        value = found.compute(node, opset) if found.computable(node) else None
        if value is not None:
            found.settle_value(node.outputs[0].name, value)
    names = seen.names | (found.values.keys() - seen.values.keys())
    return replace(seen, shapes=found.shapes, dtypes=found.dtypes, values=found.values, names=names)


def witness(
    model: Model, dims: Mapping[tuple[str, int], int] | None = None, *, like: Witness | None = None,
    node_types: NodeTypes | None = None,
) -> Witness:  # fmt: skip
    """Infers all shapes and computes all shape arithmetic under one assignment (default: the first).

    Args:
        dims: numbers of dynamic input dimensions, one of `assignments`.
        like: the witness of another assignment, for what is the same in both; selections then find another number
            than in that one, so that what is equal in both does not depend on data (but for "at most two of them").
        node_types: of the model, if there is more than one assignment to try.
    """
    graph = model.graph
    dims = assignments(model, single=True)[0] if dims is None else dims
    node_types = node_types or NodeTypes(model)
    found = _Found()
    for t in graph.inputs:
        found.settle(t.name, of_input(t, dims))
    found.other = {t.name for t in graph.inputs if like is not None and found.differs(like, t.name)}
    for node in graph.nodes:
        found.visit(node, node_types, model.opset, like)
    names = found.types.keys() | {t.name for n in graph.nodes for t in n.outputs if t.name}
    names |= {t.name for t in graph.outputs}
    return Witness(
        dims, found.shapes, found.values, found.dtypes, found.types, frozenset(found.assumed), frozenset(names)
    )


@dataclass
class _Found:
    """What a walk through a graph knows so far, as in `Witness`; `other` differs from what the one it is like says."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    types: dict[str, bytes] = field(default_factory=dict)
    assumed: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)

    def settle(self, name: str, kind: bytes) -> None:
        """Writes down a type."""
        self.types[name] = kind
        shape, dtype = shape_and_dtype(kind)
        if shape is not None:
            self.shapes[name] = shape
        if dtype is not None:
            self.dtypes[name] = dtype

    def settle_value(self, name: str, value: Array) -> None:
        """Writes down a value, and the type that follows from it."""
        self.values[name] = value
        self._settle_array(name, value.dtype, value.shape)

    def _settle_array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.types[name] = of_array(dtype, shape)
        self.shapes[name], self.dtypes[name] = shape, dtype

    def visit(self, node: gs.Node, node_types: NodeTypes, opset: int, like: Witness | None) -> None:
        """Finds out what a node computes, after those that it reads from."""
        for t in node.inputs:
            if isinstance(t, gs.Constant) and t.name not in self.types:
                self._settle_array(t.name, np.dtype(t.dtype), tuple(int(n) for n in t.shape))
        if like is None:
            self._find_out(node, node_types, opset, _SELECTED[0])
        elif self._reads_the_same(node):
            for t in node.outputs:
                self._take(like, t.name)
        else:
            self._find_out(node, node_types, opset, _SELECTED[1])
            self.other.update(t.name for t in node.outputs if self.differs(like, t.name))

    def _reads_the_same(self, node: gs.Node) -> bool:
        """Whether a node has to come out as in the witness this one is like."""
        if node.op in _SELECTIONS or any(t.name in self.other for t in node.inputs):
            return False
        return not any(isinstance(a, gs.Graph) for a in node.attrs.values())

    def differs(self, like: Witness, name: str) -> bool:
        """Whether a tensor has another type or value than in a witness."""
        if self.types.get(name) != like.types.get(name):
            return True
        one, two = self.values.get(name), like.values.get(name)
        return one is not two and (one is None or two is None or not np.array_equal(one, two))

    def _take(self, like: Witness, name: str) -> None:
        if name in like.types:
            self.types[name] = like.types[name]
        if name in like.shapes:
            self.shapes[name] = like.shapes[name]
        if name in like.dtypes:
            self.dtypes[name] = like.dtypes[name]
        if name in like.values:
            self.values[name] = like.values[name]

    def _find_out(self, node: gs.Node, node_types: NodeTypes, opset: int, number: int) -> None:
        name = node.outputs[0].name if node.outputs else ""
        value = None
        computable = self.computable(node)
        if computable and self._makes_few(node):
            value = self.compute(node, opset)
        if value is None or len(node.outputs) > 1:
            self._infer(node, node_types, number)
            if value is None and computable and not _too_large(self.shapes.get(name, ())):
                value = self.compute(node, opset)
        if value is not None:
            self.settle_value(name, value)

    def _infer(self, node: gs.Node, node_types: NodeTypes, number: int) -> None:
        """Settles the types of a node's outputs; where a selection finds as many as the data say, that is `number`."""
        inputs = [self._small(t) for t in node.inputs]
        selects = node.op in _SELECTIONS and not node.domain
        selects = selects and all(t.name in self.shapes for t in node.inputs if t.name)
        for t, kind in zip(node.outputs, node_types.outputs(node, self.types, inputs, self.values), strict=True):
            if kind is None or not t.name:
                continue
            numbered = with_number(kind, number) if selects and shape_and_dtype(kind)[0] is None else kind
            if numbered != kind:
                self.assumed.add(t.name)
            self.settle(t.name, numbered)

    def computable(self, node: gs.Node) -> bool:
        """Whether the first output is all that is used of a node, and follows from what is known."""
        if node.domain or not node.outputs or any(t.outputs for t in node.outputs[1:]):
            return False
        if node.op in _ASK:
            return node.inputs[0].name in self.shapes
        if any(t.name and t.name not in self.values and not isinstance(t, gs.Constant) for t in node.inputs):
            return False
        if node.op.startswith(_NOT_A_FUNCTION) or node.op in _QUANTIZERS:
            return False
        if node.op in _VIEWS and isinstance(node.inputs[0], gs.Constant) and prod(node.inputs[0].shape) > SMALL:
            return False  # a weight, transposed or cast: the labels look through it, the file keeps it as it is
        return not any(isinstance(a, gs.Graph) for a in node.attrs.values())

    def _makes_few(self, node: gs.Node) -> bool:
        if node.op in _ASK:
            return True
        return node.op in _MAKE_FEW and all(prod(self.shapes.get(t.name, ())) <= _FEW for t in node.inputs)

    def compute(self, node: gs.Node, opset: int) -> Array | None:
        """The value of a computable node's first output; None where there is no way to compute it, or it is large."""
        if node.op in _ASK:
            shape = self.shapes[node.inputs[0].name]
            start, end = node.attrs.get("start", 0), node.attrs.get("end")
            return np.array(shape[start:end] if node.op == "Shape" else prod(shape), np.int64)
        result = _compute(node, [self._value(t) for t in node.inputs], opset)
        return None if result is None or _too_large(result.shape) else result

    def _small(self, t: gs.Tensor) -> Array | None:
        value = self._value(t) if not isinstance(t, gs.Constant) or prod(t.shape) <= SMALL else None
        return value if value is None or value.size <= SMALL else None

    def _value(self, t: gs.Tensor) -> Array | None:
        if not t.name:
            return None
        return np.asarray(t.values) if isinstance(t, gs.Constant) else self.values.get(t.name)


def _too_large(shape: tuple[int, ...]) -> bool:
    size = prod(shape)
    if size <= _LARGEST_OF_BATCH:
        return False
    return size > _LARGEST or any(n and n % batch == 0 for n in shape for batch in _BATCH)


def _compute(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    spec = find(node)
    if spec is not None and spec.evaluate is not None:
        try:
            with np.errstate(all="ignore"):
                result = spec.evaluate(node, inputs)
        except (ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError):
            return None  # a shape that this assignment makes impossible: leave it unknown
        return None if result is None else np.asarray(result)
    if spec is None or not inputs:
        return None
    return _reference(node, inputs, opset)


def _reference(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    from onnx.reference import ReferenceEvaluator
    from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

    proto = OnnxExporter.export_node(node)
    feeds = {t.name: v for t, v in zip(node.inputs, inputs, strict=True) if t.name}
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)  # type: ignore[union-attr]
         for n, v in feeds.items()],
        [onnx.helper.make_empty_tensor_value_info(proto.output[0])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):  # a constant may well be log(0), of which a Where takes nothing
            results: Any = ReferenceEvaluator(model).run(None, feeds)
        result = results[0]
    except Exception:  # the reference raises whatever numpy raises; unknown is always a safe answer
        return None
    return np.asarray(result)
