"""How much to take from which group: from scores and a ratio or a target to a plan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import ceil, floor, gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.cost import MEASURES, Cost, CostModel
from onnxprune.coupling import Analysis, Group, Kept
from onnxprune.criteria.normalize import normalize as normalized
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.plans import Plan, Removal
from onnxprune.scoring import Scores

# How close a target has to be met, as a share of the unpruned model.
CLOSE = 0.01
# Where the search for a better fit stops: closer is not worth odd choices.
GOOD = 0.003
PROTECT = ("first", "residual", "attention")
SCOPES = ("global", "uniform")


@dataclass(frozen=True)
class Target:
    """The share of one measure that is **kept**: `Target(macs=0.5)` keeps half.

    Raises:
        OnnxPruneError: not exactly one measure, or a share outside (0, 1].
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None

    def __post_init__(self) -> None:
        given = [m for m in MEASURES if getattr(self, m) is not None]
        if len(given) != 1:
            raise OnnxPruneError("a target names exactly one of macs, params, bytes", fix="for example macs=0.5")
        if not 0 < self.share <= 1:
            raise OnnxPruneError(
                f"a target is the share kept, in (0, 1]; got {self.measure}={self.share:g}", fix="for example macs=0.5"
            )

    @property
    def measure(self) -> str:
        """Which measure."""
        return next(m for m in MEASURES if getattr(self, m) is not None)

    @property
    def share(self) -> float:
        """How much of it is kept."""
        return float(getattr(self, self.measure))

    @classmethod
    def parse(cls, text: str) -> Target:
        """Reads `macs=0.5`.

        Raises:
            OnnxPruneError: anything else.
        """
        name, equals, value = text.partition("=")
        if not equals or name.strip() not in MEASURES:
            raise OnnxPruneError(f"cannot read the target {text!r}", fix=f"NAME=SHARE with {', '.join(MEASURES)}")
        try:
            share = float(value)
        except ValueError as err:
            raise OnnxPruneError(f"cannot read the target {text!r}", fix="for example macs=0.5") from err
        return cls(**{name.strip(): share})


@dataclass(frozen=True)
class Limits:
    """What a plan may not do.

    Attributes:
        round_to: kept counts are multiples of this on the producing axis; "auto": what the CPU's kernels like.
        min_channels: least channels a group keeps.
        max_ratio: largest share a group loses; keeps global rankings from emptying layers.
        include: glob patterns; only matching groups are pruned (empty: all).
        exclude: glob patterns of groups left whole.
        protect: presets of groups left whole: "first" (the network's first layer), "residual" (residual streams; with
            "first" what the D-Score paper leaves alone on ResNets), "attention".
        overrides: glob pattern -> ratio (share removed) or {"ratio": r, "min_channels": n, "channels": kept}.
    """

    round_to: int | str = "auto"
    min_channels: int = 1
    max_ratio: float = 0.9
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    protect: Sequence[str] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)


def auto_round(device: str = "cpu") -> int:
    """The block of channels that the runtime's kernels work in.

    onnxruntime's NCHWc kernels take 16 floats with AVX-512 and 8 with AVX2; tensor cores take multiples of 8.
    """
    if device == "cuda":
        return 8
    simd: Mapping[str, Any] = np.show_config(mode="dicts").get("SIMD Extensions", {})
    features = {str(f) for kind in ("baseline", "found") for f in simd.get(kind, [])}
    return 16 if any(f.startswith(("AVX512", "X86_V4")) for f in features) else 8


