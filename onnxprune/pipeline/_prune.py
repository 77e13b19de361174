"""The whole job in one call: score, plan, remove, prove, recover."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypedDict

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import kernel_block
from onnxprune.ir.input_sizes import Shapes
from onnxprune.ir.model import Model
from onnxprune.latency.prediction import latency_model
from onnxprune.latency.runtimes import Runtime, block_of, make_runtime
from onnxprune.latency.speedup import Speedup, measure_speedup
from onnxprune.latency.targeting import ROUNDS, plan_for_latency
from onnxprune.options.recovery import stages_of
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.pipeline._inputs import (
    CurvesSource,
    DataSource,
    ModelSource,
    PreprocessSource,
    as_calibration,
    as_curves,
    as_model,
    as_target,
    is_synthetic,
)
from onnxprune.pipeline._stages import Compiled, CriterionParams, compile_plan, plan, plan_steps, score
from onnxprune.pipeline.budget.judge import held_out
from onnxprune.pipeline.budget.max_drop import BudgetSearch, prune_to_budget
from onnxprune.pipeline.budget.path import PrunePath
from onnxprune.pipeline.compensation_choice import with_chosen_remaining
from onnxprune.pipeline.depth_choice import nearer_to_original, removes_both
from onnxprune.planning.analyze import analyze
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.curves import Curves
from onnxprune.planning.depth import channels_only
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan
from onnxprune.recovery.recover import Recovered, check_samples
from onnxprune.recovery.recover import recover as recover_model

StageProgress = Callable[[str, int, int], None]
"""Called with the stage and (done, total) of it."""


@dataclass(frozen=True, repr=False)
class Pruned(Compiled):
    """Result of `prune`.

    Attributes:
        recovery: Stages of the recovery, on samples held out of it; None without recovery.
        speedup: Predicted and measured latency; None unless latency was requested.
        budget: Points that were tried; None without a budget.
    """

    recovery: Recovered | None = None
    speedup: Speedup | None = None
    budget: BudgetSearch | None = None

    @property
    def metrics(self) -> Mapping[str, tuple[float, float]]:
        """Figures on held-out samples, name -> (original, result): the metric of the task, "distance" of the outputs.

        Empty without recovery.
        """
        if self.budget is not None:
            return {self.budget.metric: (self.budget.original, self.budget.best.reading.value)}
        if self.recovery is None:
            return {}
        return self.recovery.metrics

    @property
    def _facts(self) -> list[str]:
        facts = super()._facts
        if self.recovery is not None:
            facts.append(self.recovery.summary)
        if self.budget is not None:
            facts.append(self.budget.summary)
        if self.speedup is not None:
            facts.append(f"{self.speedup.measured.share:.1%} of the latency kept")
        return facts


class PruneOptions(TypedDict, total=False):
    """Keyword arguments of `prune`, for callers that pass them on."""

    target: Target | str | None
    ratio: float | None
    max_drop: float | None
    minimize: str
    criterion: str | AnyCriterion | None
    params: CriterionParams | None
    reduce: str | None
    data: DataSource | None
    val_data: DataSource | None
    images: int | None
    size: Sequence[int] | None
    preprocess: PreprocessSource | None
    task: TaskOptions | str | None
    metric: str | None
    recover: bool | None
    reconstruct_blocks: bool
    curves: CurvesSource | None
    min_group_accuracy: float | None
    max_loss: float | None
    allocator: str | None
    normalize: str | None
    steps: int | None
    schedule: str
    constraints: Constraints | None
    attention: str
    include_inexact: bool
    shapes: Shapes | None
    latency: bool
    batch: int
    threads: int
    runs: int
    device: str
    runtime: Runtime | str
    runtime_options: Mapping[str, str] | None
    latency_rounds: int
    verify: bool
    tolerance: float | None
    progress: StageProgress | None


def prune(
    model: ModelSource,
    *,
    target: Target | str | None = None,
    ratio: float | None = None,
    max_drop: float | None = None,
    minimize: str = "macs",
    criterion: str | AnyCriterion | None = None,
    params: CriterionParams | None = None,
    reduce: str | None = None,
    data: DataSource | None = None,
    val_data: DataSource | None = None,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    task: TaskOptions | str | None = None,
    metric: str | None = None,
    recover: bool | None = None,
    reconstruct_blocks: bool = False,
    curves: CurvesSource | None = None,
    min_group_accuracy: float | None = None,
    max_loss: float | None = None,
    allocator: str | None = None,
    normalize: str | None = None,
    steps: int | None = None,
    schedule: str = "linear",
    constraints: Constraints | None = None,
    attention: str = "heads",
    include_inexact: bool = False,
    shapes: Shapes | None = None,
    latency: bool = False,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
    device: str = "cpu",
    runtime: Runtime | str = "onnxruntime",
    runtime_options: Mapping[str, str] | None = None,
    latency_rounds: int = ROUNDS,
    verify: bool = True,
    tolerance: float | None = None,
    progress: StageProgress | None = None,
) -> Pruned:
    """Run the full pipeline: score, plan, remove and prove, then recover accuracy if data is given.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        target: Share of a measure to keep: `Target(macs=0.5)` or "macs=0.5".
        ratio: Share of channels to remove from every group, instead of a target.
        max_drop: Largest drop of the metric, instead of a target: the smallest model within it is searched for. In
            percentage points for metrics that are shares, in the metric's own unit otherwise.
        minimize: With `max_drop`, the cost to minimize: "macs", "latency", "bytes" or another measure of `Target`.
        criterion: Name of a criterion, or an instance; default: that of the curves, `obs` with data, else `l2`.
        params: Parameters of a criterion that is given by name.
        reduce: Reduction over the weights of a group; default: the criterion's own.
        data: Samples, labels not needed: `Data`, a source that `load_data` reads, "none" for synthetic samples, or a
            `Calibration`.
        val_data: With `max_drop`, samples for the metric; default: every fourth sample of the data.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        task: Task that the result is measured on, by name or with its options; default: guessed.
        metric: Metric that is reported on held-out samples; default: the first of the task.
        recover: Recover accuracy on the data; default: if there is data.
        reconstruct_blocks: Then fit whole blocks by descent; needs PyTorch.
        curves: Sensitivity curves, or the path of their file.
        min_group_accuracy: Lowest value of each group's curve.
        max_loss: Highest value of each group's curve, for metrics where lower is better.
        allocator: Rule that shares the target among the groups; see `plan`.
        normalize: Normalization that makes scores of groups comparable; default: the criterion's own.
        steps: Number of steps, with new scores between them.
        schedule: With steps: "linear" or "geometric".
        constraints: Rounding, minimum counts, protected groups, overrides.
        attention: Channels to free in multi-head attention, "heads" or "head_dim".
        include_inexact: Free also channels that statistics run over.
        shapes: Sizes of dynamic inputs that the model is analyzed and run at, {"x": (1, 3, 48, 320)}; None leaves a
            dimension open. The result takes every size that the original takes.
        latency: Predict and measure latency, whatever the target is.
        batch: Samples per run, for latency.
        threads: CPU threads, for latency; 0: all cores.
        runs: Timed runs of each model, for latency.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".
        runtime: Runtime that latency counts in: "onnxruntime:tensorrt", "openvino", "command:...", or an object that
            keeps the protocol `Runtime`; plain onnxruntime runs on the device.
        runtime_options: Options of the runtime by name.
        latency_rounds: With a latency target: plans that are measured until one meets it; 0: as predicted.
        verify: Prove the result.
        tolerance: Largest relative difference that the proof allows; default: by element type.
        progress: Called with (stage, done, total).

    Raises:
        OnnxPruneError: options that exclude each other, a target that cannot be reached, too few samples.
        VerificationError: the pruned model does not compute what the masked original computes.
    """
    aim, measured = as_target(target), as_curves(curves)
    if recover and data is None:
        raise OnnxPruneError("recovery needs samples", fix="pass data, or recover=False")
    if reconstruct_blocks and (data is None or recover is False):
        raise OnnxPruneError("reconstruct_blocks is a stage of recovery", fix="pass data, and leave recover out")
    if steps is not None and measured is not None:
        raise OnnxPruneError("steps compute new scores, so curves do not apply", fix="leave out steps or curves")
    if max_drop is not None:
        _check_budget(aim, ratio, measured, steps, recover, verify, data)
    rule, params, reduce = _criterion(criterion, params, reduce, measured, data is not None)
    original = as_model(model, shapes)
    samples = as_calibration(data, original, images=images, size=size, preprocess=preprocess, device=device)
    recovering = samples if recover is not False else None
    if recovering is not None:
        check_samples(recovering.data)
    chosen = runtime != "onnxruntime" or bool(runtime_options)
    where = make_runtime(runtime, runtime_options, device=device) if chosen else None
    limits = _rounded_for(where, device, constraints or Constraints())
    tick = _stages_of(progress)
    analysis = analyze(original, attention=attention, include_inexact=include_inexact)
    predictor = None
    measure = minimize if max_drop is not None else aim.measure if aim is not None else ""
    if latency or "latency" in (allocator, measure):
        predictor = latency_model(
            analysis, batch=batch, threads=threads, device=device, runtime=where,
            progress=tick("measuring latency"),
        )  # fmt: skip
    stages = stages_of(reconstruct_blocks)
    if max_drop is not None:
        assert samples is not None
        fit, evaluation = samples, as_calibration(
            val_data, original, size=size, preprocess=preprocess, device=device
        )  # fmt: skip
        if evaluation is None:
            parts = held_out(samples.data)
            fit, evaluation = (replace(samples, data=part) for part in parts)
        path = PrunePath(
            analysis, fit, measure=minimize, criterion=rule, params=params or {}, reduce=reduce, allocator=allocator,
            normalize=normalize, constraints=limits, latency=predictor, feeds=fit.first(original), tolerance=tolerance,
            stages=stages,
        )  # fmt: skip
        search = prune_to_budget(
            path, evaluation, max_drop, task=task_options(task, metric), runs=runs, runtime=where,
            progress=tick("points tried"),
        )  # fmt: skip
        best = search.best.point
        speedup = _speedup(analysis, best.plan, best.model, predictor, where or device, runs, tick("measuring"))
        return Pruned(
            best.model, best.plan, analysis, best.before, best.after, best.verification, None, speedup, search
        )
    scores = None
    if steps is None:
        scores = score(
            analysis, rule, params=params, reduce=reduce, constraints=limits, target=aim, data=samples,
            progress=tick("scoring"),
        )  # fmt: skip

    def planned_by(found: Scores, bounds: Constraints, model: LatencyPredictor | None, goal: Target | None) -> Plan:
        return plan(
            found, goal, ratio=ratio, curves=measured, min_group_accuracy=min_group_accuracy, max_loss=max_loss,
            latency=model, allocator=allocator, normalize=normalize, constraints=bounds,
        )  # fmt: skip

    def make(found: Scores | None, bounds: Constraints, model: LatencyPredictor | None, goal: Target | None) -> Plan:
        if found is not None:
            return planned_by(found, bounds, model, goal)
        assert steps is not None
        return plan_steps(
            analysis, rule, goal, steps=steps, schedule=schedule, params=params, reduce=reduce, ratio=ratio,
            latency=model, allocator=allocator, normalize=normalize, constraints=bounds, data=samples,
            progress=tick("scoring"),
        )  # fmt: skip

    def planned(bounds: Constraints) -> tuple[Plan, Speedup | None]:
        settled = scores
        if scores is not None and recovering is not None:
            settled = with_chosen_remaining(
                scores, partial(planned_by, bounds=bounds, model=predictor, goal=aim), recovering,
                tick("comparing plans"),
            )  # fmt: skip
        if aim is not None and aim.measure == "latency" and predictor is not None and latency_rounds:
            found = plan_for_latency(
                analysis, aim, partial(make, settled, bounds), predictor, runtime=where or make_runtime(device=device),
                runs=runs, rounds=latency_rounds, progress=tick("measuring plans"),
            )  # fmt: skip
            return found.plan, found.speedup
        return make(settled, bounds, predictor, aim), None

    def run(found: tuple[Plan, Speedup | None]) -> Pruned:
        made, speedup = found
        feeds = samples.first(original) if verify and samples is not None and not is_synthetic(samples) else None
        done = compile_plan(original, made, analysis=analysis, check=verify, feeds=feeds, tolerance=tolerance)
        result, recovery = done.model, None
        if recovering is not None:
            recovery = recover_model(
                original, result, made, recovering, analysis=analysis, stages=stages, task=task_options(task, metric),
                progress=tick("recovering"),
            )  # fmt: skip
            result = recovery.model
        return Pruned(result, made, analysis, done.before, done.after, done.verification, recovery, speedup)

    outcome = run(planned(limits))
    if scores is not None and removes_both(analysis, limits, outcome.plan):
        outcome, _ = nearer_to_original(outcome, lambda: planned(channels_only(limits)), run, lambda r: r.recovery)
    if outcome.speedup is not None:
        return outcome
    speedup = _speedup(analysis, outcome.plan, outcome.model, predictor, where or device, runs, tick("measuring"))
    return replace(outcome, speedup=speedup)


def _check_budget(
    target: Target | None, ratio: float | None, curves: Curves | None, steps: int | None, recover: bool | None,
    verify: bool, data: DataSource | None,
) -> None:  # fmt: skip
    if data is None or is_synthetic(data):
        raise OnnxPruneError("a budget needs real samples, labels not needed", fix='data="images/"')
    if any(v is not None for v in (target, ratio, curves, steps)):
        raise OnnxPruneError("a budget finds the target itself", fix="leave out target, ratio, curves and steps")
    if recover is False or not verify:
        raise OnnxPruneError("a budget proves and recovers every point", fix="leave out recover and verify")


def _rounded_for(where: Runtime | None, device: str, limits: Constraints) -> Constraints:
    """Return the constraints with `round_to` resolved for a runtime other than onnxruntime on the CPU."""
    if limits.round_to != "auto" or (where is None and device != "cuda"):
        return limits
    return replace(limits, round_to=block_of(where) if where is not None else kernel_block("cuda"))


def _criterion(
    criterion: str | AnyCriterion | None,
    params: CriterionParams | None,
    reduce: str | None,
    curves: Curves | None,
    with_data: bool,
) -> tuple[str | AnyCriterion, CriterionParams | None, str | None]:
    """Return criterion, parameters and reduction; the defaults are those that the curves were measured with."""
    if criterion is not None:
        return criterion, params, reduce
    if curves is None:
        return "obs" if with_data else "l2", params, reduce
    name, own = curves.criterion.get("name"), curves.criterion.get("reduce")
    if not isinstance(name, str):
        raise OnnxPruneError("the curves do not name the criterion they were measured with", fix="pass the criterion")
    recorded = {k: v for k, v in curves.criterion.items() if k not in ("name", "reduce", "normalize")}
    return name, {**recorded, **(params or {})}, reduce or own


def _stages_of(progress: StageProgress | None) -> Callable[[str], Progress | None]:
    return lambda stage: None if progress is None else partial(progress, stage)


def _speedup(
    analysis: Analysis, made: Plan, pruned: Model, predictor: LatencyPredictor | None, where: Runtime | str, runs: int,
    progress: Progress | None,
) -> Speedup | None:  # fmt: skip
    if predictor is None:
        return None
    runtime = make_runtime(device=where) if isinstance(where, str) else where
    return measure_speedup(analysis, made, pruned, predictor, runtime=runtime, runs=runs, progress=progress)
