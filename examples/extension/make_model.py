"""Writes a small model with the operator com.example::Snake, as a model-local function that onnxruntime runs.

python make_model.py snake.onnx
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import numpy_helper

# An exporter writes the body like this (torch.onnx.export keeps custom functions); onnxruntime inlines it.
TEXT = """
<ir_version: 9, opset_import: ["" : 17, "com.example" : 1]>
snake (float[N,3,8,8] x) => (float[N,5] y) {
  h0 = Conv <pads = [1,1,1,1]> (x, stem)
  h1 = com.example.Snake (h0, stem_alpha)
  h2 = Dropout (h1)
  h3 = Conv <pads = [1,1,1,1]> (h2, body)
  h4 = com.example.Snake (h3, body_alpha)
  h5 = GlobalAveragePool (h4)
  h6 = Flatten (h5)
  y = Gemm <transB = 1> (h6, head)
}
<domain: "com.example", opset_import: ["" : 17]>
Snake (x, alpha) => (y) {
  shape = Constant <value_ints = [1, -1, 1, 1]> ()
  a = Reshape (alpha, shape)
  ax = Mul (a, x)
  s = Sin (ax)
  s2 = Mul (s, s)
  t = Div (s2, a)
  y = Add (x, t)
}
"""
SHAPES = {"stem": (16, 3, 3, 3), "stem_alpha": (16,), "body": (24, 16, 3, 3), "body_alpha": (24,), "head": (5, 24)}


def make() -> onnx.ModelProto:
    """The model, with seeded random weights."""
    model = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        spread = 1.0 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
        values = (rng.standard_normal(shape) * spread).astype(np.float32)
        values = np.abs(values) + np.float32(0.5) if len(shape) == 1 else values
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    return model


if __name__ == "__main__":
    onnx.save(make(), sys.argv[1])
