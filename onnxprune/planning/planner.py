"""Plans from scores and a ratio, a target or sensitivity curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.blocks import Block, inner_groups
from onnxprune.analysis.cost import CostModel
from onnxprune.criteria.normalize import normalize as normalized
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir.input_sizes import given_shapes
from onnxprune.options.planning import ALLOCATORS
from onnxprune.planning import depth
from onnxprune.planning._search import CLOSE, LATENCY_CLOSE, CountPath, TargetSearch
from onnxprune.planning.allocators import (
    GreedyTrace,
    LatencyGreedy,
    SavingGreedy,
    Values,
    better,
    importance_loss,
    ranked_path,
    total_loss,
    uniform_path,
)
from onnxprune.planning.constraints import DEPTH, Constraints, Counts, FeasibleCounts, check_ratio
from onnxprune.planning.curves import Curves
from onnxprune.planning.targets import LatencyPredictor, MeasureShare, Target
from onnxprune.planning.thresholds import check_curves, least_counts, losses, predicted, threshold_of, threshold_path
from onnxprune.plans import Plan, Removal

ChannelOrder = Mapping[str, npt.NDArray[np.int64]]
"""Group name -> channels removed before."""


def plan(
    scores: Scores,
    target: Target | None = None,
    *,
    ratio: float | None = None,
    curves: Curves | None = None,
    min_group_accuracy: float | None = None,
    max_loss: float | None = None,
    latency: LatencyPredictor | None = None,
    allocator: str | None = None,
    normalize: str | None = None,
    constraints: Constraints | None = None,
    tool: str = "",
) -> Plan:
    """Return a plan: in every group the channels with the lowest scores are removed, ties to the lower index.

    Args:
        scores: Scores of the groups.
        target: Share of a measure to keep, met within 1 % (latency: 2 %) or to the nearest channel.
        ratio: Share removed from every group, instead of a target.
        curves: Sensitivity curves for the same criterion. With a threshold and no target, every group is pruned as far
            as its own curve allows, all at once (the parallel pruning of Park & Kim 2022); groups without a curve
            are not pruned. A threshold also bounds plans for a target, with any allocator.
        min_group_accuracy: Threshold for metrics where higher is better.
        max_loss: Threshold for metrics where lower is better.
        latency: Latency model, for a latency target or allocator.
        allocator: How a target is shared. "global": ranks all channels by normalized score. "uniform": removes the same
            share of every group. "sensitivity": prunes all groups to the same threshold on their curves. "latency":
            least loss (importance, or metric with curves) per predicted second saved. "saving": least loss per unit of
            the target saved. Default: sensitivity with curves, latency for a latency target, else the criterion's
            default: saving for `obs`, global for the others.
        normalize: How scores of different groups are made comparable; default: the criterion's own.
        constraints: Rounding, protection, overrides.
        tool: Version, for the record.

    Raises:
        OnnxPruneError: Neither or both of target and ratio; a share out of range; a pattern or preset that matches
            nothing; a target that cannot be reached (names the least share); curves for other scores; or an invalid
            threshold.
    """
    given = min_group_accuracy is not None or max_loss is not None
    allocator = check_allocator(
        allocator, target, ratio, curves=curves, threshold=given, latency=latency, default=scores.default_allocator
    )
    request = AllocationRequest(target, ratio, allocator, normalize or scores.normalize, constraints or Constraints())
    if request.constraints.asks_for_blocks:
        if curves is not None:
            raise OnnxPruneError(
                "blocks are planned by scores, not by curves",
                fix="leave --curves out, or --only blocks and --max-blocks",
            )
        groups, blocks = allocate_depth(scores, request, latency=latency)
        record: dict[str, Any] = {"scope": allocator} if groups and allocator in ("latency", "saving") else {}
        return assembled(scores, request, groups, record, tool, blocks)
    if curves is not None:
        check_curves(curves, scores)
    threshold = threshold_of(curves, min_group_accuracy, max_loss, target=target is not None)
    groups = allocate(scores, request, curves=curves, threshold=threshold, latency=latency)
    record = {}
    if allocator in ("sensitivity", "latency", "saving"):
        record["scope"] = allocator
    if curves is not None and (allocator == "sensitivity" or threshold is not None):
        worst = threshold if threshold is not None else predicted(curves, removed_counts(groups))
        record |= {"metric": curves.metric, "threshold": worst}
    return assembled(scores, request, groups, record, tool)


@dataclass(frozen=True)
class AllocationRequest:
    """Request to an allocator: a target or a ratio (or neither: as far as the curves allow), and its options.

    Attributes:
        blocks: Residual blocks removed beforehand; groups inside them are not pruned.
        path: Residual blocks that compete with channels for the target, in order of removal, with their losses; for the
            allocators "saving" and "latency".
    """

    target: Target | None
    ratio: float | None
    allocator: str
    normalize: str
    constraints: Constraints
    blocks: tuple[Block, ...] = ()
    path: tuple[tuple[Block, float], ...] = ()


def resolve_allocator(allocator: str | None, target: Target | None, curves: Curves | None, default: str) -> str:
    """Return the allocator for a name or None; `default` is the criterion's."""
    latency = target is not None and target.measure == "latency"
    if allocator is None and curves is not None:
        return "sensitivity"
    if allocator is None and target is None:
        return "global"
    if latency and allocator in (None, "saving"):
        return "latency"  # the unit saved is seconds
    return allocator or default


