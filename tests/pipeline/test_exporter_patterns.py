"""Nodes that exporters write around a layer must not hide its channels: each pattern on a minimal graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.reader import load
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

Shapes = dict[str, tuple[int, ...]]


def model(text: str, weights: Shapes, opset: int = 17) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        values = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def proved(proto: onnx.ModelProto) -> Analysis:
    """The analysis, after a third of every group was removed and the result proved."""
    loaded = load(proto)
    analysis = analyze(loaded)
    assert analysis.groups
    gone = {g.name: tuple(range(0, g.channels - 1, 3)) for g in analysis}
    plan = Plan(loaded.fingerprint, {g.name: Removal(g.channels, gone[g.name]) for g in analysis})
    proof = compile_plan(loaded, plan, analysis=analysis).verification
    assert proof is not None
    assert proof.max_relative <= 1e-4 < proof.effect
    return analysis


def test_class_token_that_is_expanded_to_the_batch() -> None:
    # expand(B, -1, -1) of TorchScript: the target is Where(target == -1, 1, target).
    analysis = proved(
        model(
            """
            g (float[N, 6, 3] x) => (float[N, 7, 5] y)
            {
              a = MatMul(x, w)
              s = Shape(x)
              zero = Constant <value = int64[1] {0}> ()
              n = Gather <axis = 0> (s, zero)
              rest = Constant <value = int64[2] {-1, -1}> ()
              target = Concat <axis = 0> (n, rest)
              minus = Constant <value = int64[3] {-1, -1, -1}> ()
              ones = Constant <value = int64[3] {1, 1, 1}> ()
              same = Equal(target, minus)
              shape = Where(same, ones, target)
              t = Expand(token, shape)
              c = Concat <axis = 1> (t, a)
              y = MatMul(c, v)
            }
            """,
            {"w": (3, 8), "token": (1, 1, 8), "v": (8, 5)},
        )
    )
    (group,) = analysis.groups
    assert group.channels == 8
    assert ("token", 2) in group.sites


def test_size_of_a_computed_tensor_is_known() -> None:
    # How many class tokens there are is asked of the expanded token itself, and sliced off by that.
    analysis = proved(
        model(
            """
            g (float[N, 6, 3] x) => (float[N, 6, 5] y)
            {
              a = MatMul(x, w)
              s = Shape(x)
              zero = Constant <value = int64[1] {0}> ()
              one = Constant <value = int64[1] {1}> ()
              n = Gather <axis = 0> (s, zero)
              rest = Constant <value = int64[2] {1, 1}> ()
              target = Concat <axis = 0> (n, rest)
              t = Expand(token, target)
              c = Concat <axis = 1> (t, a)
              ts = Shape(t)
              many = Gather <axis = 0> (ts, one)
              end = Constant <value = int64[1] {1000}> ()
              d = Slice(c, many, end, one)
              y = MatMul(d, v)
            }
            """,
            {"w": (3, 8), "token": (1, 1, 8), "v": (8, 5)},
        )
    )
    assert [g.channels for g in analysis.groups] == [8]


def test_standardised_weight_is_a_weight() -> None:
    # timm's ScaledStdConv: the filter goes through a BatchNormalization in training mode, a filter a channel.
    proto = model(
        """
        g (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y)
        {
          flat = Constant <value = int64[3] {1, 8, -1}> ()
          f = Reshape(w, flat)
          b, m, s = BatchNormalization <training_mode = 1> (f, gain, shift, zero, one)
          back = Constant <value = int64[4] {8, 3, 1, 1}> ()
          k = Reshape(b, back)
          a = Conv <kernel_shape = [1, 1]> (x, k)
          y = Conv <kernel_shape = [1, 1]> (a, v)
        }
        """,
        {"w": (8, 3, 1, 1), "gain": (8,), "shift": (8,), "v": (5, 8, 1, 1)},
    )
    for name, value in (("zero", 0), ("one", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(8, value, np.float32), name))
    assert [g.channels for g in proved(proto).groups] == [8]


def test_norm_that_is_stretched_before_the_division() -> None:
    # torch's F.normalize: x / max(||x||, eps).expand_as(x).
    analysis = proved(
        model(
            """
            g (float[N, 6, 3] x) => (float[N, 6, 5] y)
            {
              a = MatMul(x, w)
              l = ReduceL2 <axes = [2], keepdims = 1> (a)
              s = Shape(a)
              e = Expand(l, s)
              n = Div(a, e)
              y = MatMul(n, v)
            }
            """,
            {"w": (3, 8), "v": (8, 5)},
        )
    )
    assert [g.channels for g in analysis.groups] == [8]


def test_group_normalization_in_parts_goes_by_whole_groups() -> None:
    # 2 groups of 6: the larger factor is 6, but a statistic runs over it.
    proto = model(
        """
        g (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y)
        {
          a = Conv <kernel_shape = [1, 1]> (x, w)
          three = Constant <value = int64[3] {0, 2, -1}> ()
          r = Reshape(a, three)
          i = InstanceNormalization(r, one, zero)
          s = Shape(a)
          b = Reshape(i, s)
          m = Mul(b, gain)
          y = Conv <kernel_shape = [1, 1]> (m, v)
        }
        """,
        {"w": (12, 3, 1, 1), "gain": (12, 1, 1), "v": (5, 12, 1, 1)},
    )
    for name, value in (("zero", 0), ("one", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(2, value, np.float32), name))
    (group,) = proved(proto).groups
    assert (group.channels, group.width) == (2, 6)


@pytest.mark.parametrize(("attributes", "free"), [("", True), (", pads = [0, 1]", False), (", strides = [2]", False)])
def test_pointwise_convolution_leaves_the_other_axes_alone(attributes: str, free: bool) -> None:
    # CoaT averages its class tokens [N, scales, C] by a 1-D convolution, for which C is space.
    length = 9 if "pads" in attributes else 4 if "strides" in attributes else 8
    text = f"""
        g (float[N, 6, 3] x) => (float[N, 2, 5] y)
        {{
          a = MatMul(x, w)
          c = Conv <kernel_shape = [1]{attributes}> (a, mix)
          y = MatMul(c, v)
        }}
        """
    proto = model(text, {"w": (3, 8), "mix": (2, 6, 1), "v": (length, 5)})
    if free:
        assert [g.channels for g in proved(proto).groups if g.name == "w"] == [8]
    else:
        assert [lock.reason for lock in analyze(load(proto)).locked if lock.name == "w"] == ["convolves over it"]


@pytest.mark.parametrize("last", [False, True])
def test_places_become_an_image_of_dynamic_height_and_width(last: bool) -> None:
    # Segformer by the dynamo exporter: [N, places, C] back to [N, C, H, W]; two elements of the target are computed.
    order, target = ("(a, places)", "n, h, w, eight") if last else ("(at, places)", "n, eight, h, w")
    behind = "i = Transpose <perm = [0, 3, 1, 2]> (b) r = Relu (i)" if last else "r = Relu (b)"
    proto = model(
        f"""
        g (float[N, 3, H, W] x) => (float[N, 5, H, W] y, float[N, 4, H, W] z)
        {{
          s = Shape (x)
          one = Constant <value = int64[1] {{1}}> ()
          n = Slice (s, zero, one)
          h = Slice (s, two, three)
          w = Slice (s, three, four)
          eight = Constant <value = int64[1] {{8}}> ()
          c = Constant <value = int64[3] {{0, 3, -1}}> ()
          p = Reshape (x, c)
          t = Transpose <perm = [0, 2, 1]> (p)
          a = MatMul (t, w0)
          at = Transpose <perm = [0, 2, 1]> (a)
          places = Concat <axis = 0> ({target})
          b = Reshape {order}
          {behind}
          y = Conv (r, w1)
          k = Conv (x, w2)
          kf = Reshape (k, places{"" if not last else "2"})
          {"" if not last else "places2 = Concat <axis = 0> (n, eight, h, w)"}
          z = Conv (kf, w3)
        }}
        """,
        {"w0": (3, 8), "w1": (5, 8, 1, 1), "w2": (8, 3, 1, 1), "w3": (4, 8, 1, 1)},
    )
    for name, value in (("zero", 0), ("two", 2), ("three", 3), ("four", 4)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array([value]), name))
    loaded = load(proto)
    analysis = analyze(loaded)
    assert {g.name: g.channels for g in analysis} == {"w0": 8, "w2": 8}
    # The two Reshapes share their target and lose different numbers of channels.
    plan = Plan(loaded.fingerprint, {"w0": Removal(8, (1, 4)), "w2": Removal(8, (0, 2, 3, 7))})
    proof = compile_plan(loaded, plan, analysis=analysis).verification
    assert proof is not None
    assert len(proof.sizes) >= 3


@pytest.mark.parametrize("side", [264, 276])
def test_large_computed_weight_is_no_batch(side: int) -> None:
    # Above 65,536 elements, and the side is a multiple of 11 or 23, the numbers that stand for the batch.
    proto = model(
        f"""
        g (float[N, {side}, 4, 4] x) => (float[N, 5, 4, 4] y)
        {{
          flat = Constant <value = int64[3] {{1, {side}, -1}}> ()
          f = Reshape(w, flat)
          b, m, s = BatchNormalization <training_mode = 1> (f, gain, shift, zero, one)
          back = Constant <value = int64[4] {{{side}, {side}, 1, 1}}> ()
          k = Reshape(b, back)
          a = Conv <kernel_shape = [1, 1]> (x, k)
          y = Conv <kernel_shape = [1, 1]> (a, v)
        }}
        """,
        {"w": (side, side, 1, 1), "gain": (side,), "shift": (side,), "v": (5, side, 1, 1)},
    )
    for name, value in (("zero", 0), ("one", 1)):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(side, value, np.float32), name))
    assert [g.channels for g in analyze(load(proto)).groups] == [side]


def test_constant_expression_passes_through_infinity_without_a_warning() -> None:
    # T5's buckets of distances: the logarithm of 0, of which a Where takes nothing.
    proto = model(
        """
        g (float[N, 3] x) => (float[N, 5] y)
        {
          a = MatMul(x, w)
          l = Log(distance)
          z = Constant <value = float {0.0}> ()
          far = Greater(distance, z)
          b = Where(far, l, distance)
          c = Add(a, b)
          y = MatMul(c, v)
        }
        """,
        {"w": (3, 8), "v": (8, 5)},
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.arange(8, dtype=np.float32), "distance"))
    assert [g.channels for g in proved(proto).groups] == [8]


HEADS = """
    g (float[N, 6, 3] x, float[N, 1, 6] z) => (float[N, 6, 5] y)
    {{
      q = MatMul(x, wq)
      k = MatMul(x, wk)
      u = MatMul(x, wv)
      split = Constant <value = int64[4] {{0, 6, 4, 2}}> ()
      qs = Reshape(q, split)
      ks = Reshape(k, split)
      us = Reshape(u, split)
      qt = Transpose <perm = [0, 2, 1, 3]> (qs)
      kt = Transpose <perm = [0, 2, 3, 1]> (ks)
      ut = Transpose <perm = [0, 2, 1, 3]> (us)
      p = MatMul(qt, kt)
      axis = Constant <value = int64[1] {{1}}> ()
      zz = Unsqueeze(z, axis)
      bias = Mul(zz, slopes)
      {scores}
      o = MatMul(f, ut)
      ot = Transpose <perm = [0, 2, 1, 3]> (o)
      join = Constant <value = int64[3] {{0, 6, 8}}> ()
      oj = Reshape(ot, join)
      y = MatMul(oj, v)
    }}
    """
HEAD_WEIGHTS: Shapes = {"wq": (3, 8), "wk": (3, 8), "wv": (3, 8), "slopes": (1, 4, 1, 1), "v": (8, 5)}


def test_constant_with_an_entry_for_each_head_follows_the_heads() -> None:
    # ALiBi: slopes [heads, 1, 1] times what depends on the data alone; so do window masks plus position biases.
    analysis = proved(model(HEADS.format(scores="f = Add(p, bias)"), HEAD_WEIGHTS))
    (group,) = analysis.groups
    assert (group.channels, group.width) == (4, 2)
    assert ("slopes", 1) in group.sites


def test_constant_that_no_layer_computes_is_not_reported_as_locked() -> None:
    text = """
        g (float[N, 6, 1] x) => (float[N, 6, 4] y, float[N, 6, 5] z)
        {
          y = Mul(x, frequencies)
          a = MatMul(x, w)
          z = MatMul(a, v)
        }
        """
    analysis = analyze(load(model(text, {"frequencies": (4,), "w": (1, 8), "v": (8, 5)})))
    assert [g.name for g in analysis.groups] == ["w"]
    assert [lock.name for lock in analysis.locked] == ["v"]


BRANCHES = """
    g (float[N, 3, 4, 4] x) => (float[N, 5, {side}, 4] y)
    {{
      a = Conv <kernel_shape = [1, 1]> (x, w)
      s = Shape(a)
      i = Constant <value = int64 {{3}}> ()
      n = Gather <axis = 0> (s, i)
      four = Constant <value = int64 {{{asked}}}> ()
      c = Equal(n, four)
      b = If (c) <
        then_branch = t () => (float[N, 8, 4, 4] t1) {{ t0 = Add (a, inner)  t1 = Relu (t0) }},
        else_branch = e () => (float[N, 8, 2, 4] e1) {{
          p = Constant <value = int64[8] {{0, 0, 0, 0, 0, 0, -2, 0}}> ()
          e1 = Pad (a, p)
        }}
      >
      y = Conv <kernel_shape = [1, 1]> (b, v)
    }}
    """


@pytest.mark.parametrize(("asked", "side", "op"), [(4, 4, "Relu"), (5, 2, "Pad")])
def test_branch_that_is_always_taken_stands_in_its_place(asked: int, side: int, op: str) -> None:
    weights: Shapes = {"w": (8, 3, 1, 1), "v": (5, 8, 1, 1), "inner": (8, 1, 1)}
    proto = model(BRANCHES.format(asked=asked, side=side), weights)
    ops = [n.op for n in Pipeline(NORMALIZE)(load(proto)).graph.nodes]
    assert op in ops
    assert "If" not in ops
    assert [g.channels for g in proved(proto).groups] == [8]


def test_branch_with_a_product_that_is_always_taken_stands_in_its_place() -> None:
    text = BRANCHES.format(asked=4, side=4).replace("t1 = Relu (t0)", "t1 = Conv <kernel_shape = [1, 1]> (t0, u)")
    weights: Shapes = {"w": (8, 3, 1, 1), "v": (5, 8, 1, 1), "inner": (8, 1, 1), "u": (8, 8, 1, 1)}
    analysis = proved(model(text, weights))
    assert "If" not in [n.op for n in analysis.model.graph.nodes]
    assert [g.channels for g in analysis.groups] == [8, 8]


def test_branch_that_depends_on_the_data_stays() -> None:
    text = """
        g (float[N, 3, 4, 4] x, bool c) => (float[N, 5, 4, 4] y)
        {
          a = Conv <kernel_shape = [1, 1]> (x, w)
          b = If (c) <
            then_branch = t () => (float[N, 8, 4, 4] t1) { t1 = Relu (a) },
            else_branch = e () => (float[N, 8, 4, 4] e1) { e1 = Neg (a) }
          >
          y = Conv <kernel_shape = [1, 1]> (b, v)
        }
        """
    analysis = proved(model(text, {"w": (8, 3, 1, 1), "v": (5, 8, 1, 1)}))
    assert "If" in [n.op for n in analysis.model.graph.nodes]
    assert [g.channels for g in analysis.groups] == [8]
