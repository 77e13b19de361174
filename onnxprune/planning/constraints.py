"""Constraints of a plan: blocks of channels, minimum counts, protected groups, settings of single groups."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import ceil, floor, gcd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune._utils.fields import Count, read_options
from onnxprune._utils.formatting import counted
from onnxprune._utils.strict import Format
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.execution.sessions import kernel_block
from onnxprune.options.planning import Constraints as Constraints

FORMAT = Format("overrides", 2**24, syntax="toml")
Counts = dict[str, int]
"""Group name -> channels kept."""


@dataclass(frozen=True)
class _Override:
    """Settings of the groups that match a pattern."""

    ratio: float | None = None
    min_channels: Count | None = None
    channels: Count | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None:
            check_ratio(self.ratio)


def load_overrides(path: Path) -> dict[str, Any]:
    """Read per-group settings from TOML or JSON: glob pattern -> ratio or table.

    Raises:
        OnnxPruneError: The file cannot be read or is invalid.
    """
    form = replace(FORMAT, syntax="json") if path.suffix.lower() == ".json" else FORMAT
    data = form.load(path)
    groups = data.get("groups", data) if isinstance(data, dict) else data
    if not isinstance(groups, dict):
        raise form.error("a table of groups is due", str(path))
    for pattern, entry in groups.items():
        _override(pattern, entry, f"{path}, ")
    return groups


def _override(pattern: str, entry: Any, file: str = "") -> _Override:
    if type(entry) in (int, float):
        entry = {"ratio": entry}
    if not isinstance(entry, dict):
        raise OnnxPruneError("an override is a ratio or a table", where=f"{file}override {pattern!r}")
    return read_options(_Override, entry, f"{file}override {pattern!r}")


def check_ratio(ratio: float, where: str | None = None) -> None:
    """Raise if a ratio is outside [0, 1)."""
    if not 0 <= ratio < 1:
        raise OnnxPruneError(f"a ratio is the share removed, in [0, 1); got {ratio:g}", where=where)


AHEAD = 4  # blocks whose removal at once is considered
DEPTH = "residual blocks"
"""Name of the group whose channels are the blocks of a path; no group of a model has it."""


@dataclass(frozen=True)
class BlockPath:
    """Residual blocks in their order of removal: a group of which each channel is a block.

    Attributes:
        group: The group; its channels are removed in order.
        most: Largest number of blocks removed.
        losses: Loss with 0, 1, 2 ... blocks removed, [blocks + 1].
        inside: For each block, the groups inside it, which are removed with it.
        components: For each block, the components that are removed with it.
    """

    group: Group
    most: int
    losses: npt.NDArray[np.float64]
    inside: tuple[frozenset[str], ...]
    components: tuple[npt.NDArray[np.int64], ...]

    def removed_with(self, count: int) -> frozenset[str]:
        """Return the groups inside the blocks that are removed if `count` of them are kept."""
        return frozenset().union(*self.inside[: self.group.channels - count])


class FeasibleCounts:
    """Channel counts that each group may keep.

    Args:
        analysis: Coupling analysis of the model.
        constraints: Constraints of the plan.
        scored: Names of the groups that have scores; others are not pruned.
        remaining: Channels remaining after earlier steps; a plan can only remove more.
        least: Additional minimum counts by group.
        depth: Residual blocks that may be removed beside channels.
    """

    def __init__(
        self, analysis: Analysis, constraints: Constraints, scored: Container[str], *,
        remaining: Mapping[str, int] | None = None, least: Mapping[str, int] | None = None,
        depth: BlockPath | None = None,
    ) -> None:  # fmt: skip
        self.constraints = constraints
        self.fixed: Counts = {}
        self.ratios: dict[str, float] = {}
        self._least: Counts = {}
        self._floor = dict(least or {})
        check_patterns(analysis, constraints)
        chosen = prunable(analysis, constraints)
        if not chosen:
            raise _nothing_remains(analysis, constraints)
        self.groups = [g for g in chosen if g.name in scored]
        self._overrides(analysis)
        self.step = constraints.round_to if isinstance(constraints.round_to, int) else kernel_block()
        self.remaining = {g.name: (remaining or {}).get(g.name, g.channels) for g in self.groups}
        self.widths = [g for g in self.groups if g.name not in self.fixed and g.name not in self.ratios]
        self.depth = depth
        self.free = list(self.widths)
        if depth is not None:
            self.groups.append(depth.group)
            self.free.append(depth.group)
            self.remaining[DEPTH] = depth.group.channels
        self._allowed: dict[tuple[str, int], npt.NDArray[np.int64]] = {}

    def _overrides(self, analysis: Analysis) -> None:
        for pattern, raw in self.constraints.overrides.items():
            entry = _override(pattern, raw)
            names = _matching(analysis, pattern, "override")
            for g in self.groups:
                if g.name not in names:
                    continue
                if entry.channels is not None:
                    self.fixed[g.name] = min(entry.channels, g.channels)
                elif entry.ratio is not None:
                    self.ratios[g.name] = entry.ratio
                if entry.min_channels is not None:
                    self._least[g.name] = entry.min_channels

    def minimum_of(self, g: Group) -> int:
        """Return the minimum number of channels of a group."""
        if self.depth is not None and g is self.depth.group:
            return g.channels - self.depth.most
        least = max(self._least.get(g.name, self.constraints.min_channels), self._floor.get(g.name, 1))
        return min(g.channels, max(1, least, ceil(g.channels * (1 - self.constraints.max_ratio) - 1e-9)))

    def allowed(self, g: Group, step: int) -> npt.NDArray[np.int64]:
        """Return the counts a group may keep, ascending: multiples of the step, and all its remaining channels."""
        if self.depth is not None and g is self.depth.group:
            return np.arange(self.minimum_of(g), g.channels + 1)
        key = (g.name, step)
        if key not in self._allowed:
            unit = step // gcd(step, g.width)
            while unit > 1 and unit >= g.channels:
                unit //= 2  # a group narrower than one block still has smaller counts
            top = self.remaining[g.name]
            counts = np.arange(unit, top, unit)
            self._allowed[key] = np.append(counts[counts >= self.minimum_of(g)], top)
        return self._allowed[key]

    def below(self, g: Group, step: int, count: int) -> npt.NDArray[np.int64]:
        """Return the counts that a group may keep below a count, the largest first; of blocks the next few."""
        options = self.allowed(g, step)
        options = options[options < count][::-1]
        return options[:AHEAD] if self.depth is not None and g is self.depth.group else options

    def rounded(self, g: Group, count: float, step: int) -> int:
        """Return the allowed count nearest to the wanted one, the larger of two equally near ones."""
        counts = self.allowed(g, step)
        gaps = np.abs(counts - count)
        return int(counts[len(counts) - 1 - int(np.argmin(gaps[::-1]))])

    def rounded_up(self, g: Group, count: float, step: int) -> int:
        """Return the smallest allowed count that is not below the wanted one."""
        counts = self.allowed(g, step)
        return int(counts[min(int(np.searchsorted(counts, count - 1e-9)), len(counts) - 1)])

    def uniform(self, ratio: float, step: int | None = None) -> Counts:
        """Return counts with the same share removed from every group, except for overrides."""
        out = {}
        for g in self.groups:
            if g.name in self.fixed:
                out[g.name] = min(self.fixed[g.name], self.remaining[g.name])
                continue
            if g.name == DEPTH:
                out[g.name] = g.channels
                continue
            own = g.name in self.ratios
            share = self.ratios[g.name] if own else ratio
            wanted = max(g.channels - floor(g.channels * share + 1e-9), self.minimum_of(g))
            block = self.step if own or step is None else step
            out[g.name] = self.rounded(g, wanted, block) if share else self.remaining[g.name]
        return out

    def smallest(self, step: int) -> Counts:
        """Return the minimum counts that the constraints allow, except for overrides."""
        return {**self.uniform(0.0), **{g.name: int(self.allowed(g, step)[0]) for g in self.widths}}

    def inside(self, counts: Mapping[str, int]) -> frozenset[str]:
        """Return the groups inside removed blocks: their channels are removed with these."""
        return self.depth.removed_with(counts[DEPTH]) if self.depth is not None else frozenset()


def _matching(analysis: Analysis, pattern: str, what: str) -> set[str]:
    """Return the groups that match a pattern."""
    names = {g.name for g in analysis.groups if fnmatchcase(g.name, pattern)}
    others = [*(k.name for k in analysis.locked), *(b.name for b in analysis.blocks)]
    if not names and not any(fnmatchcase(other, pattern) for other in others):
        raise unknown(f"group (in {what})", pattern, [g.name for g in analysis.groups])
    return names


def prunable(analysis: Analysis, constraints: Constraints) -> list[Group]:
    """Return the groups that may be pruned under the patterns and presets."""
    chosen = {g.name for g in analysis.groups}
    if constraints.include:
        chosen = {n for n in chosen if any(fnmatchcase(n, p) for p in constraints.include)}
    chosen -= {n for n in chosen if any(fnmatchcase(n, p) for p in constraints.exclude)}
    for preset in constraints.protect:
        chosen -= {g.name for i, g in enumerate(analysis.groups) if _protected(preset, i, g)}
    kinds = [k for k in constraints.only if k != "channels"]
    if kinds:
        chosen &= {g.name for i, g in enumerate(analysis.groups) if any(_protected(k, i, g) for k in kinds)}
    return [g for g in analysis.groups if g.name in chosen]


def check_patterns(analysis: Analysis, constraints: Constraints) -> None:
    """Raise if a pattern matches no group, locked channels or block."""
    for what in ("include", "exclude"):
        for pattern in getattr(constraints, what):
            _matching(analysis, pattern, what)


def _nothing_remains(analysis: Analysis, constraints: Constraints) -> OnnxPruneError:
    """Return the error for constraints that leave no group."""
    named = [b.name for b in analysis.blocks if any(fnmatchcase(b.name, p) for p in constraints.include)]
    if named:
        return OnnxPruneError(
            f"no channels remain to prune: the included patterns name {counted(len(named), 'block')} only "
            f"({', '.join(named[:3])}{', ...' if len(named) > 3 else ''})",
            fix="add --only blocks, or include groups of channels (see `onnxprune inspect`)",
        )
    fix = "see `onnxprune inspect`, and exclude or protect less"
    if not analysis.groups and analysis.free_blocks:
        fix = f"remove residual blocks, of which {len(analysis.free_blocks)} can be: --only blocks"
    return OnnxPruneError("no group remains to prune", fix=fix)


def _protected(preset: str, index: int, group: Group) -> bool:
    """Return whether a group matches a preset."""
    if preset == "first":
        return index == 0
    if preset == "residual":
        return group.residual
    if preset == "attention":
        return group.kind in ("heads", "head_dim")
    return group.kind == preset
