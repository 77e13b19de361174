"""Removal of channels, which yields the smaller dense model.

Before:  Conv(x, W [64, 32, 3, 3]) ; BatchNormalization(y, s [64], ...) ; Conv(z, V [128, 64, 3, 3])
After:   Conv(x, W [48, 32, 3, 3]) ; BatchNormalization(y, s [48], ...) ; Conv(z, V [128, 48, 3, 3])
Formula: every constant is compressed along every axis with keep(tensor, axis) = kept[component[labels]].
Conditions: 1. attributes and constants that state a size (Conv group, Reshape, Split, Slice, Pad, Expand, Resize)
are patched by the operator's record. 2. every group keeps at least one channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Kept, couple
from onnxprune.errors import OnnxPruneError
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Array, Model
from onnxprune.ops import CouplingOptions, GuardedRule, find
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import unique_name
from onnxprune.plans import NOTHING, Plan


@register
@dataclass(frozen=True)
class StripChannels(Pass):
    """Remove the channels that a plan names.

    Args:
        plan: Channels to remove.
        analysis: Coupling analysis of the (normalized) model; computed if None.
    """

    name: ClassVar[str] = "strip_channels"
    plan: Plan = NOTHING
    analysis: Analysis | None = None

    def rewrite(self, model: Model) -> Model:
        """Compress all constants, then patch stated sizes.

        Raises:
            OnnxPruneError: The plan names an unknown group, or its sizes do not fit.
        """
        analysis = self.analysis
        if analysis is None:
            analysis = couple(model, **analysis_options(self.plan))
        check_plan(self.plan, analysis)
        kept = analysis.kept(self.plan)
        if kept.all():
            return model
        stripper = _StripPatcher(model.graph, analysis, kept)
        # Patches read the old sizes and constants, so they run first.
        for node in model.graph.nodes:
            spec = find(node)
            if spec is not None and spec.patch is not None and stripper.has_known_shapes(node):
                with GuardedRule(spec, node):
                    spec.patch(node, stripper)
        stripper.compress()
        return model


def analysis_options(plan: Plan) -> dict[str, Any]:
    """Return the arguments of `couple` with which a plan's groups were found."""
    return {
        "choices": CouplingOptions(
            str(plan.options.get("attention", "heads")), bool(plan.options.get("inexact", False))
        ),
    }


def check_plan(plan: Plan, analysis: Analysis) -> None:
    """Raise if a plan does not fit an analysed model.

    Raises:
        OnnxPruneError: The plan was made for another model, names an unknown group or another number of channels, or
            removes a whole group.
    """
    if plan.model and plan.model != analysis.source.fingerprint:
        raise OnnxPruneError(
            "the plan was made for another model (its fingerprint differs)",
            fix="make the plan again from this model",
        )
    for name, removal in plan.groups.items():
        group = analysis[name]
        if removal.channels != group.channels:
            raise OnnxPruneError(
                f"the plan counts {removal.channels} channels where the model has {group.channels}",
                where=f"group {name!r}",
                fix="make the plan again from this model",
            )
        if len(removal.removed) >= group.channels:
            raise OnnxPruneError("the plan removes every channel of the group", where=f"group {name!r}")
    for name, removed in plan.blocks.items():
        block = analysis.block(name)
        if (block.output, block.operand) != (removed.output, removed.operand):
            raise OnnxPruneError(
                f"the plan removes operand {removed.operand} of {removed.output!r} where the model's block is operand "
                f"{block.operand} of {block.output!r}",
                where=f"block {name!r}",
                fix="make the plan again from this model",
            )


class _StripPatcher:
    """`Patcher` of one run: sizes before, constants replaced."""

    def __init__(self, graph: gs.Graph, analysis: Analysis, kept: Kept) -> None:
        self.graph = graph
        self.analysis = analysis
        self.kept = kept
        self.opset = int(graph.opset)
        self.choices = analysis.choices
        self.replaced: set[str] = set()
        self._names: set[str] | None = None
        self._keep: dict[tuple[str, int], Kept | None] = {}

    def keep(self, t: gs.Tensor, axis: int) -> Kept | None:
        """Return the mask of kept indices; None when all are kept."""
        key = (t.name, axis)
        if key not in self._keep:
            self._keep[key] = self.analysis.keep(t.name, axis, self.kept)
        return self._keep[key]

    def has_known_shapes(self, node: gs.Node) -> bool:
        """Return whether the shapes around a node are known; all inputs of other nodes are locked."""
        shapes = self.analysis.table.shapes
        return all(not t.name or isinstance(t, gs.Constant) or t.name in shapes for t in (*node.inputs, *node.outputs))

    def shape(self, t: gs.Tensor) -> tuple[int, ...]:
        """Return the witness shape before stripping."""
        return self.analysis.table.shape(t) if t.name not in self.replaced else tuple(t.shape)

    def constant(self, node: gs.Node, index: int) -> Array | None:
        """Return the value of an input that is a constant, else None."""
        if index >= len(node.inputs) or not isinstance(node.inputs[index], gs.Constant):
            return None
        return np.asarray(node.inputs[index].values)

    def replace(self, node: gs.Node, index: int, value: Array) -> None:
        """Replace an input of one node by a constant; under the old name if the old one has no other consumer."""
        old = node.inputs[index] if index < len(node.inputs) else None
        if isinstance(old, gs.Constant) and len(old.outputs) == 1:
            old.values = value
            self.replaced.add(old.name)
            return
        if self._names is None:
            self._names = set(self.graph.tensors())
        base = old.name if old is not None and old.name else f"{node.outputs[0].name}_size"
        new = gs.Constant(unique_name(self._names, base), value)
        self.replaced.add(new.name)
        if index < len(node.inputs):
            node.inputs[index] = new
        else:
            node.inputs.append(new)

    def compress(self) -> None:
        """Compress every constant along every labelled axis, and update the sizes in value_info."""
        seen: set[int] = set()
        for node in self.graph.nodes:
            for t in (*node.inputs, *node.outputs):
                if id(t) in seen or not t.name or t.name in self.replaced:
                    continue
                seen.add(id(t))
                if isinstance(t, gs.Constant):
                    if t.name in self.analysis.table.constants:
                        self._compress(t)
                elif t.shape is not None:
                    t.shape = self._new_shape(t)

    def _compress(self, t: gs.Constant) -> None:
        values: Array = t.values
        for axis in range(values.ndim):
            keep = self.keep(t, axis)
            if keep is not None:
                values = np.take(values, np.flatnonzero(keep), axis)
        if values is not t.values:
            protobuf_wire.release(t.values)
        t.values = values

    def _new_shape(self, t: gs.Variable) -> list[int | str | None] | None:
        """Return the declared shape at the new sizes; None if it has another rank, of which onnxruntime only warns."""
        out = list(t.shape)
        axes = self.analysis.table.variables.get(t.name) or self.analysis.table.constants.get(t.name)
        if axes and len(axes) != len(out):
            return None
        for axis, n in enumerate(out):
            keep = self.keep(t, axis)
            if keep is not None:  # a named dimension such as "12*batch" is no longer valid
                out[axis] = int(keep.sum()) if n == len(keep) else None
        return out
