"""A criterion of the largest weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.criteria import Criterion
from onnxprune.criteria.base import Array


@dataclass(frozen=True)
class Linf(Criterion):
    """`s_f = max |w_f|`: the largest absolute weight of filter f."""

    name: ClassVar[str] = "linf"
    title: ClassVar[str] = "largest absolute weight of the filter"
    source: ClassVar[str] = "the example of onnxprune's documentation"
    rowwise: ClassVar[bool] = True
    default_normalize: ClassVar[str] = "mean"

    def score_rows(self, rows: Array, tensor: str) -> Array:
        """`[filters, n]` float64 -> `[filters]`, higher = keep."""
        largest: Array = np.abs(rows, out=rows).max(axis=1)
        return largest
