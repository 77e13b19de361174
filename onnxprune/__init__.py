"""onnxprune: a structured-pruning compiler for ONNX.

    import onnxprune as op

    model = op.load("resnet50.onnx")
    groups = op.analyze(model)
    scores = op.score(model, groups, "dscore")
    plan = op.plan(scores, op.Target(macs=0.5))
    pruned = op.apply(model, plan)
    op.save(pruned, "resnet50-small.onnx")

Names are loaded on first use: `import onnxprune` itself costs next to nothing, and no command loads torch or
onnxruntime before it needs them. No submodule may bear the name of a public function: importing it would hide that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxprune.analysis.cost import Cost as Cost
    from onnxprune.analysis.cost import CostModel as CostModel
    from onnxprune.analysis.coupling import Analysis as Analysis
    from onnxprune.analysis.coupling import Group as Group
    from onnxprune.criteria.scoring import Scores as Scores
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.errors import VerificationError as VerificationError
    from onnxprune.execution.data import Data as Data
    from onnxprune.execution.data import Preprocess as Preprocess
    from onnxprune.execution.data import load_data as load_data
    from onnxprune.execution.evaluation import evaluate as evaluate
    from onnxprune.ir.model import Model as Model
    from onnxprune.ir.model import load as load
    from onnxprune.ir.model import save as save
    from onnxprune.ir.model import to_proto as to_proto
    from onnxprune.latency.prediction import LatencyModel as LatencyModel
    from onnxprune.latency.prediction import latency_model as latency_model
    from onnxprune.pipeline import Compiled as Compiled
    from onnxprune.pipeline import analyze as analyze
    from onnxprune.pipeline import apply as apply
    from onnxprune.pipeline import compile_plan as compile_plan
    from onnxprune.pipeline import plan as plan
    from onnxprune.pipeline import score as score
    from onnxprune.planning.constraints import Constraints as Constraints
    from onnxprune.planning.curves import Curves as Curves
    from onnxprune.planning.curves import load_curves as load_curves
    from onnxprune.planning.curves import save_curves as save_curves
    from onnxprune.planning.iterative import plan_steps as plan_steps
    from onnxprune.planning.sensitivity_sweep import sensitivity as sensitivity
    from onnxprune.planning.targets import Target as Target
    from onnxprune.plans import Plan as Plan
    from onnxprune.plans import Removal as Removal
    from onnxprune.plans import load_plan as load_plan
    from onnxprune.plans import save_plan as save_plan
    from onnxprune.torch_bridge import to_torch as to_torch
    from onnxprune.torch_bridge import write_back as write_back
    from onnxprune.training import Settings as Settings
    from onnxprune.training import retrain as retrain
    from onnxprune.verification import Verification as Verification
    from onnxprune.verification import verify as verify

_WHERE = {
    "Analysis": "analysis.coupling", "Compiled": "pipeline", "Constraints": "planning.constraints",
    "Cost": "analysis.cost", "CostModel": "analysis.cost", "Curves": "planning.curves", "Data": "execution.data",
    "Group": "analysis.coupling", "LatencyModel": "latency.prediction", "Model": "ir.model",
    "OnnxPruneError": "errors", "Plan": "plans", "Preprocess": "execution.data", "Removal": "plans",
    "Scores": "criteria.scoring", "Settings": "training", "Target": "planning.targets",
    "Verification": "verification", "VerificationError": "errors", "analyze": "pipeline", "apply": "pipeline",
    "compile_plan": "pipeline", "evaluate": "execution.evaluation", "latency_model": "latency.prediction",
    "load": "ir.model", "load_curves": "planning.curves", "load_data": "execution.data", "load_plan": "plans",
    "plan": "pipeline", "plan_steps": "planning.iterative", "retrain": "training", "save": "ir.model",
    "save_curves": "planning.curves", "save_plan": "plans", "score": "pipeline",
    "sensitivity": "planning.sensitivity_sweep", "to_proto": "ir.model", "to_torch": "torch_bridge",
    "verify": "verification", "write_back": "torch_bridge",
}  # fmt: skip

__all__ = [*sorted(_WHERE), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    value = getattr(import_module(f"onnxprune.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
