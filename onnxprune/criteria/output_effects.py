"""Output error of removing channels of one group: the unit that errors of different layers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.cost import CostModel
from onnxprune.coupling import Analysis, Group
from onnxprune.criteria.base import Array, Case
from onnxprune.data import Feeds, subset
from onnxprune.errors import OnnxPruneError
from onnxprune.linear_nodes import linear_node
from onnxprune.model import Model
from onnxprune.output_distance import OutputDistance
from onnxprune.passes import InsertMasks
from onnxprune.pieces import Cutter
from onnxprune.plans import Plan, Removal
from onnxprune.segments import Segments, Walk

_IMAGES = (32, 256)  # least and most samples, few for large models
_WORK = 4e12  # MAC budget of all evaluations
_BATCH = 32


@dataclass(frozen=True)
class Trial:
    """A group without some channels, and new weights for its consumers.

    Attributes:
        gone: Indices of the removed channels in the group, ascending.
        weights: First output of a linear node -> its matrix and the shift of its outputs (None: unchanged); see
            `LinearNode.put`.
    """

    gone: tuple[int, ...]
    weights: Mapping[str, tuple[Array, Array | None]]


def output_effects(
    case: Case, tried: Sequence[tuple[Group, Iterable[Trial]]], count: int
) -> dict[str, dict[int, float]]:
    """Return the distance of the outputs from the unpruned model's: group -> number of removed channels -> distance.

    The distance is `OutputDistance`, the mean over some samples: a divergence for classifiers, else a squared error.

    Args:
        case: Model and samples.
        tried: Groups and their evaluations, which are drawn one at a time in graph order.
        count: Number of evaluations for which the work is budgeted: the more, the fewer samples.

    Raises:
        OnnxPruneError: onnxruntime fails; outputs that are not finite, or whose size depends on the data.
    """
    analysis, calibration = case.analysis, case.calibration
    images = int(np.clip(_WORK / max(1, CostModel(analysis).whole.macs * count), *_IMAGES))
    feeds = Feeds(
        analysis.model, subset(calibration.data, images), calibration.preprocess, min(calibration.batch, _BATCH)
    )
    cutter = Cutter(analysis)
    effects: dict[str, dict[int, float]] = {g.name: {} for g, _ in tried}
    with Walk(cutter, feeds, device=calibration.device, threads=calibration.threads) as walk:
        names = _measured(cutter)
        distance = OutputDistance(names, list(walk.values(names)))
        for group, trials in sorted(tried, key=lambda item: cutter.reads[item[0].name].place):
            place = cutter.reads[group.name].place
            late = [n for n in names if cutter.made[n] >= place]
            if not late:
                continue
            walk.advance(place)
            for trial in trials:
                model = _changed(analysis, cutter.segment(place, len(cutter.nodes), late), group, trial)
                effects[group.name][len(trial.gone)] = distance(walk.values(late, model=model))
                if case.progress is not None:
                    case.progress(sum(map(len, effects.values())), count)
    return effects


def _measured(segments: Segments) -> list[str]:
    """Return the names of the outputs that can be compared."""
    seen = segments.seen
    names = [n for n in segments.outputs if n in seen.shapes and seen.dtypes.get(n, np.dtype(np.float32)).kind == "f"]
    if not names:
        raise OnnxPruneError(
            "the model has no float output of known size, so its output error cannot be measured",
            fix="score by layer: weigh=layer",
        )
    return names


def _changed(analysis: Analysis, model: Model, group: Group, trial: Trial) -> Model:
    """Return a segment with the masks and weights of an evaluation."""
    plan = Plan("", {group.name: Removal(group.channels, trial.gone)})
    model = InsertMasks(plan, analysis, partial=True).rewrite(model)
    outputs = frozenset(t.name for t in model.graph.outputs)
    for node in model.graph.nodes:
        if (weights := trial.weights.get(node.outputs[0].name)) is not None:
            linear = linear_node(node, outputs)
            assert linear is not None
            linear.put(*weights, set(model.graph.tensors()))
    return model
