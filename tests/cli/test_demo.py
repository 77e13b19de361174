"""`onnxprune demo`, and the models that ship by name."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import CommandLine

import onnxprune as op
from onnxprune.cli import main
from onnxprune.cli._support import demo
from onnxprune.errors import OnnxPruneError

line = CommandLine()
ALONE = """
import sys
for name in ("torch", "torchvision", "sklearn", "PIL", "plotly", "jinja2", "matplotlib", "datasets", "rapidfuzz"):
    sys.modules[name] = None
from onnxprune.cli import main
main(["demo", "-o", sys.argv[1]], standalone_mode=False)
"""


def test_the_demo_needs_no_extra_but_a_runtime(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, "small.onnx"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "proved: " in done.stdout
    assert re.search(r"14\.\d %\s+9\.8 %\s+(99|100)\.\d %", done.stdout)
    assert [p.name for p in tmp_path.iterdir()] == ["small.onnx"]
    commands = [shlex.split(t) for t in done.stdout.split("\nnext:\n")[1].splitlines()]
    assert {c[1] for c in commands} <= set(main.commands)
    assert op.evaluate(op.load(tmp_path / "small.onnx"), op.load_data("digits:test")).top1 > 0.99


def test_the_full_demo_retrains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo.run(tmp_path / "small.onnx", full=True, as_json=True, epochs=1)
    document = json.loads(capsys.readouterr().out)
    assert [r["macs"] for r in document["results"]] == [0.5, 0.15]
    for result in document["results"]:
        assert result["retrained"]["top1"] > 0.95
        assert result["recovered"]["top1"] > result["as_pruned"]["top1"] - 0.01
    assert document["accuracy"]["after"] == document["results"][0]["retrained"]


def test_models_that_ship_are_found_by_name(tmp_path: Path) -> None:
    name = "onnxprune:digits_cnn.onnx"
    assert op.load(name).fingerprint == op.load(Path(__file__).parents[2] / "models" / "digits_cnn.onnx").fingerprint
    line.ok("prune", name, "-o", tmp_path / "s.onnx", "--target", "0.5")
    line.ok("bench", name, tmp_path / "s.onnx", "--runs", "2")
    with pytest.raises(OnnxPruneError, match=r"did you mean 'digits_cnn\.onnx'"):
        op.load("onnxprune:digit_cnn.onnx")
