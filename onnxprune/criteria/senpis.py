"""SeNPIS: importance of a channel for each class, attenuated for each similar channel that matters more.

For class k, channel c of a layer, L_k the mean cross-entropy of the class and L_k^-c that with the channel masked:

    IM_k,c = |L_k^-c - L_k|                                   local importance
    e_k,c  = number of similar pairs (c, d) with IM_k,c < IM_k,d, of equal ones the lower index counting as less
    s_c    = mean over k of IM_k,c * attenuation ^ e_k,c

Two channels are similar in class k if their similarity exceeds mean + sigma * standard deviation (n - 1) of those of
all the layer's pairs. The similarity of maps is |mean SSIM| of the maps averaged over the class's samples, that of
neurons is |cosine| of their activations over the samples. Layers are scored in the order of the network; in the mode
"sequential" the share `amount` of lowest score is removed from each layer before the next one is scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import isfinite, prod
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.coupling import Group
from onnxprune.analysis.feature_maps import FeatureSite, feature_sites
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.criteria.loss_change import Labels, WorkProgress, class_losses, in_reading_order, loss_evaluator
from onnxprune.criteria.model_runs.masked_evaluation import MaskedEvaluator
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Probe

_C1, _C2 = 1e-4, 9e-4  # (0.01 L)^2 and (0.03 L)^2 of SSIM, for values of range L = 1
_SIDE = float(np.exp(-1 / (2 * 1.5**2)))  # weight of a neighbour in a Gaussian of standard deviation 1.5
_WINDOW = (1 / (1 + 2 * _SIDE), _SIDE / (1 + 2 * _SIDE))  # middle and sides; their product is 3 x 3
BLOCK = 1 << 17
"""Values of pairs at a time: a few arrays of 1 MB, which fit in the cache."""


def map_similarity(maps: NDArray[Any], *, block: int = BLOCK) -> Array:
    """Return |mean SSIM| of pairs of channels (Wang et al. 2004; 3 x 3 Gaussian window, sigma 1.5, zero padding 1).

    Args:
        maps: [channels, ..., height, width]. If a channel has several maps, its i-th is compared with the other's
            i-th, and the mean is over all.
        block: Values computed at a time.

    Returns:
        [pairs] float64, pairs (i < j) in lexicographic order: channels * (channels - 1) / 2.
    """
    x = np.asarray(maps, np.float64)
    means = _blurred(x)
    variances = _blurred(x * x) - means * means
    first, second = np.triu_indices(len(x), 1)
    out = np.empty(len(first))
    step = max(1, block // max(1, x[:1].size))
    for start in range(0, len(out), step):
        i, j = first[start : start + step], second[start : start + step]
        product = means[i] * means[j]
        covariance = _blurred(x[i] * x[j]) - product
        ssim = (2 * product + _C1) * (2 * covariance + _C2)
        ssim /= (means[i] ** 2 + means[j] ** 2 + _C1) * (variances[i] + variances[j] + _C2)
        out[start : start + step] = np.abs(ssim.reshape(len(i), -1).mean(1))
    return out


def _blurred(x: Array) -> Array:
    """Return weighted means of 3 x 3 neighbourhoods on the last two axes, with zero padding."""
    middle, side = _WINDOW
    for axis in (-2, -1):
        y = np.moveaxis(x, axis, 0)
        sides = side * y
        out = middle * y
        out[1:] += sides[:-1]
        out[:-1] += sides[1:]
        x = np.moveaxis(out, 0, axis)
    return x


def vector_similarity(gram: NDArray[Any]) -> Array:
    """Return |cosine| of every pair of channels: 1 if both are zero, 0 if one is.

    Args:
        gram: Scalar products of the channels' activations, [channels, channels].

    Returns:
        [pairs] float64, pairs (i < j) in lexicographic order.
    """
    gram = np.asarray(gram, np.float64)
    norms = np.sqrt(np.diagonal(gram))
    first, second = np.triu_indices(len(gram), 1)
    lengths = norms[first] * norms[second]
    both_zero = (norms[first] == 0) & (norms[second] == 0)
    same = both_zero.astype(np.float64)
    return np.asarray(np.divide(np.abs(gram[first, second]), lengths, out=same, where=lengths > 0))


def similar_pairs(similarity: Array, sigma: float) -> NDArray[np.bool_]:
    """Return the mask of similar pairs: above mean + sigma * standard deviation (ddof 1). [pairs] -> bool [pairs].

    Fewer than two pairs have no deviation, and none is similar.
    """
    if len(similarity) < 2:
        return np.zeros(len(similarity), np.bool_)
    return np.asarray(similarity > similarity.mean() + sigma * similarity.std(ddof=1))


def exponents(similar: NDArray[np.bool_], importance: Array) -> NDArray[np.int64]:
    """Return the number of similar pairs in which each channel is the less important, of equal ones the lower index.

    Args:
        similar: bool [pairs], (i < j) in lexicographic order.
        importance: [channels], of one class.

    Returns:
        int64 [channels].
    """
    first, second = np.triu_indices(len(importance), 1)
    i, j = first[similar], second[similar]
    loser = np.where(importance[i] <= importance[j], i, j)
    return np.bincount(loser, minlength=len(importance)).astype(np.int64)


def lowest(scores: Array, amount: float) -> NDArray[np.int64]:
    """Return the indices of the round(amount * n) lowest of n scores, ascending; of equal ones the lower index.

    At least one score is excluded. The share is read as the decimal number that was written; halves round to even.
    """
    count = min(round(Fraction(str(amount)) * len(scores)), len(scores) - 1)
    return np.sort(np.argsort(scores, kind="stable")[:count])


def class_samples(labels: Labels, classes: int, each: int, seed: int, *, name: str = "") -> NDArray[np.int64]:
    """Return indices of sampled samples, class after class, ascending in each.

    Args:
        labels: Labels of all samples.
        classes: Number of classes of the model: 0 ... classes - 1.
        each: Samples of every class, drawn without replacement; 0: all.
        seed: Seed of the draw.
        name: Name of the data, for messages.

    Raises:
        OnnxPruneError: A class has no samples, or fewer than `each`; a label is not among the classes.
    """
    where = f"data {name!r}" if name else None
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        worst = int(labels.max()) if labels.max() >= classes else int(labels.min())
        raise OnnxPruneError(f"the data has the label {worst}, the model {classes} classes", where=where)
    # numpy keeps only the raw stream of PCG64 stable, not the results that Generator computes from it.
    draw = np.atleast_1d(np.random.PCG64(seed).random_raw(len(labels)))
    chosen = []
    for k in range(classes):
        mine = np.flatnonzero(labels == k)
        if not len(mine):
            raise OnnxPruneError(
                f"the class {k} has no samples", where=where, fix="pass data in which every class of the model occurs"
            )
        if len(mine) < each:
            raise OnnxPruneError(
                f"the class {k} has {len(mine)} samples, but {each} of each class are required",
                where=where,
                fix=f"use more data (--images), or samples={len(mine)}",
            )
        chosen.append(np.sort(mine[np.argsort(draw[mine], kind="stable")[: each or len(mine)]]))
    return np.concatenate(chosen)


@dataclass
class _ClassActivations:
    """Statistics of one tensor for one class: the sum of its maps, or scalar products of its activations.

    Attributes:
        index: Indices of the group's channels on the tensor's axis, [channels, indices per channel].
    """

    site: FeatureSite
    index: NDArray[np.int64]
    rows: int = 0
    total: Array | None = None
    maps: bool = False

    def add(self, values: NDArray[Any]) -> None:
        """Add the tensor on some samples of the class.

        Raises:
            OnnxPruneError: The tensor is not finite.
        """
        moved = np.moveaxis(values, self.site.axis, 0)[self.index].astype(np.float64)  # [channels, k, rows, ...]
        self.maps = moved.ndim == 5 and moved[0, 0, 0].size > 1
        if self.maps:
            new = moved.sum(2)
        else:
            flat = moved.reshape(len(moved), -1)
            new = flat @ flat.T
        if not np.isfinite(new.sum()):
            raise OnnxPruneError(
                f"the activation {self.site.tensor!r} is not finite on this data", fix="check --mean and --std"
            )
        self.total = new if self.total is None else self.total + new
        self.rows += moved.shape[2]

    def similarity(self) -> Array:
        """Return the similarity of every pair, [pairs], and reset for the next class."""
        assert self.total is not None
        found = map_similarity(self.total / self.rows) if self.maps else vector_similarity(self.total)
        self.rows, self.total = 0, None
        return found


def similarities(evaluator: MaskedEvaluator, group: Group, labels: Labels) -> Iterator[Array]:
    """Yield similarities of a group's pairs of channels, class after class in the order of the samples: [pairs] each.

    A group whose channels are on several tensors (a residual stream) gets the mean of theirs. Tensors `[n, c, h, w]`
    hold maps; all others hold activations of neurons, as do maps of one pixel.

    Args:
        evaluator: Masked evaluations without the channels already removed; their samples are sorted by class.
        group: Group whose channels are compared.
        labels: Labels of the samples.
    """
    sites = [s for s in feature_sites(evaluator.analysis, [group], "active") if _channel_indices(s, group) is not None]
    names = list(dict.fromkeys(s.tensor for s in sites))
    seen = [_ClassActivations(s, index) for s in sites if (index := _channel_indices(s, group)) is not None]
    left = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    if not seen:
        yield from (np.zeros(group.channels * (group.channels - 1) // 2) for _ in left)
        return
    for samples, tensors in evaluator.tensors(names):
        values = dict(zip(names, tensors, strict=True))
        here = labels[samples.start : samples.stop]
        for k in np.unique(here):
            mine = np.flatnonzero(here == k)
            for s in seen:
                # A model may fold windows into the first axis: several rows of each sample.
                windows = len(values[s.site.tensor]) // len(here)
                s.add(values[s.site.tensor][mine[0] * windows : (mine[-1] + 1) * windows])
            left[k] -= len(mine)
            if not left[k]:
                yield np.mean([s.similarity() for s in seen], axis=0)


def _channel_indices(site: FeatureSite, group: Group) -> NDArray[np.int64] | None:
    """Return a group's indices on a tensor's axis, [channels, indices per channel]; None if the counts differ."""
    here = np.flatnonzero(np.isin(site.components, group.components))
    here = here[np.argsort(site.components[here], kind="stable")]
    if not len(here) or len(here) % group.channels:
        return None
    index = here.reshape(group.channels, -1)
    return index if (site.components[index] == group.components[:, None]).all() else None


@dataclass(frozen=True)
class SenpisResult:
    """SeNPIS result for one group; K classes, C channels.

    Attributes:
        group: Name of the group.
        class_loss: Mean cross-entropy of each class before any channel of this group is masked, [K].
        im_local: Absolute change of it without each channel, [K, C].
        exponent: Number of similar pairs in which the channel is the less important, int64 [K, C].
        im_attenuated: im_local * attenuation ^ exponent, [K, C].
        im_global: Mean over classes, [C]: the score.
        removed: Channels that `amount` removes from this group, ascending.
        similarity: [K, C * (C - 1) / 2], if requested.
    """

    group: str
    class_loss: Array
    im_local: Array
    exponent: NDArray[np.int64]
    im_attenuated: Array
    im_global: Array
    removed: NDArray[np.int64]
    similarity: Array | None = field(default=None, repr=False)


@register
@dataclass(frozen=True)
class Senpis(DataCriterion):
    """`s_c = mean over classes of |L_k^-c - L_k| * attenuation ^ e_k,c`; see the module.

    A group is scored as one layer: its channels are masked at all consumers, and similarities are the mean over the
    tensors that hold their maps (after the nonlinearity and, in residual streams, after each addition). So there is
    nothing to reduce. Importance by class is the attenuated importance before the mean.

    Args:
        amount: Share removed from each layer in the mode "sequential": round(amount * channels), halves to even.
            Prune by the same ratio: scores of later layers are valid for the remaining channels of earlier ones.
        sigma: Threshold of similarity above the mean, in standard deviations.
        attenuation: Factor for every similar channel that matters more, in (0, 1].
        mode: "sequential", or "independent": all layers in the unpruned network.
        samples: Samples used of every class; 0: all.
        seed: Seed of the choice of samples.
    """

    amount: float = 0.3
    sigma: float = 1.0
    attenuation: float = 0.9
    mode: str = "sequential"
    samples: int = 10
    seed: int = 0

    name: ClassVar[str] = "senpis"
    title: ClassVar[str] = "class-wise change of the loss, less where a similar channel matters more"
    source: ClassVar[str] = "Pachón et al. 2022, SeNPIS: Sequential Network Pruning by Class-wise Importance Score"
    needs: ClassVar[str] = "labels"
    classwise: ClassVar[bool] = True
    default_normalize: ClassVar[str] = "none"
    forbids: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "global": "it removes the same share of every layer, and scores of a layer assume that share of the "
            "earlier ones removed; use --ratio (or --allocator uniform)"
        }
    )

    def __post_init__(self) -> None:
        def check(name: str, good: bool, what: str) -> None:
            if not good:
                raise OnnxPruneError(f"senpis: {name} must be {what}, not {getattr(self, name)!r}")

        def number(value: object) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)

        def whole(value: object) -> bool:
            return isinstance(value, int) and not isinstance(value, bool)

        check("amount", number(self.amount) and 0 <= self.amount < 1, "a share removed, in [0, 1)")
        check("sigma", number(self.sigma), "a number")
        check("attenuation", number(self.attenuation) and 0 < self.attenuation <= 1, "in (0, 1]")
        check("mode", self.mode in ("sequential", "independent"), "sequential or independent")
        check("samples", whole(self.samples) and self.samples >= 0, "a whole number, 0 for all")
        check("seed", whole(self.seed) and self.seed >= 0, "a whole number, not negative")

    def least_samples(self, context: ScoringContext) -> int:
        return max(1, self.samples) * _classes(context)

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> list[SiteScores]:
        groups = context.analysis.by_name
        return [
            SiteScores(groups[layer.group].components, layer.im_global, dict(enumerate(layer.im_attenuated)))
            for layer in self.layers(context)
        ]

    def layers(self, context: ScoringContext, *, similarity: bool = False) -> Iterator[SenpisResult]:
        """Score the context's groups one after the other, in the order in which the network first reads them.

        Args:
            context: Model, groups and samples.
            similarity: Keep the similarities of all pairs: classes * channels^2 / 2 numbers.

        Raises:
            OnnxPruneError: As `class_samples`; data that does not fit the model, outputs or maps that are not finite.
        """
        data = context.calibration.data
        chosen = class_samples(context.labels, _classes(context), self.samples, self.seed, name=data.name)
        data = data.take(chosen)
        evaluator = loss_evaluator(context, data)
        if evaluator.feeds.mixed:
            raise OnnxPruneError(
                "senpis compares mean feature maps of a class, and the samples differ in size",
                where=f"data {data.name!r}",
                fix="resize them (--size HxW), or choose another criterion, such as loss_change",
            )
        tick = WorkProgress(context, evaluator)
        for group in in_reading_order(evaluator, context.groups):
            layer = self._layer(evaluator, group, tick, similarity)
            yield layer
            if self.mode == "sequential":
                evaluator.remove(group.name, layer.removed)

    def _layer(self, evaluator: MaskedEvaluator, group: Group, tick: WorkProgress, keep: bool) -> SenpisResult:
        labels = evaluator.feeds.data.y
        assert labels is not None
        similar, kept = [], []
        # The maps come first: they precede the group's first consumer, where the activations are cached.
        for values in similarities(evaluator, group, labels):
            similar.append(np.packbits(similar_pairs(values, self.sigma)))
            kept += [values] if keep else []
        class_loss, without = class_losses(evaluator, group, tick)
        im_local = np.abs(without - class_loss[:, None])
        pairs = group.channels * (group.channels - 1) // 2
        exponent = np.stack(
            [
                exponents(np.unpackbits(bits, count=pairs).view(np.bool_), im)
                for bits, im in zip(similar, im_local, strict=True)
            ]
        )
        attenuated = im_local * np.power(float(self.attenuation), exponent)
        score = attenuated.mean(axis=0)
        removed = lowest(score, self.amount)
        return SenpisResult(
            group.name, class_loss, im_local, exponent, attenuated, score, removed, np.stack(kept) if keep else None
        )


def _classes(context: ScoringContext) -> int:
    """Return the number of classes of the model; from the labels, if its output's shape is unknown."""
    shape = context.analysis.witness.shapes.get(context.analysis.model.graph.outputs[0].name)
    if shape is None or len(shape) < 2:
        return int(context.labels.max()) + 1
    return prod(shape[1:])
