"""Allocators: how a budget is shared among groups, from nothing removed to everything the constraints allow.

| allocator   | removed first                                                                          |
|-------------|----------------------------------------------------------------------------------------|
| uniform     | the same share of every group                                                          |
| global      | the channels with the lowest normalized score in any group                             |
| sensitivity | the channels with the lowest loss by the curves: all groups to one metric threshold    |
| latency     | the block of channels that loses least importance per predicted second saved           |
| saving      | the channels that lose least importance per unit of the target saved                   |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Group
from onnxprune.planning._lazy_greedy import Price, lazy_greedy
from onnxprune.planning._search import CountPath, TargetSearch
from onnxprune.planning.constraints import Counts, FeasibleCounts
from onnxprune.planning.targets import LatencyPredictor

Values = npt.NDArray[np.float64]

_RATIOS = 2048  # steps of the uniform path
_FILLER = 4.0  # highest price of a block that fills a gap, as a multiple of that of the block too large for it
_NOTHING = 1e-6  # share of the baseline latency below which a saving counts as zero


def uniform_path(feasible: FeasibleCounts) -> CountPath:
    """Return the path that removes the same share of every group, up to the largest ratio."""
    most = feasible.constraints.max_ratio
    return CountPath(lambda i, step: feasible.uniform(min(i / _RATIOS, most), step), _RATIOS)


def ranked_path(feasible: FeasibleCounts, ranked: Mapping[str, Values]) -> CountPath:
    """Return the path that removes channels by one ranking over all free groups, lowest first.

    Args:
        feasible: Counts that groups may keep.
        ranked: Group name -> comparable scores of its remaining channels, ascending.
    """
    free = feasible.widths
    values = np.concatenate([ranked[g.name] for g in free] or [np.zeros(0)])
    owner = np.concatenate([np.full(len(ranked[g.name]), i) for i, g in enumerate(free)] or [np.zeros(0, np.int64)])
    ranking = owner[np.argsort(values, kind="stable")]

    def counts_at(removed: int, step: int) -> Counts:
        gone = np.bincount(ranking[:removed], minlength=len(free))
        out = feasible.uniform(0.0)
        for g, n in zip(free, gone.tolist(), strict=True):
            out[g.name] = feasible.rounded(g, max(feasible.remaining[g.name] - n, feasible.minimum_of(g)), step)
        return out

    return CountPath(counts_at, len(ranking))


def importance_loss(feasible: FeasibleCounts, ranked: Mapping[str, Values]) -> dict[str, Values]:
    """Return summed scores of 0, 1, 2 ... removed channels per group, [channels + 1]; earlier removals count 0.

    Some normalizations give negative scores; the lowest score then counts as 0, so that removal never gains importance.
    """
    least = min((float(ranked[g.name].min()) for g in feasible.widths if len(ranked[g.name])), default=0.0)
    out = {}
    for g in feasible.widths:
        steps = ranked[g.name] - min(least, 0.0)
        before = np.zeros(g.channels - len(steps) + 1)
        out[g.name] = np.concatenate([before, np.cumsum(steps)])
    if feasible.depth is not None:
        out[feasible.depth.group.name] = feasible.depth.losses
    return out


def total_loss(feasible: FeasibleCounts, losses: Mapping[str, Values], counts: Counts) -> float:
    """Return the total loss at these counts; channels inside removed blocks lose nothing besides."""
    inside = feasible.inside(counts)
    return sum(float(losses[g.name][g.channels - counts[g.name]]) for g in feasible.free if g.name not in inside)


def added_losses(
    feasible: FeasibleCounts, losses: Mapping[str, Values], counts: Counts, g: Group, options: npt.NDArray[np.int64]
) -> Values:
    """Return what the loss grows by if a group keeps each of some counts; a removed block refunds the groups inside."""
    added: Values = losses[g.name][g.channels - options] - losses[g.name][g.channels - counts[g.name]]
    depth = feasible.depth
    if depth is None or g is not depth.group:
        return added
    before = total_loss(feasible, losses, counts)
    return np.array([total_loss(feasible, losses, {**counts, g.name: n}) - before for n in options.tolist()])


def watched_of(feasible: FeasibleCounts) -> int | None:
    """Return the number of the candidate that others make cheaper: the blocks around their channels."""
    return len(feasible.free) - 1 if feasible.depth is not None else None


Steps = Iterator[tuple[Counts, float]]


class GreedyTrace:
    """Cached steps of a greedy search: the path to one goal is a prefix of the path to a lower one."""

    def __init__(self) -> None:
        self._steps: Steps | None = None
        self._gone: list[tuple[Counts, float]] = []

    def passing(self, goal: float, begin: Callable[[], Steps]) -> tuple[Counts, Counts]:
        """Return the last counts above a goal and the first that are not; twice the same if only one kind exists.

        Args:
            goal: Share kept.
            begin: Returns the steps (counts, share kept), from the start with non-increasing shares; called once.
        """
        if self._steps is None:
            self._steps = begin()
        place = 0
        while True:
            if place == len(self._gone):
                found = next(self._steps, None)
                if found is None:
                    return self._gone[-1][0], self._gone[-1][0]
                self._gone.append(found)
            if self._gone[place][1] <= goal:
                return self._gone[max(place - 1, 0)][0], self._gone[place][0]
            place += 1


def _moves_peaks(search: TargetSearch) -> bool:
    """Return whether a removal may make others cheaper: the peak of memory moves between nodes."""
    return search.meter.measure == "memory"


class SavingGreedy:
    """Removal block by block, each time the block with the least importance lost per unit of the target saved.

    A group may remove several blocks at once if the first ones alone cost more each (a lower convex hull; relevant with
    curves). Blocks that save nothing are removed last. Savings shrink as other groups shrink, so only the block that
    seems to be next is priced again.

    Args:
        search: Search for the target.
        losses: Group name -> loss with 0, 1, 2 ... channels removed, up to the maximum of the group.
        trace: Steps of earlier searches with the same scores, constraints and measure; it is extended.
    """

    def __init__(self, search: TargetSearch, losses: Mapping[str, Values], trace: GreedyTrace | None = None) -> None:
        self.search = search
        self.losses = losses
        self.trace = trace or GreedyTrace()

    def first(self) -> tuple[Counts, Counts]:
        """Return the last counts above the goal and the first that are not, in complete blocks from the start."""
        feasible = self.search.feasible
        return self.trace.passing(self.search.goal, lambda: self.removals(feasible.uniform(0.0), feasible.step))

    def run(self) -> Counts:
        """Return counts that meet the goal; where the next block is too large, smaller savings fill the gap.

        These are other complete blocks, as long as some do not pass the goal and cost at most 4 times as much for what
        they save, and then halves of blocks.
        """
        search, step = self.search, self.search.feasible.step
        above, below = self.first()
        while True:
            counts = min((above, below), key=lambda c: abs(search.share(c) - search.goal))
            if search.met(counts):
                return counts
            most = self._highest_price(above, below)
            fillers = self.removals(above, step, least=search.goal - search.close, highest=most)
            [(above, _)] = deque(fillers, maxlen=1)
            if search.met(above):
                return above
            if step == 1:
                return self.best(*map(search.settle, (above, below)))
            step //= 2
            above, below = self.passing(above, step)

    def best(self, *answers: Counts) -> Counts:
        """Return the answer with the least loss among those that meet the goal; else the one nearest to it."""

        def key(counts: Counts) -> tuple[float, float]:
            gap = 0.0 if self.search.met(counts) else abs(self.search.share(counts) - self.search.goal)
            return gap, total_loss(self.search.feasible, self.losses, counts)

        return min(answers, key=key)

    def passing(self, counts: Counts, step: int) -> tuple[Counts, Counts]:
        """Return the last counts above the goal from `counts` on, and the first that are not; equal at the end."""
        return GreedyTrace().passing(self.search.goal, lambda: self.removals(counts, step))

    def _highest_price(self, above: Counts, below: Counts) -> float:
        """Return the highest price of blocks that are removed in place of the one between two counts."""
        search, losses = self.search, self.losses
        saved = search.share(above) - search.share(below)
        lost = total_loss(search.feasible, losses, below) - total_loss(search.feasible, losses, above)
        return _FILLER * lost / saved if saved > 0 else np.inf

    def removals(self, counts: Counts, step: int, least: float = -np.inf, highest: float = np.inf) -> Steps:
        """Yield counts and their share, block after block, to the end; the order does not depend on the goal.

        A group whose next block leaves less than the share `least`, or has a higher price (loss per unit saved) than
        `highest`, is not pruned further.
        """
        search = self.search
        free = search.feasible.free

        def price(state: tuple[Counts, float], i: int) -> tuple[Price, int] | None:
            counts, share = state
            g, have = free[i], counts[free[i].name]
            options = search.feasible.below(g, step, have)
            if not len(options) or g.name in search.feasible.inside(counts):
                return None
            losses = added_losses(search.feasible, self.losses, counts, g, options)
            best = int(np.argmin(losses / (have - options)))  # the smallest of equal ones
            count, loss = int(options[best]), float(losses[best])
            saved = share - search.share({**counts, g.name: count})
            if share - saved < least or (highest < np.inf and loss > highest * saved):
                return None
            return (saved <= 0, loss / saved if saved > 0 else loss), count

        def without(state: tuple[Counts, float], i: int, count: int) -> tuple[Counts, float]:
            counts = {**state[0], free[i].name: count}
            return counts, search.share(counts)

        return lazy_greedy(
            (counts, search.share(counts)), len(free), price, without, eager=_moves_peaks(search),
            watched=watched_of(search.feasible),
        )  # fmt: skip


class LatencyGreedy:
    """Removal block by block, each time the block with the least loss per predicted second saved.

    A block that saves no time (kernels take as long for 8 channels as for 16) is skipped in favour of the next count
    that does. If latency is not the target, such blocks are removed after the others; if memory is the target, blocks
    that save time but no memory are removed last. Savings shrink with their neighbours, so only the block that seems to
    be next is priced again.

    Args:
        search: Search for the target.
        latency: Latency model.
        losses: Group name -> loss with 0, 1, 2 ... channels removed, up to the maximum of the group.
    """

    def __init__(self, search: TargetSearch, latency: LatencyPredictor, losses: Mapping[str, Values]) -> None:
        self.search = search
        self.latency = latency
        self.losses = losses
        self._spent: set[str] = set()  # groups whose remaining blocks save no time

    def total(self, counts: Counts) -> float:
        """Return the total loss at these counts."""
        return total_loss(self.search.feasible, self.losses, counts)

    def seconds(self, counts: Counts) -> float:
        """Return the predicted latency at these counts, in seconds."""
        return self.latency.seconds(self.search.kept(counts))

    def filled(self, counts: Counts) -> Counts:
        """Return counts with those blocks restored whose removal saves no time; only for a latency target."""
        feasible = self.search.feasible
        if self.search.meter.measure != "latency":
            return counts
        now = self.seconds(counts)
        for g in feasible.free:
            options = feasible.allowed(g, feasible.step)
            for count in options[options > counts[g.name]][::-1].tolist():
                fuller = {**counts, g.name: count}
                seconds = self.seconds(fuller)
                if seconds <= now:
                    counts, now = fuller, seconds
                    break
        return counts

    def run(self) -> tuple[Counts, Counts]:
        """Return the last counts above the goal and the first that are not; twice the same if only one kind exists."""
        search = self.search
        free = search.feasible.free

        def state_of(counts: Counts) -> tuple[Counts, float, float]:
            return counts, search.share(counts), self.seconds(counts)

        def without(state: tuple[Counts, float, float], i: int, count: int) -> tuple[Counts, float, float]:
            return state_of({**state[0], free[i].name: count})

        steps = lazy_greedy(
            state_of(search.feasible.uniform(0.0)), len(free), self._price, without, eager=_moves_peaks(search),
            watched=watched_of(search.feasible),
        )  # fmt: skip
        return GreedyTrace().passing(search.goal, lambda: ((counts, share) for counts, share, _ in steps))

    def _price(self, state: tuple[Counts, float, float], i: int) -> tuple[Price, int] | None:
        """Return the price of a group's next worthwhile block, and the count after it; None if it has none."""
        counts, share, now = state
        feasible = self.search.feasible
        g = feasible.free[i]
        have = counts[g.name]
        options = feasible.below(g, feasible.step, have)
        if not len(options) or g.name in feasible.inside(counts):
            return None
        lost = added_losses(feasible, self.losses, counts, g, options)
        options, measure = options.tolist(), self.search.meter.measure
        if g.name not in self._spent:
            for count, added in zip(options, lost.tolist(), strict=True):
                saved = now - self.seconds({**counts, g.name: count})
                if saved > _NOTHING * self.latency.baseline:
                    price = added / saved
                    idle = measure == "memory" and self.search.share({**counts, g.name: count}) >= share
                    return (2 if idle else 0, price, -saved), count
            self._spent.add(g.name)
        if measure != "latency":
            saved = share - self.search.share({**counts, g.name: options[0]})
            price = float(lost[0])
            return (1, price / saved if saved > 0 else np.inf, -saved), options[0]
        return None


def better(greedy: LatencyGreedy, ours: Counts, other: Counts) -> Counts:
    """Return the better answer: it meets the target, then is faster, or for a latency target loses less."""
    search = greedy.search

    def key(counts: Counts) -> tuple[bool, float, float]:
        share = search.share(counts)
        seconds, lost = greedy.seconds(counts), greedy.total(counts)
        if search.meter.measure == "latency":
            return share - search.goal > search.close, lost, seconds
        return abs(share - search.goal) > search.close, seconds, lost

    return min(ours, other, key=key)
