"""D-Score, D-Step and D-Step GM: separate ranks of the positive and the negative weights of a filter.

For filter f with positive part `w+ = max(w, 0)` and negative part `w- = max(-w, 0)` there are two quantities P_f and
Q_f. `rank` is the position in the ascending stable order (0-based; of equal values the lower index comes first).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, Criterion
from onnxprune.criteria.geometric_median import distance_sums

Ranks = NDArray[np.int64]


def ranks(values: Array) -> Ranks:
    """Return the position of every value in the ascending stable order, `[n] -> [n]`."""
    order = np.argsort(values, kind="stable")
    positions = np.empty(len(values), dtype=np.int64)
    positions[order] = np.arange(len(values))
    return positions


def sign_sums(rows: Array) -> tuple[Array, Array]:
    """Return `P_f = sum w_f+` and `Q_f = sum w_f-`, `[filters, n] -> [filters]` each."""
    return np.maximum(rows, 0.0).sum(axis=1), np.maximum(-rows, 0.0).sum(axis=1)


def sign_distance_sums(rows: Array) -> tuple[Array, Array]:
    """Return `P_f = sum_g ||w_f+ - w_g+||_2` and `Q_f = sum_g ||w_f- - w_g-||_2`, `[filters, n] -> [filters]` each."""
    return distance_sums(np.maximum(rows, 0.0)), distance_sums(np.maximum(-rows, 0.0))


def step_keys(rank_pos: Ranks, rank_neg: Ranks) -> Array:
    """Return one number per filter, ordered by the larger rank, then by the rank sum. `[n], [n] -> [n]`.

    D-Step selects the filters among the first j of *both* orders, for growing j. Filter f is selected at
    `j = max(rank P, rank Q) + 1`, hence the first key. The rank sum is below `2 n`, so
    `max * 2n + sum` separates both keys, in whole numbers that float64 represents exactly (n < 6e7).
    """
    base = 2 * len(rank_pos)
    return (np.maximum(rank_pos, rank_neg) * base + rank_pos + rank_neg).astype(np.float64)


@register
@dataclass(frozen=True)
class DScore(Criterion):
    """`s_f = rank(P)_f + rank(Q)_f` with `P = sum w+`, `Q = sum w-`. Whole numbers; ties are common."""

    name: ClassVar[str] = "dscore"
    title: ClassVar[str] = "sum of the filter's ranks by positive and by negative weights"
    source: ClassVar[str] = "Park & Kim 2022; Park et al. 2023, D-Score: A Synapse-Inspired Approach for Filter Pruning"
    default_normalize: ClassVar[str] = "max"  # ranks depend on the width alone; over the largest, shares are equal

    def score_rows(self, rows: Array, tensor: str) -> Array:
        positive, negative = sign_sums(rows)
        return (ranks(positive) + ranks(negative)).astype(np.float64)


@register
@dataclass(frozen=True)
class DStep(Criterion):
    """Order by `max(rank P, rank Q)`, then by `rank P + rank Q`, with `P = sum w+`, `Q = sum w-` (see `step_keys`)."""

    name: ClassVar[str] = "dstep"
    title: ClassVar[str] = "larger of the filter's ranks by positive and by negative weights, then their sum"
    source: ClassVar[str] = DScore.source
    default_normalize: ClassVar[str] = "max"  # as for dscore

    def score_rows(self, rows: Array, tensor: str) -> Array:
        positive, negative = sign_sums(rows)
        return step_keys(ranks(positive), ranks(negative))


@register
@dataclass(frozen=True)
class DStepGm(Criterion):
    """D-Step on distances: `P_f = sum_g ||w_f+ - w_g+||`, `Q_f = sum_g ||w_f- - w_g-||`; central filters first."""

    name: ClassVar[str] = "dstep_gm"
    title: ClassVar[str] = "D-Step on the summed distances of the positive and the negative parts"
    source: ClassVar[str] = DScore.source
    default_normalize: ClassVar[str] = "max"  # as for dscore

    def score_rows(self, rows: Array, tensor: str) -> Array:
        positive, negative = sign_distance_sums(rows)
        return step_keys(ranks(positive), ranks(negative))
