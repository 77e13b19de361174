"""QLinearConv of com.microsoft computes what the standard operator computes on transposed data."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.execution._nhwc_convolutions import standard_convolutions
from onnxprune.execution.sessions import Session


def model(channels_last: int, group: int) -> onnx.ModelProto:
    """Return a model with a 3x3 convolution of small integers, whose products no kernel saturates."""
    shape = "N, 5, 5, 8" if channels_last else "N, 8, 5, 5"
    proto = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (uint8[{shape}] x) => (uint8[{shape}] y) {{ '
        f"y = com.microsoft.QLinearConv<channels_last = {channels_last}, group = {group}, pads = [1, 1, 1, 1]>"
        "(x, s, z, w, s, b, s, z) }"
    )
    rng = np.random.default_rng(0)
    values = {
        "s": np.float32(0.5), "z": np.uint8(3), "b": np.int8(0),
        "w": rng.integers(-4, 5, (8, 8 // group, 3, 3)).astype(np.int8),
    }  # fmt: skip
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in values.items())
    return proto


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("channels_last", [0, 1])
def test_the_standard_operator_computes_the_same(channels_last: int, group: int) -> None:
    given = model(channels_last, group)
    standard = standard_convolutions(given)
    assert [n.domain for n in standard.graph.node if n.op_type == "QLinearConv"] == [""]
    onnx.checker.check_model(standard)
    shape = (2, 5, 5, 8) if channels_last else (2, 8, 5, 5)
    x = np.random.default_rng(1).integers(0, 9, shape).astype(np.uint8)
    [expected], [found] = (Session(m).run({"x": x}) for m in (given, standard))
    assert expected.std() > 0
    np.testing.assert_array_equal(found, expected)


def test_other_models_are_returned_as_they_are() -> None:
    given = model(1, 1)
    given.graph.node[0].domain = "other"
    assert standard_convolutions(given) is given
