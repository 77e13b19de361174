"""The surgeon on whole channels: what the next layers lose when a channel goes and the rest is solved for anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.calibration import Probe
from onnxprune.coupling import Group
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.criteria.output_effects import Ablation, output_effects
from onnxprune.criteria.readers import (
    ROWS,
    ConsumerStatistics,
    RemovalOrder,
    check_rows,
    consumer_probes,
    consumer_statistics,
    energy,
    ordered_scores,
)
from onnxprune.criteria.registry import register
from onnxprune.errors import OnnxPruneError
from onnxprune.gram import BlockOBS, Gram, resolved

WEIGHINGS = ("outputs", "layer")
LEVELS = (0.125, 0.25, 0.5, 0.75)  # shares of a group at which its effect on the outputs is measured


def removal_order(group: Group, known: Sequence[ConsumerStatistics], ridge: float) -> RemovalOrder:
    """Greedy removal with all that is left re-solved after each.

    Args:
        group: whose channels.
        known: the layers that read it. Those whose outputs are constant on the samples do not count.
        ridge: see `onnxprune.gram.damped`.
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
    """Numbers of channels that are tried, ascending; none for a group of one."""
    return sorted({round(level * channels) for level in LEVELS} - {0, channels})


def ablations(
    group: Group, known: Sequence[ConsumerStatistics], order: RemovalOrder, ridge: float
) -> Iterator[Ablation]:
    """A group without its first channels, the weights of its readers solved anew; wide readers are only masked."""
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
    """Rises in units of what the outputs lose: between two trials they are shared in proportion to the errors.

    Args:
        order: with rises in units of its own.
        effects: channels gone -> what the outputs lose; a loss below that of fewer channels is taken as equal to it.
    """
    if not effects:
        return order
    removed = [0, *sorted(effects)]
    losses = np.maximum.accumulate([0.0, *(effects[n] for n in removed[1:])])
    rises = order.error_increases.copy()
    for i, (a, b) in enumerate(zip(removed, [*removed[1:], len(rises)], strict=True)):
        gap = float(order.error_increases[a:b].sum())  # not a difference of running sums, which cancels
        if i + 1 < len(removed):
            loss = float(losses[i + 1] - losses[i])
        else:  # beyond the last trial the losses go on as they did so far
            before = float(order.error_increases[:a].sum())
            loss = float(losses[i] * gap / before) if before > 0 else 0.0
        rises[a:b] = rises[a:b] * (loss / gap) if gap > 0 else loss / max(1, b - a)
    return RemovalOrder(order.channels, rises)


@register
@dataclass(frozen=True)
class Obs(DataCriterion):
    """`s_c`: rise of the readers' squared error when channel c goes, after those before it, and the rest is re-solved.

    Channels of a group go one by one, each time the one whose loss is least; the weights of what is left follow by
    least squares on the samples (`onnxprune.gram.BlockOBS`). An error is a share of the layer's output energy, summed
    over the layers that read the group.

    With `weigh="outputs"` some numbers of channels of each group are tried, and the errors are scaled to what the
    model's outputs lose in these trials: scores of all groups then share one unit. With `weigh="layer"` they do not.

    Within a group the order is that of the removal; scores are made non-decreasing along it, so that the sum of the
    lowest ones is what that many channels cost.

    Args:
        weigh: "outputs" or "layer".
        ridge: added to the diagonal of the Gram matrices, as a share of its mean.
        rows: output positions of each reading layer looked at, in all samples together.
        seed: of their choice.
    """

    weigh: str = "outputs"
    ridge: float = 1e-3
    rows: int = ROWS
    seed: int = 0

    name: ClassVar[str] = "obs"
    title: ClassVar[str] = "what the next layers lose when the channel goes and the rest is re-solved"
    source: ClassVar[str] = "Hassibi & Stork 1993, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon"
    needs: ClassVar[str] = "data"
    default_reduce: ClassVar[str] = "sum"
    reductions: ClassVar[tuple[str, ...]] = ("sum",)
    default_normalize: ClassVar[str] = "none"
    default_allocator: ClassVar[str] = "saving"

    def __post_init__(self) -> None:
        if self.weigh not in WEIGHINGS:
            raise OnnxPruneError(
                f"obs: weigh must be one of {', '.join(WEIGHINGS)}, not {self.weigh!r}", fix="weigh=outputs"
            )
        if isinstance(self.ridge, bool) or not isinstance(self.ridge, int | float) or not 1e-8 <= self.ridge <= 1:
            raise OnnxPruneError(f"obs: ridge must be a share from 1e-8 to 1, not {self.ridge!r}", fix="ridge=0.001")
        check_rows("obs", self.rows)

    def least_samples(self, context: ScoringContext) -> int:
        """Variances need some."""
        return 8

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        """Gram matrices of all readers, if memory holds them together."""
        return consumer_probes(context, self.rows, self.seed)

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """One set of scores for each group."""
        scores = []
        for portion in consumer_statistics(context, probes, self.rows, self.seed):
            orders = [(group, removal_order(group, known, self.ridge)) for group, known in portion]
            effects: Mapping[str, Mapping[int, float]] = {}
            if self.weigh == "outputs":
                tried = [
                    (g, ablations(g, known, o, self.ridge)) for (g, known), (_, o) in zip(portion, orders, strict=True)
                ]
                effects = output_effects(context, tried, sum(len(levels(g.channels)) for g in context.analysis.groups))
            for group, order in orders:
                scores.append(SiteScores(group.components, ordered_scores(scaled(order, effects.get(group.name, {})))))
        return scores
