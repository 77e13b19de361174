"""HRank: channels whose feature maps have a low matrix rank carry little information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Probe, Statistic
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.criteria.registry import register
from onnxprune.errors import OnnxPruneError
from onnxprune.features import feature_sites

_BLOCK = 2**17  # elements made float64 at a time


def matrix_ranks(maps: NDArray[Any]) -> NDArray[np.int64]:
    """The rank of each of many matrices: how many singular values are above `max(H, W) * eps(float32) * largest`.

    The decomposition is made in float64: with what float32 rounds away, a singular value near the bound could fall on
    either side of it. (It is no slower: LAPACK's float32 routine takes longer for matrices this small.)

    Args:
        maps: `[..., H, W]` float, finite.

    Returns:
        `[...]`; 0 for a matrix of zeros.
    """
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, height, width)
    ranks = np.zeros(len(flat), np.int64)
    filled = np.flatnonzero(flat.any((1, 2)))  # after Relu many maps are zero, and cost nothing
    bound = max(height, width) * float(np.finfo(np.float32).eps)
    step = max(1, _BLOCK // max(1, height * width))
    for start in range(0, len(filled), step):
        block = filled[start : start + step]
        if min(height, width) == 1:
            ranks[block] = 1
            continue
        values = np.linalg.svd(flat[block].astype(np.float64), compute_uv=False)
        ranks[block] = (values > bound * values[:, :1]).sum(1)
    return ranks.reshape(maps.shape[:-2])


class Ranks(Statistic):
    """The sum of each channel's ranks over some of the samples.

    A tensor with two axes beside samples and channels holds matrices. Of any other (what a dense layer computes,
    tokens) a channel counts 1 where it is not zero throughout: the rank of its values as one row.

    Args:
        axis: of the channels.
        samples: how many there will be.
        images: how many of them are looked at, evenly spread.
    """

    def __init__(self, axis: int = 1, *, samples: int, images: int) -> None:
        self.axis, self.samples, self.images = axis, samples, min(images, samples)
        self.total: NDArray[np.int64] = np.zeros(1, np.int64)  # grows to [channels]
        self.count = 0

    def add(self, values: NDArray[np.floating], samples: range) -> None:
        """Takes in the tensor `[samples * k, ...]`; each of the k maps of a sample counts."""
        at = np.arange(samples.start, samples.stop) * self.images
        chosen = np.repeat((at + self.images) // self.samples > at // self.samples, len(values) // len(samples))
        maps = np.moveaxis(values, self.axis, 1)[chosen]
        if not len(maps):
            return
        if maps.ndim != 4:
            maps = maps.reshape(len(maps), maps.shape[1], 1, -1)
        self.total = self.total + matrix_ranks(maps).sum(0)
        self.count += len(maps)

    @property
    def mean(self) -> Array:
        """[channels] float64."""
        return np.asarray(self.total / self.count, np.float64)


@register
@dataclass(frozen=True)
class HRank(DataCriterion):
    """`s_c = mean over images of rank(a_c)`, a_c `[H, W]` the map of channel c after the nonlinearity.

    The rank is that of `matrix_ranks`. Where a channel has one value per image, or a row of tokens, it is 1 or 0.

    Args:
        images: how many of the samples are looked at, evenly spread over the data: the paper finds mean ranks steady
            and takes 500. The decompositions are the cost: some 36 us for a map of 32 x 32, 450 us for 112 x 112.
    """

    images: int = 500

    name: ClassVar[str] = "hrank"
    title: ClassVar[str] = "mean matrix rank of the feature maps (images: how many samples are looked at)"
    source: ClassVar[str] = "Lin et al. 2020, HRank: Filter Pruning using High-Rank Feature Map"
    needs: ClassVar[str] = "data"
    default_normalize: ClassVar[str] = "max"  # ranks end at the map's size; over the largest, layers compare
    default_allocator: ClassVar[str] = "uniform"  # orders a layer well, ranks layers against each other badly

    def __post_init__(self) -> None:
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise OnnxPruneError(f"hrank: images must be a number from 1 up, not {self.images!r}", fix="images=500")

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        sites = feature_sites(context.analysis, context.groups, "active")
        return [Probe(s.tensor, Ranks(s.axis, samples=len(context.calibration), images=self.images)) for s in sites]

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        found = []
        for site, probe in zip(feature_sites(context.analysis, context.groups, "active"), probes, strict=True):
            assert isinstance(probe.statistic, Ranks)
            found.append(SiteScores(site.components, probe.statistic.mean))
        return found
