"""Results shown on pages and by examples are those of the code; test_pages.py runs every code block."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from documented import ROOT, blocks_of

import onnxprune as op
from onnxprune.criteria._registry import CRITERIA
from onnxprune.criteria.scoring import score
from onnxprune.execution.calibration import Calibration
from onnxprune.plans import parse_plan

DIGITS = ROOT / "models" / "digits_cnn.onnx"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_plan_of_the_format_page_is_a_plan() -> None:
    (text,) = (b.text for b in blocks_of("docs/plan-format.md") if b.language == "json")
    assert set(json.loads(text)["groups"]) == set(parse_plan(text).groups) != set()


@CRITERIA.isolated()
def test_criterion_of_the_criteria_page_scores() -> None:
    (block,) = (b.text for b in blocks_of("docs/criteria.md") if b.language == "python")
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


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_rows_of_a_table_have_the_cells_of_its_head(page: Path) -> None:
    """A row that is wrapped over two lines ends the table there."""
    fence, head = False, 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence ^= line.lstrip().startswith("```")
        bare = re.sub(r"`[^`]*`", "", line).replace("\\|", "")
        if fence or not (head or line.startswith("|")):
            continue
        if not line.strip():
            head = 0
            continue
        assert bare.startswith("|"), f"{page.name}:{number}: text directly below a table"
        assert bare.rstrip().endswith("|"), f"{page.name}:{number}: the row does not end"
        head = head or bare.count("|")
        assert bare.count("|") == head, f"{page.name}:{number}: {bare.count('|') - 1} cells, not {head - 1}"
