"""Witness shapes: every dimension a number, and beside it the expression of dynamic dimensions that it stands for.

Labels need numbers. A *witness* sets each dynamic dimension to one and goes through the graph once, in order: of every
node it infers the shapes, or computes the shape arithmetic with numpy. What is a constant of the model a number cannot
tell: whatever depends on a dynamic dimension has an expression too (`onnxprune.ir.symbolic`), by rules for each
operator (`onnxprune.analysis._symbolic_shape_rules`), and is a constant only if that is one. How many boxes a detector
keeps depends on the data itself; such dimensions are numbers just so, and unknowns that are equal to nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.analysis._symbolic_shape_rules import AS_SEEN, PLAIN, Dims, Elements, elements, sizes, values
from onnxprune.analysis._type_inference import (
    SMALL,
    NodeTypes,
    array_contents,
    captured,
    hashable,
    known_axes,
    of_array,
    of_input,
    shape_and_dtype,
    with_number,
    with_shape,
)  # fmt: skip
from onnxprune.ir.model import Array, Model
from onnxprune.ir.symbolic import Atom, Expr, Size, atom_of, evaluate, opaque, product, symbol
from onnxprune.ops import find

# The batch: a prime that divides no usual channel count, so that no factor of a Reshape is ambiguous.
_BATCH = (11, 23)
# Sequence-like ones (of token inputs).
_LENGTH = ((41, 43, 47, 53), (59, 61, 67, 71))
# Image sides: large enough for five strided layers, divisible by what strided networks and windows divide by.
_SIDE = ((224, 448, 672, 896), (1120, 1344, 1568, 1792))

_SELECTED = 101  # how many a selection finds: a prime
# Three numbers for each dimension of a single node, to see which of them an output's dimension is.
_TRIED = ((1009, 1013, 1019, 1021, 1031), (36, 60, 84, 132, 156), (6, 10, 14, 22, 26))
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
        shapes: shape of every tensor that has one; where a selection finds as many as the data say, the number is 101.
            Other shapes that depend on data are missing.
        values: computed values of shape arithmetic and constant expressions, by tensor name.
        dtypes: element type of every tensor that has one.
        types: of every tensor, as far as it is known (see `onnxprune.analysis._type_inference`).
        assumed: tensors with a dimension that depends on data, and was set to a number.
        names: of all tensors that the graph had.
        sizes: shapes in symbols of the tensors with a dimension that is no constant; empty where such a shape is not
            known (a sequence of tensors).
        formulas: elements in symbols of the values that are no constants; None where they are not known.
        numbers: what the unknowns of both are here.
    """

    dims: Mapping[tuple[str, int], int]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Array]
    dtypes: dict[str, np.dtype[Any]]
    types: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    assumed: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    sizes: Mapping[str, Dims] = field(default_factory=dict, repr=False)
    formulas: Mapping[str, Elements | None] = field(default_factory=dict, repr=False)
    numbers: Mapping[Atom, int | None] = field(default_factory=dict, repr=False)

    def symbolic(self, name: str) -> Dims | None:
        """The shape of a tensor in symbols; None where it is not known."""
        return self.sizes.get(name) or self.shapes.get(name)

    def elements(self, name: str) -> list[Size | None] | None:
        """The elements of a value in symbols; None where they, or how many they are, are not known."""
        if name in self.formulas:
            found = self.formulas[name]
        else:
            found = elements(self.values[name]) if name in self.values else None
        return None if found is None else found.reshape(-1).tolist()

    def constant(self, name: str) -> Array | None:
        """A value that is the same for all sizes; None where it is not."""
        return None if name in self.formulas else self.values.get(name)


def assignments(model: Model, *, single: bool = False) -> list[dict[tuple[str, int], int]]:
    """Numbers for the dynamic input dimensions: two different sets of them, or one where nothing is dynamic.

    Witnesses use the first one; the second serves to check that what is said in symbols holds for other numbers.
    """
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
    sizes = {name: seen.sizes[name] for name in names & seen.sizes.keys()}
    formulas = {name: seen.formulas[name] for name in names & seen.formulas.keys()}
    assumed = seen.assumed & names
    return replace(
        seen, shapes=shapes, values=values, dtypes=dtypes, assumed=assumed, sizes=sizes, formulas=formulas
    )  # fmt: skip


