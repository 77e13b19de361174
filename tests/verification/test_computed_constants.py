"""Constants that the original computes and the pruned model stores."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune as op
from onnxprune.errors import VerificationError
from onnxprune.verification._computed import rounded_from

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("own", "exact", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-8], True),
        ([1.0, 2.0], [1.0, 2.00001], False),
        ([NAN, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [NAN, 2.0], False),
        ([NAN, 2.0], [NAN, 2.0], True),
        ([INF, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [INF, 2.0], False),
        ([-INF, 2.0], [INF, 2.0], False),
        ([1.0, 2.0], [1.0, 2.0, 3.0], False),
    ],
)
def test_a_stored_constant_is_the_exact_value_rounded(own: list[float], exact: list[float], expected: bool) -> None:
    stored, wide = np.array(own, np.float32), np.array(exact, np.float64)
    with np.errstate(invalid="ignore"):
        assert rounded_from(stored, np.full_like(stored, 7), wide) is expected


def test_an_infinity_that_the_runtime_computes_is_stored() -> None:
    values = np.array([INF, -INF], np.float32)
    assert rounded_from(values, values, values.astype(np.float64))


TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x) => (float[N, 2] y) <int64[2] places = {0, 2}> {
    rows = Gather (table, places)
    shift = ReduceSum <keepdims = 0> (rows)
    h = MatMul (x, a)
    r = Relu (h)
    s = Add (r, shift)
    y = MatMul (s, b)
}
"""


@pytest.mark.parametrize("value", [NAN, INF, 0.0])
def test_a_wrong_computed_constant_is_refused(value: float) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT)
    for name, shape in (("table", (3, 1)), ("a", (4, 6)), ("b", (6, 2))):
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    done = op.prune(proto, target="macs=0.5")
    pruned = op.to_proto(done.model)
    [stored] = [t for t in pruned.graph.initializer if t.name == "shift"]
    assert op.verify(proto, pruned, done.plan)
    stored.CopyFrom(numpy_helper.from_array(np.full(tuple(stored.dims), value, np.float32), "shift"))
    with pytest.raises(VerificationError, match="another constant than the original computes"):
        op.verify(proto, pruned, done.plan)
