"""If nodes in flat form: read, written, analysed, pruned and proved with the nodes of their branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from random_graphs.graphs import PROPERTY

from onnxprune.errors import VerificationError
from onnxprune.execution.sessions import Session
from onnxprune.ir.branches import FLAT, flat
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.pipeline import analyze, compile_plan, verify
from onnxprune.plans import Plan, Removal

Weights = dict[str, tuple[int, ...]]
RATE = """
    g (float[N, 3, L] x, int64 rate) => (float[N, 5, M] y)
    {
      high = Constant <value = int64 {16000}> ()
      fast = Equal (rate, high)
      y = If (fast) <
        then_branch = t () => (float[N, 5, K] r) {
          a = Conv <kernel_shape = [4], strides = [4]> (x, w)
          b = Relu (a)
          r = Conv <kernel_shape = [1]> (b, v)
        },
        else_branch = e () => (float[N, 5, K] r) {
          a = Conv <kernel_shape = [2], strides = [2]> (x, wl)
          b = Relu (a)
          r = Conv <kernel_shape = [1]> (b, vl)
        }
      >
    }
    """
RATE_WEIGHTS: Weights = {"w": (8, 3, 4), "v": (5, 8, 1), "wl": (6, 3, 2), "vl": (5, 6, 1)}


def model(text: str, weights: Weights, *, inside: bool = False, opset: int = 17) -> onnx.ModelProto:
    """Parse a model and add random weights: to the graph, or to the branches that read them."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        tensor = numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        holders = [b for b in branches(proto.graph) if any(name in n.input for n in b.node)] if inside else []
        for graph in holders or [proto.graph]:
            graph.initializer.append(tensor)
    return proto


