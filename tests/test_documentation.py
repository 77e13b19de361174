"""What README, docs and examples show runs."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxprune as op
from onnxprune.calibration import Calibration
from onnxprune.cli import main
from onnxprune.criteria import registry
from onnxprune.plans import parse_plan
from onnxprune.scoring import score

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "models" / "digits_cnn.onnx"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def test_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(DIGITS, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = blocks("README.md", "python")
    assert len(found) == 3
    for block in found:
        exec(block, names)
    assert (tmp_path / "small.onnx").is_file()


def test_commands_of_the_readme_exist_with_their_options() -> None:
    lines = [
        line.split("#")[0].replace("$ ", "").split()
        for block in blocks("README.md", "")
        for line in block.splitlines()
        if re.match(r"(\$ )?onnxprune ", line)
    ]
    assert len(lines) >= 8
    for _, command, *words in lines:
        known = {o for p in main.commands[command].params for o in p.opts}
        assert {w for w in words if w.startswith("-")} <= known, command


def test_plan_of_the_format_page_is_a_plan() -> None:
    (text,) = blocks("docs/plan-format.md", "json")
    assert set(json.loads(text)["groups"]) == set(parse_plan(text).groups) != set()


def test_python_of_the_retraining_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "models" / "digits_cnn_folded.onnx", tmp_path / "small.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = blocks("docs/retraining.md", "python")
    assert len(found) == 2
    for block in found:
        exec(block, names)
    assert {p.name for p in tmp_path.iterdir()} == {"small.onnx", "better.onnx", "again.onnx"}


def test_criterion_of_the_criteria_page_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_criteria", dict(registry._criteria))
    (block,) = blocks("docs/criteria.md", "python")
    exec(block, {"__name__": "my_package.criteria"})
    analysis = op.analyze(op.load(DIGITS))
    calibration = Calibration(op.load_data("digits:train", images=20), threads=1)
    own, mean = (score(analysis, name, calibration=calibration).groups for name in ("act_peak", "act_mean"))
    assert all((own[name] >= mean[name]).all() and np.ptp(own[name]) > 0 for name in mean)


@pytest.mark.parametrize("name", ["own_loop_pytorch", "own_loop_keras"])
def test_own_loop_wins_accuracy_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", str(tmp_path / "out.onnx")])
    runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    original, cut = map(float, re.findall(r"original ([\d.]+), as cut ([\d.]+)", out)[0])
    retrained = float(re.findall(r"retrained ([\d.]+)", out)[0])
    assert cut < original - 0.05
    assert retrained > original - 0.03
    assert (tmp_path / "out.onnx").is_file()


def test_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["python_api.py", str(DIGITS), str(tmp_path / "small.onnx")])
    runpy.run_path(str(ROOT / "examples" / "python_api.py"), run_name="__main__")
    assert "MACs" in capsys.readouterr().out
    assert (tmp_path / "small.onnx").is_file()
