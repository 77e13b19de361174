"""CUDA and TensorRT as runtimes. `make test-gpu`, with onnxruntime-gpu."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import session_timer
from onnxprune.ir.reader import load
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.latency.runtimes import block_of, make_runtime
from onnxprune.pipeline import analyze, prune

DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.gpu
def test_cuda_measures_with_inputs_and_outputs_on_the_gpu() -> None:
    model = load(DIGITS)
    feeds = random_feeds(analyze(model), 8)
    session = Session(model, providers=[("CUDAExecutionProvider", {}), ("CPUExecutionProvider", {})])
    assert session.on_gpu
    binding = session.bind(feeds)
    session.raw.run_with_iobinding(binding)
    np.testing.assert_allclose(binding.copy_outputs_to_cpu()[0], Session(model).run(feeds)[0], rtol=1e-2, atol=1e-2)
    assert session_timer(session, feeds)() > 0
    found = make_runtime("onnxruntime:cuda").measure([model, model], [feeds, feeds], threads=0, batch=8, runs=5)
    assert found.ran.startswith("CUDAExecutionProvider")
    assert found.share(1) == pytest.approx(1.0, abs=0.5)


@pytest.mark.gpu
def test_cuda_reports_layers_and_a_block() -> None:
    model = load(DIGITS)
    runtime = make_runtime("onnxruntime:cuda")
    layers = runtime.profile(model, random_feeds(analyze(model), 1), threads=0, runs=2)
    assert layers is not None
    assert {la.kernel for la in layers} >= {"CUDA"}
    assert block_of(runtime) == 8


@pytest.mark.gpu
def test_a_latency_target_on_cuda_is_measured() -> None:
    pruned = prune(DIGITS, target="latency=0.9", criterion="l2", runtime="onnxruntime:cuda", batch=64, runs=10)
    assert pruned.speedup is not None
    assert pruned.speedup.rounds
    assert pruned.speedup.provider.startswith("CUDAExecutionProvider")


@pytest.mark.gpu
def test_tensorrt_runs_or_says_what_is_missing() -> None:
    model = load(DIGITS)
    feeds = random_feeds(analyze(model), 1)
    missing: OnnxPruneError | None = None
    try:
        runtime = make_runtime("onnxruntime:tensorrt", {"trt_fp16_enable": "1"})
        found = runtime.measure([model], [feeds], threads=0, batch=1, runs=2)
    except OnnxPruneError as err:
        missing = err
    if missing is not None:
        assert missing.fix
        pytest.skip(str(missing))
    assert found.ran.startswith("TensorrtExecutionProvider")
    assert runtime.describe().precision == "float16 allowed"
