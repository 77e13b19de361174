"""Removal of initial states of zeros, the default of a recurrent layer.

Exporters write them in the batch's size: `Expand(0, [directions, batch, hidden])`. The channels of such a state cannot
be removed together with the layer's hidden units; without the state there is nothing to update.

Before:  LSTM(x, W, R, B, , Expand(zeros, shape), Expand(zeros, shape))
After:   LSTM(x, W, R, B)
Conditions: 1. the state is a constant of zeros, or computed by ConstantOfShape, Expand, Tile, Slice, Unsqueeze, Concat
or similar operators from zeros only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Model
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import drop_dead

# Inputs by operator: initial_h, and the LSTM's initial_c.
_STATES = {"RNN": (5,), "GRU": (5,), "LSTM": (5, 6)}
_COPIES = frozenset(
    ("Expand", "Tile", "Slice", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Identity", "Cast", "Gather")
)


@register
@dataclass(frozen=True)
class DropZeroStates(Pass):
    """Remove initial states of zeros from RNN, GRU and LSTM."""

    name: ClassVar[str] = "drop_zero_states"

    def rewrite(self, model: Model) -> Model:
        """Drop every state that meets condition 1."""
        changed = False
        for node in model.graph.nodes:
            if node.domain:
                continue
            for place in _STATES.get(node.op, ()):
                if place < len(node.inputs) and node.inputs[place].name and is_zero(node.inputs[place]):
                    node.inputs[place] = gs.Variable.empty()
                    changed = True
        if changed:
            drop_dead(model.graph)
        return model


def is_zero(t: gs.Tensor) -> bool:
    """Return whether a tensor is all zeros, of any shape (condition 1)."""
    if isinstance(t, gs.Constant):
        return t.dtype.kind in "fV" and not np.asarray(t.values).any()
    node = t.inputs[0] if t.inputs else None
    if node is None or node.domain:
        return False
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return value is None or not np.asarray(value.values).any()
    if node.op == "Concat":
        return all(is_zero(i) for i in node.inputs)
    return node.op in _COPIES and is_zero(node.inputs[0])