def load_overrides(path: Path) -> dict[str, Any]:
    """Reads per-group settings from TOML or JSON: patterns to ratios or tables.

    Raises:
        OnnxPruneError: unreadable, or not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise OnnxPruneError(f"cannot read {str(path)!r}: {err}") from err
    try:
        if path.suffix.lower() == ".json":
            data = json.loads(text)
        else:
            import tomllib

            data = tomllib.loads(text)
    except ValueError as err:
        raise OnnxPruneError(f"{str(path)!r} is not valid {path.suffix.lstrip('.') or 'TOML'}: {err}") from err
    if not isinstance(data, dict):
        raise OnnxPruneError(f"{str(path)!r} is not a table of groups")
    groups = data.get("groups", data)
    for pattern, entry in groups.items():
        _override(pattern, entry)
    return dict(groups)


def _override(pattern: str, entry: Any) -> dict[str, Any]:
    where = f"override {pattern!r}"
    if isinstance(entry, int | float) and not isinstance(entry, bool):
        entry = {"ratio": entry}
    if not isinstance(entry, dict):
        raise OnnxPruneError("an override is a ratio or a table", where=where)
    for key, value in entry.items():
        if key not in ("ratio", "min_channels", "channels"):
            raise OnnxPruneError(f"unknown key {key!r}", where=where, fix="known: ratio, min_channels, channels")
        if isinstance(value, bool) or not isinstance(value, int if key != "ratio" else (int, float)):
            raise OnnxPruneError(f"{key!r} is not a number", where=where)
        if key == "ratio":
            check_ratio(float(value), where)
        elif value < 1:
            raise OnnxPruneError(f"{key!r} must be at least 1", where=where)
    return entry


def check_ratio(ratio: float, where: str | None = None) -> None:
    """Refuses a ratio outside [0, 1)."""
    if not 0 <= ratio < 1:
        raise OnnxPruneError(f"a ratio is the share removed, in [0, 1); got {ratio:g}", where=where)


def plan(
    scores: Scores,
    target: Target | None = None,
    *,
    ratio: float | None = None,
    scope: str = "global",
    normalize: str | None = None,
    limits: Limits | None = None,
    tool: str = "",
) -> Plan:
    """Decides which channels go: in every group those with the lowest scores, ties to the lower index.

    Args:
        scores: of the groups.
        target: prune until this share of a measure is left, within 1 % or the nearest channel.
        ratio: instead, the share removed from every group.
        scope: with a target: "global" ranks all channels by their normalized score, "uniform" takes the same share
            of every group.
        normalize: how scores of different groups are made comparable; default: the criterion's own.
        limits: rounding, protection, overrides.
        tool: version, for the record.

    Raises:
        OnnxPruneError: neither or both of target and ratio; a share out of range; a pattern or preset that matches
            nothing; a target that cannot be reached, with how far it goes.
    """
    if (target is None) == (ratio is None):
        raise OnnxPruneError("give either a ratio or a target", fix="--ratio 0.3, or --target macs=0.5")
    if scope not in SCOPES:
        raise unknown("scope", scope, SCOPES)
    if ratio is not None:
        check_ratio(ratio)
    allocator = _Allocator(scores, limits or Limits(), normalize or scores.normalize)
    if ratio is not None:
        counts = allocator.uniform(ratio)
    else:
        assert target is not None
        counts = allocator.reach(target, scope)
    groups = {
        g.name: Removal(g.channels, tuple(sorted(allocator.order[g.name][: g.channels - counts[g.name]].tolist())))
        for g in allocator.groups
        if counts[g.name] < g.channels
    }
    analysis = scores.analysis
    return Plan(
        analysis.source.fingerprint,
        groups,
        {**scores.criterion, "normalize": normalize or scores.normalize},
        {"attention": analysis.table.choices.attention},
        tool,
    )


Counts = dict[str, int]


class _Allocator:
    """Chooses how many channels every group keeps."""

    def __init__(self, scores: Scores, limits: Limits, how: str) -> None:
        self.analysis = scores.analysis
        self.limits = limits
        self.cost = CostModel(scores.analysis)
        self.fixed: Counts = {}
        self.ratios: dict[str, float] = {}
        self.least: Counts = {}
        self.groups = [g for g in _chosen(scores.analysis, limits) if g.name in scores.groups]
        self._overrides()
        self.step = limits.round_to if isinstance(limits.round_to, int) else auto_round()
        if self.step < 1:
            raise OnnxPruneError("--round-to must be at least 1, or auto")
        self.order = {g.name: np.argsort(scores.groups[g.name], kind="stable") for g in self.groups}
        ranked = {g.name: normalized(scores.groups[g.name], how)[self.order[g.name]] for g in self.groups}
        free = [g for g in self.groups if g.name not in self.fixed and g.name not in self.ratios]
        self.free = free
        # One ranking over all groups: value, then group order, then place in the group.
        values = np.concatenate([ranked[g.name] for g in free]) if free else np.zeros(0)
        owner = np.concatenate([np.full(g.channels, i) for i, g in enumerate(free)]) if free else np.zeros(0, int)
        self.ranking: npt.NDArray[np.int64] = owner[np.argsort(values, kind="stable")]

    def _overrides(self) -> None:
        for pattern, raw in self.limits.overrides.items():
            entry = _override(pattern, raw)
            names = _matching(self.analysis, pattern, "override")
            for g in self.groups:
                if g.name not in names:
                    continue
                if "channels" in entry:
                    self.fixed[g.name] = min(int(entry["channels"]), g.channels)
                elif "ratio" in entry:
                    self.ratios[g.name] = float(entry["ratio"])
                if "min_channels" in entry:
                    self.least[g.name] = int(entry["min_channels"])

    def floor_of(self, g: Group) -> int:
        """Least channels a group keeps."""
        least = self.least.get(g.name, self.limits.min_channels)
        return min(g.channels, max(1, least, ceil(g.channels * (1 - self.limits.max_ratio) - 1e-9)))

    def allowed(self, g: Group, step: int) -> npt.NDArray[np.int64]:
        """Counts a group may keep, ascending: multiples of the step on its axis, and all of it."""
        unit = step // gcd(step, g.width)
        while unit > 1 and unit >= g.channels:
            unit //= 2  # a group narrower than one block still has something to choose
        counts = np.arange(unit, g.channels, unit)
        return np.append(counts[counts >= self.floor_of(g)], g.channels)

    def rounded(self, g: Group, wanted: float, step: int) -> int:
        """The allowed count nearest to the wanted one; the larger of two as near."""
        counts = self.allowed(g, step)
        gaps = np.abs(counts - wanted)
        return int(counts[len(counts) - 1 - int(np.argmin(gaps[::-1]))])

    def uniform(self, ratio: float) -> Counts:
        """The same share from every group, overrides aside."""
        out = {}
        for g in self.groups:
            if g.name in self.fixed:
                out[g.name] = self.fixed[g.name]
            else:
                share = self.ratios.get(g.name, ratio)
                wanted = max(g.channels - floor(g.channels * share + 1e-9), self.floor_of(g))
                out[g.name] = self.rounded(g, wanted, self.step) if share else g.channels
        return out

    def ranked(self, removed: int) -> Counts:
        """The lowest `removed` channels of the global ranking go."""
        gone = np.bincount(self.ranking[:removed], minlength=len(self.free))
        out = self.uniform(0.0)
        for g, n in zip(self.free, gone.tolist(), strict=True):
            out[g.name] = self.rounded(g, max(g.channels - n, self.floor_of(g)), self.step)
        return out

    def share(self, counts: Counts, measure: str) -> float:
        """Share of a measure that these counts keep."""
        return self._cost(counts).ratio(self.cost.whole, measure)

    def _cost(self, counts: Counts) -> Cost:
        kept: Kept = np.ones(self.analysis.count, bool)
        for g in self.groups:
            gone = self.order[g.name][: g.channels - counts[g.name]]
            kept[g.components[gone]] = False
        return self.cost.cost(kept)

    def reach(self, target: Target, scope: str) -> Counts:
        """The counts whose cost is nearest to the target."""
        measure, goal = target.measure, target.share
        if goal >= 1 and not self.fixed and not self.ratios:
            return self.uniform(0.0)
        if scope == "uniform":
            counts = _bisect(lambda i: self.uniform(min(i / 2048, self.limits.max_ratio)), 2048, self._over(target))
        else:
            counts = _bisect(self.ranked, len(self.ranking), self._over(target))
        step = self.step
        while True:
            counts = self._refine(counts, measure, goal, step)
            if abs(self.share(counts, measure) - goal) <= CLOSE or step == 1:
                break
            step //= 2  # the target asks for finer pieces than the kernels' blocks
        self._check_reached(counts, measure, goal)
        return counts

    def _over(self, target: Target) -> Callable[[Counts], bool]:
        return lambda counts: self.share(counts, target.measure) > target.share

    def _refine(self, counts: Counts, measure: str, goal: float, step: int) -> Counts:
        """Moves single groups by one allowed step while that brings the cost nearer to the target."""
        best = self.share(counts, measure)
        tried: dict[tuple[str, int], float] = {}
        while abs(best - goal) > GOOD:
            found: tuple[float, str, int] | None = None
            for g in self.free:
                options = self.allowed(g, step)
                now = counts[g.name]
                ups, downs = options[options > now], options[options < now]
                move = (ups[:1] if best < goal else downs[-1:]).tolist()
                if not move:
                    continue
                key = (g.name, move[0])
                if key not in tried:
                    tried[key] = self.share({**counts, g.name: move[0]}, measure) - best
                gap = abs(best + tried[key] - goal)
                if gap < abs(best - goal) - 1e-12 and (found is None or gap < found[0]):
                    found = (gap, g.name, move[0])
            if found is None:
                return counts
            counts = {**counts, found[1]: found[2]}
            best = self.share(counts, measure)
            tried.clear()
        return counts

    def _check_reached(self, counts: Counts, measure: str, goal: float) -> None:
        reached = self.share(counts, measure)
        if reached - goal <= CLOSE:
            return
        least = {g.name: int(self.allowed(g, 1)[0]) if g in self.free else counts[g.name] for g in self.groups}
        smallest = self.share(least, measure)
        if smallest > goal:
            raise OnnxPruneError(
                f"the target {measure}={goal:g} cannot be reached: with these limits at least "
                f"{measure}={smallest:.3f} stays",
                fix="raise --max-ratio, lower --min-channels, exclude or protect less (see `onnxprune inspect`)",
            )


def _bisect(counts_at: Callable[[int], Counts], top: int, over: Callable[[Counts], bool]) -> Counts:
    """The first of `counts_at(0..top)` that is not over; the last one if all are."""
    low, high = 0, top
    while low < high:
        middle = (low + high) // 2
        if over(counts_at(middle)):
            low = middle + 1
        else:
            high = middle
    return counts_at(low)


def _matching(analysis: Analysis, pattern: str, what: str) -> set[str]:
    names = {g.name for g in analysis.groups if fnmatchcase(g.name, pattern)}
    if not names and not any(fnmatchcase(lock.name, pattern) for lock in analysis.locked):
        raise unknown(f"group (in {what})", pattern, [g.name for g in analysis.groups])
    return names


def _chosen(analysis: Analysis, limits: Limits) -> list[Group]:
    """Groups that may be pruned under the patterns and presets."""
    chosen = {g.name for g in analysis.groups}
    if limits.include:
        chosen = set().union(*(_matching(analysis, p, "include") for p in limits.include))
    for pattern in limits.exclude:
        chosen -= _matching(analysis, pattern, "exclude")
    for preset in limits.protect:
        if preset not in PROTECT:
            raise unknown("preset", preset, PROTECT)
        chosen -= {g.name for i, g in enumerate(analysis.groups) if _protected(preset, i, g)}
    if not chosen:
        raise OnnxPruneError("no group is left to prune", fix="see `onnxprune inspect`, and exclude or protect less")
    return [g for g in analysis.groups if g.name in chosen]


def _protected(preset: str, place: int, group: Group) -> bool:
    if preset == "first":
        return place == 0
    if preset == "residual":
        return group.residual
    return group.op in ("MatMul", "Gemm", "Attention") and group.width > 1
