"""Threshold of scales that a regularizer has pushed apart: the valley between two clusters."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.errors import OnnxPruneError

_NOTHING = 1e-2  # as a share of the largest: smaller values count as equal
_LEAST = 0.05  # smallest share of the values in a cluster
_SEPARATED = 0.83  # share of the variance that a split into two clusters must explain
_APART = np.log(2)
_BINS = 64


def valley(values: npt.NDArray[Any]) -> float:
    """Return the threshold between two clusters of values.

    The paper (Zhuang et al. 2020) scans a histogram of 100 bins for its first local minimum. With few channels every
    histogram has chance minima, and a single cluster has them too, so here:

    1. Values are transformed to `z = log(v / max v + 0.01)`: clusters differ by their order of magnitude.
    2. The split of z that explains most of its variance is found (Otsu 1979), with at least 5 % of the values on each
       side. A uniform density scores 0.75 at most, a normal one 0.64; below 0.83, or where the sides' means differ by
       less than a factor of two, there is no valley.
    3. The threshold is the middle of the widest run of emptiest bins, of 64 between the means of the two sides.

    Args:
        values: [n], >= 0.

    Returns:
        a number v that separates the two clusters.

    Raises:
        OnnxPruneError: there is only one cluster.
    """
    v = np.asarray(values, np.float64)
    top = float(v.max(initial=0.0))
    n = len(v)
    least = max(1, ceil(_LEAST * n))
    z = np.sort(np.log(v / (top or 1.0) + _NOTHING))
    if n < 2 or not z.var() > 0:
        raise _none()
    below = np.arange(1, n)
    sums = np.cumsum(z)
    left, right = sums[:-1] / below, (sums[-1] - sums[:-1]) / (n - below)
    explained = below * (n - below) / n**2 * (right - left) ** 2 / z.var()
    explained[(below < least) | (n - below < least)] = 0.0
    best = int(np.argmax(explained))
    if explained[best] < _SEPARATED or right[best] - left[best] < _APART:
        raise _none()
    counts, edges = np.histogram(z, _BINS, (left[best], right[best]))
    emptiest = np.concatenate([[0], counts == counts.min(), [0]])
    starts, stops = np.flatnonzero(np.diff(emptiest)).reshape(-1, 2).T
    widest = int(np.argmax(stops - starts))
    middle = (edges[starts[widest]] + edges[stops[widest]]) / 2
    return float((np.exp(middle) - _NOTHING) * top)


def _none() -> OnnxPruneError:
    return OnnxPruneError(
        "the scales have no valley: they are one heap, not one of small and one of large values",
        fix="set a budget (--target macs=0.5, --ratio 0.3), or train longer or with more strength",
    )
