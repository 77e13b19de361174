"""Sizes that a graph reads at run time: a channel count that is used as a number keeps its channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.model import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

HEAD = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, H, W] x) => ({outputs})
{{
  a = Conv <kernel_shape = [1, 1]> (x, w)
  r = Relu(a)
  {body}
  y = Conv <kernel_shape = [1, 1]> (r, v)
}}
"""


def model(outputs: str, body: str) -> onnx.ModelProto:
    proto = parser.parse_model(HEAD.format(outputs=outputs, body=body))
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1, 1)), ("v", (4, 8, 1, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return proto


@pytest.mark.parametrize(
    ("outputs", "body"),
    [
        ("float[N, 4, H, W] y, int64[4] s", "s = Shape(r)"),
        (
            "float[N, 4, H, W] y, int64 s",
            "t = Shape(r)\n  s = ReduceProd <keepdims = 0> (t)",
        ),
        (
            "float[N, 4, H, W] y, int64[2] s",
            "t = Shape(r)\n  f = Constant <value = int64[1] {0}> ()\n  e = Constant <value = int64[1] {2}> ()\n"
            "  s = Slice(t, f, e)",
        ),
    ],
)
def test_channel_count_that_is_read_as_a_number_locks(outputs: str, body: str) -> None:
    analysis = analyze(load(model(outputs, body)))
    assert [g.name for g in analysis.groups] == []
    assert {"Shape"} <= {lock.op for lock in analysis.locked}


def test_batch_and_space_read_as_numbers_lock_nothing() -> None:
    body = "t = Shape(r)\n  i = Constant <value = int64[2] {0, 2}> ()\n  s = Gather <axis = 0> (t, i)"
    loaded = load(model("float[N, 4, H, W] y, int64[2] s", body))
    analysis = analyze(loaded)
    (group,) = analysis.groups
    plan = Plan(loaded.fingerprint, {group.name: Removal(8, (1, 4, 6))})
    proof = compile_plan(loaded, plan, analysis=analysis).verification
    assert proof is not None
    assert proof.max_relative <= 1e-4 < proof.effect


def test_reshape_that_copies_a_size_of_other_channels_gets_the_number() -> None:
    # [N, 8, 6] -> transpose -> [N, 6, 8] -> (0, 0, 2, 4): the copied 6 is space; blocks of the 8 follow by number.
    proto = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, 6] x) => (float[N, 4, 6] y)
        {
          a = Conv <kernel_shape = [1]> (x, w)
          t = Transpose <perm = [0, 2, 1]> (a)
          s = Constant <value = int64[4] {0, 0, 2, 4}> ()
          q = Reshape(t, s)
          u = Transpose <perm = [0, 1, 3, 2]> (q)
          z = Constant <value = int64[3] {0, 0, 8}> ()
          b = Reshape(u, z)
          c = Transpose <perm = [0, 2, 1]> (b)
          y = Conv <kernel_shape = [1]> (c, v)
        }
        """
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1)), ("v", (4, 8, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    loaded = load(proto)
    analysis = analyze(loaded)
    (group,) = analysis.groups
    assert (group.channels, group.width) == (4, 2)
    plan = Plan(loaded.fingerprint, {group.name: Removal(4, (1, 2))})
    proof = compile_plan(loaded, plan, analysis=analysis).verification
    assert proof is not None
    assert proof.max_relative <= 1e-4 < proof.effect


def test_unnamed_batches_of_two_inputs_are_one_batch() -> None:
    proto = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[P, 3, 6] x, float[Q, 3, 6] z) => (float[R, 4, 6] y)
        {
          a = Conv <kernel_shape = [1]> (x, w)
          b = Conv <kernel_shape = [1]> (z, u)
          c = Add(a, b)
          y = Conv <kernel_shape = [1]> (c, v)
        }
        """
    )
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1)), ("u", (8, 3, 1)), ("v", (4, 8, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    loaded = load(proto)
    analysis = analyze(loaded)
    (group,) = analysis.groups
    assert (group.channels, group.residual) == (8, True)
    proof = compile_plan(loaded, Plan(loaded.fingerprint, {group.name: Removal(8, (2, 5))}), analysis=analysis)
    assert proof.verification is not None
    assert proof.verification.max_relative <= 1e-4 < proof.verification.effect
