"""Branches of other ranks, of which the nodes after the If accept one: TorchScript's squeeze in front of an LSTM."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

TEXT = """
    <ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, L] x) => (float[S, D, N, 5] y)
    {
      a = Conv <kernel_shape = [41], strides = [41]> (x, w)
      b = Relu (a)
      s = Shape (b)
      last = Constant <value = int64 {2}> ()
      one = Constant <value = int64 {1}> ()
      n = Gather <axis = 0> (s, last)
      single = Equal (n, one)
      q = If (single) <
        then_branch = t () => (float[N, 8] o) { two = Constant <value = int64[1] {2}> () o = Squeeze (b, two) },
        else_branch = e () => (float[N, 8, T] o) { o = Identity (b) }
      >
      zero = Constant <value = int64[1] {0}> ()
      u = Unsqueeze (q, zero)
      BEHIND
    }
    """


def model(behind: str) -> onnx.ModelProto:
    proto = parser.parse_model(TEXT.replace("BEHIND", behind))
    rng = np.random.default_rng(0)
    for name, shape in {"w": (8, 3, 41), "i": (1, 20, 8), "r": (1, 20, 5)}.items():
        if name != "w" and name not in {n for node in proto.graph.node for n in node.input}:
            continue
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype("f"), name))
    return proto


def test_the_rank_that_an_lstm_requires_is_the_only_one() -> None:
    source = load(model("y, = LSTM <hidden_size = 5> (u, i, r)"))
    analysis = analyze(source)
    (group,) = [g for g in analysis if g.name == "w"]
    assert ("i", 2) in group.sites
    plan = Plan(source.fingerprint, {"w": Removal(8, (1, 4, 6))})
    done = compile_plan(source, plan, analysis=analysis)
    assert done.verification is not None
    assert [n.op for n in done.model.graph.nodes].count("If") == 1


@pytest.mark.parametrize("behind", ["v = Relu (u) y = Neg (v)", "y = Identity (u)"])
def test_both_ranks_lock_where_nothing_decides(behind: str) -> None:
    proto = model(behind)
    proto.graph.output[0].type.tensor_type.shape.ClearField("dim")
    analysis = analyze(load(proto))
    assert not analysis.groups
    assert [k.op for k in analysis.locked] == ["If"]
