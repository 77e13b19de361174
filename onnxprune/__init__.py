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
    from onnxprune.cost import Cost as Cost
    from onnxprune.cost import CostModel as CostModel
    from onnxprune.coupling import Analysis as Analysis
    from onnxprune.coupling import Group as Group
    from onnxprune.curves import Curves as Curves
    from onnxprune.curves import load_curves as load_curves
    from onnxprune.curves import save_curves as save_curves
    from onnxprune.data import Data as Data
    from onnxprune.data import Preprocess as Preprocess
    from onnxprune.data import load_data as load_data
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.errors import VerificationError as VerificationError
    from onnxprune.evaluation import evaluate as evaluate
    from onnxprune.iterative import plan_steps as plan_steps
    from onnxprune.latency_prediction import LatencyModel as LatencyModel
    from onnxprune.latency_prediction import latency_model as latency_model
    from onnxprune.limits import Constraints as Constraints
    from onnxprune.model import Model as Model
    from onnxprune.model import load as load
    from onnxprune.model import save as save
    from onnxprune.model import to_proto as to_proto
    from onnxprune.pipeline import Compiled as Compiled
    from onnxprune.pipeline import analyze as analyze
    from onnxprune.pipeline import apply as apply
    from onnxprune.pipeline import compile_plan as compile_plan
    from onnxprune.pipeline import plan as plan
    from onnxprune.pipeline import score as score
    from onnxprune.plans import Plan as Plan
    from onnxprune.plans import Removal as Removal
    from onnxprune.plans import load_plan as load_plan
    from onnxprune.plans import save_plan as save_plan
    from onnxprune.scoring import Scores as Scores
    from onnxprune.sweep import sensitivity as sensitivity
    from onnxprune.targets import Target as Target
    from onnxprune.torch_bridge import to_torch as to_torch
    from onnxprune.torch_bridge import write_back as write_back
    from onnxprune.training import Settings as Settings
    from onnxprune.training import retrain as retrain
    from onnxprune.verification import Verification as Verification
    from onnxprune.verification import verify as verify

_WHERE = {
    "Analysis": "coupling", "Compiled": "pipeline", "Constraints": "limits", "Cost": "cost", "CostModel": "cost",
    "Curves": "curves", "Data": "data", "Group": "coupling", "LatencyModel": "latency_prediction", "Model": "model",
    "OnnxPruneError": "errors", "Plan": "plans", "Preprocess": "data", "Removal": "plans", "Scores": "scoring",
    "Settings": "training", "Target": "targets", "Verification": "verification", "VerificationError": "errors",
    "analyze": "pipeline", "apply": "pipeline", "compile_plan": "pipeline", "evaluate": "evaluation",
    "latency_model": "latency_prediction", "load": "model", "load_curves": "curves", "load_data": "data",
    "load_plan": "plans", "plan": "pipeline", "plan_steps": "iterative", "retrain": "training", "save": "model",
    "save_curves": "curves", "save_plan": "plans", "score": "pipeline", "sensitivity": "sweep", "to_proto": "model",
    "to_torch": "torch_bridge", "verify": "verification", "write_back": "torch_bridge",
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
