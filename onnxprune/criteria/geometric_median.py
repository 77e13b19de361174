"""FPGM: filters nearest to the layer's geometric median, which the other filters can replace."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, Criterion
from onnxprune.criteria.norms import l2_norms
from onnxprune.errors import OnnxPruneError

# Rows per step: a [128, N] block of distances fits in the cache, and only about half of the N x N pairs are computed.
_BLOCK = 128
# The Gram form has an error of about 1e-15 (at worst n * 1e-16) times |a|^2 + |b|^2 in the squared distance. Above
# this share of |a|^2 + |b|^2 the distance is accurate to about 1e-9; below it, the pair's difference is used.
_NEAR = 1e-5
PAIR_VALUES = 1 << 20  # values per chunk of such differences: 8 MB


def distance_sums(rows: Array, *, pair_values: int = PAIR_VALUES) -> Array:
    """Return `d_f = sum_g ||rows_f - rows_g||_2`, `[filters, n] -> [filters]`, bit-identical in any order of the rows.

    Distances come from `|a|^2 + |b|^2 - 2 a.b`, one matrix product, an order of magnitude faster than the differences.
    Equal rows are merged (and counted) first: their distance is exactly 0, their scores are equal, and the sorting that
    finds them fixes the order of summation. Near-equal rows, where the form above cancels, use their differences.

    Args:
        rows: Filters, flattened.
        pair_values: Most values of such differences at a time.
    """
    rows = np.ascontiguousarray(rows) + 0.0  # converts -0.0 to 0.0: equal numbers must have equal bytes
    as_bytes = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    _, first, inverse, counts = np.unique(as_bytes, return_index=True, return_inverse=True, return_counts=True)
    merged, weights = rows[first], counts.astype(np.float64)
    squares = np.square(merged).sum(axis=1)
    sums = np.zeros(len(merged))
    for start in range(0, len(merged), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(merged)))
        rest = slice(start, len(merged))  # earlier blocks counted the pairs with earlier rows, both ways
        distances = _block_distances(merged, squares, block, rest, pair_values)
        width = distances.shape[0]
        sums[block] += distances @ weights[rest]
        sums[block.stop :] += weights[block] @ distances[:, width:]
    return sums[inverse]


def _block_distances(rows: Array, squares: Array, block: slice, rest: slice, pair_values: int) -> Array:
    """Return the distances of the rows in `block` to those in `rest`, which begins with the block itself."""
    scale = squares[block, None] + squares[None, rest]
    squared = scale - 2.0 * (rows[block] @ rows[rest].T)
    near = squared < _NEAR * scale  # includes the diagonal, and squares that rounding made negative
    left, right = np.nonzero(near)
    step = max(1, pair_values // rows.shape[1])
    for at in range(0, len(left), step):
        i, j = left[at : at + step], right[at : at + step]
        squared[i, j] = np.square(rows[block][i] - rows[rest][j]).sum(axis=1)
    return np.sqrt(squared, out=squared)


@register
@dataclass(frozen=True)
class Fpgm(Criterion):
    """`s_f = sum_g ||w_f - w_g||_2` over the filters g of the layer: the most central filter is removed first.

    FPGM-mix: with `mix_norm = r`, the `floor(r * filters)` filters of smallest L2 norm rank below all others, in the
    order of their norms; the rest follow by their distance sums among themselves. Removing a share `r + q` is then
    the paper's mix of a norm rate r and a distance rate q. The former have scores below 0, the latter >= 0.

    Args:
        mix_norm: Share r of filters ranked by norm, `0 <= r < 1`; 0 is plain FPGM.
    """

    mix_norm: float = 0.0

    name: ClassVar[str] = "fpgm"
    title: ClassVar[str] = "summed distance to the other filters of the layer (mix_norm: smallest norms first)"
    source: ClassVar[str] = "He et al. 2019, Filter Pruning via Geometric Median for Deep CNNs Acceleration"
    default_normalize: ClassVar[str] = "mean"  # the sum grows with the layer's width and the scale of its weights

    def __post_init__(self) -> None:
        if isinstance(self.mix_norm, bool) or not isinstance(self.mix_norm, int | float) or not 0 <= self.mix_norm < 1:
            raise OnnxPruneError(
                f"fpgm: mix_norm must be a share in [0, 1), not {self.mix_norm!r}",
                fix="for example mix_norm=0.1",
            )

    def score_rows(self, rows: Array, tensor: str) -> Array:
        # Use the decimal that the user wrote: in binary 0.29 * 100 is below 29.
        count = int(Fraction(str(self.mix_norm)) * len(rows))
        if count == 0:
            return distance_sums(rows)
        by_norm: NDArray[np.intp] = np.argsort(l2_norms(rows), kind="stable")
        kept = by_norm[count:]
        scores = np.empty(len(rows))
        scores[kept] = distance_sums(rows[kept])
        # -1 .. -1/count in the order of the norms, times a typical distance sum: all scores then scale with the
        # weights, and neither part dominates when the tensors of a group are averaged.
        typical = scores[kept].mean() or 1.0
        scores[by_norm[:count]] = -typical * np.arange(count, 0, -1) / count
        return scores
