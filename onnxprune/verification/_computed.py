"""Weights that the original computes and the pruned model stores: each element must be the exact value, rounded.

Runtimes round sums, roots and powers differently, so a tolerance would be wider than a wrong last digit. The exact
value, computed in float64 by ONNX's reference implementation, leaves no more than rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.ir.model import Array

SMOOTH = frozenset(
    ("Abs", "Add", "BatchNormalization", "Concat", "Constant", "ConstantOfShape", "Div", "Exp", "Expand", "Flatten",
     "Gather", "Identity", "InstanceNormalization", "LayerNormalization", "Log", "MatMul", "Max", "Min", "Mul", "Neg",
     "Pow", "Reciprocal", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Reshape", "Shape",
     "Sigmoid", "Size", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile",
     "Transpose", "Unsqueeze")
)  # fmt: skip
"""Operators that keep a rounding error a rounding error."""
_ULPS = 2
_CANCELLED = 2.0**-40  # share of the largest value: rounding errors of float64 in sums that cancel


def is_smooth(model: onnx.ModelProto) -> bool:
    """Return whether a model has smooth standard operators only."""
    return all(n.op_type in SMOOTH and n.domain in ("", "ai.onnx") for n in model.graph.node)


def in_float64(model: onnx.ModelProto, weights: Mapping[str, Array], feeds: Mapping[str, Array]) -> Array:
    """Return the output of a model of smooth float32 operators, computed in float64.

    Args:
        model: Model; changed in place.
        weights: Values of initializers that the model does not hold.
        feeds: Inputs.
    """
    from onnx.reference import ReferenceEvaluator

    held = list(model.graph.initializer)
    del model.graph.initializer[:]
    feeds = {n: _wide(v) for n, v in feeds.items()}
    for tensor in held:
        feeds[tensor.name] = _wide(weights[tensor.name] if tensor.name in weights else numpy_helper.to_array(tensor))
    del model.graph.input[:]
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in feeds.items()
    )
    for node in model.graph.node:
        for a in node.attribute:
            if a.HasField("t") and a.t.data_type == TensorProto.FLOAT:
                a.t.CopyFrom(numpy_helper.from_array(_wide(numpy_helper.to_array(a.t))))
    model.graph.output[0].ClearField("type")
    results: Any = ReferenceEvaluator(model).run(None, dict(feeds))
    return np.asarray(results[0], np.float64)


def _wide(values: Array) -> Array:
    return values.astype(np.float64) if values.dtype == np.float32 else values


def rounded_from(own: Array, runtime: Array, exact: Array) -> bool:
    """Return whether every element is the exact value up to rounding, or equals a runtime's bit for bit."""
    if own.shape != exact.shape:
        return False
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        gap = np.abs(own.astype(np.float64) - exact)
    room = _ULPS * np.spacing(np.abs(own)).astype(np.float64) + _CANCELLED * float(
        np.abs(exact[np.isfinite(exact)]).max(initial=0.0)
    )
    return bool(((gap <= room) | (own == runtime) | (np.isnan(own) & np.isnan(exact))).all())
