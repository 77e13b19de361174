"""The workflows for CI: their commands exist and succeed on a model and its plan."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import CommandLine
from documented import ROOT, parse

CI = ROOT / "examples" / "ci"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models" / "digits_cnn.onnx", tmp_path / "models" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    CommandLine().ok(
        "prune", "models/model.onnx", "-o", "models/small.onnx", "--target", "macs=0.5", "--plan", "models/plan.json"
    )
    return tmp_path


def ours(lines: list[str]) -> list[list[str]]:
    return [words for words in map(shlex.split, lines) if words[0] == "onnxprune"]


def test_the_github_workflow_runs(models: Path) -> None:
    workflow: dict[str, Any] = yaml.safe_load((CI / "github-workflow.yml").read_text(encoding="utf-8"))
    lines = [step["run"] for step in workflow["jobs"]["check"]["steps"] if "run" in step]
    for line in lines:
        parse(shlex.split(line.removesuffix(" > bench.json")), "github-workflow.yml")
    verify, bench = ours(lines)
    CommandLine(*verify[1:]).ok()
    document = json.loads(CommandLine(*bench[1 : bench.index(">")]).out())
    (check,) = [shlex.split(line)[2] for line in lines if line.startswith("python -c")]
    (models / bench[-1]).write_text(json.dumps([document[0], {**document[1], "speedup": 1.5}]), encoding="utf-8")
    exec(check, {})
    (models / bench[-1]).write_text(json.dumps([document[0], {**document[1], "speedup": 0.9}]), encoding="utf-8")
    with pytest.raises(AssertionError):
        exec(check, {})


def test_the_pre_commit_hooks_run(models: Path) -> None:
    config: dict[str, Any] = yaml.safe_load((CI / "pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = config["repos"][0]["hooks"]
    commands = ours([hook["entry"] for hook in hooks])
    assert len(commands) == len(hooks) == 2
    for words in commands:
        CommandLine(*words[1:]).ok()


def test_verify_stops_a_model_that_is_not_the_plans(models: Path) -> None:
    shutil.copy(models / "models" / "model.onnx", models / "models" / "small.onnx")
    CommandLine().fails("verify", "models/model.onnx", "models/small.onnx", "models/plan.json", code=3)
