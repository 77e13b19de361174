"""Conditions that nodes put on the sizes of their inputs: a Reshape keeps the volume, a Concat needs equal sides.

Rules work on numbers and on expressions alike: conditions are checked in numbers, and those that do not hold are
written down in symbols, for the search of sizes that meet them (`_size_search`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes.node_faults import NodeFaults
from onnxprune.ir.branches import FLAT
from onnxprune.ir.model import Model
from onnxprune.ir.symbolic import Atom, Expr, Size, evaluate, product
from onnxprune.ops import find
from onnxprune.ops.elementwise import couple_broadcast
from onnxprune.ops.op_spec import normal_axis

EQUAL, LEAST, DIVIDES, BROADCAST = "equal", "least", "divides", "broadcast"
_HOLDS: Mapping[str, Callable[[int, int], bool]] = {
    EQUAL: lambda a, b: a == b,
    LEAST: lambda a, b: a >= b,
    DIVIDES: lambda a, b: b != 0 and a % b == 0,
    BROADCAST: lambda a, b: a == b or 1 in (a, b),
}
Dims = Sequence[Size | None]


class NodeSizes(Protocol):
    """Sizes of tensors, in numbers or in symbols."""

    def dims(self, t: gs.Tensor) -> Dims | None:
        """Return the shape of a tensor; None if it is not known."""

    def values(self, t: gs.Tensor) -> Dims | None:
        """Return the elements of a value; None if they are not known."""


@dataclass(frozen=True)
class Condition:
    """Relation between two sizes.

    Attributes:
        kind: "equal", "least" (a >= b), "divides" (b divides a) or "broadcast" (equal, or one of them is 1).
        a, b: The two sizes.
    """

    kind: str
    a: Size
    b: Size

    def holds(self, numbers: dict[Atom, int | None], *, strict: bool = False) -> bool | None:
        """Return whether the relation holds; None if an expression has no number.

        Args:
            numbers: Numbers of the dimensions; values of functions of them are added.
            strict: Sizes that broadcast must be equal.
        """
        a, b = evaluate(self.a, numbers), evaluate(self.b, numbers)
        kind = EQUAL if strict and self.kind == BROADCAST else self.kind
        return None if a is None or b is None else _HOLDS[kind](a, b)


@dataclass(frozen=True)
class Violation:
    """Node that cannot run at the assumed sizes.

    Attributes:
        node: The node.
        says: Sentence for a message.
        condition: Violated condition, in symbols.
        certain: False for a node in the branch of an If, which may not be executed.
    """

    node: gs.Node
    says: str
    condition: Condition
    certain: bool


Found = tuple[str, Size | None, Size | None, str, int]
"""Kind of a condition, its two sizes, a sentence with {a}, {b} and {n}, and the number n: an axis or an index."""
Rule = Callable[[gs.Node, NodeSizes], Iterator[Found]]


def violations(model: Model, seen: Any) -> list[Violation]:
    """Return the nodes that cannot run at the sizes of a witness, with conditions on input dimensions alone.

    Conditions on quantities without an expression are left out: whether they hold for other sizes is not known.

    Args:
        model: Model.
        seen: `Witness` of the model.
    """
    if not seen.sizes:
        return []
    numbers, symbols = _Numbers(seen), _Symbols(seen)
    out = []
    always = _always_run(model)
    rules: dict[tuple[str, str | None], Rule | None] = {}
    for node in model.graph.nodes:
        key = (node.op, node.domain)
        if key not in rules:
            rules[key] = _rule(node)
        rule = rules[key]
        if rule is None or not any(t.name in seen.sizes or t.name in seen.formulas for t in node.inputs):
            continue
        if rule is _broadcast and len({seen.shapes.get(t.name) for t in node.inputs}) == 1:
            continue
        with NodeFaults(node):
            conditions = list(rule(node, numbers))
        for i, (kind, a, b, says, n) in enumerate(conditions):
            if not isinstance(a, int) or not isinstance(b, int) or _HOLDS[kind](a, b):
                continue
            found = list(rule(node, symbols))
            if i < len(found):
                kind, x, y, says, n = found[i]
                certain = always is None or id(node) in always
                if x is not None and y is not None and _of_dimensions(x - y):
                    out.append(Violation(node, says.format(a=a, b=b, n=n), Condition(kind, x, y), certain))
    return out


def _always_run(model: Model) -> set[int] | None:
    """Return the identities of the nodes outside of branches; None if there is no If."""
    if not any(node.domain == FLAT for node in model.graph.nodes):
        return None
    seen: set[int] = set()
    front = [node for t in model.graph.outputs for node in t.inputs]
    while front:
        node = front.pop()
        if id(node) not in seen:
            seen.add(id(node))
            reads = node.inputs[:1] if node.domain == FLAT else node.inputs
            front += [producer for t in reads for producer in t.inputs]
    return seen


def symbols_of(size: Size) -> set[Atom]:
    """Return the dimensions and opaque quantities of an expression."""
    out: set[Atom] = set()
    for atom in {atom for mono in size.terms for atom in mono} if isinstance(size, Expr) else ():
        if atom.kind in ("symbol", "opaque"):
            out.add(atom)
        else:
            out |= {inner for arg in atom.args for inner in symbols_of(arg)}
    return out


def _of_dimensions(size: Size) -> bool:
    found = symbols_of(size)
    return bool(found) and all(atom.kind == "symbol" for atom in found)


class _Numbers:
    def __init__(self, seen: Any) -> None:
        self._seen = seen

    def dims(self, t: gs.Tensor) -> Dims | None:
        found: Dims | None = self._seen.shapes.get(t.name)
        return tuple(int(n) for n in t.shape) if found is None and isinstance(t, gs.Constant) else found

    def values(self, t: gs.Tensor) -> Dims | None:
        value = np.asarray(t.values) if isinstance(t, gs.Constant) else self._seen.values.get(t.name)
        if value is None or value.dtype.kind not in "iu" or value.size > 64:
            return None
        return [int(n) for n in value.reshape(-1)]


class _Symbols(_Numbers):
    def dims(self, t: gs.Tensor) -> Dims | None:
        if t.name in self._seen.sizes:
            found: Dims = self._seen.sizes[t.name]
            return found or None
        return super().dims(t)

    def values(self, t: gs.Tensor) -> Dims | None:
        if t.name in self._seen.formulas:
            found: Dims | None = self._seen.elements(t.name)
            return found
        return super().values(t)


# ------------------------------------------------------------------------------------------------------------- rules

_TOO_FEW = "it needs at least {b} elements on axis {n} and gets {a}"


def _reshape(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    source, target = sizes.dims(node.inputs[0]), sizes.values(node.inputs[1])
    if source is None or target is None:
        return
    copies = not node.attrs.get("allowzero", 0)
    full = [
        source[i] if copies and isinstance(n, int) and n == 0 and i < len(source) else n for i, n in enumerate(target)
    ]
    stated = [n for n in full if not (isinstance(n, int) and n == -1)]
    if any(isinstance(n, int) and n == 0 for n in stated):
        return  # an empty tensor only, and sizes count as at least 1
    kind, says = EQUAL, "it reshapes {a} elements to {b}"
    if len(stated) < len(full):
        kind, says = DIVIDES, "it reshapes {a} elements to rows of {b}"
    yield kind, product(source), product(stated), says, 0


def _concat(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    shapes = [sizes.dims(t) for t in node.inputs]
    first = next((s for s in shapes if s is not None), None)
    if first is None:
        return
    joined = normal_axis(int(node.attrs["axis"]), len(first))
    for shape in shapes:
        for axis, (a, b) in enumerate(zip(first, shape or (), strict=False)):
            if axis != joined:
                yield EQUAL, a, b, "it joins tensors of {a} and {b} on axis {n}", axis


def _broadcast(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    shapes = [s for t in node.inputs if t.name and (s := sizes.dims(t)) is not None]
    rank = max(map(len, shapes), default=0)
    full = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    for axis in range(rank):
        for k, shape in enumerate(full):
            for other in full[:k]:
                yield BROADCAST, other[axis], shape[axis], "it combines {a} and {b} on axis {n}", axis


def _matmul(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    a, b = sizes.dims(node.inputs[0]), sizes.dims(node.inputs[1])
    if a is None or b is None or min(len(a), len(b)) < 2:
        return
    if node.op == "Gemm":
        a, b = (a[::-1] if node.attrs.get("transA", 0) else a), (b[::-1] if node.attrs.get("transB", 0) else b)
    yield EQUAL, a[-1], b[-2], "it sums over {a} and {b} elements", 0


def _window(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x, attrs = sizes.dims(node.inputs[0]), node.attrs
    kernel = attrs.get("kernel_shape")
    if kernel is None and node.op == "Conv":
        kernel = (sizes.dims(node.inputs[1]) or ())[2:]
    if x is None or not kernel or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return
    if attrs.get("ceil_mode", 0):
        return  # a last window that is not complete counts
    rank = len(kernel)
    pads = attrs.get("pads") or [0] * 2 * rank
    dilations = attrs.get("dilations") or [1] * rank
    for i, (n, k) in enumerate(zip(x[2:], kernel, strict=False)):
        if n is not None and isinstance(k, int):
            need = (k - 1) * dilations[i] + 1 - pads[i] - pads[i + rank]
            yield LEAST, n, need, _TOO_FEW, 2 + i


def _pad(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x = sizes.dims(node.inputs[0])
    given = sizes.values(node.inputs[1]) if len(node.inputs) > 1 else node.attrs.get("pads")
    mode = node.attrs.get("mode", "constant")
    if x is None or given is None or mode not in ("reflect", "edge"):
        return
    axes: Dims | None = range(len(x))
    if len(node.inputs) > 3 and node.inputs[3].name:
        axes = sizes.values(node.inputs[3])
    for i, axis in enumerate(axes or ()):
        for pad in (given[i], given[i + len(given) // 2]):
            if isinstance(axis, int) and (n := x[axis]) is not None and pad is not None:
                least = pad + 1 if mode == "reflect" else 1
                yield LEAST, n, least, _TOO_FEW, axis


def _split(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x = sizes.dims(node.inputs[0])
    if x is None:
        return
    n = x[normal_axis(int(node.attrs.get("axis", 0)), len(x))]
    parts = node.attrs.get("split")
    if len(node.inputs) > 1 and node.inputs[1].name:
        parts = sizes.values(node.inputs[1])
        if parts is None or None in parts:
            return
    if parts is not None:
        yield EQUAL, n, sum(parts, start=0), "it splits {a} elements into parts of {b} together", 0
    elif "num_outputs" not in node.attrs:
        yield DIVIDES, n, len(node.outputs), "it splits {a} elements into {b} equal parts", 0


def _squeeze(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x, axes = sizes.dims(node.inputs[0]), node.attrs.get("axes")
    if len(node.inputs) > 1 and node.inputs[1].name:
        axes = sizes.values(node.inputs[1])
    for axis in axes or () if x is not None else ():
        if isinstance(axis, int) and x is not None and -len(x) <= axis < len(x):
            yield EQUAL, x[axis], 1, "it drops axis {n}, which has {a} elements", axis


def _expand(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x, target = sizes.dims(node.inputs[0]), sizes.values(node.inputs[1])
    if x is None or target is None:
        return
    for k, (a, b) in enumerate(zip(reversed(x), reversed(target), strict=False)):
        yield BROADCAST, a, b, "it stretches {a} elements to {b} on axis {n}", -1 - k


def _gather(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x, wanted = sizes.dims(node.inputs[0]), sizes.values(node.inputs[1])
    if x is None or wanted is None or len(wanted) > 8:
        return
    n = x[normal_axis(int(node.attrs.get("axis", 0)), len(x))]
    for index in wanted:
        if n is not None and isinstance(index, int):
            least = index + 1 if index >= 0 else -index
            yield LEAST, n, least, "it reads element {n} of {a}", index


def _space_to_depth(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    for n in (sizes.dims(node.inputs[0]) or ())[2:]:
        yield DIVIDES, n, int(node.attrs["blocksize"]), "it splits {a} elements into blocks of {b}", 0


def _recurrent(node: gs.Node, sizes: NodeSizes) -> Iterator[Found]:
    x, batch = sizes.dims(node.inputs[0]), 0 if node.attrs.get("layout", 0) else 1
    for t in node.inputs[5:7]:
        state = sizes.dims(t) if t.name else None
        if x is not None and state is not None and len(x) == len(state) == 3:
            yield EQUAL, x[batch], state[batch], "it reads {a} samples with the states of {b}", 0


_RULES: Mapping[str, Rule] = {
    "Reshape": _reshape, "Concat": _concat, "MatMul": _matmul, "Gemm": _matmul, "Conv": _window, "MaxPool": _window,
    "AveragePool": _window, "LpPool": _window, "Pad": _pad, "Split": _split, "Squeeze": _squeeze, "Expand": _expand,
    "Gather": _gather, "SpaceToDepth": _space_to_depth, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip


def _rule(node: gs.Node) -> Rule | None:
    if node.domain:
        return None
    found = _RULES.get(node.op)
    if found is None:
        spec = find(node)
        if spec is not None and spec.couple is couple_broadcast:
            return _broadcast
    return found
