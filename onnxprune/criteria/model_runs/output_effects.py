"""Output error of removing channels of one group: the unit that errors of different layers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.analysis.linear_layers import linear_node
from onnxprune.criteria.base import Array, ScoringContext
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Feeds, subset
from onnxprune.execution.graph_segments import ActivationCursor, Segments
from onnxprune.execution.tasks.output_distance import OutputDistance, detection_divergence
from onnxprune.ir.model import Model
from onnxprune.passes import InsertMasks
from onnxprune.plans import Plan, Removal

_IMAGES = (32, 256)  # least and most samples, few for large models
_WORK = 4e12  # MAC budget of all evaluations
_BATCH = 32


@dataclass(frozen=True)
class Ablation:
    """A group without some channels, and new weights for its consumers.

    Attributes:
        removed: Indices of the removed channels in the group, ascending.
        weights: First output of a linear node -> its matrix and the shift of its outputs (None: unchanged); see
            `LinearNode.put`.
    """

    removed: tuple[int, ...]
    weights: Mapping[str, tuple[Array, Array | None]]


def ablation_images(macs: int, count: int) -> int:
    """Return the number of samples of each of `count` evaluations of a model with so many MACs."""
    return int(np.clip(_WORK / max(1, macs * count), *_IMAGES))


def output_effects(
    context: ScoringContext, ablations: Sequence[tuple[Group, Iterable[Ablation]]], count: int
) -> dict[str, dict[int, float]]:
    """Return the distance of the outputs from the unpruned model's: group -> number of removed channels -> distance.

    The distance is `OutputDistance`, the mean over some samples: a divergence for classifiers, else a squared error.

    Args:
        context: Model and samples.
        ablations: Groups and their evaluations, which are drawn one at a time in graph order.
        count: Number of evaluations for which the work is budgeted: the more, the fewer samples.

    Raises:
        OnnxPruneError: onnxruntime fails; outputs that are not finite, or whose size depends on the data.
    """
    analysis, calibration = context.analysis, context.calibration
    images = ablation_images(CostModel(analysis).baseline.macs, count)
    feeds = Feeds(
        analysis.model, subset(calibration.data, images), calibration.preprocess, min(calibration.batch, _BATCH)
    )
    segmenter = MaskedSegmenter(analysis)
    effects: dict[str, dict[int, float]] = {g.name: {} for g, _ in ablations}
    with ActivationCursor(segmenter, feeds, device=calibration.device, threads=calibration.threads) as cursor:
        names = measured_outputs(segmenter, analysis.source)
        distance = OutputDistance(names, list(cursor.values(names)), analysis.source)
        for group, of_group in sorted(ablations, key=lambda item: segmenter.consumers[item[0].name].first):
            node_index = segmenter.consumers[group.name].first
            late = [n for n in names if segmenter.producer_index[n] >= node_index]
            if not late:
                continue
            cursor.advance(node_index)
            for ablation in of_group:
                model = _changed(analysis, segmenter.segment(node_index, len(segmenter.nodes), late), group, ablation)
                effects[group.name][len(ablation.removed)] = distance(cursor.values(late, model=model))
                if context.progress is not None:
                    context.progress(sum(map(len, effects.values())), count)
    return effects


def measured_outputs(segments: Segments, original: Model) -> list[str]:
    """Return the names of the outputs that can be compared."""
    seen = segments.witness
    names = [n for n in segments.outputs if n in seen.shapes and seen.dtypes.get(n, np.dtype(np.float32)).kind == "f"]
    if not names:
        raise OnnxPruneError(
            "the model has no float output of known size, so its output error cannot be measured",
            fix="score by layer: weigh=layer",
        )
    if detection := detection_divergence(original, segments.outputs):  # boxes have labels of integers
        names += [n for n in detection.reads or () if n not in names]
    return names


def _changed(analysis: Analysis, model: Model, group: Group, ablation: Ablation) -> Model:
    """Return a segment with the masks and weights of an evaluation."""
    plan = Plan("", {group.name: Removal(group.channels, ablation.removed)})
    model = InsertMasks(plan, analysis, partial=True).rewrite(model)
    outputs = frozenset(t.name for t in model.graph.outputs)
    for node in model.graph.nodes:
        if (weights := ablation.weights.get(node.outputs[0].name)) is not None:
            linear = linear_node(node, outputs)
            assert linear is not None
            linear.set_weights(*weights, set(model.graph.tensors()))
    return model
