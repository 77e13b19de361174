"""Plans from sensitivity curves: never more than a curve allows, thresholds that are monotone, targets that are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import FakeLatency, kept_counts, made_curves, mirrored, share, wide_model
from random_graphs.graphs import PROPERTY, Spec, build, specs

from onnxprune.analysis.cost import CostModel
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan, score
from onnxprune.planning.constraints import Constraints, FeasibleCounts
from onnxprune.planning.curves import Curves
from onnxprune.planning.planner import plan
from onnxprune.planning.targets import Target
from onnxprune.planning.thresholds import losses, predicted, threshold_path
from onnxprune.plans import Plan, Removal

FINE = Constraints(round_to=1, max_ratio=0.99)
# Of 64 and 96 channels: 6, 12, 19, 25, 32, 38 and 9, 19, 28, 38, 48, 57 gone.
FALLING = {"w0": (0.9, 0.88, 0.85, 0.7, 0.5, 0.1), "w1": (0.91, 0.9, 0.9, 0.9, 0.89, 0.6)}


@pytest.fixture(scope="module")
def wide() -> Scores:
    model = wide_model()
    return score(analyze(model), "l2")


@pytest.fixture(scope="module")
def curves(wide: Scores) -> Curves:
    return made_curves(wide, FALLING)


@dataclass(frozen=True)
class Case:
    """A random network, and curves of most of its groups: falling, level (accuracy on ten images), noisy."""

    spec: Spec
    seed: int
    ratios: tuple[float, ...]
    noise: float
    level: bool

    def build(self) -> tuple[Scores, Curves]:
        """Scores and curves."""
        model = load(build(self.spec))
        scores = score(analyze(model), "random")
        rng = np.random.default_rng(self.seed)
        values = {}
        for g in scores.analysis.groups:
            column = 0.9 - 0.8 * np.array(self.ratios) ** rng.uniform(0.5, 4)
            column += rng.normal(0, self.noise, len(column))
            column = np.clip(np.round(column, 1 if self.level else 9), 0, 1)
            # Where two ratios remove the same channels they measure the same, and none removed is the baseline.
            gone = [int(g.channels * r + 1e-9) for r in self.ratios]
            known = {0: 0.9}
            if rng.random() < 0.8:
                values[g.name] = [known.setdefault(n, float(v)) for n, v in zip(gone, column, strict=True)]
        return scores, made_curves(scores, values, ratios=self.ratios)


cases = st.builds(
    Case,
    specs(),
    st.integers(0, 2**16),
    st.sets(st.sampled_from([i / 20 for i in range(1, 20)]), min_size=1, max_size=8).map(lambda r: tuple(sorted(r))),
    st.sampled_from((0.0, 0.02, 0.2)),
    st.booleans(),
)


# ------------------------------------------------------------------------------------------------------ a threshold


def test_every_group_loses_what_its_own_curve_allows(wide: Scores, curves: Curves) -> None:
    made = plan(wide, curves=curves, min_group_accuracy=0.85, constraints=FINE)
    assert kept_counts(made, wide.analysis) == {"w0": 64 - 19, "w1": 96 - 48}
    assert made.criterion | {"scope": "sensitivity", "metric": "top1", "threshold": 0.85} == made.criterion
    # The largest measured ratio, not a crossing between two.
    made = plan(wide, curves=curves, min_group_accuracy=0.86, constraints=FINE)
    assert kept_counts(made, wide.analysis) == {"w0": 64 - 12, "w1": 96 - 48}
    made = plan(wide, curves=curves, min_group_accuracy=0.9, constraints=FINE)
    assert kept_counts(made, wide.analysis) == {"w0": 64 - 6, "w1": 96 - 38}


def test_kept_counts_are_rounded_up_to_blocks(wide: Scores, curves: Curves) -> None:
    made = plan(wide, curves=curves, min_group_accuracy=0.85, constraints=Constraints(round_to=32))
    assert kept_counts(made, wide.analysis) == {"w0": 64, "w1": 64}  # from 45 and 48
    made = plan(wide, curves=curves, min_group_accuracy=0.85, constraints=Constraints(round_to=8))
    assert kept_counts(made, wide.analysis) == {"w0": 48, "w1": 48}


@PROPERTY(max_examples=60)
@given(cases, st.floats(0, 0.9), st.floats(0, 0.9), st.sampled_from((1, 4, 16)))
def test_never_more_than_the_curves_allow_and_no_less_for_a_lower_threshold(
    case: Case, first: float, second: float, block: int
) -> None:
    scores, curves = case.build()
    constraints = Constraints(round_to=block, max_ratio=0.99)
    before = None
    for threshold in sorted((first, second), reverse=True):
        made = plan(scores, curves=curves, min_group_accuracy=threshold, constraints=constraints)
        counts = kept_counts(made, scores.analysis)
        for g in scores.analysis.groups:
            allowed = curves.largest(g.name, threshold) if g.name in curves.groups else 0
            assert g.channels - counts[g.name] <= allowed
            if block == 1 and allowed < g.channels * 0.99:
                assert g.channels - counts[g.name] == allowed
        worst = predicted(curves, {n: len(r.removed) for n, r in made.groups.items()})
        assert worst is not None
        assert block > 1 or worst >= threshold - 1e-12
        if before is not None:
            assert all(counts[n] <= before[n] for n in counts)
        before = counts
    made = plan(scores, curves=curves, min_group_accuracy=second, constraints=constraints)
    compile_plan(scores.analysis.source, made)


def test_groups_without_a_curve_stay_whole(wide: Scores) -> None:
    only = made_curves(wide, {"w1": FALLING["w1"]})
    for target in (None, Target(macs=0.6)):
        options: dict[str, Any] = {"min_group_accuracy": 0.5} if target is None else {}
        assert set(plan(wide, target, curves=only, constraints=FINE, **options).groups) == {"w1"}


def test_lower_is_better_is_the_mirror_image(wide: Scores, curves: Curves) -> None:
    turned = mirrored(curves)
    for threshold in (0.9, 0.86, 0.5, 0.05):
        ours = plan(wide, curves=curves, min_group_accuracy=threshold, constraints=FINE).groups
        assert plan(wide, curves=turned, max_loss=1 - threshold + 1e-12, constraints=FINE).groups == ours
    for target in (Target(macs=0.6), Target(channels=0.8)):
        ours = plan(wide, target, curves=curves, constraints=FINE).groups
        assert plan(wide, target, curves=turned, constraints=FINE).groups == ours


def test_limits_hold_as_well(wide: Scores, curves: Curves) -> None:
    def counts(**constraints: Any) -> dict[str, int]:
        made = plan(wide, curves=curves, min_group_accuracy=0.85, constraints=Constraints(round_to=1, **constraints))
        return kept_counts(made, wide.analysis)

    assert counts(max_ratio=0.25) == {"w0": 48, "w1": 72}
    assert counts(min_channels=60) == {"w0": 60, "w1": 60}
    assert counts(exclude=["w1"]) == {"w0": 45, "w1": 96}
    assert counts(overrides={"w0": {"channels": 10}}) == {"w0": 10, "w1": 48}  # a count by hand is final
    assert counts(overrides={"w0": 0.9}) == {"w0": 45, "w1": 48}  # a ratio is bounded, as by max_ratio


# --------------------------------------------------------------------------------------------------------- a target


def test_target_takes_from_the_groups_that_bear_it(wide: Scores, curves: Curves) -> None:
    made = plan(wide, Target(macs=0.55), curves=curves, constraints=FINE)
    assert abs(share(made, wide.analysis, "macs") - 0.55) <= 0.01
    counts = kept_counts(made, wide.analysis)
    assert counts["w0"] >= 52  # from 20 % on it falls fast
    assert counts["w1"] <= 60
    assert made.criterion["scope"] == "sensitivity"
    assert made.criterion["threshold"] == predicted(curves, {n: len(r.removed) for n, r in made.groups.items()})


@PROPERTY(max_examples=60)
@given(cases, st.sampled_from(("macs", "params", "channels")), st.sampled_from((0.5, 0.7, 0.9, 0.97)))
def test_targets_are_met_within_the_measured_points(case: Case, measure: str, goal: float) -> None:
    scores, curves = case.build()
    analysis = scores.analysis
    last = {n: max(p.removed for p in c.points) for n, c in curves.groups.items()}
    try:
        made = plan(scores, Target(**{measure: goal}), curves=curves, constraints=FINE)
    except OnnxPruneError as err:
        assert "cannot be reached" in str(err)  # noqa: PT017
        assert "sweep larger ratios" in str(err)  # noqa: PT017
        feasible = FeasibleCounts(
            analysis, FINE, scores.groups, least={g.name: g.channels - last.get(g.name, 0) for g in analysis}
        )
        counts = feasible.smallest(1)
        kept = np.ones(analysis.count, bool)
        for g in analysis.groups:
            kept[g.components[counts[g.name] :]] = False
        cost = CostModel(analysis)
        assert cost.cost(kept).ratio(cost.baseline, measure) > goal
        return
    gone = {n: len(r.removed) for n, r in made.groups.items()}
    assert all(count <= last[n] for n, count in gone.items())
    over = share(made, analysis, measure) - goal
    # One channel more in any group, where there is one: that is as near as it gets.
    slack = max((abs(share(plan(scores, ratio=0, constraints=FINE), analysis, measure) - one(scores, n, measure))
                 for n in last), default=0.0)  # fmt: skip
    assert over <= max(0.01, slack) + 1e-9


def one(scores: Scores, name: str, measure: str) -> float:
    """The share that stays if one channel of a group goes."""
    channels = scores.analysis[name].channels
    return share(Plan("", {name: Removal(channels, (0,))}), scores.analysis, measure)


@PROPERTY(max_examples=40)
@given(cases, st.sampled_from((1, 8)))
def test_the_path_of_thresholds_only_ever_removes_more_and_ends_at_the_last_points(case: Case, block: int) -> None:
    scores, curves = case.build()
    feasible = FeasibleCounts(scores.analysis, FINE, scores.groups)
    path = threshold_path(curves, feasible)
    assert path.counts_at(0, block) == feasible.uniform(0.0)
    before = path.counts_at(0, block)
    for place in range(0, path.top + 1, max(1, path.top // 150)):
        here = path.counts_at(place, block)
        assert all(here[n] <= before[n] for n in here)
        before = here
    for g in scores.analysis.groups:
        last = max((p.removed for p in curves.groups[g.name].points), default=0) if g.name in curves.groups else 0
        assert path.counts_at(path.top, 1)[g.name] == max(g.channels - last, feasible.minimum_of(g))


def test_level_curves_are_taken_in_the_same_proportion(wide: Scores) -> None:
    level = made_curves(wide, {"w0": (0.9,) * 6, "w1": (0.9,) * 6})
    made = plan(wide, Target(channels=0.7), curves=level, constraints=FINE)
    counts = kept_counts(made, wide.analysis)
    assert counts["w0"] / 64 == pytest.approx(0.7, abs=0.03)
    assert counts["w1"] / 96 == pytest.approx(0.7, abs=0.03)


def test_a_threshold_bounds_a_target_in_every_scope(wide: Scores, curves: Curves) -> None:
    fake = FakeLatency(wide.analysis)
    for allocator in ("global", "uniform", "sensitivity", "latency"):
        options: dict[str, Any] = {
            "curves": curves,
            "min_group_accuracy": 0.85,
            "allocator": allocator,
            "latency": fake,
        }
        made = plan(wide, Target(channels=0.65), constraints=FINE, **options)
        counts = kept_counts(made, wide.analysis)
        assert counts["w0"] >= 45
        assert counts["w1"] >= 48
        with pytest.raises(OnnxPruneError, match=r"channels=0.5 cannot be reached.*at least channels=0.581"):
            plan(wide, Target(channels=0.5), constraints=FINE, **options)


def test_latency_scope_counts_the_metric_where_there_are_curves(wide: Scores, curves: Curves) -> None:
    fake = FakeLatency(wide.analysis)
    made = plan(
        wide, Target(latency=0.8), curves=curves, latency=fake, allocator="latency", constraints=Constraints(round_to=8)
    )
    assert kept_counts(made, wide.analysis)["w1"] <= 64
    assert kept_counts(made, wide.analysis)["w0"] == 64
    assert fake.seconds(wide.analysis.kept(made)) / fake.baseline == pytest.approx(0.8, abs=0.02)


def test_latency_target_by_curves(wide: Scores, curves: Curves) -> None:
    fake = FakeLatency(wide.analysis)
    made = plan(wide, Target(latency=0.7), curves=curves, latency=fake, constraints=Constraints(round_to=16))
    assert made.criterion["scope"] == "sensitivity"
    assert fake.seconds(wide.analysis.kept(made)) / fake.baseline == pytest.approx(0.7, abs=0.02)


# ----------------------------------------------------------------------------------------------- reading the curves


def test_predicted_is_the_measured_value_at_a_point(wide: Scores, curves: Curves) -> None:
    assert predicted(curves, {}) == 0.9
    assert predicted(curves, {"w0": 25}) == 0.7
    assert predicted(curves, {"w0": 25, "w1": 57}) == 0.6
    assert predicted(curves, {"w0": 0, "w1": 9}) == 0.9  # better than the whole model alone, but not all of it
    assert predicted(curves, {"w0": 39}) is None
    assert predicted(curves, {"other": 1}) is None
    assert predicted(mirrored(curves), {"w0": 25, "w1": 57}) == pytest.approx(0.4)


def test_losses_never_fall(wide: Scores) -> None:
    noisy = made_curves(wide, {"w0": (0.8, 0.95, 0.7)})
    lost = losses(noisy, "w0")
    assert lost.shape == (20,)
    assert (np.diff(lost) >= 0).all()
    assert (lost[0], lost[6], lost[12]) == (0.0, pytest.approx(0.1), pytest.approx(0.1))


# ------------------------------------------------------------------------------------------------------------ errors


def test_curves_that_do_not_belong_are_refused(wide: Scores, curves: Curves) -> None:
    other = {**curves.groups, "w0": replace(curves.groups["w0"], channels=65)}
    for wrong, message in (
        (replace(curves, model="another"), "another model"),
        (
            replace(curves, criterion={"name": "dscore", "reduce": "mean"}),
            "another criterion .dscore: reduce=mean. than",
        ),
        (replace(curves, criterion={**wide.criterion, "reduce": "max"}), "reduce=max"),
        (replace(curves, criterion={**wide.criterion, "seed": 1}), "seed=1"),
        (replace(curves, options={"attention": "head_dim"}), "--attention head_dim"),
        (replace(curves, groups=other), "counts 65 channels where the model has 64"),
        (replace(curves, groups={**curves.groups, "w9": curves.groups["w0"]}), "unknown group 'w9'"),
    ):
        for options in ({"min_group_accuracy": 0.8}, {"target": Target(macs=0.7)}):
            with pytest.raises(OnnxPruneError, match=message):
                plan(wide, curves=wrong, **options)
    plan(wide, curves=replace(curves, criterion={**wide.criterion, "normalize": "max"}), min_group_accuracy=0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loss": 0.2}, r"--max-loss does not go .* top1, higher is better\s+try: --min-group-accuracy 0.2"),
        ({"min_group_accuracy": 0.8, "max_loss": 0.2}, "--max-loss does not go"),
        ({"min_group_accuracy": 1.5}, r"in \[0, 1\] for top1; got 1.5"),
        ({"min_group_accuracy": -0.1}, "got -0.1"),
        ({"min_group_accuracy": float("nan")}, "got nan"),
        ({"min_group_accuracy": 0.95}, "the original's top1 is already 0.9, below --min-group-accuracy 0.95"),
        ({"min_group_accuracy": 0.8, "ratio": 0.3}, "a ratio removes the same share of every group, curves do not"),
        ({"ratio": 0.3}, "curves do not"),
        ({}, "or --min-group-accuracy 0.9"),
        ({"min_group_accuracy": 0.8, "allocator": "global"}, "the allocator 'global' needs a target"),
        ({"min_group_accuracy": 0.8, "allocator": "sensitive"}, "did you mean 'sensitivity'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    wide: Scores, curves: Curves, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        plan(wide, curves=curves, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_group_accuracy": 0.8}, "does not go with these curves: their metric is loss, lower is better"),
        ({"max_loss": float("inf")}, "a finite number for loss"),
        ({"max_loss": 0.05}, "the original's loss is already 0.1, above --max-loss 0.05"),
    ],
)
def test_options_of_the_other_kind_of_metric(
    wide: Scores, curves: Curves, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        plan(wide, curves=mirrored(curves), **options)


@pytest.mark.parametrize("options", [{"min_group_accuracy": 0.9}, {"max_loss": 0.9}, {"allocator": "sensitivity"}])
def test_without_curves_they_are_refused(wide: Scores, options: dict[str, Any]) -> None:
    with pytest.raises(OnnxPruneError, match="needs curves"):
        plan(wide, Target(macs=0.5), **options)


def test_bisected_curves_hold_for_their_threshold_only(wide: Scores) -> None:
    curves = made_curves(wide, {"w0": (0.9, 0.82), "w1": (0.85, 0.7)}, ratios=(0.25, 0.5), bisected=0.8)
    made = plan(wide, curves=curves, min_group_accuracy=0.8, constraints=FINE)
    assert kept_counts(made, wide.analysis) == {"w0": 32, "w1": 72}
    wrong: Sequence[dict[str, Any]] = (
        {"min_group_accuracy": 0.7},
        {"target": Target(macs=0.6)},
        {"target": Target(macs=0.6), "min_group_accuracy": 0.8},
    )
    for options in wrong:
        with pytest.raises(OnnxPruneError, match=r"searched for top1 = 0.8 and hold for that threshold only"):
            plan(wide, curves=curves, **options)


def test_target_beyond_the_last_points_says_how_far_it_goes(wide: Scores, curves: Curves) -> None:
    # 38 of 64 and 57 of 96 can go: 26 and 39 stay.
    with pytest.raises(OnnxPruneError, match=r"channels=0.3 cannot be reached: .* at least channels=0.406 stays"):
        plan(wide, Target(channels=0.3), curves=curves, constraints=FINE)
    assert plan(wide, Target(channels=0.41), curves=curves, constraints=FINE).removed >= 93
