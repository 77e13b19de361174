"""Jobs that run several stages in one call: prune, recover, retrain, evaluate, bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune._utils.progress import Progress
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import AnyCriterion
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.sessions import kernel_block
from onnxprune.execution.tasks.evaluation import Evaluation
from onnxprune.execution.tasks.evaluation import evaluate as evaluate_model
from onnxprune.ir.input_sizes import Shapes
from onnxprune.ir.model import Model
from onnxprune.latency.bench import BenchResults
from onnxprune.latency.bench import bench as bench_models
from onnxprune.latency.prediction import latency_model
from onnxprune.latency.speedup import Speedup, measure_speedup
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.pipeline._inputs import (
    CurvesSource,
    DataSource,
    ModelSource,
    PlanSource,
    PreprocessSource,
    as_calibration,
    as_curves,
    as_model,
    as_plan,
    as_samples,
    as_target,
    is_synthetic,
)
from onnxprune.pipeline._stages import Compiled, CriterionParams, compile_plan, plan, plan_steps, score
from onnxprune.planning.analyze import analyze, analyze_for
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.curves import Curves
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan
from onnxprune.recovery.recover import STAGES, Recovered, check_belongs, check_samples
from onnxprune.recovery.recover import recover as recover_model
from onnxprune.verification import verify as prove

if TYPE_CHECKING:
    from torch import fx, nn

    from onnxprune.training import Method, Retrained, Settings

StageProgress = Callable[[str, int, int], None]
"""Called with the stage and (done, total) of it."""


@dataclass(frozen=True, repr=False)
class Pruned(Compiled):
    """Result of `prune`.

    Attributes:
        recovery: Stages of the recovery, on samples held out of it; None without recovery.
        speedup: Predicted and measured latency; None unless latency was requested.
    """

    recovery: Recovered | None = None
    speedup: Speedup | None = None

    @property
    def metrics(self) -> Mapping[str, tuple[float, float]]:
        """Figures on held-out samples, name -> (original, result): the metric of the task, "distance" of the outputs.

        Empty without recovery.
        """
        if self.recovery is None:
            return {}
        return self.recovery.metrics

    @property
    def _facts(self) -> list[str]:
        facts = super()._facts
        if self.recovery is not None:
            facts.append(self.recovery.summary)
        if self.speedup is not None:
            facts.append(f"{self.speedup.measured.share:.1%} of the latency kept")
        return facts


def prune(
    model: ModelSource,
    *,
    target: Target | str | None = None,
    ratio: float | None = None,
    criterion: str | AnyCriterion | None = None,
    params: CriterionParams | None = None,
    reduce: str | None = None,
    data: DataSource | None = None,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    task: TaskOptions | str | None = None,
    metric: str | None = None,
    recover: bool | None = None,
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
    verify: bool = True,
    tolerance: float | None = None,
    progress: StageProgress | None = None,
) -> Pruned:
    """Run the full pipeline: score, plan, remove and prove, then recover accuracy if data is given.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        target: Share of a measure to keep: `Target(macs=0.5)` or "macs=0.5".
        ratio: Share of channels to remove from every group, instead of a target.
        criterion: Name of a criterion, or an instance; default: that of the curves, `obs` with data, else `l2`.
        params: Parameters of a criterion that is given by name.
        reduce: Reduction over the weights of a group; default: the criterion's own.
        data: Samples, labels not needed: `Data`, a source that `load_data` reads, "none" for synthetic samples, or a
            `Calibration`.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        task: Task that the result is measured on, by name or with its options; default: guessed.
        metric: Metric that is reported on held-out samples; default: the first of the task.
        recover: Recover accuracy on the data; default: if there is data.
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
    if steps is not None and measured is not None:
        raise OnnxPruneError("steps compute new scores, so curves do not apply", fix="leave out steps or curves")
    rule, params, reduce = _criterion(criterion, params, reduce, measured, data is not None)
    original = as_model(model, shapes)
    samples = as_calibration(data, original, images=images, size=size, preprocess=preprocess, device=device)
    recovering = samples is not None and recover is not False
    if samples is not None and recovering:
        check_samples(samples.data)
    limits = constraints or Constraints()
    if limits.round_to == "auto" and device == "cuda":
        limits = replace(limits, round_to=kernel_block("cuda"))
    tick = _stages_of(progress)
    analysis = analyze(original, attention=attention, include_inexact=include_inexact)
    predictor = None
    if latency or allocator == "latency" or (aim is not None and aim.measure == "latency"):
        predictor = latency_model(
            analysis, batch=batch, threads=threads, device=device, progress=tick("measuring latency")
        )
    if steps is not None:
        made = plan_steps(
            analysis, rule, aim, steps=steps, schedule=schedule, params=params, reduce=reduce, ratio=ratio,
            latency=predictor, allocator=allocator, normalize=normalize, constraints=limits, data=samples,
            progress=tick("scoring"),
        )  # fmt: skip
    else:
        scores = score(analysis, rule, params=params, reduce=reduce, data=samples, progress=tick("scoring"))
        made = plan(
            scores, aim, ratio=ratio, curves=measured, min_group_accuracy=min_group_accuracy, max_loss=max_loss,
            latency=predictor, allocator=allocator, normalize=normalize, constraints=limits,
        )  # fmt: skip
    feeds = samples.first(original) if verify and samples is not None and not is_synthetic(samples) else None
    done = compile_plan(original, made, analysis=analysis, check=verify, feeds=feeds, tolerance=tolerance)
    result, recovery = done.model, None
    if samples is not None and recovering:
        recovery = recover_model(
            original, result, made, samples, analysis=analysis, task=task_options(task, metric),
            progress=tick("recovering"),
        )  # fmt: skip
        result = recovery.model
    speedup = _speedup(analysis, made, result, predictor, device, runs, tick("measuring"))
    return Pruned(result, made, analysis, done.before, done.after, done.verification, recovery, speedup)


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
    analysis: Analysis, made: Plan, pruned: Model, predictor: LatencyPredictor | None, device: str, runs: int,
    progress: Progress | None,
) -> Speedup | None:  # fmt: skip
    if predictor is None:
        return None
    return measure_speedup(analysis, made, pruned, predictor, device=device, runs=runs, progress=progress)


