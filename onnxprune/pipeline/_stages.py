"""Stages from a model to a smaller, proved one, in order: analyze, score, plan, apply, verify."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune import __version__ as version
from onnxprune._utils.output.html import html_table, share
from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.cost import MEASURES, TITLES, Cost, CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria.scoring import Scores
from onnxprune.criteria.scoring import score as score_groups
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import model_batches
from onnxprune.ir.checker import check_weights
from onnxprune.ir.input_sizes import Shapes
from onnxprune.ir.model import PROVENANCE, Array, Model
from onnxprune.ir.writer import save as save_model
from onnxprune.passes import Pipeline, SparsifyWeights
from onnxprune.passes.remove_blocks import removal_passes
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
from onnxprune.planning.analyze import analyze as analyze_model
from onnxprune.planning.analyze import analyze_for as analyze_for
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.depth import scores_for, target_met
from onnxprune.planning.iterative import plan_steps as plan_in_steps
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan
from onnxprune.verification import Verification
from onnxprune.verification import verify as prove

CriterionParams = Mapping[str, bool | int | float | str]
"""Parameters of a criterion, by name."""
_VERIFIED = 64  # samples for whole runs unless `images` is given


@dataclass(frozen=True)
class Compiled:
    """A pruned model with its plan, costs and proof.

    Attributes:
        model: Pruned model.
        plan: Removed channels.
        analysis: Analysis of the original.
        before: Cost of the original.
        after: Cost of the pruned model.
        verification: Certificate of the proof; None if the model was not verified.
    """

    model: Model
    plan: Plan
    analysis: Analysis = field(repr=False)
    before: Cost
    after: Cost
    verification: Verification | None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'; '.join(self._facts)}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: costs before and after, then the proof."""
        rows = []
        for what in MEASURES:
            a, b = getattr(self.before, what), getattr(self.after, what)
            rows.append([TITLES.get(what, what), f"{a:,}", f"{b:,}", share(b, a)])
        return html_table("pruned", ["", "before", "after", "kept"], rows, note="; ".join(self._facts[1:]))

    def save(self, path: str | os.PathLike[str], *, external: bool | None = None) -> Path:
        """Write the model; see `onnxprune.save`."""
        return save_model(self.model, path, external=external)

    @property
    def _facts(self) -> list[str]:
        kept = self.after.ratio(self.before, "macs")
        channels = f"{self.after.channels} of {self.before.channels} channels"
        return [f"{channels} and {100 * kept:.1f} % of the MACs kept", self._proof]

    @property
    def _proof(self) -> str:
        v = self.verification
        if v is None:
            return "not verified"
        return f"proved equal to the {v.reference}: {v.summary}"


def analyze(
    model: ModelSource, *, attention: str = "heads", include_inexact: bool = False, shapes: Shapes | None = None
) -> Analysis:
    """Find the channels that can be removed from a model, and the locked ones with the reason.

    Args:
        model: Model, result that holds one, path of a file, or ModelProto.
        attention: Channels to free in multi-head attention, "heads" or "head_dim".
        include_inexact: Free also channels that statistics (LayerNorm, GroupNorm, a mean, ...) run over. Their removal
            is not masking: it is proved against the original whose statistics run over the kept channels.
        shapes: Sizes of dynamic inputs that the model is analyzed at, {"x": (1, 3, 48, 320)}; None leaves a dimension
            open. Default: sizes that the nodes of the model admit.

    Raises:
        OnnxPruneError: the model cannot be read, or not run at the sizes that are given.
    """
    return analyze_model(as_model(model, shapes), attention=attention, include_inexact=include_inexact)


