"""Pruning in steps: one plan against the original, new scores between steps, limits of the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import FakeLatency, kept_counts, share, wide_model
from random_graphs.graphs import PROPERTY, Spec, build, specs

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria import all_criteria
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, apply, compile_plan, plan, score
from onnxprune.planning import iterative
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.iterative import plan_steps, stripped
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, Removal

FINE = Constraints(round_to=1, max_ratio=0.99)
DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
SPEC = Spec(("projection", "residual", "attention", "dense", "conv", "conv"), seed=4)


@pytest.fixture(scope="module")
def wide() -> Model:
    return wide_model()


@pytest.fixture(scope="module")
def groups(wide: Model) -> Analysis:
    return analyze(wide)


ASKED: list[dict[str, Any]] = [
    {"target": Target(macs=0.5)},
    {"target": Target(channels=0.6), "allocator": "uniform", "normalize": "max"},
    {"target": Target(params=0.6), "allocator": "saving"},
    {"target": Target(memory=0.7), "constraints": Constraints(round_to=4, overrides={"w0": 0.25})},
    {"ratio": 0.4},
]


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_one_step_is_no_steps(wide: Model, groups: Analysis, asked: dict[str, Any], schedule: str) -> None:
    once = plan(score(groups, "fpgm", params={"mix_norm": 0.1}, reduce="sum"), **asked)
    made = plan_steps(groups, "fpgm", steps=1, schedule=schedule, mix_norm=0.1, reduce="sum", **asked)
    assert made.to_json() == once.to_json()


def test_one_step_is_no_steps_for_latency(wide: Model, groups: Analysis) -> None:
    fake = FakeLatency(groups)
    for allocator in (None, "global"):
        options: dict[str, Any] = {"latency": fake, "allocator": allocator}
        once = plan(score(groups), Target(latency=0.5), **options)
        assert plan_steps(groups, "l2", Target(latency=0.5), steps=1, **options).to_json() == once.to_json()


@pytest.mark.parametrize("asked", [{"target": Target(macs=0.4)}, {"target": Target(channels=0.43)}, {"ratio": 0.5}])
@pytest.mark.parametrize(("steps", "schedule"), [(2, "linear"), (8, "geometric")])
def test_steps_meet_what_one_step_meets(groups: Analysis, asked: dict[str, Any], steps: int, schedule: str) -> None:
    made = plan_steps(groups, "l1", steps=steps, schedule=schedule, constraints=FINE, **asked)
    if "target" in asked:
        target = asked["target"]
        assert abs(share(made, groups, target.measure) - target.share) <= 0.01
    else:
        assert kept_counts(made, groups) == {"w0": 32, "w1": 48}
    assert made.criterion["steps"] == steps
    assert made.criterion["schedule"] == schedule
    assert made.model == groups.source.fingerprint


@PROPERTY(max_examples=40)
@given(
    specs(),
    st.sampled_from(("l1", "fpgm", "dscore", "random")),
    st.sampled_from((Target(macs=0.5), Target(params=0.4), Target(channels=0.43), 0.5)),
    st.integers(2, 5),
    st.sampled_from(iterative.SCHEDULES),
    st.sampled_from((1, 4)),
)
def test_composed_plans_are_exact_and_keep_the_limits(
    spec: Spec, criterion: str, asked: Target | float, steps: int, schedule: str, block: int
) -> None:
    model = load(build(spec))
    analysis = analyze(model)
    first = analysis.groups[0].name
    constraints = Constraints(round_to=block, max_ratio=0.6, overrides={first: {"min_channels": 3}})
    target, ratio = (asked, None) if isinstance(asked, Target) else (None, asked)
    try:
        once = plan(score(analysis, criterion), target, ratio=ratio, constraints=constraints)
    except OnnxPruneError as err:
        assert "cannot be reached" in str(err)  # noqa: PT017
        with pytest.raises(OnnxPruneError, match="cannot be reached") as caught:
            plan_steps(
                analysis, criterion, target, ratio=ratio, steps=steps, schedule=schedule, constraints=constraints
            )
        assert f"={target.share if target else ratio:g} cannot" in str(caught.value)  # the goal, not a step's share
        return
    made = plan_steps(analysis, criterion, target, ratio=ratio, steps=steps, schedule=schedule, constraints=constraints)
    counts = kept_counts(made, analysis)
    for g in analysis.groups:
        assert counts[g.name] >= min(g.channels, max(1, int(np.ceil(g.channels * 0.4 - 1e-9))))
    assert counts[first] >= min(3, analysis[first].channels)
    if target is None:
        assert counts == kept_counts(once, analysis)
    elif abs(share(once, analysis, target.measure) - target.share) <= 0.01:
        # Steps stop short by whole blocks, so what one step meets, several meet as nearly as a channel lets them.
        over = share(made, analysis, target.measure) - target.share
        assert over <= max(0.01, largest_channel(analysis, target.measure))
    compile_plan(model, made, analysis=analysis)


def largest_channel(analysis: Analysis, measure: str) -> float:
    """The most that one channel is of the whole model."""
    plans = [Plan("", {g.name: Removal(g.channels, (0,))}) for g in analysis.groups if g.channels > 1]
    return max((1 - share(p, analysis, measure) for p in plans), default=0.0)


def by_hand(model: Model, criterion: str, ratios: list[float]) -> dict[str, list[int]]:
    """Prunes a chain of models, each analysed and scored anew, and says what is left of every group's channels."""
    first = analyze(model)
    left = {g.name: list(range(g.channels)) for g in first.groups}
    for ratio in ratios:
        analysis = analyze(model)
        scores = score(analysis, criterion)
        removals = {}
        for g in analysis.groups:
            whole = first[g.name].channels
            count = len(left[g.name]) - (whole - int(whole * ratio + 1e-9))
            removed = sorted(np.argsort(scores.groups[g.name], kind="stable")[:count].tolist())
            removals[g.name] = Removal(g.channels, tuple(removed))
            left[g.name] = [c for i, c in enumerate(left[g.name]) if i not in removed]
        model = apply(model, Plan(model.fingerprint, removals), analysis=analysis)
    return left


