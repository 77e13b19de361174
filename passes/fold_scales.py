"""Folding of a per-channel factor into the weight of its consumer.

Before:  Conv(Mul(x, s [1, C, 1, 1]), W [F, C, 3, 3]) ; MatMul(Mul(x, s [C]), W [C, N])
After:   Conv(x, W * s) ; MatMul(x, W * s[:, None])
Formula: the weight is multiplied along its input axis. With factors 0 and 1 (masks) nothing is rounded.
Conditions: 1. the factor is a constant that varies along the contracted axis only. 2. the weight is a constant of the
same element type; Conv has one group. 3. the factor multiplies the data input, not the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Array, Model
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import drop_dead, unique_name


@register
@dataclass(frozen=True)
class FoldScales(Pass):
    """Fold a Mul by a constant per channel into the Conv, Gemm or MatMul that reads it."""

    name: ClassVar[str] = "fold_scales"

    def rewrite(self, model: Model) -> Model:
        """Rewrite every consumer that meets the conditions; a Mul with other consumers remains for them."""
        graph = model.graph
        names: set[str] | None = None
        for node in graph.nodes:
            mul = _producer(node)
            axis = _weight_axis(node)
            if mul is None or axis is None:
                continue
            weight = node.inputs[1]
            found = _factor(mul, node, weight.values.shape[axis], weight.values.dtype)
            if found is None:
                continue
            x, factor = found
            shape = [1] * weight.values.ndim
            shape[axis] = len(factor)
            if names is None:
                names = set(graph.tensors())
            node.inputs[1] = gs.Constant(
                unique_name(names, f"{weight.name}_scaled"), weight.values * factor.reshape(shape)
            )
            node.inputs[0] = x
        if names is not None:
            drop_dead(graph)
        return model


def _producer(node: gs.Node) -> gs.Node | None:
    """Return the Mul that produces the data input (condition 3)."""
    if node.op not in ("Conv", "Gemm", "MatMul") or node.domain not in (None, "", "ai.onnx"):
        return None
    source = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    return source if source is not None and source.op == "Mul" else None


def _weight_axis(node: gs.Node) -> int | None:
    """Return the weight's input axis (condition 2)."""
    if len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant):
        return None
    if node.op == "Conv":
        return 1 if node.attrs.get("group", 1) == 1 else None
    if node.inputs[1].values.ndim < 2:
        return None
    if node.op == "Gemm":
        return None if node.attrs.get("transA", 0) else (1 if node.attrs.get("transB", 0) else 0)
    return int(node.inputs[1].values.ndim - 2)


def _factor(mul: gs.Node, consumer: gs.Node, channels: int, dtype: np.dtype[Any]) -> tuple[gs.Tensor, Array] | None:
    """Return the Mul's other input and its constant, one number per channel (condition 1)."""
    # Number of data axes after the contracted one: Conv data has the rank of its weight; other data ends with it.
    after = consumer.inputs[1].values.ndim - 2 if consumer.op == "Conv" else 0
    for x, s in (mul.inputs, mul.inputs[::-1]):
        if not isinstance(s, gs.Constant) or isinstance(x, gs.Constant) or s.values.dtype != dtype:
            continue
        shape = list(s.values.shape)
        # A factor of higher rank than the data would add axes to it.
        least = consumer.inputs[1].values.ndim if consumer.op == "Conv" else len(x.shape) if x.shape is not None else 1
        if after < len(shape) <= least and shape[-1 - after] == channels == s.values.size:
            return x, s.values.reshape(-1)
    return None
