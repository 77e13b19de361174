"""Search for counts that meet a target: bisection of a monotone path, then single steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis, Group, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.planning.constraints import Counts, FeasibleCounts
from onnxprune.planning.targets import MeasureShare

# Tolerance of a target, as a share of the baseline.
CLOSE = 0.01
# The search for a better fit stops at this distance: closer fits are not worth uneven choices.
GOOD = 0.003
# Tolerance of a predicted latency: kernels work in blocks, so finer steps gain nothing.
LATENCY_CLOSE = 0.02


@dataclass(frozen=True)
class CountPath:
    """Path of counts from nothing removed (0) to everything removable (top), never increasing.

    Attributes:
        counts_at: (position on the path, block size) -> counts.
        top: Last position.
    """

    counts_at: Callable[[int, int], Counts]
    top: int


class TargetSearch:
    """Search for the counts whose share of a measure is nearest to a goal.

    Args:
        analysis: Coupling analysis of the model.
        feasible: Counts that groups may keep.
        order: Group name -> its channels in order of removal, [channels].
        meter: Shares of the measure.
        goal: Share kept.
        start: Components kept before any channel is removed; default: all.
    """

    def __init__(
        self,
        analysis: Analysis,
        feasible: FeasibleCounts,
        order: Mapping[str, npt.NDArray[np.int64]],
        meter: MeasureShare,
        goal: float,
        start: Kept | None = None,
    ) -> None:
        self.feasible = feasible
        self.meter = meter
        self.goal = goal
        self.close = LATENCY_CLOSE if meter.measure == "latency" else CLOSE
        self._start: Kept = np.ones(analysis.count, bool) if start is None else start
        self._leaving = {g.name: g.components[order[g.name]] for g in feasible.groups}

    def removed_components(self, g: Group, count: int) -> npt.NDArray[np.int64]:
        """Return the components removed from a group that keeps `count` channels."""
        return self._leaving[g.name][: g.channels - count]

    def kept(self, counts: Counts) -> Kept:
        """Return the kept components: bool [count]."""
        kept: Kept = self._start.copy()
        depth = self.feasible.depth
        for g in self.feasible.groups:
            if depth is not None and g is depth.group:
                for components in depth.components[: g.channels - counts[g.name]]:
                    kept[components] = False
            else:
                kept[self.removed_components(g, counts[g.name])] = False
        return kept

    def share(self, counts: Counts) -> float:
        """Return the share of the measure at these counts."""
        return self.meter.share(self.kept(counts))

    def met(self, counts: Counts) -> bool:
        """Return whether these counts are within the tolerance of the goal."""
        return abs(self.share(counts) - self.goal) <= self.close

    def before(self, path: CountPath) -> Counts:
        """Return the last counts on a path whose share is at or above the goal."""
        place = self._bisect(path, self.feasible.step)
        counts = path.counts_at(place, self.feasible.step)
        if place and self.share(counts) < self.goal:
            return path.counts_at(place - 1, self.feasible.step)
        return counts

    def nearest(self, path: CountPath) -> Counts:
        """Return the counts nearest to the goal: bisect the path, then refine by single steps."""
        step = self.feasible.step
        counts = self.settle(path.counts_at(self._bisect(path, step), step))
        if self.meter.measure != "latency" and self.share(counts) - self.goal > CLOSE and step > 1:
            # No single step helps, or blocks ended the path early: repeat channel by channel.
            finest = self._refine(path.counts_at(self._bisect(path, 1), 1), 1)
            if abs(self.share(finest) - self.goal) < abs(self.share(counts) - self.goal):
                return finest
        return counts

    def settle(self, counts: Counts) -> Counts:
        """Return counts nearer to the goal by single steps: of blocks, then of smaller steps if blocks are too coarse.

        For latency, blocks are never too coarse: part of a block takes as long as a complete one, or longer.
        """
        step = self.feasible.step
        while True:
            counts = self._refine(counts, step)
            if step == 1 or self.meter.measure == "latency" or abs(self.share(counts) - self.goal) <= CLOSE:
                return counts
            step //= 2

    def check(self, counts: Counts, fix: str) -> None:
        """Raise if counts exceed the goal and no feasible counts could meet it.

        Raises:
            OnnxPruneError: Names the least share that can be reached.
        """
        reached = self.share(counts)
        if reached - self.goal <= self.close:
            return
        latency = self.meter.measure == "latency"
        smallest = self.share(self.feasible.smallest(self.feasible.step if latency else 1))
        if latency or smallest > self.goal:
            least = min(reached, smallest) if latency else smallest
            measure = self.meter.measure
            raise OnnxPruneError(
                f"the target {measure}={self.goal:g} cannot be reached: with these limits at least "
                f"{measure}={least:.3f} stays",
                fix=fix,
            )

    def _bisect(self, path: CountPath, step: int) -> int:
        """Return the first position on a path that is not above the goal; the last one if all are."""
        low, high = 0, path.top
        while low < high:
            middle = (low + high) // 2
            if self.share(path.counts_at(middle, step)) > self.goal:
                low = middle + 1
            else:
                high = middle
        return low

    def _refine(self, counts: Counts, step: int) -> Counts:
        """Return counts improved by moving single groups one allowed step at a time towards the goal."""
        latency = self.meter.measure == "latency"
        best = self.share(counts)
        tried: dict[tuple[str, int], float] = {}
        while abs(best - self.goal) > GOOD:
            found: tuple[float, str, int] | None = None
            for g in self.feasible.widths:
                options = self.feasible.allowed(g, step)
                now = counts[g.name]
                ups, downs = options[options > now], options[options < now]
                move = (ups[:1] if best < self.goal else downs[-1:]).tolist()
                if not move:
                    continue
                key = (g.name, move[0])
                if key not in tried:
                    tried[key] = self.share({**counts, g.name: move[0]}) - best
                after = best + tried[key]
                if latency and best <= self.goal and after > self.goal + self.close:
                    continue  # nearer, but above the goal, and no finer step could correct it
                gap = abs(after - self.goal)
                if gap < abs(best - self.goal) - 1e-12 and (found is None or gap < found[0]):
                    found = (gap, g.name, move[0])
            if found is None:
                return counts
            counts = {**counts, found[1]: found[2]}
            best = self.share(counts)
            tried.clear()
        return counts