@pytest.mark.parametrize("criterion", ["fpgm", "dscore", "l2"])
def test_steps_are_what_pruning_again_and_again_is(wide: Model, groups: Analysis, criterion: str) -> None:
    made = plan_steps(groups, criterion, ratio=0.6, steps=3, constraints=FINE)
    left = by_hand(wide, criterion, [0.2, 0.4, 0.6])
    for g in groups:
        assert sorted(set(range(g.channels)) - set(made.groups[g.name].removed)) == left[g.name]
    once = plan(score(groups, criterion), ratio=0.6, constraints=FINE)
    assert made.groups != once.groups  # new scores make a difference


def test_between_steps_nothing_is_taken_that_the_share_does_not_ask_for(
    groups: Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []
    inner = iterative.stripped

    def spy(analysis: Analysis, made: Plan, pruned: Model | None = None) -> Analysis:
        seen.append(made)
        return inner(analysis, made, pruned)

    monkeypatch.setattr(iterative, "stripped", spy)
    for schedule, wanted in (("linear", (0.85, 0.7, 0.55)), ("geometric", (0.4**0.25, 0.4**0.5, 0.4**0.75))):
        for allocator in ("global", "uniform", "latency", "saving"):
            seen.clear()
            plan_steps(groups, "l2", Target(macs=0.4), steps=4, schedule=schedule, allocator=allocator,
                       latency=FakeLatency(groups, block=8), constraints=Constraints(round_to=8))  # fmt: skip
            shares = [share(made, groups, "macs") for made in seen]
            for got, goal in zip(shares, wanted, strict=True):
                assert goal - 1e-9 <= got <= goal + 0.13  # a block of 8 of w0 is at most an eighth
            assert all(n % 8 == 0 for made in seen for n in kept_counts(made, groups).values())


def test_steps_only_ever_take_more(groups: Analysis, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Plan] = []
    inner = iterative.stripped

    def spy(analysis: Analysis, made: Plan, pruned: Model | None = None) -> Analysis:
        seen.append(made)
        return inner(analysis, made, pruned)

    monkeypatch.setattr(iterative, "stripped", spy)
    made = plan_steps(groups, "random", Target(params=0.3), steps=6, constraints=FINE)
    assert len(seen) >= 2
    for before, after in zip(seen, [*seen[1:], made], strict=True):
        for name, removal in before.groups.items():
            assert set(removal.removed) <= set(after.groups[name].removed)


@PROPERTY(max_examples=30)
@given(specs(), st.sampled_from(("l2", "dscore")), st.sampled_from((0.25, 0.5)))
def test_stripped_analysis_is_that_of_the_small_model(spec: Spec, criterion: str, ratio: float) -> None:
    model = load(build(spec))
    analysis = analyze(model)
    made = plan(score(analysis, "random"), ratio=ratio, constraints=FINE)
    small = stripped(analysis, made)
    ours = score_of(small, criterion)
    assert {n: len(s) for n, s in ours.items()} == kept_counts(made, analysis)
    fresh = analyze(small.model)
    theirs = score_of(fresh, criterion)
    for g in fresh.groups:
        # A Reshape may split the other way round in the small graph; where the channels are the same, so are scores.
        if g.name in ours and places(fresh, g.name) == places(small, g.name):
            np.testing.assert_array_equal(ours[g.name], theirs[g.name])


@pytest.mark.parametrize("criterion", ["l2", "fpgm", "dscore", "bn_scale"])
def test_stripped_analysis_of_the_digits_network_is_the_fresh_one(criterion: str) -> None:
    analysis = analyze(load(DIGITS))
    made = plan(score_all(analysis, "random"), ratio=0.4, constraints=FINE)
    small, fresh = stripped(analysis, made), analyze(apply(analysis.source, made))
    assert [g.name for g in fresh] == [g.name for g in small]
    ours, theirs = score_of(small, criterion), score_of(fresh, criterion)
    for name, values in theirs.items():
        np.testing.assert_array_equal(ours[name], values)


def places(analysis: Analysis, name: str) -> list[tuple[str, int, list[int]]]:
    """Weight, axis and the index of the group's channel at every place of it; -1 for other channels."""
    group = analysis[name]
    index = np.full(analysis.count, -1)
    index[group.components] = np.arange(group.channels)
    return [
        (tensor, axis, index[analysis.component[analysis.table.constants[tensor][axis]]].tolist())
        for tensor, axis in group.sites
    ]


def score_all(analysis: Analysis, criterion: str) -> Scores:
    return score(analysis, criterion)


def score_of(analysis: Analysis, criterion: str) -> dict[str, Any]:
    return dict(score_all(analysis, criterion).groups)


def test_every_criterion_from_weights_works_in_steps() -> None:
    model = load(build(SPEC))
    analysis = analyze(model)
    names = [n for n, rule in all_criteria().items() if rule.needs == "weights" and n != "bn_scale"]
    for name in names:
        made = plan_steps(analysis, name, Target(macs=0.5), steps=3, constraints=FINE)
        assert abs(share(made, analysis, "macs") - 0.5) <= 0.05
        compile_plan(model, made, analysis=analysis)


def test_ten_percent_of_the_remaining_channels_eight_times(groups: Analysis) -> None:
    """The unit of partial-least-squares pruning."""
    made = plan_steps(groups, "l2", Target(channels=0.43), steps=8, schedule="geometric", constraints=FINE)
    assert made.removed == pytest.approx(160 * (1 - 0.9**8), abs=2)


def test_progress_counts_steps(groups: Analysis) -> None:
    calls: list[tuple[int, int]] = []
    plan_steps(groups, "l2", ratio=0.5, steps=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0, "ratio": 0.5}, "at least one step; got 0"),
        ({"steps": 2.5, "ratio": 0.5}, "at least one step"),
        ({"steps": True, "ratio": 0.5}, "at least one step"),
        ({"steps": 2, "ratio": 0.5, "schedule": "cubic"}, "unknown schedule 'cubic'"),
        ({"steps": 2, "ratio": 0.5, "schedule": "geometrik"}, "did you mean 'geometric'"),
        ({"steps": 2, "target": Target(macs=0.5), "allocator": "sensitivity"}, "curves hold for the original"),
        ({"steps": 2}, "either a ratio or a target"),
        ({"steps": 2, "ratio": 1.0}, "share removed"),
        ({"steps": 2, "ratio": 0.5, "lr": 1}, "no parameter 'lr'"),
        ({"steps": 2, "target": Target(latency=0.5)}, "needs a latency model"),
        ({"steps": 3, "target": Target(macs=0.001)}, "macs=0.001 cannot be reached"),
    ],
)
def test_steps_that_make_no_sense_are_refused(groups: Analysis, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        plan_steps(groups, "l2", **options)
