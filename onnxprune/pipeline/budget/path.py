"""Models along one path of plans: every point removes more channels than the point it starts from.

A point is chosen on the recovered model of an earlier point: scores of the remaining channels, on weights that already
compensate for the removed ones. That is the point before if it keeps clearly less than the model that was scored last;
else its scores are used again, and the removal is extended in their order. What the criterion leaves open is chosen
with every new scoring (`onnxprune.pipeline.compensation_choice`). The point is stripped from the original,
proved against the masked original, and recovered with the original as teacher. Its plan therefore refers to the
original, whatever the number of points before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune import __version__ as version
from onnxprune._utils.output.formatting import percent
from onnxprune.analysis.blocks import Block
from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria import get as get_criterion
from onnxprune.criteria.scoring import Scores
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.model import Array, Model
from onnxprune.pipeline._stages import compile_plan
from onnxprune.pipeline.compensation_choice import with_chosen_remaining
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.depth import scores_for
from onnxprune.planning.iterative import rescored
from onnxprune.planning.planner import AllocationRequest, allocate, allocate_depth, assembled, check_allocator
from onnxprune.planning.targets import LatencyPredictor, MeasureShare, Target
from onnxprune.plans import Plan
from onnxprune.recovery.recover import STAGES, OriginalActivations, recover
from onnxprune.verification import Verification

FIRST = 0.64  # the scores of the original serve plans of one half and more
RESCORE = 0.5  # with steps of this share or more, new scores gain less than the standard error of the metric


@dataclass(frozen=True, repr=False)
class PathPoint:
    """Model at one point of a path.

    Attributes:
        target: Share of the measure that was asked for.
        kept: Share of the measure that the plan keeps.
        plan: Channels removed from the original.
        model: Stripped, proved and recovered model.
        scores: Scores of all channels, by their indices in the original.
        before: Cost of the original.
        after: Cost of the model.
        certificate: Certificate of the proof, see `Verification.as_dict`.
        recovery: Stages of the recovery, see `Recovered.as_dict`.
        scored: Share of the measure that the model keeps on which the scores were computed; 1 for the original.
        verification: Certificate as an object; None if the point was read from its files.
    """

    target: float
    kept: float
    plan: Plan
    model: Model
    scores: Scores = field(repr=False)
    before: Cost
    after: Cost
    certificate: Mapping[str, Any] = field(repr=False)
    recovery: Mapping[str, Any] = field(repr=False)
    scored: float = 1.0
    verification: Verification | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"<PathPoint: {percent(self.kept)} kept, proved: {self.certificate['summary']}>"


@dataclass(frozen=True)
class PrunePath:
    """Settings of a path.

    Attributes:
        analysis: Coupling analysis of the original.
        calibration: Samples for the criterion and the recovery.
        measure: Measure that the points save: "macs", "bytes", "latency" or another of `Target`.
        criterion: Name or instance.
        params: Parameters of a criterion that is given by name.
        reduce: Reduction over the weights of a group; None: the criterion's own.
        allocator: Allocator; None: the criterion's own.
        normalize: Normalization of scores; None: the criterion's own.
        constraints: Rounding, minimum counts, protected groups.
        latency: Latency model, if the measure or the allocator is latency.
        feeds: Inputs for whole runs of the proof, beside random ones.
        tolerance: Largest relative difference that the proof allows; None: by element type.
        stages: Stages of the recovery.
        originals: Activations of the original, shared by the recoveries of the points; they do not change results.
        rescore: Channels are scored anew if a point keeps less than this share of the model that was scored last.
    """

    analysis: Analysis
    calibration: Calibration
    measure: str = "macs"
    criterion: str | AnyCriterion = "obs"
    params: Mapping[str, Any] = field(default_factory=dict)
    reduce: str | None = None
    allocator: str | None = None
    normalize: str | None = None
    constraints: Constraints = field(default_factory=Constraints)
    latency: LatencyPredictor | None = None
    feeds: Sequence[Mapping[str, Array]] | None = None
    tolerance: float | None = None
    stages: tuple[str, ...] = STAGES
    originals: OriginalActivations | None = field(default=None, compare=False)
    rescore: float = RESCORE

    def first_scores(self, share: float = 1.0) -> Scores:
        """Return the scores of the original.

        Args:
            share: Share of the measure that the first point keeps.

        Raises:
            OnnxPruneError: See `score` and `with_chosen_remaining`.
        """
        scores = scores_for(self.analysis, self._rule, self.constraints, **self._scoring)
        return self._chosen(scores, Target(**{self.measure: min(share, FIRST)}))

    def point(self, share: float, since: PathPoint | None = None, *, first: Scores | None = None) -> PathPoint:
        """Return the point that keeps a share of the measure, chosen on the recovered model of an earlier point.

        Args:
            share: Share of the original's measure to keep.
            since: Point that keeps more; None: the original.
            first: Scores of the original, if they are known.

        Raises:
            OnnxPruneError: The share cannot be reached; see `score`, `plan` and `recover` for others.
            VerificationError: The stripped model does not compute what the masked original computes.
        """
        analysis, target = self.analysis, Target(**{self.measure: share})
        scored = 1.0
        if since is None:
            scores = first or self.first_scores(share)
        elif share >= self.rescore * since.scored:
            scores, scored = since.scores, since.scored
        else:
            gone, blocks = _removed(analysis, since)
            scores = rescored(
                analysis, since.scores, gone, self._rule, self._scoring, pruned=since.model, blocks=blocks,
                constraints=self.constraints,
            )  # fmt: skip
            scores, scored = self._chosen(scores, target, since), since.kept
        plan = self._plan(scores, target, since)
        compiled = compile_plan(
            analysis.source, plan, analysis=analysis, feeds=self.feeds, tolerance=self.tolerance,
            device=self.calibration.device,
        )  # fmt: skip
        assert compiled.verification is not None
        recovered = recover(
            analysis.source, compiled.model, plan, self.calibration, analysis=analysis, stages=self.stages,
            originals=self.originals,
        )  # fmt: skip
        return PathPoint(
            share, self.kept(plan), plan, recovered.model, scores, compiled.before, compiled.after,
            compiled.verification.as_dict(), recovered.as_dict(), scored, compiled.verification,
        )  # fmt: skip

    def kept(self, plan: Plan) -> float:
        """Return the share of the measure that a plan keeps."""
        shares = MeasureShare(CostModel(self.analysis), self.measure, self.latency)
        return shares.share(self.analysis.kept(plan))

    @property
    def identity(self) -> str:
        """Text of the settings that the points depend on, besides the model and the samples."""
        rule = self.criterion if isinstance(self.criterion, str) else repr(self.criterion)
        parts = (
            self.measure, rule, sorted(self.params.items()), self.reduce, self.allocator, self.normalize,
            sorted(vars(self.constraints).items()), self.analysis.choices.options(), self.tolerance, self.stages,
            self.rescore,
        )  # fmt: skip
        return repr(parts)

    def _chosen(self, scores: Scores, target: Target, since: PathPoint | None = None) -> Scores:
        """Return new scores with what the criterion leaves open chosen by plans for a target."""
        return with_chosen_remaining(scores, partial(self._plan, target=target, since=since), self.calibration)

    def _plan(self, scores: Scores, target: Target, since: PathPoint | None = None) -> Plan:
        """Return the plan that extends the removal of an earlier point to a target."""
        gone, blocks = _removed(self.analysis, since)
        allocator = check_allocator(self.allocator, target, None, latency=self.latency, default=self._own_allocator)
        request = AllocationRequest(
            target, None, allocator, self.normalize or scores.normalize, self.constraints, blocks
        )  # fmt: skip
        if self.constraints.asks_for_blocks:
            least = 0 if since is None else 1  # blocks are coarse: the nearest number may be that of the earlier point
            groups, removed = allocate_depth(scores, request, latency=self.latency, removed=gone, least=least)
        else:
            groups, removed = allocate(scores, request, latency=self.latency, removed=gone, final=True), []
        record = {"scope": allocator} if allocator in ("latency", "saving") else {}
        return assembled(scores, request, groups, record, version, removed)

    @property
    def _scoring(self) -> dict[str, Any]:
        return {"reduce": self.reduce, "calibration": self.calibration}

    @property
    def _own_allocator(self) -> str:
        return self._rule.default_allocator

    @property
    def _rule(self) -> AnyCriterion:
        return get_criterion(self.criterion, **self.params) if isinstance(self.criterion, str) else self.criterion


def _removed(analysis: Analysis, since: PathPoint | None) -> tuple[dict[str, npt.NDArray[np.int64]], tuple[Block, ...]]:
    """Return the channels and the blocks that an earlier point has lost."""
    if since is None:
        return {}, ()
    gone = {name: np.array(r.removed, np.int64) for name, r in since.plan.groups.items()}
    return gone, tuple(analysis.block(name) for name in since.plan.blocks)