def with_nodes(witness: Witness, nodes: Sequence[gs.Node], opset: int) -> Witness:
    """A witness that knows shape arithmetic that was added to the graph; other nodes are left out.

    Args:
        witness: of the graph without them.
        nodes: new ones, in graph order.
        opset: of the model.
    """
    found = _WitnessBuilder(dict(witness.shapes), dict(witness.dtypes), dict(witness.values))
    found.sizes, found.formulas, found.numbers = dict(witness.sizes), dict(witness.formulas), dict(witness.numbers)
    for node in nodes:
        value = found.compute(node, opset) if found.computable(node) else None
        if value is not None:
            found.settle_value(node.outputs[0].name, value)
            found.express_value(node, value)
    names = witness.names | (found.values.keys() - witness.values.keys())
    return replace(
        witness, shapes=found.shapes, dtypes=found.dtypes, values=found.values, names=names, sizes=found.sizes,
        formulas=found.formulas,
    )  # fmt: skip


def witness(model: Model, dims: Mapping[tuple[str, int], int] | None = None) -> Witness:
    """Infers all shapes and computes all shape arithmetic, in numbers and in symbols.

    Args:
        model: to go through.
        dims: numbers of dynamic input dimensions, one of `assignments` (default: the first).
    """
    graph = model.graph
    dims = assignments(model, single=True)[0] if dims is None else dims
    node_types = NodeTypes(model)
    found = _WitnessBuilder()
    for t in graph.inputs:
        found.settle(t.name, of_input(t, dims))
        found.express_input(t, dims)
    for node in graph.nodes:
        found.visit(node, node_types, model.opset)
    names = found.types.keys() | {t.name for n in graph.nodes for t in n.outputs if t.name}
    names |= {t.name for t in graph.outputs}
    return Witness(
        dims, found.shapes, found.values, found.dtypes, found.types, frozenset(found.assumed), frozenset(names),
        found.sizes, found.formulas, found.numbers,
    )  # fmt: skip


