"""The cheapest model whose metric stays within a budget: a search along one path of plans."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isfinite, nan, sqrt
from pathlib import Path
from time import perf_counter
from typing import Any

from onnxprune._utils.output.formatting import percent
from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.tasks.metrics import UndefinedMetric
from onnxprune.latency.bench import bench
from onnxprune.latency.runtimes import Runtime
from onnxprune.latency.speedup import LatencyPair
from onnxprune.options.tasks import TaskOptions
from onnxprune.pipeline.budget.judge import Judge, Judgement
from onnxprune.pipeline.budget.path import PathPoint, PrunePath
from onnxprune.pipeline.budget.point_store import point_store
from onnxprune.planning.sensitivity_sweep import data_digest
from onnxprune.recovery.recover import OriginalActivations

FACTOR = 0.8  # share of the smallest point so far that the next point keeps, until enough exceed the budget
BEYOND = 2  # points beyond the budget, each smaller than all within, before intervals are halved
RESOLUTION = 0.03  # the search ends when the smallest point within the budget is so close to one beyond it
EXPECTED = 10  # points of a search, for its progress
LEAST = 0.05  # share of the measure below which the search does not go


@dataclass(frozen=True, repr=False)
class BudgetPoint:
    """Model that the search tried.

    Attributes:
        target: Share of the measure that was asked for.
        kept: Share of the measure that the model keeps.
        reading: Metric and drop on held-out samples; NaN and an infinite drop if the metric is not finite.
        within: True if the drop is within the budget.
        seconds: Duration of choosing, proving, recovering and evaluating.
        point: Model, plan, proof and recovery.
    """

    target: float
    kept: float
    reading: Judgement
    within: bool
    seconds: float
    point: PathPoint = field(repr=False)

    def __repr__(self) -> str:
        verdict = "within" if self.within else "beyond"
        return f"<BudgetPoint: {percent(self.kept)} kept, drop {self.reading.drop:.2f}, {verdict} the budget>"

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as a JSON object; a metric that is not finite and its drop are None."""
        r = self.reading
        value, drop = (v if isfinite(v) else None for v in (r.value, r.drop))
        return {
            "target": self.target, "kept": self.kept, "value": value, "error": r.error, "drop": drop,
            "drop_error": r.drop_error, "within": self.within, "seconds": self.seconds,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class BudgetSearch:
    """Result of a search for the cheapest model within a budget.

    Attributes:
        measure: Measure that was minimized.
        metric: Name of the metric.
        unit: Unit of the drops.
        max_drop: Budget.
        original: Value of the metric for the original.
        samples: Number of held-out samples.
        points: All models that were tried, in the order of the share they keep, largest first.
        measured: Share of the points' cost that is kept -> latency before and after, for the points that were measured:
            the result and its neighbours if latency was minimized.
        judge: Evaluation on the held-out samples.
        folder: Folder with the points, if they are stored.
    """

    measure: str
    metric: str
    unit: str
    max_drop: float
    original: float
    samples: int
    points: tuple[BudgetPoint, ...]
    judge: Judge = field(repr=False)
    measured: Mapping[float, LatencyPair] = field(default_factory=dict)
    folder: Path | None = None

    def remove_points(self) -> None:
        """Remove the stored points, after the result was written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def best(self) -> BudgetPoint:
        """The cheapest point within the budget; of measured points one that is faster by more than 3 % precedes."""
        cheapest = min((p for p in self.points if p.within), key=lambda p: p.kept)
        timed = [p for p in self.points if p.within and p.kept in self.measured]
        if cheapest.kept not in self.measured:
            return cheapest
        fastest = min(timed, key=lambda p: self.measured[p.kept].share)
        least = self.measured[cheapest.kept].share * (1 - RESOLUTION)
        return fastest if self.measured[fastest.kept].share < least else cheapest

    @property
    def warning(self) -> str:
        """Reason why the claim is weaker than asked for; "" if there is none."""
        error = self.best.reading.drop_error
        if error is None or error <= self.max_drop / 2:
            return ""
        return (
            f"{self.samples} held-out samples cannot support a drop of {self.max_drop:g} {self.unit} within one "
            "standard error; use more samples"
        )

    @property
    def larger(self) -> BudgetPoint | None:
        """The neighbour that keeps more; None if there is none."""
        return min((p for p in self.points if p.kept > self.best.kept), key=lambda p: p.kept, default=None)

    @property
    def smaller(self) -> BudgetPoint | None:
        """The neighbour that keeps less, beyond the budget; None if there is none."""
        return max((p for p in self.points if p.kept < self.best.kept), key=lambda p: p.kept, default=None)

    @property
    def summary(self) -> str:
        """The result in one line."""
        best = self.best
        error = "" if best.reading.drop_error is None else f" +- {best.reading.drop_error:.2g}"
        timed = self.measured.get(best.kept)
        kept = "kept" if timed is None else f"kept as predicted, {percent(timed.share)} measured"
        return (
            f"{percent(best.kept)} of the {self.measure} {kept}, {self.metric} drops by {best.reading.drop:.2f}{error} "
            f"{self.unit} of {self.max_drop:g} on {self.samples} held-out samples"
        )

    def __repr__(self) -> str:
        return f"<BudgetSearch: {self.summary}>"

    def as_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return {
            "measure": self.measure, "metric": self.metric, "unit": self.unit, "max_drop": self.max_drop,
            "original": self.original, "samples": self.samples, "warning": self.warning or None,
            "points": [p.as_dict() for p in self.points],
            "measured": [
                {"kept": kept, "before": pair.before, "after": pair.after, "share": pair.share}
                for kept, pair in self.measured.items()
            ],
        }  # fmt: skip


PointMaker = Callable[[float, PathPoint | None], PathPoint]
"""Maker of the point that keeps a share, from an earlier point; `PrunePath.point`, or one that stores points."""


def prune_to_budget(
    path: PrunePath,
    evaluation: Calibration,
    max_drop: float,
    *,
    task: TaskOptions | None = None,
    folder: Path | None = None,
    restart: bool = False,
    runs: int = 30,
    runtime: Runtime | None = None,
    notice: Callable[[BudgetPoint], None] | None = None,
    progress: Progress | None = None,
) -> BudgetSearch:
    """Search for the cheapest model whose metric drops by at most `max_drop`; see `smallest_within`.

    Args:
        path: Settings of the points.
        evaluation: Samples for the metric, apart from those of the path.
        max_drop: Largest drop.
        task: Task and metric.
        folder: Folder for the points, so that an interrupted search continues; see `BudgetSearch.remove_points`.
        restart: Discard the points of an interrupted search.
        runs: Timed runs of each of the last candidates, if latency is minimized.
        runtime: Runtime that they are measured in; default: onnxruntime on the device of the calibration.
        notice: Called with each point.
        progress: Called with (points tried, points expected).

    Raises:
        OnnxPruneError: See `smallest_within`; the folder holds points of other settings.
    """
    original = path.analysis.source
    judge = Judge(original, evaluation, task)
    path = replace(path, originals=path.originals or OriginalActivations())
    tried = 0

    def count(point: BudgetPoint) -> None:
        nonlocal tried
        tried += 1
        if notice is not None:
            notice(point)
        if progress is not None:
            progress(tried, max(tried, EXPECTED))

    if folder is None:
        return _timed(path, smallest_within(path, judge, max_drop, notice=count), runs, runtime)
    settings = {
        "kind": "max-drop", "model": original.fingerprint, "path": path.identity,
        "data": data_digest(path.calibration.data, path.calibration.preprocess),
    }  # fmt: skip
    with point_store(folder, settings, restart=restart) as store:

        def make(share: float, since: PathPoint | None) -> PathPoint:
            name = f"{'whole' if since is None else f'{since.kept:.6f}'}-{share:.6f}"
            found = store.read(name, path.analysis)
            return found or store.write(name, path.point(share, since), path.analysis)

        search = _timed(path, smallest_within(path, judge, max_drop, make=make, notice=count), runs, runtime)
        return replace(search, folder=folder)


def _timed(path: PrunePath, search: BudgetSearch, runs: int, runtime: Runtime | None) -> BudgetSearch:
    """Measure the last candidates in turns with the original, if latency was minimized."""
    if path.measure != "latency" or path.latency is None:
        return search
    best = search.best
    points = [p for p in (search.larger, best, search.smaller) if p is not None]
    first, *rest = bench(
        [path.analysis.source, *(p.point.model for p in points)], batch=path.latency.batch,
        threads=path.latency.threads, runs=runs, device=path.calibration.device, runtime=runtime,
    )  # fmt: skip
    before = first.latency.median
    found = {p.kept: LatencyPair(before, r.latency.median) for p, r in zip(points, rest, strict=True)}
    return replace(search, measured=found)


def smallest_within(
    path: PrunePath,
    judge: Judge,
    max_drop: float,
    *,
    make: PointMaker | None = None,
    notice: Callable[[BudgetPoint], None] | None = None,
) -> BudgetSearch:
    """Search for the point with the smallest share of the measure whose drop is within the budget.

    The first points each keep 0.8 of the point before. When two in a row exceed the budget (one can do so by chance),
    the interval between the first of them and the last point within is halved (geometrically) until it is narrower
    than 3 %; every point starts from the smallest one within the budget so far. A drop counts as within the budget if
    it is so with its standard error added, or with half of the budget where the error is larger. If no point is within
    the budget by this rule, such large errors do not count, and the search continues. The result warns if its error is
    larger than half of the budget.

    Args:
        path: Settings of the points.
        judge: Evaluation on held-out samples.
        max_drop: Largest drop, in the unit of the judge.
        make: Maker of the points; default: `path.point`.
        notice: Called with each point.

    Raises:
        OnnxPruneError: The budget is not a positive number, or no point meets it (names the best one).
    """
    if not 0 <= max_drop < float("inf"):
        raise OnnxPruneError(f"the budget {max_drop:g} is not a drop of at least 0", fix="--max-drop 1.0")
    points: list[BudgetPoint] = []
    for rule in (_surely_within, _perhaps_within):
        judged = [replace(p, within=rule(p.reading, max_drop)) for p in points]
        if not points or any(p.within for p in judged):
            points = _searched(judged, make or path.point, judge, partial(rule, max_drop=max_drop), notice)
        if any(p.within for p in points):
            break
    points.sort(key=lambda p: -p.kept)
    if not any(p.within for p in points):
        best = min(points, key=lambda p: p.reading.drop)
        found = f"drops by {best.reading.drop:.2f}"
        if best.reading.drop_error is not None:
            found += f" +- {best.reading.drop_error:.2f}"
        if not isfinite(best.reading.drop):
            found = f"its {judge.metric.name!r} is not finite"
        raise OnnxPruneError(
            f"no smaller model is within a drop of {max_drop:g} {judge.unit}: the best one keeps {percent(best.kept)} "
            f"of the {path.measure} and {found}",
            fix="allow a larger drop, use more samples, or retrain (`onnxprune retrain`)",
        )
    return BudgetSearch(
        path.measure, judge.metric.name, judge.unit, max_drop, judge.original.value, len(judge.calibration),
        tuple(points), judge,
    )  # fmt: skip


def _surely_within(reading: Judgement, max_drop: float) -> bool:
    """Return whether a drop with its standard error, at most half of the budget, is within the budget."""
    return reading.drop + min(reading.drop_error or 0.0, max_drop / 2) <= max_drop


def _perhaps_within(reading: Judgement, max_drop: float) -> bool:
    """Return the same, but without the error where it is larger than half of the budget: too few samples to tell."""
    error = reading.drop_error or 0.0
    return reading.drop + (error if error <= max_drop / 2 else 0.0) <= max_drop


def _searched(
    points: list[BudgetPoint],
    make: PointMaker,
    judge: Judge,
    within: Callable[[Judgement], bool],
    notice: Callable[[BudgetPoint], None] | None,
) -> list[BudgetPoint]:
    """Return points and those that a search from them tries."""
    shares = _Shares(points)
    for share in shares:
        good = min((p for p in points if p.within), key=lambda p: p.kept, default=None)
        began = perf_counter()
        try:
            point = make(share, good.point if good is not None else None)
        except VerificationError:
            raise
        except OnnxPruneError:
            if not points:
                raise
            shares.refused = True  # the constraints allow no smaller model
            continue
        if any(point.kept == p.kept for p in points):
            shares.refused = True
            continue
        try:
            reading = judge.read(point.model)
        except UndefinedMetric:  # such a point is beyond every budget; larger ones may be within
            reading = Judgement(nan, None, inf, None)
        points.append(BudgetPoint(share, point.kept, reading, within(reading), perf_counter() - began, point))
        if notice is not None:
            notice(points[-1])
    return points


class _Shares:
    """Shares to try next, from the points tried so far.

    Attributes:
        points: Points tried so far, in any order.
        refused: Set to True if the last share gave no new point.
    """

    def __init__(self, points: list[BudgetPoint]) -> None:
        self.points = points
        self.refused = False

    def __iter__(self) -> Iterator[float]:
        smaller = True
        while True:
            good = min((p.kept for p in self.points if p.within), default=1.0)
            beyond = [p.kept for p in self.points if not p.within and p.kept < good]
            share = min(beyond, default=good) * FACTOR
            if smaller and len(beyond) < BEYOND and share >= LEAST:
                yield share
                smaller, self.refused = not self.refused, False
            elif beyond and max(beyond) < good * (1 - RESOLUTION) and not self.refused:
                yield sqrt(good * max(beyond))
            else:
                return
