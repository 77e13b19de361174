"""Optimal Brain Surgeon on channels: error of the next layers when a channel is removed and the rest re-solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.criteria.model_runs.block_losses import ResolvedWithout, check_block_samples
from onnxprune.criteria.model_runs.block_runs import BlockScorer
from onnxprune.criteria.model_runs.compensation import Compensation
from onnxprune.criteria.model_runs.consumer_errors import (
    ROWS,
    ConsumerStatistics,
    RemovalOrder,
    StatisticLimits,
    check_rows,
    consumer_probes,
    consumer_statistics,
    energy,
    ordered_scores,
)
from onnxprune.criteria.model_runs.output_effects import Ablation, output_effects
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe
from onnxprune.execution.gram import BlockOBS, Gram, resolved

WEIGHINGS = ("outputs", "layer")
AUTO = "auto"
REMAINING = 0.25  # share of an output error that remains at the inputs, unless it is given or chosen
LEVELS = (0.125, 0.25, 0.5, 0.75)  # removed shares of a group for which the effect on the outputs is measured


def removal_order(group: Group, known: Sequence[ConsumerStatistics], ridge: float) -> RemovalOrder:
    """Return the greedy removal order, with the remaining weights re-solved after each removal.

    Args:
        group: Group whose channels are ordered.
        known: Consumers of the group. Those with constant outputs on the samples are ignored.
        ridge: Regularization, see `onnxprune.execution.gram.damped`.
    """
    solvers: list[tuple[BlockOBS, float]] = []
    for reader in known:
        problems = list(reader.problems(group, centred=reader.centred))
        total = sum(energy(moments, weight) for moments, weight, _ in problems)
        if total > 0:
            solvers += [(BlockOBS(*problem, ridge), total) for problem in problems]
    left = np.arange(group.channels)
    order, rises = [], []
    while len(left):
        losses = np.zeros(group.channels)
        for solver, total in solvers:
            losses += solver.error_increases() / total
        best = int(np.argmin(losses[left]))
        order.append(int(left[best]))
        rises.append(float(losses[order[-1]]))
        left = np.delete(left, best)
        for solver, _ in solvers:
            solver.remove(order[-1])
    return RemovalOrder(np.array(order, np.int64), np.array(rises))


def levels(channels: int) -> list[int]:
    """Return the numbers of removed channels that are evaluated, ascending; none for a group of one."""
    return sorted({round(level * channels) for level in LEVELS} - {0, channels})


def ablations(
    group: Group, known: Sequence[ConsumerStatistics], order: RemovalOrder, ridge: float
) -> Iterator[Ablation]:
    """Yield the group without its first channels, its consumers re-solved; wide consumers are only masked."""
    for removed in levels(group.channels):
        gone = order.channels[:removed].tolist()
        weights: dict[str, tuple[Array, Array | None]] = {}
        for reader in known:
            node, statistic = reader.consumer.node, reader.statistic
            if not isinstance(statistic, Gram):
                continue
            old, new = node.matrix(), []
            for moments, weight, blocks in reader.problems(group, centred=reader.centred):
                new.append(resolved(moments, weight, np.concatenate([blocks[c] for c in gone]), ridge))
            shift = None
            if node.intercept:
                shift = node.shift() + np.einsum("gk,gko->go", statistic.mean, old - new).ravel()
            weights[node.node.outputs[0].name] = np.stack(new), shift
        yield Ablation(tuple(sorted(gone)), weights)


def scaled(order: RemovalOrder, effects: Mapping[int, float]) -> RemovalOrder:
    """Return an order with its error increases in units of output error, shared between evaluations in proportion.

    Args:
        order: Removal order with error increases in its own units.
        effects: Number of removed channels -> output error; an error below that of fewer channels is raised to it.
    """
    if not effects:
        return order
    removed = [0, *sorted(effects)]
    losses = np.maximum.accumulate([0.0, *(effects[n] for n in removed[1:])])
    rises = order.error_increases.copy()
    for i, (a, b) in enumerate(zip(removed, [*removed[1:], len(rises)], strict=True)):
        gap = float(order.error_increases[a:b].sum())  # a difference of running sums would cancel
        if i + 1 < len(removed):
            loss = float(losses[i + 1] - losses[i])
        else:  # extrapolate beyond the last evaluation at the average rate
            before = float(order.error_increases[:a].sum())
            loss = float(losses[i] * gap / before) if before > 0 else 0.0
        rises[a:b] = rises[a:b] * (loss / gap) if gap > 0 else loss / max(1, b - a)
    return RemovalOrder(order.channels, rises)


@register
@dataclass(frozen=True)
class Obs(DataCriterion):
    """`s_c`: increase of the consumers' squared error when channel c is removed in order and the rest is re-solved.

    Channels of a group are removed one by one, each time the one with the least error; the remaining weights are
    re-solved by least squares on the samples (`onnxprune.execution.gram.BlockOBS`). An error is a share of the layer's
    output energy, summed over the consumers of the group.

    With `weigh="outputs"` a few numbers of removed channels per group are evaluated, and the errors are scaled to the
    output errors of these evaluations: scores of all groups then share one unit. With `weigh="layer"` they do not.

    Output errors are measured with the consumers re-solved, but not the layers behind them, as `recover` does. Those
    take back a part of the error, the more of them the more: at the inputs `remaining` of it is left, in the middle its
    square root (`onnxprune.criteria.model_runs.compensation`). How much that is differs from model to model. "auto" is
    0.25; where the plan is recovered in the same call, it is the one of a few values whose plan is nearest to the
    original after a short recovery (`onnxprune.pipeline.compensation_choice`).

    Within a group the order is that of the removal; scores are made non-decreasing along it, so that the sum of the
    lowest n is the error of removing n channels.

    Args:
        weigh: "outputs" or "layer".
        ridge: Value added to the diagonal of the Gram matrices, as a share of its mean.
        rows: Output positions used of each consumer, over all samples.
        seed: Seed of the choice of positions.
        remaining: Share of an output error that remains at the inputs once all layers are re-solved; 1: all of it.
            "auto": see above.
    """

    weigh: str = "outputs"
    ridge: float = 1e-3
    rows: int = ROWS
    seed: int = 0
    remaining: float | str = AUTO

    name: ClassVar[str] = "obs"
    title: ClassVar[str] = "error of the next layers when the channel is removed and the rest re-solved"
    source: ClassVar[str] = "Hassibi & Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon"
    needs: ClassVar[str] = "data"
    limits: ClassVar[StatisticLimits] = StatisticLimits()
    default_reduce: ClassVar[str] = "sum"
    reductions: ClassVar[tuple[str, ...]] = ("sum",)
    default_normalize: ClassVar[str] = "none"
    default_allocator: ClassVar[str] = "saving"
    blocks_beside_channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.weigh not in WEIGHINGS:
            raise OnnxPruneError(
                f"obs: weigh must be one of {', '.join(WEIGHINGS)}, not {self.weigh!r}", fix="weigh=outputs"
            )
        for name, example in (("ridge", 0.001), ("remaining", REMAINING)):
            value = getattr(self, name)
            if name == "remaining" and value == AUTO:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-8 <= value <= 1:
                more = f" or {AUTO!r}" if name == "remaining" else ""
                raise OnnxPruneError(
                    f"obs: {name} must be a share from 1e-8 to 1{more}, not {value!r}", fix=f"{name}={example}"
                )
        check_rows("obs", self.rows)

    def least_samples(self, context: ScoringContext) -> int:
        """Return the least number of samples: variances need several."""
        return 8

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer:
        samples = check_block_samples(self.name, calibration)
        by_layer, share = self.weigh == "layer", _share(self.remaining)
        return ResolvedWithout(
            analysis, samples, count, ridge=self.ridge, seed=self.seed, layer=by_layer, remaining=share
        )

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        """Return Gram matrix probes of all consumers, if they fit into memory together."""
        return consumer_probes(context, self.rows, self.seed, self.limits)

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """Return one set of scores for each group."""
        scores = []
        compensation = Compensation(context.analysis, _share(self.remaining))
        for portion in consumer_statistics(context, probes, self.rows, self.seed, self.limits):
            orders = [(group, removal_order(group, known, self.ridge)) for group, known in portion]
            effects: dict[str, Mapping[int, float]] = {}
            if self.weigh == "outputs":
                tried = [
                    (g, ablations(g, known, o, self.ridge)) for (g, known), (_, o) in zip(portion, orders, strict=True)
                ]
                measured = output_effects(context, tried, sum(len(levels(g.channels)) for g in context.analysis.groups))
                for group, _ in portion:
                    share = compensation.of_group(group)
                    effects[group.name] = {n: share * error for n, error in measured[group.name].items()}
            for group, order in orders:
                scores.append(SiteScores(group.components, ordered_scores(scaled(order, effects.get(group.name, {})))))
        return scores


def is_open(scores: Scores) -> bool:
    """Return whether scores are of `obs` in units of the outputs, with `remaining` left open."""
    found = scores.criterion
    return found.get("name") == Obs.name and found.get("weigh") == "outputs" and found.get("remaining") == AUTO


def with_remaining(scores: Scores, remaining: float) -> Scores:
    """Return scores of `obs` in units of the outputs with another value of `remaining`.

    Scores of channels are those that `score` would return. Blocks keep their order.
    """
    analysis = scores.analysis
    before, after = (Compensation(analysis, r) for r in (_share(scores.criterion["remaining"]), remaining))
    groups = {
        name: values * (after.of_group(analysis[name]) / before.of_group(analysis[name]))
        for name, values in scores.groups.items()
    }
    blocks = {}
    for name, loss in scores.blocks.items():
        output = analysis.block(name).output
        blocks[name] = loss * (after.at([output]) / before.at([output]))
    return replace(scores, groups=groups, blocks=blocks, criterion={**scores.criterion, "remaining": remaining})


def _share(remaining: float | str) -> float:
    return REMAINING if remaining == AUTO else float(remaining)
