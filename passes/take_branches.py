"""Replacement of an If with a constant condition by the branch that is executed.

Exporters write an If for a size test in the original: whether an axis is 1 and may be squeezed, whether an image must
be padded. Once shapes are folded the result is known.

Before:  s = Squeeze(x) ; i = Identity(x) ; y = If(true, s, i)
After:   s = Squeeze(x) ; y = Identity(s)
Conditions: 1. the condition is a constant (the pass fold_shapes makes it one if possible), or both branches return the
same tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes.shape_inference import Witness
from onnxprune.ir.branches import FLAT
from onnxprune.ir.model import Model
from onnxprune.passes.base import Pass, Rewritten, register
from onnxprune.passes.edit import drop_dead
from onnxprune.passes.fold_shapes import FoldShapes
from onnxprune.passes.remove_identity import RemoveIdentity


@register
@dataclass(frozen=True)
class TakeBranches(Pass):
    """Replace an If with a constant condition by its branch."""

    name: ClassVar[str] = "take_branches"

    def rewrite(self, model: Model) -> Model:
        """Replace decided Ifs and fold what becomes constant, until no condition is constant."""
        return self.rewrite_with_shapes(model, None).model

    def rewrite_with_shapes(self, model: Model, known: Witness | None) -> Rewritten:
        """Rewrite; shapes remain known if nothing is decided, else they are those of the last folding."""
        out = Rewritten(model, known)
        while any(_is_if(n) for n in out.model.graph.nodes) and _take_branches(out.model.graph):
            for step in (RemoveIdentity(), FoldShapes()):
                out = step.rewrite_with_shapes(out.model, out.shapes)
        return out


def _take_branches(graph: gs.Graph) -> bool:
    """Replace every decided If by Identity nodes; return whether there was one."""
    nodes: list[gs.Node] = []
    taken = False
    for node in graph.nodes:
        results = _taken(node) if _is_if(node) else None
        if results is None:
            nodes.append(node)
            continue
        taken = True
        targets = list(node.outputs)
        node.inputs.clear()
        node.outputs.clear()
        nodes += [
            gs.Node("Identity", f"{target.name}_taken", {}, [t], [target])
            for t, target in zip(results, targets, strict=True)
            if target.name
        ]
    if taken:
        graph.nodes[:] = nodes
        drop_dead(graph)
    return taken


def _is_if(node: gs.Node) -> bool:
    return bool(node.domain == FLAT and node.op == "If")


def _taken(node: gs.Node) -> list[gs.Tensor] | None:
    """Return the results of a decided If (condition 1); None for others."""
    condition, count = node.inputs[0], len(node.inputs) // 2
    sides = list(node.inputs[1 : 1 + count]), list(node.inputs[1 + count :])
    if isinstance(condition, gs.Constant):
        return sides[0] if bool(np.asarray(condition.values).any()) else sides[1]
    return sides[0] if all(a is b for a, b in zip(*sides, strict=True)) else None
