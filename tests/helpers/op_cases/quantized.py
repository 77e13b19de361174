"""Cases of the operator contract: quantizers, and products and convolutions of integers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from op_cases.case import INEXACT, LOCKED, Case, i64

MS = "com.microsoft."


def f32(value: Any) -> np.ndarray:
    return np.asarray(value, np.float32)


def random_int8(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(-127, 128, shape).astype(np.int8)


MANY = f32(np.linspace(0.01, 0.05, 8))
FEW = f32(np.linspace(0.02, 0.04, 5))
Z = {"s": f32(0.05), "z": np.uint8(100)}  # an activation's scale and zero point
T = {"t": f32(0.09), "v": np.uint8(7)}  # another's
Q = "q = QuantizeLinear (h, s, z) "
M = " m = DequantizeLinear (o, t, v)"
ROWS = "p = GlobalAveragePool (h) f = Flatten (p) q = QuantizeLinear (f, s, z) "
BACK = " m = DequantizeLinear (o, t, v)"


def integers(op: str, text: str, expect: int | str = 8, consts: dict[str, Any] | None = None, **kw: Any) -> Case:
    """`o` of quantized data `q`, dequantized again."""
    return Case(op, f"{Q}{text}{M}", expect, {**Z, **T, **(consts or {})}, **kw)


QUANTIZED: list[Case] = [
    Case("QuantizeLinear", f"{Q} m = DequantizeLinear (q, s, z)", 8, Z),
    Case("QuantizeLinear", "q = QuantizeLinear <axis = 1> (h, s, z) m = DequantizeLinear <axis = 1> (q, s, z)", 8,
         {"s": MANY, "z": np.arange(100, 108).astype(np.uint8)}),
    Case("QuantizeLinear", "q = QuantizeLinear <axis = 3> (h, s, z) m = DequantizeLinear <axis = 3> (q, s, z)", 8,
         {"s": MANY[:4], "z": np.zeros(4, np.int8)}),
    Case("QuantizeLinear", "q = QuantizeLinear (h, s, z) g = Abs (j) m = DequantizeLinear (q, g, z)", LOCKED,
         {"s": MANY, "z": np.zeros(8, np.int8)}, inputs=", float[8] j"),
    Case("QuantizeLinear", "q = QuantizeLinear <block_size = 2, axis = 1> (h, s) "
         "m = DequantizeLinear <block_size = 2, axis = 1> (q, s)", LOCKED,
         {"s": np.full((1, 4, 4, 4), 0.02, np.float32)}, opset=21, inputs="@1"),
    # A weight of a layer in between, per tensor, per output, per input, and in blocks of inputs.
    Case("DequantizeLinear", "d = DequantizeLinear (c, s) m = Conv (h, d)", 8,
         {"c": random_int8(8, 8, 1, 1), "s": f32(0.01)}),
    Case("DequantizeLinear", "d = DequantizeLinear <axis = 0> (c, s, z) e = DequantizeLinear <axis = 0> (b, s) "
         "m = Conv (h, d, e)", 8,
         {"c": random_int8(8, 8, 1, 1), "s": MANY, "z": np.zeros(8, np.int8), "b": np.arange(8).astype(np.int32)}),
    Case("DequantizeLinear", "d = DequantizeLinear <axis = 1> (c, s) m = Conv (h, d)", 8,
         {"c": random_int8(8, 8, 1, 1), "s": MANY}),
    Case("DequantizeLinear", "t = Transpose <perm = [0, 2, 3, 1]> (h) "
         "d = DequantizeLinear <axis = 0, block_size = 2> (c, s) m = MatMul (t, d)", 4,
         {"c": random_int8(8, 5), "s": np.linspace(0.01, 0.04, 20, dtype=np.float32).reshape(4, 5)}, opset=21, reads=0),
    Case("DequantizeLinear", "t = Transpose <perm = [0, 2, 3, 1]> (h) "
         "d = DequantizeLinear <axis = 0, block_size = 3> (c, s) m = MatMul (t, d)", LOCKED,
         {"c": random_int8(8, 5), "s": np.linspace(0.01, 0.04, 15, dtype=np.float32).reshape(3, 5)}, opset=21, reads=0),
    Case("DequantizeLinear", "t = Transpose <perm = [0, 2, 3, 1]> (h) "
         "d = DequantizeLinear <axis = 0, block_size = 4> (c, s, z) m = MatMul (t, d)", 2,
         {"c": (random_int8(8, 5) // 16).astype(ml_dtypes.int4), "z": np.ones((2, 5), ml_dtypes.int4),
          "s": np.linspace(0.1, 0.4, 10, dtype=np.float32).reshape(2, 5)}, opset=21, reads=0),
    # A weight kept as floats, rounded on the way (quantization-aware training).
    Case("QuantizeLinear", "r = QuantizeLinear <axis = 0> (c, s, z) d = DequantizeLinear <axis = 0> (r, s, z) "
         "m = Conv (h, d)", 8, {"c": (8, 8, 1, 1), "s": MANY, "z": np.zeros(8, np.int8)}),
    # Quantized data into a layer with a quantized weight: what `quantize_static` writes.
    Case("DequantizeLinear", f"{Q} x1 = DequantizeLinear (q, s, z) d = DequantizeLinear <axis = 0> (c, a) "
         "y1 = Conv (x1, d) o = QuantizeLinear (y1, t, v) m = DequantizeLinear (o, t, v)", 8,
         {**Z, **T, "c": random_int8(8, 8, 1, 1), "a": MANY}),
    Case("DynamicQuantizeLinear", "q, a, z = DynamicQuantizeLinear (h) m = DequantizeLinear (q, a, z)", 8),
    Case(MS + "QuantizeLinear", f"q = {MS}QuantizeLinear (h, s, z) m = {MS}DequantizeLinear (q, s, z)", 8,
         {"s": f32(0.001), "z": np.uint16(30000)}),
    Case(MS + "DequantizeLinear", f"q = {MS}QuantizeLinear (h, s, z) m = {MS}DequantizeLinear (q, s, z)", 8,
         {"s": f32(0.001), "z": np.int16(30)}),
    # Convolutions and products of integers.
    integers("QLinearConv", "o = QLinearConv (q, s, z, c, a, b, t, v)", 8,
             {"c": random_int8(8, 8, 1, 1), "a": f32(0.01), "b": np.int8(0)}),
    integers("QLinearConv", "o = QLinearConv (q, s, z, c, a, b, t, v, d)", 8,
             {"c": random_int8(8, 8, 1, 1), "a": MANY, "b": np.zeros(8, np.int8), "d": np.arange(8).astype(np.int32)}),
    integers("QLinearConv", "o = QLinearConv <group = 4> (q, s, z, c, a, b, t, v)", 4,
             {"c": random_int8(8, 2, 1, 1), "a": MANY, "b": np.zeros(8, np.int8)}),
    integers("QLinearConv", "o = QLinearConv <group = 8> (q, s, z, c, a, b, t, v)", 8,
             {"c": random_int8(8, 1, 1, 1), "a": MANY, "b": np.zeros(8, np.int8)}),
    Case(MS + "QLinearConv", f"{Q} u = Transpose <perm = [0, 2, 3, 1]> (q) "
         f"k = {MS}QLinearConv <channels_last = 1> (u, s, z, c, a, b, t, v) "
         f"o = Transpose <perm = [0, 3, 1, 2]> (k) {M}",
         8, {**Z, **T, "c": random_int8(8, 8, 1, 1), "a": MANY, "b": np.zeros(8, np.int8)}),
    Case("ConvInteger", f"{Q} o = ConvInteger (q, c, z) m = Cast <to = 1> (o)", 8,
         {**Z, "c": random_int8(8, 8, 1, 1).view(np.uint8)}),
    Case("ConvInteger", f"{Q} o = ConvInteger <group = 4> (q, c, z, b) m = Cast <to = 1> (o)", 4,
         {**Z, "c": random_int8(8, 2, 1, 1).view(np.uint8), "b": np.uint8(9)}),
    Case("QLinearMatMul", f"{ROWS} o = QLinearMatMul (q, s, z, c, a, b, t, v) {BACK}", 8,
         {**Z, **T, "c": random_int8(8, 5), "a": f32(0.01), "b": np.int8(3)}, reads=0, rank=2),
    Case("QLinearMatMul", f"{ROWS} o = QLinearMatMul (q, s, z, c, a, b, t, v) {BACK}", 8,
         {**Z, **T, "c": random_int8(8, 5), "a": FEW, "b": np.zeros(5, np.int8)}, reads=0, rank=2),
    Case("MatMulInteger", f"{ROWS} o = MatMulInteger (q, c, z) m = Cast <to = 1> (o)", 8,
         {**Z, "c": random_int8(8, 5)}, reads=0, rank=2),
    Case("MatMulInteger", "p = GlobalAveragePool (h) f = Flatten (p) q, a, z = DynamicQuantizeLinear (f) "
         "o = MatMulInteger (q, c, z, b) i = Cast <to = 1> (o) e = Mul (a, w) m = Mul (i, e)", 8,
         {"c": random_int8(8, 5), "b": np.zeros(5, np.int8), "w": FEW}, reads=0, rank=2),
    Case(MS + "MatMulIntegerToFloat", f"{ROWS} m = {MS}MatMulIntegerToFloat (q, c, s, a, z, b, d)", 8,
         {**Z, "c": random_int8(8, 5), "a": FEW, "b": np.zeros(5, np.int8), "d": (5,)}, reads=0, rank=2),
    Case(MS + "MatMulNBits", "t = Transpose <perm = [0, 2, 3, 1]> (h) "
         f"q = {MS}MatMulNBits <K = 8, N = 8, bits = 4, block_size = 16> (t, b, s) "
         "m = Transpose <perm = [0, 3, 1, 2]> (q)",
         LOCKED, {"b": np.arange(64).reshape(8, 1, 8).astype(np.uint8), "s": MANY}),
    Case(MS + "DynamicQuantizeLSTM", "t = Reshape (h, flat) u = Transpose <perm = [2, 0, 1]> (t) "
         f"k = {MS}DynamicQuantizeLSTM <hidden_size = 3> (u, w, r, , , , , , ws, wz, rs, rz) "
         "l = Squeeze (k, one) m0 = Transpose <perm = [1, 2, 0]> (l) m = Unsqueeze (m0, last)",
         8, {"flat": i64(0, 0, 16), "w": random_int8(1, 8, 12), "r": random_int8(1, 3, 12), "ws": f32([0.01]),
             "wz": np.zeros(1, np.int8), "rs": f32([0.02]), "rz": np.zeros(1, np.int8), "one": i64(1), "last": i64(3)},
         reads=0),
    Case(MS + "DynamicQuantizeMatMul", "p = GlobalAveragePool (h) f = Flatten (p) "
         f"m = {MS}DynamicQuantizeMatMul (f, c, a, b, d)", 8,
         {"c": random_int8(8, 5), "a": FEW, "b": np.zeros(5, np.int8), "d": (5,)}, reads=0, rank=2),
    Case(MS + "QGemm", f"{ROWS} o = {MS}QGemm <transB = 1> (q, s, z, c, a, b, d, t, v) {BACK}", 8,
         {**Z, **T, "c": random_int8(5, 8), "a": FEW, "b": np.zeros(5, np.int8), "d": np.arange(5).astype(np.int32)},
         reads=0, rank=2),
    Case(MS + "QGemm", f"{ROWS} m = {MS}QGemm (q, s, z, c, a, b)", 8,
         {**Z, "c": random_int8(8, 5), "a": f32(0.02), "b": np.int8(1)}, reads=0, rank=2),
    # What onnxruntime does with integers in between.
    *(integers(MS + op, f"o = {MS}{op} (q, s, z, q, s, z, t, v)") for op in ("QLinearAdd", "QLinearMul")),
    integers(MS + "QLinearAdd", f"o = {MS}QLinearAdd (q, s, z, c, s, z, t, v)", 8,
             {"c": np.arange(8).astype(np.uint8).reshape(1, 8, 1, 1)}),
    *(integers(MS + op, f"o = {MS}{op} (q, s, z, t, v)") for op in ("QLinearLeakyRelu", "QLinearSigmoid")),
    integers(MS + "QLinearSoftmax", f"o = {MS}QLinearSoftmax <axis = 3, opset = 13> (q, s, z, t, v)"),
    integers(MS + "QLinearSoftmax", f"o = {MS}QLinearSoftmax <axis = 1, opset = 13> (q, s, z, t, v)", INEXACT),
    integers(MS + "QLinearAveragePool", f"o = {MS}QLinearAveragePool <kernel_shape = [2, 2]> (q, s, z, t, v)"),
    integers(MS + "QLinearGlobalAveragePool", f"o = {MS}QLinearGlobalAveragePool (q, s, z, t, v)"),
    Case(MS + "QLinearGlobalAveragePool", f"{Q} u = Transpose <perm = [0, 2, 3, 1]> (q) "
         f"k = {MS}QLinearGlobalAveragePool <channels_last = 1> (u, s, z, t, v) "
         f"o = Transpose <perm = [0, 3, 1, 2]> (k) {M}",
         8, {**Z, **T}),
    integers(MS + "QLinearConcat", f"o = {MS}QLinearConcat <axis = 1> (t, v, q, s, z, q, s, z)", reads=16),
]  # fmt: skip
