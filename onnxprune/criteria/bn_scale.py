"""Network slimming: the scale of a BatchNorm channel as its importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, Criterion


@register
@dataclass(frozen=True)
class BnScale(Criterion):
    """`s_c = |gamma_c|`, `[C] -> [C]`. Needs BatchNormalization nodes that are not folded into their convolutions.

    Exporters fold them by default; `insert_batchnorm` inserts new ones.
    """

    name: ClassVar[str] = "bn_scale"
    title: ClassVar[str] = "absolute BatchNorm scale of the channel"
    source: ClassVar[str] = "Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming"
    reads: ClassVar[str] = "bn_scale"
    # The paper sorts the raw scales of all layers together: after BatchNorm every channel has unit variance, so
    # |gamma| already is the standard deviation of its output.
    default_normalize: ClassVar[str] = "none"

    def score_rows(self, rows: Array, tensor: str) -> Array:
        return np.abs(rows[:, 0])
