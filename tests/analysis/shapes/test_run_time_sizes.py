"""Sizes that a graph reads at run time: a channel count that is used as a number keeps its channels."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.analysis.coupling import couple
from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.passes import NORMALIZE, Pipeline
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


def folded(text: str, **constants: object) -> tuple[onnx.ModelProto, Model]:
    """A model of text, and what the pass fold_shapes makes of it."""
    proto = parser.parse_model(text)
    for name, value in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return proto, Pipeline(NORMALIZE)(load(proto))


AS_STRIDED = """
<ir_version: 10, opset_import: ["" : 20]>
g (float[N, 3, 4, 4] x) => (float[N, 5] y)
{
  a = Conv <kernel_shape = [1, 1]> (x, w)
  p = GlobalAveragePool (a)
  flat = Reshape (p, minus)
  shape = Shape <start = 0, end = 1> (x)
  n = Squeeze (shape)
  rows = Range (zero, n, one)
  steps = Mul (rows, step)
  down = Unsqueeze (steps, last)
  places = Add (down, across)
  s = Gather (flat, places)
  y = Gemm (s, v)
}
"""


@pytest.mark.parametrize("order", ["in order", "another order", "every second"])
def test_gather_of_everything_in_order_is_a_reshape(order: str) -> None:
    rng = np.random.default_rng(0)
    across = {"in order": np.arange(8), "another order": np.arange(8)[::-1], "every second": np.arange(0, 8, 2)}[order]
    proto, model = folded(
        AS_STRIDED, w=rng.standard_normal((8, 3, 1, 1)).astype(np.float32), minus=np.array([-1]), zero=0, one=1,
        step=8, last=np.array([1]), across=across.copy(), v=rng.standard_normal((len(across), 5)).astype(np.float32),
    )  # fmt: skip
    assert ("Gather" in {n.op for n in model.graph.nodes}) == (order != "in order")
    analysis = analyze(load(proto))
    if order == "in order":
        (group,) = analysis.groups
        compile_plan(load(proto), Plan("", {group.name: Removal(8, (0, 5, 6))}))
    else:  # nothing is guessed about numbers that depend on the batch
        assert [g.name for g in analysis.groups] == []


@pytest.mark.parametrize("allowzero", [0, 1])
def test_reshape_with_two_dynamic_dimensions_copies_one_and_infers_the_other(allowzero: int) -> None:
    rng = np.random.default_rng(0)
    text = f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[N, T, 3] x) => (float[N, T, 4] y)
    {{
      s = Shape (x)
      n = Gather (s, first)
      t = Gather (s, second)
      a = MatMul (x, w)
      apart = Concat <axis = 0> (n, t, two, three)
      u = Reshape <allowzero = {allowzero}> (a, apart)
      z = Transpose <perm = [0, 2, 1, 3]> (u)
      swapped = Concat <axis = 0> (n, two, t, three)
      r = Reshape <allowzero = {allowzero}> (z, swapped)
      q = Transpose <perm = [0, 2, 1, 3]> (r)
      back = Concat <axis = 0> (n, t, six)
      c = Reshape <allowzero = {allowzero}> (q, back)
      y = MatMul (c, v)
    }}"""
    proto, model = folded(
        text, w=rng.standard_normal((3, 6)).astype(np.float32), v=rng.standard_normal((6, 4)).astype(np.float32),
        first=np.array([0]), second=np.array([1]), two=np.array([2]), three=np.array([3]), six=np.array([6]),
    )  # fmt: skip
    assert "Shape" not in {n.op for n in model.graph.nodes}
    (group,) = analyze(load(proto)).groups
    assert group.channels == 3
    compile_plan(load(proto), Plan("", {group.name: Removal(3, (1,))}))


def test_a_reshape_to_a_size_that_a_dynamic_input_need_not_have_locks() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3, H, 8] x) => (float[N, K, 5] z)
        {
          a = Conv <kernel_shape = [1, 1]> (x, w)
          r = Relu (a)
          shape = Constant <value = int64[3] {0, 384, 8}> ()
          s = Reshape (r, shape)
          z = MatMul (s, u)
        }
    """
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 1, 1)), ("u", (8, 5))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    fixed = load(proto)
    assert analyze(fixed).witness.settled == {("x", 2): 48}
    normal = Pipeline(NORMALIZE)(fixed)
    other = couple(normal, shapes=witness(normal, {("x", 0): 11, ("x", 2): 224}))
    assert [g.name for g in other.groups] == []
    assert "is reshaped to a size that holds at some input sizes only" in {lock.reason for lock in other.locked}
