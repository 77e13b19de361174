"""Turns Constant nodes into initializers, so that a weight is found in one place only.

Before:  Constant(value=W) -> w ; Conv(x, w)
After:   Conv(x, w) with initializer w
Conditions: 1. the node has one output that is no graph output. 2. its value is a dense tensor, number or list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.model import Model
from onnxprune.ops import find
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import drop_dead, to_constant


@register
@dataclass(frozen=True)
class LiftConstants(Pass):
    """Constant nodes become initializers."""

    name: ClassVar[str] = "lift_constants"

    def rewrite(self, model: Model) -> Model:
        """Lifts every Constant node."""
        graph = model.graph
        outputs = {id(t) for t in graph.outputs}
        for node in graph.nodes:
            if node.op != "Constant" or node.domain or id(node.outputs[0]) in outputs:  # condition 1
                continue
            spec = find(node)
            assert spec is not None
            assert spec.evaluate is not None
            value = spec.evaluate(node, [])
            if value is not None:  # condition 2
                to_constant(node.outputs[0], np.asarray(value))
        drop_dead(graph)
        return model
