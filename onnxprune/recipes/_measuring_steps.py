"""Steps that measure and leave everything as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

from onnxprune import __version__ as version
from onnxprune._utils.atomic_files import write_text
from onnxprune.errors import unknown
from onnxprune.execution.evaluation import evaluate
from onnxprune.ir.model import Model, save
from onnxprune.passes.sparsify_weights import METHODS, SparsifyWeights
from onnxprune.recipes._steps import MODEL, RecipeStep, StepContext, StepResult, pick, require_positive
from onnxprune.studies.plots import check_plot, plot_study
from onnxprune.studies.sparsity_study import ENDS, POINTS, SparsityPoint, study


@dataclass(frozen=True)
class EvaluateStep(RecipeStep):
    """Accuracy on other data than that of the table, or on less of it.

    Attributes:
        on: the data.
        images: use only this many, evenly from the classes.
        batch: samples per run.
    """

    on: str = "val_data"
    images: int | None = None
    batch: int = 64
    threads: int = 0
    device: str = "cpu"

    do: ClassVar[str] = "evaluate"

    def __post_init__(self) -> None:
        pick(self.on)
        require_positive(images=self.images, batch=self.batch)

    @property
    def looks_at(self) -> tuple[str, ...]:
        return (self.on,)

    def run(self, context: StepContext) -> StepResult:
        found = evaluate(
            context.model,
            context.samples(self.on, self.images),
            preprocess=context.defaults.preprocess,
            batch=self.batch,
            threads=self.threads,
            device=self.device,
            progress=context.tick,
        )
        path = context.folder / "accuracy.json"
        write_text(path, json.dumps(vars(found), indent=1, allow_nan=False) + "\n")
        result = f"top-1 {found.top1:.4f}, loss {found.loss:.4f} on {found.images} samples"
        return StepResult({"accuracy": path}, f"{result}; {found.warning}" if found.warning else result)


@dataclass(frozen=True)
class SweepStep(RecipeStep):
    """Accuracy and compressed size against sparsity, weights beside units; see `onnxprune.studies.sparsity_study`.

    Attributes:
        on: the data that is measured on.
        what: "weight", "unit" or both.
        points: sparsities.
        end: how units end: "zeros" or "strip".
        scope, exclude, include_last: as of the step sparsify.
        models: keep every pruned model, too.
        plot: draw them, as sweep.svg.
        images, batch: as of the step evaluate.
    """

    on: str = "test_data"
    what: tuple[str, ...] = METHODS
    points: tuple[float, ...] = POINTS
    end: str = "zeros"
    scope: str = "layer"
    exclude: tuple[str, ...] = ()
    include_last: bool = False
    models: bool = False
    plot: bool = False
    images: int | None = None
    batch: int = 64
    threads: int = 0
    device: str = "cpu"

    do: ClassVar[str] = "sweep"

    def __post_init__(self) -> None:
        pick(self.on)
        require_positive(images=self.images, batch=self.batch)
        if self.end not in ENDS:
            raise unknown("end", self.end, ENDS)
        for what, sparsity in product(self.what, self.points):
            SparsifyWeights(sparsity, what, self.scope)  # refuses what makes no sense

    @property
    def looks_at(self) -> tuple[str, ...]:
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

        found = study(
            context.model, context.samples(self.on, self.images), what=self.what, points=self.points, end=self.end,
            scope=self.scope, exclude=self.exclude, include_last=self.include_last,
            preprocess=context.defaults.preprocess, batch=self.batch, threads=self.threads, device=self.device,
            tool=version, keep=kept, progress=context.tick,
        )  # fmt: skip
        write_text(files["table"], found.to_csv())
        if self.plot:
            plot_study(found, files["picture"], name=context.files[MODEL].name)
        return StepResult(files, f"{len(found.points)} points of {', '.join(self.what)} on {found.images} samples")
