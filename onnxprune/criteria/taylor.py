"""First-order criteria of a channel's map and the gradient of the loss: `taylor` and `gradient`.

With `a` a channel's map before its nonlinearity, `L_i` the cross-entropy of sample i, `g_i = dL_i / da`, and `c_i` the
mean over the map's positions of `a * g_i` (of `g_i` for `gradient`):

| form  | raw score of a filter                                             | depends on the batches |
|-------|-------------------------------------------------------------------|------------------------|
| paper | mean over the samples of `|c_i|`                                  | no                     |
| code  | `|sum over batches of (sum of c_i over the batch) / batch size^2|` | yes                    |

The second is what research code computes: the loss is a mean over a batch, so is the score, and the absolute value
comes last, so samples and batches cancel. It serves to reproduce published numbers.

The score is `s_f = raw_f / sqrt(sum of raw^2 over the layer's filters)`, the paper's layer-wise l2 normalization:
scores of different layers are directly comparable. Sources: Molchanov et al. 2017, arXiv:1611.06440, section 2.2;
the plain gradient as in the comparison of Yeom et al. 2021, arXiv:1912.08881.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.feature_maps import FeatureSite, feature_sites
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Probe

if TYPE_CHECKING:
    import torch

FORMS = ("paper", "code")


def sample_means(maps: NDArray[Any], gradients: NDArray[Any]) -> Array:
    """Return `c_i` of Taylor's criterion: the mean of a * g over the positions of every map.

    Args:
        maps: [samples, channels, ...].
        gradients: Gradients of each sample's own loss, of the same shape. With ones as maps, `c_i` is that of the
            plain gradient.

    Returns:
        [samples, channels] float64.
    """
    a, g = (np.asarray(v, np.float64).reshape(*v.shape[:2], -1) for v in (maps, gradients))
    return np.asarray((a * g).mean(2))


def share_of(means: Array, form: str, *, samples: int, batch: int) -> Array:
    """Return the share of some samples in the raw score, before the absolute value of the code form.

    Args:
        means: `c_i`, [part of a batch, channels].
        form: "paper" or "code".
        samples: Number of samples in all.
        batch: Number of samples in this batch.

    Returns:
        [channels] float64.
    """
    if form == "paper":
        return np.asarray(np.abs(means).sum(0) / samples)
    # One division for the mean of the products over the batch, one because the loss is a mean over it.
    return np.asarray(means.sum(0) / batch**2)


def layer_normalized(raw: Array) -> Array:
    """Return `|raw| / sqrt(sum of raw^2)` over the filters of a layer, [filters]; zeros stay zeros."""
    top = float(np.abs(raw).max(initial=0.0))
    if top == 0:
        return np.zeros(len(raw))
    scaled = np.abs(raw) / top  # prevents underflow of the squares
    return np.asarray(scaled / np.sqrt((scaled**2).sum()))


class _FirstOrder(DataCriterion):
    """Base of `taylor` and `gradient`."""

    needs: ClassVar[str] = "labels"
    default_normalize: ClassVar[str] = "none"  # scores are already normalized over the layer
    default_allocator: ClassVar[str] = "uniform"  # good order within a layer, poor ranking across layers
    form: str  # a field of the subclasses

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise unknown("form", self.form, FORMS)

    @abstractmethod
    def means(self, maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return `c_i` of maps and gradients [samples, channels, positions]: [samples, channels] float64."""

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """Return scores of every map before its nonlinearity.

        Raises:
            OnnxPruneError: As `raw_scores`.
        """
        sites = feature_sites(context.analysis, context.groups, "linear")
        raw = raw_scores(context, sites, self)
        return [SiteScores(site.components, layer_normalized(values)) for site, values in zip(sites, raw, strict=True)]


@register
@dataclass(frozen=True)
class Taylor(_FirstOrder):
    """`s_f = mean over samples of |mean over positions of a * dL/da|`, l2-normalized over the layer.

    The first-order estimate of the loss change when the map is set to zero. It is the same before and after a ReLU.

    Args:
        form: "paper" as above; "code" applies the absolute value last, after samples and batches have cancelled.
    """

    name: ClassVar[str] = "taylor"
    title: ClassVar[str] = "first-order loss change when the map is removed: |activation x gradient|"
    source: ClassVar[str] = "Molchanov et al. 2017, Pruning convolutional neural networks, arXiv:1611.06440"
    form: str = "paper"

    def means(self, maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return `c_i` of maps and gradients [samples, channels, positions]: [samples, channels] float64."""
        return (maps.double() * gradients.double()).mean(2)


@register
@dataclass(frozen=True)
class Gradient(_FirstOrder):
    """`s_f = mean over samples of |mean over positions of dL/da|`, l2-normalized over the layer.

    The map is read before the nonlinearity: unlike `taylor`, this gradient differs after a ReLU.

    Args:
        form: "paper" as above; "code" applies the absolute value last, after samples and batches have cancelled.
    """

    name: ClassVar[str] = "gradient"
    title: ClassVar[str] = "|gradient of the loss| with respect to the map before its nonlinearity"
    source: ClassVar[str] = "as compared in Yeom et al. 2021, Pruning by explaining, arXiv:1912.08881"
    form: str = "paper"

    def means(self, maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """Return `c_i` of gradients [samples, channels, positions]: [samples, channels] float64."""
        return gradients.double().mean(2)


def raw_scores(context: ScoringContext, sites: Sequence[FeatureSite], rule: _FirstOrder) -> list[Array]:
    """Return the raw score of every index of every site's axis, [channels] float64; signed in the code form.

    A map that the first output does not depend on scores 0.

    Raises:
        OnnxPruneError: torch is missing, an operator has no converter, labels outside the classes, a loss or a gradient
            that is not finite.
    """
    from onnxprune import torch_bridge  # noqa: F401  (first: it names the extra if torch is missing)
    from onnxprune.criteria.model_runs.torch_runs import channels_first, loss_gradients

    raw = [np.zeros(len(site.components)) for site in sites]

    def take(place: int, maps: torch.Tensor, gradients: torch.Tensor, samples: int, real: int, batch: int) -> None:
        site = sites[place]
        a, g = (channels_first(v, site.axis, samples)[:real] for v in (maps, gradients))
        means = rule.means(a, g).cpu().numpy()
        if not np.isfinite(means).all():
            raise OnnxPruneError(
                "the gradient of the loss is not finite on this data",
                where=f"tensor {site.tensor!r}",
                fix="check the data and its scaling (--mean, --std)",
            )
        raw[place] += share_of(means, rule.form, samples=len(context.calibration), batch=batch)

    if sites:
        loss_gradients(context, [site.tensor for site in sites], take)
    return raw
