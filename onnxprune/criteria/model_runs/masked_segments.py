"""Masked segments of an analysed model: parts that a mask cannot change are computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.execution.graph_segments import Segments
from onnxprune.ir.model import Model
from onnxprune.ops import find
from onnxprune.ops.label_table import Contraction
from onnxprune.passes import FoldScales, InsertMasks, StripChannels
from onnxprune.passes.edit import unique_name
from onnxprune.passes.insert_masks import MASK_INPUT
from onnxprune.plans import NOTHING, Plan

__all__ = ["MASK_INPUT", "GroupConsumers", "MaskedSegmenter"]


@dataclass(frozen=True)
class GroupConsumers:
    """Consumers of a group: index of the first one, and every contraction with the tensor it reads."""

    first: int
    contractions: tuple[tuple[str, Contraction], ...]


class MaskedSegmenter(Segments):
    """Segments of an analysed model's normalized graph, with masks of removed channels.

    Attributes:
        consumers: Group name -> its consumers; `first` is len(nodes) if there are none.
        removed: Plan whose masks are inserted into segments created from now on.
    """

    def __init__(self, analysis: Analysis) -> None:
        super().__init__(analysis.model, analysis.witness)
        self.analysis = analysis
        self.removed: Plan = NOTHING
        self.consumers = {g.name: self._reads(g.components) for g in analysis.groups}

    def _reads(self, components: np.ndarray) -> GroupConsumers:
        mine = np.zeros(self.analysis.count, bool)
        mine[components] = True
        found = [c for c in self.analysis.contractions if mine[self.analysis.component[c.labels]].any()]
        places = [self.producer_index[c.output] for c in found]
        names = [self.nodes[p].inputs[c.input_index].name for p, c in zip(places, found, strict=True)]
        return GroupConsumers(min(places, default=len(self.nodes)), tuple(zip(names, found, strict=True)))

    def work(self, node_index: int) -> int:
        """Return the MACs of the nodes from a cut to the end, at the witness's sizes."""
        shapes = self.analysis.table.shapes
        total = 0
        for n in self.nodes[node_index:]:
            spec = find(n)
            tensors = [*n.inputs, *n.outputs]
            if spec is None or spec.macs is None:
                continue
            if all(not t.name or isinstance(t, gs.Constant) or t.name in shapes for t in tensors):
                sizes = [self.analysis.table.shape(t) if t.name else () for t in tensors]
                total += spec.macs(n, sizes[: len(n.inputs)], sizes[len(n.inputs) :])
        return total

    def bare_segment(self, start: int, stop: int, outputs: Sequence[str]) -> Model:
        """Return nodes [start, stop) as a model with the live tensors at `start` as inputs and `outputs` as outputs.

        Live tensors have all channels; `removed` channels are masked where this segment reads them.
        """
        model = self.segment(start, stop, outputs)
        return self._with_masks(model, self.removed) if self.removed.groups else model

    def _with_masks(self, segment: Model, plan: Plan) -> Model:
        """Return a segment with the masks of a plan folded into weights, or as constants where that is not possible."""
        for t in segment.graph.tensors().values():
            if not isinstance(t, gs.Constant) and t.shape is None:
                t.shape = self.declared(t.name)
        return FoldScales().rewrite(InsertMasks(plan, self.analysis, partial=True).rewrite(segment))

    def masked(self, group: str, outputs: Sequence[str]) -> Model:
        """Return the segment from a group's first consumer to the end, with an input that masks its channels."""
        start = self.consumers[group].first
        suffix = self.bare_segment(start, len(self.nodes), outputs)
        return InsertMasks(analysis=self.analysis, as_input=True, groups=(group,)).rewrite(suffix)

    def folded(self, group: str, plan: Plan, outputs: Sequence[str]) -> Model:
        """Return the segment of `masked` with the masks of a plan folded into the weights, without a mask input."""
        return self._with_masks(self.bare_segment(self.consumers[group].first, len(self.nodes), outputs), plan)

    def stripped(self, group: str, plan: Plan, outputs: Sequence[str]) -> Model:
        """Return the segment of `masked` without the channels that a plan removes; its inputs have full width too.

        Not available with `removed` channels: folded masks rename weights, which the analysis does not know.
        """
        assert not self.removed.groups
        start = self.consumers[group].first
        suffix = self.bare_segment(start, len(self.nodes), outputs)
        whole = {t.name: list(t.shape) if t.shape is not None else None for t in suffix.graph.inputs}
        model = StripChannels(plan, self.analysis).rewrite(suffix)
        self._gather_kept(model.graph, whole, self.analysis.kept(plan))
        return model

    def _gather_kept(self, graph: gs.Graph, whole: Mapping[str, list[int | str] | None], kept: Kept) -> None:
        names = set(graph.tensors())
        new: list[gs.Node] = []
        for i, t in enumerate(graph.inputs):
            rank = len(whole[t.name] or ())
            keeps = [(a, k) for a in range(rank) if (k := self.analysis.keep(t.name, a, kept)) is not None]
            if not keeps:
                continue
            x = graph.inputs[i] = gs.Variable(t.name, t.dtype, whole[t.name])
            t.name = unique_name(names, f"{t.name}_kept")
            for a, keep in keeps:
                last = a == keeps[-1][0]
                index = gs.Constant(unique_name(names, f"{t.name}_index"), np.flatnonzero(keep))
                out = t if last else gs.Variable(unique_name(names, f"{t.name}_{a}"), t.dtype)
                new.append(gs.Node("Gather", out.name, {"axis": a}, [x, index], [out]))
                x = out
        graph.nodes[:] = [*new, *graph.nodes]
