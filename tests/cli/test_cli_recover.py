"""`recover` and `prune --data` end to end through the command line, on the models that ship."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from onnx import numpy_helper

from onnxprune.ir.reader import load
from onnxprune.plans import load_plan
from onnxprune.recovery._lockstep import PairedCursor
from onnxprune.recovery.recover import STAGES

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
FOLDED = DIGITS.with_name("digits_cnn_folded.onnx")
DATA = ["--data", "digits:train", "--images", 120]
QUICK = [*DATA, "--rows", 600, "--threads", 1]

line = CommandLine()
run, ok, fails = line.run, line.out, line.fails
TARGET = ("--target", "macs=0.15", "--round-to", 4)
Cut = tuple[Path, Path, Path]  # original, pruned, plan


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Cut:
    """The folded network with 15 % of its MACs, which is too few."""
    folder = tmp_path_factory.mktemp("cut")
    small, plan = folder / "small.onnx", folder / "plan.json"
    ok("prune", FOLDED, "-o", small, *TARGET, "--plan", plan)
    return FOLDED, small, plan


@pytest.fixture(scope="module")
def recovered(cut: Cut, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model recovered in one uninterrupted run."""
    output = tmp_path_factory.mktemp("recovered") / "r.onnx"
    ok("recover", *cut, *QUICK, "-o", output)
    return output


def top1(path: Path) -> float:
    return float(json.loads(ok("evaluate", path, "--data", "digits:test", "--json"))["top1"])


def metadata(path: Path) -> dict[str, str]:
    return {p.key: p.value for p in onnx.load(str(path)).metadata_props}


def test_accuracy_comes_back_in_a_file_of_the_same_form(cut: Cut, recovered: Path) -> None:
    assert top1(cut[1]) < 0.5
    assert top1(recovered) > 0.9
    before, after = (onnx.load(str(p)) for p in (cut[1], recovered))
    onnx.checker.check_model(after, full_check=True)
    assert {t.name: (list(t.dims), t.data_type) for t in after.graph.initializer} == {
        t.name: (list(t.dims), t.data_type) for t in before.graph.initializer
    }
    assert [n.op_type for n in after.graph.node] == [n.op_type for n in before.graph.node]
    assert metadata(recovered) == {**metadata(cut[1]), "onnxprune.recovered": " ".join(STAGES)}
    assert [p.name for p in recovered.parent.iterdir()] == ["r.onnx"]


def test_the_table_and_the_document_say_what_each_stage_did(cut: Cut, tmp_path: Path) -> None:
    text = ok("recover", *cut, *QUICK, "-o", tmp_path / "r.onnx")
    rows = [row for row in text.splitlines() if row.split()[:1] in (["original"], ["as"], [STAGES[0]], [STAGES[1]])]
    assert len(rows) == 4
    assert "105 samples, 15 held out" in text
    assert all(len(row) <= 80 for row in text.splitlines() if str(tmp_path) not in row)
    result = run("recover", *cut, *QUICK, "-o", tmp_path / "j.onnx", "--json")
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert (document["output"], document["held_out"]) == (str(tmp_path / "j.onnx"), 15)
    assert [s["name"] for s in document["stages"]] == ["as cut", *STAGES]
    distances = [s["distance"] for s in document["stages"]]
    assert distances[2] < 0.3 * distances[0]
    assert (tmp_path / "j.onnx").read_bytes() == (tmp_path / "r.onnx").read_bytes()


def test_stages_can_be_chosen(cut: Cut, tmp_path: Path) -> None:
    document = json.loads(
        ok("recover", *cut, *QUICK, "-o", tmp_path / "r.onnx", "--stages", STAGES[0], "--json")
    )  # fmt: skip
    assert [s["name"] for s in document["stages"]] == ["as cut", STAGES[0]]
    assert "unknown stage" in fails("recover", *cut, *QUICK, "-o", tmp_path / "x.onnx", "--stages", "no")
    assert "--stages is empty" in fails("recover", *cut, *QUICK, "-o", tmp_path / "x.onnx", "--stages", ",", code=2)
    assert [p.name for p in tmp_path.iterdir()] == ["r.onnx"]


def test_without_any_data(cut: Cut, tmp_path: Path) -> None:
    args = ["recover", *cut, "--data", "none", "--images", 100, "--rows", 600, "--threads", 1]
    document = json.loads(ok(*args, "-o", tmp_path / "r.onnx", "--json"))
    assert document["original_top1"] is None
    assert {s["top1"] for s in document["stages"]} == {None}
    assert (document["samples"], document["held_out"]) == (88, 12)
    distances = [s["distance"] for s in document["stages"]]
    assert distances[-1] < 0.5 * distances[0]
    assert top1(tmp_path / "r.onnx") > top1(cut[1])
    assert "top1" in ok(*args, "-o", tmp_path / "t.onnx")
    assert (tmp_path / "t.onnx").read_bytes() == (tmp_path / "r.onnx").read_bytes()


