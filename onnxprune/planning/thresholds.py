"""Thresholds on sensitivity curves: removable counts, predicted metric, and the path of a falling threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf, isfinite, nextafter
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import SHARES
from onnxprune.planning._search import CountPath
from onnxprune.planning.constraints import Counts, FeasibleCounts
from onnxprune.planning.curves import Curves

_SHARES = SHARES - {"character_accuracy"}  # metrics that lie in [0, 1]
_SUBSTEPS = 64


def check_curves(curves: Curves, scores: Scores) -> None:
    """Raise if curves do not belong to these scores: the same model, channels and order of removal.

    Raises:
        OnnxPruneError: Another model, attention option or criterion, or groups of other sizes.
    """
    analysis = scores.analysis
    if curves.model != analysis.source.fingerprint:
        raise OnnxPruneError(
            "the curves belong to another model (its fingerprint differs)",
            fix="run `onnxprune sensitivity` on this model",
        )
    theirs, ours = str(curves.options.get("attention", "heads")), analysis.choices.attention
    if theirs != ours:
        raise OnnxPruneError(
            f"the curves were made with --attention {theirs}, the groups with {ours}", fix=f"use --attention {theirs}"
        )
    wanted, given = _plain(curves.criterion), _plain(scores.criterion)
    if wanted != given:
        raise OnnxPruneError(
            f"the curves were made by another criterion ({_describe(wanted)}) than the scores ({_describe(given)})",
            fix="score with that criterion (without -c and --scores), or create the curves again",
        )
    for name, curve in curves.groups.items():
        channels = analysis[name].channels
        if curve.channels != channels:
            raise OnnxPruneError(
                f"the curve counts {curve.channels} channels where the model has {channels}",
                where=f"group {name!r}",
                fix="create the curves again with `onnxprune sensitivity`",
            )


def _plain(criterion: Mapping[str, Any]) -> dict[str, Any]:
    """Return a criterion as read from a file, without `normalize`, which only affects comparisons between groups."""
    found: dict[str, Any] = json.loads(json.dumps(dict(criterion)))
    found.pop("normalize", None)
    return found


def _describe(criterion: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k}={v}" for k, v in sorted(criterion.items()) if k != "name")
    return f"{criterion.get('name', '?')}{': ' + rest if rest else ''}"


def threshold_of(
    curves: Curves | None, min_group_accuracy: float | None, max_loss: float | None, *, target: bool = False
) -> float | None:
    """Return the user's threshold after validation; None if there is none.

    Args:
        curves: Sensitivity curves; None if there are none.
        min_group_accuracy: Threshold for metrics where higher is better.
        max_loss: Threshold for metrics where lower is better.
        target: Whether a target is given as well.

    Raises:
        OnnxPruneError: There are no curves; the option is for the other kind of metric; the threshold is invalid or the
            original misses it; or the curves were searched for another threshold only.
    """
    if curves is None:
        if min_group_accuracy is None and max_loss is None:
            return None
        option = "--min-group-accuracy" if max_loss is None else "--max-loss"
        raise OnnxPruneError(f"{option} needs curves", fix="--curves FILE, from `onnxprune sensitivity`")
    right, wrong = (
        ("--min-group-accuracy", "--max-loss") if curves.higher_is_better else ("--max-loss", "--min-group-accuracy")
    )
    value, other = (min_group_accuracy, max_loss) if curves.higher_is_better else (max_loss, min_group_accuracy)
    if other is not None:
        better = "higher" if curves.higher_is_better else "lower"
        raise OnnxPruneError(
            f"{wrong} does not go with these curves: their metric is {curves.metric}, {better} is better",
            fix=f"{right} {other:g}",
        )
    if curves.bisected is not None and (target or value != curves.bisected):
        raise OnnxPruneError(
            f"these curves were searched for {curves.metric} = {curves.bisected:g} and hold for that threshold only",
            fix=f"{right} {curves.bisected:g} without a target, or sweep complete curves with `onnxprune sensitivity`",
        )
    if value is None:
        return None
    if not isfinite(value) or (curves.metric in _SHARES and not 0 <= value <= 1):
        span = "in [0, 1]" if curves.metric in _SHARES else "a finite number"
        raise OnnxPruneError(f"{right} is {span} for {curves.metric}; got {value:g}")
    whole = curves.baseline.value
    if not curves.reaches(whole, value):
        side = "below" if curves.higher_is_better else "above"
        raise OnnxPruneError(
            f"the original's {curves.metric} is already {whole:.4g}, {side} {right} {value:g}",
            fix=f"use a threshold {'up to' if curves.higher_is_better else 'from'} {whole:.4g}",
        )
    return value


def least_counts(curves: Curves, scores: Scores, threshold: float | None) -> Counts:
    """Return the minimum counts of each group: as far as its curve reaches the threshold, or as far as it was measured.

    A group without a curve is not pruned.
    """
    out: Counts = {}
    for g in scores.analysis.groups:
        gone = 0
        if g.name in curves.groups and threshold is not None:
            gone = curves.largest(g.name, threshold)
        elif g.name in curves.groups:
            gone = max((p.removed for p in curves.groups[g.name].points), default=0)
        out[g.name] = g.channels - gone
    return out


def _values(curves: Curves, group: str) -> npt.NDArray[np.float64]:
    """Return the metric with 0, 1, 2 ... channels removed, [last measured + 1], linear between points."""
    points = (curves.baseline, *curves.groups[group].points)
    gone = [p.removed for p in points]
    return np.interp(np.arange(max(gone) + 1), gone, [p.value for p in points])


def losses(curves: Curves, group: str) -> npt.NDArray[np.float64]:
    """Return the loss of the metric with 0, 1, 2 ... channels removed, [last measured + 1], >= 0.

    Losses are non-decreasing: where a curve recovers, that is mostly noise.
    """
    lost = curves.baseline.value - _values(curves, group)
    return np.maximum.accumulate(np.maximum(lost if curves.higher_is_better else -lost, 0.0))


def predicted(curves: Curves, removed: Mapping[str, int]) -> float | None:
    """Return the worst value of any single group's curve at these numbers of removed channels.

    Groups count separately; together they cost more. None if a group has no curve that far.
    """
    worst = curves.baseline.value
    for name, gone in removed.items():
        if not gone:
            continue
        values = _values(curves, name) if name in curves.groups else np.zeros(0)
        if gone >= len(values):
            return None
        here = float(values[gone])
        worst = min(worst, here) if curves.higher_is_better else max(worst, here)
    return worst


def predicted_sum(curves: Curves, removed: Mapping[str, int]) -> float | None:
    """Return the metric with the losses of all groups (`losses`) summed; None if a group has no curve that far."""
    lost = 0.0
    for name, gone in removed.items():
        if not gone:
            continue
        values = losses(curves, name) if name in curves.groups else np.zeros(0)
        if gone >= len(values):
            return None
        lost += float(values[gone])
    value = curves.baseline.value - lost if curves.higher_is_better else curves.baseline.value + lost
    return max(value, 0.0) if curves.metric in _SHARES else value


def threshold_path(curves: Curves, feasible: FeasibleCounts) -> CountPath:
    """Return the path from nothing removed to the last measured points, by a threshold that falls from the baseline.

    Between two thresholds with points, every group follows its own line. Where curves are flat, many channels become
    removable at a single threshold; they are removed group by group in the same proportion.
    """
    sign = 1.0 if curves.higher_is_better else -1.0
    groups = [g for g in feasible.free if g.name in curves.groups]
    top = sign * curves.baseline.value
    found = {sign * p.value for g in groups for p in curves.groups[g.name].points}
    values = [top, *sorted((v for v in found if v < top), reverse=True)]
    start = feasible.uniform(0.0)

    def gone(value: float) -> npt.NDArray[np.float64]:
        return np.array([curves.crossing(g.name, sign * value) for g in groups])

    def counts_at(i: int, step: int) -> Counts:
        stage, part = divmod(i, _SUBSTEPS)
        share = part / _SUBSTEPS
        value = values[min(stage // 2, len(values) - 1)]
        if stage % 2 == 0 and stage // 2 < len(values):  # jump at a threshold
            removed = (1 - share) * gone(nextafter(value, inf)) + share * gone(value)
        elif stage // 2 + 1 < len(values):  # towards the next threshold
            removed = gone((1 - share) * value + share * nextafter(values[stage // 2 + 1], inf))
        else:
            removed = gone(value)
        out = dict(start)
        for g, r in zip(groups, removed.tolist(), strict=True):
            out[g.name] = feasible.rounded_up(g, g.channels - r, step)
        return out

    return CountPath(counts_at, (2 * len(values) - 1) * _SUBSTEPS)
