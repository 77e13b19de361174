"""Small networks in which a layer of each kind reads the channels of a convolution or a product, and data for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx.parser
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.ir.reader import load

Array = NDArray[Any]
ALL = 10**9  # rows: every position of every sample


def parsed(body: str, shapes: dict[str, tuple[int, ...]], outputs: str, x: str = "N,3,6,6") -> Analysis:
    """A model from text; constants named s* are positive (BatchNorm's scales and variances)."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> agraph (float[{x}] x) => ({outputs}) {{ {body} }}'
    )
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = rng.uniform(0.5, 2, shape) if name.startswith("s") else rng.standard_normal(shape)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return op.analyze(load(proto))


IMAGE = "float[N,a,b,c] y"
W = {"w": (6, 3, 3, 3)}
BODIES: dict[str, tuple[str, dict[str, tuple[int, ...]], str]] = {
    "conv": ("a = Conv (x, w) b = Relu (a) y = Conv (b, v, c)", {**W, "v": (4, 6, 3, 3), "c": (4,)}, IMAGE),
    "strided without bias": ("a = Conv (x, w) b = Relu (a) y = Conv <strides = [2, 2], pads = [1, 1, 0, 0]> (b, v)",
                             {**W, "v": (4, 6, 2, 2)}, IMAGE),
    "batchnorm": ("a = Conv (x, w) n = BatchNormalization (a, s, t, m, sv) b = Relu (n) c = Conv (b, v) "
                  "y = BatchNormalization (c, s2, t2, m2, sv2)",
                  {**W, "s": (6,), "t": (6,), "m": (6,), "sv": (6,), "v": (4, 6, 2, 2), "s2": (4,), "t2": (4,),
                   "m2": (4,), "sv2": (4,)}, IMAGE),
    "grouped": ("a = Conv (x, w) b = Relu (a) y = Conv <group = 2> (b, v)", {"w": (8, 3, 3, 3), "v": (4, 4, 3, 3)},
                IMAGE),
    "depthwise": ("a = Conv (x, w) b = Relu (a) c = Conv <group = 6> (b, d) y = Conv (c, v)",
                  {**W, "d": (6, 1, 3, 3), "v": (4, 6, 1, 1)}, IMAGE),
    "transposed": ("a = Conv (x, w) b = Relu (a) y = ConvTranspose <strides = [2, 2]> (b, v)",
                   {**W, "v": (6, 4, 3, 3)}, IMAGE),
    "flatten": ("a = Conv (x, w) b = Relu (a) f = Flatten (b) y = Gemm (f, v, c)",
                {**W, "v": (96, 5), "c": (5,)}, "float[N,5] y"),
    "matmul and add": ("p = Flatten (x) a = MatMul (p, w) b = Relu (a) m = MatMul (b, v) y = Add (m, c)",
                       {"w": (108, 7), "v": (7, 5), "c": (5,)}, "float[N,5] y"),
    "matmul": ("p = Flatten (x) a = MatMul (p, w) b = Relu (a) y = MatMul (b, v)", {"w": (108, 7), "v": (7, 5)},
               "float[N,5] y"),
    "two readers": ("a = Conv (x, w) b = Relu (a) y = Conv (b, v) z = Conv <pads = [1, 1, 1, 1]> (b, u)",
                    {**W, "v": (4, 6, 3, 3), "u": (2, 6, 3, 3)}, IMAGE + ", float[N,d,e,f] z"),
    "concat": ("a = Conv (x, w) b = Conv (x, u) c = Concat <axis = 1> (a, b) y = Conv (c, v)",
               {**W, "u": (3, 3, 3, 3), "v": (4, 9, 2, 2)}, IMAGE),
}  # fmt: skip


@cache
def analysis_of(name: str) -> Analysis:
    return parsed(*BODIES[name])


@cache
def noise(count: int = 40) -> Data:
    x = np.random.default_rng(1).standard_normal((count, 3, 6, 6)).astype(np.float32)
    return Data(x, None, "noise")


def calibration(data: Data | None = None, batch: int = 16) -> Calibration:
    return Calibration(data or noise(), batch=batch, threads=1)
