"""The CUDA provider computes what the CPU computes. `make test-gpu`, with onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxprune.data import load_data
from onnxprune.model import load
from onnxprune.runtime import Session
from onnxprune.verification import relative_difference

DIGITS = Path(__file__).parent.parent / "models" / "digits_cnn.onnx"


@pytest.mark.gpu
def test_cuda_session_agrees_with_the_cpu() -> None:
    model, x = load(DIGITS), load_data("digits").x
    cuda = Session(model, device="cuda")
    assert cuda.provider == "CUDAExecutionProvider"
    # Tensor cores may round products to TF32: 10 bits of mantissa.
    assert relative_difference(cuda.run({"image": x})[0], Session(model).run({"image": x})[0]) < 1e-2
