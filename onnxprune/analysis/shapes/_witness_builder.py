"""State of one walk through a graph: shapes, values and their symbolic forms.

A node's outputs are inferred, or computed with numpy, from what is known of its inputs; nodes that do the same with
inputs of which the same is known are treated once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes._rank_check import can_pass
from onnxprune.analysis.shapes._symbolic_shape_rules import AS_SEEN, Dims, sizes
from onnxprune.analysis.shapes._symbolic_value_rules import PLAIN, Elements, elements, values
from onnxprune.analysis.shapes.node_evaluation import compute_node
from onnxprune.analysis.shapes.type_inference import (
    SMALL,
    NodeTypes,
    array_contents,
    captured,
    hashable,
    is_tensor,
    known_axes,
    of_array,
    shape_and_dtype,
    with_number,
    with_shape,
)  # fmt: skip
from onnxprune.ir.branches import FLAT, LOOP_START
from onnxprune.ir.input_sizes import dimension_name
from onnxprune.ir.model import Array
from onnxprune.ir.symbolic import Atom, Expr, Size, atom_of, evaluate, opaque, product, symbol

_SELECTED = 101  # elements assumed to be found by a selection: a prime
# Three numbers for each dimension of a single node, which show the dimension that an output's is equal to.
_TRIED = ((1009, 1013, 1019, 1021, 1031), (36, 60, 84, 132, 156), (6, 10, 14, 22, 26))
_ASK = frozenset(("Shape", "Size"))
_SELECTIONS = frozenset(("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Unique"))
_VIEWS = frozenset(("Transpose", "Cast", "Identity"))  # large constants behind these remain weights
# Operators of shape arithmetic. Few inputs give few outputs, so sizes need not be inferred first.
_FEW = 64
_MAKE_FEW = frozenset(
    ("Add", "And", "Cast", "Ceil", "Concat", "Constant", "Div", "Equal", "Floor", "Gather", "Greater", "Identity",
     "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "ReduceProd", "Reshape", "Slice", "Squeeze", "Sub",
     "Unsqueeze", "Where")
)  # fmt: skip
_LARGEST = 2**24  # elements of a folded constant expression
_LARGEST_OF_BATCH = 2**16  # elements of one that grows with the batch: only a shape can depend on it
_NOT_A_FUNCTION = ("Random", "Multinomial", "Bernoulli", "Dropout")
# They state how the runtime computes: an integer weight must remain one.
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass
class WitnessBuilder:
    """Fields of a `Witness` while the nodes of a graph are visited in order."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    types: dict[str, bytes] = field(default_factory=dict)
    assumed: set[str] = field(default_factory=set)
    sizes: dict[str, Dims] = field(default_factory=dict)
    formulas: dict[str, Elements | None] = field(default_factory=dict)
    numbers: dict[Atom, int | None] = field(default_factory=dict)
    impossible: dict[str, str] = field(default_factory=dict)
    # Nodes with equal operators and attributes, and inputs in equal states, have outputs in equal states.
    states: dict[str, int] = field(default_factory=dict)
    alike: dict[Any, list[str]] = field(default_factory=dict)
    _numbered: dict[Any, int] = field(default_factory=dict)
    _kinds: dict[int, bytes] = field(default_factory=dict)  # types of constants, by state
    _weights: set[int] = field(default_factory=set)  # states of constants whose values were not read
    _unknowns: int = 0  # opaque unknowns created so far

    def settle(self, name: str, kind: bytes) -> None:
        """Record a type."""
        self.types[name] = kind
        shape, dtype = shape_and_dtype(kind)
        if shape is not None:
            self.shapes[name] = shape
        if dtype is not None:
            self.dtypes[name] = dtype

    def settle_value(self, name: str, value: Array) -> None:
        """Record a value and its type."""
        self.values[name] = value
        self._settle_array(name, value.dtype, value.shape)

    def _settle_array(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.types[name] = of_array(dtype, shape)
        self.shapes[name], self.dtypes[name] = shape, dtype

    def visit(self, node: gs.Node, node_types: NodeTypes, opset: int) -> None:
        """Infer the outputs of a node whose inputs were visited."""
        if node.domain == FLAT:
            if node.op == "If":
                self._select(node, opset)
            elif node.op == LOOP_START:
                self._enter(node)
            else:
                self._leave(node)
            return
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

    def _select(self, node: gs.Node, opset: int) -> None:
        """Record the outputs of an If in flat form: those of one branch if the condition is known, else what both have.

        Sizes in which the results differ are unknowns of their own, unless the condition is a constant.
        """
        condition, count = node.inputs[0], len(node.inputs) // 2
        value = self._value(condition)
        for k, output in enumerate(node.outputs):
            results = [node.inputs[1 + k], node.inputs[1 + count + k]]
            for t in results:
                self.states.get(t.name) or self._state(t)
            if value is not None and not bool(value.any()):
                results.reverse()
            if not output.name:
                continue
            decided = value is not None and condition.name not in self.formulas
            only = results[0] if decided else self._possible(output, results, opset)
            if only is not None:
                self._repeat(output.name, only.name)
                continue
            first, other = results
            if first.name not in self.types:
                continue
            kind = self.types[first.name]
            shapes = [self.shapes.get(t.name) for t in results]
            if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
                if value is not None or kind == self.types.get(other.name):
                    self.settle(output.name, kind)
            elif value is not None or shapes[0] == shapes[1]:
                self.settle(output.name, kind)
            else:
                seen = [n if n == m else _SELECTED for n, m in zip(*shapes, strict=True)]
                self.settle(output.name, with_shape(kind, seen))
                self.assumed.add(output.name)
            if output.name in self.shapes:
                one, two = self._dims(first) or (), self._dims(other) or ()
                same = len(one) == len(two)
                self._express_as(output.name, [
                    n if same and two[i] == n else None for i, n in enumerate(one)
                ])  # fmt: skip

    def _enter(self, node: gs.Node) -> None:
        """Record the inputs of the body of a Loop; states are assumed to keep their shape, see `_leave`."""
        for t, dtype in zip(node.outputs[:3], (np.int64, np.int64, np.bool_), strict=True):
            self._settle_array(t.name, np.dtype(dtype), ())
        for initial, state in zip(node.inputs[2:], node.outputs[3:], strict=True):
            self.states.get(initial.name) or self._state(initial)
            if initial.name in self.types:
                self.settle(state.name, self.types[initial.name])
                if initial.name in self.sizes:
                    self.sizes[state.name] = self.sizes[initial.name]

    def _leave(self, node: gs.Node) -> None:
        """Record the results of a Loop; if a state changes its shape, nothing in the body has a known one."""
        start = node.inputs[0].inputs[0]
        states, results = start.outputs[3:], node.inputs[2:]
        for t in results:
            self.states.get(t.name) or self._state(t)
        kept = zip(states, results, strict=False)
        if not all(
            self.types.get(a.name) == self.types.get(b.name) and self._dims(a) == self._dims(b) for a, b in kept
        ):
            front = list(start.outputs)
            while front:
                t = front.pop()
                if t.name in self.shapes:
                    for known in (self.shapes, self.types, self.values, self.sizes, self.formulas, self.states):
                        known.pop(t.name, None)
                    front += [o for n in t.outputs for o in n.outputs]
            return
        count = self._value(start.inputs[0])
        for k, (t, output) in enumerate(zip(results, node.outputs, strict=True)):
            if not output.name or t.name not in self.shapes:
                continue
            if k < len(states):
                self.settle(output.name, self.types[t.name])
                if t.name in self.sizes:
                    self.sizes[output.name] = self.sizes[t.name]
                continue
            stated = count is not None and start.inputs[0].name not in self.formulas
            trips = int(count) if count is not None and stated else _SELECTED
            self.settle(output.name, with_shape(self.types[t.name], [trips, *self.shapes[t.name]]))
            self.assumed.add(output.name)
            self._express_as(output.name, [None, *(self._dims(t) or ())])

    def _possible(self, output: gs.Tensor, results: Sequence[gs.Tensor], opset: int) -> gs.Tensor | None:
        """Return the only result of an If that the nodes after it accept; None if there is not exactly one."""
        kinds = [self.types.get(t.name) for t in results]
        ranks = {len(known_axes(kind)) if kind is not None and is_tensor(kind) else -1 for kind in kinds}
        if len(ranks) < 2 or -1 in ranks:
            return None
        able = [t for t, k in zip(results, kinds, strict=True) if k and can_pass(output, k, self.types, opset)]
        if len(able) != 1:
            return None
        self.impossible[output.name] = next(t.name for t in results if t is not able[0])
        return able[0]

    def _state(self, t: gs.Tensor) -> int:
        """Return the number of a tensor's state: all that is known of it."""
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
        """Record for a tensor all that is known of another one."""
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
        """Record everything about a node's outputs; return the value of the first, if it is known."""
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
        """Record the types of a node's outputs; the size of a selection, which depends on data, becomes a number."""
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
        """Record the symbols of an input: one for each name of a dynamic dimension, and one for each without a name."""
        if not any((t.name, axis) in dims for axis in range(len(t.shape or ()))):
            return
        out: list[Size | None] = []
        for axis, dim in enumerate(t.shape):
            if (t.name, axis) not in dims:
                out.append(int(dim))
                continue
            out.append(size := symbol(dimension_name(dim) or (t.name, axis)))
            self.numbers[atom_of(size)] = dims[t.name, axis]
        self._express_as(t.name, out)

    def express_value(self, node: gs.Node, value: Array) -> None:
        """Infer the symbolic form of a value and of its shape."""
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
        """Return True if a node reads a value or shape that depends on a dynamic dimension."""
        if not self.sizes and not self.formulas:
            return False
        read = [*node.inputs, *captured(node)]
        return any(t.name in self.sizes or t.name in self.formulas for t in read)

    def _formula(self, name: str, found: Elements | None, value: Array) -> None:
        """Record elements in symbols; those that contradict the numbers are unknown."""
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
        """Return an expression that evaluates to a number; an opaque one if the given expression does not."""
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
        """Record a shape in symbols; dimensions that contradict the numbers are opaque."""
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
        """Infer the shapes of a node's outputs in symbols."""
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
        """Return shapes of a node without a rule, as far as three settings of its inputs' dimensions agree.

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
        """Return True if only the first output of a node is used, and its value follows from known values."""
        if node.domain or not node.outputs or any(t.outputs for t in node.outputs[1:]):
            return False
        if node.op in _ASK:
            return node.inputs[0].name in self.shapes
        if any(t.name and t.name not in self.values and not isinstance(t, gs.Constant) for t in node.inputs):
            return False
        if node.op.startswith(_NOT_A_FUNCTION) or node.op in _QUANTIZERS:
            return False
        if node.op in _VIEWS and isinstance(node.inputs[0], gs.Constant) and prod(node.inputs[0].shape) > SMALL:
            return False  # a transposed or cast weight: labels pass through it, and the file keeps it unchanged
        return not any(isinstance(a, gs.Graph) for a in node.attrs.values())

    def _has_few_elements(self, node: gs.Node) -> bool:
        if node.op in _ASK:
            return True
        return node.op in _MAKE_FEW and all(prod(self.shapes.get(t.name, ())) <= _FEW for t in node.inputs)

    def compute(self, node: gs.Node, opset: int) -> Array | None:
        """Return the value of a computable node's first output; None if it cannot be computed or is too large."""
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