def branches(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [a.g for n in graph.node for a in n.attribute if a.HasField("g")]
    return found + [deep for body in found for deep in branches(body)]


def pruned(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Remove a third of every group, prove the result and return the written model."""
    source = load(proto)
    analysis = analyze(source)
    removed = {g.name: Removal(g.channels, tuple(range(0, g.channels - 1, 3))) for g in analysis}
    done = compile_plan(source, Plan(source.fingerprint, removed), analysis=analysis)
    assert done.verification is not None
    assert done.verification.effect > 0
    out = to_proto(done.model)
    onnx.checker.check_model(out)
    return out


def shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(t.dims) for g in (proto.graph, *branches(proto.graph)) for t in g.initializer}


@pytest.mark.parametrize("inside", [False, True])
def test_branches_with_weights_of_their_own_are_pruned(inside: bool) -> None:
    out = pruned(model(RATE, RATE_WEIGHTS, inside=inside))
    assert shapes(out) == {"w": (5, 3, 4), "v": (5, 5, 1), "wl": (4, 3, 2), "vl": (5, 4, 1)} | {
        n: s for n, s in shapes(out).items() if n not in RATE_WEIGHTS
    }
    assert sum(n.op_type == "Conv" for n in out.graph.node) == 0


def test_only_the_branch_that_is_selected_is_executed() -> None:
    # Both branches in front of the If would fail at lengths that only one of them accepts.
    text = RATE.replace(
        "a = Conv <kernel_shape = [4]", "s = Squeeze (x, three) q = Unsqueeze (s, three) a = Conv <kernel_shape = [4]"
    )
    text = text.replace("(x, w)", "(x, w) a2 = Reshape (a, short)").replace("b = Relu (a)", "b = Relu (a2)", 1)
    proto = model(text.replace("s = Squeeze (x, three) q = Unsqueeze (s, three) ", ""), RATE_WEIGHTS)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0, 8, 3]), "short"))
    session = Session(load(proto))
    x = np.zeros((2, 3, 20), np.float32)
    assert session.run({"x": x, "rate": np.array(8000)})[0].shape == (2, 5, 10)
    assert session.run({"x": x[..., :12], "rate": np.array(16000)})[0].shape == (2, 5, 3)


def test_branch_that_random_integers_never_select_is_proved() -> None:
    # Only the value 16000 selects the first branch; a wrong weight in it must be found.
    proto = model(RATE, RATE_WEIGHTS)
    source = load(proto)
    analysis = analyze(source)
    plan = Plan(source.fingerprint, {g.name: Removal(g.channels, (0,)) for g in analysis})
    out = to_proto(compile_plan(source, plan, analysis=analysis).model)
    verify(source, load(out), plan)
    for body in branches(out.graph):
        for node in body.node:
            if node.op_type == "Relu":
                node.op_type = "Neg"
                with pytest.raises(VerificationError):
                    verify(source, load(out), plan)
                node.op_type = "Relu"


def test_swapped_branches_and_changed_conditions_are_refused() -> None:
    proto = model(RATE, RATE_WEIGHTS)
    source = load(proto)
    analysis = analyze(source)
    plan = Plan(source.fingerprint, {g.name: Removal(g.channels, (0,)) for g in analysis})
    out = to_proto(compile_plan(source, plan, analysis=analysis).model)
    swapped, changed = onnx.ModelProto(), onnx.ModelProto()
    swapped.CopyFrom(out)
    changed.CopyFrom(out)
    for a in next(n for n in swapped.graph.node if n.op_type == "If").attribute:
        a.name = {"then_branch": "else_branch", "else_branch": "then_branch"}[a.name]
    for tensor in changed.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            tensor.CopyFrom(numpy_helper.from_array(np.array(8000), tensor.name))
    for wrong in (swapped, changed):
        with pytest.raises(VerificationError):
            verify(source, load(wrong), plan)


def test_branches_of_different_shapes_lock_their_results() -> None:
    text = """
        g (float[N, 3, 4, 4] x, bool c) => (float[N, 5, H, W] y)
        {
          a = Conv <kernel_shape = [1, 1]> (x, w)
          b = If (c) <
            then_branch = t () => (float[N, 8, 4, 4] t1) { t1 = Relu (a) },
            else_branch = e () => (float[N, 16, 4, 4] e1) { e1 = Concat <axis = 1> (a, a) }
          >
          d = ReduceMean <axes = [1]> (b)
          y = Conv <kernel_shape = [1, 1]> (d, v)
        }
        """
    analysis = analyze(load(model(text, {"w": (8, 3, 1, 1), "v": (5, 1, 1, 1)})))
    assert {(k.op, k.reason) for k in analysis.locked if k.name == "w"} == {
        ("If", "is a result of one branch that has another shape in the other branch")
    }


def test_branches_that_return_outer_or_equal_values_are_written() -> None:
    text = """
        g (float[N, 3, 4] x, bool c) => (float[N, 3, 4] y, float[N, 3, 4] z, float[3] k)
        {
          a = Relu (x)
          y, z, k = If (c) <
            then_branch = t () => (float[N, 3, 4] a1, float[N, 3, 4] a2, float[3] a3) {
              a1 = Identity (a)  a2 = Identity (a)  a3 = Identity (one)
            },
            else_branch = e () => (float[N, 3, 4] b1, float[N, 3, 4] b2, float[3] b3) {
              b1 = Neg (a)  b2 = Identity (b1)  b3 = Identity (two)
            }
          >
        }
        """
    proto = model(text, {"one": (3,), "two": (3,)})
    same(
        proto,
        load(proto).graph.nodes and to_proto(analyze(load(proto)).model),
        {"x": (2, 3, 4)},
        {"c": TensorProto.BOOL},
    )


def same(proto: onnx.ModelProto, other: onnx.ModelProto, floats: Weights, flags: dict[str, int]) -> None:
    rng = np.random.default_rng(1)
    onnx.checker.check_model(other)
    one, two = Session(proto), Session(other)
    for truth in range(2 ** len(flags)):
        feeds = {n: rng.standard_normal(s).astype(np.float32) for n, s in floats.items()}
        feeds |= {n: np.array(bool(truth >> i & 1)) for i, n in enumerate(flags)}
        for a, b in zip(one.run(feeds), two.run(feeds), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


OPS = ("Relu", "Neg", "Exp", "Sigmoid")


@st.composite
def nests(draw: st.DrawFn) -> onnx.ModelProto:
    """Nested Ifs on the inputs c and d, whose branches reuse names and capture outer tensors."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    names = iter(f"v{i}" for i in range(10**6))

    def body(depth: int, outer: list[str]) -> tuple[list[onnx.NodeProto], list[str]]:
        mine: list[str] = []
        nodes: list[onnx.NodeProto] = []
        for _ in range(int(rng.integers(1, 4))):
            known = [*outer, *mine]
            x, y = (known[int(rng.integers(len(known)))] for _ in range(2))
            if depth and rng.random() < 0.5:
                # Sibling branches use the same names.
                start = f"s{depth}"
                sides = []
                for side in ("then_branch", "else_branch"):
                    inner, made = body(depth - 1, known)
                    inner.append(helper.make_node("Add", [made[-1], x], [start]))
                    out = helper.make_tensor_value_info(start, TensorProto.FLOAT, None)
                    sides.append(helper.make_graph(inner, side, [], [out]))
                result = next(names)
                condition = "cd"[int(rng.integers(2))]
                nodes.append(helper.make_node("If", [condition], [result], then_branch=sides[0], else_branch=sides[1]))
            elif rng.random() < 0.5:
                result = next(names)
                nodes.append(helper.make_node("Add", [x, y], [result]))
            else:
                result = next(names)
                nodes.append(helper.make_node(OPS[int(rng.integers(len(OPS)))], [x], [result]))
            mine.append(result)
        return nodes, mine

    nodes, made = body(3, ["x"])
    nodes.append(helper.make_node("Identity", [made[-1]], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    inputs += [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in "cd"]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@PROPERTY(max_examples=40)
@given(nests())
def test_reading_and_writing_keeps_the_results(proto: onnx.ModelProto) -> None:
    loaded = load(proto)
    assert not any(a for n in loaded.graph.nodes if n.domain == FLAT for a in n.attrs)
    made = [o.name for n in loaded.graph.nodes for o in n.outputs]
    assert len(made) == len(set(made))
    written = to_proto(loaded)
    assert not any(o.domain == FLAT for o in written.opset_import)
    same(proto, written, {"x": (2, 3)}, {"c": TensorProto.BOOL, "d": TensorProto.BOOL})
    # No node moves into a branch or out of one.
    assert sum(map(len, (g.node for g in branches(written.graph)))) <= sum(
        map(len, (g.node for g in branches(proto.graph)))
    )
    assert to_proto(load(written)).SerializeToString() == written.SerializeToString()


def test_model_without_an_if_is_not_copied() -> None:
    proto = model("g (float[N] x) => (float[N] y) { y = Relu (x) }", {})
    assert flat(proto)[0] is proto


def test_command_line_counts_and_prunes_weights_in_branches(tmp_path: Path) -> None:
    line = CommandLine()
    source, small = tmp_path / "rate.onnx", tmp_path / "small.onnx"
    onnx.save(model(RATE, RATE_WEIGHTS, inside=True), str(source))
    report = line.out("inspect", source)
    assert "2 groups" in report
    line.ok("prune", source, "-o", small, "--ratio", 0.5, "--round-to", 1)
    before, after = (sum(int(np.prod(s)) for s in shapes(onnx.load(str(p))).values()) for p in (source, small))
    assert after < 0.6 * before
