"""Records of reductions, and of operators that compare indices along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, Axes, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, Shape, ints, normal_axis, register

# A masked (zero) channel adds nothing to these sums: its removal is exact.
NEUTRAL_ZERO = ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2")


def _axes_of(node: gs.Node, table: LabelTable, rank: int) -> list[int] | None:
    """Return the reduced axes; None if unknown."""
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
    """Contract channels that are summed; lock (inexact) those of a mean or maximum, which a masked channel changes."""
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
        if node.op == "ReduceSum" and table.choices.inexact and _counts(node, table.shape(node.inputs[0]), reduced):
            table.statistic(axis, outputs=(), counted=True)
        elif node.op in NEUTRAL_ZERO:
            table.contract(0, axis)
        else:
            table.statistic(axis, outputs=())
        if node.attrs.get("keepdims", 1):
            out.append(None)
    table.put(node.outputs[0], out)


def _counts(node: gs.Node, shape: Shape, reduced: Sequence[int]) -> bool:
    """Return whether a sum is a mean: every consumer divides it by a constant that is the count."""
    n = prod(shape[a] for a in reduced)
    return bool(node.outputs[0].outputs) and all(_divides(r, node.outputs[0], n) for r in node.outputs[0].outputs)


def _divides(consumer: gs.Node, total: gs.Tensor, n: int) -> bool:
    if consumer.op not in ("Mul", "Div") or len(consumer.inputs) != 2:
        return False
    place = next(i for i, t in enumerate(consumer.inputs) if t is total)
    other = consumer.inputs[1 - place]
    if not isinstance(other, gs.Constant) or np.size(other.values) != 1 or (consumer.op == "Div" and place == 1):
        return False
    value = float(np.asarray(other.values).reshape(-1)[0])
    return bool(
        np.isclose(value, n if consumer.op == "Div" else 1 / n, rtol=1e-3 if other.dtype == np.float16 else 1e-6)
    )


def patch_sum(node: gs.Node, patcher: Patcher) -> None:
    """Update the divisor of a sum that is a mean, where inexact channels can be removed."""
    shape = patcher.shape(node.inputs[0])
    given = patcher.constant(node, 1) if len(node.inputs) > 1 else np.asarray(node.attrs.get("axes", []), np.int64)
    if given is None or not patcher.choices.inexact:
        return
    reduced = [normal_axis(a, len(shape)) for a in ints(given)] or list(range(len(shape)))
    keeps = [k for a in reduced if (k := patcher.keep(node.inputs[0], a)) is not None]
    if not keeps or not _counts(node, shape, reduced):
        return
    share = prod(float(k.mean()) for k in keeps)
    for reader in list(node.outputs[0].outputs):
        place = next(i for i, t in enumerate(reader.inputs) if isinstance(t, gs.Constant))
        value = np.asarray(reader.inputs[place].values)
        patcher.replace(reader, place, np.asarray(value * share if reader.op == "Div" else value / share, value.dtype))


def couple_arg(node: gs.Node, table: LabelTable) -> None:
    """Lock the axis whose index numbers ArgMax and ArgMin return."""
    axes = list(table.get(node.inputs[0]))
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(axes))
    table.lock(axes[axis], "returns index numbers along it")
    axes[axis] = None
    if not node.attrs.get("keepdims", 1):
        del axes[axis]
    table.put(node.outputs[0], axes)


def couple_topk(node: gs.Node, table: LabelTable) -> None:
    """Lock the axis that TopK sorts."""
    axes = list(table.get(node.inputs[0]))
    axis = normal_axis(int(node.attrs.get("axis", -1)), len(axes))
    table.lock(axes[axis], "sorts along it")
    axes[axis] = None
    for t in node.outputs:
        table.put(t, axes)


def couple_cumsum(node: gs.Node, table: LabelTable) -> None:
    """Lock the axis along which every index sums (or multiplies) its predecessors."""
    axes = list(table.get(node.inputs[0]))
    value = table.value(node.inputs[1])
    for place in range(len(axes)) if value is None else [normal_axis(ints(value)[0], len(axes))]:
        table.lock(axes[place], "sums along it")
        axes[place] = None
    table.put(node.outputs[0], axes)


def couple_dft(node: gs.Node, table: LabelTable) -> None:
    """Lock the transformed axis, and the last one, which is real and imaginary part."""
    axes = list(table.get(node.inputs[0]))
    places = [normal_axis(int(node.attrs.get("axis", 1)), len(axes))]
    if table.opset >= 20:
        value = np.array(-2) if table.optional_input(2) is None else table.value(node.inputs[2])
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


_NUMPY = {"ReduceSum": "sum", "ReduceProd": "prod", "ReduceMax": "max", "ReduceMin": "min", "ReduceMean": "mean"}
for _op in (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
    "ReduceLogSum", "ReduceLogSumExp",
):  # fmt: skip
    _value = _evaluate(_NUMPY[_op]) if _op in _NUMPY else None
    register(OpSpec(_op, couple_reduce, patch=patch_sum if _op == "ReduceSum" else None, evaluate=_value))  # type: ignore[arg-type]
register(OpSpec("ArgMax", couple_arg))
register(OpSpec("ArgMin", couple_arg))
register(OpSpec("TopK", couple_topk))
register(OpSpec("CumSum", couple_cumsum))
register(OpSpec("CumProd", couple_cumsum))
register(OpSpec("DFT", couple_dft))
