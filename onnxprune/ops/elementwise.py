"""Records of elementwise operators with numpy broadcasting: activations, arithmetic, comparisons."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, Axes, LabelTable
from onnxprune.ops.op_spec import Evaluate, OpSpec, register

# Operators that add two activations (residual streams).
ADDS = frozenset(("Add", "Sum", "QLinearAdd", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))


def broadcast(table: LabelTable, operands: Sequence[tuple[gs.Tensor, int]]) -> Axes:
    """Tie the axes of operands that broadcast against each other, aligned at the last one.

    Args:
        operands: Tensors, each with the number of its leading axes that broadcast.

    Returns:
        Labels of the broadcast axes. Axes of size 1 tie nothing; constants get the data's labels.
    """
    if not operands:
        return []
    rank = max(n for _, n in operands)
    out: Axes = [None] * rank
    for place in range(rank):
        takes: list[tuple[gs.Tensor, int]] = []
        ones: list[tuple[gs.Tensor, int]] = []
        for t, n in operands:
            axis = n - rank + place
            if axis >= 0:
                (takes if table.shape(t)[axis] > 1 else ones).append((t, axis))
        data = [(t, axis) for t, axis in takes if not table.is_const(t)]
        if not data:
            # The data has size 1 along this axis: a constant offers channels (a bias of each attention head, the weight
            # scales of dynamic quantization times the data's scale).
            stretched = bool(takes) and any(not table.is_const(t) for t, _ in operands)
            out[place] = table.produce(*takes[0]) if stretched else None
            for t, axis in takes:
                table.bind(t, axis, out[place])
            for t, axis in ones:
                table.lock_unless_one(t, axis, out[place])
            continue
        first = table.get(data[0][0])[data[0][1]]
        for t, axis in data[1:]:
            other = table.get(t)[axis]
            if first is not None and other is not None and table.node is not None and table.node.op in ADDS:
                table.sums.append(first)
            table.tie(first, other)
            first = other if first is None else first
        for t, axis in takes:
            if table.is_const(t):
                table.bind(t, axis, first)
        for t, axis in ones:
            table.lock_unless_one(t, axis, first)
        out[place] = first
    return out


def couple_broadcast(node: gs.Node, table: LabelTable) -> None:
    """Tie the axes of all inputs, which broadcast against each other."""
    axes = broadcast(table, [(t, len(table.shape(t))) for t in node.inputs if t.name])
    for t in node.outputs:
        table.put(t, axes)


def couple_unary(node: gs.Node, table: LabelTable) -> None:
    """Pass the first input's labels to every output; Identity or Cast of a constant is a view of that weight."""
    source = node.inputs[0]
    if table.is_const(source) and node.op in ("Identity", "Cast"):
        table.view(node.outputs[0], source)
        return
    axes = table.get(source)
    for t in node.outputs:
        table.put(t, axes)


def couple_bit_cast(node: gs.Node, table: LabelTable) -> None:
    """Pass labels; lock the last axis where the new type has another width."""
    axes = list(table.get(node.inputs[0]))
    if table.shape(node.inputs[0]) != table.shape(node.outputs[0]):
        table.lock(axes[-1], "is split into elements of another width")
        axes[-1] = None
    table.put(node.outputs[0], axes)


def elementwise(*ops: str, evaluate: Evaluate | None = None) -> None:
    """Register a family of broadcasting operators."""
    for op in ops:
        register(OpSpec(op, couple_broadcast, evaluate=evaluate))


def unary(*ops: str, evaluate: Evaluate | None = None) -> None:
    """Register a family of operators that pass the first input's labels."""
    for op in ops:
        register(OpSpec(op, couple_unary, evaluate=evaluate))


def numpy_op(function: Callable[..., Any]) -> Evaluate:
    """Return an evaluator that applies a numpy function to the input values."""

    def run(node: gs.Node, values: Sequence[Array]) -> Array:
        return np.asarray(function(*values))

    return run


def _divide(a: Array, b: Array) -> Array:
    # ONNX integer division truncates towards zero; numpy's floors.
    if np.issubdtype(a.dtype, np.integer):
        return np.asarray(np.trunc(a / b).astype(a.dtype)) if (np.any(a < 0) or np.any(b < 0)) else a // b
    return np.asarray(a / b)


def _mod(node: gs.Node, values: Sequence[Array]) -> Array:
    return np.asarray((np.fmod if node.attrs.get("fmod", 0) else np.mod)(*values))


def _cast(node: gs.Node, values: Sequence[Array]) -> Array:
    import onnx

    to = node.attrs["to"]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else np.dtype(to)
    return np.asarray(values[0]).astype(dtype)


def _clip(node: gs.Node, values: Sequence[Array | None]) -> Array:
    low = values[1] if len(values) > 1 else node.attrs.get("min")
    high = values[2] if len(values) > 2 else node.attrs.get("max")
    return np.asarray(np.clip(np.asarray(values[0]), low, high))


_BINARY: dict[str, Callable[..., Any]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _divide,
    "Min": lambda *values: functools.reduce(np.minimum, values),
    "Max": lambda *values: functools.reduce(np.maximum, values),
    "Equal": np.equal, "Greater": np.greater, "Less": np.less, "GreaterOrEqual": np.greater_equal,
    "LessOrEqual": np.less_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    "Where": np.where,
}  # fmt: skip
for _name, _function in _BINARY.items():
    elementwise(_name, evaluate=numpy_op(_function))
elementwise("Pow", evaluate=lambda node, v: np.power(v[0], v[1]).astype(v[0].dtype))
elementwise("Mod", evaluate=_mod)
elementwise("SwiGLU", "Sum", "Mean", "PRelu", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
_UNARY: dict[str, Callable[..., Any]] = {
    "Not": np.logical_not, "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Sqrt": np.sqrt,
    "Exp": np.exp, "Log": np.log, "Reciprocal": np.reciprocal, "Sin": np.sin, "Cos": np.cos, "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0), "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}  # fmt: skip
for _name, _function in _UNARY.items():
    unary(_name, evaluate=numpy_op(_function))
unary("Identity", evaluate=lambda node, v: v[0])
unary("Cast", evaluate=_cast)
unary("Clip", evaluate=_clip)
unary(
    "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Gelu",
    "Mish", "Swish", "Erf", "Round", "Sign", "Shrink", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh",
    "Atanh", "IsNaN", "IsInf", "BitwiseNot", "CastLike", "Dropout",
)  # fmt: skip
register(OpSpec("BitCast", couple_bit_cast))
