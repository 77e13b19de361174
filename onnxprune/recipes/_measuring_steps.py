"""Steps that measure and change nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

from onnxprune import __version__ as version
from onnxprune._utils.files.atomic_files import write_text
from onnxprune.execution.tasks.evaluation import evaluate, metric_title
from onnxprune.ir.model import Model
from onnxprune.ir.writer import save
from onnxprune.options import Execution, Sampling, SparsitySweep, TaskOptions
from onnxprune.recipes._steps import MODEL, RecipeStep, StepContext, StepResult, pick
from onnxprune.studies.plots import check_plot, plot_study
from onnxprune.studies.sparsity_study import SparsityPoint, study


@dataclass(frozen=True)
class EvaluateStep(RecipeStep):
    """Measure accuracy on other data than the table's, or on fewer samples.

    Attributes:
        on: the data.
    """

    sampling: Sampling
    execution: Execution
    tasks: TaskOptions
    on: str = "val_data"

    do: ClassVar[str] = "evaluate"

    def __post_init__(self) -> None:
        pick(self.on)

    @property
    def needs_data(self) -> tuple[str, ...]:
        return (self.on,)

    def run(self, context: StepContext) -> StepResult:
        found = evaluate(
            context.model,
            context.samples(self.on, self.sampling.images),
            preprocess=context.defaults.preprocess,
            task=self.tasks,
            reference=context.defaults.load(context.original) if self.tasks != TaskOptions() else None,
            batch=self.execution.batch,
            threads=self.execution.threads,
            device=self.execution.device,
            progress=context.tick,
        )
        path = context.folder / "accuracy.json"
        write_text(path, json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n")
        figures = ", ".join(f"{metric_title(n)} {v.value:.4f}" for n, v in found.metrics.items() if n != "top5")
        result = f"{figures} on {found.samples} samples"
        return StepResult({"accuracy": path}, f"{result}; {found.warning}" if found.warning else result)


@dataclass(frozen=True)
class SweepStep(RecipeStep):
    """Measure accuracy and compressed size against sparsity; see `onnxprune.studies.sparsity_study`.

    Attributes:
        on: data for the measurements.
        models: also keep every pruned model.
        plot: draw the results, as sweep.svg.
    """

    study: SparsitySweep
    sampling: Sampling
    execution: Execution
    on: str = "test_data"
    models: bool = False
    plot: bool = False

    do: ClassVar[str] = "sweep"

    def __post_init__(self) -> None:
        pick(self.on)

    @property
    def needs_data(self) -> tuple[str, ...]:
        return (self.on,)

    def run(self, context: StepContext) -> StepResult:
        files = {"table": context.folder / "sweep.csv"}
        if self.plot:
            files["picture"] = context.folder / "sweep.svg"
            check_plot(files["picture"])

        def kept(point: SparsityPoint, pruned: Model) -> None:
            if self.models:
                name = f"{point.what}-{point.sparsity!r}"
                files[name] = save(pruned, context.folder / f"{name}.onnx")

        how, execution = self.study, self.execution
        found = study(
            context.model, context.samples(self.on, self.sampling.images), what=how.what, points=how.points,
            end=how.end, scope=how.scope or "layer", exclude=how.exclude, include_last=how.include_last,
            preprocess=context.defaults.preprocess, batch=execution.batch, threads=execution.threads,
            device=execution.device, tool=version, keep=kept, progress=context.tick,
        )  # fmt: skip
        write_text(files["table"], found.to_csv())
        if self.plot:
            plot_study(found, files["picture"], name=context.files[MODEL].name)
        return StepResult(files, f"{len(found.points)} points of {', '.join(how.what)} on {found.images} samples")
