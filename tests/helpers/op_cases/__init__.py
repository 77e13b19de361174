"""The table of the operator contract: a case for every operator record."""

from __future__ import annotations

import numpy as np

from op_cases.case import INEXACT, LOCKED, Case, i64
from op_cases.fused import FUSED
from op_cases.newer import NEWER
from op_cases.quantized import QUANTIZED

U = "u = Sigmoid (h) "  # in (0, 1): every function below is finite there
B = "u = Greater (h, zero) v = Less (h, half) "
ZERO_HALF = {"zero": np.zeros(1, np.float32), "half": np.full(1, 0.5, np.float32)}
I = "u = Mul (h, ten) i = Cast <to = 7> (u) "  # noqa: E741
TEN = {"ten": np.full(1, 10, np.float32)}
BACK = " m = Cast <to = 1> (o)"

CASES: list[Case] = [
    *(Case(op, f"{U} m = {op} (u)", 8) for op in (
        "Abs", "Neg", "Floor", "Ceil", "Sqrt", "Identity", "Relu", "LeakyRelu", "Elu", "Selu", "Celu",
        "ThresholdedRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign", "Mish", "Erf", "Exp",
        "Log", "Reciprocal", "Round", "Sign", "Shrink", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh",
        "Asinh", "Atanh", "Dropout",
    ) if op != "Mish"),
    Case("Mish", f"{U} m = Mish (u)", 8, opset=18),
    Case("Gelu", f"{U} m = Gelu (u)", 8, opset=20),
    Case("Swish", f"{U} m = Swish (u)", 8, opset=24),
    Case("Acosh", f"{U} e = Exp (u) m = Acosh (e)", 8),
    Case("Clip", "m = Clip (h, zero, half)", 8, ZERO_HALF),
    Case("Cast", "d = Cast <to = 11> (h) m = Cast <to = 1> (d)", 8),
    Case("CastLike", "m = CastLike (h, half)", 8, ZERO_HALF),
    *(Case(op, f"{U} m = {op} (u, h)", 8) for op in ("Add", "Sub", "Mul", "Min", "Max", "Sum", "Mean", "PRelu")),
    *(Case(op, f"{U} m = {op} (c, u)", 8, {"c": (1, 8, 1, 1)}) for op in ("Add", "Sub", "Mul", "Min", "Max", "Mean")),
    Case("Add", "m = Add (h, x2)", LOCKED, inputs=", float[N,8,4,4] x2"),
    Case("Add", "s = ReduceMean <axes = [2, 3]> (h) m = Add (s, h)", 8),
    Case("PRelu", "m = PRelu (h, c)", 8, {"c": (8, 1, 1)}),
    Case("Div", f"{U} m = Div (h, u)", 8),
    Case("Pow", f"{U} m = Pow (u, u)", 8),
    Case("Mod", f"{U} m = Mod <fmod = 1> (h, u)", 8),
    Case("Where", f"{B} m = Where (u, h, c)", 8, {**ZERO_HALF, "c": (8, 1, 1)}),
    *(Case(op, f"o = {op} (h, zero) {BACK}", 8, ZERO_HALF) for op in (
        "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    *(Case(op, f"{B} o = {op} (u, v) {BACK}", 8, ZERO_HALF) for op in ("And", "Or", "Xor")),
    Case("Not", f"{B} o = Not (u) {BACK}", 8, ZERO_HALF),
    *(Case(op, f"o = {op} (h) {BACK}", 8) for op in ("IsNaN", "IsInf")),
    Case("BitShift", f'{I} a = Abs (i) b = Cast <to = 13> (a) o = BitShift <direction = "LEFT"> (b, c) {BACK}', 8,
         {**TEN, "c": np.ones((8, 1, 1), np.uint64)}),
    *(Case(op, f"{I} o = {op} (i, c) {BACK}", 8, {**TEN, "c": np.full((8, 1, 1), 6, np.int64)}, opset=18)
      for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("BitwiseNot", f"{I} o = BitwiseNot (i) {BACK}", 8, TEN, opset=18),
    # Convolutions and products.
    Case("Conv", "m = Conv (h, c, d)", 8, {"c": (8, 8, 1, 1), "d": (8,)}),
    Case("Conv", "m = Conv <group = 8> (h, c)", 8, {"c": (8, 1, 1, 1)}),
    Case("Conv", "m = Conv <group = 4> (h, c)", 4, {"c": (8, 2, 1, 1)}),
    Case("Conv", "m = Conv <group = 2> (h, c)", 4, {"c": (8, 4, 1, 1)}),
    Case("Conv", "d = Sigmoid (e) m = Conv (h, d)", LOCKED, inputs=", float[8,8,1,1] e"),
    Case("ConvTranspose", "m = ConvTranspose (h, c, d)", 8, {"c": (8, 8, 1, 1), "d": (8,)}),
    Case("ConvTranspose", "m = ConvTranspose <group = 4> (h, c)", 4, {"c": (8, 2, 1, 1)}),
    Case("ConvTranspose", "m = ConvTranspose <group = 2> (h, c)", 4, {"c": (8, 4, 1, 1)}),
    Case("Gemm", "p = GlobalAveragePool (h) f = Flatten (p) m = Gemm (f, c, d)", 8, {"c": (8, 5), "d": (5,)},
         reads=0, rank=2),
    Case("Gemm", "p = GlobalAveragePool (h) f = Flatten (p) m = Gemm <transB = 1, alpha = 0.5> (f, c, d)", 8,
         {"c": (5, 8), "d": (1, 5)}, reads=0, rank=2),
    Case("MatMul", "t = Transpose <perm = [0, 2, 3, 1]> (h) m = MatMul (t, c)", 8, {"c": (8, 5)}, reads=0),
    Case("MatMul", "t = Transpose <perm = [0, 2, 3, 1]> (h) m = MatMul (t, c)", 8, {"c": (8,)}, reads=0, rank=3),
    Case("MatMul", "r = Reshape (h, s) t = Transpose <perm = [0, 2, 1]> (r) m = MatMul (r, t)",
         LOCKED, {"s": i64(0, 8, 16)}, reads=0, rank=3),
    Case("Einsum", 'm = Einsum <equation = "nchw,dc->ndhw"> (h, c)', 8, {"c": (8, 8)}),
    Case("Einsum", 'm = Einsum <equation = "nchw,nchw->nhw"> (h, h)', 8, reads=0, rank=3),
    Case("Einsum", 'm = Einsum <equation = "...c,cd->...d"> (h, c)', LOCKED, {"c": (4, 4)}),
    # Norms.
    Case("BatchNormalization", "m = BatchNormalization (h, s, b, a, v)", 8,
         {"s": (8,), "b": (8,), "a": (8,), "v": np.linspace(0.5, 2, 8, dtype=np.float32)}),
    Case("InstanceNormalization", "m = InstanceNormalization (h, s, b)", 8, {"s": (8,), "b": (8,)}),
    Case("InstanceNormalization", "r = Reshape (h, c) n = InstanceNormalization (r, s, b) m = Reshape (n, d)", 2,
         {"c": i64(0, 2, 64), "d": i64(0, 8, 4, 4), "s": (2,), "b": (2,)}, inexact_free=4),
    Case("InstanceNormalization", "r = Reshape (h, c) n = InstanceNormalization (r, s, b) m = Reshape (n, d)", INEXACT,
         {"c": i64(0, 1, 128), "d": i64(0, 8, 4, 4), "s": (1,), "b": (1,)}),
    Case("LayerNormalization", "m = LayerNormalization <axis = 1> (h, s)", INEXACT, {"s": (8, 4, 4)}),
    Case("LayerNormalization", "m = LayerNormalization <axis = -1> (h, s)", 8, {"s": (4,)}),
    Case("RMSNormalization", "m = RMSNormalization <axis = 1> (h, s)", INEXACT, {"s": (8, 4, 4)}, opset=23),
    Case("GroupNormalization", "m = GroupNormalization <num_groups = 4> (h, s, b)", 4, {"s": (8,), "b": (8,)},
         opset=21),
    Case("GroupNormalization", "m = GroupNormalization <num_groups = 1> (h, s, b)", INEXACT, {"s": (8,), "b": (8,)},
         opset=21),
    Case("GroupNormalization", "m = GroupNormalization <num_groups = 2> (h, s, b)", 2, {"s": (8,), "b": (8,)},
         opset=21, inexact_free=4),
    Case("LRN", "m = LRN <size = 3, alpha = 0.5> (h)", INEXACT),
    Case("MeanVarianceNormalization", "m = MeanVarianceNormalization (h)", 8),
    Case("MeanVarianceNormalization", "m = MeanVarianceNormalization <axes = [1, 2]> (h)", INEXACT),
    *(Case(op, f"m = {op} <axis = 1> (h)", INEXACT) for op in ("Softmax", "LogSoftmax", "Hardmax")),
    Case("LpNormalization", "m = LpNormalization <axis = 1> (h)", 8),
    Case("LpNormalization", "m = LpNormalization <axis = 1, p = 1> (h)", 8),
    *(Case(op, f"m = {op} <axis = 2> (h)", 8) for op in ("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")),
    Case("Softmax", "m = Softmax (h)", INEXACT, opset=11),
    # Shape-moving.
    Case("Concat", "m = Concat <axis = 1> (h, h)", 8, reads=16),
    Case("Concat", "m = Concat <axis = 2> (h, h)", 8),
    Case("Concat", "m = Concat <axis = 2> (h, c)", 8, {"c": np.ones((1, 8, 4, 4), np.float32)}, inputs="@1"),
    Case("Split", "a, b = Split <axis = 1> (h, s) p = Sigmoid (a) m = Add (p, b)", 4, {"s": i64(4, 4)}, reads=4),
    Case("Split", "a, b = Split <axis = 1> (h) m = Concat <axis = 1> (b, a)", 8),
    Case("Split", "a, b = Split <axis = 1, split = [3, 5]> (h) m = Concat <axis = 1> (b, a)", 8, opset=11),
    Case("Split", "a, b = Split <axis = 1, num_outputs = 2> (h) m = Concat <axis = 1> (b, a)", 8, opset=18),
    Case("Slice", "m = Slice (h, s, e, a)", 8, {"s": i64(2), "e": i64(-1), "a": i64(1)}, reads=5),
    Case("Slice", "m = Slice (h, s, e, a, t)", 8, {"s": i64(-1), "e": i64(-(2**62)), "a": i64(1), "t": i64(-1)}),
    Case("Slice", "m = Slice (h, s, e, a, t)", 8, {"s": i64(1), "e": i64(8), "a": i64(1), "t": i64(3)}, reads=3),
    Case("Gather", "m = Gather <axis = 1> (h, c)", 8, {"c": i64(7, -8, 3, 3)}, reads=4),
    Case("Gather", "g = Gather <axis = 1> (h, c) u = Unsqueeze (g, a) m = Mul (u, h)", 7,
         {"c": np.array(5, np.int64), "a": i64(1)}),
    Case("Gather", "m = Gather <axis = 1> (h, j)", LOCKED, reads=2, inputs=", int64[2] j"),
    Case("Transpose", "t = Transpose <perm = [0, 2, 3, 1]> (h) r = Relu (t) m = Transpose <perm = [0, 3, 1, 2]> (r)",
         8),
    Case("Squeeze", "p = GlobalAveragePool (h) q = Squeeze (p, a) m = Unsqueeze (q, a)", 8, {"a": i64(2, 3)}),
    Case("Unsqueeze", "q = Unsqueeze (h, a) m = Squeeze (q, a)", 8, {"a": i64(1)}),
    Case("Expand", "p = GlobalAveragePool (h) m = Expand (p, s)", 8, {"s": i64(1, 8, 4, 4)}),
    Case("Tile", "m = Tile (h, s)", 8, {"s": i64(1, 2, 1, 1)}, reads=16),
    Case("DepthToSpace", "m = DepthToSpace <blocksize = 2> (h)", 2, reads=2),
    Case("DepthToSpace", 'm = DepthToSpace <blocksize = 2, mode = "CRD"> (h)', 2, reads=2),
    Case("SpaceToDepth", "m = SpaceToDepth <blocksize = 2> (h)", 8, reads=32),
    Case("Trilu", "m = Trilu (h)", 8),
    Case("Trilu", "t = Transpose <perm = [0, 2, 1, 3]> (h) u = Trilu (t) m = Transpose <perm = [0, 2, 1, 3]> (u)",
         LOCKED),
    Case("Pad", "m = Pad (h, p)", 8, {"p": i64(0, 1, 0, 0, 0, 2, 0, 0)}, reads=11),
    Case("Pad", 'm = Pad <mode = "edge"> (h, p)', LOCKED, {"p": i64(0, 1, 0, 0, 0, 0, 0, 0)}, reads=9),
    Case("Pad", "m = Pad (h, p, , a)", 8, {"p": i64(1, 1, 0, 1), "a": i64(1, 2)}, opset=18, reads=9),
    Case("Reshape", "r = Reshape (h, s) m = Reshape (r, t)", 8, {"s": i64(0, 8, 16), "t": i64(0, -1, 4, 4)}),
    Case("Reshape", "r = Reshape (h, s) q = Relu (r) m = Reshape (q, t)", 4,
         {"s": i64(0, 2, 4, 16), "t": i64(0, 8, 4, 4)}),
    Case("Reshape", "m = Reshape (h, s)", 4, {"s": i64(-1, 4, 8, 4)}, reads=4),
    Case("Reshape", "m = Reshape (h, s)", LOCKED, {"s": i64(0, 1, 16, 8)}, reads=1),
    Case("Flatten", "f = Flatten (h) m = Gemm (f, c)", 8, {"c": (128, 5)}, reads=0, rank=2),
    Case("Flatten", "m = Flatten <axis = 2> (h)", LOCKED, reads=0, rank=2),
    Case("Resize", "m = Resize (h, , s)", 8, {"s": np.array([1, 1, 2, 2], np.float32)}),
    Case("Resize", "m = Resize (h, , s)", LOCKED, {"s": np.array([1, 2, 1, 1], np.float32)}, reads=16),
    Case("Resize", "m = Resize (h, , , s)", 8, {"s": i64(2, 8, 8, 8)}, inputs="@2"),
    Case("Upsample", "m = Upsample (h, s)", 8, {"s": np.array([1, 1, 2, 2], np.float32)}, opset=9),
    # Pooling.
    *(Case(op, f"m = {op} <kernel_shape = [2, 2]> (h)", 8) for op in ("MaxPool", "AveragePool", "LpPool")),
    *(Case(op, f"m = {op} (h)", 8) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    Case("MaxPool", "p, i = MaxPool <kernel_shape = [2, 2]> (h) j = Cast <to = 1> (i) m = Add (p, j)", LOCKED),
    Case("GridSample", "m = GridSample (h, c)", 8, {"c": np.zeros((1, 2, 2, 2), np.float32)}, inputs="@1"),
    # Reductions and what counts along an axis.
    *(Case(op, f"m = {op} (h, a)", 8, {"a": i64(1)}, opset=18, reads=1)
      for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceSum")),
    *(Case(op, f"{U} m = {op} (u, a)", INEXACT, {"a": i64(1)}, opset=18, reads=1)
      for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")),
    *(Case(op, f"{U} m = {op} <axes = [2]> (u)", 8)
      for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")),
    Case("ReduceSum", "m = ReduceSum <axes = [1, 2], keepdims = 0> (h)", 8, opset=11, reads=0, rank=2),
    *(Case(op, f"o = {op} <axis = 1> (h) {BACK}", LOCKED, reads=1) for op in ("ArgMax", "ArgMin")),
    *(Case(op, f"o = {op} <axis = 2> (h) {BACK}", 8) for op in ("ArgMax", "ArgMin")),
    Case("ArgMax", "o = ArgMax <axis = 2, keepdims = 0> (h) m = Gather (t, o)", LOCKED, {"t": (4, 3)}, reads=0),
    Case("TopK", "m, i = TopK <axis = 1> (h, k)", LOCKED, {"k": i64(3)}, reads=3),
    Case("TopK", "m, i = TopK <axis = 2> (h, k)", 8, {"k": i64(3)}),
    Case("CumSum", "m = CumSum (h, a)", LOCKED, {"a": np.array(1, np.int64)}),
    Case("CumSum", "m = CumSum (h, a)", 8, {"a": np.array(2, np.int64)}),
    # What makes shapes and constants.
    Case("Shape", "s = Shape (h) g = Gather (s, z) t = Concat <axis = 0> (g, e) m = Reshape (h, t)", 8,
         {"z": i64(0), "e": i64(8, 4, 4)}),
    Case("Size", "s = Size (h) f = Cast <to = 1> (s) m = Mul (h, f)", LOCKED),
    Case("ConstantOfShape", "k = ConstantOfShape (e) m = Add (h, k)", 8, {"e": i64(1)}),
    Case("Constant", "k = Constant <value_float = 2.0> () m = Mul (h, k)", 8),
    Case("Range", "k = Range (z, l, d) m = Mul (h, k)", 8,
         {"z": np.array(0, np.float32), "l": np.array(4, np.float32), "d": np.array(1, np.float32)}),
    Case("EyeLike", "f = Flatten (h) m = EyeLike (f)", LOCKED, reads=0, rank=2),
    *(Case(op, f"k = {op} <shape = [1]> () z = Mul (k, zero) m = Add (h, z)", 8, ZERO_HALF)
      for op in ("RandomNormal", "RandomUniform")),
    # What addresses elements by number: everything it reads stays whole.
    Case("GatherND", "m = GatherND <batch_dims = 1> (h, c)", LOCKED, {"c": np.zeros((1, 1), np.int64)}, inputs="@1",
         reads=0, rank=3),
    Case("ScatterElements", "m = ScatterElements <axis = 1> (h, c, d)", LOCKED,
         {"c": np.zeros((1, 1, 1, 1), np.int64), "d": (1, 1, 1, 1)}),
    Case("Scatter", "m = Scatter <axis = 1> (h, c, d)", LOCKED,
         {"c": np.zeros((1, 1, 1, 1), np.int64), "d": (1, 1, 1, 1)}, opset=10),
    Case("NonZero", "m = NonZero (h)", LOCKED, reads=0, rank=2, kind="int64"),
    Case("OneHot", f"{I} m = OneHot <axis = -1> (i, d, v)", LOCKED,
         {**TEN, "d": np.array(3, np.int64), "v": np.array([0, 1], np.float32)}, reads=0, rank=5),
    Case("Unique", "m = Unique (h)", LOCKED, reads=0, rank=1),
    Case("NonMaxSuppression", "r = Reshape (h, s) q = Reshape (h, t) m = NonMaxSuppression (r, q, k)", LOCKED,
         {"s": i64(1, -1, 4), "t": i64(1, 4, -1), "k": np.array(3, np.int64)}, reads=0, rank=2, kind="int64",
         inputs="@1"),
    Case("Compress", "m = Compress <axis = 1> (h, c)", LOCKED, {"c": np.array([True, False, True])}, reads=2),
    Case("ReverseSequence", "m = ReverseSequence <batch_axis = 0, time_axis = 1> (h, c)", LOCKED,
         {"c": i64(3)}, inputs="@1"),
    Case("Det", "m = Det (h)", LOCKED, reads=0, rank=2),
]  # fmt: skip

CASES += [*QUANTIZED, *FUSED, *NEWER]

# The checker knows no such operator, so no model that holds one is ever loaded.
UNREACHABLE = {"SimplifiedLayerNormalization"}
# They take or make text, from inputs that hold no channels.
TEXT = {"StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder"}
