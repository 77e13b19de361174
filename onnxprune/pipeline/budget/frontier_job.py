"""`onnxprune.frontier`: accuracy over cost in one call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.input_sizes import Shapes
from onnxprune.options.tasks import TaskOptions, task_options
from onnxprune.pipeline._inputs import DataSource, ModelSource, PreprocessSource, as_calibration, as_model, is_synthetic
from onnxprune.pipeline.budget.frontier import Frontier
from onnxprune.pipeline.budget.frontier_run import FrontierSettings, measure_frontier
from onnxprune.pipeline.budget.judge import held_out
from onnxprune.planning.constraints import Constraints


def frontier(
    model: ModelSource,
    *,
    data: DataSource,
    val_data: DataSource | None = None,
    folder: str | os.PathLike[str] | None = None,
    points: int = 10,
    least: float = 0.2,
    minimize: str = "macs",
    criteria: Sequence[str] = ("obs",),
    allocators: Sequence[str] = (),
    series: Sequence[str] = (),
    quantize: str | None = None,
    reconstruct_blocks: bool = False,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    task: TaskOptions | str | None = None,
    metric: str | None = None,
    constraints: Constraints | None = None,
    attention: str = "heads",
    include_inexact: bool = False,
    shapes: Shapes | None = None,
    latency: bool = True,
    threads: int = 1,
    runs: int = 30,
    device: str = "cpu",
    jobs: int = 1,
    restart: bool = False,
    progress: Progress | None = None,
) -> Frontier:
    """Measure accuracy over cost: a pruned, proved and recovered model at every point of whole curves.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        data: Samples, labels not needed: `Data`, a source that `load_data` reads, or a `Calibration`.
        val_data: Samples for the metric; default: every fourth sample of the data.
        folder: Folder for the points, so that an interrupted run continues; default: only the figures are returned.
        points: Points of every curve.
        least: Share of the cost that the last point keeps.
        minimize: Cost that the points save: "macs", "latency" (placed by prediction, and measured), "bytes", "params",
            "memory" or "channels".
        criteria: Names of criteria, a curve for each.
        allocators: Names of allocators, a curve for each; default: the criterion's own.
        series: What is removed, a curve for each: "channels", residual "blocks", "both"; default: by the constraints.
        quantize: "int8" adds quantized models.
        reconstruct_blocks: Also fit whole blocks of every point by descent; needs PyTorch.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        task: Task that the models are measured on, by name or with its options; default: guessed.
        metric: Metric; default: the first of the task, or agreement with the original without targets.
        constraints: Rounding, minimum counts, protected groups, overrides.
        attention: Channels to free in multi-head attention, "heads" or "head_dim".
        include_inexact: Free also channels that statistics run over.
        shapes: Sizes of dynamic inputs that the model is analyzed and run at.
        latency: Measure latency.
        threads: CPU threads, for latency; 0: all cores.
        runs: Timed runs of each model, for latency.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".
        jobs: Curves at a time.
        restart: Discard the points of an earlier run in the folder.
        progress: Called with (done, total) points.

    Raises:
        OnnxPruneError: Settings out of range, a folder of another run, data that does not fit.
        VerificationError: A stripped model does not compute what the masked original computes.
    """
    if is_synthetic(data):
        raise OnnxPruneError("a metric needs real samples, not synthetic ones", fix='data="images/"')
    original = as_model(model, shapes)
    fit = as_calibration(data, original, images=images, size=size, preprocess=preprocess, device=device)
    evaluation = as_calibration(val_data, original, size=size, preprocess=preprocess, device=device)
    assert fit is not None
    if evaluation is None:
        parts = held_out(fit.data)
        fit, evaluation = (replace(fit, data=part) for part in parts)
    settings = FrontierSettings(
        measure=minimize, points=points, least=least, criteria=tuple(criteria), allocators=tuple(allocators) or (None,),
        constraints=constraints or Constraints(), attention=attention, include_inexact=include_inexact,
        series=tuple(series) or ("",), quantize=quantize or "", reconstruct_blocks=reconstruct_blocks,
        task=task_options(task, metric), latency=latency, threads=threads, runs=runs,
    )  # fmt: skip
    if folder is not None:
        return measure_frontier(
            original, fit, evaluation, Path(folder), settings, jobs=jobs, restart=restart, progress=progress
        )
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        found = measure_frontier(original, fit, evaluation, Path(name), settings, jobs=jobs, progress=progress)
    return replace(found, folder=None)