def check_allocator(
    allocator: str | None,
    target: Target | None,
    ratio: float | None,
    *,
    curves: Curves | None = None,
    threshold: bool = False,
    latency: LatencyPredictor | None = None,
    default: str = "global",
) -> str:
    """Return the allocator, resolved if None and checked against the other arguments; `default` is the criterion's.

    Raises:
        OnnxPruneError: Arguments contradict each other, or one is missing.
    """
    if ratio is not None and (curves is not None or threshold):
        raise OnnxPruneError(
            "a ratio removes the same share of every group, curves do not", fix="use a target or a threshold instead"
        )
    if (target is None) == (ratio is None) and not (threshold and target is None and ratio is None):
        fix = "--ratio 0.3, or --target macs=0.5" + (", or --min-group-accuracy 0.9" if curves is not None else "")
        raise OnnxPruneError("give either a ratio or a target", fix=fix)
    allocator = resolve_allocator(allocator, target, curves, default)
    if allocator not in ALLOCATORS:
        raise unknown("allocator", allocator, ALLOCATORS)
    if ratio is not None:
        check_ratio(ratio)
        if allocator not in ("global", "uniform"):
            raise OnnxPruneError(f"the allocator {allocator!r} needs a target; a ratio prunes all groups alike")
    if allocator == "sensitivity" and curves is None:
        raise OnnxPruneError(
            "the allocator 'sensitivity' needs curves", fix="--curves FILE, from `onnxprune sensitivity`"
        )
    if allocator == "latency" and latency is None:
        raise OnnxPruneError(
            "the allocator 'latency' needs a latency model", fix="plan(..., latency=op.latency_model(groups))"
        )
    if target is None and ratio is None and curves is not None and allocator != "sensitivity":
        raise OnnxPruneError(
            f"the allocator {allocator!r} needs a target; without one only the curves decide", fix="--target macs=0.5"
        )
    return allocator


def allocate(
    scores: Scores,
    request: AllocationRequest,
    *,
    curves: Curves | None = None,
    threshold: float | None = None,
    latency: LatencyPredictor | None = None,
    removed: ChannelOrder | None = None,
    final: bool = True,
    cost: CostModel | None = None,
    trace: GreedyTrace | None = None,
) -> dict[str, Removal]:
    """Return the removals that share a budget among the groups; arguments are not checked.

    Args:
        scores: Scores of the groups; scores of channels removed before are ignored.
        request: Target or ratio, allocator and options.
        curves: Sensitivity curves of the groups.
        threshold: Threshold of their metric.
        latency: Latency model.
        removed: Channels removed before; constraints and shares refer to the original all the same.
        final: Whether the target must be met; if not, the plan stops short of it by complete blocks.
        cost: Cost model of the analysis, if available.
        trace: Trace of the allocator "saving", from earlier calls that differ in the target's share only.

    Raises:
        OnnxPruneError: See `plan`.
    """
    return _allocated(
        scores, request, curves=curves, threshold=threshold, latency=latency, removed=removed, final=final, cost=cost,
        trace=trace,
    ).groups  # fmt: skip


@dataclass(frozen=True)
class _Allocation:
    """Removed channels, the number of blocks of a path removed with them, and the loss of both.

    Attributes:
        gap: Distance of the measure from the target; 0 within its tolerance.
    """

    groups: dict[str, Removal]
    blocks: int
    loss: float
    gap: float = 0.0


