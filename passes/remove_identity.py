"""Removal of nodes that copy their input at inference: Identity, and Dropout outside training.

Before:  y = Identity(x) ; z = Relu(y)
After:   z = Relu(x)
Conditions: 1. Dropout: its mask is not used and training_mode is absent or false. 2. the output is not a graph output
(its name belongs to the model's interface; the node then remains for it alone).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Model
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import bypass, drop_dead


@register
@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove Identity and inference Dropout."""

    name: ClassVar[str] = "remove_identity"

    def rewrite(self, model: Model) -> Model:
        """Bypass every node that copies its input."""
        outputs = {id(t) for t in model.graph.outputs}
        for node in model.graph.nodes:
            if _copies(node, outputs):
                bypass(node, model.graph)
        drop_dead(model.graph)
        return model


def _copies(node: gs.Node, outputs: set[int]) -> bool:
    if node.domain or not node.inputs:
        return False
    if node.op == "Identity":
        return True
    if node.op != "Dropout" or any(t.outputs or id(t) in outputs for t in node.outputs[1:]):  # condition 1
        return False
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return True
    mode = node.inputs[2]
    return isinstance(mode, gs.Constant) and not bool(np.asarray(mode.values).any())
