"""Loss change: increase of the loss when no consumer reads a channel, measured without a gradient.

Every channel is masked in turn at its consumers; activations before the first consumer are computed once (see
`onnxprune.criteria.model_runs.masked_evaluation`). With `l_i` the cross-entropy of sample i and `l_i^-c` that without
channel c:

    s_c = mean over i of (l_i^-c - l_i)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, DataCriterion, ScoringContext, SiteScores
from onnxprune.criteria.model_runs.block_losses import CrossEntropyWithout, check_block_samples
from onnxprune.criteria.model_runs.block_runs import BlockScorer
from onnxprune.criteria.model_runs.masked_evaluation import MaskedEvaluator, default_batch, even_batch
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe
from onnxprune.execution.data import Data
from onnxprune.execution.sessions import provider_of
from onnxprune.execution.tasks.metrics import METRICS

Labels = NDArray[np.int64]


def class_means(values: Array, labels: Labels, classes: int) -> Array:
    """Return the mean over the samples of each class, `[n], [n] -> [classes]`; NaN for a class without samples."""
    counts = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, values, minlength=classes)
    return np.asarray(np.divide(sums, counts, out=np.full(classes, np.nan), where=counts > 0))


def overall(by_class: Array, labels: Labels) -> Array:
    """Return the mean over all samples from class means, `[classes, ...] -> [...]`; classes without samples are NaN."""
    counts = np.bincount(labels, minlength=len(by_class))
    present = counts > 0
    return np.asarray(np.tensordot(counts[present] / counts.sum(), by_class[present], 1))


def loss_evaluator(context: ScoringContext, data: Data) -> MaskedEvaluator:
    """Return masked evaluations of cross-entropies on samples of a case.

    Raises:
        OnnxPruneError: The samples do not fit the model, a label is not among its classes, outputs are not finite.
    """
    calibration = context.calibration
    cuda = provider_of(calibration.device) == "CUDAExecutionProvider"
    threads = calibration.threads or os.cpu_count() or 1
    most = min(calibration.batch, default_batch(MaskedSegmenter(context.analysis), calibration.device))
    return MaskedEvaluator(
        context.analysis,
        {},
        data,
        METRICS["loss"],
        preprocess=calibration.preprocess,
        batch=even_batch(len(data), most, 1 if cuda else threads),
        threads=threads,
        device=calibration.device,
    )


def class_losses(evaluator: MaskedEvaluator, group: Group, tick: WorkProgress | None = None) -> tuple[Array, Array]:
    """Return mean cross-entropies by class: unmasked `[classes]`, and without each channel `[classes, channels]`.

    NaN for a class without samples. A channel that is zero in all samples changes no bit of the result.
    """
    labels = evaluator.feeds.data.y
    assert labels is not None
    rows = []
    for losses in evaluator.samples(group.name, [[], *([c] for c in range(group.channels))]):
        rows.append(class_means(losses, labels, evaluator.classes))
        if tick is not None:
            tick.step(group)
    return rows[0], np.stack(rows[1:], axis=1)


def in_reading_order(evaluator: MaskedEvaluator, groups: Sequence[Group]) -> list[Group]:
    """Return groups in the order of their first consumer, in which cached activations are advanced."""
    return sorted(groups, key=lambda g: evaluator.segmenter.consumers[g.name].first)


class WorkProgress:
    """Progress in units of work, not of evaluations: those of the first layers take longest."""

    def __init__(self, context: ScoringContext, evaluator: MaskedEvaluator) -> None:
        self.report = context.progress
        work = {
            g.name: max(1, evaluator.segmenter.work(evaluator.segmenter.consumers[g.name].first))
            for g in context.groups
        }
        most = max(work.values(), default=1)
        self.unit = {name: max(1, round(1000 * w / most)) for name, w in work.items()}
        self.total = sum(self.unit[g.name] * (g.channels + 1) for g in context.groups)
        self.done = 0

    def step(self, group: Group) -> None:
        """Count one more evaluation of a group."""
        self.done += self.unit[group.name]
        if self.report is not None:
            self.report(self.done, self.total)


@register
@dataclass(frozen=True)
class LossChange(DataCriterion):
    """`s_c = mean(l^-c - l)`: the increase of the mean cross-entropy when channel c is masked at all consumers.

    Signed: a channel without which the loss falls is removed first. The unit is nats in every layer, so layers are
    directly comparable. One score per channel of a group, so there is nothing to reduce. Importance by class is the
    increase of that class's mean cross-entropy. A final Softmax is recognized, and its outputs read as probabilities.

    Args:
        absolute: Score `|s_c|` instead, the size of the change of either sign (by class, too).
    """

    absolute: bool = False

    name: ClassVar[str] = "loss_change"
    title: ClassVar[str] = "increase of the loss when the channel is masked"
    source: ClassVar[str] = "Molchanov et al. 2017, Pruning CNNs for Resource Efficient Inference (the oracle)"
    needs: ClassVar[str] = "labels"
    classwise: ClassVar[bool] = True
    default_normalize: ClassVar[str] = "none"
    blocks_beside_channels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.absolute not in (True, False):  # 0 and 1 come from the command line
            raise OnnxPruneError(f"loss_change: absolute must be 0 or 1, not {self.absolute!r}")

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer:
        samples = check_block_samples(self.name, calibration, labels=True)
        return CrossEntropyWithout(analysis, samples, count, absolute=bool(self.absolute))

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> list[SiteScores]:
        evaluator = loss_evaluator(context, context.calibration.data)
        return list(self._scored(context, evaluator))

    def _scored(self, context: ScoringContext, evaluator: MaskedEvaluator) -> Iterator[SiteScores]:
        tick = WorkProgress(context, evaluator)
        size: Any = np.abs if self.absolute else np.asarray
        for group in in_reading_order(evaluator, context.groups):
            before, after = class_losses(evaluator, group, tick)
            change = after - before[:, None]
            present = np.flatnonzero(~np.isnan(before)).tolist()
            yield SiteScores(
                group.components, size(overall(change, context.labels)), {k: size(change[k]) for k in present}
            )
