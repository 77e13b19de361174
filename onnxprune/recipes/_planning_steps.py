"""Steps with scores, sensitivity curves and plans. They do not change the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from onnxprune._utils.files.atomic_files import write_text
from onnxprune._utils.output.formatting import counted
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import get as get_criterion
from onnxprune.criteria.per_class import save_class_table
from onnxprune.criteria.scoring import Scores, load_scores, save_scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.tasks.task import higher_is_better
from onnxprune.options import Constraints, LatencyTarget, Planning, Sampling, Scoring, SensitivitySweep
from onnxprune.pipeline import plan
from onnxprune.pipeline.compensation_choice import with_chosen_remaining
from onnxprune.planning.constraints import FeasibleCounts
from onnxprune.planning.curves import Curves, load_curves, save_curves
from onnxprune.planning.depth import channels_only, chosen_blocks, scores_for, settled, target_met
from onnxprune.planning.iterative import plan_steps
from onnxprune.planning.sensitivity_sweep import sensitivity
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan, save_plan
from onnxprune.recipes._steps import (
    CURVES,
    MODEL,
    PLAN,
    SCORES,
    RecipeStep,
    StepContext,
    StepResult,
    pick,
)
from onnxprune.studies.plots import check_plot, plot_curves

if TYPE_CHECKING:
    from onnxprune.latency.runtimes import Runtime


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoringOptions(Scoring, Sampling):
    """Options of scoring; `images` are of `data`, for criteria that need it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion:
            get_criterion(self.criterion, **self.params)
        elif self.params or self.reduce:
            raise OnnxPruneError("'params' and 'reduce' need a criterion", fix='criterion = "l2"')

    def demand(self) -> None:
        """Raise if there is no criterion."""
        if not self.criterion:
            raise OnnxPruneError("the key 'criterion' is missing", fix="one of `onnxprune criteria`")

    @property
    def needs_data(self) -> tuple[str, ...]:
        """Return the data that the criterion needs."""
        return ("data",) if self.criterion and get_criterion(self.criterion, **self.params).needs != "weights" else ()

    def calibration(self, context: StepContext) -> Calibration | None:
        """Return the calibration data, for criteria that need it."""
        if not self.needs_data:
            return None
        c = context.defaults
        data = context.samples("data", self.images)
        return Calibration(data, c.preprocess, device=c.device, threads=c.threads)

    def scores(
        self, context: StepContext, constraints: Constraints | None = None, target: Target | None = None
    ) -> Scores:
        """Return scores of the current model, of the blocks as well that a plan under these constraints may remove."""
        limits = constraints or Constraints()
        enough = target_met(context.analysis, target) if limits.asks_for_blocks else None
        return scores_for(
            context.analysis, self.name, limits, enough=enough, reduce=self.reduce,
            calibration=self.calibration(context), progress=context.tick, **self.params,
        )  # fmt: skip


@dataclass(frozen=True)
class ScoreStep(RecipeStep):
    """Score every channel, also by class if the criterion supports it."""

    scoring: ScoringOptions

    do: ClassVar[str] = "score"

    @property
    def produces(self) -> tuple[str, ...]:
        return (SCORES,)

    def __post_init__(self) -> None:
        self.scoring.demand()

    @property
    def needs_data(self) -> tuple[str, ...]:
        return self.scoring.needs_data

    def run(self, context: StepContext) -> StepResult:
        scores = self.scoring.scores(context)
        files = {SCORES: context.folder / "scores.json"}
        save_scores(scores, files[SCORES])
        if scores.per_class:
            files["classes"] = context.folder / "classes.csv"
            save_class_table(scores, files["classes"])
        return StepResult(files, f"{len(scores.groups)} groups by {self.scoring.criterion}")