def _allocated(
    scores: Scores, request: AllocationRequest, *, curves: Curves | None = None, threshold: float | None = None,
    latency: LatencyPredictor | None = None, removed: ChannelOrder | None = None, final: bool = True,
    cost: CostModel | None = None, trace: GreedyTrace | None = None,
) -> _Allocation:  # fmt: skip
    _check_comparable(scores, request)
    analysis = scores.analysis
    before = {name: np.sort(places) for name, places in (removed or {}).items()}
    by_curves = curves is not None and (
        threshold is not None or request.allocator in ("sensitivity", "latency", "saving")
    )
    least = least_counts(curves, scores, threshold) if by_curves and curves is not None else None
    left = {name: analysis[name].channels - len(places) for name, places in before.items()}
    inside = frozenset().union(*(inner_groups(analysis.model.graph, analysis.groups, b) for b in request.blocks))
    scored = [name for name in scores.groups if name not in inside]
    path = depth.as_group(analysis, request.path)
    feasible = FeasibleCounts(analysis, request.constraints, scored, remaining=left, least=least, depth=path)
    order: dict[str, npt.NDArray[np.int64]] = {}
    ranked: dict[str, Values] = {}
    for g in feasible.groups:
        if g.name == DEPTH:
            order[DEPTH] = np.arange(g.channels)
            continue
        first = before.get(g.name, np.zeros(0, np.int64))
        rest = np.setdiff1d(np.arange(g.channels), first)
        values = scores.groups[g.name][rest]
        ascending = np.argsort(values, kind="stable")
        order[g.name] = np.concatenate([first, rest[ascending]])
        ranked[g.name] = normalized(values, request.normalize)[ascending]
    counts = _counts(scores, request, feasible, order, ranked, curves, latency, final, cost, trace)
    within = feasible.inside(counts)
    groups = {
        g.name: Removal(g.channels, tuple(sorted(order[g.name][: g.channels - counts[g.name]].tolist())))
        for g in feasible.groups
        if counts[g.name] < g.channels and g.name != DEPTH and (g.name not in within or g.name in before)
    }
    gone = path.group.channels - counts[DEPTH] if path is not None else 0
    lost = total_loss(feasible, _losses(feasible, ranked, None), counts) if request.target is not None else 0.0
    return _Allocation(groups, gone, lost)


def allocate_depth(
    scores: Scores,
    request: AllocationRequest,
    *,
    latency: LatencyPredictor | None = None,
    removed: ChannelOrder | None = None,
    final: bool = True,
    least: int = 0,
    cost: CostModel | None = None,
) -> tuple[dict[str, Removal], list[Block]]:
    """Return the channels and the blocks, those of `request.blocks` included, that share a budget.

    With blocks alone, the first blocks of the order of removal meet the target. Beside channels, the allocators
    "saving" and "latency" remove what loses least per unit saved, block or channels, and the plans beside one block
    less, one more and none are compared with the result. The other allocators plan channels beside every number of
    blocks, and the plan that loses least is used.

    Args:
        scores: Scores of the channels and blocks.
        request: Target or ratio, allocator and options.
        latency: Latency model.
        removed: Channels removed before.
        final: Whether the target must be met.
        least: With blocks alone, the least number of further blocks, if there are any.
        cost: Cost model of the analysis; default: a new one.

    Raises:
        OnnxPruneError: See `plan`.
    """
    analysis, gone = scores.analysis, request.blocks
    limits = depth.settled(analysis, request.constraints)
    _check_comparable(scores, replace(request, allocator="saving"))
    cost = cost or CostModel(analysis)
    measure = request.target.measure if request.target is not None else "macs"
    meter = MeasureShare(cost, measure, latency)
    path = depth.block_path(scores, limits, request.normalize, cost, meter, gone)
    order = [b for b, _ in path]
    if limits.blocks_alone:
        if request.target is None:
            assert request.ratio is not None
            count = int(len(depth.chosen_blocks(analysis, limits)) * request.ratio + 1e-9)
            return {}, [*gone, *order[: max(0, count - len(gone))]]
        start = analysis.kept()
        start[[c for b in gone for c in b.components]] = False
        return {}, [*gone, *depth.blocks_to_target(order, meter, request.target, start, final=final, least=least)]
    target = request.target
    if request.ratio is not None or target is None:
        raise OnnxPruneError("blocks beside channels need a target", fix="--target macs=0.5")
    inner = replace(request, constraints=depth.channels_only(limits))

    def beside(count: int, competing: int = 0) -> _Allocation:
        how = replace(inner, blocks=(*gone, *order[:count]), path=tuple(path[count : count + competing]))
        found = _allocated(scores, how, latency=latency, removed=removed, final=final, cost=cost)
        gone_then = depth.removals([*gone, *order[: count + found.blocks]])
        share = meter.share(analysis.kept(Plan("", found.groups, blocks=gone_then)))
        gap = abs(share - target.share)
        return _Allocation(
            found.groups, count + found.blocks, found.loss + sum(loss for _, loss in path[:count]),
            gap if gap > (LATENCY_CLOSE if measure == "latency" else CLOSE) else 0.0,
        )  # fmt: skip

    if request.allocator in ("saving", "latency"):
        best = depth.best_of(beside, len(path), final=final)
    else:
        best = depth.least_loss([partial(beside, n) for n in range(len(path) + 1)])
    return best.groups, [*gone, *order[: best.blocks]]


