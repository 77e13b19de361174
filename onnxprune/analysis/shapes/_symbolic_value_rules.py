"""Shape arithmetic in symbols, operator by operator.

`VALUES` computes the elements of a node's first output from those of its inputs: integers where they are constant,
expressions where they depend on a dynamic dimension, None where they cannot be expressed, which is always correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from onnxprune.ir.symbolic import Expr as Expr
from onnxprune.ir.symbolic import (
    Size,
    bounds,
    divide,
    equal,
    less,
    maximum,
    minimum,
    modulo,
    quotient,
    select,
)  # fmt: skip
from onnxprune.ops import find
from onnxprune.ops.op_spec import ints

MaybeSize = Size | None
Elements = npt.NDArray[np.object_]  # of int, Expr or None
ValueRule = Callable[[gs.Node, Sequence[Elements]], Elements | None]


def _each(function: Callable[..., MaybeSize]) -> ValueRule:
    """Return the rule of an elementwise function; unknown elements give unknown elements."""

    def known(*elements: MaybeSize) -> MaybeSize:
        return None if any(e is None for e in elements) else function(*elements)

    def run(node: gs.Node, values: Sequence[Elements]) -> Elements:
        return np.asarray(np.frompyfunc(known, len(values), 1)(*values), object)

    return run


def _fold(function: Callable[[Size, Size], Size]) -> ValueRule:
    pair = _each(function)
    return lambda node, values: reduce(lambda a, b: pair(node, [a, b]), values)  # type: ignore[arg-type,return-value]


def _negated(a: Size) -> Size:
    return 1 - a


_remainder = _each(modulo)
_DIVIDE_FLOATS = _each(quotient)  # exact if it is an integer for every size
_WIDE = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.float64))


def _mod(node: gs.Node, values: Sequence[Elements]) -> Elements | None:
    lows = [None if e is None else bounds(e)[0] for v in values for e in v.reshape(-1)]
    if node.attrs.get("fmod", 0) and any(low is None or low < 0 for low in lows):
        return None  # the sign differs if an operand is negative
    return _remainder(node, values)


def _cast(node: gs.Node, values: Sequence[Elements]) -> Elements | None:
    to = node.attrs["to"]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(to) if isinstance(to, int) else np.dtype(to)
    if dtype == np.bool_:
        return _each(lambda a: 1 - equal(a, 0))(node, values)
    return values[0] if dtype in _WIDE else None


def _reduce(function: Callable[[Size, Size], Size], start: int | None = None) -> ValueRule:
    def run(node: gs.Node, values: Sequence[Elements]) -> Elements | None:
        x = values[0]
        axes = ints(values[1]) if len(values) > 1 else ints(node.attrs.get("axes", []))
        if x.ndim != 1 or (axes and axes not in ([0], [-1])) or any(e is None for e in x):
            return None
        flat: list[Size] = x.tolist() if start is None else [start, *x.tolist()]
        out = reduce(function, flat)
        return np.array([out] if node.attrs.get("keepdims", 1) else out, object)

    return run


VALUES: dict[str, ValueRule] = {
    "Add": _each(lambda a, b: a + b), "Sub": _each(lambda a, b: a - b), "Mul": _each(lambda a, b: a * b),
    "Div": _each(divide), "Mod": _mod, "Min": _fold(minimum), "Max": _fold(maximum), "Sum": _fold(lambda a, b: a + b),
    "Equal": _each(equal), "Less": _each(less), "Greater": _each(lambda a, b: less(b, a)),
    "LessOrEqual": _each(lambda a, b: _negated(less(b, a))), "GreaterOrEqual": _each(lambda a, b: _negated(less(a, b))),
    "And": _fold(minimum), "Or": _fold(maximum), "Xor": _each(lambda a, b: 1 - equal(a, b)), "Not": _each(_negated),
    "Where": _each(select), "Neg": _each(lambda a: -a), "Abs": _each(lambda a: maximum(a, -a)), "Cast": _cast,
    "Relu": _each(lambda a: maximum(a, 0)), "ReduceSum": _reduce(lambda a, b: a + b, 0),
    "ReduceProd": _reduce(lambda a, b: a * b, 1), "ReduceMax": _reduce(maximum), "ReduceMin": _reduce(minimum),
}  # fmt: skip
VALUES |= {op: _each(lambda a: a) for op in ("Identity", "Floor", "Ceil", "Round")}  # of integers, also as floats
# Operators that move elements; indices, axes and shapes must be constant.
_MOVES = frozenset(("Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Expand", "Flatten"))
PLAIN = frozenset((*VALUES, "Concat", "Gather", "Squeeze", "Unsqueeze", "Transpose")) - frozenset(
    ("ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin")
)
"""Shape arithmetic whose outputs have constant shapes if the inputs have, independent of their elements."""


def values(node: gs.Node, inputs: Sequence[Elements | None], floats: bool) -> Elements | None:
    """Return the elements of a node's first output; None if there is no rule, and for elements that are not known.

    Args:
        node: Node of the graph.
        inputs: Elements of its inputs.
        floats: True if the output holds floats.
    """
    if node.domain or any(v is None for t, v in zip(node.inputs, inputs, strict=True) if t.name):
        return None
    rule = _DIVIDE_FLOATS if floats and node.op == "Div" else VALUES.get(node.op)
    try:
        if rule is not None:
            return rule(node, inputs)  # type: ignore[arg-type]
        spec = find(node)
        if spec is None or spec.evaluate is None or (node.op not in _MOVES and node.op != "Concat"):
            return None
        operands: list[Any] = list(inputs)
        if node.op != "Concat":
            for i, v in enumerate(operands[1:], 1):
                if v is not None:
                    operands[i] = np.array([int(n) for n in v.reshape(-1)], np.int64).reshape(v.shape)
        return np.asarray(spec.evaluate(node, operands), object)
    except (ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError):
        return None  # an index, axis or shape is not constant, or the node is invalid


def elements(value: npt.NDArray[Any]) -> Elements | None:
    """Return numbers as elements: integers, and floats with integer values; None for other types."""
    if value.dtype.kind in "iu":
        return value.astype(object)
    if value.dtype.kind == "b":
        return value.astype(np.int64).astype(object)
    if value.dtype not in _WIDE:
        return None
    flat = [int(n) if n.is_integer() else None for n in value.reshape(-1).tolist()]
    return np.array(flat, object).reshape(value.shape)
