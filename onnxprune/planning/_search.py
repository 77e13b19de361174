"""Finding the counts that meet a target: along a path that only ever removes more, then by single steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis, Group, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.planning.constraints import Counts, FeasibleCounts
from onnxprune.planning.targets import MeasureShare

# How close a target has to be met, as a share of the unpruned model.
CLOSE = 0.01
# Where the search for a better fit stops: closer is not worth odd choices.
GOOD = 0.003
# A predicted latency is met within this: finer than the kernels' blocks there is nothing to gain.
LATENCY_CLOSE = 0.02


@dataclass(frozen=True)
class CountPath:
    """Counts from nothing removed (0) to as much as there is (top), never growing on the way.

    Attributes:
        counts_at: (place on the path, block size) -> counts.
        top: the last place.
    """

    counts_at: Callable[[int, int], Counts]
    top: int


class TargetSearch:
    """Looks for counts whose share of a measure is nearest to a goal.

    Args:
        analysis: of the model.
        feasible: what groups may keep.
        order: group name -> its channels in the order in which they go, [channels].
        meter: of the measure.
        goal: share kept.
    """

    def __init__(
        self,
        analysis: Analysis,
        feasible: FeasibleCounts,
        order: Mapping[str, npt.NDArray[np.int64]],
        meter: MeasureShare,
        goal: float,
    ) -> None:
        self.feasible = feasible
        self.meter = meter
        self.goal = goal
        self.close = LATENCY_CLOSE if meter.measure == "latency" else CLOSE
        self._count = analysis.count
        self._leaving = {g.name: g.components[order[g.name]] for g in feasible.groups}

    def removed_components(self, g: Group, count: int) -> npt.NDArray[np.int64]:
        """Components that leave a group which keeps `count` channels."""
        return self._leaving[g.name][: g.channels - count]

    def kept(self, counts: Counts) -> Kept:
        """Which components stay: bool [count]."""
        kept: Kept = np.ones(self._count, bool)
        for g in self.feasible.groups:
            kept[self.removed_components(g, counts[g.name])] = False
        return kept

    def share(self, counts: Counts) -> float:
        """Share of the measure that these counts keep."""
        return self.meter.share(self.kept(counts))

    def met(self, counts: Counts) -> bool:
        """Whether these counts are close to the goal."""
        return abs(self.share(counts) - self.goal) <= self.close

    def before(self, path: CountPath) -> Counts:
        """As far along a path as the share stays at or above the goal."""
        place = self._bisect(path, self.feasible.step)
        counts = path.counts_at(place, self.feasible.step)
        if place and self.share(counts) < self.goal:
            return path.counts_at(place - 1, self.feasible.step)
        return counts

    def nearest(self, path: CountPath) -> Counts:
        """The counts nearest to the goal: where a path passes it, and single steps from there."""
        step = self.feasible.step
        counts = self.settle(path.counts_at(self._bisect(path, step), step))
        if self.meter.measure != "latency" and self.share(counts) - self.goal > CLOSE and step > 1:
            # No single step helps, or the blocks ended the path early: the same way again, channel by channel.
            finest = self._refine(path.counts_at(self._bisect(path, 1), 1), 1)
            if abs(self.share(finest) - self.goal) < abs(self.share(counts) - self.goal):
                return finest
        return counts

    def settle(self, counts: Counts) -> Counts:
        """Nearer to the goal by single steps: of a block, and of less where blocks are too coarse for the goal.

        For latency they never are: a part of a block takes as long as a whole one, or longer.
        """
        step = self.feasible.step
        while True:
            counts = self._refine(counts, step)
            if step == 1 or self.meter.measure == "latency" or abs(self.share(counts) - self.goal) <= CLOSE:
                return counts
            step //= 2

    def check(self, counts: Counts, fix: str) -> None:
        """Refuses counts that are over the goal, if none that the limits allow are not.

        Raises:
            OnnxPruneError: with how far it goes.
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
        """The first place on a path that is not over the goal; the last one if all are."""
        low, high = 0, path.top
        while low < high:
            middle = (low + high) // 2
            if self.share(path.counts_at(middle, step)) > self.goal:
                low = middle + 1
            else:
                high = middle
        return low

    def _refine(self, counts: Counts, step: int) -> Counts:
        """Moves single groups by one allowed step while that brings the share nearer to the goal."""
        latency = self.meter.measure == "latency"
        best = self.share(counts)
        tried: dict[tuple[str, int], float] = {}
        while abs(best - self.goal) > GOOD:
            found: tuple[float, str, int] | None = None
            for g in self.feasible.free:
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
                    continue  # nearer, but too slow, and there is no finer step to put it right
                gap = abs(after - self.goal)
                if gap < abs(best - self.goal) - 1e-12 and (found is None or gap < found[0]):
                    found = (gap, g.name, move[0])
            if found is None:
                return counts
            counts = {**counts, found[1]: found[2]}
            best = self.share(counts)
            tried.clear()
        return counts
