"""Cases of the operator contract: what onnxruntime's optimizer makes of several operators, and attention as one."""

from __future__ import annotations

import numpy as np

from op_cases.case import INEXACT, Case, i64

MS = "com.microsoft."
TOKENS = "r = Reshape (h, s16) t = Transpose <perm = [0, 2, 1]> (r) "  # [N, 16, 8]
S16 = {"s16": i64(0, 8, 16)}
# Queries, keys and values of four heads of three, from the tokens.
QKV = f"{TOKENS} q = MatMul (t, wq) k = MatMul (t, wk) v = MatMul (t, wv) "
FOUR = {**S16, "wq": (8, 12), "wk": (8, 12), "wv": (8, 12), "c": (12, 5)}
OUT = " m = MatMul (a, c)"


def tokens(op: str, text: str, expect: int | str = 8, consts: dict[str, object] | None = None, **kw: object) -> Case:
    """`a` [N, 16, 8] made of the tokens `t`, then a projection."""
    reads = {"reads": 0, "rank": 3, **kw}
    return Case(op, f"{TOKENS}{text}{OUT}", expect, {**S16, "c": (8, 5), **(consts or {})}, **reads)  # type: ignore[arg-type]


def attention(op: str, text: str, consts: dict[str, object] | None = None, **kw: object) -> Case:
    """`a` [N, 16, 12] made of `q`, `k`, `v`, then a projection; `w0` is read by all three."""
    reads = {"reads": 0, "rank": 3, **kw}
    return Case(op, f"{QKV}{text}{OUT}", 8, {**FOUR, **(consts or {})}, **reads)  # type: ignore[arg-type]


