"""Shares removed from groups: targets are met, constraints hold, and an unreachable target reports the nearest one."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning import kept_counts as kept
from planning import share, wide_model
from random_graphs.graphs import PROPERTY, Spec, build, specs

from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution import sessions
from onnxprune.execution.sessions import kernel_block
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan, score
from onnxprune.planning.constraints import Constraints, load_overrides
from onnxprune.planning.planner import plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan

SPEC = Spec(("projection", "residual", "attention", "dense", "conv", "conv"), seed=4)
FREE = Constraints(round_to=1, max_ratio=0.99)


@pytest.fixture(scope="module")
def scores() -> Scores:
    model = load(build(SPEC))
    return score(analyze(model), "l2")


def one_channel(made: Plan, analysis: Analysis, measure: str) -> float:
    """The most that a single channel more or less changes, as a share of the whole."""
    cost = CostModel(analysis)
    now = analysis.kept(made)
    here = cost.cost(now).ratio(cost.baseline, measure)
    steps = [0.0]
    for group in analysis.groups:
        for flag in (True, False):
            places = group.components[now[group.components] != flag]
            if len(places):
                other = now.copy()
                other[places[0]] = flag
                steps.append(abs(cost.cost(other).ratio(cost.baseline, measure) - here))
    return max(steps)


@PROPERTY(max_examples=50)
@given(
    specs(),
    st.sampled_from(("macs", "params", "bytes", "memory", "channels")),
    st.sampled_from((0.35, 0.5, 0.7, 0.9)),
    st.sampled_from(("global", "uniform", "saving")),
)
def test_target_is_met_within_one_percent_or_one_channel(spec: Spec, measure: str, goal: float, allocator: str) -> None:
    model = load(build(spec))
    analysis = analyze(model)
    scored = score(analysis, "random")
    try:
        made = plan(scored, Target(**{measure: goal}), allocator=allocator, constraints=FREE)
    except OnnxPruneError as err:
        assert "cannot be reached" in str(err)  # noqa: PT017
        least = {g.name: 1 for g in analysis.groups}
        smallest = np.ones(analysis.count, bool)
        for g in analysis.groups:
            smallest[g.components[least[g.name] :]] = False
        cost = CostModel(analysis)
        assert cost.cost(smallest).ratio(cost.baseline, measure) > goal
        return
    assert min(kept(made, analysis).values()) >= 1
    # These networks are tiny: where one channel is more than a percent, the nearest channel is what can be asked for.
    allowed = max(0.01, one_channel(made, analysis, measure))
    assert share(made, analysis, measure) - goal <= allowed + 1e-9
    # Memory is a maximum: other groups than those at its peak may lose channels for nothing.
    if len(made.groups) == len(analysis.groups) and measure != "memory":
        assert abs(share(made, analysis, measure) - goal) <= allowed + 1e-9


@PROPERTY(max_examples=25)
@given(specs(), st.sampled_from((0.25, 0.5)))
def test_any_planned_removal_compiles(spec: Spec, ratio: float) -> None:
    model = load(build(spec))
    analysis = analyze(model)
    made = plan(score(analysis, "l1"), ratio=ratio, constraints=FREE)
    assert made.model == model.fingerprint
    compile_plan(model, made)


# Bytes are left out: the constants of reshapes are too many here for a percent; memory: its peak moves by several.
@pytest.mark.parametrize("measure", ["macs", "params", "channels"])
@pytest.mark.parametrize("goal", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("allocator", ["global", "uniform", "saving"])
def test_wide_network_meets_targets_within_one_percent(wide: Scores, measure: str, goal: float, allocator: str) -> None:
    made = plan(wide, Target(**{measure: goal}), allocator=allocator, constraints=Constraints(round_to=1))
    assert abs(share(made, wide.analysis, measure) - goal) <= 0.01


def test_removed_channels_are_those_with_the_lowest_scores(scores: Scores) -> None:
    made = plan(scores, Target(macs=0.5), constraints=FREE)
    assert made.groups
    for name, removal in made.groups.items():
        values = scores.groups[name]
        gone = np.zeros(len(values), bool)
        gone[list(removal.removed)] = True
        assert values[gone].max() <= values[~gone].min()


def test_ties_go_to_the_lower_index(scores: Scores) -> None:
    same = Scores(scores.analysis, {n: np.ones_like(s) for n, s in scores.groups.items()}, {}, "none")
    for made in (plan(same, ratio=0.5, constraints=FREE), plan(same, Target(params=0.6), constraints=FREE)):
        assert made.groups
        for removal in made.groups.values():
            assert removal.removed == tuple(range(len(removal.removed)))


def test_ratio_takes_the_same_share_of_every_group(scores: Scores) -> None:
    made = plan(scores, ratio=0.3, constraints=FREE)
    assert made.groups.keys() == {g.name for g in scores.analysis.groups} != set()
    for g in scores.analysis.groups:
        assert g.channels - kept(made, scores.analysis)[g.name] == int(g.channels * 0.3 + 1e-9)


def test_ratio_zero_and_target_one_remove_nothing(scores: Scores) -> None:
    assert not plan(scores, ratio=0.0).groups
    assert not plan(scores, Target(macs=1.0)).groups


def test_global_scope_follows_the_scores_uniform_does_not(scores: Scores) -> None:
    # One group's channels all matter more than any other's.
    dear = max(scores.analysis.groups, key=lambda g: g.channels).name
    raised = {n: s + (1e6 if n == dear else 0) for n, s in scores.groups.items()}
    biased = Scores(scores.analysis, raised, {}, "none")
    assert dear not in plan(biased, Target(params=0.6), allocator="global", constraints=FREE).groups
    assert dear in plan(biased, Target(params=0.6), allocator="uniform", constraints=FREE).groups


@pytest.fixture(scope="module")
def wide() -> Scores:
    """Groups of 64 and 96 channels, so that blocks of 16 leave something to choose."""
    model = wide_model()
    return score(analyze(model), "l2")


@pytest.mark.parametrize(("round_to", "step"), [(1, 1), (8, 8), (32, 32), ("auto", kernel_block())])
def test_kept_counts_are_multiples_of_the_block(wide: Scores, round_to: int | str, step: int) -> None:
    made = plan(wide, ratio=0.45, constraints=Constraints(round_to=round_to))
    counts = kept(made, wide.analysis)
    assert counts.keys() == {"w0", "w1"}
    for name, n in counts.items():
        whole = wide.analysis[name].channels
        assert n % step == 0
        assert abs(n - (whole - int(whole * 0.45))) <= step / 2
        assert n < whole


@pytest.mark.parametrize(
    ("found", "block"),
    [(["SSE42", "AVX2"], 8), (["AVX2", "AVX512F"], 16), (["X86_V3"], 8), (["X86_V3", "X86_V4"], 16), ([], 8)],
)
def test_auto_is_a_block_that_kernels_know(found: list[str], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # without it the processor decides
    sessions.padded_block.cache_clear()
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": {"baseline": ["SSE2"], "found": found}})
    assert kernel_block() == block
    assert kernel_block("cuda") == 8
    sessions.padded_block.cache_clear()


def test_block_below_one_is_refused(wide: Scores) -> None:
    with pytest.raises(OnnxPruneError, match="at least 1"):
        plan(wide, ratio=0.5, constraints=Constraints(round_to=0))


def test_target_with_blocks_is_still_met(wide: Scores) -> None:
    made = plan(wide, Target(macs=0.5), constraints=Constraints(round_to=8))
    assert abs(share(made, wide.analysis, "macs") - 0.5) <= 0.01


def test_min_channels_and_max_ratio_are_kept(wide: Scores) -> None:
    made = plan(wide, ratio=0.9, constraints=Constraints(round_to=1, min_channels=40))
    assert kept(made, wide.analysis) == {"w0": 40, "w1": 40}
    made = plan(wide, ratio=0.9, constraints=Constraints(round_to=1, max_ratio=0.25))
    assert kept(made, wide.analysis) == {"w0": 48, "w1": 72}


def test_unreachable_target_says_how_far_it_goes(wide: Scores) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        plan(wide, Target(macs=0.05), constraints=Constraints(round_to=1, max_ratio=0.5))
    text = str(caught.value)
    assert "macs=0.05 cannot be reached" in text
    cost = CostModel(wide.analysis)
    half = np.ones(wide.analysis.count, bool)
    for g in wide.analysis.groups:
        half[g.components[: g.channels // 2]] = False
    assert f"at least macs={cost.cost(half).ratio(cost.baseline, 'macs'):.3f} stays" in text
    assert "--max-ratio" in text


def test_include_exclude_and_protect_leave_groups_whole(wide: Scores) -> None:
    def pruned(**constraints: Any) -> set[str]:
        return set(plan(wide, ratio=0.5, constraints=Constraints(**constraints)).groups)

    assert pruned() == {"w0", "w1"}
    assert pruned(include=["w1"]) == {"w1"}
    assert pruned(exclude=["w1"]) == {"w0"}
    assert pruned(protect=["first"]) == {"w1"}
    assert wide.analysis["w0"].residual
    assert pruned(protect=["residual"]) == {"w1"}


def test_protect_attention_leaves_heads_whole(scores: Scores) -> None:
    heads = {g.name for g in scores.analysis.groups if g.op == "MatMul" and g.width > 1}
    assert heads
    assert heads <= set(plan(scores, ratio=0.5, constraints=FREE).groups)
    assert not heads & set(plan(scores, ratio=0.5, constraints=Constraints(round_to=1, protect=["attention"])).groups)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        (Constraints(include=["nothing"]), "unknown group .in include. 'nothing'"),
        (Constraints(exclude=["w9"]), "known: w0, w1"),
        (Constraints(exclude=["*"]), "no group remains"),
        (Constraints(overrides={"zz": 0.5}), "unknown group .in override."),
        (Constraints(overrides={"w0": 1.0}), "share removed"),
        (Constraints(overrides={"w0": "half"}), "a ratio or a table"),
        (Constraints(overrides={"w0": {"ration": 0.5}}), "unknown key 'ration'"),
        (Constraints(overrides={"w0": {"channels": 0}}), "at least 1"),
        (Constraints(overrides={"w0": {"channels": True}}), "takes a whole number"),
    ],
)
def test_limit_that_means_nothing_is_refused(wide: Scores, constraints: Constraints, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        plan(wide, ratio=0.5, constraints=constraints)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"protect": ["frist"]}, "did you mean 'first'"),
        ({"only": ["heds"]}, "did you mean 'heads'"),
        ({"round_to": "8"}, "round to must be a number or auto; got '8'"),
        ({"include": "w0"}, "include must be a tuple; got 'w0'"),
        ({"max_ratio": 1}, r"max ratio must be in \[0, 1\); got 1"),
    ],
)
def test_constraints_are_checked_when_they_are_made(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        Constraints(**wrong)


OVERRIDES = {"w0": {"channels": 20}, "w1": 0.75}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("o.toml", "w1 = 0.75\n[w0]\nchannels = 20\n"),
        ("o.toml", "[groups]\nw1 = 0.75\n[groups.w0]\nchannels = 20\n"),
        ("o.json", json.dumps(OVERRIDES)),
        ("o.json", json.dumps({"groups": OVERRIDES})),
    ],
)
def test_overrides_from_files_rule_single_groups(wide: Scores, name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    overrides: Mapping[str, Any] = load_overrides(path)
    assert overrides == OVERRIDES
    made = plan(wide, ratio=0.1, constraints=Constraints(round_to=1, overrides=overrides))
    assert kept(made, wide.analysis) == {"w0": 20, "w1": 24}


def test_override_min_channels_holds_for_its_groups_only(wide: Scores) -> None:
    made = plan(wide, ratio=0.8, constraints=Constraints(round_to=1, overrides={"w0": {"min_channels": 60}}))
    assert kept(made, wide.analysis) == {"w0": 60, "w1": 20}


@pytest.mark.parametrize(
    ("name", "text"), [("o.toml", "w0 = "), ("o.json", "{"), ("o.json", "[1]"), ("o.toml", "w0 = 2")]
)
def test_override_file_that_is_none_is_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(OnnxPruneError):
        load_overrides(path)
    with pytest.raises(OnnxPruneError, match="cannot read"):
        load_overrides(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "text", ["", "macs", "macs=", "macs=half", "macz=0.5", "macs=0", "macs=1.5", "macs=nan", "latency=-1", "memory=2",
             "=0.5", "nan", "0", "50", "%", "150%", "0%", "macs=0.5=0.5", "macs=5ms", "1e999", "macs=\u0661"]
)  # fmt: skip
def test_target_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(OnnxPruneError):
        Target.parse(text)


def test_target_names_one_measure() -> None:
    assert Target.parse("params=0.25") == Target(params=0.25)
    for measure in ("macs", "params", "bytes", "memory", "channels", "latency"):
        target = Target.parse(f" {measure}=0.25")
        assert (target.measure, target.share) == (measure, 0.25)
    for wrong in ({}, {"macs": 0.5, "params": 0.5}, {"memory": 0.5, "latency": 0.5}):
        with pytest.raises(OnnxPruneError, match="exactly one"):
            Target(**wrong)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("50%", Target(macs=0.5)), ("0.5", Target(macs=0.5)), (".5", Target(macs=0.5)), (" 50 % ", Target(macs=0.5)),
        ("1", Target(macs=1.0)), ("MACs=0.5", Target(macs=0.5)), ("flops=0.5", Target(macs=0.5)),
        ("FLOPs=40%", Target(macs=0.4)), ("parameters=0.3", Target(params=0.3)), ("weights=0.3", Target(bytes=0.3)),
        ("activations = 30%", Target(memory=0.3)), ("peak-memory=0.3", Target(memory=0.3)),
    ],
)  # fmt: skip
def test_target_is_read_as_people_write_it(text: str, target: Target) -> None:
    assert Target.parse(text) == target


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("50", "a target is the share kept, in (0, 1]; got 50\n  try: did you mean 0.5? (keep 50 %)"),
        ("flops=30", "a target is the share kept, in (0, 1]; got flops=30\n  try: did you mean macs=0.3? (keep 30 %)"),
        ("mcas=0.5", "cannot read the target 'mcas=0.5': unknown measure 'mcas'\n  try: did you mean 'macs'"),
        ("150%", "a target is the share kept, in (0, 1]; got 150%\n  try: for example macs=0.5"),
    ],
)
def test_target_that_is_not_a_share_is_suggested(text: str, says: str) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        Target.parse(text)
    assert str(caught.value).startswith(says)


def test_ratio_or_target_but_not_both(wide: Scores) -> None:
    for wrong in ({}, {"target": Target(macs=0.5), "ratio": 0.5}):
        with pytest.raises(OnnxPruneError, match="either a ratio or a target"):
            plan(wide, **wrong)
    with pytest.raises(OnnxPruneError, match="unknown allocator"):
        plan(wide, ratio=0.5, allocator="local")
    with pytest.raises(OnnxPruneError, match="'sensitivity' needs a target"):
        plan(wide, ratio=0.5, allocator="sensitivity")
    for ratio in (1.0, -0.1, float("nan")):
        with pytest.raises(OnnxPruneError, match="share removed"):
            plan(wide, ratio=ratio)


def test_macs_are_counted_by_hand_for_one_sample(wide: Scores) -> None:
    whole = CostModel(wide.analysis).baseline
    weights = 3 * 64 + 64 * 96 + 96 * 64 + 64 * 5
    assert (whole.macs, whole.params, whole.bytes) == (36 * weights, weights, 4 * weights)
