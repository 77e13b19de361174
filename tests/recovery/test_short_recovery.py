"""Short recoveries of several plans: they rank plans, on samples of their own, and change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import load_data, subset
from onnxprune.ir.model import Model
from onnxprune.plans import Plan
from onnxprune.recovery.short_recovery import SAMPLES, ShortRecovery

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return op.analyze(op.load(DIGITS))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(subset(load_data("digits:train"), 300), threads=1)


def pruned(analysis: Analysis, share: float) -> tuple[Plan, Model]:
    plan = op.plan(op.score(analysis, "l2"), f"macs={share}", constraints=op.Constraints(round_to=1))
    return plan, op.compile_plan(analysis.source, plan, analysis=analysis, check=False).model


def test_plans_that_remove_more_are_further_from_the_original(analysis: Analysis, calibration: Calibration) -> None:
    trials = ShortRecovery(analysis, calibration)
    distances = [trials.distance(*pruned(analysis, share)) for share in (0.9, 0.4, 0.1)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_a_distance_does_not_depend_on_the_plans_before(analysis: Analysis, calibration: Calibration) -> None:
    case, shared = pruned(analysis, 0.4), ShortRecovery(analysis, calibration)
    shared.distance(*pruned(analysis, 0.2))
    assert shared.distance(*case) == ShortRecovery(analysis, calibration).distance(*case)


def test_the_recovery_is_worth_it_and_leaves_the_pruned_model_alone(
    analysis: Analysis, calibration: Calibration
) -> None:
    plan, model = pruned(analysis, 0.4)
    before = {n: np.array(t.values) for n, t in model.graph.tensors().items() if hasattr(t, "values")}
    trials = ShortRecovery(analysis, calibration)
    assert trials.distance(plan, model) < trials.evaluator.distance(model) / 2
    for name, values in before.items():
        np.testing.assert_array_equal(model.graph.tensors()[name].values, values)


@pytest.mark.parametrize("count", [16, 129, 300])
def test_weights_are_fitted_on_other_samples_than_compared(
    analysis: Analysis, calibration: Calibration, count: int
) -> None:
    trials = ShortRecovery(analysis, Calibration(subset(calibration.data, count), threads=1))
    fit, compared = (part.data.x for part in (trials.fit, trials.evaluator.calibration))
    assert len(fit) == len(compared) == min(SAMPLES, count // 2)
    assert not {x.tobytes() for x in fit} & {x.tobytes() for x in compared}
