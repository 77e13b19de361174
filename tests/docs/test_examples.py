"""The examples run, and what they say comes true. Those that train are in test_documentation.py."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import ROOT, run_script

import onnxprune as op

# Which test runs an example: one that nobody runs is a defect.
RUN_HERE = {"pytorch_to_plot", "keras_to_plot", "prune_then_quantize", "serve"}
RUN_ELSEWHERE = {"own_loop_pytorch", "own_loop_keras", "python_api"}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No display, and a root logger as it was."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def printed(name: str, target: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of an example."""
    run_script(ROOT / "examples" / f"{name}.py", str(target))
    return capsys.readouterr().out


def numbers(pattern: str, text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(pattern, text)]


def test_every_example_has_its_test() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == RUN_HERE | RUN_ELSEWHERE


def test_pytorch_export_to_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("pytorch_to_plot", tmp_path / "latency.svg", capsys)
    assert numbers(r"([\d.]+)% of the MACs", out) == pytest.approx([100, 75, 50, 25], abs=1)
    assert (tmp_path / "latency.svg").read_text(encoding="utf-8").count("<path") > 10


def test_keras_export_to_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("keras_to_plot", tmp_path / "keras.svg", capsys)
    assert numbers(r"([\d.]+)% of the MACs", out) == pytest.approx([100, 75, 50, 25], abs=1)
    cut, recovered = numbers(r"top1 ([\d.]+) as cut", out), numbers(r"([\d.]+) recovered", out)
    assert cut[0] == recovered[0]
    assert recovered[2] > cut[2] + 0.2
    assert (tmp_path / "keras.svg").read_text(encoding="utf-8").count("<path") > 10


def test_prune_then_quantize_composes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("prune_then_quantize", tmp_path, capsys)
    sizes, accuracy = numbers(r"([\d,]+) bytes", out), numbers(r"top1 ([\d.]+)", out)
    original, quantized, pruned, both, after = sizes
    assert both < min(quantized, pruned) < max(quantized, pruned) < original
    assert after < quantized
    assert min(accuracy) > accuracy[0] - 0.03


def test_the_served_interface_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed("serve", tmp_path / "small.onnx", capsys)
    assert "same interface: True" in out
    assert min(numbers(r"([\d.]+)% answered as before", out)) > 97
    small, shipped = op.load(tmp_path / "small.onnx"), op.load(ROOT / "models" / "digits_cnn.onnx")
    assert {t.name for t in small.graph.inputs + small.graph.outputs} == {
        t.name for t in shipped.graph.inputs + shipped.graph.outputs
    }
