"""Residual blocks in a plan: their losses, their order, and the depth at which a budget costs least.

A block adds nothing once every channel of one of its inner groups is removed. Without losses of its own, a block costs
the total score of the cheapest such group, in the unit of the channels' scores, so that any criterion weighs depth
against width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from onnxprune._utils.output.formatting import counted
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.blocks import Block, inner_groups
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis, Group, Kept
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria import get as get_criterion
from onnxprune.criteria.model_runs.block_runs import removal_path
from onnxprune.criteria.normalize import normalize as normalized
from onnxprune.criteria.scoring import Scores, score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.options.planning import Constraints
from onnxprune.planning.constraints import DEPTH, BlockPath, check_patterns, prunable
from onnxprune.planning.targets import MeasureShare, Target
from onnxprune.plans import BlockRemoval, Plan

KINDS = ("blocks", "channels")
"""Entries of `only` that are no kinds of groups."""


def refuse_blocks(constraints: Constraints | None, what: str) -> None:
    """Raise if a plan may remove blocks where only channels are planned.

    Raises:
        OnnxPruneError: The constraints ask for blocks.
    """
    if constraints is not None and constraints.asks_for_blocks:
        raise OnnxPruneError(
            f"{what} plans channels only",
            fix="leave out --only blocks and --max-blocks, or plan once (--target macs=0.5)",
        )


def channels_only(constraints: Constraints) -> Constraints:
    """Return the constraints of the channels beside the blocks; patterns that name blocks only are left out."""
    return replace(constraints, only=tuple(k for k in constraints.only if k not in KINDS), max_blocks=0)


def settled(analysis: Analysis, constraints: Constraints) -> Constraints:
    """Return the constraints of a plan; blocks alone where the patterns and presets leave no channels beside them."""
    if not constraints.asks_for_blocks or constraints.blocks_alone:
        return constraints
    if prunable(analysis, channels_only(constraints)) or not removable(analysis, constraints):
        return constraints
    return replace(constraints, only=("blocks",))


def included(analysis: Analysis, constraints: Constraints) -> str:
    """Return a remark for patterns that leave blocks alone although channels are asked for; "" for others."""
    found = settled(analysis, constraints)
    if found.only == constraints.only or not constraints.include:
        return ""
    names = [b.name for b in removable(analysis, found)]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"note: --include names {counted(len(names), 'block')} and no channels: {shown}; all channels are kept"


def scores_for(
    analysis: Analysis,
    criterion: str | AnyCriterion,
    constraints: Constraints,
    *,
    enough: Callable[[Kept], bool] | None = None,
    reduce: str | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Scores:
    """Return the scores that a plan under these constraints needs: of channels, of blocks, or of both.

    Blocks are scored by the criterion itself if it has losses of blocks, in the unit of its channels where both are
    planned together.

    Args:
        analysis: Coupling analysis of the model.
        criterion: Name or instance; `params` are its parameters.
        constraints: Constraints of the plan.
        enough: (kept components) -> whether no more blocks are needed; see `target_met`.
        reduce: How the scores of a group's weights are combined.
        calibration: Calibration data, for criteria that need it.
        progress: Called with (done, total).
        params: Parameters of the criterion, if it is given by name.

    Raises:
        OnnxPruneError: See `score`; or no block can be removed.
    """
    rule = get_criterion(criterion, **params) if isinstance(criterion, str) else criterion
    constraints = settled(analysis, constraints)
    alone = constraints.blocks_alone
    blocks = chosen_blocks(analysis, constraints) if constraints.asks_for_blocks else []
    scorer = None
    if blocks and (alone or rule.blocks_beside_channels):
        scorer = rule.block_scorer(analysis, calibration, len(blocks))
    if scorer is None:
        return score(analysis, rule, reduce=reduce, calibration=calibration, progress=progress)
    if alone:
        fields: dict[str, Any] = asdict(rule) if is_dataclass(rule) and not isinstance(rule, type) else {}
        settings = {"name": rule.name, "reduce": reduce or rule.default_reduce, **fields}
        read = calibration.as_dict() if calibration is not None and rule.needs != "weights" else {}
        scores = Scores(analysis, {}, settings, rule.default_normalize, data=read)
    else:
        scores = score(analysis, rule, reduce=reduce, calibration=calibration, progress=progress)
    found = removal_path(analysis, blocks, scorer, most=constraints.max_blocks, enough=enough, progress=progress)
    return replace(scores, blocks=found)


def target_met(analysis: Analysis, target: Target | None, plan: Plan | None = None) -> Callable[[Kept], bool] | None:
    """Return whether blocks alone meet a target, as a function of the kept components; None if this is not known.

    Args:
        analysis: Coupling analysis of the original.
        target: Target of the plan.
        plan: Channels and blocks that were removed before.
    """
    if target is None or target.measure == "latency":
        return None
    meter, before = MeasureShare(CostModel(analysis), target.measure), analysis.kept(plan)
    share = target.share
    return lambda kept: meter.share(kept & before) <= share


def block_path(
    scores: Scores, constraints: Constraints, normalization: str, cost: CostModel, meter: MeasureShare,
    gone: Sequence[Block] = (),
) -> list[tuple[Block, float]]:  # fmt: skip
    """Return the blocks that may be removed, in order of removal, with the loss of each beside those before.

    Args:
        scores: Scores of the channels, and of the blocks if the criterion has any.
        constraints: Constraints of the plan.
        normalization: How scores of channels are made comparable.
        cost: Cost model of the analysis.
        meter: Measure that is saved.
        gone: Blocks that were removed before.

    Raises:
        OnnxPruneError: No block may be removed.
    """
    check_patterns(scores.analysis, constraints)
    blocks = [b for b in chosen_blocks(scores.analysis, constraints) if b not in gone]
    most = max(0, constraints.max_blocks - len(gone)) if constraints.max_blocks else len(blocks)
    if scores.blocks:
        by_name = {b.name: b for b in blocks}
        found = [(by_name[name], max(0.0, loss)) for name, loss in scores.blocks.items() if name in by_name]
    else:
        losses = block_losses(scores, blocks, normalization, cost)
        found = [(b, losses[b.name]) for b in removal_order(blocks, losses, meter, scores.analysis.kept(), gone)]
    return found[:most]


def block_scores(scores: Scores) -> dict[str, float]:
    """Return block -> loss beside those before, in order of removal, of all blocks that can be removed.

    Raises:
        OnnxPruneError: No block can be removed.
    """
    cost = CostModel(scores.analysis)
    path = block_path(scores, Constraints(only=("blocks",)), scores.normalize, cost, MeasureShare(cost, "macs"))
    return {block.name: loss for block, loss in path}


def as_group(analysis: Analysis, path: Sequence[tuple[Block, float]]) -> BlockPath | None:
    """Return a path as a group of which each channel is a block; None for an empty path."""
    if not path:
        return None
    components = np.array([b.component for b, _ in path], np.int64)
    losses = np.cumsum([0.0, *(loss for _, loss in path)])
    inside = tuple(inner_groups(analysis.model.graph, analysis.groups, b) for b, _ in path)
    together = tuple(np.array(b.components, np.int64) for b, _ in path)
    return BlockPath(Group(DEPTH, components, 1, (), "Add"), len(path), losses, inside, together)


def outermost(blocks: Iterable[Block]) -> list[Block]:
    """Return the blocks that lie in no other of them, in the given order."""
    found = [(b, frozenset(b.nodes)) for b in blocks]
    return [b for b, nodes in found if not any(nodes < other for _, other in found)]


def chosen_blocks(analysis: Analysis, constraints: Constraints) -> list[Block]:
    """Return the free blocks that may be removed under the patterns and presets.

    Raises:
        OnnxPruneError: None remains.
    """
    out = removable(analysis, constraints)
    if not out and "blocks" in constraints.only:
        check_patterns(analysis, constraints)
        raise OnnxPruneError("no block can be removed", fix="see `onnxprune inspect`, and exclude or protect less")
    return out


def removable(analysis: Analysis, constraints: Constraints) -> list[Block]:
    """Return the blocks of `chosen_blocks`; empty if none remains."""
    return [
        b
        for b in analysis.free_blocks
        if (not constraints.include or any(fnmatchcase(b.name, p) for p in constraints.include))
        and not any(fnmatchcase(b.name, p) for p in constraints.exclude)
        and b.kind not in constraints.protect
    ]


def block_losses(scores: Scores, blocks: Sequence[Block], normalization: str, cost: CostModel) -> dict[str, float]:
    """Return the loss of each block: the total score of its cheapest inner group.

    Blocks without an inner group get the mean loss of the others per MAC; if no block has one, all cost their MACs.
    """
    analysis = scores.analysis
    found: dict[str, float] = {}
    for block in blocks:
        inner = inner_groups(analysis.model.graph, analysis.groups, block) & scores.groups.keys()
        totals = [total(normalized(scores.groups[name], normalization)) for name in inner]
        if totals:
            found[block.name] = min(totals)
    whole, meter = analysis.kept(), MeasureShare(cost, "macs")
    macs = {b.name: saved(meter, b, whole) * cost.baseline.macs for b in blocks}
    known = sum(macs[name] for name in found)
    rate = sum(found.values()) / known if known else 1.0
    return {b.name: found.get(b.name, rate * macs[b.name]) for b in blocks}


def total(values: Iterable[float]) -> float:
    """Return the sum of scores; some normalizations give negative ones, which count as 0."""
    return float(sum(max(0.0, float(v)) for v in values))


def saved(meter: MeasureShare, block: Block, kept: Kept) -> float:
    """Return the share of a measure that the removal of a block saves, after other removals."""
    after = kept.copy()
    after[block.components] = False
    return meter.share(kept) - meter.share(after)


def removal_order(
    blocks: Sequence[Block], losses: Mapping[str, float], meter: MeasureShare, kept: Kept, gone: Sequence[Block] = ()
) -> list[Block]:
    """Return the blocks in the order of loss per unit saved; savings are computed again after each removal.

    A block inside one that was removed before saves nothing and is left out.
    """
    kept = kept.copy()
    kept[[c for b in gone for c in b.components]] = False
    left: list[Block] = list(blocks)
    out: list[Block] = []
    while True:
        gains = {b.name: saved(meter, b, kept) for b in left}
        left = [b for b in left if gains[b.name] > 0]
        if not left:
            return out
        best = min(left, key=lambda b: losses[b.name] / gains[b.name])
        kept[best.components] = False
        left.remove(best)
        out.append(best)


def blocks_to_target(
    order: Sequence[Block], meter: MeasureShare, target: Target, kept: Kept, *, final: bool = True, least: int = 0
) -> list[Block]:
    """Return the first blocks that bring the share of a measure nearest to a target.

    Args:
        order: Blocks in order of removal.
        meter: Shares of the measure.
        target: Target.
        kept: Components kept before.
        final: Whether the target must be met; else the share does not fall below it.
        least: Least number of blocks.

    Raises:
        OnnxPruneError: The target cannot be reached by blocks alone.
    """
    kept = kept.copy()
    shares = [meter.share(kept)]
    for block in order:
        kept[block.components] = False
        shares.append(meter.share(kept))
    if not final:
        return list(order[: max(n for n, share in enumerate(shares) if share >= target.share or not n)])
    if shares[-1] > target.share + 0.01:
        raise OnnxPruneError(
            f"the target {target.measure}={target.share:g} cannot be reached: without {len(order)} blocks "
            f"{target.measure}={shares[-1]:.3f} stays",
            fix="remove channels as well (--max-blocks instead of --only blocks), or exclude and protect less",
        )
    best = min(range(min(least, len(order)), len(shares)), key=lambda n: abs(shares[n] - target.share))
    return list(order[:best])


class Allocation(Protocol):
    """Answer of an allocator: the number of blocks that it removes, its loss, and its distance from the target."""

    @property
    def blocks(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def gap(self) -> float: ...


Answer = TypeVar("Answer", bound=Allocation)


def least_loss(plans: Iterable[Callable[[], Answer]]) -> Answer:
    """Return the plan that loses least of those nearest to the target; plans that cannot be made are left out.

    Raises:
        OnnxPruneError: No plan meets the target.
    """
    found: list[Answer] = []
    failed: OnnxPruneError | None = None
    for make in plans:
        try:
            found.append(make())
        except OnnxPruneError as err:
            failed = failed or err
    if not found:
        assert failed is not None
        raise failed
    return min(found, key=lambda plan: (plan.gap, plan.loss))


def _made(plan: Answer) -> Callable[[], Answer]:
    return lambda: plan


def best_of(beside: Callable[[int, int], Answer], blocks: int, *, final: bool) -> Answer:
    """Return the best of plans in which blocks and channels compete, and of those beside a fixed number of blocks.

    The greedy choice decides the number of blocks. Channels that it removed before a block do not suit the model
    without that block, so they are chosen again beside it, and beside one more, one less, and none.

    Args:
        beside: (removed blocks, blocks that compete) -> plan.
        blocks: Number of blocks of the path.
        final: Whether the target must be met; else only the greedy choice is made, which stops short of it.

    Raises:
        OnnxPruneError: No plan meets the target.
    """
    if not final:
        return beside(0, blocks)
    greedy: list[Answer] = []
    failed: OnnxPruneError | None = None
    try:
        greedy.append(beside(0, blocks))
    except OnnxPruneError as err:
        failed = err
    count = greedy[0].blocks if greedy else blocks
    depths = sorted({0, count - 1, count, count + 1} & set(range(blocks + 1)))
    try:
        plans: list[Callable[[], Answer]] = [_made(plan) for plan in greedy]
        plans += [partial(beside, n, 0) for n in depths]
        return least_loss(plans)
    except OnnxPruneError as err:
        raise (failed or err) from None


def removals(blocks: Sequence[Block]) -> dict[str, BlockRemoval]:
    """Return the entries of a plan for these blocks."""
    return {b.name: BlockRemoval(b.output, b.operand) for b in blocks}