def score(
    analysis: Analysis,
    criterion: str | AnyCriterion = "l2",
    *,
    params: CriterionParams | None = None,
    reduce: str | None = None,
    groups: Sequence[str] | None = None,
    constraints: Constraints | None = None,
    target: Target | str | None = None,
    data: DataSource | None = None,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Score every channel of an analyzed model; channels with higher scores are kept.

    Args:
        analysis: Analysis of the model.
        criterion: Name of a criterion (`onnxprune criteria` lists them), or an instance.
        params: Parameters of a criterion that is given by name.
        reduce: Reduction over the weights of a group: "mean", "sum", "max" or "first"; default: the criterion's own.
        groups: Names of the groups to score; default: all.
        constraints: Constraints of the plan; if it may remove residual blocks, these are scored as well.
        target: Target of the plan, at which the scoring of blocks ends; default: all are scored.
        data: Samples for criteria that need them: `Data`, a source that `load_data` reads, "none" for synthetic
            samples, or a `Calibration`.
        images: Number of samples to read from a source.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".
        progress: Called with (done, total) weights or samples.

    Raises:
        OnnxPruneError: unknown criterion, parameter or group; a reduction that the criterion forbids; weights or
            activations that are not finite; data or labels that the criterion needs are missing.
    """
    samples = as_calibration(data, analysis.source, images=images, size=size, preprocess=preprocess, device=device)
    if constraints is not None and constraints.asks_for_blocks:
        if groups is not None:
            raise OnnxPruneError("blocks are scored beside all groups", fix="leave out groups or constraints")
        return scores_for(
            analysis, criterion, constraints, enough=target_met(analysis, as_target(target)), reduce=reduce,
            calibration=samples, progress=progress, **(params or {}),
        )  # fmt: skip
    return score_groups(
        analysis, criterion, reduce=reduce, groups=None if groups is None else list(groups), calibration=samples,
        progress=progress, **(params or {}),
    )  # fmt: skip


def plan(
    scores: Scores,
    target: Target | str | None = None,
    *,
    ratio: float | None = None,
    curves: CurvesSource | None = None,
    min_group_accuracy: float | None = None,
    max_loss: float | None = None,
    latency: LatencyPredictor | None = None,
    allocator: str | None = None,
    normalize: str | None = None,
    constraints: Constraints | None = None,
) -> Plan:
    """Choose the channels to remove: in every group those with the lowest scores.

    Args:
        scores: Scores of the groups.
        target: Share of a measure to keep: `Target(macs=0.5)` or "macs=0.5".
        ratio: Share of channels to remove from every group, instead of a target.
        curves: Sensitivity curves of the same criterion, or the path of their file.
        min_group_accuracy: Lowest value of each group's curve, for metrics where higher is better.
        max_loss: Highest value of each group's curve, for metrics where lower is better.
        latency: Latency model, for a latency target or allocator; see `latency_model`.
        allocator: Rule that shares a target among the groups: "global", "uniform", "saving", "sensitivity" or
            "latency"; default: sensitivity with curves, latency for a latency target, else the criterion's own.
        normalize: Normalization that makes scores of groups comparable; default: the criterion's own.
        constraints: Rounding, minimum counts, protected groups, overrides.

    Raises:
        OnnxPruneError: neither or both of target and ratio; a share out of range; a pattern that matches nothing; a
            target that cannot be reached; curves that do not belong to the scores.
    """
    return make_plan(
        scores, as_target(target), ratio=ratio, curves=as_curves(curves), min_group_accuracy=min_group_accuracy,
        max_loss=max_loss, latency=latency, allocator=allocator, normalize=normalize, constraints=constraints,
        tool=version,
    )  # fmt: skip


def plan_steps(
    analysis: Analysis,
    criterion: str | AnyCriterion = "l2",
    target: Target | str | None = None,
    *,
    steps: int,
    schedule: str = "linear",
    params: CriterionParams | None = None,
    reduce: str | None = None,
    ratio: float | None = None,
    latency: LatencyPredictor | None = None,
    allocator: str | None = None,
    normalize: str | None = None,
    constraints: Constraints | None = None,
    data: DataSource | None = None,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Plan:
    """Choose the channels to remove in several steps, with new scores of the remaining channels between them.

    Arguments of the same name as in `score` and `plan` have the same meaning.

    Args:
        analysis: Analysis of the original.
        criterion: Name of a criterion, or an instance.
        target: Share of a measure to keep in the end.
        steps: Number of steps; with 1 the result is that of `plan`.
        schedule: "linear" (each step removes the same share of the original) or "geometric" (of the remaining).
        progress: Called with (done, total) steps.

    Raises:
        OnnxPruneError: as `score` and `plan`; less than one step, an unknown schedule, an allocator that needs curves.
    """
    samples = as_calibration(data, analysis.source, images=images, size=size, preprocess=preprocess, device=device)
    return plan_in_steps(
        analysis, criterion, as_target(target), steps=steps, schedule=schedule, ratio=ratio, latency=latency,
        allocator=allocator, normalize=normalize, constraints=constraints, reduce=reduce, calibration=samples,
        progress=progress, **(params or {}),
    )  # fmt: skip


def compile_plan(
    model: Model,
    plan: Plan,
    *,
    analysis: Analysis | None = None,
    check: bool = True,
    feeds: Sequence[Mapping[str, Array]] | None = None,
    tolerance: float | None = None,
    device: str = "cpu",
    threads: int = 0,
    seed: int = 0,
) -> Compiled:
    """Remove the channels and blocks of a plan, prove the result, and record the provenance in its metadata.

    Args:
        model: Original model.
        plan: Channels to remove.
        analysis: Analysis of the model, if at hand.
        check: Prove the result.
        feeds: Inputs for whole runs of the proof, beside random ones.
        tolerance: Largest relative difference; default: by element type.
        device: Device of the proof: "cpu", "cuda" or "auto".
        threads: CPU threads; 0 leaves the choice to onnxruntime.
        seed: Seed of the random values.

    Raises:
        OnnxPruneError: the plan does not fit.
        VerificationError: the pruned model does not compute what the masked original computes.
    """
    if analysis is None:
        analysis = analyze_for(model, plan)
    pruned = Pipeline(removal_passes(plan, analysis))(analysis.model)
    check_weights(pruned.graph)
    pruned = pruned.with_metadata(
        {f"{PROVENANCE}.version": version, f"{PROVENANCE}.plan": plan.digest, f"{PROVENANCE}.source": plan.model}
    )
    proof = None
    if check:
        proof = prove(
            analysis, plan, pruned, feeds=feeds, tolerance=tolerance, device=device, threads=threads, seed=seed
        )
    cost = CostModel(analysis)
    return Compiled(pruned, plan, analysis, cost.baseline, cost.cost(analysis.kept(plan)), proof)


def apply(
    model: ModelSource,
    plan: PlanSource,
    *,
    analysis: Analysis | None = None,
    verify: bool = True,
    tolerance: float | None = None,
) -> Model:
    """Return the pruned model: stripped, proved, with its provenance in the metadata.

    `compile_plan` does the same and returns costs and certificate as well.

    Args:
        model: Original: model, path of a file, or ModelProto.
        plan: Plan, or the path of its file.
        analysis: Analysis of the model, if at hand.
        verify: Prove the result.
        tolerance: Largest relative difference that the proof allows; default: by element type.

    Raises:
        OnnxPruneError: the plan does not fit the model.
        VerificationError: the pruned model does not compute what the masked original computes.
    """
    return compile_plan(as_model(model), as_plan(plan), analysis=analysis, check=verify, tolerance=tolerance).model


def verify(
    original: ModelSource,
    pruned: ModelSource,
    plan: PlanSource,
    *,
    data: DataSource | None = None,
    images: int | None = None,
    size: Sequence[int] | None = None,
    preprocess: PreprocessSource | None = None,
    tolerance: float | None = None,
    device: str = "cpu",
) -> Verification:
    """Prove that a pruned model computes what its masked original computes.

    Weight values of a recovered or retrained model are not compared; everything else is.

    Args:
        original: Model before pruning: model, path of a file, or ModelProto.
        pruned: Model after pruning, likewise.
        plan: Plan, or the path of its file.
        data: Samples for whole runs, beside random inputs.
        images: Number of samples to use; default: 64.
        size: Height and width that image files are resized to.
        preprocess: Conversion of the samples into the model's input, or the name of a preset.
        tolerance: Largest relative difference; default: by element type.
        device: Device of onnxruntime: "cpu", "cuda" or "auto".

    Raises:
        VerificationError: the models differ, with the first node that differs; or a node could not be checked.
        OnnxPruneError: models and plan do not belong together, or onnxruntime rejects the original.
    """
    model, made = as_model(original), as_plan(plan)
    analysis = analyze_for(model, made)
    feeds = None
    if data is not None and not is_synthetic(data):
        found = as_samples(data, model, images=images or _VERIFIED, size=size, preprocess=preprocess, device=device)
        feeds = [feed for feed, _ in model_batches(model, found.data, found.preprocess)]
    return prove(analysis, made, as_model(pruned), feeds=feeds, tolerance=tolerance, device=device)


def sparsify(model: Model, rule: SparsifyWeights) -> Model:
    """Return the model with its smallest weights set to zero, and its provenance in the metadata.

    Raises:
        OnnxPruneError: as the pass.
    """
    return rule(model).with_metadata(
        {
            f"{PROVENANCE}.version": version,
            f"{PROVENANCE}.{rule.name}": rule.summary,
            f"{PROVENANCE}.source": model.fingerprint,
        }
    )
