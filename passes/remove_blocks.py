"""Removal of residual blocks: the addition at their end becomes the identity on its other operand.

Before:  b = Conv(Relu(Conv(t))) ; y = Add(b, t) ; z = Relu(y)
After:   z = Relu(t)
Conditions: 1. the other operand has the shape of the sum (the analysis reports a block as not free otherwise). 2. a sum
that is an output of the model, or is read in the body of a Loop or Scan, keeps its name: an Identity writes it. 3. if
both operands of an addition are removed, so is this operand of the addition that reads the sum. 4. if the sum and the
other operand pass the same idempotent activation, and nothing else reads that operand, its activation is dropped:
Relu(Relu(u)) is Relu(u). 5. what a dense layer appends is read by Concat only; it is left out of each, and its
channels are removed with it (`strip_channels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.blocks import adds, held_names
from onnxprune.analysis.coupling import Analysis, couple
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import drop_dead, set_input
from onnxprune.passes.strip_channels import StripChannels, analysis_options, check_plan
from onnxprune.plans import NOTHING, Plan


@register
@dataclass(frozen=True)
class RemoveBlocks(Pass):
    """Remove the residual blocks that a plan names.

    Args:
        plan: Blocks to remove; its channels are not considered.
        analysis: Coupling analysis of the (normalized) model; computed if None.
    """

    name: ClassVar[str] = "remove_blocks"
    plan: Plan = NOTHING
    analysis: Analysis | None = None

    def rewrite(self, model: Model) -> Model:
        """Bypass the additions and remove the nodes that nothing reads any more.

        Raises:
            OnnxPruneError: The plan names an unknown block, or no operand of a sum remains.
        """
        if not self.plan.blocks:
            return model
        analysis = couple(model, **analysis_options(self.plan)) if self.analysis is None else self.analysis
        check_plan(self.plan, analysis)
        graph = model.graph
        removed: dict[str, set[int]] = {}
        writers = {t.name: n for n in graph.nodes for t in n.outputs}
        appended = [
            writers[b.output].inputs[b.operand]
            for b in self.plan.blocks.values()
            if b.output in writers and writers[b.output].op == "Concat"
        ]
        for t in appended:  # condition 5
            for reader in {id(n): n for n in t.outputs}.values():
                for place in reversed(range(len(reader.inputs))):
                    if reader.inputs[place] is t:
                        reader.inputs.pop(place)
        for block in self.plan.blocks.values():
            removed.setdefault(block.output, set()).add(block.operand)
        named = held_names(graph)
        bypassed: list[gs.Tensor] = []
        for node in list(graph.nodes):
            out = node.outputs[0] if node.outputs else None
            operands = removed.get(out.name) if out is not None else None
            if out is None or operands is None or node.op == "Concat":
                continue
            if len(operands) == 2:  # condition 3
                _empty(out, named, removed)
                continue
            shortcut = node.inputs[1 - min(operands)]
            if out.name in named:  # condition 2
                set_input(node, min(operands), shortcut)
                node.inputs.pop(1)
                node.op, node.attrs = "Identity", {}
                continue
            bypassed.append(shortcut)
            for reader in {id(n): n for n in out.outputs}.values():
                for i, t in enumerate(list(reader.inputs)):
                    if t is out:
                        set_input(reader, i, shortcut)
        drop_dead(graph)
        for t in bypassed:  # condition 4
            _join_activations(t, named)
        drop_dead(graph)
        return model


def removal_passes(plan: Plan, analysis: Analysis) -> list[Pass]:
    """Return the passes that remove the channels and blocks of a plan; dense layers first, which lose all channels."""
    passes: list[Pass] = [StripChannels(plan, analysis), RemoveBlocks(plan, analysis)]
    return passes[::-1] if any(analysis.block(name).channels for name in plan.blocks) else passes


_IDEMPOTENT = frozenset(("Abs", "Ceil", "Clip", "Floor", "Relu", "Round"))


def _join_activations(t: gs.Tensor, named: set[str]) -> None:
    """Drop the activation that writes a tensor if the only node that reads it is the same activation."""
    first = t.inputs[0] if len(t.inputs) == 1 else None
    second = t.outputs[0] if len(t.outputs) == 1 and t.name not in named else None
    if first is None or second is None or first.op not in _IDEMPOTENT:
        return
    if (first.op, first.domain, first.attrs) != (second.op, second.domain, second.attrs):
        return
    if len(first.inputs) == len(second.inputs) and all(map(_same, first.inputs[1:], second.inputs[1:])):
        set_input(second, 0, first.inputs[0])


def _same(one: gs.Tensor, other: gs.Tensor) -> bool:
    """Return whether two optional inputs are the same tensor, equal constants, or both absent."""
    if isinstance(one, gs.Constant) and isinstance(other, gs.Constant):
        return np.array_equal(np.asarray(one.values), np.asarray(other.values))
    return bool(one.name == other.name)


def _empty(out: gs.Tensor, named: set[str], removed: dict[str, set[int]]) -> None:
    """Remove the operand of the addition that reads a sum of which nothing remains."""
    reader = out.outputs[0] if len(out.outputs) == 1 and out.name not in named else None
    if reader is None or not adds(reader):
        raise OnnxPruneError(
            "no operand of the sum remains", where=f"tensor {out.name!r}", fix="keep one of the parallel blocks"
        )
    place = next(i for i, t in enumerate(reader.inputs) if t is out)
    removed.setdefault(reader.outputs[0].name, set()).add(place)
