"""Steps that make another model: apply, prune, retrain, sparsify."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from onnxprune._utils.atomic_files import write_text
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
from onnxprune.ir.model import Model, load, save
from onnxprune.passes import SparsifyWeights
from onnxprune.pipeline import analyze_for, compile_plan, sparsify
from onnxprune.planning.constraints import Constraints, FeasibleCounts, check_ratio
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, load_plan, save_plan
from onnxprune.recipes._planning_steps import PlanningOptions, removal_note
from onnxprune.recipes._steps import MODEL, PLAN, RecipeStep, StepContext, StepResult, require_positive
from onnxprune.recovery.recover import recover
from onnxprune.training import Settings

ORIGINAL = "original"


def keep(model: Model, context: StepContext) -> Path:
    """Writes a step's model."""
    return save(model, context.folder / "model.onnx")


@dataclass(frozen=True)
class ProofOptions:
    """How a pruned model is proved, and whether it is recovered then.

    Attributes:
        verify: whether it is proved.
        tolerance: largest relative difference from the masked original; default by element type.
        recover: solve for the weights that are left, on `data` (see `onnxprune.recovery.recover`).
        recover_images: use only this many of `data` for it, evenly from the classes.
    """

    verify: bool = True
    tolerance: float | None = None
    recover: bool = False
    recover_images: int | None = None

    def __post_init__(self) -> None:
        require_positive(recover_images=self.recover_images)
        if self.recover_images is not None and not self.recover:
            raise OnnxPruneError("'recover_images' goes with recover = true")

    @property
    def needs_data(self) -> tuple[str, ...]:
        """The data it needs."""
        return ("data",) if self.recover else ()

    def compiled(self, context: StepContext, plan: Plan, analysis: Analysis) -> tuple[dict[str, Path], str]:
        """The files of the model that a plan leaves and of its verification, and a line about it."""
        done = compile_plan(context.model, plan, analysis=analysis, check=self.verify, tolerance=self.tolerance)
        note = removal_note(plan, analysis)
        files = {}
        if done.verification is not None:
            files["verification"] = context.folder / "verification.json"
            certificate = done.verification.as_dict()
            del certificate["seconds"]  # the same run writes the same bytes
            text = json.dumps(certificate, indent=1, allow_nan=False)
            write_text(files["verification"], text + "\n")
            note += f", equal to the masked model within {done.verification.max_relative:.1e}"
        model = done.model
        if self.recover:
            defaults = context.defaults
            samples = Calibration(
                context.samples("data", self.recover_images), defaults.preprocess, device=defaults.device,
                threads=defaults.threads,
            )  # fmt: skip
            recovered = recover(context.model, model, plan, samples, analysis=analysis, progress=context.tick)
            model = recovered.model
            best = [s for s in recovered.stages if s.kept][-1]
            note += f", distance from the outputs {recovered.stages[0].distance:.3g} -> {best.distance:.3g}"
        return {**files, MODEL: keep(model, context)}, note


@dataclass(frozen=True)
class ApplyStep(RecipeStep):
    """Removes what the plan names, and proves the result."""

    proving: ProofOptions

    do: ClassVar[str] = "apply"

    @property
    def produces(self) -> tuple[str, ...]:
        return (MODEL,)

    @property
    def needs(self) -> tuple[str, ...]:
        return (PLAN,)

    @property
    def needs_data(self) -> tuple[str, ...]:
        return self.proving.needs_data

    def run(self, context: StepContext) -> StepResult:
        made = load_plan(context.files[PLAN])
        return StepResult(*self.proving.compiled(context, made, analyze_for(context.model, made)))


@dataclass(frozen=True)
class PruneStep(RecipeStep):
    """Plans and applies in one go."""

    planning: PlanningOptions
    proving: ProofOptions

    do: ClassVar[str] = "prune"

    @property
    def produces(self) -> tuple[str, ...]:
        return (MODEL,)

    @property
    def needs(self) -> tuple[str, ...]:
        return self.planning.needs

    @property
    def needs_data(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.planning.scoring.needs_data, *self.proving.needs_data)))

    def check(self, analysis: Analysis, base: Path) -> None:
        self.planning.check(analysis)

    def run(self, context: StepContext) -> StepResult:
        made, files = self.planning.save(context)
        left, note = self.proving.compiled(context, made, context.analysis)
        return StepResult({**files, **left}, note)


