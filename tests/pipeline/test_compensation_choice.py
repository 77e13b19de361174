"""The choice of `remaining` of `obs` by short recoveries, alone, in `prune` and along paths."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.cli import main
from onnxprune.criteria.obs import REMAINING, Obs
from onnxprune.criteria.scoring import Scores
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import load_data, subset
from onnxprune.pipeline.budget.path import PrunePath
from onnxprune.pipeline.compensation_choice import LEAST, VALUES, with_chosen_remaining
from onnxprune.plans import Plan
from onnxprune.recovery.short_recovery import ShortRecovery

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
SINGLE = op.Constraints(round_to=1)
Planner = Callable[[Scores], Plan]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return op.analyze(op.load(DIGITS))


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(subset(load_data("digits:train"), 96), threads=1)


@pytest.fixture(scope="module")
def scores(analysis: Analysis, calibration: Calibration) -> Scores:
    return op.score(analysis, "obs", data=calibration)


def planner(found: Scores) -> Plan:
    return op.plan(found, "macs=0.4", constraints=SINGLE)


def remaining(plan: Plan) -> object:
    return plan.criterion["remaining"]


@pytest.fixture
def distances(monkeypatch: pytest.MonkeyPatch) -> dict[object, float]:
    """Distances by the value that a plan was made with; plans that are tried without one are 1 away."""
    table: dict[object, float] = {}
    monkeypatch.setattr(ShortRecovery, "distance", lambda self, plan, pruned: table.get(remaining(plan), 1.0))
    return table


@pytest.mark.parametrize("nearest", VALUES)
def test_the_value_of_the_nearest_plan_is_used(
    scores: Scores, calibration: Calibration, distances: dict[object, float], nearest: float
) -> None:
    distances[nearest] = 0.5
    found = with_chosen_remaining(scores, planner, calibration)
    assert found.criterion["remaining"] == nearest
    assert planner(found).groups == planner(op.score(scores.analysis, "obs", params={"remaining": nearest},
                                                     data=calibration)).groups  # fmt: skip


def test_the_usual_value_is_used_where_no_plan_is_nearer(
    scores: Scores, calibration: Calibration, distances: dict[object, float]
) -> None:
    assert with_chosen_remaining(scores, planner, calibration).criterion["remaining"] == REMAINING
    distances.update(dict.fromkeys(VALUES, float("inf")))
    assert with_chosen_remaining(scores, planner, calibration).criterion["remaining"] == REMAINING


def test_the_distance_is_that_of_short_recoveries(scores: Scores, calibration: Calibration) -> None:
    seen: list[tuple[int, int]] = []
    found = with_chosen_remaining(scores, planner, calibration, lambda done, total: seen.append((done, total)))
    trials, by_value = ShortRecovery(scores.analysis, calibration), {}
    for value in VALUES:
        plan = planner(op.score(scores.analysis, "obs", params={"remaining": value}, data=calibration))
        model = op.compile_plan(scores.analysis.source, plan, analysis=scores.analysis, check=False).model
        by_value[value] = trials.distance(plan, model)
    assert by_value[found.criterion["remaining"]] == pytest.approx(min(by_value.values()))
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def never(*_: Any) -> float:
    raise AssertionError("no plan may be recovered here")


def refused(_: Scores) -> Plan:
    raise op.OnnxPruneError("the target cannot be reached")


@pytest.mark.parametrize(
    ("plan", "count"),
    [
        (planner, LEAST - 1),
        (refused, LEAST),
        (lambda found: op.plan(found, ratio=0.5, constraints=SINGLE), LEAST),  # the order within groups is the same
    ],
    ids=["few samples", "refused target", "one plan"],
)
def test_nothing_is_recovered_where_there_is_no_choice(
    scores: Scores, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, plan: Planner, count: int
) -> None:
    monkeypatch.setattr(ShortRecovery, "distance", never)
    some = Calibration(subset(calibration.data, count), threads=1)
    assert with_chosen_remaining(scores, plan, some).criterion["remaining"] == REMAINING


@pytest.mark.parametrize(
    ("criterion", "params"), [("l2", {}), ("obs", {"remaining": 0.5}), ("obs", {"weigh": "layer"})]
)
def test_scores_that_leave_nothing_open_are_returned_as_they_are(
    analysis: Analysis, calibration: Calibration, monkeypatch: pytest.MonkeyPatch, criterion: str,
    params: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.setattr(ShortRecovery, "distance", never)
    found = op.score(analysis, criterion, params=params, data=calibration)
    assert with_chosen_remaining(found, planner, calibration) is found


# ------------------------------------------------------------------------------------------------- whole commands


def test_prune_chooses_only_where_the_weights_are_recovered(
    calibration: Calibration, distances: dict[object, float]
) -> None:
    distances[0.04] = 0.5
    options: dict[str, Any] = {"target": "macs=0.4", "data": calibration, "constraints": SINGLE}
    assert remaining(op.prune(DIGITS, **options).plan) == 0.04
    assert remaining(op.prune(DIGITS, params={"remaining": 0.5}, criterion="obs", **options).plan) == 0.5
    assert remaining(op.prune(DIGITS, recover=False, **options).plan) == "auto"


@pytest.mark.parametrize(("more", "expected"), [([], 0.016), (["--no-recover"], "auto"), (["-p", "remaining=0.3"], 0.3),
                                                (["-p", "remaining=auto"], 0.016)])  # fmt: skip
def test_command_line_chooses_likewise(
    distances: dict[object, float], tmp_path: Path, more: list[str], expected: object
) -> None:
    distances[0.016] = 0.5
    plan = tmp_path / "plan.json"
    command = ["prune", str(DIGITS), "-o", str(tmp_path / "s.onnx"), "--target", "macs=0.4", "--data", "digits:train"]
    command += ["-c", "obs", "--images", "96", "--round-to", "1", "--plan", str(plan), "--json", *more]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert remaining(op.load_plan(plan)) == expected
    assert ("-p remaining=0.016" in done.stderr) == (expected == 0.016)
    json.loads(done.stdout)


def test_a_path_chooses_whenever_it_scores_anew(
    analysis: Analysis, calibration: Calibration, distances: dict[object, float]
) -> None:
    distances[0.1] = 0.5
    path = PrunePath(analysis, calibration, constraints=SINGLE, params={"rows": 5000})
    first = path.point(0.8)
    assert remaining(first.plan) == 0.1
    distances.update({0.1: 1.0, 0.04: 0.5})
    near, far = path.point(0.6, first), path.point(0.2, first)
    assert (near.scored, remaining(near.plan)) == (1.0, 0.1)
    assert far.scored < 1.0
    assert remaining(far.plan) == 0.04
    for name, removal in first.plan.groups.items():
        assert set(removal.removed) <= set(far.plan.groups[name].removed)


def test_a_criterion_as_an_object_is_settled_as_well(
    analysis: Analysis, calibration: Calibration, distances: dict[object, float]
) -> None:
    distances[0.04] = 0.5
    assert remaining(PrunePath(analysis, calibration, criterion=Obs(), constraints=SINGLE).point(0.5).plan) == 0.04


@pytest.mark.parametrize(("recover", "expected"), [("true", 0.1), ("false", "auto")])
def test_recipes_choose_likewise(
    distances: dict[object, float], tmp_path: Path, recover: str, expected: object
) -> None:
    distances[0.1] = 0.5
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "r"\nmodel = "{DIGITS.as_posix()}"\ndata = "digits:train"\ntest_data = "digits:test"\n'
        '[[step]]\ndo = "score"\ncriterion = "obs"\nimages = 96\n'
        f'[[step]]\ndo = "prune"\ntarget = "macs=0.4"\nround_to = 1\nrecover = {recover}\n'
    )
    done = CliRunner().invoke(main, ["run", str(recipe), "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    [plan] = (tmp_path / "run").rglob("plan.json")
    assert remaining(op.load_plan(plan)) == expected
