"""Records of operators that compute shapes and constants: no channels pass, but their values are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Array, LabelTable
from onnxprune.ops.op_spec import Evaluate, OpSpec, ints, register, register_locked
from onnxprune.ops.scatter import as_large_as


def couple_none(node: gs.Node, table: LabelTable) -> None:
    """Set no labels: the output has no channels (a shape, a count, a range)."""


def couple_shape(node: gs.Node, table: LabelTable) -> None:
    """Lock an axis whose size is read at run time, unless it only sizes a Resize of the same data."""
    x = node.inputs[0]
    axes = table.get(x)
    start, stop, _ = slice(node.attrs.get("start", 0), node.attrs.get("end")).indices(len(axes))
    for axis, labels in enumerate(axes):
        if labels is not None and start <= axis < stop and _is_used(node.outputs[0], axis - start, x, table):
            table.lock(labels, "has its size read at run time")


def _is_used(shape: gs.Tensor, place: int, x: gs.Tensor, table: LabelTable) -> bool:
    """Return whether a shape element is used other than to size a Resize or to expand scatter indices (fold_shapes)."""
    if shape.name in table.outputs:
        return True
    for node in shape.outputs:
        if node.op == "Gather" and isinstance(node.inputs[1], gs.Constant):
            picked = [i % table.shape(shape)[0] for i in ints(node.inputs[1].values)]
            if place not in picked or _sizes_resize(node.outputs[0], x, table):
                continue
        elif node.op == "Slice" and all(isinstance(t, gs.Constant) for t in node.inputs[1:]):
            bounds = [ints(t.values) for t in node.inputs[1:] if t.name]
            step = bounds[3][0] if len(bounds) > 3 else 1
            if place not in range(*slice(bounds[0][0], bounds[1][0], step).indices(table.shape(shape)[0])):
                continue
        elif node.op == "Expand" and all(_scatters(r, node.outputs[0], x) for r in node.outputs[0].outputs):
            continue
        return True
    return False


def _scatters(node: gs.Node, places: gs.Tensor, x: gs.Tensor) -> bool:
    """Return whether a node only scatters x at positions expanded to the size of x."""
    return node.op == "ScatterElements" and node.inputs[1] is places and node.inputs[2] is x and as_large_as(places, x)


def _sizes_resize(element: gs.Tensor, x: gs.Tensor, table: LabelTable) -> bool:
    joined = [node.outputs[0] for node in element.outputs if node.op == "Concat"]
    readers = [node for t in joined for node in t.outputs]
    return (
        len(joined) == len(element.outputs)
        and not {element.name, *(t.name for t in joined)} & table.outputs
        and all(node.op == "Resize" and node.inputs[0].name == x.name for node in readers)
    )


def _constant_of_shape(node: gs.Node, values: Sequence[Array]) -> Array:
    value = node.attrs.get("value")
    fill = np.zeros(1, np.float32) if value is None else np.asarray(value.values)
    return np.full(tuple(ints(values[0])), fill.reshape(-1)[0], fill.dtype)


def _range(node: gs.Node, values: Sequence[Array]) -> Array:
    start, limit, delta = (v.reshape(-1)[0] for v in values)
    return np.arange(start, limit, delta).astype(values[0].dtype)


def _constant(node: gs.Node, values: Sequence[Any]) -> Array | None:
    value = node.attrs.get("value")
    if isinstance(value, gs.Constant):
        return np.asarray(value.values)
    for key, dtype in (("value_int", np.int64), ("value_ints", np.int64), ("value_float", np.float32),
                       ("value_floats", np.float32)):  # fmt: skip
        if key in node.attrs:
            return np.asarray(node.attrs[key], dtype)
    return None


_EVALUATE: dict[str, Evaluate] = {"ConstantOfShape": _constant_of_shape, "Range": _range, "Constant": _constant}
# onnxprune.analysis.shapes.shape_inference evaluates Shape: it has the shapes.
register(OpSpec("Shape", couple_shape))
for _op in ("ConstantOfShape", "Range", "Constant", "RandomNormal", "RandomUniform"):
    register(OpSpec(_op, couple_none, evaluate=_EVALUATE.get(_op)))
for _op in ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix"):
    register(OpSpec(_op, couple_none))
register_locked(
    "needs it whole",
    "Size", "EyeLike", "NonZero", "OneHot", "Unique", "NonMaxSuppression", "Compress", "ReverseSequence", "Det",
    "AffineGrid", "STFT", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss",
)  # fmt: skip
register_locked("draws random numbers for each element", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
                "Multinomial")  # fmt: skip
register_locked(
    "is part of a sequence",
    "SequenceConstruct", "SequenceInsert", "SequenceErase", "SequenceAt", "SequenceLength", "SequenceEmpty",
    "SplitToSequence", "ConcatFromSequence", "SequenceMap",
)  # fmt: skip
register_locked("is optional", "Optional", "OptionalGetElement", "OptionalHasElement")
register_locked(
    "reads text or files",
    "StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder",
)  # fmt: skip
register_locked("has a state matrix over all its channels", "LinearAttention")