def recover(
    original: ModelSource,
    pruned: ModelSource,
    plan: PlanSource,
    *,
    data: DataSource,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    shapes: Shapes | None = None,
    task: TaskOptions | str | None = None,
    metric: str | None = None,
    stages: Sequence[str] = STAGES,
    rows: int = 40_000,
    rounds: int = 3,
    batch: int = 64,
    threads: int = 0,
    device: str = "cpu",
    verify: bool = True,
    folder: Path | None = None,
    restart: bool = False,
    progress: Progress | None = None,
) -> Recovered:
    """Recover accuracy without training: re-solve the remaining weights layer by layer.

    Args:
        original: Model before pruning: model, path of a file, or ModelProto.
        pruned: Model after pruning, likewise.
        plan: Plan, or the path of its file.
        data: Samples, labels not needed: `Data`, a source that `load_data` reads, "none" for synthetic samples, or a
            `Calibration`.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        shapes: Sizes of dynamic inputs that the model is analyzed and run at, {"x": (1, 3, 48, 320)}; None leaves a
            dimension open. The result takes every size that the original takes.
        task: Task that the result is measured on, by name or with its options; default: guessed.
        metric: Metric that is reported on held-out samples; default: the first of the task.
        stages: Stages to run, in order.
        rows: Output positions that each layer is fitted on, in all samples together.
        rounds: Rounds of the alternation around Relu and Clip.
        batch: Samples per run.
        threads: CPU threads; 0 leaves the choice to onnxruntime.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".
        verify: Prove the pruned model first. A model that was trained since cannot be proved bit for bit.
        folder: Folder for solved layers, so that an interrupted run can continue; the caller removes it.
        restart: Discard the files of an interrupted run in the folder.
        progress: Called with (done, total) layers.

    Raises:
        OnnxPruneError: models and plan do not belong together; too few samples, or samples that do not fit.
        VerificationError: the pruned model is not the one that the plan makes.
    """
    model, small, made = as_model(original, shapes), as_model(pruned, shapes), as_plan(plan)
    samples = as_calibration(data, model, images=images, size=size, preprocess=preprocess, device=device)
    if samples is None:
        raise OnnxPruneError("recovery needs samples", fix='pass data; data="none" makes synthetic samples')
    if not isinstance(data, Calibration):
        samples = replace(samples, batch=batch, threads=threads)
    analysis = analyze_for(model, made)
    check_belongs(analysis, made, small)
    if verify:
        try:
            feeds = None if is_synthetic(samples) else samples.first(model)
            prove(analysis, made, small, feeds=feeds, device=samples.device)
        except VerificationError as err:
            fix = "pass the model that this plan made; verify=False if it was trained since"
            raise VerificationError(err.what, where=err.where, fix=fix) from err
    return recover_model(
        model, small, made, samples, analysis=analysis, stages=tuple(stages), rows=rows, rounds=rounds, folder=folder,
        restart=restart, task=task_options(task, metric), progress=progress,
    )  # fmt: skip


