"""Models that onnxruntime quantized: the same channels are free, and what runs in integers agrees bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks.structures import FOLDER, fill, unpack
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import load_data
from onnxprune.execution.sessions import Session
from onnxprune.passes import InsertMasks
from onnxprune.pipeline import Compiled, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.verification import QUANTIZED, TOLERANCE

MODELS = Path(__file__).resolve().parents[2] / "models"
DIGITS = MODELS / "digits_cnn_folded.onnx"
PER_CHANNEL = pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
FORMATS = pytest.mark.parametrize("form", list(QuantFormat), ids=lambda f: f.name)


class Feeds(CalibrationDataReader):  # type: ignore[misc]
    """A few batches."""

    def __init__(self, name: str, batches: list[np.ndarray]) -> None:
        self.left: Iterator[dict[str, np.ndarray]] = iter([{name: b} for b in batches])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def quantized(source: Path, out: Path, batches: list[np.ndarray], form: QuantFormat, **options: Any) -> op.Model:
    name = onnx.load(source, load_external_data=False).graph.input[0].name
    quantize_static(source, out, Feeds(name, batches), quant_format=form, activation_type=QuantType.QUInt8, **options)
    return op.load(out)


def digits(out: Path, form: QuantFormat = QuantFormat.QDQ, **options: Any) -> op.Model:
    x = load_data("digits").x
    return quantized(DIGITS, out, [x[i : i + 50] for i in range(0, 200, 50)], form, **options)


def pruned(model: op.Model, analysis: Analysis, criterion: str = "random", **target: float) -> Compiled:
    return compile_plan(model, op.plan(op.score(analysis, criterion), op.Target(**target)), analysis=analysis)


@FORMATS
@PER_CHANNEL
def test_the_same_channels_are_free_and_pruning_is_exact(tmp_path: Path, form: QuantFormat, per_channel: bool) -> None:
    model = digits(tmp_path / "q.onnx", form, per_channel=per_channel, weight_type=QuantType.QInt8)
    analysis = op.analyze(model)
    whole = op.analyze(op.load(DIGITS))
    assert {g.name: g.channels for g in analysis.groups} == {g.name: g.channels for g in whole.groups}
    done = pruned(model, analysis, macs=0.5)
    assert done.verification is not None
    assert done.verification.max_relative <= (0 if form is QuantFormat.QOperator else 1e-6)
    assert done.verification.effect > 0.5
    assert done.verification.tolerance == TOLERANCE["float32"]
    assert max(done.verification.outputs.values()) <= QUANTIZED
    kinds = [{t.dtype for t in m.graph.tensors().values() if hasattr(t, "values")} for m in (model, done.model)]
    assert np.dtype(np.int8) in kinds[1]
    assert kinds[1] <= kinds[0] | {np.dtype(np.int64)}
    # Weights of integers are parameters; scales and zero points are not.
    float_model = pruned(op.load(DIGITS), whole, macs=0.5)
    assert done.before.params == float_model.before.params


@FORMATS
def test_accuracy_on_digits_is_that_of_the_pruned_float_model(tmp_path: Path, form: QuantFormat) -> None:
    data = load_data("digits")
    original = op.load(DIGITS)

    def accuracy(model: op.Model) -> float:
        logits = Session(model, exact_integers=True).run({model.graph.inputs[0].name: data.x})[0]
        return float((logits.argmax(1) == data.y).mean())

    model = digits(tmp_path / "q.onnx", form, per_channel=True)
    small = pruned(model, op.analyze(model), "l2", macs=0.5)
    plain = pruned(original, op.analyze(original), "l2", macs=0.5)
    assert accuracy(plain.model) > 0.98
    assert abs(accuracy(small.model) - accuracy(plain.model)) < 0.01


def test_scores_are_those_of_the_numbers_that_the_integers_stand_for(tmp_path: Path) -> None:
    original = op.load(DIGITS)
    wanted = op.score(op.analyze(original), "l2")
    for form in QuantFormat:
        model = digits(tmp_path / f"{form}.onnx", form, per_channel=True)
        found = op.score(op.analyze(model), "l2")
        for name, values in wanted.groups.items():
            np.testing.assert_allclose(found.groups[name], values, rtol=0.05, atol=0.02 * values.max(), err_msg=name)


def test_masked_quantized_model_still_runs_in_integers(tmp_path: Path) -> None:
    model = digits(tmp_path / "q.onnx", per_channel=True)
    analysis = op.analyze(model)
    plan = op.plan(op.score(analysis, "random"), op.Target(macs=0.5))
    out = Session(InsertMasks(plan, analysis)(model), profile=tmp_path)
    out.run({model.graph.inputs[0].name: load_data("digits").x[:2]})
    ops = {k.op for k in out.kernels()[0]}
    assert "QLinearConv" in ops
    assert not ops & {"Conv", "FusedConv"}


def test_dynamically_quantized_products_are_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,6] x) => (float[N,4] y) {
      a = MatMul (x, w0) b = Relu (a) c = MatMul (b, w1) d = Relu (c) y = MatMul (d, w2) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in {"w0": (6, 16), "w1": (16, 12), "w2": (12, 4)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype("f"), name))
    onnx.save(proto, tmp_path / "m.onnx")
    for per_channel in (False, True):
        quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx", per_channel=per_channel)
        model = op.load(tmp_path / "q.onnx")
        analysis = op.analyze(model)
        assert {g.name: g.channels for g in analysis.groups} == {"w0": 16, "w1": 12}
        done = pruned(model, analysis, params=0.5)
        assert done.verification is not None
        assert done.verification.max_relative < 1e-6 < done.verification.effect


def test_weights_alone_in_integers_keep_the_tolerance_of_floats() -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
      g (float[N,3,5,5] x) => (float[N,4,5,5] y)
      { w = DequantizeLinear <axis = 0> (q, s) h = Conv (x, w) r = Relu (h) y = Conv (r, v) }""")
    consts = {"q": rng.integers(-127, 128, (8, 3, 1, 1)).astype(np.int8), "s": rng.random(8).astype("f"),
              "v": rng.standard_normal((4, 8, 1, 1)).astype("f")}  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in consts.items())
    model = op.load(proto)
    done = pruned(model, op.analyze(model), channels=0.5)
    assert done.verification is not None
    assert done.verification.tolerance == TOLERANCE["float32"]
    assert done.model.graph.tensors()["s"].shape == done.model.graph.tensors()["q"].shape[:1] == (4,)


