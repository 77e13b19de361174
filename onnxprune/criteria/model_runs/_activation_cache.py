"""Cache of the activations at one cut of a graph, advanced from cut to cut.

The segments between cuts are always the same, so a value does not depend on what was computed before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.criteria.model_runs._batch_runner import BatchRunner
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.execution.sessions import Session


@dataclass
class CachedActivations:
    """Live tensors of some batches at a cut, on the device.

    Attributes:
        node_index: Index of the first node behind the cut.
        chunk: Batches.
        values: Tensors by name, of every batch.
    """

    node_index: int
    chunk: range
    values: list[Any]

    def batches(self, which: range) -> range:
        """Return batches by their positions in the chunk."""
        return self.chunk[which.start : which.stop]


class ActivationCache:
    """Activations at the cut that was asked for last.

    Args:
        runner: Runs segments on batches.
        segmenter: Cuts the graph.
        memory: Bytes that the activations may take; batches that do not fit are cached one chunk after the other.

    Attributes:
        activations: Those at hand; None before the first and after `forget_after`.
    """

    def __init__(self, runner: BatchRunner, segmenter: MaskedSegmenter, memory: int) -> None:
        self.activations: CachedActivations | None = None
        self._runner, self._segmenter, self._memory = runner, segmenter, memory
        self._cuts = sorted({r.first for r in segmenter.consumers.values()} - {len(segmenter.nodes)})
        self._segments: dict[int, Session] = {}  # by the cut at their end

    def chunks(self, node_index: int) -> list[range]:
        """Split all batches into as few chunks as the memory allows at a cut."""
        count = len(self._runner.feeds)
        size = self._segmenter.bytes_of(self._segmenter.live(node_index)) * self._runner.feeds.batch
        step = max(1, min(count, self._memory // max(1, size)))
        return [range(i, min(i + step, count)) for i in range(0, count, step)]

    def complete_before(self, node_index: int) -> CachedActivations | None:
        """Return the activations if they are those of all batches, at a cut no later than a node."""
        cached = self.activations
        whole = cached is not None and len(cached.chunk) == len(self._runner.feeds) and cached.node_index <= node_index
        return cached if whole else None

    def forget_after(self, node_index: int) -> None:
        """Remove what lies behind a cut: masks there have changed."""
        self._segments = {p: s for p, s in self._segments.items() if p <= node_index}
        if self.activations is not None and self.activations.node_index > node_index:
            self.activations = None

    def hold(self, node_index: int, chunk: range, suffix: Session) -> CachedActivations:
        """Return the activations of a chunk at a cut, advanced from those at an earlier cut if these are at hand.

        Args:
            node_index: Index of the first node that is not run.
            chunk: Batches.
            suffix: Session that will read the activations.
        """
        cached = self.activations
        if cached is None or cached.chunk != chunk or cached.node_index > node_index:
            cached = CachedActivations(0, chunk, [None] * len(chunk))
        if cached.node_index != node_index or cached.values[0] is None:
            self.activations = None
            route = self._route(cached.node_index, [p for p in self._cuts if cached.node_index < p <= node_index])
            before = cached.values
            cached.values = []  # each batch is released as soon as it is advanced
            advanced = self._runner.parallel(
                lambda k: self._advance(before, k, chunk[k], route, suffix), range(len(chunk))
            )
            cached = CachedActivations(node_index, chunk, advanced)
            if len(chunk) == len(self._runner.feeds):  # no later chunk needs these segments
                self._segments = {p: s for p, s in self._segments.items() if p > node_index}
        self.activations = cached
        return cached

    def _route(self, start: int, cuts: Sequence[int]) -> list[tuple[int, int, Session]]:
        """Return the segments from one cut to the next, each with its start and end."""
        out = []
        for node_index in cuts:
            if node_index not in self._segments:
                names = [n for n in self._segmenter.live(node_index) if self._segmenter.producer_index[n] >= start]
                self._segments[node_index] = self._runner.session(
                    self._segmenter.bare_segment(start, node_index, names)
                )
            out.append((start, node_index, self._segments[node_index]))
            start = node_index
        return out

    def _advance(
        self,
        cached: list[dict[str, Any] | None],
        k: int,
        batch: int,
        route: Sequence[tuple[int, int, Session]],
        suffix: Session,
    ) -> dict[str, Any]:
        """Return the live tensors of the k-th cached batch at the end of a route, and release those it began with."""
        values, cached[k] = cached[k], None
        if values is None:
            values = self._runner.to_device(route[0][2] if route else suffix, batch)
        for start, node_index, session in route:
            live = self._segmenter.live(node_index)
            names = [n for n in live if self._segmenter.producer_index[n] >= start]
            made = session.run_bound({n: values[n] for n in session.inputs}, names) if names else []
            values = {n: values[n] for n in live if n not in names} | dict(zip(names, made, strict=True))
        return values
