"""Models in bfloat16, float16 and mixtures: pruned, and verified at a tolerance of their own."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.passes import WidenFloats
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.verification import TOLERANCE

BF16, F16 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16)


def model_of(kind: str, inner: Any, outer: Any = None, before: str = "", after: str = "") -> Model:
    """A residual block and a head; `inner` is the type of the block's weights, `outer` of the head's."""
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 22]>
      g ({kind}[N,3,6,6] x) => ({kind}[N,4] y)
      {{ {before or "c = Identity (x)"} h = Conv <pads = [1, 1, 1, 1]> (c, w0, b0) r = Relu (h)
         k = Conv <pads = [1, 1, 1, 1]> (r, w1) s = Add (k, h) p = GlobalAveragePool (s) f = Flatten (p)
         {after or "g = Identity (f)"} y = Gemm (g, w2, b2) }}""")
    rng = np.random.default_rng(0)
    shapes = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "w2": (16, 4), "b2": (4,)}
    for name, shape in shapes.items():
        dtype = outer if outer is not None and name.endswith("2") else inner
        value = (0.3 * rng.standard_normal(shape)).astype(dtype)
        proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return load(proto)


def halved(model: Model) -> Compiled:
    analysis = analyze(model)
    return compile_plan(model, op.plan(op.score(analysis, "l2"), op.Target(channels=0.5)), analysis=analysis)


@pytest.mark.parametrize("mixed", [False, True], ids=["whole", "within float32"])
def test_bfloat16_is_proved_on_float32_copies(mixed: bool) -> None:
    if mixed:
        model = model_of("float", BF16, np.float32, "c = Cast <to = 16> (x)", "g = Cast <to = 1> (f)")
    else:
        model = model_of("bfloat16", BF16)
    done = halved(model)
    proof = done.verification
    assert proof is not None
    assert proof.computed_in == "float32"
    assert proof.tolerance == TOLERANCE["float32"]
    assert proof.max_relative < 1e-5 < proof.effect
    # What is written is bfloat16 as before: only the copies were widened.
    weight = done.model.graph.tensors()["w1"]
    assert (weight.dtype, weight.shape) == (BF16, (8, 8, 3, 3))


def test_float16_runs_as_it_is_and_keeps_its_own_tolerance() -> None:
    proof = halved(model_of("float16", F16)).verification
    assert proof is not None
    assert (proof.computed_in, proof.tolerance) == ("", TOLERANCE["float16"])
    assert proof.max_relative <= proof.tolerance < proof.effect


def test_mixture_of_float16_and_float32() -> None:
    model = model_of("float", F16, np.float32, "c = Cast <to = 10> (x)", "g = Cast <to = 1> (f)")
    proof = halved(model).verification
    assert proof is not None
    assert proof.max_relative < 1e-2 < proof.effect
    assert proof.computed_in == ""


def test_session_on_bfloat16_says_what_to_do() -> None:
    with pytest.raises(OnnxPruneError, match="Could not find an implementation") as caught:
        Session(model_of("bfloat16", BF16))
    assert "widen_floats" in str(caught.value.fix)


def test_widened_model_computes_what_the_narrow_one_means() -> None:
    narrow = model_of("float16", F16)
    wide = WidenFloats("float16")(narrow)
    x = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float16)
    (a,), (b,) = Session(narrow).run({"x": x}), Session(wide).run({"x": x.astype(np.float32)})
    assert b.dtype == np.float32
    np.testing.assert_allclose(a.astype(np.float32), b, rtol=2e-2, atol=2e-2)
    np.testing.assert_array_equal(wide.graph.tensors()["w0"].values, narrow.graph.tensors()["w0"].values)


def test_widening_reaches_bodies_attributes_and_the_interface() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 22]>
      g (bfloat16[2,3] x) => (bfloat16[2,3] y) {
      f = Cast <to = 1> (x) t = ReduceMax <keepdims = 0> (f) z = Constant <value_float = 0.0> () p = Greater (t, z)
      i = If (p) <then_branch = then () => (bfloat16[2,3] a) { a = Add (x, x) },
                  else_branch = other () => (bfloat16[2,3] b) { b = Cast <to = 16> (f) }> y = Neg (i) }""")
    wide = WidenFloats()(load(proto))
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(Session(wide).run({"x": x})[0], -2 * x)
    np.testing.assert_array_equal(Session(wide).run({"x": -x})[0], x)


def test_widening_knows_two_types() -> None:
    with pytest.raises(OnnxPruneError, match="does not support the type 'float64'"):
        WidenFloats("float64")(model_of("float16", F16))
