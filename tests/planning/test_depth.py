"""Plans of blocks alone and of blocks beside channels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from residual import chain, conv, graph, removing

from onnxprune.analysis.blocks import inner_groups
from onnxprune.analysis.cost import CostModel
from onnxprune.cli import main
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.ir.reader import load
from onnxprune.options.planning import Constraints
from onnxprune.pipeline import analyze, compile_plan, frontier, plan, plan_steps, score
from onnxprune.pipeline.budget.path import PrunePath
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, load_plan

DIGITS = str(Path(__file__).parents[2] / "models" / "digits_cnn.onnx")


def test_blocks_alone_meet_a_target_with_the_nearest_number_of_blocks() -> None:
    model = load(chain(4))
    made = plan(score(analyze(model)), "macs=0.6", constraints=Constraints(only=("blocks",)))
    assert len(made.blocks) == 2
    assert not made.groups
    done = compile_plan(model, made)
    assert done.after.macs == done.before.macs * 6 // 10


def test_ratio_removes_that_share_of_the_blocks() -> None:
    scores = score(analyze(load(chain(4))))
    assert len(plan(scores, ratio=0.75, constraints=Constraints(only=("blocks",))).blocks) == 3


def test_blocks_beside_channels_stay_within_their_number_and_meet_the_target() -> None:
    model = load(chain(4))
    scores = score(analyze(model), "l1")
    made = plan(scores, "macs=0.3", constraints=Constraints(max_blocks=2, round_to=1))
    assert len(made.blocks) <= 2
    done = compile_plan(model, made)
    assert abs(done.after.ratio(done.before, "macs") - 0.3) <= 0.02


def test_patterns_and_presets_apply_to_blocks() -> None:
    scores = score(analyze(load(chain(4))))
    made = plan(scores, ratio=0.9, constraints=Constraints(only=("blocks",), exclude=("stage.0", "stage.3")))
    assert made.blocks
    assert set(made.blocks) <= {"stage.1", "stage.2"}
    with pytest.raises(OnnxPruneError, match="no block can be removed"):
        plan(scores, ratio=0.5, constraints=Constraints(only=("blocks",), protect=("conv",)))


def test_unreachable_target_names_the_least_share() -> None:
    scores = score(analyze(load(chain(2))))
    with pytest.raises(OnnxPruneError, match=r"macs=0\.333 stays"):
        plan(scores, "macs=0.1", constraints=Constraints(only=("blocks",)))


def test_default_plans_have_no_blocks_and_the_first_schema() -> None:
    made = plan(score(analyze(load(chain(3)))), "macs=0.6")
    assert not made.blocks
    assert '"schema": 1' in made.to_json()


def test_steps_plan_blocks_beside_channels() -> None:
    model = load(chain(4))
    made = plan_steps(analyze(model), "l2", "macs=0.4", steps=2, constraints=Constraints(max_blocks=2, round_to=1))
    done = compile_plan(model, made)
    assert len(made.blocks) <= 2
    assert abs(done.after.ratio(done.before, "macs") - 0.4) <= 0.02


SETS = st.lists(st.floats(0.01, 10), min_size=4, max_size=4)
CHAIN = analyze(load(chain(4)))


def drawn(seed: int, losses: list[float]) -> Scores:
    """Scores of `CHAIN` with random channels and these losses of its blocks, in a random order of removal."""
    rng = np.random.default_rng(seed)
    groups = {g.name: rng.random(g.channels) for g in CHAIN.groups}
    names = [b.name for b in CHAIN.free_blocks]
    order = rng.permutation(len(names)).tolist()
    return Scores(CHAIN, groups, {"name": "l1"}, "none", blocks={names[i]: losses[i] for i in order})


def loss_of(scores: Scores, made: Plan) -> float:
    """Return the summed scores of what a plan removes."""
    channels = sum(float(scores.groups[n][list(r.removed)].sum()) for n, r in made.groups.items())
    return channels + sum(scores.blocks[n] for n in made.blocks)


@given(st.integers(0, 2**20), SETS, st.sampled_from([0.7, 0.5, 0.3]), st.sampled_from(["saving", "global", "uniform"]))
@settings(max_examples=40, deadline=None)
def test_joint_plans_lose_no_more_than_channels_alone(seed: int, losses: list[float], share: float, how: str) -> None:
    scores = drawn(seed, losses)
    both = Constraints(only=("blocks", "channels"), round_to=1, max_ratio=0.95)
    joint = plan(scores, Target(macs=share), allocator=how, constraints=both)
    alone = plan(scores, Target(macs=share), allocator=how, constraints=Constraints(round_to=1, max_ratio=0.95))
    cost = CostModel(CHAIN)
    assert abs(cost.share(CHAIN.kept(joint), "macs") - share) <= 0.02
    assert loss_of(scores, joint) <= loss_of(scores, alone) + 1e-9
    assert list(joint.blocks) == list(scores.blocks)[: len(joint.blocks)]
    for name in joint.blocks:
        assert not inner_groups(CHAIN.model.graph, CHAIN.groups, CHAIN.block(name)) & joint.groups.keys()


def test_free_blocks_are_removed_before_any_channel() -> None:
    scores = drawn(0, [0.0, 0.0, 50.0, 50.0])
    scores = replace(scores, blocks=dict(sorted(scores.blocks.items(), key=lambda item: item[1])))
    both = Constraints(only=("blocks", "channels"))
    made = plan(scores, Target(macs=0.6), allocator="saving", constraints=both)
    assert set(made.blocks) == {"stage.0", "stage.1"}
    assert not made.groups
    assert not plan(drawn(0, [50.0] * 4), Target(macs=0.6), allocator="saving", constraints=both).blocks


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_blocks_than_allowed(most: int) -> None:
    limits = Constraints(only=("blocks", "channels"), max_blocks=most)
    made = plan(drawn(0, [0.0] * 4), Target(macs=0.3), allocator="saving", constraints=limits)
    assert len(made.blocks) == most


def test_kinds_of_channels_beside_blocks() -> None:
    scores = drawn(0, [0.0] * 4)
    limits = Constraints(only=("blocks", "conv"), protect=("residual",), max_blocks=1)
    made = plan(scores, Target(macs=0.6), allocator="saving", constraints=limits)
    assert made.blocks
    assert all(CHAIN[name].kind == "conv" for name in made.groups)


class BlockLatency:
    """Latency of `CHAIN` in which a block costs a second and channels nothing."""

    baseline, batch, threads, provider = 4.0, 1, 1, "none"

    def seconds(self, kept: np.ndarray) -> float:
        return float(kept[[b.component for b in CHAIN.free_blocks]].sum()) + 1e-6


@pytest.mark.parametrize("only", [("blocks",), ("blocks", "channels")])
def test_latency_of_blocks_is_planned(only: tuple[str, ...]) -> None:
    scores = drawn(0, [1.0, 2.0, 3.0, 4.0])
    made = plan(scores, Target(latency=0.5), latency=BlockLatency(), constraints=Constraints(only=only))
    assert len(made.blocks) == 2
    assert not made.groups  # channels save no time


def test_channels_inside_a_removed_block_count_as_removed() -> None:
    cost = CostModel(CHAIN)
    kept = CHAIN.kept()
    before = cost.share(kept, "channels")
    kept[CHAIN.block("stage.1").component] = False
    inside = sum(CHAIN[n].channels for n in inner_groups(CHAIN.model.graph, CHAIN.groups, CHAIN.block("stage.1")))
    total = sum(g.channels for g in CHAIN.groups)
    assert before == 1
    assert cost.share(kept, "channels") == pytest.approx(1 - inside / total)
    assert inside


def test_steps_score_what_remains_again() -> None:
    data = Calibration(Data(np.random.default_rng(0).standard_normal((32, 8, 6, 6)).astype("f"), None, "x"), threads=1)
    both = Constraints(only=("blocks", "channels"), round_to=1)
    made = plan_steps(CHAIN, "obs", "macs=0.3", steps=3, constraints=both, data=data)
    done = compile_plan(CHAIN.source, made, analysis=CHAIN)
    assert abs(done.after.ratio(done.before, "macs") - 0.3) <= 0.02
    alone = plan_steps(CHAIN, "distance", "macs=0.4", steps=2, constraints=Constraints(only=("blocks",)), data=data)
    assert len(alone.blocks) == 3
    assert not alone.groups


def test_a_path_of_points_removes_blocks_beside_channels() -> None:
    data = Calibration(Data(np.random.default_rng(0).standard_normal((32, 8, 6, 6)).astype("f"), None, "x"), threads=1)
    path = PrunePath(CHAIN, data, constraints=Constraints(only=("blocks", "channels"), round_to=1), rescore=1.0)
    first = path.point(0.7)
    second = path.point(0.4, first)
    assert set(first.plan.blocks) <= set(second.plan.blocks)
    assert second.kept == pytest.approx(0.4, abs=0.02)
    deep = replace(path, constraints=Constraints(only=("blocks",)))
    assert len(deep.point(0.95, deep.point(0.95)).plan.blocks) >= 1


def test_frontier_draws_channels_blocks_and_both() -> None:
    data = Data(np.random.default_rng(0).standard_normal((48, 8, 6, 6)).astype("f"), None, "x")
    found = frontier(CHAIN.source, data=data, points=1, least=0.6, series=("channels", "blocks", "both"), latency=False)
    assert {p.curve: p.costs["macs"] for p in found.points} == {
        "obs-channels": pytest.approx(0.6, abs=0.02), "obs-blocks": pytest.approx(0.6), "obs-both":
        pytest.approx(0.6, abs=0.02),
    }  # fmt: skip
    with pytest.raises(OnnxPruneError, match="unknown series 'depth'"):
        frontier(CHAIN.source, data=data, series=("depth",), latency=False)


def test_command_line_prunes_blocks_and_recovers(tmp_path: Path) -> None:
    out, text = tmp_path / "small.onnx", tmp_path / "plan.json"
    common = ["prune", DIGITS, "--only", "blocks", "--target", "macs=0.6", "-o", str(out), "--plan", str(text)]
    done = CliRunner().invoke(main, [*common, "--data", "digits", "--images", "128"])
    assert done.exit_code == 0, done.output
    made = load_plan(text)
    assert f"without {len(made.blocks)} block" in done.output
    assert '"schema": 2' in text.read_text()
    assert made.blocks
    assert CliRunner().invoke(main, ["verify", DIGITS, str(out), str(text)]).exit_code == 0


@pytest.mark.parametrize("given", [{"only": ("blocks", "channels")}, {"max_blocks": 2}])
def test_patterns_that_name_blocks_only_remove_blocks_alone(given: dict[str, Any]) -> None:
    scores = score(analyze(load(chain(4))))
    made = plan(scores, "macs=0.8", constraints=Constraints(include=("stage.1",), **given))
    assert list(made.blocks) == ["stage.1"]
    assert not made.groups
    with pytest.raises(OnnxPruneError, match=r"name 1 block only \(stage.1\)") as found:
        plan(scores, "macs=0.8", constraints=Constraints(include=("stage.1",)))
    assert "--only blocks" in (found.value.fix or "")


def test_steps_end_where_no_included_block_remains() -> None:
    analysis = analyze(load(chain(4)))
    for only in (("blocks",), ("blocks", "channels")):
        made = plan_steps(
            analysis, "l2", "macs=0.8", steps=3, constraints=Constraints(only=only, include=("stage.1",)), data=None
        )
        assert list(made.blocks) == ["stage.1"]


def test_patterns_that_match_nothing_are_named_beside_blocks() -> None:
    scores = score(analyze(load(chain(4))))
    with pytest.raises(OnnxPruneError, match=r"stage\.9"):
        plan(scores, "macs=0.8", constraints=Constraints(only=("blocks",), include=("stage.9",)))
    with pytest.raises(OnnxPruneError, match=r"stage\.9"):
        plan(scores, "macs=0.8", constraints=Constraints(only=("blocks",), exclude=("stage.9",)))


def test_every_command_reports_removed_blocks_alike(tmp_path: Path) -> None:
    def run(*command: str) -> dict[str, Any]:
        done = CliRunner().invoke(main, [*command, "--json"])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert isinstance(found, dict)
        return found

    model, out, text = str(tmp_path / "m.onnx"), str(tmp_path / "small.onnx"), str(tmp_path / "plan.json")
    onnx.save(chain(4), model)
    limits = ["--only", "blocks", "--only", "channels", "--include", "stage.1"]
    planned = run("plan", model, *limits, "--target", "macs=0.8", "-o", text)
    reports = [
        planned, run("apply", model, text, "-o", out), run("verify", model, out, text),
        run("prune", model, *limits, "--target", "macs=0.8", "-o", str(tmp_path / "other.onnx")),
        run("recover", model, out, text, "--data", "none", "-o", str(tmp_path / "recovered.onnx")),
    ]  # fmt: skip
    for found in reports:
        assert found["removed_blocks"] == ["stage.1"]
        assert found["removed_channels"] == 0
    shown = CliRunner().invoke(main, ["plan", model, *limits, "--target", "macs=0.8", "-o", text])
    assert "names 1 block and no channels: stage.1" in shown.output


@pytest.mark.parametrize("criterion", ["l2", "obs", "distance"])
def test_scores_of_blocks_are_listed_written_and_planned_by(criterion: str, tmp_path: Path) -> None:
    model, file, text = str(tmp_path / "m.onnx"), str(tmp_path / "scores.json"), tmp_path / "plan.json"
    onnx.save(chain(4), model)
    done = CliRunner().invoke(main, ["score", model, "--blocks", "-c", criterion, "--data", "none", "-o", file])
    assert done.exit_code == 0, done.output
    order = list(json.loads(Path(file).read_text())["blocks"])
    assert sorted(order) == [f"stage.{i}" for i in range(4)]
    assert all(name in done.output for name in order)
    command = ["plan", model, "--scores", file, "--only", "blocks", "--target", "macs=0.6", "-o", str(text)]
    assert CliRunner().invoke(main, command).exit_code == 0
    assert list(load_plan(text).blocks) == order[:2]


def test_scores_of_blocks_exclude_comparisons(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["score", DIGITS, "--blocks", "--compare", "l1,l2"])
    assert done.exit_code == 2
    assert "--blocks" in done.output


def test_a_block_of_a_model_without_groups_is_removed() -> None:
    body = "c = Constant<value = float {2}>() z = Mul(x, c) " + conv("a", "z", "one") + "y = Relu(a) out = Add(x, y)"
    analysis = analyze(load(graph(body, ["one"])))
    assert not analysis.groups
    assert analysis.model.fingerprint != analysis.source.fingerprint  # the constant is no node any more
    [block] = analysis.free_blocks
    done = compile_plan(analysis.source, removing(analysis, [block.name]), analysis=analysis)
    assert [n.op for n in done.model.graph.nodes] in ([], ["Identity"])
    with pytest.raises(OnnxPruneError, match="no group remains to prune") as found:
        plan(score(analysis), "macs=0.5")
    assert found.value.fix == "remove residual blocks, of which 1 can be: --only blocks"