def command(output: Path, cut: Cut, *more: str) -> list[str]:
    words = ["recover", *cut, *QUICK, "-o", output, *more]
    return [sys.executable, "-P", "-m", "onnxprune", *map(str, words)]


def test_kill_nine_and_resume_end_with_the_same_bytes(cut: Cut, recovered: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.onnx"
    journal = tmp_path / "r.onnx.recovery" / "journal"
    before = [p.read_bytes() for p in cut]
    process = subprocess.Popen(command(output, cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.returncode != 0:  # else it was faster than we
        assert not output.exists()
        assert [p.read_bytes() for p in cut] == before
        ok("recover", *cut, *QUICK, "-o", output)
    assert output.read_bytes() == recovered.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["r.onnx"]


def left_over(tmp_path: Path, cut: Cut, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output beside which an interrupted run has left two layers."""
    plain, count = PairedCursor.rows, []

    def rows(self: PairedCursor, *args: Any, **named: Any) -> Any:
        count.append(1)
        if len(count) > 2:
            raise KeyboardInterrupt
        return plain(self, *args, **named)

    output = tmp_path / "r.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(PairedCursor, "rows", rows)
        assert run("recover", *cut, *QUICK, "-o", output).exit_code != 0
    assert len(list((tmp_path / "r.onnx.recovery").glob("*.npz"))) == 2
    assert not output.exists()
    return output


def test_what_an_interrupted_run_left_is_not_taken_by_another_command(
    cut: Cut, recovered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = left_over(tmp_path, cut, monkeypatch)
    said = fails("recover", *cut, *QUICK, "-o", output, "--rounds", 1)
    assert str(tmp_path / "r.onnx.recovery") in said
    assert "other settings (rounds)" in said
    assert "use only one of them" in fails("recover", *cut, *QUICK, "-o", output, "--resume", "--restart", code=2)
    ok("recover", *cut, *QUICK, "-o", output, "--restart")
    assert output.read_bytes() == recovered.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["r.onnx"]
    note = line.ok("recover", *cut, *QUICK, "-o", output, "--resume").stderr
    assert "--resume is the default now" in note
    assert output.read_bytes() == recovered.read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--images", 10], "at least 16 samples; there are 10"),
        (["--data", "missing.npz"], "cannot read 'missing.npz'"),
        (["--size", "9x9", "--layout", "nhwc"], "they fit with --layout nchw"),
        (["--mean", "0,0,0"], "--mean has 3 numbers"),
        (["--device", "tpu"], "device"),
    ],
)
def test_bad_options_give_one_error_and_no_file(cut: Cut, more: list[object], says: str, tmp_path: Path) -> None:
    assert says in fails("recover", *cut, *QUICK, "-o", tmp_path / "r.onnx", *more)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_an_input_is_refused(cut: Cut) -> None:
    before = [p.read_bytes() for p in cut]
    for path in cut:
        assert "is the input file" in fails("recover", *cut, *QUICK, "-o", path)
    assert [p.read_bytes() for p in cut] == before


def test_models_and_plans_that_do_not_belong_together(cut: Cut, tmp_path: Path) -> None:
    original, small, plan = cut
    output = tmp_path / "r.onnx"
    assert "another model" in fails("recover", DIGITS, small, plan, *QUICK, "-o", output)
    other = tmp_path / "other.json"
    ok("plan", original, "--ratio", 0.3, "-o", other)
    assert "the plan keeps" in fails("recover", original, small, other, *QUICK, "-o", output)
    assert "the plan keeps" in fails("recover", original, original, plan, *QUICK, "-o", output)
    assert "its nodes differ" in fails("recover", original, DIGITS, plan, *QUICK, "-o", output)
    assert [p.name for p in tmp_path.iterdir()] == ["other.json"]


def test_the_cut_is_proved_first(cut: Cut, tmp_path: Path) -> None:
    original, small, plan = cut
    model = onnx.load(str(small))
    bias = next(t for t in model.graph.initializer if len(t.dims) == 1)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.3), bias.name))
    trained = tmp_path / "trained.onnx"
    onnx.save(model, str(trained))
    args = ["recover", original, trained, plan, *QUICK, "-o", tmp_path / "r.onnx"]
    said = fails(*args, code=3)
    assert "not the original's, compressed" in said
    assert "--no-verify" in said
    assert [p.name for p in tmp_path.iterdir()] == ["trained.onnx"]
    ok(*args, "--no-verify")
    assert top1(tmp_path / "r.onnx") > 0.5


def test_a_recovered_model_is_proved_but_for_its_weights(cut: Cut, tmp_path: Path) -> None:
    original, small, plan = cut
    better = tmp_path / "r.onnx"
    ok("recover", original, small, plan, *QUICK, "-o", better)
    assert json.loads(ok("verify", original, better, plan, "--json"))["weights"] == "not compared"
    assert "weights were not compared" in ok("verify", original, better, plan)
    assert json.loads(ok("verify", original, small, plan, "--json"))["weights"] == "identical"
    assert "made by another plan" in fails("verify", original, better, other_plan(plan, tmp_path), code=3)


def other_plan(plan: Path, folder: Path) -> Path:
    """Return a plan that removes one channel less."""
    made = json.loads(plan.read_text(encoding="utf-8"))
    group = next(g for g in made["groups"].values() if len(g["removed"]) > 1)
    group["removed"] = group["removed"][1:]
    path = folder / "other.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    return path


def test_the_proof_runs_on_the_data_as_well(tmp_path: Path) -> None:
    args = ["--target", "macs=0.6", "--data", "digits", "--images", 64, "--no-recover", "--json"]
    done = json.loads(ok("prune", DIGITS, "-o", tmp_path / "s.onnx", *args))
    assert done["verification"]["inputs"] == "random and data"


def test_usage_errors_exit_2(cut: Cut, tmp_path: Path) -> None:
    for args in ([*cut, "-o", tmp_path / "x"], [*cut, *DATA], cut[:2], [*cut, *QUICK, "-o", "x", "--rows", 0]):
        fails("recover", *args, code=2)


# --------------------------------------------------------------------------------------------------------- prune --data


def pruned(tmp_path: Path, *args: object, model: Path = FOLDED) -> tuple[dict[str, Any], Path, Path]:
    """The document, the model and the plan of `prune --data` to 15 % of the MACs."""
    output, plan = tmp_path / "p.onnx", tmp_path / "p.json"
    words = ["prune", model, "-o", output, "--plan", plan, *TARGET, *DATA, *args, "--json"]
    return json.loads(ok(*words)), output, plan


def test_prune_with_data_chooses_proves_and_recovers(cut: Cut, tmp_path: Path) -> None:
    document, output, plan = pruned(tmp_path)
    assert load_plan(plan).criterion["name"] == "obs"
    assert document["verification"]["max_relative"] <= 1e-4
    stages = document["recovery"]["stages"]
    assert [s["name"] for s in stages] == ["as cut", *STAGES]
    assert stages[-1]["distance"] < stages[0]["distance"]
    assert all(s["top1"] is not None for s in stages)
    assert top1(output) > 0.9 > top1(cut[1])
    macs = {p: json.loads(ok("inspect", p, "--json"))["macs"] for p in (FOLDED, output)}
    assert macs[output] / macs[FOLDED] == pytest.approx(0.15, abs=0.01)
    assert metadata(output)["onnxprune.plan"] == load_plan(plan).digest
    # What the plan alone gives is the cut: recovery changed it since.
    ok("apply", FOLDED, plan, "-o", tmp_path / "cut.onnx")
    assert load(tmp_path / "cut.onnx").fingerprint != load(output).fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.onnx", "p.json", "p.onnx"]


def test_prune_keeps_to_the_criterion_that_is_named(cut: Cut, tmp_path: Path) -> None:
    document, _, plan = pruned(tmp_path, "-c", "l2")
    assert load_plan(plan).criterion["name"] == "l2"
    assert plan.read_bytes() == cut[2].read_bytes()
    assert document["recovery"]["stages"][-1]["kept"]


def test_prune_without_recovery_is_the_cut_alone(cut: Cut, tmp_path: Path) -> None:
    document, output, _ = pruned(tmp_path, "-c", "l2", "--no-recover")
    assert "recovery" not in document
    assert output.read_bytes() == cut[1].read_bytes()


def test_prune_prints_each_step(tmp_path: Path) -> None:
    text = ok("prune", FOLDED, "-o", tmp_path / "p.onnx", *TARGET, "-c", "l2", *DATA)
    assert "without training: 105 samples, 15 held out" in text
    for name in ("original", "as cut", *STAGES):
        assert f" {name}" in text or f"\n{name}" in text


def test_prune_with_no_data_at_all(tmp_path: Path) -> None:
    args = [*TARGET, "--data", "none", "--images", 40]
    document = json.loads(ok("prune", FOLDED, "-o", tmp_path / "p.onnx", *args, "--json"))
    assert [s["top1"] for s in document["recovery"]["stages"]] == [None] * 3
    assert document["recovery"]["held_out"] == 5


def test_prune_recover_needs_samples(tmp_path: Path) -> None:
    said = fails("prune", FOLDED, "-o", tmp_path / "p.onnx", "--ratio", 0.3, "--recover", code=2)
    assert "--recover needs --data" in said
    said = fails("prune", FOLDED, "-o", tmp_path / "p.onnx", "--ratio", 0.3, "--data", "digits", "--images", 12)
    assert "at least 16 samples; there are 12" in said
    assert list(tmp_path.iterdir()) == []
