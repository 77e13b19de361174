"""Jobs that run several stages in one call: recover, retrain, evaluate, bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.tasks.evaluation import Evaluation
from onnxprune.execution.tasks.evaluation import evaluate as evaluate_model
from onnxprune.ir.input_sizes import Shapes
from onnxprune.ir.model import Model
from onnxprune.latency.bench import BenchResults
from onnxprune.latency.bench import bench as bench_models
from onnxprune.latency.runtimes import Runtime, make_runtime
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.pipeline._inputs import (
    DataSource,
    ModelSource,
    PlanSource,
    PreprocessSource,
    as_calibration,
    as_model,
    as_plan,
    as_samples,
    is_synthetic,
)
from onnxprune.planning.analyze import analyze_for
from onnxprune.recovery.recover import EPOCHS, STAGES, Recovered, check_belongs
from onnxprune.recovery.recover import recover as recover_model
from onnxprune.verification import verify as prove

if TYPE_CHECKING:
    from torch import fx, nn

    from onnxprune.training import Method, Retrained, Settings

StageProgress = Callable[[str, int, int], None]
"""Called with the stage and (done, total) of it."""


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
    rounds: int = 6,
    epochs: int = EPOCHS,
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
        epochs: Epochs of the stage reconstruct_blocks, for each block.
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
        model, small, made, samples, analysis=analysis, stages=tuple(stages), rows=rows, rounds=rounds, epochs=epochs,
        folder=folder, restart=restart, task=task_options(task, metric), progress=progress,
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
        resume: Require a checkpoint in the folder; one of the same run is continued anyway.
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
    runtime: Runtime | str = "onnxruntime",
    runtime_options: Mapping[str, str] | None = None,
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
        runtime: Runtime to measure in: "onnxruntime:tensorrt", "openvino", "command:...", or an object that keeps the
            protocol `Runtime`; plain onnxruntime runs on the device.
        runtime_options: Options of the runtime by name.
        progress: Called with (done, total) runs.

    Raises:
        OnnxPruneError: no model, or one that the runtime rejects.
    """
    if not models or isinstance(models, str):
        raise OnnxPruneError("bench needs a list of models", fix='bench(["model.onnx", "small.onnx"])')
    return bench_models(
        [as_model(m, shapes) for m in models], batch=batch, threads=threads, runs=runs, warmup=warmup,
        runtime=make_runtime(runtime, runtime_options, device=device), progress=progress,
    )  # fmt: skip
