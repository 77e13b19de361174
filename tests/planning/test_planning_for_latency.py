"""Plans for a predicted latency, on a latency model without a clock."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import FakeLatency, kept_counts, share, wide_model
from random_graphs.graphs import PROPERTY, Spec, build, specs

from onnxprune.criteria.normalize import normalize
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, score
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.planner import plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan

SIXTEEN = Constraints(round_to=16)


@pytest.fixture(scope="module")
def wide() -> Scores:
    model = wide_model()
    return score(analyze(model), "l2")


def latency_share(made: Plan, model: FakeLatency, scores: Scores) -> float:
    return model.seconds(scores.analysis.kept(made)) / model.baseline


def lost(made: Plan, scores: Scores) -> float:
    """Summed normalized scores of what a plan removes."""
    return sum(float(normalize(scores.groups[n], scores.normalize)[list(r.removed)].sum()) for n, r in
               made.groups.items())  # fmt: skip


@pytest.mark.parametrize("allocator", [None, "global", "uniform", "latency"])
@pytest.mark.parametrize("goal", [0.4, 0.5, 0.8])
def test_latency_target_is_met_in_whole_blocks(wide: Scores, allocator: str | None, goal: float) -> None:
    model = FakeLatency(wide.analysis)
    made = plan(wide, Target(latency=goal), latency=model, allocator=allocator, constraints=SIXTEEN)
    assert abs(latency_share(made, model, wide) - goal) <= 0.02
    assert all(n % 16 == 0 for n in kept_counts(made, wide.analysis).values())
    if allocator is None:
        assert made == plan(wide, Target(latency=goal), latency=model, allocator="latency", constraints=SIXTEEN)


@pytest.mark.parametrize("allocator", ["global", "uniform", "latency"])
def test_coarse_blocks_give_the_nearest_that_is_fast_enough(wide: Scores, allocator: str) -> None:
    model = FakeLatency(wide.analysis, block=32)
    made = plan(wide, Target(latency=0.53), latency=model, allocator=allocator, constraints=Constraints(round_to=32))
    # Ten blocks of 16: 0.4 and 0.6 can be reached, and 0.6 is too slow.
    assert latency_share(made, model, wide) == pytest.approx(0.4)


def test_group_that_saves_nothing_is_left_alone(wide: Scores) -> None:
    model = FakeLatency(wide.analysis, weights=(0.0, 1.0))
    made = plan(wide, Target(latency=0.5), latency=model, constraints=SIXTEEN)
    assert kept_counts(made, wide.analysis) == {"w0": 64, "w1": 48}
    # Where latency is not the target, it goes last.
    made = plan(wide, Target(channels=0.7), latency=model, allocator="latency", constraints=SIXTEEN)
    assert kept_counts(made, wide.analysis) == {"w0": 64, "w1": 48}
    made = plan(wide, Target(channels=0.3), latency=model, allocator="latency", constraints=SIXTEEN)
    assert kept_counts(made, wide.analysis) == {"w0": 32, "w1": 16}


def test_blocks_that_save_nothing_are_passed_over(wide: Scores) -> None:
    """Kernels of 32: 16 channels fewer save nothing, 32 fewer do."""
    model = FakeLatency(wide.analysis, block=32)
    made = plan(wide, Target(latency=0.6), latency=model, constraints=SIXTEEN)
    assert all(n % 32 == 0 for n in kept_counts(made, wide.analysis).values())
    assert latency_share(made, model, wide) == pytest.approx(0.6)


def test_cheap_importance_per_second_goes_first(wide: Scores) -> None:
    slow_first, slow_second = (FakeLatency(wide.analysis, w) for w in ((20.0, 1.0), (1.0, 20.0)))
    first = plan(wide, Target(latency=0.6), latency=slow_first, constraints=SIXTEEN)
    second = plan(wide, Target(latency=0.6), latency=slow_second, constraints=SIXTEEN)
    assert set(first.groups) == {"w0"}
    assert set(second.groups) == {"w1"}


@PROPERTY(max_examples=40)
@given(
    specs(),
    st.lists(st.sampled_from((0.0, 0.1, 1.0, 5.0)), min_size=2, max_size=6),
    st.sampled_from(("macs", "params", "memory", "channels")),
    st.sampled_from((0.4, 0.6, 0.8)),
)
def test_at_the_same_target_the_latency_plan_is_never_slower(
    spec: Spec, weights: Sequence[float], measure: str, goal: float
) -> None:
    model = load(build(spec))
    scores = score(analyze(model), "random")
    fake = FakeLatency(scores.analysis, weights, block=4, base=1.0)
    constraints = Constraints(round_to=4, max_ratio=0.95)
    target = Target(**{measure: goal})
    try:
        other = plan(scores, target, allocator="global", constraints=constraints)
    except OnnxPruneError as err:
        assert "cannot be reached" in str(err)  # noqa: PT017
        with pytest.raises(OnnxPruneError, match="cannot be reached"):
            plan(scores, target, allocator="latency", latency=fake, constraints=constraints)
        return
    ours = plan(scores, target, allocator="latency", latency=fake, constraints=constraints)
    # Where one channel is more than a percent, only one of the two may have met the target.
    if abs(share(other, scores.analysis, measure) - goal) <= 0.01:
        assert abs(share(ours, scores.analysis, measure) - goal) <= 0.01
        assert latency_share(ours, fake, scores) <= latency_share(other, fake, scores) + 1e-12


@PROPERTY(max_examples=40)
@given(specs(), st.lists(st.sampled_from((0.1, 1.0, 5.0)), min_size=2, max_size=6), st.sampled_from((0.5, 0.7, 0.9)))
def test_for_a_latency_target_no_more_importance_is_lost(spec: Spec, weights: Sequence[float], goal: float) -> None:
    model = load(build(spec))
    scores = score(analyze(model), "random")
    fake = FakeLatency(scores.analysis, weights, block=4, base=1.0)
    constraints = Constraints(round_to=4, max_ratio=0.95)
    results = {}
    for allocator in ("latency", "global"):
        try:
            made = plan(scores, Target(latency=goal), allocator=allocator, latency=fake, constraints=constraints)
        except OnnxPruneError as err:
            assert "cannot be reached" in str(err)  # noqa: PT017
            continue
        assert latency_share(made, fake, scores) <= goal + 0.02 + 1e-12
        results[allocator] = lost(made, scores)
    if len(results) == 2:
        assert results["latency"] <= results["global"] + 1e-9
    else:
        assert "global" not in results  # what global reaches, latency reaches


def test_negative_normalized_scores_do_not_turn_the_order_round(wide: Scores) -> None:
    model = FakeLatency(wide.analysis)
    made = plan(wide, Target(latency=0.5), latency=model, normalize="gaussian", constraints=SIXTEEN)
    assert abs(latency_share(made, model, wide) - 0.5) <= 0.02


@pytest.mark.parametrize("allocator", ["global", "uniform", "latency"])
def test_unreachable_latency_says_how_far_it_goes(wide: Scores, allocator: str) -> None:
    model = FakeLatency(wide.analysis, base=80.0)  # a third of 240 that nothing saves
    with pytest.raises(
        OnnxPruneError, match=r"latency=0.3 cannot be reached: with these limits at least latency=0.467"
    ):
        plan(wide, Target(latency=0.3), latency=model, allocator=allocator, constraints=SIXTEEN)


def test_latency_needs_a_latency_model(wide: Scores) -> None:
    for allocator in ("global", "uniform"):
        with pytest.raises(OnnxPruneError, match="a latency target needs a latency model"):
            plan(wide, Target(latency=0.5), allocator=allocator)
    for target in (Target(latency=0.5), Target(macs=0.5)):
        with pytest.raises(OnnxPruneError, match="allocator 'latency' needs a latency model"):
            plan(wide, target, allocator="latency")
    with pytest.raises(OnnxPruneError, match="predicts 0 s"):
        plan(wide, Target(latency=0.5), latency=FakeLatency(wide.analysis, (0.0,)))


def test_a_ratio_takes_no_such_scope(wide: Scores) -> None:
    with pytest.raises(OnnxPruneError, match="needs a target"):
        plan(wide, ratio=0.5, allocator="latency", latency=FakeLatency(wide.analysis))


def test_the_plan_says_what_allotted_it(wide: Scores) -> None:
    model = FakeLatency(wide.analysis)
    assert plan(wide, Target(latency=0.5), latency=model).criterion["scope"] == "latency"
    assert "scope" not in plan(wide, Target(latency=0.5), latency=model, allocator="global").criterion


def test_limits_hold(wide: Scores) -> None:
    model = FakeLatency(wide.analysis)
    constraints = Constraints(round_to=16, overrides={"w0": {"min_channels": 48}}, max_ratio=0.6)
    counts = kept_counts(plan(wide, Target(latency=0.61), latency=model, constraints=constraints), wide.analysis)
    assert counts == {"w0": 48, "w1": 48}
    fixed = Constraints(round_to=16, overrides={"w0": {"channels": 20}})
    assert kept_counts(plan(wide, Target(latency=0.5), latency=model, constraints=fixed), wide.analysis)["w0"] == 20
    assert np.isclose(
        latency_share(plan(wide, Target(latency=0.5), latency=model, constraints=fixed), model, wide), 0.5
    )
