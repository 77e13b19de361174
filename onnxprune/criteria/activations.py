"""Criteria from statistics of a channel's activation on data: share of zeros, mean, variance.

All measure the feature map that the next layer reads: after the nonlinearity and after residual additions (see
`onnxprune.analysis.feature_maps`, "active"). An export with BatchNorm and one with it folded therefore score alike, up
to rounding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.feature_maps import FeatureSite, feature_sites
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.execution.calibration import Probe, Statistic
from onnxprune.execution.channel_moments import Moments


class ZeroCounts(Statistic):
    """Number of values of each channel that are exactly zero, over samples and positions.

    Args:
        axis: Axis of the channels.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self.zeros: NDArray[np.int64] = np.zeros(1, np.int64)  # grows to [channels]
        self.count = 0

    def add(self, values: NDArray[np.floating], samples: range) -> None:
        """Count the zeros of the tensor `[samples * k, ...]`."""
        self.zeros = self.zeros + (values == 0).sum(tuple(i for i in range(values.ndim) if i != self.axis))
        self.count += values.size // max(1, values.shape[self.axis])

    @property
    def share(self) -> Array:
        """Return APoZ, the share of zeros: [channels] float64, from 0 to 1."""
        return np.asarray(self.zeros / self.count, np.float64)


@register
@dataclass(frozen=True)
class Apoz(DataCriterion):
    """`s_c = 1 - APoZ_c`, with `APoZ_c` the share of zeros among all samples and positions of channel c's activation.

    For Relu and similar functions. Activations that are never exactly zero (SiLU, GELU, LeakyRelu) make every score 1
    or nearly 1: channels are then removed by index, and another criterion is needed.
    """

    name: ClassVar[str] = "apoz"
    title: ClassVar[str] = "share of the activation that is not zero (1 - average percentage of zeros)"
    source: ClassVar[str] = "Hu et al. 2016, Network Trimming: A Data-Driven Neuron Pruning Approach"
    needs: ClassVar[str] = "data"
    default_normalize: ClassVar[str] = "none"  # a share is on the same scale in every layer

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        return [Probe(s.tensor, ZeroCounts(s.axis)) for s in _sites(context)]

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        found = []
        for site, probe in zip(_sites(context), probes, strict=True):
            assert isinstance(probe.statistic, ZeroCounts)
            found.append(SiteScores(site.components, 1 - probe.statistic.share))
        return found


class _FromMoments(DataCriterion):
    """Criterion whose score is one of a channel's moments."""

    needs: ClassVar[str] = "data"
    default_normalize: ClassVar[str] = "mean"  # activations of different layers have different scales

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        return [Probe(s.tensor, Moments(s.tensor, s.axis)) for s in _sites(context)]

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        found = []
        for site, probe in zip(_sites(context), probes, strict=True):
            assert isinstance(probe.statistic, Moments)
            found.append(SiteScores(site.components, self.of(probe.statistic)))
        return found

    @abstractmethod
    def of(self, moments: Moments) -> Array:
        """Return the moment, [channels]."""


@register
@dataclass(frozen=True)
class ActivationMean(_FromMoments):
    """`s_c = mean of a_c` over samples and positions, a_c the activation of channel c.

    The mean itself, as in the paper, not that of absolute values: both are the same after Relu. If activations can be
    negative (LeakyRelu, SiLU, no nonlinearity) values of both signs cancel, and scores below 0 are possible.
    """

    name: ClassVar[str] = "act_mean"
    title: ClassVar[str] = "mean of the activation"
    source: ClassVar[str] = (
        "Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference"
    )

    def of(self, moments: Moments) -> Array:
        return moments.mean


@register
@dataclass(frozen=True)
class ActivationVariance(_FromMoments):
    """`s_c = mean of (a_c - mean a_c)^2` over samples and positions, a_c the activation of channel c.

    A channel that hardly varies can be replaced by a constant. (The paper uses the standard deviation: the same order
    within a tensor.)
    """

    name: ClassVar[str] = "act_var"
    title: ClassVar[str] = "variance of the activation"
    source: ClassVar[str] = ActivationMean.source

    def of(self, moments: Moments) -> Array:
        return moments.variance


def _sites(context: ScoringContext) -> list[FeatureSite]:
    return feature_sites(context.analysis, context.groups, "active")
