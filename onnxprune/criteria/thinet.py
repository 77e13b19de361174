"""ThiNet: greedy choice of the channels whose removal changes the next layer's output least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.coupling import Group
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
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
from onnxprune.execution.calibration import Probe


def contribution_moments(moments: Array, weight: Array, blocks: Sequence[NDArray[np.int64]]) -> Array:
    """Return `M_cd = E[<z_c, z_d>]` of contributions of channels c and d to the outputs, `z_c = x_c W_c`.

    Args:
        moments: `E[x x']` of the inputs, [n, n].
        weight: [n, outputs].
        blocks: Indices of each channel's inputs.

    Returns:
        [channels, channels].
    """
    product = moments * (weight @ weight.T)
    owner = np.zeros((len(moments), len(blocks)))
    for c, block in enumerate(blocks):
        owner[block, c] = 1.0
    return np.asarray(owner.T @ product @ owner)


def greedy_order(contributions: Array) -> RemovalOrder:
    """Return the greedy removal order: each next channel minimizes `sum_{c,d in T} M_cd` of the removed set T.

    Args:
        contributions: M, [channels, channels].
    """
    left = list(range(len(contributions)))
    order, rises = [], []
    crossed = np.zeros(len(contributions))  # 2 * sum of M_cd over the removed d
    while left:
        rise = np.diag(contributions)[left] + crossed[left]
        best = int(np.argmin(rise))
        rises.append(float(rise[best]))
        order.append(left.pop(best))
        crossed += 2 * contributions[order[-1]]
    return RemovalOrder(np.array(order, np.int64), np.array(rises))


@register
@dataclass(frozen=True)
class ThiNet(DataCriterion):
    """`s_c`: increase of the consumers' squared error when channel c is removed after those before it, not re-solved.

    The set T of channels to remove grows by the one that minimizes `sum over samples of (sum_{c in T} x_c W_c)^2`.
    The paper samples single outputs of the next layer; here all outputs at the sampled positions count, by their second
    moments. An error is a share of the layer's output energy, summed over the consumers of the group. (The paper's
    factors on kept channels are a recovery: see the pass `reconstruct_weights`.)

    Args:
        rows: Output positions used of each consumer, over all samples.
        seed: Seed of the choice of positions.
    """

    rows: int = ROWS
    seed: int = 0

    name: ClassVar[str] = "thinet"
    title: ClassVar[str] = "error of the next layer when the channel is removed, chosen greedily"
    source: ClassVar[str] = "Luo et al. 2017, ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression"
    needs: ClassVar[str] = "data"
    limits: ClassVar[StatisticLimits] = StatisticLimits()
    default_reduce: ClassVar[str] = "sum"
    reductions: ClassVar[tuple[str, ...]] = ("sum",)
    default_normalize: ClassVar[str] = "none"  # already shares of output energy
    default_allocator: ClassVar[str] = "uniform"  # good order within a layer, poor ranking across layers

    def __post_init__(self) -> None:
        check_rows("thinet", self.rows)

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        """Return Gram matrix probes of all consumers, if they fit into memory together."""
        return consumer_probes(context, self.rows, self.seed, self.limits)

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """Return one set of scores for each group."""
        return [
            SiteScores(group.components, ordered_scores(greedy_order(_contributions(group, known))))
            for portion in consumer_statistics(context, probes, self.rows, self.seed, self.limits)
            for group, known in portion
        ]


def _contributions(group: Group, known: Sequence[ConsumerStatistics]) -> Array:
    total = np.zeros((group.channels, group.channels))
    for reader in known:
        spread = sum(energy(moments, weight) for moments, weight, _ in reader.problems(group, centred=True))
        if spread > 0:
            for problem in reader.problems(group, centred=False):
                total += contribution_moments(*problem) / spread
    return total
