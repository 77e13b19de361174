"""ThiNet: the channels that the next layer's output misses least, found greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Probe
from onnxprune.coupling import Group
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
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


def contribution_moments(moments: Array, weight: Array, blocks: Sequence[NDArray[np.int64]]) -> Array:
    """`M_cd = E[<z_c, z_d>]` of what channels c and d add to the outputs, `z_c = x_c W_c`: [channels, channels].

    Args:
        moments: `E[x x']` of the inputs, [n, n].
        weight: [n, outputs].
        blocks: indices of each channel's inputs.
    """
    product = moments * (weight @ weight.T)
    owner = np.zeros((len(moments), len(blocks)))
    for c, block in enumerate(blocks):
        owner[block, c] = 1.0
    return np.asarray(owner.T @ product @ owner)


def greedy_order(contributions: Array) -> RemovalOrder:
    """Channels in the order in which their sum is missed least: each next one minimises `sum_{c,d in T} M_cd`.

    Args:
        contributions: M, [channels, channels].
    """
    left = list(range(len(contributions)))
    order, rises = [], []
    crossed = np.zeros(len(contributions))  # 2 * sum of M_cd over the d that are gone
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
    """`s_c`: rise of the readers' squared error when channel c goes after those before it, nothing re-solved.

    The set T of channels to remove grows by the one that keeps `sum over samples of (sum_{c in T} x_c W_c)^2` least.
    The paper samples single outputs of the next layer; here all outputs at the sampled positions count, by their second
    moments. An error is a share of the layer's output energy, summed over the layers that read the group. (The paper's
    factors on what is kept are a recovery: see the pass `reconstruct_weights`.)

    Args:
        rows: output positions of each reading layer looked at, in all samples together.
        seed: of their choice.
    """

    rows: int = ROWS
    seed: int = 0

    name: ClassVar[str] = "thinet"
    title: ClassVar[str] = "what the next layer's output misses when the channel goes, found greedily"
    source: ClassVar[str] = "Luo et al. 2017, ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression"
    needs: ClassVar[str] = "data"
    default_reduce: ClassVar[str] = "sum"
    reductions: ClassVar[tuple[str, ...]] = ("sum",)
    default_normalize: ClassVar[str] = "none"  # shares of output energy already
    default_allocator: ClassVar[str] = "uniform"  # orders a layer well, ranks layers against each other badly

    def __post_init__(self) -> None:
        check_rows("thinet", self.rows)

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        """Gram matrices of all readers, if memory holds them together."""
        return consumer_probes(context, self.rows, self.seed)

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """One set of scores for each group."""
        return [
            SiteScores(group.components, ordered_scores(greedy_order(_contributions(group, known))))
            for portion in consumer_statistics(context, probes, self.rows, self.seed)
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
