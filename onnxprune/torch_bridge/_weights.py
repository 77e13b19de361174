"""Rules that separate trainable weights from constants of a formula.

Convolutions, Gemm and normalizations determine it by their operator. Elsewhere ONNX does not distinguish a learned
scale from a written one, so this module decides by use, value and input index; `bindings` lists the outcome, and
`freeze` overrides it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Array

# Inputs that hold learned values if they are constant.
_LEARNED: Mapping[str, tuple[int, ...]] = {
    "MatMul": (0, 1), "Gemm": (0, 1, 2), "Einsum": (0, 1, 2, 3), "Conv": (1, 2), "ConvTranspose": (1, 2),
    "Add": (0, 1), "Sub": (0, 1), "Mul": (0, 1), "Div": (0, 1), "Sum": tuple(range(16)), "PRelu": (1,),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2), "RMSNormalization": (1,), "Gather": (0,), "Expand": (0,), "Tile": (0,),
    "Concat": tuple(range(64)),
}  # fmt: skip
# A constant combined by these with data not yet processed by a weight is preprocessing (mean, standard deviation).
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div"))
# Operators without weights: their output for raw input is still raw input.
_PLAIN = _ARITHMETIC | {
    "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Concat", "Pad", "Resize", "Identity", "Clip",
    "Flatten", "Split", "Gather", "Neg", "Sqrt", "Pow",
}  # fmt: skip


def raw_tensors(graph: gs.Graph) -> set[str]:
    """Return the tensors computed from the graph's inputs without any weight."""
    raw = {t.name for t in graph.inputs}
    for node in graph.nodes:
        data = [t for t in node.inputs if t.name and not isinstance(t, gs.Constant)]
        if node.op in _PLAIN and data and all(t.name in raw for t in data):
            raw.update(t.name for t in node.outputs)
    return raw


def trains(node: gs.Node, index: int, value: Array, raw: set[str]) -> bool:
    """Return whether a constant that a node reads is a weight.

    False for non-floats, scalars (of a formula such as GELU's; a scalar PRelu slope is a weight), masks (zeros with
    ones, or with numbers negative enough for a softmax to ignore), and preprocessing of the raw input.
    """
    if node.domain or index not in _LEARNED.get(node.op, ()) or value.dtype.kind not in "fV":
        return False
    if value.size <= 1 and node.op != "PRelu":
        return False
    if node.op in ("Gather", "Concat", *_ARITHMETIC) and any(t.name in raw for t in node.inputs):
        return node.op == "Gather" and index == 0
    return not _mask(value)


def _mask(value: Array) -> bool:
    found = np.unique(value.reshape(-1)[:4096].astype(np.float32))
    if len(found) != 2 or 0 not in found:
        return False
    other = float(found[0] if found[1] == 0 else found[1])
    return (other == 1 or other <= -10) and set(np.unique(value.astype(np.float32)).tolist()) == {0.0, other}
