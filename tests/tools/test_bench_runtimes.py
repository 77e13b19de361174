"""The benchmark of runtimes and the steps of the GPU checks, in a runtime with a law of its own."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fake_runtimes import FakeRuntime

from onnxprune.latency.runtimes import RUNTIMES

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "models" / "digits_cnn.onnx"


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    return importlib.import_module


def test_figures_are_recorded_continued_and_written_into_the_page(tools: Any, tmp_path: Path) -> None:
    bench = tools("bench_runtimes")
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(f"before\n{bench.MARK[0]}\nold\n{bench.MARK[1]}\nafter\n", encoding="utf-8")
    command = [str(DIGITS), "--runtime", "fake", "--threads", "1", "--quick", "-o", str(figures), "--page", str(page)]
    with RUNTIMES.isolated():
        RUNTIMES.register(FakeRuntime)
        result = CliRunner().invoke(bench.main, [*command, "--share", "0.7"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        [row] = json.loads(figures.read_text())
        assert row["share"] == pytest.approx(0.7, abs=0.02)
        assert row["error"] < 0.05
        text = page.read_text(encoding="utf-8")
        assert "old" not in text
        assert text.startswith("before\n")
        assert text.endswith("after\n")
        assert "| digits_cnn.onnx | fake 1.0, nowhere | 1 | 8 |" in text
        CliRunner().invoke(bench.main, [*command, "--share", "0.7"], catch_exceptions=False)
        assert len(json.loads(figures.read_text())) == 1


def test_the_docs_have_the_marks(tools: Any) -> None:
    text = (ROOT / "docs" / "runtimes.md").read_text(encoding="utf-8")
    assert [text.count(mark) for mark in tools("bench_runtimes").MARK] == [1, 1]


def test_gpu_checks_join_the_steps_and_keep_the_end_of_a_failure(tools: Any, tmp_path: Path) -> None:
    checks = tools("gpu_checks")
    for name in checks.STEPS:
        (tmp_path / f"{name}.step").write_text('{"status": 0, "seconds": 1, "limit": 9}')
        (tmp_path / f"{name}.log").write_text("x" * 9000 + "the end")
    (tmp_path / "machine.json").write_text('{"gpu": "none"}')
    assert checks.collect("cuda", tmp_path)["passed"]
    (tmp_path / "bench.step").write_text('{"status": 124, "seconds": 180, "limit": 180}')
    found = checks.collect("cuda", tmp_path)
    assert not found["passed"]
    assert found["steps"]["bench"]["output"].endswith("the end")
    assert len(found["steps"]["bench"]["output"]) == 2000
    assert found["steps"]["machine"]["result"] == {"gpu": "none"}


def test_the_script_of_gpu_checks_is_one_of_a_shell() -> None:
    script = ROOT / "tools" / "gpu_checks.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    limits = [
        int(line.split()[2]) for line in text.splitlines() if line.strip().startswith("step ") and "cpu" not in line
    ]
    assert 0 < sum(limits) <= 120 + 600  # the rehearsal's tests beside ten minutes