@dataclass(frozen=True)
class SensitivityStep(RecipeStep):
    """Measure a metric against removed channels, group by group, and store the scores as well.

    Attributes:
        on: data for the measurements, default `val_data` if the recipe has it, else `data`.
        plot: draw the curves, as curves.svg.
        (the other options are those of the command)
    """

    scoring: ScoringOptions
    sweep: SensitivitySweep
    on: str = ""
    plot: bool = False

    do: ClassVar[str] = "sensitivity"

    @property
    def produces(self) -> tuple[str, ...]:
        return (SCORES, CURVES)

    def __post_init__(self) -> None:
        self.scoring.demand()
        if self.on:
            pick(self.on)
        sweep = self.sweep
        better = higher_is_better(sweep)
        if sweep.min_group_accuracy is not None and sweep.max_loss is not None:
            raise OnnxPruneError("give either 'min_group_accuracy' or 'max_loss'")
        wrong = "max_loss" if better else "min_group_accuracy"
        if getattr(sweep, wrong) is not None:
            more = "more" if better else "less"
            raise OnnxPruneError(f"of {sweep.metric or 'top1'}, {more} is better: {wrong!r} does not apply")

    @property
    def needs_data(self) -> tuple[str, ...]:
        return (*self.scoring.needs_data, self.on or "data")

    def _journal(self, folder: Path) -> Path:
        return folder / "curves.json.journal"

    def run(self, context: StepContext) -> StepResult:
        if self.plot:
            check_plot(context.folder / "curves.svg")
        on = self.on or ("val_data" if "val_data" in context.data else "data")
        scores = self.scoring.scores(context)
        paths = {SCORES: context.folder / "scores.json", CURVES: context.folder / "curves.json"}
        save_scores(scores, paths[SCORES])
        sweep = self.sweep
        threshold = sweep.max_loss if sweep.min_group_accuracy is None else sweep.min_group_accuracy
        curves = sensitivity(
            scores, context.samples(on, self.scoring.images), task=sweep, ratios=sweep.ratios,
            include=sweep.include, exclude=sweep.exclude, threshold=threshold, stop_at_chance=sweep.stop_at_chance,
            preprocess=context.defaults.preprocess, batch=sweep.batch or 0, threads=sweep.threads or None,
            device=sweep.device, jobs=sweep.jobs, journal=self._journal(context.folder),
            partial_classes=sweep.partial_classes, progress=context.tick, notice=context.notify,
        )  # fmt: skip
        save_curves(curves, paths[CURVES])
        files = {**paths, "table": context.folder / "curves.csv"}
        write_text(files["table"], curves.to_csv())
        if self.plot:
            files["picture"] = context.folder / "curves.svg"
            plot_curves(curves, files["picture"], name=context.files[MODEL].name)
        return StepResult(files, f"{curves.metric} of {len(curves.groups)} groups by {self.scoring.criterion}")

    def tidy(self, folder: Path) -> None:
        self._journal(folder).unlink(missing_ok=True)


