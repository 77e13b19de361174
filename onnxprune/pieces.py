"""Pieces of a model: the graph cut between two nodes, so that what a mask cannot change is computed once.

A *cut* is a place in the node order. What crosses it (`live`) are the tensors made before and read after; a piece from
one cut to the next computes the live tensors of the second from those of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.coupling import Analysis, Kept
from onnxprune.model import Model
from onnxprune.ops import find
from onnxprune.ops.labels import Contraction
from onnxprune.passes import FoldScales, InsertMasks, StripChannels
from onnxprune.passes.edit import unique_name
from onnxprune.passes.insert_masks import MASK_INPUT
from onnxprune.plans import Plan

__all__ = ["MASK_INPUT", "Cutter", "Reads"]


@dataclass(frozen=True)
class Reads:
    """Where a group is read: the first node that does, and every contraction with the tensor it reads."""

    place: int
    contractions: tuple[tuple[str, Contraction], ...]


class Cutter:
    """Cuts an analysed model's normalized graph.

    Attributes:
        reads: group name -> where it is first read; len(nodes) where nothing reads it.
        outputs: names of the graph's outputs.
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        graph = analysis.model.graph
        self.nodes: Sequence[gs.Node] = graph.nodes
        self.outputs = [t.name for t in graph.outputs]
        self.made = {o.name: i for i, n in enumerate(self.nodes) for o in n.outputs if o.name}
        self.made |= {t.name: -1 for t in graph.inputs}
        self.read: dict[str, list[int]] = {}  # name -> places that read it, ascending
        for i, n in enumerate(self.nodes):
            inside = [t for body in n.subgraphs(recursive=True) for m in body.nodes for t in m.inputs]
            inside += [t for body in n.subgraphs(recursive=True) for t in body.outputs]
            for t in [*n.inputs, *inside]:
                if not isinstance(t, gs.Constant) and t.name in self.made and self.made[t.name] < i:
                    self.read.setdefault(t.name, []).append(i)
        self.reads = {g.name: self._reads(g.components) for g in analysis.groups}

    def _reads(self, components: np.ndarray) -> Reads:
        mine = np.zeros(self.analysis.count, bool)
        mine[components] = True
        found = [c for c in self.analysis.contractions if mine[self.analysis.component[c.labels]].any()]
        places = [self.made[c.output] for c in found]
        names = [self.nodes[p].inputs[c.input_index].name for p, c in zip(places, found, strict=True)]
        return Reads(min(places, default=len(self.nodes)), tuple(zip(names, found, strict=True)))

    def live(self, place: int) -> list[str]:
        """Tensors that cross a cut: made before `place`, read at it or later, or given out at the end."""
        crossing = {n for n, where in self.read.items() if self.made[n] < place <= where[-1]}
        crossing |= {n for n in self.outputs if self.made[n] < place}
        return sorted(crossing, key=lambda n: (self.made[n], n))

    def bytes_of(self, names: Sequence[str]) -> int:
        """Bytes of tensors for one sample, from the witness (0 for those whose shape depends on data)."""
        seen = self.analysis.witness
        batch = next((s[0] for t in self.analysis.model.graph.inputs if (s := seen.shapes.get(t.name))), 1) or 1
        known = [n for n in names if n in seen.shapes]
        return sum(prod(seen.shapes[n]) * seen.dtypes.get(n, np.dtype(np.float32)).itemsize for n in known) // batch

    def largest(self) -> int:
        """Bytes of the largest activation, one sample."""
        return max((self.bytes_of([o.name]) for n in self.nodes for o in n.outputs if o.name), default=1)

    def work(self, place: int) -> int:
        """MACs of the nodes from a cut to the end, at the witness's sizes."""
        shapes = self.analysis.table.shapes
        total = 0
        for n in self.nodes[place:]:
            spec = find(n)
            tensors = [*n.inputs, *n.outputs]
            if spec is None or spec.macs is None:
                continue
            if all(not t.name or isinstance(t, gs.Constant) or t.name in shapes for t in tensors):
                sizes = [self.analysis.table.shape(t) if t.name else () for t in tensors]
                total += spec.macs(n, sizes[: len(n.inputs)], sizes[len(n.inputs) :])
        return total

    def piece(self, start: int, stop: int, outputs: Sequence[str]) -> Model:
        """Nodes [start, stop) as a model of their own: the live tensors at `start` in, `outputs` out."""
        model = self.analysis.model.copy()
        graph = model.graph
        tensors = graph.tensors()
        for n in [*graph.nodes[:start], *graph.nodes[stop:]]:
            n.inputs.clear()
            n.outputs.clear()
        graph.nodes[:] = graph.nodes[start:stop]
        graph.inputs[:] = [tensors[n] for n in self.live(start)]
        graph.outputs[:] = [tensors[n] for n in outputs]
        for t in [*graph.inputs, *graph.outputs]:
            t.dtype = self.analysis.witness.dtypes.get(t.name, t.dtype)
            t.shape = self._declared(t.name)
        return model

    def _declared(self, name: str) -> list[int | str] | None:
        """A shape with names for what may follow a dynamic dimension of the input."""
        seen = self.analysis.witness
        shape = seen.shapes.get(name)
        if shape is None:
            return None
        dynamic = set(seen.dims.values())
        return [f"{name}_{i}" if any(n % d == 0 for d in dynamic) else n for i, n in enumerate(shape)]

    def masked(self, group: str, outputs: Sequence[str]) -> Model:
        """From a group's first reader to the end, with an input that masks its channels."""
        start = self.reads[group].place
        suffix = self.piece(start, len(self.nodes), outputs)
        return InsertMasks(analysis=self.analysis, as_input=True, groups=(group,)).rewrite(suffix)

    def folded(self, group: str, plan: Plan, outputs: Sequence[str]) -> Model:
        """The same with a plan's masks in the weights: nothing is left to multiply, nor an input for it."""
        suffix = self.piece(self.reads[group].place, len(self.nodes), outputs)
        for t in suffix.graph.tensors().values():
            if not isinstance(t, gs.Constant) and t.shape is None:
                t.shape = self._declared(t.name)
        return FoldScales().rewrite(InsertMasks(plan, self.analysis).rewrite(suffix))

    def stripped(self, group: str, plan: Plan, outputs: Sequence[str]) -> Model:
        """The same without the channels that a plan removes; it takes the same whole tensors as `masked`."""
        start = self.reads[group].place
        suffix = self.piece(start, len(self.nodes), outputs)
        whole = {t.name: list(t.shape) if t.shape is not None else None for t in suffix.graph.inputs}
        model = StripChannels(plan, self.analysis).rewrite(suffix)
        self._take_kept(model.graph, whole, self.analysis.kept(plan))
        return model

    def _take_kept(self, graph: gs.Graph, whole: Mapping[str, list[int | str] | None], kept: Kept) -> None:
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
