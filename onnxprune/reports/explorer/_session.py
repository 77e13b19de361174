"""Questions of the page, as plain values in and out: costs of counts, counts for an aim, a plan on disk.

A state is a list of counts, the channels that every group keeps, in the order of `analysis.groups`, and the removed
residual blocks, as indices into `Explorer.blocks`. The scores decide which channels are kept, as in `planning.planner`;
groups inside a removed block lose all channels with it, whatever their counts. Between two questions only the saved
file is kept, and the traces of greedy searches, from which the next value of the same aim continues.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from glob import escape
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune import __version__ as version
from onnxprune._utils.output.formatting import counted
from onnxprune.analysis.blocks import Block, inner_groups
from onnxprune.analysis.cost import MEASURES, CostModel
from onnxprune.analysis.coupling import Kept
from onnxprune.criteria.normalize import normalize as normalized
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.passes import Pipeline
from onnxprune.passes.remove_blocks import RemoveBlocks
from onnxprune.planning.allocators import GreedyTrace
from onnxprune.planning.constraints import Constraints, FeasibleCounts
from onnxprune.planning.curves import Curves
from onnxprune.planning.depth import channels_only, chosen_blocks, outermost, removals, settled
from onnxprune.planning.planner import (
    AllocationRequest,
    allocate,
    allocate_depth,
    assembled,
    check_allocator,
    removed_counts,
)
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.planning.thresholds import check_curves, predicted, predicted_sum, threshold_of
from onnxprune.plans import Plan, Removal, save_plan
from onnxprune.reports.explorer._flow import flow

Counts = Sequence[int]
RATIO, METRIC = "ratio", "metric"  # aims besides the measures of a target
_TRACES = 8  # cached traces of the allocator "saving"


class Explorer:
    """Answers the page's questions, one at a time: the costs cache their results.

    Args:
        scores: scores of the groups.
        output: path of the plan, the only file that is written.
        name: name of the model, for the title.
        curves: curves of the same criterion.
        latency: a latency model.
        constraints: rounding, protection, overrides.
        normalize: normalisation of the groups; default: the criterion's own.
        overwrite: allow replacing an existing file at `output`.

    Raises:
        OnnxPruneError: curves that do not belong to the scores or hold for one threshold only; limits that leave
            nothing; a file at `output` that may not be replaced.
    """

    def __init__(
        self, scores: Scores, output: Path, *, name: str = "model", curves: Curves | None = None,
        latency: LatencyPredictor | None = None, constraints: Constraints | None = None, normalize: str | None = None,
        overwrite: bool = True,
    ) -> None:  # fmt: skip
        self.scores, self.curves, self.latency = scores, curves, latency
        self.analysis = scores.analysis
        self.output = output
        self.name = name
        self.saved: Plan | None = None
        self._limits = settled(scores.analysis, constraints or Constraints())
        self._constraints = self._of_channels()
        self._normalize = normalize or scores.normalize
        self._overwrite = overwrite
        self._lock = threading.Lock()
        self._traces: dict[tuple[object, ...], GreedyTrace] = {}
        if curves is not None:
            check_curves(curves, scores)
            threshold_of(curves, None, None, target=True)  # refuses curves bisected for one threshold
            if self._limits.asks_for_blocks:
                raise OnnxPruneError(
                    "blocks are planned by scores, not by curves",
                    fix="leave --curves out, or --only blocks and --max-blocks",
                )
        self._check_output()
        self._cost = CostModel(self.analysis)
        self.blocks = self._switches()
        self._inside = [inner_groups(self.analysis.model.graph, self.analysis.groups, b) for b in self.blocks]
        self._feasible = FeasibleCounts(self.analysis, self._constraints, self._prunable())
        self._open = {g.name for g in self._feasible.groups}
        self._order = {
            g.name: np.argsort(scores.groups[g.name], kind="stable")
            for g in (self.analysis.groups if self._limits.blocks_alone else self._feasible.groups)
            if g.name in scores.groups
        }
        self._worth = self._worths()
        self.start = self._counts(self._feasible.uniform(0.0))
        self.least = [
            min(self._feasible.minimum_of(g), start) if g.name in self._open else g.channels
            for g, start in zip(self.analysis.groups, self.start, strict=True)
        ]
        self.aims = self._aims()
        self.allocators = self._allocators()

    # ------------------------------------------------------------------------------------------------- questions

    def describe(self) -> dict[str, Any]:
        """Return the static description for the page: groups, the flow between them, the possible aims."""
        drawn = flow(self.analysis)
        whole = [g.channels for g in self.analysis.groups]
        return {
            "name": self.name,
            "output": str(self.output),
            "criterion": self.scores.criterion.get("name"),
            "groups": [self._group(i) for i in range(len(self.analysis.groups))],
            "blocks": self._described_blocks({r.group: i for i, r in enumerate(drawn.rows) if r.group is not None}),
            "most_blocks": self._limits.max_blocks or len(self.blocks),
            "rows": [asdict(row) for row in drawn.rows],
            "edges": drawn.edges,
            "whole": self.figures(whole),
            "start": self.start,
            "aims": self.aims,
            "scopes": self.allocators,
            "metric": self._metric(),
            "latency": self._timing(),
        }

    def figures(self, counts: Counts, blocks: Sequence[int] = ()) -> dict[str, Any]:
        """Return the costs of a state: every measure, seconds, the metric predicted by the curves, the kept score.

        `metric` is the worst value of any group's own curve, `added` the value if all groups' losses added up; the
        truth is mostly between them. Both are None where a curve does not reach that far, and without a block.

        Raises:
            OnnxPruneError: More blocks than the constraints allow.
        """
        with self._lock:
            return self._figures(counts, self._removed(blocks))

    def aim(
        self, what: str, value: float, allocator: str | None, pinned: Mapping[int, int], blocks: Sequence[int] = ()
    ) -> tuple[list[int], list[int]]:
        """Return the counts and the removed blocks for an aim.

        Args:
            what: a measure of `Target` (value: the share kept), "ratio" (the share removed from every group) or
                "metric" (every group as far as its own curve is at or above the value).
            value: value of the measure, the ratio or the metric.
            allocator: allocator of the target; None: the default one.
            pinned: index of a group -> the count it keeps whatever the goal.
            blocks: blocks removed whatever the goal. Others are removed for a measure only, if the constraints ask
                for blocks.

        Raises:
            OnnxPruneError: the value is out of range or reach, or needs curves or a latency model that are absent.
        """
        gone = self._removed(blocks)
        names = [g.name for g in self.analysis.groups]
        fixed = {escape(names[i]): {"channels": count} for i, count in pinned.items()}
        target = Target(**{what: value}) if what not in (RATIO, METRIC) else None
        by_depth = target is not None and self._limits.asks_for_blocks
        limits = self._limits if by_depth else self._constraints
        constraints = replace(limits, overrides={**limits.overrides, **fixed})
        threshold = None
        if what == METRIC:
            up = self.curves is None or self.curves.higher_is_better
            threshold = threshold_of(self.curves, value if up else None, None if up else value)
            allocator = "sensitivity"
        else:
            allocator = check_allocator(
                allocator if target is not None else "uniform",
                target,
                value if what == RATIO else None,
                curves=self.curves if target is not None else None,
                latency=self.latency,
                default=self.scores.default_allocator,
            )
        request = AllocationRequest(
            target, value if what == RATIO else None, allocator, self._normalize, constraints, tuple(gone)
        )
        with self._lock:
            if by_depth:
                groups, gone = allocate_depth(self.scores, request, latency=self.latency, cost=self._cost)
            else:
                groups = allocate(
                    self.scores, request, curves=None if what == RATIO else self.curves, threshold=threshold,
                    latency=self.latency, cost=self._cost, trace=self._trace(what, pinned, gone),
                )  # fmt: skip
        lost = removed_counts(groups)
        inside = self._groups_in(gone)
        counts = [
            pinned.get(i, self.start[i]) if g.name in inside else g.channels - lost.get(g.name, 0)
            for i, g in enumerate(self.analysis.groups)
        ]
        return counts, self.places(gone)

    def plan(self, counts: Counts, blocks: Sequence[int] = ()) -> Plan:
        """Return the plan that keeps these counts and removes these blocks.

        Raises:
            OnnxPruneError: More blocks than the constraints allow.
        """
        gone = self._removed(blocks)
        groups = self._plan_groups(counts, gone)
        record: dict[str, Any] = {"scope": "explore"}
        if self.curves is not None and not gone:
            record |= {"metric": self.curves.metric, "threshold": predicted(self.curves, removed_counts(groups))}
        request = AllocationRequest(None, None, "explore", self._normalize, self._constraints)
        return assembled(self.scores, request, groups, record, version, gone)

    def save(self, counts: Counts, blocks: Sequence[int] = ()) -> Plan:
        """Write the plan to `output` atomically.

        Raises:
            OnnxPruneError: it cannot be written, or would replace a file that this session did not write; more blocks
                than the constraints allow, or all operands of a sum.
        """
        made = self.plan(counts, blocks)
        if made.blocks:
            Pipeline([RemoveBlocks(made, self.analysis)])(self.analysis.model)  # raises if a sum loses all operands
        with self._lock:
            self._check_output()
            save_plan(made, self.output)
            self.saved = made
        return made

    def places(self, blocks: Sequence[Block]) -> list[int]:
        """Return the indices of the outermost of some blocks."""
        place = {b.name: i for i, b in enumerate(self.blocks)}
        return sorted(place[b.name] for b in outermost(blocks))

    # ------------------------------------------------------------------------------------------------- inside

    def _check_output(self) -> None:
        if not self._overwrite and self.saved is None and self.output.exists():
            raise OnnxPruneError(f"{str(self.output)!r} exists already", fix="name the plan with -o, or move the file")

    def _of_channels(self) -> Constraints:
        """Return the constraints of the channels; blocks alone leave none of their patterns to the groups."""
        if self._limits.blocks_alone:
            return Constraints(round_to=self._limits.round_to)
        return channels_only(self._limits)

    def _prunable(self) -> Sequence[str]:
        """Return the names of the groups with sliders, if the constraints allow."""
        return () if self._limits.blocks_alone else list(self.scores.groups)

    def _switches(self) -> list[Block]:
        """Return the blocks that can be switched off: none where the constraints select kinds of channels alone."""
        if self._limits.only and not self._limits.asks_for_blocks:
            return []
        return chosen_blocks(self.analysis, self._limits)

    def _removed(self, blocks: Sequence[int]) -> list[Block]:
        """Return removed blocks by index; blocks inside others are removed with these.

        Raises:
            OnnxPruneError: More blocks than the constraints allow.
        """
        found = outermost(self.blocks[i] for i in sorted(set(blocks)))
        if self._limits.max_blocks and len(found) > self._limits.max_blocks:
            raise OnnxPruneError(
                f"{counted(len(found), 'block')} would be removed, more than --max-blocks {self._limits.max_blocks}",
                fix="keep one of them, or raise --max-blocks",
            )
        return found

    def _groups_in(self, blocks: Sequence[Block]) -> frozenset[str]:
        """Return the groups that are removed with some blocks."""
        names = {b.name for b in blocks}
        within = [found for b, found in zip(self.blocks, self._inside, strict=True) if b.name in names]
        return frozenset().union(*within)

    def _trace(self, what: str, pinned: Mapping[int, int], blocks: Sequence[Block]) -> GreedyTrace:
        """Return the cached trace of this aim with the same groups and blocks held; the last few aims are cached."""
        key = (what, *sorted(pinned.items()), *(b.name for b in blocks))
        trace = self._traces.pop(key, None) or GreedyTrace()
        self._traces[key] = trace
        if len(self._traces) > _TRACES:
            del self._traces[next(iter(self._traces))]
        return trace

    def _counts(self, by_name: Mapping[str, int]) -> list[int]:
        return [by_name.get(g.name, g.channels) for g in self.analysis.groups]

    def _plan_groups(self, counts: Counts, blocks: Sequence[Block] = ()) -> dict[str, Removal]:
        """Return the channels to remove beside blocks: in every group outside them those with the lowest scores."""
        inside = self._groups_in(blocks)
        return {
            g.name: Removal(g.channels, tuple(sorted(self._order[g.name][: g.channels - count].tolist())))
            for g, count in zip(self.analysis.groups, counts, strict=True)
            if count < g.channels and g.name not in inside
        }

    def _kept(self, groups: Mapping[str, Removal], blocks: Sequence[Block] = ()) -> Kept:
        return self.analysis.kept(Plan("", groups, blocks=removals(blocks)))

    def _figures(self, counts: Counts, blocks: Sequence[Block] = ()) -> dict[str, Any]:
        groups = self._plan_groups(counts, blocks)
        kept = self._kept(groups, blocks)
        gone = removed_counts(groups)
        curves = self.curves if not blocks else None
        total = sum(float(w[-1]) for w in self._worth.values())
        lost = sum(float(self._worth[name][n]) for name, n in gone.items())
        lost += sum(float(self._worth[name][-1]) for name in self._groups_in(blocks) & self._worth.keys())
        if self._limits.blocks_alone and self.scores.blocks:
            losses = {name: max(0.0, loss) for name, loss in self.scores.blocks.items()}
            total, lost = sum(losses.values()), sum(losses.get(b.name, 0.0) for b in blocks)
        return {
            "cost": vars(self._cost.cost(kept)),
            "latency": self.latency.seconds(kept) if self.latency is not None else None,
            "metric": predicted(curves, gone) if curves is not None else None,
            "added": predicted_sum(curves, gone) if curves is not None else None,
            "score": 1 - lost / total if total > 0 else 1.0,
        }

    def _worths(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Return by group the summed normalized scores after removing 0, 1 ... channels; the least counts at most 0."""
        sizes = {
            name: normalized(self.scores.groups[name], self._normalize)[order] for name, order in self._order.items()
        }
        least = min((float(v.min()) for v in sizes.values()), default=0.0)
        return {name: np.concatenate([[0.0], np.cumsum(v - min(least, 0.0))]) for name, v in sizes.items()}

    def _described_blocks(self, rows: Mapping[int, int]) -> list[dict[str, Any]]:
        """Describe the blocks for the page: the row that each begins at, what is removed with it and what it saves.

        Args:
            rows: index of a group -> its row.
        """
        index = {g.name: i for i, g in enumerate(self.analysis.groups)}
        nodes = [frozenset(b.nodes) for b in self.blocks]
        counts = [g.channels for g in self.analysis.groups]
        whole, behind, out = self._figures(counts), 0, []
        for block, inside, own in zip(self.blocks, self._inside, nodes, strict=True):
            own_rows = [rows[index[name]] for name in inside] or [behind]
            behind = min(max(own_rows) + bool(inside), len(self.analysis.groups) - 1)
            without = self._figures(counts, [block])
            latency = 1 - without["latency"] / whole["latency"] if whole["latency"] else None
            saved = {m: 1 - without["cost"][m] / (whole["cost"][m] or 1) for m in ("macs", "params", "bytes")}
            out.append({
                "name": block.name,
                "kind": block.kind,
                "row": min(own_rows),
                "groups": sorted(index[name] for name in inside),
                "within": [i for i, other in enumerate(nodes) if own < other],
                "saved": {**saved, "latency": latency},
            })  # fmt: skip
        return out

    def _group(self, i: int) -> dict[str, Any]:
        """Describe a group for the page: its kind, the counts of its slider, its curve."""
        g = self.analysis.groups[i]
        is_open = g.name in self._open
        stops = {self.start[i]} | (
            {int(n) for n in self._feasible.allowed(g, self._feasible.step)} if is_open else set()
        )
        found: dict[str, Any] = {
            "name": g.name,
            "channels": g.channels,
            "width": g.width,
            "op": g.op,
            "residual": g.residual,
            "weights": [tensor for tensor, _ in g.sites],
            "open": is_open,
            "stops": sorted(stops, reverse=True),
            "curve": None,
            "worth": None,
        }
        if self.curves is not None and g.name in self.curves.groups:
            points = (self.curves.baseline, *self.curves.groups[g.name].points)
            found["curve"] = [[p.removed, p.value] for p in points]
        if is_open and float(self._worth[g.name][-1]) > 0:
            worth = self._worth[g.name]
            places = np.unique(np.linspace(0, g.channels, min(g.channels, 48) + 1).astype(np.int64))
            found["worth"] = [[int(n), round(1 - float(worth[n] / worth[-1]), 4)] for n in places]
        return found

    def _aims(self) -> list[dict[str, Any]]:
        """Return the possible aims with their ranges, the unpruned end first."""
        gone = outermost(self.blocks)[: self._limits.max_blocks or None] if self._limits.asks_for_blocks else []
        smallest = self._kept(self._plan_groups(self._counts(self._feasible.smallest(1)), gone), gone)
        cost = self._cost.cost(smallest)
        aims: list[dict[str, Any]] = []
        if not self._limits.blocks_alone:
            aims.append({"what": RATIO, "from": 0.0, "to": self._constraints.max_ratio, "step": 0.01})
        shares = {m: cost.ratio(self._cost.baseline, m) for m in MEASURES}
        if self.latency is not None:
            shares["latency"] = min(self.latency.seconds(smallest) / self.latency.baseline, 1.0)
        aims += [{"what": m, "from": 1.0, "to": ceil(100 * s) / 100, "step": 0.01} for m, s in shares.items()]
        if self.curves is not None:
            values = [p.value for c in self.curves.groups.values() for p in c.points]
            whole = self.curves.baseline.value
            end = min([whole, *values]) if self.curves.higher_is_better else max([whole, *values])
            if end != whole:
                aims.append({"what": METRIC, "from": whole, "to": end, "step": abs(whole - end) / 100})
        return aims

    def _allocators(self) -> list[str]:
        """Return the allocators that are possible here; the first one is the default."""
        extra = [("sensitivity", self.curves is not None), ("latency", self.latency is not None)]
        names = [name for name, there in extra if there]
        names += ["global", "uniform", "saving"]
        if "global" in self.scores.forbids:
            names = [n for n in names if n not in ("global", "latency", "saving")]
        own = "sensitivity" if self.curves is not None else self.scores.default_allocator
        return sorted(names, key=lambda n: n != own)

    def _metric(self) -> dict[str, Any] | None:
        if self.curves is None:
            return None
        return {
            "name": self.curves.metric,
            "whole": self.curves.baseline.value,
            "higher_is_better": self.curves.higher_is_better,
            "data": self.curves.data.get("name"),
        }

    def _timing(self) -> dict[str, Any] | None:
        if self.latency is None:
            return None
        return {"batch": self.latency.batch, "threads": self.latency.threads, "provider": self.latency.provider}
