"""Files whose nodes are in any order, and messages of the ONNX checker."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper, parser
from random_graphs.graphs import PROPERTY

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir._reading.node_order import in_order
from onnxprune.ir.reader import load

DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"


def model(text: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) {{ {text} }}')


def names(proto: onnx.ModelProto) -> list[str]:
    return [n.output[0] for n in proto.graph.node]


def test_sorted_nodes_keep_their_order() -> None:
    proto = model("b = Relu (x) a = Neg (x) c = Add (a, b) y = Exp (c)")
    assert in_order(proto) is proto


def test_nodes_that_need_not_move_keep_their_order() -> None:
    proto = model("b = Relu (x) y = Add (c, b) a = Neg (x) c = Exp (a)")
    before = proto.SerializeToString()
    assert names(in_order(proto)) == ["b", "a", "c", "y"]
    assert proto.SerializeToString() == before


def test_bodies_are_sorted_and_their_captures_count() -> None:
    branches = (
        "then_branch = t () => (float[N] p) { p = Neg (q) q = Exp (a) }, "
        "else_branch = e () => (float[N] r) { r = Exp (x) }"
    )
    proto = model(f"y = If (c) <{branches}> s = ReduceMax <keepdims = 0> (a) c = Greater (s, s) a = Relu (x)")
    done = in_order(proto)
    assert names(done) == ["a", "s", "c", "y"]
    assert [n.output[0] for n in done.graph.node[3].attribute[0].g.node] == ["q", "p"]
    onnx.checker.check_model(done)


def test_functions_are_sorted() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[N] x) => (float[N] y) { y = own.f (x) }'
    function = '<domain: "own", opset_import: ["" : 17]> f (a) => (c) { c = Neg (b) b = Exp (a) }'
    proto = parser.parse_model(f"{text} {function}")
    assert [n.op for n in load(proto).graph.nodes] == ["Exp", "Neg"]


@pytest.mark.parametrize("text", ["y = Add (x, b) b = Neg (y)", "a = Add (x, a) y = Neg (a)",
                                  "y = Neg (c) a = Add (x, c) b = Exp (a) c = Relu (b)"])  # fmt: skip
def test_a_cycle_is_an_error_that_names_a_node_on_it(text: str) -> None:
    with pytest.raises(OnnxPruneError, match="depend on its own outputs") as caught:
        load(model(text))
    assert caught.value.where in ("Add 'y'", "Neg 'b'", "Add 'a'", "Exp 'b'", "Relu 'c'")


def test_a_value_that_nothing_computes_is_named() -> None:
    with pytest.raises(OnnxPruneError, match="'missing', which nothing computes"):
        load(model("y = Add (x, missing)"))


def test_the_node_that_the_checker_rejects_is_named() -> None:
    proto = model("a = Neg (x) y = Relu (a)")
    proto.graph.node[1].name = "last"
    proto.graph.node[1].attribute.append(helper.make_attribute("unheard", 1))
    with pytest.raises(OnnxPruneError, match="Unrecognized attribute: unheard") as caught:
        load(proto)
    assert caught.value.where == "Relu 'last'"


@PROPERTY(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_any_order_gives_the_same_results(shuffling: random.Random) -> None:
    proto = onnx.load(str(DIGITS))
    x = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    wanted = Session(load(proto)).run({"image": x})
    nodes = list(proto.graph.node)
    shuffling.shuffle(nodes)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    for a, b in zip(Session(load(proto)).run({"image": x}), wanted, strict=True):
        np.testing.assert_array_equal(a, b)


def test_float16_conversion_with_casts_at_the_end_is_pruned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y)
        {
          a = Conv <kernel_shape = [1, 1]> (x16, w)
          b = Relu (a)
          y16 = Conv <kernel_shape = [1, 1]> (b, v)
          x16 = Cast <to = 10> (x)
          y = Cast <to = 1> (y16)
        }
        """
    )
    for name, shape in (("w", (16, 3, 1, 1)), ("v", (5, 16, 1, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float16), name))
    source, small = tmp_path / "half.onnx", tmp_path / "small.onnx"
    onnx.save(proto, str(source))
    assert "proved" in CommandLine().out("prune", source, "-o", small, "--ratio", 0.5, "--round-to", 1)
    assert {t.name: tuple(t.dims) for t in onnx.load(str(small)).graph.initializer}["w"] == (8, 3, 1, 1)
