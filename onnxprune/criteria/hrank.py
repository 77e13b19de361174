"""HRank: mean matrix rank of a channel's feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.feature_maps import feature_sites
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Probe, Statistic

_BLOCK = 2**17  # elements converted to float64 at a time


def matrix_ranks(maps: NDArray[Any]) -> NDArray[np.int64]:
    """Return the rank of each matrix: the number of singular values above `max(H, W) * eps(float32) * largest`.

    The decomposition is computed in float64: float32 rounding could move a singular value near the bound to either
    side of it. (It is no slower: LAPACK's float32 routine is slower for matrices this small.)

    Args:
        maps: `[..., H, W]` float, finite.

    Returns:
        `[...]`; 0 for a matrix of zeros.
    """
    height, width = maps.shape[-2:]
    flat = maps.reshape(-1, height, width)
    ranks = np.zeros(len(flat), np.int64)
    filled = np.flatnonzero(flat.any((1, 2)))  # after Relu many maps are zero and need no decomposition
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
    """Sum of each channel's ranks over some of the samples.

    A tensor with two axes beside samples and channels holds matrices. In any other (dense layers, tokens) a channel
    counts 1 unless it is zero throughout: the rank of its values as one row.

    Args:
        axis: Axis of the channels.
        samples: Number of samples in all.
        images: Number of samples used, evenly spread.
    """

    def __init__(self, axis: int = 1, *, samples: int, images: int) -> None:
        self.axis, self.samples, self.images = axis, samples, min(images, samples)
        self.total: NDArray[np.int64] = np.zeros(1, np.int64)  # grows to [channels]
        self.count = 0

    def add(self, values: NDArray[np.floating], samples: range) -> None:
        """Add the tensor `[samples * k, ...]`; each of the k maps of a sample counts."""
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
        """Return the mean rank, [channels] float64."""
        return np.asarray(self.total / self.count, np.float64)


@register
@dataclass(frozen=True)
class HRank(DataCriterion):
    """`s_c = mean over images of rank(a_c)`, a_c `[H, W]` the map of channel c after the nonlinearity.

    The rank is that of `matrix_ranks`. If a channel has one value per image, or a row of tokens, it is 1 or 0.

    Args:
        images: Number of samples used, evenly spread over the data: the paper finds mean ranks stable and uses 500.
            The decompositions dominate the cost: about 36 us for a map of 32 x 32, 450 us for 112 x 112.
    """

    images: int = 500

    name: ClassVar[str] = "hrank"
    title: ClassVar[str] = "mean matrix rank of the feature maps (images: number of samples used)"
    source: ClassVar[str] = "Lin et al. 2020, HRank: Filter Pruning using High-Rank Feature Map"
    needs: ClassVar[str] = "data"
    default_normalize: ClassVar[str] = "max"  # the map's size bounds ranks; over the largest they compare
    default_allocator: ClassVar[str] = "uniform"  # good order within a layer, poor ranking across layers

    def __post_init__(self) -> None:
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise OnnxPruneError(
                f"hrank: images must be a whole number of at least 1, not {self.images!r}", fix="images=500"
            )

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        sites = feature_sites(context.analysis, context.groups, "active")
        return [Probe(s.tensor, Ranks(s.axis, samples=len(context.calibration), images=self.images)) for s in sites]

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        found = []
        for site, probe in zip(feature_sites(context.analysis, context.groups, "active"), probes, strict=True):
            assert isinstance(probe.statistic, Ranks)
            found.append(SiteScores(site.components, probe.statistic.mean))
        return found
