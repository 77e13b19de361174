"""Pruning in steps: between two of them the channels that are left are scored anew, on the weights that are left.

What is removed in the end is one plan against the original, as if it had been made in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune import __version__ as version
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.analysis.shape_inference import witness
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria import get as get_criterion
from onnxprune.criteria.scoring import Scores, score
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.ops.label_table import Axes, Labels, LabelTable
from onnxprune.options.planning import SCHEDULES as SCHEDULES
from onnxprune.passes import StripChannels
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.planner import AllocationRequest, allocate, assembled, check_allocator
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan, Removal


def plan_steps(
    analysis: Analysis,
    criterion: str | AnyCriterion = "l2",
    target: Target | None = None,
    *,
    steps: int,
    schedule: str = "linear",
    ratio: float | None = None,
    latency: LatencyPredictor | None = None,
    allocator: str | None = None,
    normalize: str | None = None,
    constraints: Constraints | None = None,
    reduce: str | None = None,
    calibration: Calibration | None = None,
    progress: Callable[[int, int], None] | None = None,
    **params: Any,
) -> Plan:
    """Decides which channels go, in several steps with new scores between them.

    Step i of N aims at the share `1 - (1 - goal) * i / N` of the original's measure (linear), or at
    `goal ** (i / N)` (geometric: the same share of what is left in every step). Removing 10 % of all remaining
    filters eight times, as partial-least-squares pruning does (Jordao et al. 2019), is
    `Target(channels=0.43), steps=8, schedule="geometric"`. All steps but the last stop short of their share by whole
    blocks, so that the last one can meet the target. Limits are those of the original, whatever the number of steps.

    Args:
        analysis: of the original model.
        criterion: a name or an instance; `params` are its parameters.
        target: as for `plan`.
        steps: how many; 1 gives what `plan` gives.
        schedule: "linear" or "geometric".
        ratio: instead of a target, the share removed from every group in the end.
        latency: a latency model of the original, for a latency target or allocator.
        allocator: "global", "uniform", "saving" or "latency"; default: latency for a latency target, else the
            criterion's own.
        normalize: how scores of different groups are made comparable; default: the criterion's own.
        constraints: rounding, protection, overrides.
        reduce: how a group's weights are joined.
        calibration: samples, for criteria that need them.
        progress: called with (done, total) steps.

    Raises:
        OnnxPruneError: as `plan` and `score`; less than one step, an unknown schedule, an allocator that needs curves.
    """
    if type(steps) is not int or steps < 1:
        raise OnnxPruneError(f"pruning takes at least one step; got {steps!r}", fix="--steps 8")
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if allocator == "sensitivity":
        raise OnnxPruneError(
            "curves hold for the whole model, not between steps", fix="leave out --steps, or choose another allocator"
        )
    own = (get_criterion(criterion) if isinstance(criterion, str) else criterion).default_allocator
    allocator = check_allocator(allocator, target, ratio, latency=latency, default=own)
    gone: dict[str, npt.NDArray[np.int64]] = {}
    groups: dict[str, Removal] = {}
    scores: Scores | None = None
    for i in range(1, steps + 1):
        scores = _rescored(analysis, scores, gone, criterion, {"reduce": reduce, "calibration": calibration, **params})
        request = AllocationRequest(
            Target(**{target.measure: _share(target.share, i, steps, schedule)}) if target else None,
            1 - _share(1 - ratio, i, steps, schedule) if ratio is not None else None,
            allocator,
            normalize or scores.normalize,
            constraints or Constraints(),
        )
        groups = allocate(scores, request, latency=latency, removed=gone, final=i == steps)
        gone = {name: np.array(r.removed, np.int64) for name, r in groups.items()}
        if progress is not None:
            progress(i, steps)
    assert scores is not None
    record: dict[str, Any] = {"scope": allocator} if allocator in ("latency", "saving") else {}
    if steps > 1:
        record |= {"steps": steps, "schedule": schedule}
    return assembled(scores, request, groups, record, version)


def _share(goal: float, i: int, steps: int, schedule: str) -> float:
    """What is kept after step i."""
    if i == steps:
        return goal
    return float(1 - (1 - goal) * i / steps if schedule == "linear" else goal ** (i / steps))


def _rescored(
    analysis: Analysis,
    scores: Scores | None,
    removed: Mapping[str, npt.NDArray[np.int64]],
    criterion: str | AnyCriterion,
    options: Mapping[str, Any],
) -> Scores:
    """Scores of what is left, by the original's channels; what is gone keeps the score it had."""
    if scores is None:
        return score(analysis, criterion, **options)
    plan = Plan(
        "", {name: Removal(analysis[name].channels, tuple(places.tolist())) for name, places in removed.items()}
    )
    new = score(stripped(analysis, plan), criterion, **options)
    groups = {}
    for name, old in scores.groups.items():
        left = np.ones(len(old), bool)
        left[removed.get(name, np.zeros(0, np.int64))] = False
        groups[name] = np.array(old)
        groups[name][left] = new.groups[name]
    return replace(scores, groups=groups)


