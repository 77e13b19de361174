"""How a budget is shared among groups: four ways to go from nothing removed to everything the limits allow.

| scope       | what goes first                                                                        |
|-------------|----------------------------------------------------------------------------------------|
| uniform     | the same share of every group                                                          |
| global      | the channels with the lowest normalized score, wherever they are                       |
| sensitivity | what the curves say costs least: every group down to the same threshold of the metric  |
| latency     | the block of channels that loses least importance per predicted second it saves        |
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from onnxprune.limits import Counts, Room
from onnxprune.search import Path, Search
from onnxprune.targets import LatencyPredictor

SCOPES = ("global", "uniform", "sensitivity", "latency")

Values = npt.NDArray[np.float64]

_RATIOS = 2048  # steps of the uniform path
_NOTHING = 1e-6  # as a share of the whole model's latency: saving less is saving nothing


def uniform_path(room: Room) -> Path:
    """The same share of every group, up to the largest ratio."""
    most = room.limits.max_ratio
    return Path(lambda i, step: room.uniform(min(i / _RATIOS, most), step), _RATIOS)


def ranked_path(room: Room, ranked: Mapping[str, Values]) -> Path:
    """One ranking over all free groups, the lowest channels first.

    Args:
        room: what groups may keep.
        ranked: group name -> comparable scores of the channels it has left, ascending.
    """
    free = room.free
    values = np.concatenate([ranked[g.name] for g in free] or [np.zeros(0)])
    owner = np.concatenate([np.full(len(ranked[g.name]), i) for i, g in enumerate(free)] or [np.zeros(0, np.int64)])
    ranking = owner[np.argsort(values, kind="stable")]

    def counts_at(removed: int, step: int) -> Counts:
        gone = np.bincount(ranking[:removed], minlength=len(free))
        out = room.uniform(0.0)
        for g, n in zip(free, gone.tolist(), strict=True):
            out[g.name] = room.rounded(g, max(room.left[g.name] - n, room.floor_of(g)), step)
        return out

    return Path(counts_at, len(ranking))


def importance_lost(room: Room, ranked: Mapping[str, Values]) -> dict[str, Values]:
    """Summed scores with 0, 1, 2 ... of a group's channels gone, [channels + 1]; channels gone before count nothing.

    Some normalisations give negative scores; the least one counts as 0, so that nothing is gained by removal.
    """
    least = min((float(ranked[g.name].min()) for g in room.free if len(ranked[g.name])), default=0.0)
    out = {}
    for g in room.free:
        steps = ranked[g.name] - min(least, 0.0)
        before = np.zeros(g.channels - len(steps) + 1)
        out[g.name] = np.concatenate([before, np.cumsum(steps)])
    return out


class LatencyGreedy:
    """Removes block after block, each time the one that loses least per predicted second.

    A block that saves nothing (the runtime's kernels take as long for 8 channels as for 16) is passed over: what counts
    is the next count that does save. Where latency is not the target, such blocks still go, after the others; and what
    saves time but no memory goes last where memory is the target. Savings shrink as neighbours do, so they are computed
    anew only for the block that seems to come next.

    Args:
        search: for the target.
        latency: of the model.
        lost: group name -> what is lost with 0, 1, 2 ... channels gone, as long as the group may lose.
    """

    def __init__(self, search: Search, latency: LatencyPredictor, lost: Mapping[str, Values]) -> None:
        self.search = search
        self.latency = latency
        self.lost = lost
        self._spent: set[str] = set()  # groups whose further blocks save no time

    def total(self, counts: Counts) -> float:
        """What these counts lose in all."""
        return sum(float(self.lost[g.name][g.channels - counts[g.name]]) for g in self.search.room.free)

    def seconds(self, counts: Counts) -> float:
        """Predicted latency of these counts."""
        return self.latency.seconds(self.search.kept(counts))

    def filled(self, counts: Counts) -> Counts:
        """With the blocks back whose removal saves no time, where time is the target."""
        room = self.search.room
        if self.search.meter.measure != "latency":
            return counts
        now = self.seconds(counts)
        for g in room.free:
            options = room.allowed(g, room.step)
            for count in options[options > counts[g.name]][::-1].tolist():
                fuller = {**counts, g.name: count}
                seconds = self.seconds(fuller)
                if seconds <= now:
                    counts, now = fuller, seconds
                    break
        return counts

    def run(self) -> tuple[Counts, Counts]:
        """The last counts above the goal, and the first that are not; twice the same where there is only one kind."""
        search = self.search
        counts = search.room.uniform(0.0)
        share = search.share(counts)
        now = self.seconds(counts)
        queue: list[tuple[tuple[int, float, float], int, int, int]] = []  # key, group, its next count, stamp
        for i in range(len(search.room.free)):
            self._push(queue, i, counts, now, share, 0)
        stamp = 0
        while share > search.goal and queue:
            _, i, count, seen = heappop(queue)
            if seen != stamp:
                self._push(queue, i, counts, now, share, stamp)
                continue
            before = counts
            counts = {**counts, search.room.free[i].name: count}
            now = self.seconds(counts)
            share = search.share(counts)
            if share <= search.goal:
                return before, counts
            stamp += 1
            if search.meter.measure == "memory":
                # The peak moves from node to node: what saved none may save some now, so all are asked again.
                queue.clear()
                for k in range(len(search.room.free)):
                    self._push(queue, k, counts, now, share, stamp)
            else:
                self._push(queue, i, counts, now, share, stamp)
        return counts, counts

    def _push(
        self, queue: list[tuple[tuple[int, float, float], int, int, int]], i: int, counts: Counts, now: float,
        share: float, stamp: int,
    ) -> None:  # fmt: skip
        """Adds a group's next block, if there is one worth taking."""
        room = self.search.room
        g = room.free[i]
        have = counts[g.name]
        options = room.allowed(g, room.step)
        options = options[options < have][::-1].tolist()
        lost, measure = self.lost[g.name], self.search.meter.measure
        if g.name not in self._spent:
            for count in options:
                saved = now - self.seconds({**counts, g.name: count})
                if saved > _NOTHING * self.latency.whole:
                    price = float(lost[g.channels - count] - lost[g.channels - have]) / saved
                    idle = measure == "memory" and self.search.share({**counts, g.name: count}) >= share
                    heappush(queue, ((2 if idle else 0, price, -saved), i, count, stamp))
                    return
            self._spent.add(g.name)
        if options and measure != "latency":
            saved = share - self.search.share({**counts, g.name: options[0]})
            price = float(lost[g.channels - options[0]] - lost[g.channels - have])
            key = price / saved if saved > 0 else np.inf
            heappush(queue, ((1, key, -saved), i, options[0], stamp))


def better(greedy: LatencyGreedy, ours: Counts, other: Counts) -> Counts:
    """Of two answers to one target: one that meets it; then the faster one, or for a latency target the cheaper."""
    search = greedy.search

    def key(counts: Counts) -> tuple[bool, float, float]:
        share = search.share(counts)
        seconds, lost = greedy.seconds(counts), greedy.total(counts)
        if search.meter.measure == "latency":
            return share - search.goal > search.close, lost, seconds
        return abs(share - search.goal) > search.close, seconds, lost

    return min(ours, other, key=key)
