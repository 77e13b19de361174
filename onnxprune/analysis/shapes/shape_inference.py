"""Witness shapes: every dimension a number, and beside it the expression of dynamic dimensions that it stands for.

Labels need numbers. A *witness* assigns one to each dynamic dimension and visits the graph once, in order
(`_witness_builder`). A number does not show whether a value is a constant of the model: a value that depends on a
dynamic dimension also has an expression (`onnxprune.ir.symbolic`), by rules for each operator
(`_symbolic_shape_rules`, `_symbolic_value_rules`), and is a constant only if the expression is one. The number of boxes
that a detector keeps depends on the data; such dimensions are numbers, and unknowns equal to nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes._memory_check import check_memory
from onnxprune.analysis.shapes._size_constraints import Condition, Violation, violations
from onnxprune.analysis.shapes._size_search import kind_of, search
from onnxprune.analysis.shapes._symbolic_shape_rules import Dims
from onnxprune.analysis.shapes._symbolic_value_rules import Elements, elements
from onnxprune.analysis.shapes._witness_builder import WitnessBuilder
from onnxprune.analysis.shapes.node_faults import NodeFaults
from onnxprune.analysis.shapes.type_inference import (
    NodeTypes,
    of_input,
)  # fmt: skip
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.input_sizes import dimension_name, template, text_of
from onnxprune.ir.model import Array, Model
from onnxprune.ir.symbolic import Atom, Expr, Size, atom_of

# Batch sizes: primes that divide no usual channel count, so that no factor of a Reshape is ambiguous.
_BATCH = (11, 23)
# Lengths of sequences (token inputs).
_LENGTH = ((41, 43, 47, 53), (59, 61, 67, 71))
# Image sides: large enough for five strided layers, and divisible by usual strides and windows.
_SIDE = ((224, 448, 672, 896), (1120, 1344, 1568, 1792))
_TRIES = 8  # witnesses, if a node cannot run at the sizes of one


@dataclass(frozen=True)
class Witness:
    """Shapes and known values of a graph under one assignment of its dynamic dimensions.

    Attributes:
        dims: Number assigned to each dynamic dimension, by (input name, axis).
        shapes: Shape of every tensor that has one. The size of a selection, which depends on data, is 101; other shapes
            that depend on data are missing.
        values: Computed values of shape arithmetic and constant expressions, by tensor name.
        dtypes: Element type of every tensor that has one.
        types: Type of every tensor, as far as it is known (see `onnxprune.analysis.shapes.type_inference`).
        assumed: Tensors with a dimension that depends on data and was set to a number.
        names: Names of all tensors of the graph.
        sizes: Symbolic shapes of the tensors with a dimension that is not constant; empty if such a shape is not known
            (a sequence of tensors).
        formulas: Symbolic elements of the values that are not constant; None if they are not known.
        numbers: Numbers assigned to the unknowns of both.
        impossible: Output of an If -> result of the branch that the nodes after the If reject whatever its sizes are.
        settled: Part of `dims` that was given, or that nodes of the model require.
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
    impossible: Mapping[str, str] = field(default_factory=dict, repr=False)
    settled: Mapping[tuple[str, int], int] = field(default_factory=dict, repr=False)

    @property
    def assumed_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs with dynamic dimensions besides the batch, by name."""
        return {name: self.shapes[name] for name, axis in self.dims if axis and name in self.shapes}

    def symbolic(self, name: str) -> Dims | None:
        """Return the symbolic shape of a tensor; None if it is not known."""
        return self.sizes.get(name) or self.shapes.get(name)

    def elements(self, name: str) -> list[Size | None] | None:
        """Return the symbolic elements of a value; None if they or their number are not known."""
        if name in self.formulas:
            found = self.formulas[name]
        else:
            found = elements(self.values[name]) if name in self.values else None
        return None if found is None else found.reshape(-1).tolist()

    def constant(self, name: str) -> Array | None:
        """Return a value that is the same for all sizes; None for any other."""
        return None if name in self.formulas else self.values.get(name)


def assignments(model: Model, *, single: bool = False) -> list[dict[tuple[str, int], int]]:
    """Return numbers for the dynamic input dimensions: two different sets, or one if nothing is dynamic.

    Witnesses use the first set, in which sizes that were given (`Model.sizes`) have their numbers; the second serves to
    check that symbolic forms hold for other numbers. Batches keep theirs: with a batch of 1 or 8 more factors of a
    Reshape are ambiguous.
    """
    sets: list[dict[tuple[str, int], int]] = []
    given = _given(model)
    for which in range(2):
        numbers: dict[object, int] = {} if which else dict(given)
        used = {"length": 0, "side": 0}
        out: dict[tuple[str, int], int] = {}
        dynamic = [
            (t, axis, dim)
            for t in model.graph.inputs
            for axis, dim in enumerate(t.shape or ())
            if not (isinstance(dim, int) and dim > 0)
        ]
        for t, axis, dim in sorted(dynamic, key=lambda item: item[1]):
            key = _dimension((t.name, axis), dim)
            if axis == 0:
                # Exporters name the batch of every input differently or not at all, but it is one batch.
                numbers[key] = _BATCH[which]
            elif key not in numbers:
                kind = kind_of(axis, len(t.shape))
                table = (_SIDE if kind == "side" else _LENGTH)[which]
                while key not in numbers or (not which and numbers[key] in given.values()):
                    numbers[key] = table[used[kind] % len(table)] * (1 + used[kind] // len(table))
                    used[kind] += 1
            out[t.name, axis] = numbers[key]
        sets.append(out)
    return sets[:1] if single or not sets[0] else sets


def _given(model: Model) -> dict[object, int]:
    """Return the sizes that were given for other dimensions than batches, by name or by input and axis."""
    names = {(t.name, axis): dim for t in model.graph.inputs for axis, dim in enumerate(t.shape or ())}
    return {_dimension(key, names.get(key)): n for key, n in model.sizes.items() if key[1] > 0}


def _dimension(key: tuple[str, int], dim: object) -> object:
    """Return the name of a dynamic dimension, or its input and axis if it has none."""
    return dimension_name(dim) or key


def known_or_witness(model: Model, seen: Witness | None = None) -> Witness:
    """Return a witness restricted to the tensors that a graph still has, or a new one if it has not seen all of them.

    Tensors for which it found no shape would get none from a new inference either.

    Args:
        model: Model after passes that keep the shapes of its tensors.
        seen: Witness of the model before those passes; None: infer a new one.
    """
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
    """Return a witness extended by shape arithmetic that was added to the graph; other nodes are ignored.

    Args:
        witness: Witness of the graph without the new nodes.
        nodes: New nodes, in graph order.
        opset: Opset of the model.
    """
    found = WitnessBuilder(dict(witness.shapes), dict(witness.dtypes), dict(witness.values))
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
    """Infer all shapes and compute all shape arithmetic, in numbers and in symbols.

    Args:
        model: Model to visit.
        dims: Numbers of dynamic input dimensions, one of `assignments` (default: the first; if a node cannot run at
            these sizes, others that it admits).

    Raises:
        OnnxPruneError: A node cannot run at the sizes that were given, or at none that were found (names the node).
    """
    if dims is not None:
        return _walked(model, dims)
    first = assignments(model, single=True)[0]
    seen = _walked(model, first)
    conditions: list[Violation] = []
    for _ in range(_TRIES):
        bad = violations(model, seen)
        if not bad:
            break
        conditions += bad
        numbers = _admitted(model, seen, [v.condition for v in conditions])
        if numbers is None and any(v.certain for v in bad):  # branches may exclude each other
            numbers = _admitted(model, seen, [v.condition for v in conditions if v.certain])
        if numbers is None:
            break
        seen = _walked(model, numbers)
    certain = [v for v in violations(model, seen) if v.certain] if conditions else []
    if certain:
        raise _refused(model, seen, certain[0])
    check_memory(model.graph, seen.shapes, seen.dtypes)
    settled = {key: n for key, n in seen.dims.items() if n != first[key]}
    settled |= {key: n for key, n in model.sizes.items() if key in seen.dims}
    return replace(seen, settled=settled) if settled else seen


def _admitted(model: Model, seen: Witness, conditions: Sequence[Condition]) -> dict[tuple[str, int], int] | None:
    """Return numbers of the dynamic dimensions that meet the conditions; None if none were found."""
    atoms: dict[tuple[str, int], Atom] = {}
    kinds: dict[Atom, str] = {}
    for t in model.graph.inputs:
        for axis, size in enumerate(seen.sizes.get(t.name, ())):
            if isinstance(size, Expr):
                atoms[t.name, axis] = atom_of(size)
                kinds.setdefault(atom_of(size), kind_of(axis, len(t.shape)))
    given = _given(model)
    shapes = {t.name: t.shape for t in model.graph.inputs}
    free = frozenset(
        a for (name, axis), a in atoms.items() if _dimension((name, axis), shapes[name][axis]) not in given
    )
    found = search(conditions, {a: seen.dims[key] for key, a in atoms.items()}, kinds, free)
    return None if found is None else {key: found[a] for key, a in atoms.items()}


def _refused(model: Model, seen: Witness, bad: Violation) -> OnnxPruneError:
    inputs = [t for t in model.graph.inputs if t.name in seen.sizes]
    shown = ", ".join(f"{t.name} {list(seen.shapes[t.name])}" for t in inputs)
    name = bad.node.name or (bad.node.outputs[0].name if bad.node.outputs else "")
    asked = " ".join(f"--shape {t.name}={template(t.shape)}" for t in inputs[:2])
    if model.sizes:
        what, fix = f"the model cannot run at the given size: {bad.says} ({shown})", f"another size: {asked}"
        with contextlib.suppress(OnnxPruneError):
            free = witness(replace(model, sizes={}))
            fits = {t.name: [n if axis else None for axis, n in enumerate(free.shapes[t.name])] for t in inputs[:2]}
            fix = "a size that it takes: " + " ".join(
                f"--shape {name}={text_of(shape)}" for name, shape in fits.items()
            )
    else:
        what = f"the model runs at some input sizes only, and none was found: {bad.says} at {shown}"
        fix = f"give a size that it takes: {asked}"
    return OnnxPruneError(what, where=f"{bad.node.op} {name!r}", fix=fix)


def _walked(model: Model, dims: Mapping[tuple[str, int], int]) -> Witness:
    graph = model.graph
    node_types = NodeTypes(model)
    found = WitnessBuilder()
    for t in graph.inputs:
        found.settle(t.name, of_input(t, dims))
        found.express_input(t, dims)
    for node in graph.nodes:
        with NodeFaults(node):
            found.visit(node, node_types, model.opset)
    names = found.types.keys() | {t.name for n in graph.nodes for t in n.outputs if t.name}
    names |= {t.name for t in graph.outputs}
    return Witness(
        dims, found.shapes, found.values, found.dtypes, found.types, frozenset(found.assumed), frozenset(names),
        found.sizes, found.formulas, found.numbers, found.impossible,
    )  # fmt: skip
