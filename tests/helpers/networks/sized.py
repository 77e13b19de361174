"""Small models with dynamic heights and widths, as detectors and text recognizers have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]

CLASSIFIER = (
    "float[N, 3, H, W] x) => (float[N, 5] y",
    """
    a0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1, d1) a = Relu (a0)
    b0 = Conv <pads = [1, 1, 1, 1]> (a, w2, d2) b1 = Add (b0, a) b = Relu (b1)
    c0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (b, w3, d3) c = Relu (c0)
    p = GlobalAveragePool (c) f = Flatten (p) y = Gemm <transB = 1> (f, w4, d4)
    """,
    {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (24, 16, 3, 3), "w4": (5, 24)},
)
"""Images of any size -> scores of five classes."""

DETECTOR = (
    "float[N, 3, H, W] x) => (float[N, 6, K] y",
    """
    a0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w1, d1) a1 = Sigmoid (a0) a = Mul (a0, a1)
    b0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a, w2, d2) b = Relu (b0)
    m = MaxPool <kernel_shape = [5, 5], pads = [2, 2, 2, 2], strides = [1, 1]> (b) s = Concat <axis = 1> (b, m)
    t0 = Conv (s, w3, d3) t = Relu (t0)
    none = Constant <value = float[0] {}> ()
    two = Constant <value = float[4] {1.0, 1.0, 2.0, 2.0}> ()
    u = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (t, none, two)
    j = Concat <axis = 1> (u, a)
    h0 = Conv <pads = [1, 1, 1, 1]> (j, w4, d4) h = Relu (h0)
    o = Conv (h, w5, d5)
    shape = Constant <value = int64[3] {0, 6, -1}> ()
    y = Reshape (o, shape)
    """,
    {"w1": (12, 3, 3, 3), "w2": (16, 12, 3, 3), "w3": (16, 32, 1, 1), "w4": (16, 28, 3, 3), "w5": (6, 16, 1, 1)},
)
"""Images with sides divisible by 4 -> six numbers at every position; a feature pyramid and its upsampling."""

RECOGNIZER = (
    'float[N, 3, "H", "W"] x) => (float[N, T, 7] y',
    """
    a0 = Conv <strides = [2, 1], pads = [1, 1, 1, 1]> (x, w1, d1) a = Relu (a0)
    b0 = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (a, w2, d2) b = Relu (b0)
    p = AveragePool <kernel_shape = [3, 2], strides = [3, 2]> (b)
    q0 = Conv (p, w3, d3) q = Relu (q0)
    shape = Shape (q)
    zero = Constant <value = int64[1] {0}> () three = Constant <value = int64[1] {3}> ()
    n = Gather <axis = 0> (shape, zero) width = Gather <axis = 0> (shape, three)
    middle = Constant <value = int64[2] {20, 1}> ()
    target = Concat <axis = 0> (n, middle, width)
    r = Reshape (q, target)
    e = Add (r, q)
    axes = Constant <value = int64[1] {2}> ()
    f = Squeeze (e, axes) g = Transpose <perm = [0, 2, 1]> (f)
    z = MatMul (g, k1) z1 = Add (z, k2) y = Softmax <axis = 2> (z1)
    """,
    {"w1": (12, 3, 3, 3), "w2": (16, 12, 3, 3), "w3": (20, 16, 1, 1), "k1": (20, 7), "k2": (7,)},
)
"""Lines of text of height 9 to 20 and of any width -> probabilities of seven characters at every position."""


def proto_of(source: tuple[str, str, dict[str, tuple[int, ...]]], *, seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """Return one of the models above, with random weights; biases `d*` are added to the convolutions `w*`."""
    ends, body, shapes = source
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> sized ({ends}) {{ {body} }}')
    rng = np.random.default_rng(seed)
    biases = {f"d{n[1:]}": s[:1] for n, s in shapes.items() if n.startswith("w")}
    for name, shape in {**shapes, **biases}.items():
        fan = max(1, int(np.prod(shape[1:])))
        values = rng.standard_normal(shape) * (2 / fan) ** 0.5 if len(shape) > 1 else rng.standard_normal(shape) / 4
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    onnx.checker.check_model(proto, full_check=False)
    return proto
