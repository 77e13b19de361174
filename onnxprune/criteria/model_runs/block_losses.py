"""Losses of residual blocks on data: cross-entropy, distance of the outputs, the same with the next block solved.

A block adds `f(t)` to a stream. Without it, the next branch of the stream can be solved for what is missing: with rows
x of that branch's last layer and `d = y' - y` the difference of the original's next sum from the present one, the
least squares of `x V = d` are the change of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.blocks import Block, adds
from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.linear_layers import LinearNode, linear_node
from onnxprune.criteria.model_runs.block_runs import BlockRuns, BlockScorer
from onnxprune.criteria.model_runs.compensation import Compensation
from onnxprune.criteria.model_runs.output_effects import measured_outputs
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.gram import damped, picked_positions, solved
from onnxprune.execution.graph_segments import Segments
from onnxprune.execution.tasks.metrics import METRICS, all_targets
from onnxprune.execution.tasks.output_distance import OutputDistance
from onnxprune.ir.model import Array, Model

_WIDEST = 5_000  # inputs x kernel of a layer that is solved
_ROWS = 3  # rows for each input of a layer
_LEAST_ROWS = 4096


class CrossEntropyWithout(BlockScorer):
    """Increase of the mean cross-entropy without a block.

    Args:
        analysis: Coupling analysis of the model.
        calibration: Samples with labels.
        count: Number of blocks that are scored.
        absolute: Whether the size of the change counts, of either sign.
    """

    def __init__(self, analysis: Analysis, calibration: Calibration, count: int, *, absolute: bool = False) -> None:
        self.runs, self.absolute = BlockRuns(analysis, calibration, count), absolute
        self.metric = METRICS["loss"]
        self.names = self.metric.outputs_read([t.name for t in analysis.model.graph.outputs])
        self._before: tuple[int, float] = 0, self._loss([])

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        if self._before[0] != len(removed):
            self._before = len(removed), self._loss(removed)
        size = abs if self.absolute else float
        return {b.name: size(self._loss([*removed, b]) - self._before[1]) for b in blocks}

    def _loss(self, removed: Sequence[Block]) -> float:
        assert self.metric.samples is not None
        found = list(self.runs.outputs(self.runs.without(removed), self.names))
        labels = np.asarray(all_targets([self.runs.feeds[i][1] for i in range(len(self.runs.feeds))]))
        outputs = [np.concatenate([f[n] for f in found]) for n in self.names]
        return float(np.mean(self.metric.samples(outputs, labels, [])))


class DistanceWithout(BlockScorer):
    """Distance of the outputs from the original's without a block, beyond that of the blocks removed before.

    Args:
        analysis: Coupling analysis of the model.
        calibration: Samples.
        count: Number of blocks that are scored.
    """

    def __init__(self, analysis: Analysis, calibration: Calibration, count: int) -> None:
        self.runs = BlockRuns(analysis, calibration, count)
        self.names = measured_outputs(Segments(analysis.model, analysis.witness), analysis.source)
        reference = list(self.runs.outputs(analysis.model, self.names))
        self.distance = OutputDistance(self.names, reference, analysis.source)
        self._totals: dict[frozenset[str], float] = {frozenset(): 0.0}

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        return {b.name: self._total([*removed, b]) - self._total(removed) for b in blocks}

    def _total(self, removed: Sequence[Block]) -> float:
        key = frozenset(b.name for b in removed)
        if key not in self._totals:
            self._totals[key] = self.distance(self.runs.outputs(self._model(removed), self.names))
        return self._totals[key]

    def _model(self, removed: Sequence[Block]) -> Model:
        return self.runs.without(removed)


@dataclass(frozen=True)
class _NextLayer:
    """Last layer of the next branch: its node, and the sum that its outputs are added to."""

    node: LinearNode
    sum: str


class ResolvedWithout(DistanceWithout):
    """Distance of the outputs without blocks, with the next branch of each solved for the original's stream.

    Args:
        analysis: Coupling analysis of the model.
        calibration: Samples.
        count: Number of blocks that are scored.
        ridge: Value added to the diagonal of the moments, as a share of its mean.
        seed: Seed of the choice of positions.
        layer: Whether a loss is the error of the next sum, as a share of its variance, instead of the outputs'.
        remaining: Share of an output error that remains at the inputs once all layers behind are solved again.
    """

    def __init__(
        self, analysis: Analysis, calibration: Calibration, count: int, *, ridge: float, seed: int, layer: bool,
        remaining: float,
    ) -> None:  # fmt: skip
        self.compensation = Compensation(analysis, 1.0 if layer else remaining)
        self.ridge, self.seed, self.layer = ridge, seed, layer
        self.places = {n.outputs[0].name: i for i, n in enumerate(analysis.model.graph.nodes) if n.outputs}
        self._errors: dict[frozenset[str], float] = {frozenset(): 0.0}
        super().__init__(analysis, calibration, count)

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        found = super().losses(blocks, removed)
        return {b.name: self.compensation.at([b.output]) * found[b.name] for b in blocks}

    def _total(self, removed: Sequence[Block]) -> float:
        if not self.layer:
            return super()._total(removed)
        key = frozenset(b.name for b in removed)
        if key not in self._errors:
            self._model(removed)
        return self._errors[key]

    def _model(self, removed: Sequence[Block]) -> Model:
        """Return the model without blocks, the layers behind them solved one after the other, in graph order."""
        model = self.runs.without(removed)
        error, done = 0.0, set[str]()
        for block in sorted(removed, key=lambda b: self.places[b.output]):
            found = self._next(model, block, removed)
            if found is None:
                error += 1.0  # nothing behind it is solved
            elif found.sum not in done:
                done.add(found.sum)
                error += self._solve(model, found)
        self._errors[frozenset(b.name for b in removed)] = error
        return model

    def _next(self, model: Model, block: Block, removed: Sequence[Block]) -> _NextLayer | None:
        """Return the last layer of the first branch behind a block that remains and ends in a linear layer."""
        writers = {t.name: n for n in model.graph.nodes for t in n.outputs}
        outputs = frozenset(t.name for t in model.graph.outputs)
        gone = {b.name for b in removed}
        after = [b for b in self.runs.analysis.blocks if self.places[b.output] > self.places[block.output]]
        for other in sorted(after, key=lambda b: self.places[b.output]):
            if other.name in gone or other.output not in writers or not adds(writers[other.output]):
                continue
            node = _last_linear(writers.get(other.branch), writers, outputs)
            if node is not None and node.inputs * node.kernel <= _WIDEST:
                return _NextLayer(node, other.output)
        return None

    def _solve(self, model: Model, layer: _NextLayer) -> float:
        """Solve a layer for the difference of a sum from the original's; return the remaining share of its variance."""
        node, source = layer.node, layer.node.node.inputs[0].name
        size, width = node.inputs * node.kernel, node.outputs // node.groups
        samples = max(1, len(self.runs.feeds.data))
        wanted = ceil(max(_LEAST_ROWS, _ROWS * size) / samples)
        products, cross = np.zeros((node.groups, size, size)), np.zeros((node.groups, size, width))
        sums, missing = np.zeros((node.groups, size)), np.zeros((node.groups, width))
        squares, count, energy, mean = 0.0, 0, 0.0, np.zeros(node.outputs)
        now = self.runs.tensors(model, [source, layer.sum])
        then = self.runs.tensors(self.runs.analysis.model, [layer.sum])
        for i, (ours, theirs) in enumerate(zip(now, then, strict=True)):
            x, goal = ours[source], theirs[layer.sum]
            picks = picked_positions(node.count(x), wanted, self.runs.feeds.span(i).start, self.seed)
            rows = np.asarray(node.rows(x, picks), np.float64)
            target = np.asarray(node.picked(goal, picks), np.float64)
            gap = (target - node.picked(ours[layer.sum], picks)).reshape(-1, node.groups, width).swapaxes(0, 1)
            products += rows.swapaxes(1, 2) @ rows
            cross += rows.swapaxes(1, 2) @ gap
            sums += rows.sum(1)
            missing += gap.sum(1)
            squares += float(np.square(gap).sum())
            energy += float(np.square(target).sum())
            mean += target.sum(0)
            count += len(target)
        if not count:
            return 0.0
        shift = sums / count if node.intercept else np.zeros_like(sums)
        away = missing / count if node.intercept else np.zeros_like(missing)
        explained, change = 0.0, np.zeros_like(cross)
        for g in range(node.groups):
            moments = products[g] / count - np.outer(shift[g], shift[g])
            towards = cross[g] / count - np.outer(shift[g], away[g])
            change[g] = solved(damped(moments, self.ridge), towards)
            explained += float(np.sum(change[g] * (2 * towards - moments @ change[g])))
        explained += float(np.square(away).sum())
        moved = (away - np.einsum("gk,gko->go", shift, change)).ravel()
        bias = node.shift() + moved if node.intercept else None
        node.set_weights(node.matrix() + change, bias, set(model.graph.tensors()))
        variance = energy / count - float(np.square(mean / count).sum())
        return max(0.0, squares / count - explained) / variance if variance > 0 else 0.0


