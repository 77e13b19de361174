"""Sliced reference of inexact groups: the original's statistics computed over the kept channels, all else unchanged.

Before:  y = LayerNormalization(x, g, b)
After:   y = Gather(LayerNormalization(Gather(x, kept), Gather(g, kept), Gather(b, kept)), back)
Formula: kept lists the kept indices, in order; back[c] is the position of c among them, and 0 for a removed c.
Conditions: 1. every node that computes a statistic over removed channels is sliced: its data and the parameters along
the same axis before it, its outputs after it. 2. the result has the original's width, so that nothing else changes; a
removed channel holds the values of the first kept one, not zeros, so that a consumer without a mask changes the result.
3. nodes are found by the name of their first output, as in insert_masks, which runs first.
4. a sum that a constant divides by its count is scaled up to the original number of terms.

No constant is sliced and no stated size is changed here, so an error of strip_channels cannot be repeated.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Kept, couple
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Array, Model
from onnxprune.ops.label_table import AxisStatistic
from onnxprune.passes.base import Pass, Pipeline, register
from onnxprune.passes.edit import unique_name
from onnxprune.passes.insert_masks import InsertMasks
from onnxprune.passes.strip_channels import analysis_options
from onnxprune.plans import NOTHING, Plan


@register
@dataclass(frozen=True)
class SliceStatistics(Pass):
    """Compute statistics over the channels that a plan keeps.

    Args:
        plan: Channels to remove.
        analysis: Coupling analysis of the model, if available.
    """

    name: ClassVar[str] = "slice_statistics"
    plan: Plan = NOTHING
    analysis: Analysis | None = None

    def rewrite(self, model: Model) -> Model:
        """Insert a Gather before and after every node that computes a statistic over removed channels.

        Raises:
            OnnxPruneError: Such a node is not in the graph.
        """
        analysis = self.analysis
        if analysis is None:
            analysis = couple(model, **analysis_options(self.plan))
        kept = analysis.kept(self.plan)
        graph = model.graph
        by_output = {o.name: n for n in graph.nodes for o in n.outputs if o.name}
        sliced: dict[str, list[tuple[AxisStatistic, Kept]]] = defaultdict(list)
        for s in analysis.table.statistics:
            stays = kept[analysis.component[s.labels]]
            if not stays.all():
                sliced[s.output].append((s, stays))
        slicer = _Slicer(graph, analysis.witness.dtypes)
        for output, axes in sliced.items():
            if output not in by_output:
                raise OnnxPruneError(f"the node that computes {output!r} is not in the graph to be sliced")
            slicer.slice(by_output[output], axes)
        graph.nodes[:] = [m for n in graph.nodes for m in (*slicer.before[id(n)], n, *slicer.after[id(n)])]
        return model


class _Slicer:
    def __init__(self, graph: gs.Graph, dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self.dtypes = dtypes
        self.names = set(graph.tensors())
        self.before: dict[int, list[gs.Node]] = defaultdict(list)
        self.after: dict[int, list[gs.Node]] = defaultdict(list)

    def slice(self, node: gs.Node, axes: list[tuple[AxisStatistic, Kept]]) -> None:
        """Compute a node on the kept indices of its axes."""
        for s, stays in axes:  # condition 1
            kept = np.flatnonzero(stays)
            back = np.where(stays, np.cumsum(stays) - 1, 0)  # condition 2
            for index, axis in ((0, s.axis), *s.params):
                new, node.inputs[index] = self._gather(node.inputs[index], kept, axis)
                self.before[id(node)].append(new)
            for index, axis in s.outputs:
                whole = node.outputs[index]
                small = gs.Variable(unique_name(self.names, f"{whole.name}_sliced"), whole.dtype)
                node.outputs[index] = small  # the rest of the graph reads the old name
                new, _ = self._gather(small, back, axis, whole)
                self.after[id(node)].insert(0, new)
            if s.counted:  # condition 4
                self._scale(node, len(stays) / len(kept))

    def _scale(self, node: gs.Node, factor: float) -> None:
        total = node.outputs[0]
        dtype = np.dtype(self.dtypes.get(total.name) or total.dtype or np.float32)
        node.outputs[0] = gs.Variable(unique_name(self.names, f"{total.name}_sum"), dtype)
        ratio = gs.Constant(unique_name(self.names, f"{total.name}_ratio"), np.array(factor, dtype))
        name = unique_name(self.names, f"{total.name}_scaled")
        self.after[id(node)].insert(0, gs.Node("Mul", name, {}, [node.outputs[0], ratio], [total]))

    def _gather(
        self, x: gs.Tensor, places: Array, axis: int, out: gs.Variable | None = None
    ) -> tuple[gs.Node, gs.Tensor]:
        index = gs.Constant(unique_name(self.names, f"{x.name}_places"), places.astype(np.int64))
        if out is None:
            out = gs.Variable(unique_name(self.names, f"{x.name}_kept"), x.dtype)
        return gs.Node("Gather", unique_name(self.names, f"{out.name}_gather"), {"axis": axis}, [x, index], [out]), out


def masked_reference(analysis: Analysis, plan: Plan) -> Model:
    """Return the original in which no consumer reads the channels that a plan removes.

    Masks are inserted at contractions; nodes that compute a statistic over removed channels use the kept ones.
    """
    passes: list[Pass] = [InsertMasks(plan, analysis)]
    if analysis.inexact(plan):
        passes.append(SliceStatistics(plan, analysis))
    return Pipeline(passes)(analysis.source)
