"""Residual blocks in a plan: their losses, their order, and the depth at which a budget costs least.

A block adds nothing once every channel of one of its inner groups is removed. Its loss is therefore the total score of
the cheapest such group, in the unit of the channels' scores, so that any criterion weighs depth against width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import onnx_graphsurgeon as gs

from onnxprune.analysis.blocks import Block
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.criteria.normalize import normalize as normalized
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.options.planning import Constraints
from onnxprune.planning.targets import Target
from onnxprune.plans import BlockRemoval, Removal


def asks_for_blocks(constraints: Constraints) -> bool:
    """Return whether a plan may remove blocks."""
    return "blocks" in constraints.only or bool(constraints.max_blocks)


def refuse_blocks(constraints: Constraints | None, what: str) -> None:
    """Raise if a plan may remove blocks where only channels are planned.

    Raises:
        OnnxPruneError: The constraints ask for blocks.
    """
    if constraints is not None and asks_for_blocks(constraints):
        raise OnnxPruneError(
            f"{what} plans channels only",
            fix="leave out --only blocks and --max-blocks, or plan once (--target macs=0.5)",
        )


def channels_only(constraints: Constraints) -> Constraints:
    """Return the constraints of the channels beside the blocks."""
    return replace(constraints, only=tuple(k for k in constraints.only if k not in ("blocks", "channels")))


def chosen_blocks(analysis: Analysis, constraints: Constraints) -> list[Block]:
    """Return the free blocks that may be removed under the patterns and presets.

    Raises:
        OnnxPruneError: None remains.
    """
    out = [
        b
        for b in analysis.free_blocks
        if (not constraints.include or any(fnmatchcase(b.name, p) for p in constraints.include))
        and not any(fnmatchcase(b.name, p) for p in constraints.exclude)
        and b.kind not in constraints.protect
    ]
    if not out and "blocks" in constraints.only:
        raise OnnxPruneError("no block can be removed", fix="see `onnxprune inspect`, and exclude or protect less")
    return out


def inner_groups(analysis: Analysis, block: Block) -> set[str]:
    """Return the groups of which every weight is used in a block only."""
    nodes = set(block.nodes)
    outside: set[str] = set()
    for node in analysis.model.graph.nodes:
        if not node.outputs or node.outputs[0].name not in nodes:
            outside.update(t.name for t in node.inputs if isinstance(t, gs.Constant))
    return {g.name for g in analysis.groups if g.sites and not any(t in outside for t, _ in g.sites)}


def block_losses(scores: Scores, blocks: Sequence[Block], normalization: str, cost: CostModel) -> dict[str, float]:
    """Return the loss of each block: the total score of its cheapest inner group.

    Blocks without an inner group get the mean loss of the others per MAC; if no block has one, all cost their MACs.
    """
    analysis = scores.analysis
    found: dict[str, float] = {}
    for block in blocks:
        inner = inner_groups(analysis, block) & scores.groups.keys()
        totals = [total(normalized(scores.groups[name], normalization)) for name in inner]
        if totals:
            found[block.name] = min(totals)
    macs = {b.name: saved(cost, b, "macs") * cost.baseline.macs for b in blocks}
    known = sum(macs[name] for name in found)
    rate = sum(found.values()) / known if known else 1.0
    return {b.name: found.get(b.name, rate * macs[b.name]) for b in blocks}


def total(values: Iterable[float]) -> float:
    """Return the sum of scores; some normalizations give negative ones, which count as 0."""
    return float(sum(max(0.0, float(v)) for v in values))


def saved(cost: CostModel, block: Block, measure: str, kept: Kept | None = None) -> float:
    """Return the share of a measure that the removal of a block saves, after other removals."""
    before = cost.analysis.kept() if kept is None else kept
    after = before.copy()
    after[block.component] = False
    return cost.share(before, measure) - cost.share(after, measure)


def removal_order(blocks: Sequence[Block], losses: Mapping[str, float], cost: CostModel, measure: str) -> list[Block]:
    """Return the blocks in the order of loss per unit saved; savings are computed again after each removal.

    A block inside one that was removed before saves nothing and is left out.
    """
    kept = cost.analysis.kept()
    left: list[Block] = list(blocks)
    out: list[Block] = []
    while True:
        gains = {b.name: saved(cost, b, measure, kept) for b in left}
        left = [b for b in left if gains[b.name] > 0]
        if not left:
            return out
        best = min(left, key=lambda b: losses[b.name] / gains[b.name])
        kept[best.component] = False
        left.remove(best)
        out.append(best)


def blocks_to_target(order: Sequence[Block], cost: CostModel, target: Target) -> list[Block]:
    """Return the first blocks that bring the share of a measure nearest to a target.

    Raises:
        OnnxPruneError: The target cannot be reached by blocks alone.
    """
    kept = cost.analysis.kept()
    shares = [1.0]
    for block in order:
        kept[block.component] = False
        shares.append(cost.share(kept, target.measure))
    if shares[-1] > target.share + 0.01:
        raise OnnxPruneError(
            f"the target {target.measure}={target.share:g} cannot be reached: without {len(order)} blocks "
            f"{target.measure}={shares[-1]:.3f} stays",
            fix="remove channels as well (--max-blocks instead of --only blocks), or exclude and protect less",
        )
    best = min(range(len(shares)), key=lambda n: abs(shares[n] - target.share))
    return list(order[:best])


def best_depth(
    order: Sequence[Block],
    losses: Mapping[str, float],
    channels: Callable[[Sequence[Block]], tuple[dict[str, Removal], float]],
) -> tuple[list[Block], dict[str, Removal]]:
    """Return the depth at which the target costs least: the first blocks of an order, and the channels beside them.

    Args:
        order: Blocks in order of removal.
        losses: Block name -> loss.
        channels: (removed blocks) -> channels that meet the target beside them, and their loss.

    Raises:
        OnnxPruneError: No depth meets the target.
    """
    found: list[tuple[float, int, dict[str, Removal]]] = []
    failed: OnnxPruneError | None = None
    for count in range(len(order) + 1):
        try:
            groups, lost = channels(order[:count])
        except OnnxPruneError as err:
            failed = failed or err
            continue
        found.append((lost + sum(losses[b.name] for b in order[:count]), count, groups))
    if not found:
        assert failed is not None
        raise failed
    _, count, groups = min(found, key=lambda entry: entry[:2])
    return list(order[:count]), groups


def removals(blocks: Sequence[Block]) -> dict[str, BlockRemoval]:
    """Return the entries of a plan for these blocks."""
    return {b.name: BlockRemoval(b.output, b.operand) for b in blocks}
