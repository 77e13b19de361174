"""Plans of blocks alone and of blocks beside channels."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from residual import chain

from onnxprune.cli import main
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.options.planning import Constraints
from onnxprune.pipeline import analyze, compile_plan, plan, plan_steps, score
from onnxprune.plans import load_plan

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


def test_command_line_prunes_blocks_and_recovers(tmp_path: Path) -> None:
    out, text = tmp_path / "small.onnx", tmp_path / "plan.json"
    common = ["prune", DIGITS, "--only", "blocks", "--target", "macs=0.6", "-o", str(out), "--plan", str(text)]
    done = CliRunner().invoke(main, [*common, "--data", "digits", "--images", "128"])
    assert done.exit_code == 0, done.output
    made = load_plan(text)
    assert f"removed {len(made.blocks)} block" in done.output
    assert '"schema": 2' in text.read_text()
    assert made.blocks
    assert CliRunner().invoke(main, ["verify", DIGITS, str(out), str(text)]).exit_code == 0
