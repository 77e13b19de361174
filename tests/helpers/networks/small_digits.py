"""Small residual network that reads the digits, for tests of whole jobs: a third of the layers of `digits_cnn.onnx`."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

import onnxprune as op

_TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
digits (float[N, 1, 8, 8] x) => (float[N, 10] logits) {
  stem = Conv<pads = [1, 1, 1, 1]>(x, stem_weight, stem_bias)
  relu0 = Relu(stem)
  conv1 = Conv<pads = [1, 1, 1, 1]>(relu0, conv1_weight)
  relu1 = Relu(conv1)
  conv2 = Conv<pads = [1, 1, 1, 1]>(relu1, conv2_weight)
  sum = Add(relu0, conv2)
  relu2 = Relu(sum)
  conv3 = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(relu2, conv3_weight)
  relu3 = Relu(conv3)
  features = Flatten(relu3)
  logits = Gemm(features, fc_weight, fc_bias)
}
"""
WIDTHS = {"stem": (1, 16), "conv1": (16, 24), "conv2": (24, 16), "conv3": (16, 32)}


@functools.cache
def _serialized() -> bytes:
    """Return the model: random convolutions, and a last layer fitted to the training digits by ridge regression."""
    proto = parser.parse_model(_TEXT)
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}_weight": rng.standard_normal((n, m, 3, 3)) * np.sqrt(2 / (9 * m)) for name, (m, n) in WIDTHS.items()
    }
    size = 4 * 4 * WIDTHS["conv3"][1]
    arrays |= {"stem_bias": rng.standard_normal(WIDTHS["stem"][1]) / 4}
    arrays |= {"fc_weight": np.zeros((size, 10)), "fc_bias": np.zeros(10)}

    def filled(outputs: list[str]) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        copy.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items())
        copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in outputs)
        return copy

    data = op.load_data("digits:train", images=1000)
    session = ort.InferenceSession(filled(["features"]).SerializeToString(), providers=["CPUExecutionProvider"])
    (x,) = session.run(["features"], {"x": data.x})
    x = np.column_stack([x, np.ones(len(x))]).astype(np.float64)
    targets = 4 * (np.eye(10)[data.y] - 0.1)
    fitted = np.linalg.solve(x.T @ x + 1e-2 * len(x) * np.eye(size + 1), x.T @ targets)
    arrays["fc_weight"], arrays["fc_bias"] = fitted[:-1], fitted[-1]
    return filled([]).SerializeToString()


def small_digits(folder: Path) -> Path:
    """Write the model, and return its path."""
    path = folder / "small_digits.onnx"
    path.write_bytes(_serialized())
    return path
