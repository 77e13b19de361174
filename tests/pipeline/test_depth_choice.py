"""The choice between blocks beside channels and channels alone, after recovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from networks.residual import WIDTH, chain

import onnxprune as op
from onnxprune.cli import main
from onnxprune.pipeline import depth_choice
from onnxprune.recovery.recover import Recovered, RecoveryStage

BOTH = op.Constraints(only=("blocks", "channels"), round_to=1)


def recovered(distance: float) -> Recovered:
    return Recovered(op.load(chain(1)), (RecoveryStage("as cut", distance, None, 0.0, True),), None, (8, 8))


@pytest.mark.parametrize(
    ("joint", "channels", "used"),
    [(0.2, 0.1, "channels"), (0.1, 0.2, "joint"), (0.1, 0.1, "joint"), (0.1, float("nan"), "joint"),
     (float("inf"), 0.1, "channels")],
)  # fmt: skip
def test_the_nearer_model_is_used(joint: float, channels: float, used: str) -> None:
    distances = {"joint": joint, "channels": channels}
    found, remark = depth_choice.nearer_to_original(
        "joint", lambda: "channels", lambda name: name, lambda name: recovered(distances[name])
    )
    assert found == used
    assert bool(remark) == (used == "channels")


def test_a_target_that_channels_alone_miss_leaves_the_blocks() -> None:
    def refused() -> str:
        raise op.OnnxPruneError("the target cannot be reached")

    found, remark = depth_choice.nearer_to_original("joint", refused, lambda name: name, lambda _: recovered(0.1))
    assert (found, remark) == ("joint", "")


def test_errors_of_the_proof_are_not_hidden() -> None:
    def run(_: str) -> str:
        raise op.OnnxPruneError("the pruned model differs")

    with pytest.raises(op.OnnxPruneError, match="differs"):
        depth_choice.nearer_to_original("joint", lambda: "channels", run, lambda _: recovered(0.1))


def test_without_recovery_nothing_is_compared() -> None:
    def never() -> str:
        raise AssertionError

    assert depth_choice.nearer_to_original("joint", never, lambda name: name, lambda _: None) == ("joint", "")


def samples() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((64, WIDTH, 6, 6)).astype(np.float32)}


@pytest.mark.parametrize("criterion", ["l2", "obs"])
def test_joint_pruning_is_no_further_from_the_original_than_channels_alone(criterion: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **samples())
    model, data = op.load(chain(4)), str(tmp_path / "x.npz")
    options: dict[str, Any] = {"target": "macs=0.6", "criterion": criterion, "data": data}
    joint = op.prune(model, constraints=BOTH, **options)
    alone = op.prune(model, constraints=op.Constraints(round_to=1), **options)
    assert joint.recovery is not None
    assert alone.recovery is not None
    assert joint.recovery.best.distance <= alone.recovery.best.distance
    assert abs(joint.after.ratio(joint.before, "macs") - 0.6) <= 0.02


def test_command_line_says_that_channels_alone_are_nearer(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **samples())
    proto = chain(4)
    for tensor in proto.graph.initializer:  # a block of small weights whose result is large
        if tensor.name.startswith("stage.1."):
            scale = 1e-2 if tensor.name.endswith("conv1.weight") else 1e3
            values = (onnx.numpy_helper.to_array(tensor) * scale).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(proto, tmp_path / "m.onnx")
    out, plan = tmp_path / "s.onnx", tmp_path / "plan.json"
    command = ["prune", str(tmp_path / "m.onnx"), "--only", "blocks", "--only", "channels", "-c", "l2"]
    command += ["--normalize", "none", "--exclude", "stage.1.conv1"]
    command += ["--round-to", "1", "--target", "macs=0.8", "--data", str(tmp_path / "x.npz"), "-o", str(out)]
    done = CliRunner().invoke(main, [*command, "--plan", str(plan), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["removed_blocks"] == []
    assert found["removed_channels"]
    assert "no block is removed" in done.stderr
    assert not op.load_plan(plan).blocks
    done = CliRunner().invoke(main, [*command, "--no-recover"])
    assert "without 1 block: stage.1" in done.output
