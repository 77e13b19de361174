"""Short recoveries on a few samples: plans of one model are compared before one of them is recovered in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.calibration import Calibration
from onnxprune.ir.model import Model
from onnxprune.options.tasks import TaskOptions
from onnxprune.plans import Plan
from onnxprune.recovery._holdout_evaluator import MEMORY, HoldoutEvaluator, bounded_batch
from onnxprune.recovery._original_activations import OriginalActivations
from onnxprune.recovery.reconstruct_weights import ReconstructWeights

SAMPLES = 64  # each for solving and for comparing
ROWS = 4000
ROUNDS = 1
RIDGES = (1e-2, 1.0)  # values of lambda that few samples choose between


class ShortRecovery:
    """Layer-wise least squares on few samples and rows, with activations of the original that are computed once.

    Distances are much larger than after a full recovery, but plans rank alike: see docs/recover.md.

    Args:
        analysis: Coupling analysis of the original.
        calibration: Samples; every other one is for comparing, `SAMPLES` of each at most.
    """

    def __init__(self, analysis: Analysis, calibration: Calibration) -> None:
        bounded = bounded_batch(analysis, calibration)
        fit, compared = (
            replace(bounded, data=bounded.data.take(np.arange(start, len(bounded), 2))).spread(SAMPLES)
            for start in (0, 1)
        )
        self.analysis, self.fit = analysis, fit
        self.evaluator = HoldoutEvaluator(analysis, compared, TaskOptions(), MEMORY)
        self.originals = OriginalActivations(MEMORY)

    def distance(self, plan: Plan, pruned: Model) -> float:
        """Return the distance of a plan's outputs from the original's after its short recovery.

        Args:
            plan: Plan on the original.
            pruned: Model pruned by it; it is not changed.

        Raises:
            OnnxPruneError: See `ReconstructWeights`.
        """
        solve = ReconstructWeights(
            plan, self.analysis, self.fit, rows=ROWS, rounds=ROUNDS, ridges=RIDGES,
            originals=self.originals,
        )  # fmt: skip
        return self.evaluator.distance(solve(pruned))