def test_criteria_that_solve_for_weights_refuse_integers(tmp_path: Path) -> None:
    model = digits(tmp_path / "q.onnx")
    analysis = op.analyze(model)
    with pytest.raises(OnnxPruneError, match="this model's are quantized"):
        op.score(analysis, "obs", data=Calibration(load_data("digits")))


@pytest.mark.slow
@FORMATS
@pytest.mark.parametrize("name", ["resnet18.dyn", "mobilenet_v2.dyn"])
def test_quantized_structures_are_exact(tmp_path: Path, name: str, form: QuantFormat) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(fill(unpack(FOLDER / f"{name}.onnx.xz")), source)
    x = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    model = quantized(source, tmp_path / "q.onnx", [x], form, per_channel=True)
    analysis = op.analyze(model)
    # Names follow the order of nodes, which the quantizer changes where a shortcut joins.
    whole = op.analyze(op.load(source))
    assert sorted(g.channels for g in analysis.groups) == sorted(g.channels for g in whole.groups)
    done = compile_plan(model, half(analysis), analysis=analysis, feeds=[{model.graph.inputs[0].name: x}])
    assert done.verification is not None
    assert done.verification.max_relative == 0 < done.verification.effect


def half(analysis: Analysis) -> Plan:
    """Every second channel of every group."""
    return Plan("", {g.name: Removal(g.channels, tuple(range(0, g.channels - 1, 2))) for g in analysis.groups})
