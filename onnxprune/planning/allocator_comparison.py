"""Comparison of allocators: plans for the same target, with all measures of each."""

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
    """Plan of one allocator.

    Attributes:
        allocator: Name of the allocator.
        chosen: Whether this is the requested plan.
        shares: Measure -> share kept; empty if there is no plan.
        seconds: Predicted latency in seconds, if there is a latency model.
        metric: Worst value of any group's curve, if the curves extend that far.
        digest: Digest of the plan.
        error: Reason why there is no plan.
    """

    allocator: str
    chosen: bool
    shares: Mapping[str, float]
    seconds: float | None = None
    metric: float | None = None
    digest: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return {
            "scope": self.allocator, "chosen": self.chosen, **{m: self.shares.get(m) for m in MEASURES},
            "latency": self.seconds, "metric": self.metric, "digest": self.digest, "error": self.error,
        }  # fmt: skip


def same_target(scores: Scores, target: Target | None, plan: Plan) -> Target:
    """Return the target for the other allocators: the given one, or the share of MACs that the plan keeps."""
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
    """Return plans for the same target by every allocator whose inputs are available.

    Args:
        scores: Scores of the groups.
        target: Target of all plans (see `same_target`).
        plan: Requested plan, used in the row of its allocator.
        allocator: Allocator of that plan.
        curves: Curves for the allocator "sensitivity", and for the predicted metric of each plan.
        latency: Latency model for the allocator "latency", and for the predicted latency of each plan.
        normalize: See `plan`.
        constraints: See `plan`.
    """
    analysis = scores.analysis
    cost = CostModel(analysis)
    possible = {
        "uniform": True,
        "global": True,
        "saving": target.measure != "latency",  # for a latency target it equals latency
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
