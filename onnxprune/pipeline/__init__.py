"""Stages from a model to a smaller, proved one, and jobs that run several of them in one call.

    load -> analyze -> score -> plan -> apply (strip, prove) -> recover, retrain -> save

`_stages` holds the stages, `_jobs` the jobs, `_inputs` the forms in which models, plans and
data are accepted.

Names are loaded on first use, so that an analysis does not import recovery and budgets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune._utils.lazy_names import lazy_names

if TYPE_CHECKING:
    from onnxprune.pipeline._inputs import CurvesSource as CurvesSource
    from onnxprune.pipeline._inputs import DataSource as DataSource
    from onnxprune.pipeline._inputs import ModelSource as ModelSource
    from onnxprune.pipeline._inputs import PlanSource as PlanSource
    from onnxprune.pipeline._inputs import PreprocessSource as PreprocessSource
    from onnxprune.pipeline._inputs import as_calibration as as_calibration
    from onnxprune.pipeline._inputs import as_model as as_model
    from onnxprune.pipeline._inputs import as_plan as as_plan
    from onnxprune.pipeline._jobs import bench as bench
    from onnxprune.pipeline._jobs import evaluate as evaluate
    from onnxprune.pipeline._jobs import recover as recover
    from onnxprune.pipeline._jobs import retrain as retrain
    from onnxprune.pipeline._jobs import to_torch as to_torch
    from onnxprune.pipeline._jobs import write_back as write_back
    from onnxprune.pipeline._prune import Pruned as Pruned
    from onnxprune.pipeline._prune import PruneOptions as PruneOptions
    from onnxprune.pipeline._prune import prune as prune
    from onnxprune.pipeline._stages import Compiled as Compiled
    from onnxprune.pipeline._stages import analyze as analyze
    from onnxprune.pipeline._stages import analyze_for as analyze_for
    from onnxprune.pipeline._stages import apply as apply
    from onnxprune.pipeline._stages import compile_plan as compile_plan
    from onnxprune.pipeline._stages import plan as plan
    from onnxprune.pipeline._stages import plan_steps as plan_steps
    from onnxprune.pipeline._stages import score as score
    from onnxprune.pipeline._stages import sparsify as sparsify
    from onnxprune.pipeline._stages import verify as verify
    from onnxprune.pipeline.budget.frontier import Frontier as Frontier
    from onnxprune.pipeline.budget.frontier import FrontierPoint as FrontierPoint
    from onnxprune.pipeline.budget.frontier import load_frontier as load_frontier
    from onnxprune.pipeline.budget.frontier_job import frontier as frontier
    from onnxprune.pipeline.budget.frontier_run import FrontierSettings as FrontierSettings
    from onnxprune.pipeline.budget.frontier_run import measure_frontier as measure_frontier
    from onnxprune.pipeline.budget.judge import Judgement as Judgement
    from onnxprune.pipeline.budget.judge import held_out as held_out
    from onnxprune.pipeline.budget.max_drop import BudgetPoint as BudgetPoint
    from onnxprune.pipeline.budget.max_drop import BudgetSearch as BudgetSearch
    from onnxprune.pipeline.budget.max_drop import prune_to_budget as prune_to_budget
    from onnxprune.pipeline.budget.path import PrunePath as PrunePath
    from onnxprune.pipeline.budget.point_store import PointRecord as PointRecord
    from onnxprune.pipeline.budget.point_store import PointStore as PointStore
    from onnxprune.pipeline.budget.polish import Polished as Polished
    from onnxprune.pipeline.budget.polish import polish as polish
    from onnxprune.pipeline.budget.quantize import quantize_int8 as quantize_int8

# Module: its public names.
_MODULES = {
    "_inputs": "CurvesSource DataSource ModelSource PlanSource PreprocessSource as_calibration as_model as_plan",
    "_jobs": "bench evaluate recover retrain to_torch write_back",
    "_prune": "PruneOptions Pruned prune",
    "_stages": "Compiled analyze analyze_for apply compile_plan plan plan_steps score sparsify verify",
    "budget.frontier": "Frontier FrontierPoint load_frontier",
    "budget.frontier_job": "frontier",
    "budget.frontier_run": "FrontierSettings measure_frontier",
    "budget.judge": "Judgement held_out",
    "budget.max_drop": "BudgetPoint BudgetSearch prune_to_budget",
    "budget.path": "PrunePath",
    "budget.point_store": "PointRecord PointStore",
    "budget.polish": "Polished polish",
    "budget.quantize": "quantize_int8",
}
__getattr__, __dir__ = lazy_names(
    __name__, {name: module for module, names in _MODULES.items() for name in names.split()}
)