def _last_linear(node: gs.Node | None, writers: Mapping[str, gs.Node], outputs: frozenset[str]) -> LinearNode | None:
    """Return the linear layer whose outputs, with its bias, are the result of a branch; None if there is none."""
    if node is None:
        return None
    found = linear_node(node, outputs)
    if found is not None:
        return found if found.output == node.outputs[0].name else None
    if node.op != "Add":
        return None
    for t in node.inputs:
        source = None if isinstance(t, gs.Constant) else writers.get(t.name)
        found = linear_node(source, outputs) if source is not None else None
        if found is not None and found.output == node.outputs[0].name:
            return found
    return None


def check_block_samples(name: str, calibration: Calibration | None, *, labels: bool = False) -> Calibration:
    """Return the samples that a criterion needs for blocks.

    Raises:
        OnnxPruneError: There are none, or they have no labels.
    """
    if calibration is None:
        raise OnnxPruneError(f"criterion {name!r} needs data", fix="use --data, or calibration=Calibration(data)")
    if labels and calibration.data.y is None:
        raise OnnxPruneError(
            f"criterion {name!r} needs labels, and the data {calibration.data.name!r} has none",
            fix="add an array y, or choose a criterion without labels (`onnxprune criteria`)",
        )
    return calibration


def unit_vectors(values: Array, axis: int) -> Array:
    """Return values as float64 vectors of length 1 along an axis, 0 where they are 0."""
    wide = np.asarray(values, np.float64)
    length = np.sqrt(np.square(wide).sum(axis, keepdims=True))
    return np.asarray(np.divide(wide, length, out=np.zeros_like(wide), where=length > 0))
