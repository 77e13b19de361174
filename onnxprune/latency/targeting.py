"""Latency targets that are met as measured: plan, measure, correct the prediction, plan again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxprune._utils.output.formatting import percent
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import Measurement, MeasurementStopped, Runtime, make_runtime
from onnxprune.latency.speedup import LatencyPair, Speedup, TargetRound
from onnxprune.passes import Pipeline, RemoveBlocks, StripChannels
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan

ROUNDS = 4
TOLERANCE = 0.02  # of the target
_TRIES = 3  # measurements of a plan on a busy machine
_CLOSER = 0.75  # of the tolerance: where blocks are coarse, the next plan aims this far beyond the target

PlanMaker = Callable[[LatencyPredictor, Target], Plan]
"""Function that makes a plan for a latency target."""


class CorrectedLatency:
    """Latency model that agrees with measured shares, and is interpolated between them.

    Args:
        predictor: Latency model to correct.
        points: (predicted share, measured share) of plans.
    """

    def __init__(self, predictor: LatencyPredictor, points: Sequence[tuple[float, float]]) -> None:
        self._predictor = predictor
        by_share: dict[float, list[float]] = {0.0: [0.0], 1.0: [1.0]}
        for predicted, measured in points:
            by_share.setdefault(round(predicted, 4), []).append(measured)
        self._predicted = np.array(sorted(by_share))
        # More channels are never faster: a measurement that says so is noise.
        self._measured = np.maximum.accumulate([float(np.mean(by_share[p])) for p in sorted(by_share)])

    @property
    def baseline(self) -> float:
        """Seconds per run of the original."""
        return self._predictor.baseline

    @property
    def batch(self) -> int:
        """Samples per run."""
        return self._predictor.batch

    @property
    def threads(self) -> int:
        """CPU threads; 0 for all cores."""
        return self._predictor.threads

    @property
    def provider(self) -> str:
        """Runtime of the measurements."""
        return self._predictor.provider

    def share(self, kept: Kept) -> float:
        """Return the corrected share of the latency with the components in `kept`."""
        predicted = self._predictor.seconds(kept) / self._predictor.baseline
        if predicted >= 1:
            return predicted
        return float(np.interp(predicted, self._predicted, self._measured))

    def seconds(self, kept: Kept) -> float:
        """Return the corrected seconds per run with the components in `kept` (bool [count])."""
        return self.share(kept) * self.baseline


@dataclass(frozen=True)
class MeasuredPlan:
    """Plan for a latency target, with its measurement.

    Attributes:
        plan: Channels to remove.
        speedup: Latency before and after, with the rounds and the reason for which the target is not met, if it is not.
    """

    plan: Plan
    speedup: Speedup


def plan_for_latency(
    analysis: Analysis,
    target: Target,
    make_plan: PlanMaker,
    predictor: LatencyPredictor,
    *,
    runtime: Runtime | None = None,
    runs: int = 30,
    rounds: int = ROUNDS,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> MeasuredPlan:
    """Make a plan whose measured latency is the target's share of the original's.

    Args:
        analysis: Coupling analysis of the original.
        target: Share of the latency to keep.
        make_plan: Called with a latency model and a target in each round.
        predictor: Latency model of the first round.
        runtime: Runtime to measure in; default: onnxruntime on the CPU.
        runs: Timed runs of each model.
        rounds: Largest number of plans.
        tolerance: Largest deviation of the measured share, as a share of the target.
        progress: Called with (rounds done, rounds).

    Raises:
        OnnxPruneError: The target cannot be reached, or the runtime refuses a model.
    """
    search = _Search(analysis, target.share, predictor, runtime or make_runtime(), runs, tolerance)
    aim, note = target.share, ""
    for done in range(rounds):
        if progress is not None:
            progress(done, rounds)
        try:
            plan = make_plan(search.corrected, Target(latency=min(aim, 1.0)))
        except OnnxPruneError as err:
            if not search.tried:
                raise
            note = f"no plan is that fast as measured: {err.what}"
            break
        if search.knows(plan):
            beyond = target.share * (1 + _CLOSER * tolerance)
            if aim < beyond:  # the plan below the target is known: the next larger one may be closer
                aim = beyond
                continue
            note = "no other plan is closer: channels are removed in whole blocks"
            break
        try:
            met = search.measure(plan, aim)
        except MeasurementStopped as err:
            if not search.tried:
                raise
            note = f"the runtime failed in round {done + 1}: {err.what}"
            break
        if met:
            break
    else:
        note = f"not met in {rounds} rounds"
    if progress is not None:
        progress(rounds, rounds)
    return search.best(note)


class _Search:
    """Plans that were measured so far."""

    def __init__(
        self, analysis: Analysis, target: float, predictor: LatencyPredictor, runtime: Runtime, runs: int,
        tolerance: float,
    ) -> None:  # fmt: skip
        self.analysis = analysis
        self.target = target
        self.predictor = predictor
        self.runtime = runtime
        self.runs = runs
        self.tolerance = tolerance
        self.feeds = random_feeds(analysis, predictor.batch)
        self.tried: list[tuple[Plan, Speedup]] = []
        self.points: list[tuple[float, float]] = []
        self.rounds: list[TargetRound] = []
        self.busy = False

    @property
    def corrected(self) -> CorrectedLatency:
        """Latency model that agrees with the measurements."""
        return CorrectedLatency(self.predictor, self.points)

    def knows(self, plan: Plan) -> bool:
        """Return True if a plan was measured."""
        return any(known.digest == plan.digest for known, _ in self.tried)

    def measure(self, plan: Plan, aim: float) -> bool:
        """Measure a plan; return True if it meets the target."""
        analysis, predictor = self.analysis, self.predictor
        pruned = Pipeline([StripChannels(plan, analysis), RemoveBlocks(plan, analysis)])(analysis.model)
        found = self._settled(pruned)
        kept = analysis.kept(plan)
        expected = self.corrected.seconds(kept)
        before, after = (la.median for la in found.latencies)
        self.rounds.append(TargetRound(aim, expected / predictor.baseline, found.share(1), found.error(1)))
        speedup = Speedup(
            LatencyPair(predictor.baseline, expected), LatencyPair(before, after), predictor.batch, predictor.threads,
            self.runs, found.ran, found.error(1),
        )  # fmt: skip
        self.tried.append((plan, speedup))
        self.points.append((predictor.seconds(kept) / predictor.baseline, found.share(1)))
        return self._meets(speedup)

    def _settled(self, pruned: Model) -> Measurement:
        """Measure a model beside the original, again if the machine was busy: the median of the shares counts."""
        tried: list[Measurement] = []
        for _ in range(_TRIES):
            found = self.runtime.measure(
                [self.analysis.source, pruned], [self.feeds, self.feeds], threads=self.predictor.threads,
                batch=self.predictor.batch, runs=self.runs,
            )  # fmt: skip
            if 3 * found.quiet >= found.rounds and found.error(1) <= self.tolerance * self.target / 2:
                return found
            tried.append(found)
        self.busy = True
        return sorted(tried, key=lambda m: m.share(1))[len(tried) // 2]

    def _meets(self, speedup: Speedup) -> bool:
        return abs(speedup.measured.share - self.target) <= self.tolerance * self.target

    def best(self, note: str) -> MeasuredPlan:
        """Return the plan that is closest to the target as measured."""
        plan, speedup = min(self.tried, key=lambda pair: abs(pair[1].measured.share - self.target))
        if self._meets(speedup):
            note = ""
        elif self.busy:
            error = percent(max(speedup.error, self.tolerance * self.target / 2))
            note = f"{note}; the machine is busy: measured shares are uncertain by {error} or more"
        return MeasuredPlan(plan, replace(speedup, rounds=tuple(self.rounds), note=note))