def stripped(analysis: Analysis, plan: Plan) -> Analysis:
    """The analysis of the model that a plan leaves, in the components of the original.

    The labels are those of the original without the removed ones. A walk over the small graph would find the same
    channels; but in it a Reshape may split an axis the other way round, since another factor is the larger one now.
    """
    kept = analysis.kept(plan)
    if kept.all():
        return analysis
    model = StripChannels(plan, analysis)(analysis.model)
    seen = witness(model)
    groups = tuple(replace(g, components=g.components[kept[g.components]]) for g in analysis.groups)
    tensors = model.graph.tensors()
    table = LabelTable(seen.shapes, seen.values, model.opset, analysis.table.choices, seen.sizes, seen.formulas)
    _compress(analysis, kept, table, tensors)
    for site in analysis.table.filter_sites:
        labels = _remaining_labels(analysis, kept, site.labels)
        weight = tensors[site.tensor.name]
        # The filters of a grouped ConvTranspose [in, out / groups, ...]: whole groups may be gone, or some of each.
        count = site.groups if site.groups == 1 else len(labels) // int(table.shape(weight)[1])
        table.filter_sites.append(replace(site, tensor=weight, labels=labels, groups=count))
    for scale in analysis.table.scale_sites:
        table.scale_sites.append(
            replace(scale, tensor=tensors[scale.tensor.name], labels=_remaining_labels(analysis, kept, scale.labels))
        )
    return replace(analysis, source=model, model=model, witness=seen, table=table, groups=groups)


def _remaining_labels(analysis: Analysis, kept: Kept, labels: Labels) -> Labels:
    return labels[kept[analysis.component[labels]]]


def _compress(analysis: Analysis, kept: Kept, table: LabelTable, tensors: Mapping[str, gs.Tensor]) -> None:
    """Fills a table with the labels of every tensor that are left."""
    made: dict[int, Labels] = {}  # tensors that follow each other share their label arrays, and go on sharing them

    def axes(old: Axes) -> Axes:
        out: Axes = []
        for labels in old:
            if labels is not None and id(labels) not in made:
                made[id(labels)] = _remaining_labels(analysis, kept, labels)
            out.append(None if labels is None else made[id(labels)])
        return out

    old = analysis.table
    table.count = old.count
    table.outputs = old.outputs
    table.views = {name: (tensors[root.name], perm) for name, (root, perm) in old.views.items()}
    table.variables = {name: axes(a) for name, a in old.variables.items()}
    table.constants = {name: axes(a) for name, a in old.constants.items()}
    table.statistics = [replace(s, labels=_remaining_labels(analysis, kept, s.labels)) for s in old.statistics]
    table.contractions = [replace(c, labels=_remaining_labels(analysis, kept, c.labels)) for c in old.contractions]
