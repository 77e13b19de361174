"""`onnxprune retrain` from the command line: what is written and when, interruptions, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from command_line import CommandLine

import onnxprune as op
from onnxprune.cli import main

MODELS = Path(__file__).parent.parent.parent / "models"
ORIGINAL = MODELS / "digits_cnn_folded.onnx"
DATA = ("--data", "digits:train", "--images", "300", "--val-share", "0.2")
FAST = (*DATA, "--epochs", "2", "--batch", "25", "--lr", "0.05", "--device", "cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the subprocesses have, so that both compute the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A digits model with so many wrong channels gone that it guesses."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    command = ["prune", str(ORIGINAL), "-o", str(path), "-c", "random", "--target", "macs=0.3", "--round-to", "4"]
    command += ["--plan", str(path.with_name("plan.json"))]
    assert CliRunner().invoke(main, command, catch_exceptions=False).exit_code == 0
    return path


line = CommandLine("retrain")
run, ok, fails = line.run, line.ok, line.fails


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "onnxprune", "retrain", *map(str, args)]


def top1(path: Path) -> float:
    return op.evaluate(op.load(path), op.load_data("digits:test")).top1


def test_it_recovers_and_says_so(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.onnx"
    result = ok(small, *FAST, "-o", output)
    assert "240 samples and 60 to validate" in result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("small.onnx ->")
    assert sum("as given" in line for line in lines) == 1
    assert sum(line.strip().startswith("* ") for line in lines) == 1
    assert "top1" in result.stdout
    assert f"logs: {output}.training" in result.stdout.replace("\n", "")
    assert top1(output) > top1(small) + 0.2
    onnx.checker.check_model(str(output), full_check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.onnx", "r.onnx.training"]
    assert sorted(p.name for p in (tmp_path / "r.onnx.training").iterdir()) == ["csv", "tensorboard"]


def test_json_is_one_document_and_teaching_needs_no_labels(small: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=op.load_data("digits:train", images=300).x)
    args = (*FAST[6:], "--val-share", "0.2", "--data", tmp_path / "x.npz", "--teacher", ORIGINAL)
    result = ok(small, *args, "-o", tmp_path / "r.onnx", "--json")
    found = json.loads(result.stdout)
    assert found["output"] == str(tmp_path / "r.onnx")
    assert found["metric"] == "distillation"
    assert [e["epoch"] for e in found["history"]] == [0, 1, 2]
    assert found["after"] == {"top1": None, "loss": found["history"][found["epoch"]]["loss"]}
    assert found["after"]["loss"] < 0.75 * found["before"]["loss"]
    assert len(found["trained"]) == len({t for t in found["trained"] if t in op.load(small).graph.tensors()}) > 10
    assert top1(tmp_path / "r.onnx") > top1(small) + 0.2


def test_a_model_that_did_not_improve_is_not_written(tmp_path: Path) -> None:
    data = op.load_data("digits:train", images=100)
    np.savez(tmp_path / "wrong.npz", x=data.x, y=(data.y + 1) % 10)  # type: ignore[operator]
    output = tmp_path / "r.onnx"
    args = (
        ORIGINAL, "--data", tmp_path / "wrong.npz", "--val-data", "digits:test", "--epochs", 1, "--batch", 25,
        "--lr", 0.05, "--device", "cpu", "-o", output,
    )  # fmt: skip
    message = fails(*args)
    assert "not written: top1 9" in message
    assert "before" in message
    assert "after epoch 1" in message
    assert "--keep last" in message
    assert not output.exists()
    # What was trained is kept, so writing it anyway takes no second training.
    result = ok(*args, "--keep", "last", "--resume", "--json")
    assert json.loads(result.stdout)["improved"] is False
    assert top1(output) < 0.9
    # Now the original is better than what it would replace, but still not better than itself.
    assert "not written" in fails(*args)


def test_what_is_there_is_only_replaced_by_something_better(small: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.onnx"
    output.write_bytes(ORIGINAL.read_bytes())
    message = fails(small, *FAST, "-o", output)
    assert "of what it would replace" in message
    assert output.read_bytes() == ORIGINAL.read_bytes()
    output.write_bytes(small.read_bytes())
    ok(small, *FAST, "-o", output, "--resume")
    assert top1(output) > top1(small) + 0.2
    output.write_text("no model")
    assert "not an ONNX model" in fails(small, *FAST, "-o", output)
    ok(small, *FAST, "-o", output, "--keep", "last")
    assert top1(output) > top1(small) + 0.2


def test_killed_and_resumed_is_the_same_file(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bomb.py").write_text(
        "import os\ncalls = 0\ndef f(x):\n    global calls\n    calls += 1\n"
        "    if calls == int(os.environ.get('BOMB', -1)):\n        os.kill(os.getpid(), 9)\n    return x\n"
    )
    args = (small, *FAST, "--augment", "crop=1", "--augment", "bomb:f", "--schedule", "onecycle", "--ema", "0.9")
    at = 25 + 250 + 130  # the trial batch, an epoch of ten batches, and half of the second
    env = {**os.environ, "BOMB": str(at), "OMP_NUM_THREADS": "1"}
    output = tmp_path / "r.onnx"
    killed = subprocess.run(command(*args, "-o", output), env=env, cwd=tmp_path, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not output.exists()
    assert (tmp_path / "r.onnx.training" / "last.ckpt").exists()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "not the same: lr" in fails(*args, "-o", output, "--lr", "0.01")
    result = ok(*args, "-o", output)
    assert "resuming after epoch 1 of 2" in result.stderr
    ok(*args, "-o", tmp_path / "whole.onnx")
    assert output.read_bytes() == (tmp_path / "whole.onnx").read_bytes()


def test_workers_change_nothing(small: Path, tmp_path: Path) -> None:
    alone, two = tmp_path / "alone.onnx", tmp_path / "two.onnx"
    ok(small, *FAST, "--augment", "crop=1", "-o", alone)
    # In a process of its own: a loader forks its workers, and forks of one with the threads of many tests are not safe.
    done = subprocess.run(
        command(small, *FAST, "--augment", "crop=1", "--workers", 2, "-o", two),
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = ({t.name: t for t in onnx.load(path).graph.initializer} for path in (alone, two))
    assert first == second


def test_restart_begins_anew(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r.onnx.training"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(b"something")
    assert "not a checkpoint" in fails(small, *FAST, "-o", tmp_path / "r.onnx")
    ok(small, *FAST, "-o", tmp_path / "r.onnx", "--restart")


def test_a_method_ends_in_a_plan_that_applies(tmp_path: Path) -> None:
    trained, plan, cut = tmp_path / "trained.onnx", tmp_path / "plan.json", tmp_path / "cut.onnx"
    model = MODELS / "digits_cnn.onnx"
    result = ok(
        model, *FAST, "-o", trained, "--method", "slimming", "-p", "strength=0.001", "--target", "macs=0.6",
        "--round-to", 4, "--plan", plan, "--json",
    )  # fmt: skip
    found = json.loads(result.stdout)
    assert found["plan"] == str(plan)
    assert found["epoch"] == 2
    assert CliRunner().invoke(main, ["apply", str(trained), str(plan), "-o", str(cut)]).exit_code == 0
    macs = [op.CostModel(op.analyze(op.load(p))).baseline.macs for p in (model, cut)]
    assert macs[1] / macs[0] == pytest.approx(0.6, abs=0.05)
    assert top1(cut) > 0.3


def test_an_error_before_training_leaves_nothing_behind(small: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "wide.npz", x=np.zeros((200, 1, 9, 9), np.float32), y=np.arange(200) % 10)
    assert "do not fit" in fails(small, "--data", tmp_path / "wide.npz", "-o", tmp_path / "r.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["wide.npz"]


@pytest.mark.parametrize("how", ["script", pytest.param("module", marks=pytest.mark.slow)])
def test_two_processes_train_one_model_and_one_of_them_speaks(small: Path, tmp_path: Path, how: str) -> None:
    script = Path(sys.executable).with_name("onnxprune")
    output = tmp_path / "r.onnx"
    args = [str(a) for a in (small, *FAST, "--batch", 12, "--devices", 2, "--teacher", ORIGINAL, "-o", output)]
    start = command(*args) if how == "module" else [str(script), "retrain", *args]
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "MASTER_PORT", "WORLD_SIZE")}
    done = subprocess.run(
        start, capture_output=True, text=True, cwd=tmp_path, timeout=300, env={**env, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("as given") == 1
    assert done.stderr.count("training on the CPU, 2 processes") == 1
    said = done.stderr.strip().splitlines()
    assert all(line.startswith("training") for line in said), done.stderr
    assert len(set(said)) == len(said), done.stderr
    assert sum("training: 100 %" in line for line in said) <= 1, done.stderr  # a training of less than 5 s has none
    assert top1(output) > top1(small) + 0.2
    # Each process sees half of the samples: 240 / (2 x 12) steps.
    rows = (tmp_path / "r.onnx.training/csv/version_0/metrics.csv").read_text().splitlines()
    names, last = rows[0].split(","), rows[-1].split(",")
    assert int(last[names.index("step")]) == 2 * 10 - 1


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("--epochs", "0"), 1, "epochs must be a whole number"),
        (("--lr", "fast"), 2, "--lr takes a number or auto"),
        (("--optimizer", "adam"), 1, "did you mean 'adamw'"),
        (("--data", "nothing.npz"), 1, "nothing.npz"),
        (("--val-data", "nothing.npz"), 1, "nothing.npz"),
        (("--teacher", "nothing.onnx"), 1, "no such file"),
        (("--unlabelled",), 1, "--teacher"),
        (("--batch", "1000"), 1, "smaller --batch"),
        (("--augment", "blur"), 1, "unknown augmentation"),
        (("--size", "x"), 2, "--size takes"),
        (("--mean", "0.1,0.2"), 1, "--mean has 2 numbers"),
        (("--plan", "p.json"), 2, "need --method"),
        (("--target", "macs=0.5"), 2, "need --method"),
        (("--method", "slimming"), 2, "--plan"),
        (("--method", "nothing", "--plan", "p.json", "--ratio", "0.5"), 1, "unknown method"),
        (("--method", "slimming", "--plan", "p.json", "--ratio", "1.5"), 1, "--ratio must be in [0, 1)"),
        (("--lr", "1e30", "--no-insert-batchnorm"), 1, "the loss became"),
    ],
)
def test_nonsense_is_one_error_and_leaves_no_model(
    small: Path, tmp_path: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    output = tmp_path / "r.onnx"
    assert message in fails(small, *FAST, "-o", output, *args, code=code)
    assert not output.exists()


def test_features_are_matched_under_the_plan(small: Path, tmp_path: Path) -> None:
    plan, output = small.with_name("plan.json"), tmp_path / "r.onnx"
    taught = (small, *FAST, "--teacher", ORIGINAL, "--features", 1)
    assert "--teacher-plan" in fails(*taught, "-o", output)  # the streams were pruned, too
    result = json.loads(ok(*taught, "--teacher-plan", plan, "-o", output, "--json").stdout)
    assert result["after"]["top1"] > result["before"]["top1"]
    text = fails(small, *FAST, "--teacher", ORIGINAL, "--teacher-plan", plan, "-o", tmp_path / "s.onnx")
    assert "none are matched" in text
    other = tmp_path / "other.json"
    other.write_text(
        plan.read_text(encoding="utf-8").replace(op.load(ORIGINAL).fingerprint, "0" * 64), encoding="utf-8"
    )
    assert "plan" in fails(*taught, "--teacher-plan", other, "-o", tmp_path / "s.onnx")
    moved = json.loads(plan.read_text(encoding="utf-8"))  # as many channels of each group, not the same ones
    for group in moved["groups"].values():
        gone = group["removed"]
        group["removed"] = sorted({(i + 1) % group["channels"] for i in gone})
    other.write_text(json.dumps(moved), encoding="utf-8")
    assert "by another plan" in fails(*taught, "--teacher-plan", other, "-o", tmp_path / "s.onnx")


def test_the_output_is_not_the_input_nor_the_teacher(small: Path) -> None:
    assert "the output is the input file" in fails(small, *FAST, "-o", small)
    assert "the output is the input file" in fails(small, *FAST, "--teacher", ORIGINAL, "-o", ORIGINAL)
