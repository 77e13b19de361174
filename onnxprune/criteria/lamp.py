"""LAMP: magnitude of a filter as a share of the filters at least as strong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, Criterion
from onnxprune.criteria.normalize import lamp_ratio


@register
@dataclass(frozen=True)
class Lamp(Criterion):
    """`s_f = ||w_f||^2 / sum ||w_g||^2` over f and all filters g that rank above f by norm.

    The paper's score for single weights, applied to filters. Within a layer the order is that of `l2`; the strongest
    filter of each layer scores 1, so a global ranking empties no layer before all others have one filter left.
    """

    name: ClassVar[str] = "lamp"
    title: ClassVar[str] = "squared norm as a share of the filters that are at least as strong"
    source: ClassVar[str] = "Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning"
    default_normalize: ClassVar[str] = "none"  # comparable across layers by construction

    def score_rows(self, rows: Array, tensor: str) -> Array:
        return lamp_ratio(np.square(rows).sum(axis=1))
