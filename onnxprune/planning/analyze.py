"""Analysis of a model: the value that scores and plans are made from."""

from __future__ import annotations

from onnxprune._utils.processes.gc_pause import gc_paused
from onnxprune.analysis.coupling import Analysis, couple
from onnxprune.ir.input_sizes import with_shapes
from onnxprune.ir.model import Model
from onnxprune.ops import CouplingOptions
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.passes.strip_channels import analysis_options, check_plan
from onnxprune.plans import Plan


def analyze(model: Model, *, attention: str = "heads", include_inexact: bool = False) -> Analysis:
    """Normalize a model and find its channels: the removable ones, and the locked ones with the reason.

    Args:
        model: Original model; it is not changed.
        attention: Channels to free in multi-head attention, "heads" or "head_dim".
        include_inexact: Free also channels that statistics (LayerNorm, GroupNorm, a mean, ...) run over. Their removal
            is not masking: it is proved against the original whose statistics run over the kept channels.
    """
    with gc_paused():
        normal = Pipeline(NORMALIZE).run(model)
        choices = CouplingOptions(attention, include_inexact)
        return couple(normal.model, shapes=normal.shapes, source=model, choices=choices)


def analyze_for(model: Model, plan: Plan) -> Analysis:
    """Return the analysis that a plan was made with.

    Sizes of dynamic inputs are those given for the model, or else those that the plan records.

    Raises:
        OnnxPruneError: the plan does not fit the model.
    """
    if not model.sizes and (not plan.model or plan.model == model.fingerprint):
        model = with_shapes(model, plan.options.get("shapes"))
    normal = Pipeline(NORMALIZE).run(model)
    analysis = couple(normal.model, shapes=normal.shapes, source=model, **analysis_options(plan))
    check_plan(plan, analysis)
    return analysis
