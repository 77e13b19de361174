"""Steps with a new model: apply, prune, retrain, sparsify."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from onnxprune._utils.files.atomic_files import write_text
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
from onnxprune.ir.model import Model
from onnxprune.ir.writer import save
from onnxprune.options import AfterPruning, Constraints, Sparsifying, Training, TrainingMethod, Verifying, option
from onnxprune.passes import SparsifyWeights
from onnxprune.pipeline import analyze_for, compile_plan, sparsify
from onnxprune.planning.constraints import FeasibleCounts
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, load_plan, save_plan
from onnxprune.recipes._planning_steps import PlanningOptions, removal_note
from onnxprune.recipes._steps import MODEL, PLAN, RecipeStep, StepContext, StepResult
from onnxprune.recovery.recover import recover

ORIGINAL = "original"


def keep(model: Model, context: StepContext) -> Path:
    """Write a step's model."""
    return save(model, context.folder / "model.onnx")


@dataclass(frozen=True, kw_only=True, repr=False)
class Recovering(AfterPruning):
    """Options of recovering a pruned model at once, on `data` (see `onnxprune.recovery.recover`)."""

    recover_images: int | None = option(
        None, help="Use only this many of `data` for it, evenly from the classes.", heading="Data", ge=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recover_images is not None and not self.recover:
            raise OnnxPruneError("'recover_images' needs recover = true")
        if self.reconstruct_blocks and not self.recover:
            raise OnnxPruneError("'reconstruct_blocks' needs recover = true")


@dataclass(frozen=True)
class ProofOptions:
    """Options of proving and then recovering a pruned model."""

    verifying: Verifying
    recovering: Recovering

    @property
    def needs_data(self) -> tuple[str, ...]:
        """Return the data it needs."""
        return ("data",) if self.recovering.recover else ()

    def samples(self, context: StepContext) -> Calibration | None:
        """Return the samples of the recovery; None without one."""
        if not self.recovering.recover:
            return None
        defaults = context.defaults
        return Calibration(
            context.samples("data", self.recovering.recover_images), defaults.preprocess, device=defaults.device,
            threads=defaults.threads,
        )  # fmt: skip

    def compiled(self, context: StepContext, plan: Plan, analysis: Analysis) -> tuple[dict[str, Path], str]:
        """Write the pruned model and its verification; return the files and a remark."""
        how = self.verifying
        done = compile_plan(context.model, plan, analysis=analysis, check=how.verify, tolerance=how.tolerance)
        note = removal_note(plan, analysis)
        files = {}
        if done.verification is not None:
            files["verification"] = context.folder / "verification.json"
            certificate = done.verification.as_dict()
            del certificate["seconds"]  # equal runs write equal bytes
            text = json.dumps(certificate, indent=1, allow_nan=False)
            write_text(files["verification"], text + "\n")
            note += f", equal to the masked model within {done.verification.max_relative:.1e}"
        model = done.model
        if (samples := self.samples(context)) is not None:
            recovered = recover(
                context.model, model, plan, samples, analysis=analysis, stages=self.recovering.stages,
                task=context.defaults.task, progress=context.tick,
            )  # fmt: skip
            model = recovered.model
            best = [s for s in recovered.stages if s.kept][-1]
            note += f", distance from the outputs {recovered.stages[0].distance:.3g} -> {best.distance:.3g}"
        return {**files, MODEL: keep(model, context)}, note


@dataclass(frozen=True)
class ApplyStep(RecipeStep):
    """Remove the channels of the plan and prove the result."""

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
    """Plan and apply in one step."""

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
        made, files = self.planning.save(context, self.proving.samples(context))
        left, note = self.proving.compiled(context, made, context.analysis)
        return StepResult({**files, **left}, note)


@dataclass(frozen=True)
class RetrainStep(RecipeStep):
    """Train the weights; with a method, train channels to be removable and write a plan.

    With `keep = "best"` the model is not changed if no epoch is better on the validation data.

    Attributes:
        settings: settings of the training.
        pruning: method that prunes while training, and the budget of its plan, within `constraints`.
        teacher: "original" (the recipe's model), or the path of a model.
    """

    settings: Training
    pruning: TrainingMethod
    constraints: Constraints
    teacher: str = ""

    do: ClassVar[str] = "retrain"

    def __post_init__(self) -> None:
        if self.settings.world > 1:
            raise OnnxPruneError(
                "a recipe trains in one process", fix="`onnxprune retrain --devices` by hand, between two recipes"
            )
        pruning = self.pruning
        if not pruning.method:
            if pruning != TrainingMethod() or self.constraints != Constraints():
                raise OnnxPruneError("'params', 'ratio', 'target' and constraints need a method")
            return
        from onnxprune.training import get_method

        get_method(pruning.method, **pruning.params)
        if pruning.ratio is not None and pruning.target is not None:
            raise OnnxPruneError("give either 'ratio' or 'target'")
        self._aim()

    def _aim(self) -> Target | None:
        return Target.parse(self.pruning.target) if self.pruning.target is not None else None

    @property
    def produces(self) -> tuple[str, ...]:
        return (MODEL, PLAN) if self.pruning.method else (MODEL,)

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

        folder = self._checkpoints(context.folder)
        pruning = self.pruning
        method = get_method(pruning.method, **pruning.params) if pruning.method else None
        teacher = context.original if self.teacher == ORIGINAL else context.base / self.teacher
        done = retrain(
            context.model,
            context.data["data"],
            val=context.data.get("val_data"),
            preprocess=context.defaults.preprocess,
            task=context.defaults.task,
            settings=self.settings,
            teacher=context.defaults.load(teacher) if self.teacher else None,
            method=method,
            folder=folder,
            progress=context.tick,
            notice=context.notify,
        )
        files = {MODEL: keep(done.model, context), "training": context.folder / "training.json"}
        write_text(files["training"], json.dumps(done.as_dict(), indent=1, allow_nan=False) + "\n")
        if method is not None:
            files[PLAN] = context.folder / "plan.json"
            save_plan(method.plan(done.model, self._aim(), pruning.ratio, self.constraints), files[PLAN])
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
    """Set the smallest weights, or the units of smallest norm, to zero; see the pass sparsify_weights."""

    sparsifying: Sparsifying

    do: ClassVar[str] = "sparsify"

    def __post_init__(self) -> None:
        if (self.sparsifying.sparsity is None) == (not self.sparsifying.pattern):
            raise OnnxPruneError("give either 'sparsity' or 'pattern'")
        self._rule()

    def _rule(self) -> SparsifyWeights:
        how = self.sparsifying
        return SparsifyWeights(
            how.sparsity or 0.0, how.what, how.scope or "layer", how.pattern or "", how.exclude, how.include_last
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
