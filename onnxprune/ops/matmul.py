"""Records of matrix products: Gemm, MatMul, Einsum. Either operand may be data; a constant operand is a weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.elementwise import broadcast, numpy_op
from onnxprune.ops.label_table import Labels, LabelTable
from onnxprune.ops.op_spec import OpSpec, Shape, register


def _tie_contracted(table: LabelTable, left: tuple[int, int], right: tuple[int, int]) -> None:
    """Tie the summed axes of two inputs, given as (input index, axis), and record the contraction to mask."""
    assert table.node is not None
    inputs = table.node.inputs
    (i, ai), (j, aj) = left, right
    a, b = inputs[i], inputs[j]
    if table.is_const(a) and not table.is_const(b):
        (i, ai), (j, aj), a, b = (j, aj), (i, ai), b, a
    table.bind(b, aj, table.get(a)[ai])
    if not table.is_const(a):
        table.contract(i, ai)


def _free_axis(table: LabelTable, t: gs.Tensor, axis: int) -> Labels | None:
    """Return the labels of an operand's axis that the output keeps; a weight's are fresh and its filters."""
    if not table.is_const(t):
        return table.get(t)[axis]
    labels = table.produce(t, axis)
    table.filters(t, axis % len(table.shape(t)), labels)
    return labels


def couple_gemm(node: gs.Node, table: LabelTable) -> None:
    """Couple Y = alpha A' B' + beta C with A' [M, K], B' [K, N], C broadcast to [M, N]."""
    a, b = node.inputs[:2]
    a_rows, a_sum = (1, 0) if node.attrs.get("transA", 0) else (0, 1)
    b_sum, b_cols = (1, 0) if node.attrs.get("transB", 0) else (0, 1)
    _tie_contracted(table, (0, a_sum), (1, b_sum))
    out = [_free_axis(table, a, a_rows), _free_axis(table, b, b_cols)]
    if len(node.inputs) > 2 and node.inputs[2].name:
        table.bind_broadcast(node.inputs[2], out)
    table.put(node.outputs[0], out)


def couple_matmul(node: gs.Node, table: LabelTable) -> None:
    """Couple [..., M, K] x [..., K, N] with broadcast leading axes (numpy.matmul); vectors have one summed axis."""
    a, b = node.inputs
    ra, rb = len(table.shape(a)), len(table.shape(b))
    _tie_contracted(table, (0, ra - 1), (1, max(rb - 2, 0)))
    rows = [_free_axis(table, a, ra - 2)] if ra > 1 else []
    cols = [_free_axis(table, b, rb - 1)] if rb > 1 else []
    lead = broadcast(table, [(t, len(table.shape(t)) - 2) for t in (a, b) if len(table.shape(t)) > 2])
    if not table.is_const(a) and not table.is_const(b):  # queries and keys, or weights and values
        for labels in lead:
            table.mark(labels, "heads")
        for labels in (*rows, *cols, table.get(a)[-1]):
            table.mark(labels, "head_dim")
    table.put(node.outputs[0], [*lead, *rows, *cols])


def couple_einsum(node: gs.Node, table: LabelTable) -> None:
    """Tie the axes that share a letter; letters absent from the output are summed."""
    equation = str(node.attrs["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    if not arrow:  # the implicit form: letters that occur once, in alphabetical order
        right = "".join(sorted(c for c in set(left) - {","} if left.count(c) == 1))
    if "." in equation or any(len(set(t)) < len(t) for t in terms):
        for t in node.inputs:
            table.lock_tensor(t, f"equation {equation!r} uses an ellipsis or a diagonal")
        return
    multiply_terms(node, table, terms, right)


def multiply_terms(node: gs.Node, table: LabelTable, terms: Sequence[str], right: str) -> None:
    """Couple a product given as one letter per axis of the first inputs (`terms`) and of the output (`right`)."""
    found: dict[str, Labels | None] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for i, term in enumerate(terms):
        for axis, letter in enumerate(term):
            places.setdefault(letter, []).append((i, axis))
    for letter, where in places.items():
        size = max(table.shape(node.inputs[i])[axis] for i, axis in where)
        ones = [(node.inputs[i], axis) for i, axis in where if table.shape(node.inputs[i])[axis] < size]
        where = [(i, axis) for i, axis in where if table.shape(node.inputs[i])[axis] == size]
        data = [(i, axis) for i, axis in where if not table.is_const(node.inputs[i])]
        weights = [(i, axis) for i, axis in where if table.is_const(node.inputs[i])]
        if data:
            labels = table.get(node.inputs[data[0][0]])[data[0][1]]
            for i, axis in data[1:]:
                table.tie(labels, table.get(node.inputs[i])[axis])
            if letter not in right:
                table.contract(*data[0])
        else:
            i, axis = weights.pop(0)
            # An axis summed within weights alone has no data to mask: it is locked.
            labels = table.produce(node.inputs[i], axis) if letter in right else None
            table.filters(node.inputs[i], axis, labels)
        for i, axis in weights:
            table.bind(node.inputs[i], axis, labels)
        for t, axis in ones:
            table.lock_unless_one(t, axis, labels)
        found[letter] = labels
        if len(data) == len(where) > 1 or (data and not any(table.is_const(t) for t in node.inputs)):
            table.mark(labels, "heads" if len(data) > 1 and letter in right else "head_dim")
    table.put(node.outputs[0], [found[c] for c in right])


def macs_gemm(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return M N K."""
    return prod(outs[0]) * ins[0][0 if node.attrs.get("transA", 0) else 1]


def macs_matmul(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the output elements times the summed length."""
    return prod(outs[0]) * ins[0][-1]


def macs_einsum(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the product of all letters' sizes, the cost of a two-operand contraction."""
    sizes: dict[str, int] = {}
    for term, shape in zip(str(node.attrs["equation"]).replace(" ", "").split("->")[0].split(","), ins, strict=False):
        sizes.update({c: max(n, sizes.get(c, 1)) for c, n in zip(term, shape, strict=False)})
    return prod(sizes.values())


register(OpSpec("Gemm", couple_gemm, macs=macs_gemm))
register(OpSpec("MatMul", couple_matmul, macs=macs_matmul, evaluate=numpy_op(np.matmul)))
register(OpSpec("Einsum", couple_einsum, macs=macs_einsum))
