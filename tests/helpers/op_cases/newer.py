"""Cases of the operator contract: recurrent layers, scatters, regions, and what locks."""

from __future__ import annotations

import numpy as np

from op_cases.case import LOCKED, Case, i64

TOKENS = "r = Reshape (h, s16) t = Transpose <perm = [0, 2, 1]> (r) "  # [N, 16, 8]
S16 = {"s16": i64(0, 8, 16)}
STEPS = "r = ReduceMean <axes = [3], keepdims = 0> (h) t = Transpose <perm = [2, 0, 1]> (r) "  # [4, N, 8]
LINES = " z = Squeeze (o, one) m = MatMul (z, c)"
BOTH = " z = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (z, two) m = MatMul (f, c)"


def recurrent(op: str, gates: int, text: str, directions: int = 1, **consts: object) -> Case:
    """`o` [4, N, directions, 6] of the steps `t`, then a projection."""
    weights = {"w": (directions, 6 * gates, 8), "q": (directions, 6 * gates, 6), "b": (directions, 12 * gates)}
    ends = {"one": i64(1), "two": i64(0, 0, 12), "c": (6 * directions, 5)}
    return Case(op, f"{STEPS}{text}{LINES if directions == 1 else BOTH}", 8, {**weights, **ends, **consts}, reads=0,
                rank=3)  # fmt: skip


