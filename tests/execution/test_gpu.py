"""The CUDA provider computes what the CPU computes. `make test-gpu`, with onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.execution.data import load_data
from onnxprune.execution.sessions import Session
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, score
from onnxprune.planning.sensitivity_sweep import sensitivity
from onnxprune.verification import relative_difference

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


@pytest.mark.gpu
def test_cuda_session_agrees_with_the_cpu() -> None:
    model, x = load(DIGITS), load_data("digits").x
    cuda = Session(model, device="cuda")
    assert cuda.provider == "CUDAExecutionProvider"
    # Tensor cores may round products to TF32: 10 bits of mantissa.
    assert relative_difference(cuda.run({"image": x})[0], Session(model).run({"image": x})[0]) < 1e-2


@pytest.mark.gpu
def test_cuda_sweep_agrees_with_the_cpu() -> None:
    model, data = load(DIGITS), load_data("digits")
    scores = score(analyze(model), "l1")
    cpu = sensitivity(scores, data, ratios=(0.3, 0.6, 0.9))
    cuda = sensitivity(scores, data, ratios=(0.3, 0.6, 0.9), device="cuda")
    assert cuda.settings["provider"] == "CUDAExecutionProvider"
    for name, curve in cpu.groups.items():
        for a, b in zip(curve.points, cuda.groups[name].points, strict=True):
            assert abs(a.value - b.value) <= 0.01  # TF32 may turn decisions near a tie
    again = sensitivity(scores, data, ratios=(0.3, 0.6, 0.9), device="cuda")
    assert [[p.value for p in c.points] for c in again.groups.values()] == [
        [p.value for p in c.points] for c in cuda.groups.values()
    ]


def test_without_cuda_auto_runs_on_the_cpu_and_says_so() -> None:
    model, data = load(DIGITS), load_data("digits", images=50)
    scores = score(analyze(model), "l1")
    lines: list[str] = []
    curves = sensitivity(
        scores, data, ratios=(0.5,), include=["stem*"], device="auto", partial_classes=True, notice=lines.append
    )
    assert curves.settings["provider"] in lines[0]
    if curves.settings["provider"] == "CPUExecutionProvider":
        assert "auto: onnxruntime has no CUDA here" in lines[0]
