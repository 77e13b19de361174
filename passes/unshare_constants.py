"""Separate copies of small constants for every node.

Exporters store equal values once: one vector may be the mean of a BatchNormalization and the bias of an unrelated
Conv. A shared constant would couple unrelated channels, and a size patched for one node would break another.

Before:  BatchNormalization(x, s, b, v, ...) ; Conv(y, w, v)
After:   BatchNormalization(x, s, b, v, ...) ; Conv(y, w, v__1)
Conditions: 1. at most `largest` elements, or one-dimensional: a large weight used twice is shared on purpose.
The first use keeps the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxprune.ir.model import Model, new_constant
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import set_input, tensor_names, unique_name


@register
@dataclass(frozen=True)
class UnshareConstants(Pass):
    """Copy each small constant for every use."""

    name: ClassVar[str] = "unshare_constants"
    keeps_shapes: ClassVar[bool] = True
    largest: int = 4096

    def rewrite(self, model: Model) -> Model:
        """Copy shared constants, use by use in graph order."""
        names = tensor_names(model.graph)
        used: set[str] = set()
        for node in model.graph.nodes:
            for i, t in enumerate(node.inputs):
                if not isinstance(t, gs.Constant) or not t.name:
                    continue
                if t.name not in used:
                    used.add(t.name)
                elif t.values.ndim <= 1 or t.values.size <= self.largest:  # condition 1
                    name = unique_name(names, t.name)
                    used.add(name)
                    set_input(node, i, new_constant(name, t._values))
        return model