def retrain(
    model: ModelSource,
    *,
    data: DataSource,
    val_data: DataSource | None = None,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    shapes: Shapes | None = None,
    task: TaskOptions | str | None = None,
    metric: str | None = None,
    teacher: ModelSource | None = None,
    teacher_plan: PlanSource | None = None,
    epochs: int | None = None,
    settings: Settings | None = None,
    method: Method | None = None,
    folder: Path | None = None,
    resume: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Retrained:
    """Train the weights of a pruned model in PyTorch; graph, names and metadata do not change.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        data: Samples, and labels unless the training uses the teacher alone.
        val_data: Validation data; default: a share of the data, the same of every class.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        shapes: Sizes of dynamic inputs that the model is analyzed and run at, {"x": (1, 3, 48, 320)}; None leaves a
            dimension open. The result takes every size that the original takes.
        task: Task, by name or with its options; default: guessed from the model and the targets.
        metric: Metric that chooses the epoch; default: the first of the task.
        teacher: Original, for distillation.
        teacher_plan: Plan by which the model was pruned from the teacher; features are then matched in pruned channels.
        epochs: Number of epochs; overrides that of the settings.
        settings: All other settings: learning rate, optimizer, augmentation, device and more.
        method: Method of training-time pruning.
        folder: Folder for checkpoints and logs; default: none are written.
        resume: Continue from the folder's checkpoint.
        restart: Discard the folder's checkpoint.
        progress: Called with (done, total) steps.
        notice: Called with lines of text for the user.

    Raises:
        OnnxPruneError: data, teacher or settings that do not fit the model; a checkpoint of another run; a loss that
            is not finite before any epoch was better; an operator that cannot be converted.
    """
    from onnxprune.training import Settings
    from onnxprune.training import retrain as retrain_model

    chosen = settings or Settings()
    read = as_model(model, shapes)
    labels = not chosen.unlabelled
    found = as_samples(data, read, images=images, size=size, preprocess=preprocess, labels=labels)
    held = as_samples(val_data, read, preprocess=found.preprocess, labels=labels) if val_data is not None else None
    return retrain_model(
        read, found.data, val=held.data if held is not None else None, preprocess=found.preprocess,
        task=task_options(task, metric),
        settings=replace(chosen, epochs=epochs) if epochs else chosen,
        teacher=as_model(teacher, shapes) if teacher is not None else None,
        plan=as_plan(teacher_plan) if teacher_plan is not None else None, method=method, folder=folder, resume=resume,
        restart=restart, progress=progress, notice=notice,
    )  # fmt: skip


def to_torch(model: ModelSource, *, outputs: Sequence[str] | None = None, freeze: Sequence[str] = ()) -> fx.GraphModule:
    """Return a PyTorch module that computes the model, with the model's weights as parameters.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        outputs: Names of tensors of the normalized graph to return instead of the graph's outputs.
        freeze: Patterns of initializer names that become buffers instead of parameters, such as "features.0.*".

    Raises:
        OnnxPruneError: an operator without a converter, an unknown output, a pattern that matches no weight.
    """
    from onnxprune.torch_bridge import to_torch as convert

    return convert(as_model(model), outputs=outputs, freeze=freeze)


def write_back(module: nn.Module, model: ModelSource) -> Model:
    """Return the model with the module's trained tensors and BatchNorm statistics.

    Args:
        module: Module from `to_torch`, trained.
        model: The model that `to_torch` converted, or one of the same structure.

    Raises:
        OnnxPruneError: the module was made from another graph, or a tensor is not finite.
    """
    from onnxprune.torch_bridge import write_back as write

    return write(module, as_model(model))


def evaluate(
    model: ModelSource,
    data: DataSource,
    *,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    task: TaskOptions | str | None = None,
    metric: str | None = None,
    reference: ModelSource | None = None,
    batch: int = 64,
    threads: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """Return the metrics of a model's task on data: accuracy, mAP, mIoU, text, or agreement with the original.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        data: Samples, and targets unless there is a reference: `Data`, a source that `load_data` reads, or a
            `Calibration`.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        task: Task, by name or with its options; default: guessed from the model and the targets.
        metric: The one metric to measure, or "package.module:function"; default: all of the task.
        reference: The original, whose outputs serve as targets if the data has none.
        batch: Samples per run.
        threads: CPU threads; 0: all cores.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".
        progress: Called with (done, total) samples.

    Raises:
        OnnxPruneError: neither targets nor a reference, samples or targets that do not fit the model, outputs that are
            not finite, labels that are those of other classes.
    """
    read, chosen = as_model(model), task_options(task, metric)
    whole = as_model(reference) if reference is not None else None
    labels = whole is None and chosen.task in (None, "classify")
    found = as_samples(data, read, images=images, size=size, preprocess=preprocess, labels=labels, device=device)
    return evaluate_model(
        read, found.data, preprocess=found.preprocess, task=chosen, reference=whole, batch=batch, threads=threads,
        device=device, progress=progress,
    )  # fmt: skip


def bench(
    models: Sequence[ModelSource],
    *,
    shapes: Shapes | None = None,
    batch: int = 1,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 5,
    device: str = "cpu",
    progress: Progress | None = None,
) -> BenchResults:
    """Measure the latency of models in turn on random inputs, beside MACs, parameters and bytes.

    Args:
        models: Models, results that hold one, paths of files, or ModelProtos; speed-up is over the first.
        shapes: Sizes of dynamic inputs, {"x": (1, 3, 48, 320)}.
        batch: Samples per run where a model's batch is dynamic.
        threads: CPU threads; 0: all cores.
        runs: Timed runs of each model; the median counts.
        warmup: Runs of each model before, not counted.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".
        progress: Called with (done, total) runs.

    Raises:
        OnnxPruneError: no model, or one that onnxruntime rejects.
    """
    if not models or isinstance(models, str):
        raise OnnxPruneError("bench needs a list of models", fix='bench(["model.onnx", "small.onnx"])')
    return bench_models(
        [as_model(m, shapes) for m in models], batch=batch, threads=threads, runs=runs, warmup=warmup, device=device,
        progress=progress,
    )  # fmt: skip
