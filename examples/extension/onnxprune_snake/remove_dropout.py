"""Removes Dropout, which does nothing when a model is run.

Before:  Dropout(x) -> y ; Conv(y, W)
After:   Conv(x, W)
Conditions: 1. nobody reads the mask. 2. the output is no output of the graph. 3. it does not train: `training_mode` is
absent or a constant false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxprune.ir.model import Model
from onnxprune.passes import Pass
from onnxprune.passes.edit import bypass, drop_dead


@dataclass(frozen=True)
class RemoveDropout(Pass):
    """Dropout goes; its readers read its input."""

    name: ClassVar[str] = "remove_dropout"

    def rewrite(self, model: Model) -> Model:
        """Takes every such node out."""
        graph = model.graph
        outputs = {id(t) for t in graph.outputs}
        for node in [n for n in graph.nodes if n.op == "Dropout" and not n.domain]:
            if any(t.outputs or id(t) in outputs for t in node.outputs[1:]):  # condition 1
                continue
            if id(node.outputs[0]) in outputs:  # condition 2
                continue
            mode = node.inputs[2] if len(node.inputs) > 2 else None
            trains = mode is not None and mode.name and not (isinstance(mode, gs.Constant) and not mode.values.any())
            if not trains:  # condition 3
                bypass(node, graph)
        drop_dead(graph)
        return model