@dataclass(frozen=True)
class RetrainStep(RecipeStep):
    """Trains the weights; with a method, until channels can go, which ends in a plan.

    Where `keep = "best"` and no epoch is better on the validation data, the model stays as it was.

    Attributes:
        teacher: "original" (the recipe's model), or the path of a model.
        method: of training-time pruning, with `params`; then `ratio` or `target` say how much its plan takes, within
            the limits.
    """

    settings: Settings
    constraints: Constraints
    teacher: str = ""
    method: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    ratio: float | None = None
    target: str | None = None

    do: ClassVar[str] = "retrain"

    def __post_init__(self) -> None:
        if self.settings.world > 1:
            raise OnnxPruneError(
                "a recipe trains in one process", fix="`onnxprune retrain --devices` by hand, between two recipes"
            )
        if not self.method:
            if self.params or self.ratio is not None or self.target or self.constraints != Constraints():
                raise OnnxPruneError("'params', 'ratio', 'target' and limits go with a method")
            return
        from onnxprune.training import get_method

        get_method(self.method, **self.params)
        if self.ratio is not None and self.target is not None:
            raise OnnxPruneError("give either 'ratio' or 'target'")
        if self.ratio is not None:
            check_ratio(self.ratio)
        self._aim()

    def _aim(self) -> Target | None:
        return Target.parse(self.target) if self.target is not None else None

    @property
    def produces(self) -> tuple[str, ...]:
        return (MODEL, PLAN) if self.method else (MODEL,)

    @property
    def needs_data(self) -> tuple[str, ...]:
        return ("data",)

    def check(self, analysis: Analysis, base: Path) -> None:
        FeasibleCounts(analysis, self.constraints, analysis.by_name)
        missing = [name for name in ("torch", "lightning", "onnx2torch") if find_spec(name) is None]
        if missing:
            raise OnnxPruneError(f"retraining needs {', '.join(missing)}", fix="pip install 'onnxprune[train]'")
        if self.teacher not in ("", ORIGINAL) and not (base / self.teacher).is_file():
            raise OnnxPruneError(f"no such file: {str(base / self.teacher)!r}", fix="name a teacher that is there")

    def run(self, context: StepContext) -> StepResult:
        from onnxprune.training import get_method, retrain
        from onnxprune.training.checkpoints import LAST

        folder = self._checkpoints(context.folder)
        method = get_method(self.method, **self.params) if self.method else None
        teacher = context.original if self.teacher == ORIGINAL else context.base / self.teacher
        done = retrain(
            context.model,
            context.data["data"],
            val=context.data.get("val_data"),
            preprocess=context.defaults.preprocess,
            settings=self.settings,
            teacher=load(teacher) if self.teacher else None,
            method=method,
            folder=folder,
            resume=(folder / LAST).exists(),
            progress=context.tick,
            notice=context.notify,
        )
        files = {MODEL: keep(done.model, context), "training": context.folder / "training.json"}
        write_text(files["training"], json.dumps(done.as_dict(), indent=1, allow_nan=False) + "\n")
        if method is not None:
            files[PLAN] = context.folder / "plan.json"
            save_plan(method.plan(done.model, self._aim(), self.ratio, self.constraints), files[PLAN])
        note = f"epoch {done.epoch} of {len(done.history) - 1} kept" if done.epoch else "no epoch was better"
        return StepResult(files, note + (f", stopped early: {done.stopped}" if done.stopped else ""))

    def _checkpoints(self, folder: Path) -> Path:
        return folder / "training"

    def tidy(self, folder: Path) -> None:
        if self._checkpoints(folder).is_dir():
            from onnxprune.training import remove_checkpoints

            remove_checkpoints(self._checkpoints(folder))


@dataclass(frozen=True)
class SparsifyStep(RecipeStep):
    """Sets the smallest weights, or the units of smallest norm, to zero; see the pass sparsify_weights.

    Attributes:
        what: "weight" or "unit".
        sparsity: share that becomes zero, or instead a `pattern` such as "2:4".
        scope: "layer" or "global".
        exclude: glob patterns of weights left whole.
        include_last: prune last layers, too.
    """

    what: str = "weight"
    sparsity: float | None = None
    pattern: str = ""
    scope: str = "layer"
    exclude: tuple[str, ...] = ()
    include_last: bool = False

    do: ClassVar[str] = "sparsify"

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (not self.pattern):
            raise OnnxPruneError("give either 'sparsity' or 'pattern'")
        self._rule()

    def _rule(self) -> SparsifyWeights:
        return SparsifyWeights(
            self.sparsity or 0.0, self.what, self.scope, self.pattern, self.exclude, self.include_last
        )

    @property
    def produces(self) -> tuple[str, ...]:
        return (MODEL,)

    def run(self, context: StepContext) -> StepResult:
        sparse = sparsify(context.model, self._rule())
        counts = [nonzero_parameters(m) for m in (context.model, sparse)]
        sizes = [compressed_size(m) for m in (context.model, sparse)]
        note = "parameters that are not zero {} -> {}, compressed bytes {} -> {}".format(*counts, *sizes)
        return StepResult({MODEL: keep(sparse, context)}, note)
