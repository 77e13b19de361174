"""Choice of `remaining` of the criterion `obs`: how much of an early error recovery leaves, by short recoveries.

Recovery makes up for more of an early error in one model than in another. Scores for several values follow from one
scoring; the plan of each is recovered on a few samples, and the nearest to the original on others decides.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from onnxprune._utils.output.progress import Progress
from onnxprune.criteria.obs import REMAINING, is_open, with_remaining
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.pipeline._stages import compile_plan
from onnxprune.plans import Plan
from onnxprune.recovery.short_recovery import ShortRecovery

VALUES = (REMAINING, 0.1, 0.04, 0.016)
LEAST = 64  # samples; with fewer, distances differ more by the choice of samples than by the plan


def with_chosen_remaining(
    scores: Scores, plan: Callable[[Scores], Plan], calibration: Calibration, progress: Progress | None = None
) -> Scores:
    """Return scores with the value of `remaining` whose plan is nearest to the original after a short recovery.

    Scores of other criteria, or with a value that was given, are returned as they are. With few samples, and where all
    values lead to one plan, or to none because the planner raises, the usual value is used.

    Args:
        scores: Scores of the original.
        plan: Planner.
        calibration: Samples.
        progress: Called with (plans done, plans in all).

    Raises:
        OnnxPruneError: See `compile_plan` and `ReconstructWeights`.
    """
    if not is_open(scores):
        return scores
    usual = with_remaining(scores, REMAINING)
    tried = _plans(usual, plan) if len(calibration) >= LEAST else []
    if len(tried) < 2:
        return usual
    analysis, trials = scores.analysis, ShortRecovery(scores.analysis, calibration)
    best, nearest = usual, float("inf")
    for i, (made, found) in enumerate(tried):
        distance = trials.distance(made, compile_plan(analysis.source, made, analysis=analysis, check=False).model)
        if distance < nearest:
            best, nearest = found, distance
        if progress is not None:
            progress(i + 1, len(tried))
    return best


def _plans(scores: Scores, plan: Callable[[Scores], Plan]) -> list[tuple[Plan, Scores]]:
    """Return the different plans of all values, that of the usual one first."""
    found: dict[Hashable, tuple[Plan, Scores]] = {}
    for value in VALUES:
        other = with_remaining(scores, value)
        try:
            made = plan(other)
        except OnnxPruneError:  # the caller's own plan will raise as well
            continue
        removed = (*((name, r.removed) for name, r in sorted(made.groups.items())), *made.blocks)
        found.setdefault(removed, (made, other))
    return list(found.values())
