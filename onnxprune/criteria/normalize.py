"""Normalization of scores, which makes layers comparable in one global ranking.

With `s` the scores of one group and `|s|` their absolute values (scores are seldom negative; dividing by a negative
mean would reverse the order):

| name     | normalized score of filter f                  | effect                                         |
|----------|-----------------------------------------------|------------------------------------------------|
| none     | `s_f`                                         | none: the scores already share a scale         |
| mean     | `s_f / mean(|s|)`                             | removes the scale of the layer                 |
| max      | `s_f / max(|s|)`                              | removes the scale, by the strongest filter     |
| sum      | `s_f / sum(|s|)`                              | removes scale and width: wide layers lose more |
| gaussian | `(s_f - mean(s)) / std(s)`, population std    | removes scale and spread                       |
| lamp     | `s_f / (sum of s over f and all ranked above)` | share of the remaining; the best is always 1  |

The order within the group never changes. A group of zeros stays zero; a constant group is 0 under `gaussian`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune._utils.registry import Registry
from onnxprune.errors import OnnxPruneError

Array = NDArray[np.float64]


def normalize(scores: NDArray[Any], how: str) -> Array:
    """Normalize the scores `[filters]` of one group by a method of the table above; return a new float64 array.

    Raises:
        OnnxPruneError: Unknown method, empty or non-finite scores, or negative ones under `lamp`.
    """
    method = METHODS[how]
    s = np.array(scores, dtype=np.float64)
    if s.ndim != 1 or s.size == 0:
        raise OnnxPruneError(f"scores to normalize must be a non-empty vector, not {list(s.shape)}")
    if not np.isfinite(s).all():
        raise OnnxPruneError("scores to normalize contain NaN or infinity")
    return method(s)


def lamp_ratio(scores: Array) -> Array:
    """Return each score over the sum of itself and all that rank above it (Lee et al. 2021, for squared norms).

    `[n] -> [n]`, scores >= 0. Ranks are those of the ascending stable order: of equal scores the lower index ranks
    below, so it gets the smaller ratio.
    """
    if scores.min() < 0:
        raise OnnxPruneError("the lamp normalization needs scores >= 0", fix="choose mean, max, sum or gaussian")
    order = np.argsort(scores, kind="stable")
    ascending = _unit(scores)[order]
    left = np.cumsum(ascending[::-1])[::-1]
    ratio = np.empty_like(scores)
    ratio[order] = np.divide(ascending, left, out=np.zeros_like(left), where=left != 0)
    return ratio


def _unit(s: Array) -> Array:
    """Divide by the largest absolute value, so that later sums and means neither overflow nor vanish."""
    top = float(np.abs(s).max())
    return s / (top or 1.0)


def _mean(s: Array) -> Array:
    u = _unit(s)
    return u / float(np.abs(u).mean() or 1.0)


def _sum(s: Array) -> Array:
    u = _unit(s)
    return u / float(np.abs(u).sum() or 1.0)


def _gaussian(s: Array) -> Array:
    u = _unit(s)  # equal scores become exactly 1, so their std is exactly 0
    return (u - float(u.mean())) / float(u.std() or 1.0)


METHODS: Registry[str, Callable[[Array], Array]] = Registry("normalization")
for _name, _method in {
    "none": lambda s: s, "mean": _mean, "max": _unit, "sum": _sum, "gaussian": _gaussian, "lamp": lamp_ratio,
}.items():  # fmt: skip
    METHODS.add(_name, _method)
