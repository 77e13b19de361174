"""Where stages meet: the column of named steps from a model to a smaller, proved one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxprune import __version__ as version
from onnxprune._utils.html import html_table, share
from onnxprune.analysis.cost import MEASURES, Cost, CostModel
from onnxprune.analysis.coupling import Analysis, couple
from onnxprune.criteria import AnyCriterion
from onnxprune.criteria.scoring import Progress, Scores
from onnxprune.criteria.scoring import score as score_groups
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.checker import check_weights
from onnxprune.ir.model import PROVENANCE, Array, Model, gc_paused
from onnxprune.ops import CouplingOptions
from onnxprune.passes import NORMALIZE, Pipeline, SparsifyWeights, StripChannels
from onnxprune.passes.strip_channels import analysis_options, check_plan
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.curves import Curves
from onnxprune.planning.planner import plan as make_plan
from onnxprune.planning.targets import LatencyPredictor, Target
from onnxprune.plans import Plan
from onnxprune.verification import Verification, verify


@dataclass(frozen=True)
class Compiled:
    """A pruned model and what is known about it."""

    model: Model
    plan: Plan
    analysis: Analysis = field(repr=False)
    before: Cost
    after: Cost
    verification: Verification | None

    def __repr__(self) -> str:
        kept = self.after.ratio(self.before, "macs")
        return f"<Compiled: {self.plan.removed} channels removed, {100 * kept:.1f} % of the MACs left, {self._proof}>"

    def _repr_html_(self) -> str:
        """For notebooks: before, after, what is left, and the proof."""
        rows = []
        for label, what in zip(("MACs", "parameters", "bytes", "activation bytes", "channels"), MEASURES, strict=True):
            a, b = getattr(self.before, what), getattr(self.after, what)
            rows.append([label, f"{a:,}", f"{b:,}", share(b, a)])
        return html_table("pruned", ["", "before", "after", "kept"], rows, note=self._proof)

    @property
    def _proof(self) -> str:
        v = self.verification
        if v is None:
            return "not verified"
        return f"proved equal to the {v.reference}: {v.summary}"


def analyze(model: Model, *, attention: str = "heads", include_inexact: bool = False) -> Analysis:
    """Finds what can be removed from a model, what is locked and why.

    Args:
        attention: what is freed in multi-head attention, "heads" or "head_dim".
        include_inexact: free also channels that statistics (LayerNorm, GroupNorm, a mean, ...) run over. Their removal
            is not masking: it is proved against the original whose statistics run over what is kept.
    """
    with gc_paused():
        normal = Pipeline(NORMALIZE)(model)
        return couple(normal, source=model, choices=CouplingOptions(attention, include_inexact))


def analyze_for(model: Model, plan: Plan) -> Analysis:
    """The analysis a plan was made with.

    Raises:
        OnnxPruneError: the plan does not fit the model.
    """
    normal = Pipeline(NORMALIZE)(model)
    analysis = couple(normal, source=model, **analysis_options(plan))
    check_plan(plan, analysis)
    return analysis


def score(
    model: Model,
    groups: Analysis,
    criterion: str | AnyCriterion = "l2",
    *,
    reduce: str | None = None,
    calibration: Calibration | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> Scores:
    """Score every channel of an analysed model; see `onnxprune.criteria.scoring.score` for the arguments.

    Args:
        params: parameters of the criterion, if it is given by name.

    Raises:
        OnnxPruneError: the groups are another model's; unknown criterion or parameter; weights that are not finite.
    """
    if groups.source is not model and groups.source.fingerprint != model.fingerprint:
        raise OnnxPruneError("these groups belong to another model", fix="analyze this one")
    return score_groups(groups, criterion, reduce=reduce, calibration=calibration, progress=progress, **params)


def plan(
    scores: Scores,
    target: Target | None = None,
    *,
    ratio: float | None = None,
    curves: Curves | None = None,
    min_group_accuracy: float | None = None,
    max_loss: float | None = None,
    latency: LatencyPredictor | None = None,
    allocator: str | None = None,
    normalize: str | None = None,
    constraints: Constraints | None = None,
) -> Plan:
    """Decide which channels to remove; see `onnxprune.planning.planner.plan` for the arguments.

    Raises:
        OnnxPruneError: a share out of range, a pattern that matches nothing, a target that cannot be reached.
    """
    return make_plan(
        scores, target, ratio=ratio, curves=curves, min_group_accuracy=min_group_accuracy, max_loss=max_loss,
        latency=latency, allocator=allocator, normalize=normalize, constraints=constraints, tool=version,
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
    """Strips, verifies and signs.

    Args:
        model: the original.
        plan: what to remove.
        analysis: of the model, if at hand.
        check: prove the result.
        feeds, tolerance, device, threads, seed: of the proof, see `onnxprune.verification.verify`.

    Raises:
        OnnxPruneError: the plan does not fit.
        VerificationError: the result is not what the masked original computes.
    """
    if analysis is None:
        analysis = analyze_for(model, plan)
    pruned = Pipeline([StripChannels(plan, analysis)])(analysis.model)
    check_weights(pruned.graph)
    pruned = pruned.with_metadata(
        {f"{PROVENANCE}.version": version, f"{PROVENANCE}.plan": plan.digest, f"{PROVENANCE}.source": plan.model}
    )
    proof = None
    if check:
        proof = verify(
            analysis, plan, pruned, feeds=feeds, tolerance=tolerance, device=device, threads=threads, seed=seed
        )
    cost = CostModel(analysis)
    return Compiled(pruned, plan, analysis, cost.baseline, cost.cost(analysis.kept(plan)), proof)


def sparsify(model: Model, rule: SparsifyWeights) -> Model:
    """The model with its smallest weights zero, and its provenance in the metadata.

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


def apply(model: Model, plan: Plan, *, analysis: Analysis | None = None, check: bool = True) -> Model:
    """The pruned model: stripped, verified, with its provenance in the metadata. See `compile_plan`."""
    return compile_plan(model, plan, analysis=analysis, check=check).model