NEWER: list[Case] = [
    recurrent("RNN", 1, "o = RNN <hidden_size = 6> (t, w, q, b)"),
    recurrent("RNN", 1, 'o, g = RNN <hidden_size = 6, activations = ["Relu"]> (t, w, q)'),
    recurrent("GRU", 3, "o = GRU <hidden_size = 6, linear_before_reset = 1> (t, w, q, b)"),
    recurrent("GRU", 3, 'o = GRU <hidden_size = 6, direction = "bidirectional"> (t, w, q, b)', 2),
    recurrent("LSTM", 4, "o, g, k = LSTM <hidden_size = 6> (t, w, q, b)"),
    recurrent("LSTM", 4, "o = LSTM <hidden_size = 6> (t, w, q, b, , , , p)", p=(1, 18)),
    recurrent("LSTM", 4, 'o = LSTM <hidden_size = 6, direction = "bidirectional", clip = 3.0> (t, w, q)', 2),
    recurrent("LSTM", 4, "e = Shape (t) g = Gather (e, one) k = Concat <axis = 0> (one, g, six) "
              "n = ConstantOfShape (k) o = LSTM <hidden_size = 6> (t, w, q, b, , n, n)", six=i64(6)),
    Case("LSTM", f"{STEPS} u = Sigmoid (e) o = LSTM <hidden_size = 6> (t, u, q) {LINES}", LOCKED,
         {"q": (1, 24, 6), "one": i64(1), "c": (6, 5)}, reads=0, rank=3, inputs=", float[1,24,8] e"),
    # Scatters and gathers of elements.
    Case("GatherElements", "m = GatherElements <axis = 1> (h, c)", LOCKED, {"c": np.zeros((1, 8, 4, 4), np.int64)},
         inputs="@1"),
    Case("GatherElements", "m = GatherElements <axis = 2> (h, c)", 8, {"c": np.zeros((1, 8, 3, 4), np.int64)},
         inputs="@1"),
    Case("GatherElements", "k = ArgMax <axis = 3> (h) m = GatherElements <axis = 3> (h, k)", 8),
    Case("GatherElements", "k = ArgMax <axis = 3> (h) z = Concat <axis = 3> (k, k, k, k) "
         "m = GatherElements <axis = 3> (h, z)", 8),
    Case("ScatterElements", "m = ScatterElements <axis = 2> (h, c, d)", 8,
         {"c": np.full((1, 8, 1, 4), 2), "d": (1, 8, 1, 4)}, inputs="@1"),
    Case("GatherND", "t = Transpose <perm = [0, 2, 3, 1]> (h) g = GatherND <batch_dims = 1> (t, c) "
         "m = Transpose <perm = [0, 3, 1, 2]> (g)", 8, {"c": i64(0, 2).reshape(1, 2, 1)}, inputs="@1"),
    # x[:, 2:6] = y, and x[0, :, 1:3] = constant, as exporters write them.
    Case("ScatterND", "a, b = Split <axis = 1> (h, sp) m = ScatterND (h, c, a)", 4,
         {"sp": i64(4, 4), "c": np.stack(np.meshgrid([0], [2, 3, 4, 5], indexing="ij"), -1)}, inputs="@1"),
    Case("ScatterND", "m = ScatterND (h, c, d)", 8,
         {"c": np.stack(np.meshgrid([0], np.arange(8), [1, 2], indexing="ij"), -1), "d": (1, 8, 2, 4)}, inputs="@1"),
    Case("ScatterND", "t = Transpose <perm = [0, 2, 3, 1]> (h) n = ScatterND (t, c, d) "
         "m = Transpose <perm = [0, 3, 1, 2]> (n)", 8, {"c": i64(0, 1).reshape(1, 2), "d": (1, 4, 8)}, inputs="@1"),
    Case("ScatterND", "m = ScatterND (h, c, d)", 7, {"c": i64(0, 3).reshape(1, 2), "d": (1, 4, 4)}, inputs="@1"),
    Case("ScatterND", "m = ScatterND (h, c, d)", LOCKED,
         {"c": np.array([[0, 1, 1], [0, 2, 2]], np.int64), "d": (2, 4)}),
    Case("TensorScatter", "u = Sigmoid (h) a, b = Split <axis = 2> (u, sp) m = TensorScatter <axis = 2> (h, a, z)", 8,
         {"sp": i64(2, 2), "z": i64(1)}, opset=24, inputs="@1"),
    # Space.
    Case("RoiAlign", "o = RoiAlign <output_height = 2, output_width = 2> (h, c, d) m = Identity (o)", 8,
         {"c": np.array([[0, 0, 3, 3], [1, 1, 2, 3]], np.float32), "d": i64(0, 0)}),
    Case("MaxRoiPool", "m = MaxRoiPool <pooled_shape = [2, 2]> (h, c)", 8,
         {"c": np.array([[0, 0, 0, 3, 3], [0, 1, 1, 2, 3]], np.float32)}),
    Case("MaxUnpool", "p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (h) "
         "m = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (p, i)", LOCKED),
    Case("Col2Im", "f = Reshape (h, s) m = Col2Im (f, a, b)", 2,
         {"s": i64(0, 8, 16), "a": i64(5, 5), "b": i64(2, 2)}, reads=2, opset=18),
    Case("DeformConv", "m = DeformConv (h, c, e, d)", 8,
         {"c": (8, 8, 1, 1), "e": np.full((1, 2, 4, 4), 0.3, np.float32), "d": (8,)}, opset=22, inputs="@1"),
    Case("DeformConv", "m = DeformConv <offset_group = 2> (h, c, e)", LOCKED,
         {"c": (8, 8, 1, 1), "e": np.full((1, 4, 4, 4), 0.3, np.float32)}, opset=22, inputs="@1"),
    Case("CenterCropPad", "m = CenterCropPad <axes = [2, 3]> (h, s)", 8, {"s": i64(2, 6)}, opset=18),
    Case("CenterCropPad", "m = CenterCropPad <axes = [1]> (h, s)", LOCKED, {"s": i64(6)}, opset=18, reads=6),
    Case("CumProd", "u = Sigmoid (h) m = CumProd (u, a)", 8, {"a": np.array(2, np.int64)}, opset=26),
    Case("CumProd", "u = Sigmoid (h) m = CumProd (u, a)", LOCKED, {"a": np.array(1, np.int64)}, opset=26),
    Case("DFT", "u = Unsqueeze (h, a) d = DFT <axis = 2> (u) f = ReduceMean <axes = [4], keepdims = 0> (d) "
         "m = Identity (f)", 8, {"a": i64(4)}),
    Case("DFT", "u = Unsqueeze (h, a) d = DFT (u, , k) f = ReduceSum <keepdims = 0> (d, a) m = Identity (f)", LOCKED,
         {"a": i64(4), "k": np.array(1, np.int64)}, opset=20),
    Case("BitCast", "b = BitCast <to = 6> (h) m = BitCast <to = 1> (b)", 8, opset=26),
    Case("SwiGLU", "m = SwiGLU (h, h)", 8, opset=28, runs=False),
    Case("CausalConvWithState", "r = Reshape (h, s) a, p = CausalConvWithState (r, c, d) m = Reshape (a, e)", 8,
         {"s": i64(0, 8, 16), "e": i64(0, 8, 4, 4), "c": (8, 1, 3), "d": (8,)}, opset=27),
    # What makes constants, what draws, and what takes everything whole.
    *(Case(op, f"k = {op} (n) m = Mul (h, k)", 8, {"n": np.array(4, np.int64)})
      for op in ("BlackmanWindow", "HammingWindow", "HannWindow")),
    Case("MelWeightMatrix", "k = MelWeightMatrix (n, d, s, l, u) f = ReduceSum (k) m = Mul (h, f)", 8,
         {"n": np.array(4, np.int64), "d": np.array(16, np.int64), "s": np.array(8000, np.int64),
          "l": np.array(0, np.float32), "u": np.array(4000, np.float32)}),
    *(Case(op, f"k = {op} (h) z = Mul (k, no) m = Add (h, z)", LOCKED, {"no": np.zeros(1, np.float32)})
      for op in ("RandomNormalLike", "RandomUniformLike")),
    Case("Bernoulli", "u = Sigmoid (h) b = Bernoulli (u) z = Mul (b, no) m = Add (h, z)", LOCKED,
         {"no": np.zeros(1, np.float32)}),
    Case("Multinomial", "f = Flatten (h) k = Multinomial <dtype = 7> (f) z = Cast <to = 1> (k) n = ReduceMax (z) "
         "e = Mul (n, no) m = Add (h, e)", LOCKED, {"no": np.zeros(1, np.float32)}),
    Case("AffineGrid", "p = GlobalAveragePool (h) f = Flatten (p) t = MatMul (f, c) u = Reshape (t, th) "
         "g = AffineGrid (u, n) e = ReduceMean (g) m = Add (h, e)", 8,
         {"c": (8, 6), "th": i64(1, 2, 3), "n": i64(1, 8, 2, 2)}, opset=20, inputs="@1"),
    Case("STFT", "r = Reshape (h, s) f = STFT (r, k, , n) e = ReduceMean (f) m = Add (h, e)", LOCKED,
         {"s": i64(1, 128), "k": np.array(8, np.int64), "n": np.array(16, np.int64)}, inputs="@1"),
    Case("NegativeLogLikelihoodLoss", "p = GlobalAveragePool (h) f = Flatten (p) n = NegativeLogLikelihoodLoss (f, c) "
         "m = Add (h, n)", LOCKED, {"c": i64(3)}, inputs="@1", runs=False),
    Case("SoftmaxCrossEntropyLoss", "p = GlobalAveragePool (h) f = Flatten (p) n = SoftmaxCrossEntropyLoss (f, c) "
         "m = Add (h, n)", LOCKED, {"c": i64(3)}, inputs="@1", runs=False),
    Case("SequenceConstruct", "s = SequenceConstruct (h, h) m = SequenceAt (s, z)", LOCKED, {"z": i64(1).reshape(())}),
    Case("SequenceAt", "s = SequenceConstruct (h, h) m = SequenceAt (s, z)", LOCKED, {"z": i64(1).reshape(())}),
    Case("SequenceInsert", "e = SequenceEmpty () s = SequenceInsert (e, h) m = SequenceAt (s, z)", LOCKED,
         {"z": i64(0).reshape(())}),
    Case("SequenceEmpty", "e = SequenceEmpty () s = SequenceInsert (e, h) m = SequenceAt (s, z)", LOCKED,
         {"z": i64(0).reshape(())}),
    Case("SequenceErase", "s = SequenceConstruct (h, h) e = SequenceErase (s) m = SequenceAt (e, z)", LOCKED,
         {"z": i64(0).reshape(())}),
    Case("SequenceLength", "s = SequenceConstruct (h, h) n = SequenceLength (s) l = Cast <to = 1> (n) m = Mul (h, l)",
         LOCKED),
    Case("SplitToSequence", "s = SplitToSequence <axis = 2> (h) m = ConcatFromSequence <axis = 2> (s)", LOCKED),
    Case("ConcatFromSequence", "s = SplitToSequence <axis = 2> (h) m = ConcatFromSequence <axis = 2> (s)", LOCKED),
    Case("SequenceMap", "s = SequenceConstruct (h, h) q = SequenceMap <body = one (float[N,8,4,4] a) => "
         "(float[N,8,4,4] b) { b = Neg (a) }> (s) m = SequenceAt (q, z)", LOCKED, {"z": i64(1).reshape(())}),
    Case("Optional", "o = Optional (h) m = OptionalGetElement (o)", LOCKED),
    Case("OptionalGetElement", "o = Optional (h) m = OptionalGetElement (o)", LOCKED, opset=18),
    Case("OptionalHasElement", "b = OptionalHasElement (h) f = Cast <to = 1> (b) m = Mul (h, f)", LOCKED, opset=18),
    # Bodies: what they capture, and what is handed to them.
    Case("If", "m = If (p) <then_branch = then () => (float[N,8,4,4] o1) { o1 = Relu (h) }, "
         "else_branch = else () => (float[N,8,4,4] o2) { o2 = Neg (h) }>", 8, inputs=", bool p"),
    Case("If", "c = Concat <axis = 1> (h, h) m = If (p) <then_branch = then () => (float[N,16,4,4] o1) "
         "{ o1 = Relu (c) }, else_branch = else () => (float[N,8,4,4] o2) { o2 = Neg (h) }>", LOCKED, reads=0,
         inputs=", bool p"),
    Case("Loop", "m = Loop (n, go, h) <body = body (int64 i, bool c, float[N,8,4,4] a) => (bool d, float[N,8,4,4] b) "
         "{ d = Identity (c) b = Sin (a) }>", LOCKED, {"n": np.array(2, np.int64), "go": np.array(True)}),
    Case("Scan", "r = ReduceMean <axes = [3], keepdims = 0> (h) t = Transpose <perm = [2, 0, 1]> (r) "
         "z = ReduceMean <axes = [0], keepdims = 0> (t) s, y1 = Scan <num_scan_inputs = 1, body = body "
         "(float[N,8] a, float[N,8] b) => (float[N,8] c, float[N,8] d) { c = Add (a, b) d = Identity (c) }> (z, t) "
         "u = Unsqueeze (s, ax) m = Add (h, u)", LOCKED, {"ax": i64(2, 3)}),
    # Text, and what only labels of data that is none of ours.
    Case("LinearAttention", f"{TOKENS} q = MatMul (t, wq) a, p = LinearAttention <q_num_heads = 2, kv_num_heads = 2, "
         'update_rule = "linear"> (q, q, q) m = MatMul (a, e)', 8, {**S16, "wq": (8, 8), "e": (8, 5)}, opset=27,
         reads=0, rank=3, runs=False),
]  # fmt: skip
