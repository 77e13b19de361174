"""Decoders with a key-value cache: the cache locks the heads by name, the rest is free and proved."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

DECODER = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[N, S] input_ids, int64[M, T] attention_mask, float[N, 2, {k}, 4] past_key_values.0.key,
       float[N, 2, {v}, 4] past_key_values.0.value)
      => (float[N, S, 9] logits, float[N, 2, PS, 4] present.0.key, float[N, 2, PS, 4] present.0.value)
    {{
      h = Gather <axis = 0> (table, input_ids)
      q0 = MatMul (h, wq)
      k0 = MatMul (h, wk)
      v0 = MatMul (h, wv)
      q1 = Reshape (q0, heads)
      k1 = Reshape (k0, heads)
      v1 = Reshape (v0, heads)
      q = Transpose <perm = [0, 2, 1, 3]> (q1)
      k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
      v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
      present.0.key = Concat <axis = 2> (past_key_values.0.key, k2)
      present.0.value = Concat <axis = 2> (past_key_values.0.value, v2)
      kt = Transpose <perm = [0, 1, 3, 2]> (present.0.key)
      s = MatMul (q, kt)
      sizes = Shape (present.0.key)
      two = Constant <value = int64 {{2}}> ()
      one = Constant <value = int64 {{1}}> ()
      zero = Constant <value = int64 {{0}}> ()
      length = Gather <axis = 0> (sizes, two)
      places = Range (zero, length, one)
      used = Gather <axis = 1> (attention_mask, places)
      m0 = Cast <to = 1> (used)
      m = Unsqueeze (m0, axes)
      sm = Add (s, m)
      p = Softmax <axis = -1> (sm)
      o = MatMul (p, present.0.value)
      ot = Transpose <perm = [0, 2, 1, 3]> (o)
      oj = Reshape (ot, joined)
      a = MatMul (oj, wo)
      r = Add (h, a)
      u = MatMul (r, up)
      f = Relu (u)
      d = MatMul (f, down)
      e = Add (r, d)
      logits = MatMul (e, head)
    }}
    """
WEIGHTS = {"table": (11, 8), "wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "wo": (8, 8), "up": (8, 16), "down": (16, 8),
           "head": (8, 9)}  # fmt: skip


@pytest.mark.parametrize("names", [("P", "P")])
def test_the_cache_locks_heads_by_name_and_the_mlp_is_free(names: tuple[str, str]) -> None:
    # A name with a point is not part of the parser's syntax.
    text = DECODER.format(k=names[0], v=names[1])
    for name in ("past_key_values.0.key", "past_key_values.0.value", "present.0.key", "present.0.value"):
        text = text.replace(name, name.replace(".", "_dot_"))
    proto = parser.parse_model(text)
    for item in (*proto.graph.input, *proto.graph.output):
        item.name = item.name.replace("_dot_", ".")
    for node in proto.graph.node:
        node.input[:] = [n.replace("_dot_", ".") for n in node.input]
        node.output[:] = [n.replace("_dot_", ".") for n in node.output]
    rng = np.random.default_rng(0)
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(s).astype("f") / 3, n) for n, s in WEIGHTS.items()
    )
    for name, value in {"heads": [0, 0, 2, 4], "joined": [0, 0, 8], "axes": [1, 2]}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    onnx.checker.check_model(proto)
    source = load(proto)
    analysis = analyze(source)
    assert {g.name for g in analysis} == {"table", "up"}
    reasons = {k.name: k.reason for k in analysis.locked}
    assert reasons["wq"] == "is locked by input past_key_values.0.key"
    removed = {g.name: Removal(g.channels, (0, 2, 5)) for g in analysis}
    done = compile_plan(source, Plan(source.fingerprint, removed), analysis=analysis)
    assert done.verification is not None
    assert len(done.verification.sizes) >= 3
