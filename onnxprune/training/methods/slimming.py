"""Network slimming: an L1 penalty on BatchNorm scales."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from torch import Tensor

from onnxprune.training.methods._base import check_number
from onnxprune.training.methods._batchnorm_scales import ScaleMethod


@dataclass
class Slimming(ScaleMethod):
    """`strength * sum |gamma_c|` over the BatchNorm scales of all channels that can be removed.

    The plan is one threshold on |gamma| over all layers, as by the criterion `bn_scale`.

    Args:
        strength: the paper's lambda, 1e-4 (1e-5 for VGG-16) with training from scratch over 160 epochs. A few epochs
            on a trained network need more, 1e-3 to 1e-2.
    """

    strength: float = 1e-4

    name: ClassVar[str] = "slimming"
    title: ClassVar[str] = "L1 penalty on BatchNorm scales (network slimming)"
    source: ClassVar[str] = "Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming"

    def __post_init__(self) -> None:
        check_number(self.name, "strength", self.strength, 0, inf)

    def penalty(self) -> Tensor:
        """Return the penalty, a scalar."""
        return self.strength * self.gammas().abs().sum()
