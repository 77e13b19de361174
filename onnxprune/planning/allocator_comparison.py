"""The same target met by every allocator: what else each of them keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.analysis.cost import MEASURES, CostModel
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.options.planning import ALLOCATORS
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.curves import Curves
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.planner import removed_counts
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.planning.thresholds import predicted
from onnxprune.plans import Plan


@dataclass(frozen=True)
class AllocatorRow:
    """One allocator's plan.

    Attributes:
        allocator: the allocator.
        chosen: whether it is the plan that was asked for.
        shares: measure -> share kept; empty if there is no plan.
        seconds: predicted latency, where there is a latency model.
        metric: worst value of any group's curve, where there are curves that far.
        digest: of the plan.
        error: why there is no plan.
    """

    allocator: str
    chosen: bool
    shares: Mapping[str, float]
    seconds: float | None = None
    metric: float | None = None
    digest: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scope": self.allocator, "chosen": self.chosen, **{m: self.shares.get(m) for m in MEASURES},
            "latency": self.seconds, "metric": self.metric, "digest": self.digest, "error": self.error,
        }  # fmt: skip


def same_target(scores: Scores, target: Target | None, plan: Plan) -> Target:
    """What the other allocators aim at: the target, or where there is none the plan's own MACs."""
    if target is not None:
        return target
    cost = CostModel(scores.analysis)
    return Target(macs=cost.cost(scores.analysis.kept(plan)).ratio(cost.baseline, "macs"))


def compare(
    scores: Scores,
    target: Target,
    plan: Plan,
    allocator: str,
    *,
    curves: Curves | None = None,
    latency: LatencyPredictor | None = None,
    normalize: str | None = None,
    constraints: Constraints | None = None,
) -> list[AllocatorRow]:
    """Plans for the same target by every allocator that has what it needs.

    Args:
        scores: of the groups.
        target: for all (see `same_target`).
        plan: the one that was asked for; it stands in the row of its allocator.
        allocator: of that plan.
        curves: for the allocator "sensitivity", and to say what each plan does to the metric.
        latency: for the allocator "latency", and to say how long each plan takes.
        normalize: as for `plan`.
        constraints: as for `plan`.
    """
    analysis = scores.analysis
    cost = CostModel(analysis)
    possible = {
        "uniform": True,
        "global": True,
        "saving": target.measure != "latency",  # then it is the same as latency
        "sensitivity": curves is not None,
        "latency": latency is not None,
    }
    assert set(possible) == set(ALLOCATORS)
    rows = []
    for name in (n for n, yes in possible.items() if yes):
        try:
            made = plan if name == allocator else make_plan(
                scores, target, allocator=name, curves=curves if name in ("sensitivity", "latency", "saving") else None,
                latency=latency, normalize=normalize, constraints=constraints,
            )  # fmt: skip
        except OnnxPruneError as err:
            rows.append(AllocatorRow(name, False, {}, error=str(err).replace("\n", ";")))
            continue
        kept = analysis.kept(made)
        after = cost.cost(kept)
        rows.append(
            AllocatorRow(
                name,
                name == allocator,
                {m: after.ratio(cost.baseline, m) for m in MEASURES},
                latency.seconds(kept) if latency is not None else None,
                predicted(curves, removed_counts(made.groups)) if curves is not None else None,
                made.digest,
            )
        )
    return rows
