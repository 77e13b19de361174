"""Pruning in steps: between steps the remaining channels are scored again on the remaining weights.

The result is one plan against the original, as if it had been made in one step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune import __version__ as version
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.blocks import Block
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria import get as get_criterion
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.model import Model
from onnxprune.ops.label_table import Axes, Labels, LabelTable
from onnxprune.options.planning import SCHEDULES as SCHEDULES
from onnxprune.passes import Pipeline
from onnxprune.passes.remove_blocks import removal_passes
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.depth import channels_only, removable, removals, scores_for, settled, target_met
from onnxprune.planning.planner import AllocationRequest, allocate, allocate_depth, assembled, check_allocator
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
    progress: Progress | None = None,
    **params: Any,
) -> Plan:
    """Return a plan made in several steps, with new scores between them.

    Step i of N keeps the share `1 - (1 - goal) * i / N` of the original's measure (linear) or `goal ** (i / N)`
    (geometric: the same share of the remainder in every step). Partial-least-squares pruning (Jordao et al. 2019)
    removes 10 % of all remaining filters eight times: `Target(channels=0.43), steps=8, schedule="geometric"`. All
    steps but the last stop short of their share by complete blocks, so that the last one can meet the target.
    Constraints refer to the original, whatever the number of steps.

    Args:
        analysis: Coupling analysis of the original.
        criterion: Name or instance; `params` are its parameters.
        target: See `plan`.
        steps: Number of steps; 1 equals `plan`.
        schedule: "linear" or "geometric".
        ratio: Share removed from every group in total, instead of a target.
        latency: Latency model of the original, for a latency target or allocator.
        allocator: "global", "uniform", "saving" or "latency"; default: latency for a latency target, else the
            criterion's own.
        normalize: How scores of different groups are made comparable; default: the criterion's own.
        constraints: Rounding, protection, overrides.
        reduce: How the scores of a group's weights are combined.
        calibration: Calibration data, for criteria that need it.
        progress: Called with (done, total) steps.
        params: Parameters of the criterion, if it is given by name.

    Raises:
        OnnxPruneError: See `plan` and `score`; or less than one step, an unknown schedule, or an allocator that needs
            curves.
    """
    if type(steps) is not int or steps < 1:
        raise OnnxPruneError(f"pruning takes at least one step; got {steps!r}", fix="--steps 8")
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if allocator == "sensitivity":
        raise OnnxPruneError(
            "curves hold for the original, not between steps", fix="leave out --steps, or choose another allocator"
        )
    limits = constraints or Constraints()
    own = (get_criterion(criterion) if isinstance(criterion, str) else criterion).default_allocator
    allocator = check_allocator(allocator, target, ratio, latency=latency, default=own)
    gone: dict[str, npt.NDArray[np.int64]] = {}
    groups: dict[str, Removal] = {}
    blocks: list[Block] = []
    scores: Scores | None = None
    for i in range(1, steps + 1):
        options = {"reduce": reduce, "calibration": calibration, **params}
        scores = rescored(analysis, scores, gone, criterion, options, blocks=blocks, constraints=limits, target=target)
        request = AllocationRequest(
            Target(**{target.measure: _share(target.share, i, steps, schedule)}) if target else None,
            1 - _share(1 - ratio, i, steps, schedule) if ratio is not None else None,
            allocator,
            normalize or scores.normalize,
            limits,
            tuple(blocks),
        )
        if limits.asks_for_blocks:
            groups, blocks = allocate_depth(scores, request, latency=latency, removed=gone, final=i == steps)
        else:
            groups = allocate(scores, request, latency=latency, removed=gone, final=i == steps)
        gone = {name: np.array(r.removed, np.int64) for name, r in groups.items()}
        if progress is not None:
            progress(i, steps)
    assert scores is not None
    record: dict[str, Any] = {"scope": allocator} if allocator in ("latency", "saving") else {}
    if steps > 1:
        record |= {"steps": steps, "schedule": schedule}
    return assembled(scores, request, groups, record, version, blocks)


def _share(goal: float, i: int, steps: int, schedule: str) -> float:
    """Return the share kept after step i."""
    if i == steps:
        return goal
    return float(1 - (1 - goal) * i / steps if schedule == "linear" else goal ** (i / steps))


def rescored(
    analysis: Analysis,
    scores: Scores | None,
    removed: Mapping[str, npt.NDArray[np.int64]],
    criterion: str | AnyCriterion,
    options: Mapping[str, Any],
    *,
    pruned: Model | None = None,
    blocks: Sequence[Block] = (),
    constraints: Constraints | None = None,
    target: Target | None = None,
) -> Scores:
    """Return scores of the remaining channels by their original indices; removed channels keep their last score.

    Args:
        analysis: Coupling analysis of the original.
        scores: Scores of the step before; None in the first step.
        removed: Group -> indices of the removed channels.
        criterion: Name or instance.
        options: Arguments of `score`.
        pruned: Model without these channels, if its weights have changed since (recovered or retrained).
        blocks: Removed blocks.
        constraints: Constraints of the plan: whether blocks are scored, and which.
        target: Target, at which the removal of blocks ends.
    """
    limits = settled(analysis, constraints or Constraints())
    if scores is None:
        return scores_for(analysis, criterion, limits, enough=target_met(analysis, target), **options)
    plan = Plan(
        "",
        {name: Removal(analysis[name].channels, tuple(places.tolist())) for name, places in removed.items()},
        blocks=removals(blocks),
    )
    small = stripped(analysis, plan, pruned)
    none_left = limits.asks_for_blocks and not removable(small, limits)
    if limits.blocks_alone and none_left:
        return replace(scores, blocks={})
    if none_left or (limits.max_blocks and len(blocks) >= limits.max_blocks):
        limits = channels_only(limits)
    elif limits.max_blocks:
        limits = replace(limits, max_blocks=limits.max_blocks - len(blocks))
    new = scores_for(small, criterion, limits, enough=target_met(analysis, target, plan), **options)
    groups = {}
    for name, old in scores.groups.items():
        left = np.ones(len(old), bool)
        left[removed.get(name, np.zeros(0, np.int64))] = False
        groups[name] = np.array(old)
        if name in new.groups:
            groups[name][left] = new.groups[name]
    return replace(scores, groups=groups, blocks=new.blocks, criterion=new.criterion)


def stripped(analysis: Analysis, plan: Plan, pruned: Model | None = None) -> Analysis:
    """Return the analysis of the model pruned by a plan, in the components of the original.

    Labels are those of the original without the removed ones. An analysis of the pruned graph would find the same
    channels, but a Reshape may split an axis the other way round there, because another factor is larger.

    Args:
        analysis: Coupling analysis of the original.
        plan: Channels that were removed.
        pruned: Pruned model, if its weights have changed since (recovered or retrained).
    """
    kept = analysis.kept(plan)
    if kept.all() and pruned is None:
        return analysis
    model = pruned
    if model is None:
        passes = removal_passes(plan, analysis)
        model = Pipeline(passes if plan.blocks else passes[:1])(analysis.model)
    seen = witness(model)
    tensors = model.graph.tensors()
    groups = tuple(
        replace(g, components=g.components[kept[g.components]], sites=sites)
        for g in analysis.groups
        if (sites := tuple(s for s in g.sites if s[0] in tensors)) or not g.sites
    )
    blocks = tuple(_remaining_block(b, tensors) for b in analysis.blocks if b.output in tensors and b.branch in tensors)
    table = LabelTable(seen.shapes, seen.values, model.opset, analysis.table.choices, seen.sizes, seen.formulas)
    _compress(analysis, kept, table, tensors)
    for site in analysis.table.filter_sites:
        if site.tensor.name not in tensors:
            continue  # in a removed block
        labels = _remaining_labels(analysis, kept, site.labels)
        weight = tensors[site.tensor.name]
        # The filters of a grouped ConvTranspose [in, out / groups, ...]: entire groups may be removed, or some of each.
        count = site.groups if site.groups == 1 else len(labels) // int(table.shape(weight)[1])
        table.filter_sites.append(replace(site, tensor=weight, labels=labels, groups=count))
    for scale in analysis.table.scale_sites:
        if scale.tensor.name not in tensors:
            continue
        table.scale_sites.append(
            replace(scale, tensor=tensors[scale.tensor.name], labels=_remaining_labels(analysis, kept, scale.labels))
        )
    return replace(analysis, source=model, model=model, witness=seen, table=table, groups=groups, blocks=blocks)


def _remaining_block(block: Block, tensors: Mapping[str, gs.Tensor]) -> Block:
    return replace(block, nodes=tuple(n for n in block.nodes if n in tensors))


def _remaining_labels(analysis: Analysis, kept: Kept, labels: Labels) -> Labels:
    return labels[kept[analysis.component[labels]]]


def _compress(analysis: Analysis, kept: Kept, table: LabelTable, tensors: Mapping[str, gs.Tensor]) -> None:
    """Fill a table with the remaining labels of every tensor."""
    made: dict[int, Labels] = {}  # consecutive tensors share label arrays, and continue to

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
    table.views = {name: (tensors[root.name], perm) for name, (root, perm) in old.views.items() if root.name in tensors}
    table.variables = {name: axes(a) for name, a in old.variables.items()}
    table.constants = {name: axes(a) for name, a in old.constants.items()}
    table.statistics = [
        replace(s, labels=_remaining_labels(analysis, kept, s.labels)) for s in old.statistics if s.output in tensors
    ]
    table.contractions = [
        replace(c, labels=_remaining_labels(analysis, kept, c.labels)) for c in old.contractions if c.output in tensors
    ]
