"""Layer-wise relevance propagation: share of a channel's map in the decision for the true class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.feature_maps import FeatureSite, feature_sites
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Probe
from onnxprune.ir.model import Model
from onnxprune.passes import FuseBatchnorm

if TYPE_CHECKING:
    import torch


def share_of_relevance(raw: Array) -> Array:
    """Return `raw / sum(|raw|)` over the filters of a layer, [filters].

    Relevance is not negative if every operator has its own rule, so this is `raw / sum(raw)`; otherwise (see
    `relevance`) a negative sum does not reverse the order. Nothing is known about a layer that no relevance reaches,
    such as the gate of a squeeze-and-excitation: all its filters get the same share. With zeros a global ranking would
    remove that layer first.
    """
    total = float(np.abs(raw).sum())
    return np.asarray(raw / total) if total else np.full(len(raw), 1 / len(raw))


@register
@dataclass(frozen=True)
class Lrp(DataCriterion):
    """`s_f = raw_f / sum of raw over the layer`, raw_f the relevance of the filter's map, summed over all samples.

    Relevance is 1 at the logit of the true class and 0 at the others, and is propagated back from layer to layer by the
    z+ rule; the module `relevance` lists the rules of all operators. The map is read before its nonlinearity, which
    passes its relevance unchanged. BatchNormalization is folded into the convolution before it, so that both exports of
    a network score alike. Scores of a layer sum to 1: they are comparable across layers without normalization, and
    wide layers lose more.
    """

    name: ClassVar[str] = "lrp"
    title: ClassVar[str] = "relevance for the true class, propagated back from the logits (z+ rule)"
    source: ClassVar[str] = "Yeom et al. 2021, Pruning by explaining, arXiv:1912.08881"
    needs: ClassVar[str] = "labels"
    default_normalize: ClassVar[str] = "none"
    default_allocator: ClassVar[str] = "uniform"  # good order within a layer, poor ranking across layers

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """Return scores of every map before its nonlinearity.

        Raises:
            OnnxPruneError: As `raw_scores`.
        """
        sites = feature_sites(context.analysis, context.groups, "linear")
        raw = raw_scores(context, sites)
        return [
            SiteScores(site.components, share_of_relevance(values)) for site, values in zip(sites, raw, strict=True)
        ]


def raw_scores(context: ScoringContext, sites: Sequence[FeatureSite]) -> list[Array]:
    """Return the relevance of every index of every site's axis, [channels] float64, summed over positions and samples.

    A map that the first output does not depend on has relevance 0.

    Raises:
        OnnxPruneError: torch is missing, an operator has no converter, labels outside the classes, outputs or a
            relevance that are not finite.
    """
    from onnxprune import torch_bridge  # noqa: F401  (first: it names the extra if torch is missing)
    from onnxprune.criteria.model_runs.relevance import Relevance
    from onnxprune.criteria.model_runs.torch_runs import classifier, each_part, logits_in

    raw = [np.zeros(len(site.components)) for site in sites]
    if not sites:
        return raw
    model = FuseBatchnorm()(context.analysis.model)
    relevance = Relevance(classifier(context, model, _names_in(model, context.analysis.model, sites)))

    def visit(x: torch.Tensor, y: torch.Tensor, batch: int) -> None:
        def start(output: torch.Tensor) -> torch.Tensor:
            flat = logits_in(output, len(x)).new_zeros(len(x), output[0].numel())
            flat[: len(y)].scatter_(1, y[:, None], 1.0)  # copies that fill a batch get no relevance
            return flat.reshape(output.shape)

        for place, (site, found) in enumerate(zip(sites, relevance(x, start), strict=True)):
            others = [axis for axis in range(found.dim()) if axis != site.axis]
            total = found.double().sum(others).cpu().numpy()
            if not np.isfinite(total).all():
                raise OnnxPruneError(
                    "the relevance is not finite on this data",
                    where=f"tensor {site.tensor!r}",
                    fix="check the data and its scaling (--mean, --std)",
                )
            raw[place] += total

    each_part(context, relevance.module, visit)
    return raw


def _names_in(folded: Model, model: Model, sites: Sequence[FeatureSite]) -> list[str]:
    """Return the names of the sites' tensors in the model with BatchNormalization folded."""
    here, there = folded.graph.tensors(), model.graph.tensors()
    names = []
    for site in sites:
        tensor: gs.Tensor = there[site.tensor]
        while tensor.name not in here:  # consumers of a folded normalization read its input
            tensor = tensor.inputs[0].inputs[0]
        names.append(tensor.name)
    return names
