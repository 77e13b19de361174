"""Magnitude criteria: norms of a filter's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, Criterion


def l2_norms(rows: Array) -> Array:
    """Return `sqrt(sum_k rows[f, k]^2)`, `[filters, n] -> [filters]`."""
    norms: Array = np.sqrt(np.square(rows).sum(axis=1))
    return norms


@register
@dataclass(frozen=True)
class L1(Criterion):
    """`s_f = sum |w_f|`: the absolute sum of filter f (PFEC)."""

    name: ClassVar[str] = "l1"
    title: ClassVar[str] = "sum of the absolute weights of the filter"
    source: ClassVar[str] = "Li et al. 2017, Pruning Filters for Efficient ConvNets"
    rowwise: ClassVar[bool] = True
    default_normalize: ClassVar[str] = "mean"  # layers differ in fan-in, hence in the scale of their weights

    def score_rows(self, rows: Array, tensor: str) -> Array:
        total: Array = np.abs(rows, out=rows).sum(axis=1)
        return total


@register
@dataclass(frozen=True)
class L2(Criterion):
    """`s_f = sqrt(sum w_f^2)`: the Euclidean norm of filter f."""

    name: ClassVar[str] = "l2"
    title: ClassVar[str] = "Euclidean norm of the filter"
    source: ClassVar[str] = "He et al. 2018, Soft Filter Pruning for Accelerating Deep CNNs"
    rowwise: ClassVar[bool] = True
    default_normalize: ClassVar[str] = "mean"  # as for l1

    def score_rows(self, rows: Array, tensor: str) -> Array:
        norms: Array = np.sqrt(np.square(rows, out=rows).sum(axis=1))
        return norms
