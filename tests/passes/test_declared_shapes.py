"""Shapes that a file declares for inner tensors, which exporters get wrong and onnxruntime only warns of."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import onnxprune as op

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 8, 8] x) => (float[N, 2, 8, 8] y) <DECLARED inner> {
    inner = Conv (x, a)
    r = Relu (inner)
    y = Conv (r, b)
}
"""


@pytest.mark.parametrize("declared", ["float[4, 8]", "float[N, 6, 8, 8, 1]", "float[N, 6, 8, 8]", "float[N, C, 8, 8]"])
def test_a_model_with_a_wrong_declared_rank_is_pruned_and_proved(declared: str) -> None:
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(TEXT.replace("DECLARED", declared))
    for name, shape in (("a", (6, 3, 1, 1)), ("b", (2, 6, 1, 1))):
        weight = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, name))
    done = op.prune(proto, ratio=0.5)
    assert done.plan.removed
    assert done.verification is not None
    shape = done.model.graph.tensors()["inner"].shape
    assert shape is None or len(shape) == 4
