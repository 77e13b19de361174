"""Products of uint8 and int8 on CPUs whose kernels saturate: computed exactly on request, reported otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType
from test_quantized_models import DIGITS, digits

import onnxprune as op
from onnxprune.execution import sessions
from onnxprune.execution.sessions import Session, saturates_integers
from onnxprune.execution.tasks import saturation
from onnxprune.execution.tasks.saturation import saturation_warning

# Values at which two products exceed 16 bits. Weights are constants of the model, as quantizers write them.
TERMS, LARGE = 64, {"uint8": 255, "int8": 127}
STEPS = {"sa": np.float32(1), "sb": np.float32(1), "sy": np.float32(16384)}
QLINEAR = "(a, sa, za, b, sb, zb, sy, za)"
AS_FLOATS = "d = DequantizeLinear (a, sa, za) w = DequantizeLinear (b, sb, zb)"
BODIES = {
    "MatMulInteger": "i = MatMulInteger (a, b) m = Cast <to = 1> (i)",
    "QLinearMatMul": f"q = QLinearMatMul {QLINEAR} m = DequantizeLinear (q, sy, za)",
    "QLinearConv": f"q = QLinearConv {QLINEAR} m = DequantizeLinear (q, sy, za)",
    "MatMul": f"{AS_FLOATS} f = MatMul (d, w) q = QuantizeLinear (f, sy, za) m = DequantizeLinear (q, sy, za)",
    "Conv": f"{AS_FLOATS} f = Conv (d, w) q = QuantizeLinear (f, sy, za) m = DequantizeLinear (q, sy, za)",
}


def product(name: str, data: str = "uint8", weight: str = "int8", size: int = 127) -> onnx.ModelProto:
    """One product of `TERMS` terms, each the largest there is."""
    conv = "Conv" in name
    shape, out = ([1, TERMS, 3, 3], "M,O,H,W") if conv else ([1, TERMS], "M,O")
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({data}{shape} a) => (float[{out}] m) {{ {BODIES[name]} }}'
    )
    b = np.full((16, TERMS, 1, 1) if conv else (TERMS, 16), size, weight)
    for key, value in {"b": b, "za": np.zeros((), data), "zb": np.zeros((), weight), **STEPS}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    return proto


def share(session: Session, data: str = "uint8", size: int = 127) -> float:
    """Return the result of a session for `product`, relative to the exact sum."""
    shape = session.raw.get_inputs()[0].shape
    [y] = session.run({"a": np.full(shape, LARGE[data], data)})
    assert np.ptp(y) == 0
    return float(y.flat[0]) / (LARGE[data] * size * TERMS)


@pytest.mark.parametrize("name", BODIES)
def test_exact_session_computes_every_sum_whole(name: str) -> None:
    assert share(Session(product(name), exact_integers=True)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("name", BODIES)
def test_plain_session_loses_half_of_a_sum_where_kernels_saturate_and_nowhere_else(name: str) -> None:
    wanted = 0.5 if saturates_integers() else 1
    assert share(Session(product(name))) == pytest.approx(wanted, abs=0.03)
    assert share(Session(product(name, size=64)), size=64) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_int8_data_is_exact_either_way(name: str, exact: bool) -> None:
    # Onnxruntime 1.32 rewrites the weights of such a QLinearConv too, and then has no kernel for it.
    session = Session(product(name, data="int8"), exact_integers=exact)
    assert share(session, data="int8") == pytest.approx(1, abs=0.01)


def test_weight_that_cannot_be_rewritten_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # Per axis and without a zero point: onnxruntime 1.32 gives it one of the wrong shape, and fails when it runs.
    monkeypatch.setattr(sessions, "saturates_integers", lambda: True)
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,8,2,2] x) => (float[N,4,2,2] y)
      { w = DequantizeLinear <axis = 0> (b, s) y = Conv (x, w) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for key, value in {"b": rng.integers(-127, 128, (4, 8, 1, 1)).astype(np.int8), "s": np.ones(4, np.float32)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(value, key))
    x = {"x": rng.standard_normal((2, 8, 2, 2)).astype(np.float32)}
    exact, plain = Session(proto, exact_integers=True), Session(proto)
    for _ in range(2):
        np.testing.assert_array_equal(exact.run(x)[0], plain.run(x)[0])


def test_exact_integers_need_optimizations() -> None:
    with pytest.raises(ValueError, match="optimize=True"):
        Session(product("MatMulInteger"), exact_integers=True, optimize=False)


@pytest.fixture(params=[False, True], ids=["exact", "saturating"])
def saturates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A CPU of either kind."""
    monkeypatch.setattr(saturation, "saturates_integers", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("name", BODIES)
def test_model_that_can_saturate_is_named_where_the_cpu_does(name: str, saturates: bool) -> None:
    assert bool(saturation_warning(op.load(product(name)))) == saturates


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("more", [{"data": "int8"}, {"weight": "uint8"}, {"size": 64}], ids=str)
def test_model_that_cannot_saturate_is_not_named(name: str, more: dict[str, Any], saturates: bool) -> None:
    assert not saturation_warning(op.load(product(name, **more)))


def test_weights_alone_in_integers_and_floats_are_not_named(saturates: bool) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
      { w = DequantizeLinear (b, s) y = MatMul (x, w) }"""
    proto = onnx.parser.parse_model(text)
    for key, value in {"b": np.full((4, 4), 127, np.int8), "s": np.float32(0.1)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))
    assert not saturation_warning(op.load(proto))
    assert not saturation_warning(op.load(DIGITS))


@pytest.mark.parametrize("form", list(QuantFormat), ids=lambda f: f.name)
@pytest.mark.parametrize("reduce_range", [False, True])
def test_quantized_model_without_reduced_range_is_named(
    tmp_path: Path, form: QuantFormat, reduce_range: bool, saturates: bool
) -> None:
    model = digits(tmp_path / "q.onnx", form, weight_type=QuantType.QInt8, reduce_range=reduce_range)
    assert bool(saturation_warning(model)) == (saturates and not reduce_range)


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "q.onnx"
    digits(path, weight_type=QuantType.QInt8)
    return path


def test_evaluate_says_so_on_stderr_and_in_json(int8: Path, saturates: bool) -> None:
    for more in ((), ("--json",)):
        result = CommandLine("evaluate", int8, "--data", "digits:test").ok(*more)
        assert ("reduce_range=True" in result.stderr) == saturates
        assert sum(line.startswith("Warning:") for line in result.stderr.splitlines()) == saturates
    assert ("reduce_range=True" in json.loads(result.stdout)["warning"]) == saturates


def test_sensitivity_says_so_on_stderr(int8: Path, saturates: bool, tmp_path: Path) -> None:
    args = ("--data", "digits:test", "--images", 20, "--ratios", "0.5", "--include", "*", "-o", tmp_path / "c.json")
    result = CommandLine("sensitivity", int8).ok(*args, "--json")
    assert ("reduce_range=True" in result.stderr) == saturates
    json.loads(result.stdout)
