"""Replacement of an If with a constant condition by the branch that is executed.

Exporters write an If for a size test in the original: whether an axis is 1 and may be squeezed, whether an image must
be padded. Once shapes are folded the result is known.

Before:  y = If(true, then_branch: {s = Squeeze(x)}, else_branch: {i = Identity(x)})
After:   y = Squeeze(x)
Conditions: 1. the condition is a constant (the pass fold_shapes makes it one if possible). 2. no node in the branch
multiplies or sums over channels: masks of the proof are inserted into the caller's own file, in which such a node would
be inside the branch. 3. names inside a branch may occur in other branches: they are made unique.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shape_inference import Witness
from onnxprune.ir.model import Model
from onnxprune.ops import find
from onnxprune.ops.reduce import NEUTRAL_ZERO
from onnxprune.passes.base import Pass, Rewritten, register
from onnxprune.passes.edit import drop_dead, unique_name
from onnxprune.passes.fold_shapes import FoldShapes
from onnxprune.passes.lift_constants import LiftConstants
from onnxprune.passes.remove_identity import RemoveIdentity


@register
@dataclass(frozen=True)
class TakeBranches(Pass):
    """Replace an If with a constant condition by its branch."""

    name: ClassVar[str] = "take_branches"

    def rewrite(self, model: Model) -> Model:
        """Inline branches and fold what becomes constant, until no condition is constant."""
        return self.rewrite_with_shapes(model, None).model

    def rewrite_with_shapes(self, model: Model, known: Witness | None) -> Rewritten:
        """Rewrite; shapes remain known if there is nothing to inline, else they are those of the last folding."""
        out = Rewritten(model, known)
        while any(n.op == "If" for n in out.model.graph.nodes) and _inline_branches(out.model.graph):
            for step in (LiftConstants(), RemoveIdentity(), FoldShapes()):
                out = step.rewrite_with_shapes(out.model, out.shapes)
        return out


def _inline_branches(graph: gs.Graph) -> bool:
    """Inline every decided branch once; return whether there was one."""
    names = set(graph.tensors())
    taken = False
    for node in [n for n in graph.nodes if n.op == "If" and not n.domain]:
        condition = node.inputs[0]
        if not isinstance(condition, gs.Constant):  # condition 1
            continue
        branch: gs.Graph = node.attrs["then_branch" if bool(np.asarray(condition.values).any()) else "else_branch"]
        if any(_contracts(n) for n in branch.nodes):  # condition 2
            continue
        _inline(graph, node, branch, names)
        taken = True
    drop_dead(graph)
    return taken


def _contracts(node: gs.Node) -> bool:
    spec = find(node)
    return spec is None or spec.macs is not None or node.op in NEUTRAL_ZERO


def _inline(graph: gs.Graph, node: gs.Node, branch: gs.Graph, names: set[str]) -> None:
    outer = {id(t) for t in graph.tensors().values()}
    inner = {id(t): t for n in branch.nodes for t in (*n.inputs, *n.outputs) if t.name and id(t) not in outer}
    for t in inner.values():
        t.name = unique_name(names, t.name)  # condition 3
    place = next(i for i, n in enumerate(graph.nodes) if n is node)
    made: list[gs.Node] = list(branch.nodes)
    for target, t in zip(list(node.outputs), list(branch.outputs), strict=True):
        node.outputs.remove(target)
        made.append(gs.Node("Identity", f"{target.name}_taken", {}, [t], [target]))
    node.inputs.clear()
    branch.nodes.clear()
    branch.outputs.clear()
    graph.nodes[place : place + 1] = made