@dataclass
class _WitnessBuilder:
    """Findings of a walk through a graph, as in `Witness`; `numbers` are those of the unknowns in `sizes`."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    types: dict[str, bytes] = field(default_factory=dict)
    assumed: set[str] = field(default_factory=set)
    sizes: dict[str, Dims] = field(default_factory=dict)
    formulas: dict[str, Elements | None] = field(default_factory=dict)
    numbers: dict[Atom, int | None] = field(default_factory=dict)
    # Nodes that do the same with inputs of which the same is known are alike: the same is known of what they compute.
    states: dict[str, int] = field(default_factory=dict)
    alike: dict[Any, list[str]] = field(default_factory=dict)
    _numbered: dict[Any, int] = field(default_factory=dict)
    _kinds: dict[int, bytes] = field(default_factory=dict)  # types of constants, by state
    _weights: set[int] = field(default_factory=set)  # states of constants whose values nobody has read
    _unknowns: int = 0  # how many unknowns had to be made up

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

    def visit(self, node: gs.Node, node_types: NodeTypes, opset: int) -> None:
        """Finds out what a node computes, after those that it reads from."""
        read = [self.states.get(t.name) or self._state(t) for t in node.inputs]
        attributes = hashable(node.attrs)
        used = len(node.outputs) > 1 and [(t.name != "", bool(t.outputs)) for t in node.outputs]
        key = (node.op, node.domain, attributes, used and tuple(used), *read)
        like = self.alike.get(key) if attributes is not None else None
        if like is not None:
            for t, name in zip(node.outputs, like, strict=True):
                self._repeat(t.name, name)
            return
        unknowns = self._unknowns
        value = self._find_out(node, node_types, opset)
        if unknowns == self._unknowns and (value is None or self._weights.isdisjoint(read)) and attributes is not None:
            self.alike[key] = [t.name for t in node.outputs]

    def _state(self, t: gs.Tensor) -> int:
        """The number of what is known of a tensor."""
        name = t.name
        contents: object = None
        if isinstance(t, gs.Constant):
            dtype, shape = np.dtype(t.dtype), tuple(t.shape)
            if prod(shape) <= _FEW:
                contents = array_contents(np.asarray(t.values))
            elif dtype.kind in "iub":
                contents = name
            number = self._number((dtype, shape, contents))
            if contents is None:
                self._weights.add(number)
            found = self._kinds.get(number)
            self.types[name] = self._kinds[number] = of_array(dtype, shape) if found is None else found
            self.shapes[name], self.dtypes[name], self.states[name] = shape, dtype, number
            return number
        if name in self.values:
            value = self.values[name]
            contents = array_contents(value) if value.size <= _FEW else name
        formula: object = self.formulas.get(name, 0)
        if isinstance(formula, np.ndarray):
            formula = tuple(formula.reshape(-1).tolist())
        key = (self.types.get(name, name != ""), contents, self.sizes.get(name), formula)
        number = self.states[name] = self._number(key)
        return number

    def _number(self, key: object) -> int:
        return self._numbered.setdefault(key, len(self._numbered) + 1)

    def _repeat(self, name: str, like: str) -> None:
        """Writes down of a tensor what is known of another one."""
        if like in self.sizes:
            self.sizes[name] = self.sizes[like]
        if like in self.types:
            self.types[name] = self.types[like]
            if like in self.states:
                self.states[name] = self.states[like]
            if like in self.shapes:
                self.shapes[name] = self.shapes[like]
            if like in self.dtypes:
                self.dtypes[name] = self.dtypes[like]
            if like in self.values:
                self.values[name] = self.values[like]
                if like in self.formulas:
                    self.formulas[name] = self.formulas[like]

    def _find_out(self, node: gs.Node, node_types: NodeTypes, opset: int) -> Array | None:
        """Settles everything about a node's outputs; returns the value of the first, if it has one."""
        value = None
        computable = self.computable(node)
        if computable and self._has_few_elements(node):
            value = self.compute(node, opset)
        if value is None or len(node.outputs) > 1:
            self._infer(node, node_types)
            if value is None and computable:
                most = _LARGEST_OF_BATCH if any(t.name in self.formulas for t in node.inputs) else _LARGEST
                if prod(self.shapes.get(node.outputs[0].name, ())) <= most:
                    value = self.compute(node, opset)
        if value is not None:
            self.settle_value(node.outputs[0].name, value)
            self.express_value(node, value)
        return value

    def _infer(self, node: gs.Node, node_types: NodeTypes) -> None:
        """Settles the types of a node's outputs; where a selection finds as many as the data say, that is a number."""
        inputs = [self._small(t) for t in node.inputs]
        selects = node.op in _SELECTIONS and not node.domain
        selects = selects and all(t.name in self.shapes for t in node.inputs if t.name)
        kinds = node_types.outputs(node, self.types, inputs, self.values)
        for t, kind in zip(node.outputs, kinds, strict=True):
            if kind is None or not t.name:
                continue
            numbered = with_number(kind, _SELECTED) if selects and shape_and_dtype(kind)[0] is None else kind
            if numbered != kind:
                self.assumed.add(t.name)
            self.settle(t.name, numbered)
        if self._moves(node):
            self._express(node, node_types)
        for t, kind in zip(node.outputs, kinds, strict=True):
            if kind is not None and t.name in self.assumed:
                self._express_as(t.name, [n if known else None for n, known in zip(
                    self.sizes.get(t.name) or self.shapes[t.name], known_axes(kind), strict=True)])  # fmt: skip

    # --------------------------------------------------------------------------------------------------- in symbols

    def express_input(self, t: gs.Tensor, dims: Mapping[tuple[str, int], int]) -> None:
        """A dynamic dimension is a symbol: its name's, or one of its own if it has no name."""
        if not any((t.name, axis) in dims for axis in range(len(t.shape or ()))):
            return
        out: list[Size | None] = []
        for axis, dim in enumerate(t.shape):
            if (t.name, axis) not in dims:
                out.append(int(dim))
                continue
            out.append(size := symbol(dim if isinstance(dim, str) and dim else (t.name, axis)))
            self.numbers[atom_of(size)] = dims[t.name, axis]
        self._express_as(t.name, out)

    def express_value(self, node: gs.Node, value: Array) -> None:
        """Finds out what a value, and its shape, is in symbols."""
        name, source = node.outputs[0].name, node.inputs[0].name if node.inputs else ""
        if node.op in _ASK:
            if source not in self.sizes:
                return
            start, end = node.attrs.get("start", 0), node.attrs.get("end")
            dims = self.sizes[source]
            parts = dims[start:end] if node.op == "Shape" else [product(dims)]
            self._formula(name, np.array(parts, object).reshape(value.shape), value)
        elif self._moves(node):
            read = any(t.name in self.formulas for t in node.inputs)
            if node.op not in PLAIN or any(t.name in self.sizes for t in node.inputs):
                self._express(node, None)
            inputs = [self._elements(t) for t in node.inputs] if read else []
            if read and name not in self.sizes:
                self._formula(name, values(node, inputs, value.dtype.kind == "f"), value)
            else:
                self.formulas[name] = None

    def _moves(self, node: gs.Node) -> bool:
        """Return whether a node reads anything that is not the same for all sizes."""
        if not self.sizes and not self.formulas:
            return False
        read = [*node.inputs, *captured(node)]
        return any(t.name in self.sizes or t.name in self.formulas for t in read)

    def _formula(self, name: str, found: Elements | None, value: Array) -> None:
        """Writes down elements; what does not agree with the numbers is not known."""
        if found is not None and found.shape != value.shape:
            found = None
        if found is None:
            self.formulas[name] = None
            return
        flat, moves = found.reshape(-1).tolist(), False
        for i, (size, n) in enumerate(zip(flat, value.reshape(-1).tolist(), strict=True)):
            if not isinstance(size, int) or size != n:
                flat[i], moves = self._checked(size, n), True
        if moves:
            self.formulas[name] = np.array(flat, object).reshape(value.shape)

    def _checked(self, size: Size | None, n: float) -> Expr:
        """An expression that is a number here; something opaque where the expression given is another number."""
        if isinstance(size, Expr):
            number = evaluate(size, self.numbers)
            if number == n:
                return size
            self._unknowns += 1
            if number is None and len(size.terms) == 1 and len(next(iter(size.terms))) == 1:
                self.numbers[atom_of(size)] = int(n)
                return size
        self._unknowns += 1
        out = opaque()
        self.numbers[atom_of(out)] = int(n) if n == n and abs(n) < 2**63 else None
        return out

    def _express_as(self, name: str, dims: Sequence[Size | None]) -> None:
        """Writes down a shape; what does not agree with the numbers is opaque."""
        out = [
            n if type(size) is int and size in (n, AS_SEEN) else self._checked_dim(size, n)
            for size, n in zip(dims, self.shapes[name], strict=True)
        ]
        if any(isinstance(n, Expr) for n in out):
            self.sizes[name] = tuple(out)
        else:
            self.sizes.pop(name, None)

    def _checked_dim(self, size: Size | None, n: int) -> Expr:
        if isinstance(size, Expr):
            return self._checked(size, n)
        self._unknowns += 1
        out = opaque(0)
        self.numbers[atom_of(out)] = n
        return out

    def _express(self, node: gs.Node, node_types: NodeTypes | None) -> None:
        """Finds out the shapes of a node's outputs in symbols."""
        dims = [self._dims(t) for t in node.inputs]
        found = sizes(node, dims, lambda i: self._elements(node.inputs[i]))
        if found is None:
            found = self._sampled_dims(node, node_types) if node_types is not None else [None] * len(node.outputs)
        for t, shape in zip(node.outputs, found, strict=False):
            if t.name in self.shapes:
                numbers = self.shapes[t.name]
                known = shape is not None and len(shape) == len(numbers)
                self._express_as(t.name, shape if known else [None] * len(numbers))  # type: ignore[arg-type]
            elif t.name:
                self.sizes[t.name] = ()

    def _sampled_dims(self, node: gs.Node, node_types: NodeTypes) -> list[Dims | None]:
        """Shapes of the outputs of a node without a rule: what three settings of its inputs' dimensions agree about.

        A single operator computes a dimension from few others, and with the numbers of `_TRIED` none is another by
        chance. Values that depend on sizes it is not told.
        """
        read = [*node.inputs, *captured(node)]
        if any(self.sizes.get(t.name) == () for t in read):
            return [None] * len(node.outputs)
        unknown = list({s: 0 for t in read for s in self.sizes.get(t.name, ()) if isinstance(s, Expr)})
        told = [None if t.name in self.formulas else self._small(t) for t in node.inputs]
        fixed = {name: v for name, v in self.values.items() if name not in self.formulas} if captured(node) else {}
        seen: list[list[tuple[int, ...] | None]] = []
        settings = []
        for numbers in _TRIED:
            given = {s: numbers[i % 5] + 7 * (i // 5) for i, s in enumerate(unknown)}
            types = {t.name: self.types[t.name] for t in read if t.name in self.types}
            for t in read:
                if t.name in self.sizes:
                    shape = [given[s] if isinstance(s, Expr) else s or 0 for s in self.sizes[t.name]]
                    types[t.name] = with_shape(self.types[t.name], shape)
            kinds = node_types.outputs(node, types, told, fixed)
            seen.append([None if kind is None else shape_and_dtype(kind)[0] for kind in kinds])
            settings.append(given)
        out: list[Dims | None] = []
        for shapes in zip(*seen, strict=True):
            ranks = {None if s is None else len(s) for s in shapes}
            if len(ranks) > 1 or None in ranks:
                out.append(None)
                continue
            dims: list[Size | None] = []
            for tried in zip(*shapes, strict=True):
                alike = [s for s in unknown if all(g[s] == n for g, n in zip(settings, tried, strict=True))]
                dims.append(tried[0] if len(set(tried)) == 1 else alike[0] if alike else None)
            out.append(tuple(dims))
        return out

    def _dims(self, t: gs.Tensor) -> Dims | None:
        return self.sizes.get(t.name) or self.shapes.get(t.name) if t.name else None

    def _elements(self, t: gs.Tensor) -> Elements | None:
        if t.name in self.formulas:
            return self.formulas[t.name]
        value = self._small(t)
        return None if value is None else elements(value)

    # --------------------------------------------------------------------------------------------------- in numbers

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

    def _has_few_elements(self, node: gs.Node) -> bool:
        if node.op in _ASK:
            return True
        return node.op in _MAKE_FEW and all(prod(self.shapes.get(t.name, ())) <= _FEW for t in node.inputs)

    def compute(self, node: gs.Node, opset: int) -> Array | None:
        """The value of a computable node's first output; None where there is no way to compute it, or it is large."""
        if node.op in _ASK:
            shape = self.shapes[node.inputs[0].name]
            start, end = node.attrs.get("start", 0), node.attrs.get("end")
            return np.array(shape[start:end] if node.op == "Shape" else prod(shape), np.int64)
        result = compute_node(node, [self._value(t) for t in node.inputs], opset)
        return None if result is None or result.size > _LARGEST else result

    def _small(self, t: gs.Tensor) -> Array | None:
        value = self._value(t) if not isinstance(t, gs.Constant) or prod(t.shape) <= SMALL else None
        return value if value is None or value.size <= SMALL else None

    def _value(self, t: gs.Tensor) -> Array | None:
        if not t.name:
            return None
        return np.asarray(t.values) if isinstance(t, gs.Constant) else self.values.get(t.name)


def compute_node(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    """Compute the first output of a node with numpy; None where the operator or these values do not allow it."""
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
