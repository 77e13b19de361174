"""Choice between blocks beside channels and channels alone, by the outputs on held-out samples.

Scores estimate the loss of a block and of channels in one unit, but recovery makes up for each to a different degree.
Where both are planned together, the plan of channels alone is recovered as well, and the nearer model is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.depth import settled
from onnxprune.plans import Plan
from onnxprune.recovery.recover import Recovered

Planned = TypeVar("Planned")
Result = TypeVar("Result")


def removes_both(analysis: Analysis, constraints: Constraints, plan: Plan) -> bool:
    """Return whether a plan removes blocks where channels alone could be removed instead."""
    return bool(plan.blocks) and not settled(analysis, constraints).blocks_alone


def nearer_to_original(
    joint: Result,
    plan_channels: Callable[[], Planned],
    run: Callable[[Planned], Result],
    recovered: Callable[[Result], Recovered | None],
) -> tuple[Result, str]:
    """Return the joint result or that of channels alone, whichever is nearer to the original, and a remark.

    Args:
        joint: Result with blocks and channels removed.
        plan_channels: Planner of channels alone under the same budget.
        run: Removal, proof and recovery of a plan.
        recovered: Recovery of a result; without one the joint result is used.

    Raises:
        OnnxPruneError: See `compile_plan` and `recover`; a target that channels alone do not meet is no error.
    """
    before = recovered(joint)
    if before is None:
        return joint, ""
    try:
        planned = plan_channels()
    except OnnxPruneError:
        return joint, ""
    channels = run(planned)
    after = recovered(channels)
    if after is None or not after.best.distance < before.best.distance:
        return joint, ""
    return channels, (
        f"note: channels alone stay nearer to the original after recovery (output distance {after.best.distance:.3g}, "
        f"with blocks {before.best.distance:.3g}), so no block is removed"
    )
