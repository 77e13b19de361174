"""Operators that make shapes and constants: no channels pass through them, but their values can be computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.labels import Array, LabelTable
from onnxprune.ops.record import Evaluate, OpSpec, ints, register


def couple_none(node: gs.Node, table: LabelTable) -> None:
    """The output says nothing about channels (a shape, a count, a range)."""


def couple_lock(node: gs.Node, table: LabelTable) -> None:
    """Everything it reads must stay whole."""
    for t in node.inputs:
        if t.name:
            table.lock_tensor(t, "needs it whole")


def _constant_of_shape(node: gs.Node, values: Sequence[Array]) -> Array:
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
    return np.full(tuple(ints(values[0])), fill.reshape(-1)[0], fill.dtype)


def _range(node: gs.Node, values: Sequence[Array]) -> Array:
    start, limit, delta = (v.reshape(-1)[0] for v in values)
    return np.arange(start, limit, delta).astype(values[0].dtype)


def _constant(node: gs.Node, values: Sequence[Any]) -> Array | None:
    for key, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                       ("value_floats", np.float32)):  # fmt: skip
        if key in node.attrs:
            return np.asarray(node.attrs[key], dtype)
    value = node.attrs.get("value")
    return np.asarray(value.values) if isinstance(value, gs.Constant) else None


_EVALUATE: dict[str, Evaluate] = {"ConstantOfShape": _constant_of_shape, "Range": _range, "Constant": _constant}
# Shape is evaluated by onnxprune.shapes, which knows the shapes.
for _op in ("Shape", "ConstantOfShape", "Range", "Constant", "RandomNormal", "RandomUniform"):
    register(OpSpec(_op, couple_none, evaluate=_EVALUATE.get(_op)))
for _op in (
    "Size",
    "EyeLike",
    "NonZero",
    "OneHot",
    "Unique",
    "NonMaxSuppression",
    "Compress",
    "ReverseSequence",
    "Det",
):
    register(OpSpec(_op, couple_lock))
