"""Reductions, and operators that compare indices along an axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.labels import Array, Axes, LabelTable
from onnxprune.ops.norm import STATISTIC
from onnxprune.ops.record import OpSpec, ints, normal_axis, register

# A masked (zero) channel adds nothing to these: removing it is exact.
NEUTRAL_ZERO = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")


def _axes_of(node: gs.Node, table: LabelTable, rank: int) -> list[int] | None:
    """The reduced axes; None when they are not known."""
    if len(node.inputs) > 1 and node.inputs[1].name:
        value = table.value(node.inputs[1])
        if value is None:
            return None
        found = ints(value)
    else:
        found = ints(node.attrs.get("axes", []))
    if not found:
        return [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return [normal_axis(a, rank) for a in found]


def couple_reduce(node: gs.Node, table: LabelTable) -> None:
    """Sums over channels are contractions; a mean divides by their count, a maximum may pick a masked one."""
    axes = table.get(node.inputs[0])
    reduced = _axes_of(node, table, len(axes))
    if reduced is None:
        table.lock_tensor(node.inputs[0], "the reduced axes are computed at run time")
        return
    out: Axes = []
    for axis, labels in enumerate(axes):
        if axis not in reduced:
            out.append(labels)
            continue
        if node.op in NEUTRAL_ZERO:
            table.contract(0, axis)
        else:
            table.lock(labels, STATISTIC, inexact=True)
        if node.attrs.get("keepdims", 1):
            out.append(None)
    table.put(node.outputs[0], out)


def couple_arg(node: gs.Node, table: LabelTable) -> None:
    """ArgMax and ArgMin return index numbers."""
    axes = list(table.get(node.inputs[0]))
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(axes))
    table.lock(axes[axis], "returns index numbers along it")
    axes[axis] = None
    if not node.attrs.get("keepdims", 1):
        del axes[axis]
    table.put(node.outputs[0], axes)


def couple_topk(node: gs.Node, table: LabelTable) -> None:
    """TopK sorts along one axis."""
    axes = list(table.get(node.inputs[0]))
    axis = normal_axis(int(node.attrs.get("axis", -1)), len(axes))
    table.lock(axes[axis], "sorts along it")
    axes[axis] = None
    for t in node.outputs:
        table.put(t, axes)


def couple_cumsum(node: gs.Node, table: LabelTable) -> None:
    """Every index sums (or multiplies) its predecessors."""
    axes = list(table.get(node.inputs[0]))
    value = table.value(node.inputs[1])
    for place in range(len(axes)) if value is None else [normal_axis(ints(value)[0], len(axes))]:
        table.lock(axes[place], "sums along it")
        axes[place] = None
    table.put(node.outputs[0], axes)


def couple_dft(node: gs.Node, table: LabelTable) -> None:
    """A Fourier transform along one axis; the last one is real and imaginary part."""
    axes = list(table.get(node.inputs[0]))
    places = [normal_axis(int(node.attrs.get("axis", 1)), len(axes))]
    if table.opset >= 20:
        value = np.array(-2) if table.given(2) is None else table.value(node.inputs[2])
        places = list(range(len(axes))) if value is None else [normal_axis(ints(value)[0], len(axes))]
    for place in (*places, len(axes) - 1):
        table.lock(axes[place], "is transformed as a signal")
        axes[place] = None
    table.put(node.outputs[0], axes)


def _evaluate(function: str) -> object:
    def run(node: gs.Node, values: Sequence[Array]) -> Array:
        found = ints(values[1]) if len(values) > 1 else ints(node.attrs.get("axes", []))
        if not found and node.attrs.get("noop_with_empty_axes", 0):
            return values[0]
        axes = tuple(found) or None
        keep = bool(node.attrs.get("keepdims", 1))
        return np.asarray(getattr(np, function)(values[0], axis=axes, keepdims=keep)).astype(values[0].dtype)

    return run


_NUMPY = {"ReduceSum": "sum", "ReduceProd": "prod", "ReduceMax": "max", "ReduceMin": "min"}
for _op in (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
):  # fmt: skip
    register(OpSpec(_op, couple_reduce, evaluate=_evaluate(_NUMPY[_op]) if _op in _NUMPY else None))  # type: ignore[arg-type]
register(OpSpec("ArgMax", couple_arg))
register(OpSpec("ArgMin", couple_arg))
register(OpSpec("TopK", couple_topk))
register(OpSpec("CumSum", couple_cumsum))
register(OpSpec("CumProd", couple_cumsum))
register(OpSpec("DFT", couple_dft))
