"""onnxprune: a structured-pruning compiler for ONNX.

    import onnxprune

    result = onnxprune.prune("model.onnx", target="macs=0.5", data="images/")
    result.save("small.onnx")

Functions, in the order of the job:

    load, save            read and write a model
    load_data             read samples, with labels or without
    prune                 run the full pipeline: score, plan, remove, prove, recover
    frontier              measure accuracy over cost

    analyze               find the channels that can be removed
    score                 score every channel by a criterion
    sensitivity           measure a metric as the channels of each group are removed
    latency_model         predict the latency of pruned models on this machine
    plan, plan_steps      choose the channels to remove, at once or in steps
    apply, compile_plan   remove the channels of a plan and prove the result
    verify                prove a pruned model against its original

    recover               recover accuracy without training
    retrain               train a pruned model, with the original as teacher
    to_torch, write_back  train a model in your own PyTorch loop
    evaluate              measure accuracy
    bench                 measure latency

A model is a `Model`, the path of a file or an `onnx.ModelProto`; data is `Data` or a source that `load_data` reads.
Options are keyword arguments with the names and defaults of the command line.

Names are loaded on first use: `import onnxprune` loads neither torch nor onnxruntime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune._utils.lazy_names import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxprune.analysis.cost import Cost as Cost
    from onnxprune.analysis.cost import CostModel as CostModel
    from onnxprune.analysis.coupling import Analysis as Analysis
    from onnxprune.analysis.coupling import Group as Group
    from onnxprune.criteria.scoring import Scores as Scores
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.errors import VerificationError as VerificationError
    from onnxprune.execution.calibration import Calibration as Calibration
    from onnxprune.execution.data import Data as Data
    from onnxprune.execution.data import Preprocess as Preprocess
    from onnxprune.execution.data import load_data as load_data
    from onnxprune.execution.tasks.evaluation import Accuracy as Accuracy
    from onnxprune.execution.tasks.evaluation import Evaluation as Evaluation
    from onnxprune.ir.model import Model as Model
    from onnxprune.ir.reader import load as load
    from onnxprune.ir.writer import save as save
    from onnxprune.ir.writer import to_proto as to_proto
    from onnxprune.latency.bench import BenchResult as BenchResult
    from onnxprune.latency.bench import BenchResults as BenchResults
    from onnxprune.latency.prediction import LatencyModel as LatencyModel
    from onnxprune.latency.prediction import latency_model as latency_model
    from onnxprune.options import TaskOptions as TaskOptions
    from onnxprune.pipeline import Compiled as Compiled
    from onnxprune.pipeline import Frontier as Frontier
    from onnxprune.pipeline import FrontierPoint as FrontierPoint
    from onnxprune.pipeline import Pruned as Pruned
    from onnxprune.pipeline import analyze as analyze
    from onnxprune.pipeline import apply as apply
    from onnxprune.pipeline import bench as bench
    from onnxprune.pipeline import compile_plan as compile_plan
    from onnxprune.pipeline import evaluate as evaluate
    from onnxprune.pipeline import frontier as frontier
    from onnxprune.pipeline import plan as plan
    from onnxprune.pipeline import plan_steps as plan_steps
    from onnxprune.pipeline import prune as prune
    from onnxprune.pipeline import recover as recover
    from onnxprune.pipeline import retrain as retrain
    from onnxprune.pipeline import score as score
    from onnxprune.pipeline import to_torch as to_torch
    from onnxprune.pipeline import verify as verify
    from onnxprune.pipeline import write_back as write_back
    from onnxprune.planning.constraints import Constraints as Constraints
    from onnxprune.planning.curves import Curves as Curves
    from onnxprune.planning.curves import load_curves as load_curves
    from onnxprune.planning.curves import save_curves as save_curves
    from onnxprune.planning.sensitivity_sweep import sensitivity as sensitivity
    from onnxprune.planning.targets import Target as Target
    from onnxprune.plans import Plan as Plan
    from onnxprune.plans import Removal as Removal
    from onnxprune.plans import load_plan as load_plan
    from onnxprune.plans import save_plan as save_plan
    from onnxprune.recovery.recover import Recovered as Recovered
    from onnxprune.training import Settings as Settings
    from onnxprune.verification import Verification as Verification

# In the order of the job: each function with the types of its arguments and results.
_MODULES = {
    "prune": "pipeline", "Pruned": "pipeline",
    "frontier": "pipeline", "Frontier": "pipeline", "FrontierPoint": "pipeline",
    "load": "ir.reader", "save": "ir.writer", "Model": "ir.model", "to_proto": "ir.writer",
    "load_data": "execution.data", "Data": "execution.data", "Preprocess": "execution.data",
    "Calibration": "execution.calibration",
    "analyze": "pipeline", "Analysis": "analysis.coupling", "Group": "analysis.coupling",
    "CostModel": "analysis.cost", "Cost": "analysis.cost",
    "score": "pipeline", "Scores": "criteria.scoring",
    "sensitivity": "planning.sensitivity_sweep", "Curves": "planning.curves", "load_curves": "planning.curves",
    "save_curves": "planning.curves",
    "latency_model": "latency.prediction", "LatencyModel": "latency.prediction",
    "plan": "pipeline", "plan_steps": "pipeline", "Target": "planning.targets",
    "Constraints": "planning.constraints", "Plan": "plans", "Removal": "plans", "load_plan": "plans",
    "save_plan": "plans",
    "apply": "pipeline", "compile_plan": "pipeline", "Compiled": "pipeline",
    "verify": "pipeline", "Verification": "verification",
    "recover": "pipeline", "Recovered": "recovery.recover",
    "retrain": "pipeline", "Settings": "training",
    "to_torch": "pipeline", "write_back": "pipeline",
    "evaluate": "pipeline", "Evaluation": "execution.tasks.evaluation", "Accuracy": "execution.tasks.evaluation",
    "TaskOptions": "options",
    "bench": "pipeline", "BenchResults": "latency.bench", "BenchResult": "latency.bench",
    "OnnxPruneError": "errors", "VerificationError": "errors",
}  # fmt: skip

__all__ = [*_MODULES, "__version__"]


__getattr__ = lazy_names(__name__, _MODULES)[0]


def __dir__() -> list[str]:
    return __all__
