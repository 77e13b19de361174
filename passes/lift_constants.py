"""Conversion of Constant nodes into initializers, so that every weight is an initializer.

Before:  Constant(value=W) -> w ; Conv(x, w)
After:   Conv(x, w) with initializer w
Conditions: 1. the node has one output that is not a graph output. 2. its value is a dense tensor, number or list.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Array, Model, new_constant
from onnxprune.ops import find
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import drop_dead, to_constant


@register
@dataclass(frozen=True)
class LiftConstants(Pass):
    """Convert Constant nodes into initializers."""

    name: ClassVar[str] = "lift_constants"

    def copied(self, model: Model) -> Model:
        """Return a copy without Constant nodes, which are half of all nodes in some models."""
        return model.copy({id(t): new_constant(t.name, value) for t, value in _liftable(model.graph)})

    def rewrite(self, model: Model) -> Model:
        """Convert every Constant node that meets the conditions."""
        for t, value in _liftable(model.graph):
            to_constant(t, value)
        drop_dead(model.graph)
        return model


def _liftable(graph: gs.Graph) -> Iterator[tuple[gs.Variable, Array]]:
    """Yield the outputs of Constant nodes that meet the conditions, with their values."""
    outputs = {id(t) for t in graph.outputs}
    for node in graph.nodes:
        if node.op != "Constant" or node.domain or id(node.outputs[0]) in outputs:  # condition 1
            continue
        spec = find(node)
        assert spec is not None
        assert spec.evaluate is not None
        value = spec.evaluate(node, [])
        if value is not None:  # condition 2
            yield node.outputs[0], np.asarray(value)