def _check_comparable(scores: Scores, request: AllocationRequest) -> None:
    """Raise if the criterion's definition forbids the normalization or a ranking across layers."""
    forbids = scores.forbids
    name = scores.criterion.get("name")
    if "normalize" in forbids and request.normalize != scores.normalize:
        raise OnnxPruneError(f"criterion {name!r} must not be normalized: {forbids['normalize']}")
    if "global" in forbids and request.target is not None and request.allocator in ("global", "latency", "saving"):
        raise OnnxPruneError(
            f"scores of {name!r} cannot be ranked across layers: {forbids['global']}",
            fix="remove the same share of every group (--ratio, or --allocator uniform), or --curves",
        )


def _counts(
    scores: Scores,
    request: AllocationRequest,
    feasible: FeasibleCounts,
    order: ChannelOrder,
    ranked: Mapping[str, Values],
    curves: Curves | None,
    latency: LatencyPredictor | None,
    final: bool,
    cost: CostModel | None,
    trace: GreedyTrace | None,
) -> Counts:
    """Return the number of channels that every group keeps."""
    target = request.target
    if request.ratio is not None:
        return feasible.uniform(request.ratio)
    if target is None:
        return feasible.smallest(feasible.step)  # the counts that the curves allow, in complete blocks
    if target.share >= 1 and not feasible.fixed and not feasible.ratios:
        return feasible.uniform(0.0)
    analysis = scores.analysis
    start = analysis.kept()
    start[[c for b in request.blocks for c in b.components]] = False
    meter = MeasureShare(cost or CostModel(analysis), target.measure, latency)
    search = TargetSearch(analysis, feasible, order, meter, target.share, start)
    if request.allocator == "latency":
        assert latency is not None
        lost = _losses(feasible, ranked, curves)
        greedy = LatencyGreedy(search, latency, lost)
        above, below = greedy.run()
        if not final:
            return above
        rivals = search.settle(below), search.nearest(ranked_path(feasible, ranked))
        counts = better(greedy, *map(greedy.filled, rivals))
    elif request.allocator == "saving":
        saving = SavingGreedy(search, _losses(feasible, ranked, curves), trace)
        if not final:
            return saving.first()[0]
        counts = saving.best(
            saving.run(), *map(search.nearest, (ranked_path(feasible, ranked), uniform_path(feasible)))
        )
    else:
        path = _path(request.allocator, feasible, ranked, curves)
        if not final:
            return search.before(path)
        counts = search.nearest(path)
    search.check(counts, _suggestion(request, curves))
    return counts


def _path(allocator: str, feasible: FeasibleCounts, ranked: Mapping[str, Values], curves: Curves | None) -> CountPath:
    if allocator == "uniform":
        return uniform_path(feasible)
    if allocator == "sensitivity":
        assert curves is not None
        return threshold_path(curves, feasible)
    return ranked_path(feasible, ranked)


def _losses(feasible: FeasibleCounts, ranked: Mapping[str, Values], curves: Curves | None) -> dict[str, Values]:
    """Return the loss with 0, 1, 2 ... channels of each free group removed: metric by curves, else importance."""
    if curves is None:
        return importance_loss(feasible, ranked)
    return {g.name: losses(curves, g.name) if g.name in curves.groups else np.zeros(1) for g in feasible.free}


def _suggestion(request: AllocationRequest, curves: Curves | None) -> str:
    more = "raise --max-ratio, lower --min-channels, exclude or protect less (see `onnxprune inspect`)"
    if curves is not None and request.allocator in ("sensitivity", "latency", "saving"):
        return "sweep larger ratios with `onnxprune sensitivity`, accept a worse metric, or " + more
    if request.target is not None and request.target.measure == "latency":
        return f"use a larger share, or {more}; smaller blocks (--round-to) give more choices"
    return more


def removed_counts(groups: Mapping[str, Removal]) -> dict[str, int]:
    """Return the number of removed channels of each group."""
    return {name: len(r.removed) for name, r in groups.items()}


def assembled(
    scores: Scores, request: AllocationRequest, groups: Mapping[str, Removal], record: Mapping[str, Any], tool: str,
    blocks: Sequence[Block] = (),
) -> Plan:  # fmt: skip
    """Return the plan with a record of its criterion and options."""
    analysis = scores.analysis
    shapes = given_shapes(analysis.source)
    return Plan(
        analysis.source.fingerprint,
        groups,
        {**scores.criterion, "normalize": request.normalize, **record},
        {**analysis.choices.options(), **({"shapes": shapes} if shapes else {})},
        tool,
        depth.removals(blocks),
    )