def cache(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


FUSED: list[Case] = [
    Case(MS + "FusedConv", f'm = {MS}FusedConv <activation = "Relu"> (h, c, d)', 8, {"c": (8, 8, 1, 1), "d": (8,)}),
    Case(MS + "FusedConv", f'm = {MS}FusedConv <activation = "Relu"> (h, c, d, h)', 8,
         {"c": (8, 8, 1, 1), "d": (8,)}),
    Case(MS + "FusedConv", f'm = {MS}FusedConv <group = 4, activation = "LeakyRelu", activation_params = [0.1]> (h, c)',
         4, {"c": (8, 2, 1, 1)}),
    Case(MS + "FusedGemm", "p = GlobalAveragePool (h) f = Flatten (p) "
         f'm = {MS}FusedGemm <transB = 1, activation = "Relu"> (f, c, d)', 8, {"c": (5, 8), "d": (5,)}, reads=0,
         rank=2),
    tokens(MS + "FusedMatMul", f"a = {MS}FusedMatMul <alpha = 0.5> (t, d)", consts={"d": (8, 8)}),
    tokens(MS + "FusedMatMul", f"a = {MS}FusedMatMul <transA = 1, transB = 1> (r, d)", consts={"d": (8, 8)}),
    tokens(MS + "FusedMatMul", f"g = {MS}FusedMatMul <transB = 1> (t, t) e = Softmax (g) a = MatMul (e, t)"),
    tokens(MS + "FusedMatMul", f"u = Transpose <perm = [1, 0, 2]> (t) a = {MS}FusedMatMul <transBatchA = 1> (u, d)",
           consts={"d": (2, 8, 8)}, inputs="@2"),
    tokens(MS + "FusedMatMul", f"u = Transpose <perm = [2, 0, 1]> (t) "
           f"a = {MS}FusedMatMul <transA = 1, transBatchA = 1> (u, d)", consts={"d": (2, 8, 8)}, inputs="@2"),
    tokens(MS + "TransposeMatMul", f"a = {MS}TransposeMatMul <transA = 1> (r, d)", consts={"d": (8, 8)}),
    tokens(MS + "BiasGelu", f"a = {MS}BiasGelu (t, d)", consts={"d": (8,)}),
    tokens(MS + "FastGelu", f"a = {MS}FastGelu (t, d)", consts={"d": (8,)}),
    tokens(MS + "FastGelu", f"a = {MS}FastGelu (t)"),
    *(Case(MS + op, f"m = {MS}{op} (h)", 8) for op in ("Gelu", "QuickGelu")),
    tokens(MS + "SkipLayerNormalization", f"a = {MS}SkipLayerNormalization (t, t, d, e, f)", INEXACT,
           {"d": (8,), "e": (8,), "f": (8,)}),
    tokens(MS + "SkipLayerNormalization", f"n, , , s = {MS}SkipLayerNormalization (t, t, d, e) a = Add (n, s)", INEXACT,
           {"d": (8,), "e": (8,)}),
    tokens(MS + "SkipSimplifiedLayerNormalization", f"a = {MS}SkipSimplifiedLayerNormalization (t, t, d, e)", INEXACT,
           {"d": (8,), "e": (8,)}),
    Case(MS + "EmbedLayerNormalization", "u = Flatten (h) o = Constant <value_ints = [0, 2, 1, 1]> () "
         "z = Constant <value_ints = [0, 1]> () g = Unsqueeze (o, z2) i = Cast <to = 6> (g) "
         f"e, l = {MS}EmbedLayerNormalization (i, , tw, tp, , tg, tb) f = ReduceMean (e) m = Add (h, f)", 8,
         {"z2": i64(0), "tw": (3, 6), "tp": (4, 6), "tg": (6,), "tb": (6,)}),
    # Attention of every make. `w0` stands before the projections.
    attention("Attention", "a = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)", opset=23),
    attention("Attention", "a = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v)",
              {"wk": (8, 6), "wv": (8, 10), "c": (20, 5)}, opset=23),
    attention("Attention", "a = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v, b)",
              {"b": cache(1, 4, 16, 16)}, opset=23),
    attention("Attention", "q4 = Reshape (q, f) k4 = Reshape (k, f) v4 = Reshape (v, f) "
              "q5 = Transpose <perm = [0, 2, 1, 3]> (q4) k5 = Transpose <perm = [0, 2, 1, 3]> (k4) "
              "v5 = Transpose <perm = [0, 2, 1, 3]> (v4) a4 = Attention (q5, k5, v5) "
              "a3 = Transpose <perm = [0, 2, 1, 3]> (a4) a = Reshape (a3, b)",
              {"f": i64(0, 16, 4, 3), "b": i64(0, 16, 12)}, opset=23),
    attention("RotaryEmbedding", "q1 = RotaryEmbedding <num_heads = 6> (q, e, g, p) "
              "a = Attention <q_num_heads = 6, kv_num_heads = 6> (q1, k, v)",
              {"e": cache(16, 1), "g": cache(16, 1), "p": np.tile(np.arange(16), (2, 1))}, opset=23, inputs="@2"),
    attention("RotaryEmbedding", "q4 = Reshape (q, f) q1 = Transpose <perm = [0, 2, 1, 3]> (q4) "
              "u = RotaryEmbedding (q1, e, g, p) a3 = Transpose <perm = [0, 2, 1, 3]> (u) a1 = Reshape (a3, b) "
              "a = Add (a1, k)", {"f": i64(0, 16, 3, 4), "b": i64(0, 16, 12), "e": cache(16, 2), "g": cache(16, 2),
                                 "p": np.tile(np.arange(16), (2, 1))}, opset=23, inputs="@2"),
    attention(MS + "RotaryEmbedding", f"q1 = {MS}RotaryEmbedding (q, p, e, g) "
              f"a = {MS}MultiHeadAttention <num_heads = 3> (q1, k, v)",
              {"e": cache(16, 2), "g": cache(16, 2), "p": np.tile(np.arange(16), (2, 1))}, inputs="@2"),
    attention(MS + "MultiHeadAttention", f"a = {MS}MultiHeadAttention <num_heads = 4> (q, k, v)"),
    attention(MS + "MultiHeadAttention", f"a = {MS}MultiHeadAttention <num_heads = 4> (q, k, v, b)", {"b": (36,)}),
    attention(MS + "MultiHeadAttention", f"a, pk, pv = {MS}MultiHeadAttention <num_heads = 4> (q, k, v)"),
    attention(MS + "MultiHeadAttention", "k4 = Reshape (k, f) v4 = Reshape (v, f) "
              "k5 = Transpose <perm = [0, 2, 1, 3]> (k4) v5 = Transpose <perm = [0, 2, 1, 3]> (v4) "
              f"a = {MS}MultiHeadAttention <num_heads = 4> (q, k5, v5)", {"f": i64(0, 16, 4, 3)}),
    tokens(MS + "Attention", f"a = {MS}Attention <num_heads = 4> (t, w, b)",
           consts={"w": (8, 36), "b": (36,), "c": (12, 5)}),
    tokens(MS + "Attention", f"a = {MS}Attention <num_heads = 3, qkv_hidden_sizes = [6, 6, 9]> (t, w, b)",
           consts={"w": (8, 21), "b": (21,), "c": (9, 5)}),
    attention(MS + "GroupQueryAttention",
              f"a, pk, pv = {MS}GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, , , l, n)",
              {"wq": (8, 32), "wk": (8, 16), "wv": (8, 16), "c": (32, 5), "l": np.full(2, 15, np.int32),
               "n": np.array(16, np.int32)}, inputs="@2"),
    tokens(MS + "GroupQueryAttention", "q = MatMul (t, wq) "
           f"a, pk, pv = {MS}GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, , , , , l, n)",
           consts={"wq": (8, 64), "c": (32, 5), "l": np.full(2, 15, np.int32), "n": np.array(16, np.int32)},
           inputs="@2"),
]  # fmt: skip