@dataclass(frozen=True)
class PlanningOptions:
    """Options of a plan.

    A plan uses its own criterion, or else the latest scores. It uses curves of the current model if there are any,
    unless it has a `ratio`, its own criterion, or an allocator without curves.

    Attributes:
        scoring: own criterion, if any.
        budget: how much is removed. With `steps` new scores are made between them, on the weights as they are;
            training between them is what `repeat` is for.
        constraints: bounds of the plan.
        latency: runtime that a latency target counts in, and the measurements towards it.
    """

    scoring: ScoringOptions
    budget: Planning
    constraints: Constraints
    latency: LatencyTarget

    def __post_init__(self) -> None:
        budget = self.budget
        if budget.ratio is not None and (self._thresholds or budget.target is not None):
            raise OnnxPruneError("a ratio removes the same share of every group: it excludes a target and a threshold")
        if budget.ratio is None and budget.target is None and not self._thresholds:
            raise OnnxPruneError(
                "the budget is missing", fix="ratio, target, or after a sensitivity min_group_accuracy"
            )
        if budget.steps is not None and (self._thresholds or not self.scoring.criterion):
            raise OnnxPruneError("'steps' score anew between them: name a criterion, and no threshold")
        self._aim()

    @property
    def _thresholds(self) -> bool:
        return self.budget.min_group_accuracy is not None or self.budget.max_loss is not None

    def _aim(self) -> Target | None:
        return Target.parse(self.budget.target) if self.budget.target is not None else None

    @property
    def needs(self) -> tuple[str, ...]:
        """Return the artifacts it needs."""
        wants_curves = self._thresholds or self.budget.allocator == "sensitivity"
        return (*(() if self.scoring.criterion else (SCORES,)), *((CURVES,) if wants_curves else ()))

    def check(self, analysis: Analysis) -> None:
        """Check the constraints against the groups."""
        limits = settled(analysis, self.constraints)
        if limits.asks_for_blocks:
            chosen_blocks(analysis, limits)
        if not limits.blocks_alone:
            FeasibleCounts(analysis, channels_only(limits), analysis.by_name)

    def plan(self, context: StepContext, recovering: Calibration | None) -> tuple[Plan, Scores | None]:
        """Return the plan, and the scores if they were computed for it.

        Args:
            context: Model and files.
            recovering: Samples of the recovery that follows; None without one.
        """
        aim = self._aim()
        latency = self._latency(context, aim)
        s, budget = self.scoring, self.budget
        bounds = self._bounds(context.defaults.device)
        own = s.scores(context, bounds, aim) if s.criterion and budget.steps is None else None
        scores = own
        if own is None and budget.steps is None:
            scores = load_scores(context.files[SCORES], context.analysis)

        def planned_by(found: Scores, predictor: LatencyPredictor | None, goal: Target | None) -> Plan:
            return plan(
                found, goal, ratio=budget.ratio, curves=self._curves(context),
                min_group_accuracy=budget.min_group_accuracy, max_loss=budget.max_loss, latency=predictor,
                allocator=budget.allocator, normalize=budget.normalize, constraints=bounds,
            )  # fmt: skip

        if scores is not None and recovering is not None:
            scores = with_chosen_remaining(
                scores, partial(planned_by, predictor=latency, goal=aim), recovering, context.tick
            )  # fmt: skip

        def make(predictor: LatencyPredictor | None, goal: Target | None) -> Plan:
            if scores is None:
                return plan_steps(
                    context.analysis, s.name, goal, steps=budget.steps or 1, schedule=budget.schedule,
                    ratio=budget.ratio, latency=predictor, allocator=budget.allocator, normalize=budget.normalize,
                    constraints=bounds, reduce=s.reduce, calibration=s.calibration(context), progress=context.tick,
                    **s.params,
                )  # fmt: skip
            return planned_by(scores, predictor, goal)

        if aim is None or aim.measure != "latency" or latency is None or not self.latency.latency_rounds:
            return make(latency, aim), own
        from onnxprune.latency.targeting import plan_for_latency

        runtime = self._runtime(context.defaults.device)
        found = plan_for_latency(
            context.analysis, aim, make, latency, runtime=runtime, rounds=self.latency.latency_rounds,
            progress=context.tick,
        )  # fmt: skip
        measured, note = found.speedup.measured, found.speedup.note
        context.notify(f"latency {measured.share:.3f} measured" + (f": {note}" if note else ""))
        return found.plan, own

    def _curves(self, context: StepContext) -> Curves | None:
        idle = self.budget.ratio is not None or self.budget.allocator in ("global", "uniform")
        if not self._thresholds and (idle or self.scoring.criterion):
            return None
        return load_curves(context.files[CURVES]) if CURVES in context.files else None

    def _latency(self, context: StepContext, aim: Target | None) -> LatencyPredictor | None:
        if self.budget.allocator != "latency" and (aim is None or aim.measure != "latency"):
            return None
        from onnxprune.latency.prediction import latency_model

        device = context.defaults.device
        where = None if self.latency.is_default else self._runtime(device)
        return latency_model(context.analysis, device=device, runtime=where, progress=context.tick)

    def _runtime(self, device: str) -> Runtime:
        from onnxprune.latency.runtimes import make_runtime

        return make_runtime(self.latency.runtime, self.latency.runtime_options, device=device)

    def _bounds(self, device: str) -> Constraints:
        """Return the constraints, with the block of the runtime."""
        if self.latency.is_default or self.constraints.round_to != "auto":
            return self.constraints
        from onnxprune.latency.runtimes import block_of

        return replace(self.constraints, round_to=block_of(self._runtime(device)))

    def save(self, context: StepContext, recovering: Calibration | None = None) -> tuple[Plan, dict[str, Path]]:
        """Write the plan, and the scores if they were computed for it. Arguments as for `plan`."""
        made, scores = self.plan(context, recovering)
        files = {PLAN: context.folder / "plan.json"}
        if scores is not None:
            files[SCORES] = context.folder / "scores.json"
            save_scores(scores, files[SCORES])
        save_plan(made, files[PLAN])
        return made, files


@dataclass(frozen=True)
class PlanStep(RecipeStep):
    """Plan the channels to remove."""

    planning: PlanningOptions

    do: ClassVar[str] = "plan"

    @property
    def produces(self) -> tuple[str, ...]:
        return (PLAN,)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.planning.needs

    @property
    def needs_data(self) -> tuple[str, ...]:
        return self.planning.scoring.needs_data

    def check(self, analysis: Analysis, base: Path) -> None:
        self.planning.check(analysis)

    def run(self, context: StepContext) -> StepResult:
        made, files = self.planning.save(context)
        return StepResult(files, removal_note(made, context.analysis))


def removal_note(plan: Plan, analysis: Analysis) -> str:
    """Describe the size of a plan by the channels that it keeps."""
    total = sum(g.channels for g in analysis)
    blocks = f" without {counted(len(plan.blocks), 'block')}" if plan.blocks else ""
    return f"{total - plan.removed} of {total} channels kept{blocks}"
