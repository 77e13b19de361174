"""Constructs that hide nodes or shapes: bodies, local functions, sequences, dynamic channels, unknown operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from random_graphs.graphs import PROPERTY, removal

from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir._reading.function_inlining import MOST_NODES
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

HEAD = '<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>'
SHAPES = {"w0": (8, 2, 1, 1), "w1": (8, 8, 1, 1), "w2": (5, 8, 1, 1), "v0": (6, 2, 1, 1), "v1": (3, 6, 1, 1)}


def model_of(text: str, *, more: str = "", **consts: np.ndarray) -> Model:
    """A model with weights w0, w1, w2 in a chain, and a free branch v0, v1 that makes output y2."""
    free = "p0 = Conv (x, v0) q0 = Relu (p0) y2 = Conv (q0, v1) }"
    proto = onnx.parser.parse_model(f"{HEAD} {text.replace('FREE }', free)} {more}")
    rng = np.random.default_rng(0)
    used = used_in(proto.graph)
    for name, shape in SHAPES.items():
        if name in used:
            proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype("f"), name))
    for name, value in consts.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for i, node in enumerate(proto.graph.node):
        node.name = f"node{i}"
    return load(proto)


def used_in(graph: onnx.GraphProto) -> set[str]:
    """Names that nodes read, those of bodies included."""
    bodies = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return {i for n in graph.node for i in n.input}.union(*map(used_in, bodies))


def prune(model: Model, seed: int = 0) -> Analysis:
    """Removes random channels of every group and verifies."""
    analysis = analyze(model)
    rng = np.random.default_rng(seed)
    groups = {g.name: Removal(g.channels, removal(g.channels, rng)) for g in analysis.groups}
    if "v0" in groups:
        groups["v0"] = Removal(6, (0, 2, 5))
    done = compile_plan(model, Plan("", groups), analysis=analysis)
    onnx.checker.check_model(to_proto(done.model))
    assert done.verification is not None
    return analysis


def names(analysis: Analysis) -> set[str]:
    return {g.name for g in analysis.groups}


BRANCHES = (
    "then_branch = then () => (float[N,8,4,4] o1) {{ o1 = {a} }}, "
    "else_branch = other () => (float[N,8,4,4] o2) {{ o2 = {b} }}"
)
TEST = "f = ReduceMean <keepdims = 0> (x) p = Greater (f, zero)"
ZERO = {"zero": np.float32(0)}
SIGNATURE = "g (float[N,2,4,4] x) => (float[N,5,4,4] y, float[N,3,4,4] y2)"


def branching(before: str, a: str, b: str, after: str) -> Model:
    return model_of(f"{SIGNATURE} {{ {TEST} {before} i = If (p) <{BRANCHES.format(a=a, b=b)}> {after} FREE }}", **ZERO)


def test_results_of_both_branches_are_tied() -> None:
    model = branching("h = Conv (x, w0)", "Conv (h, w1)", "Relu (h)", "y = Conv (i, w2)")
    analysis = prune(model)
    assert names(analysis) == {"v0", "w0"}
    assert set(analysis["w0"].sites) == {("w0", 0), ("w1", 0), ("w1", 1), ("w2", 1)}


@pytest.mark.parametrize("first", ["body", "graph"])
def test_weight_that_a_body_shares_with_the_graph_is_one_weight(first: str) -> None:
    # The body's use may come before the graph's.
    own = "h = Conv (x, w0) k = Relu (h) s = Conv (k, w1)"
    if first == "graph":
        model = branching(f"{own} r = Relu (s)", "Conv (r, w1)", "Relu (r)", "y = Conv (i, w2)")
    else:
        text = (
            f"g (float[N,2,4,4] x, float[N,8,4,4] z) => (float[N,5,4,4] y, float[N,8,4,4] y1, float[N,3,4,4] y2) "
            f"{{ {TEST} y1 = If (p) <{BRANCHES.format(a='Conv (z, w1)', b='Relu (z)')}> {own} y = Conv (s, w2) FREE }}"
        )
        model = model_of(text, **ZERO)
    sites = {site for g in prune(model) for site in g.sites}
    # The input z is an input of the model: the columns of w1 that read it cannot be removed.
    assert sites >= {("w1", 0), ("w1", 1)} if first == "graph" else ("w1", 1) not in sites


def test_constants_of_bodies_survive_the_passes() -> None:
    # Normalization renames and drops constants; a body that uses one must still find it.
    before = "c = Constant <value_float = 2.0> () d = Identity (w1) h = Conv (x, w0)"
    model = branching(before, "Mul (h, c)", "Conv (h, d)", "j = Mul (i, c) y = Conv (j, w2)")
    normal = Pipeline(NORMALIZE)(model)
    x = {"x": np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)}
    for a, b in zip(Session(model).run(x), Session(normal).run(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    prune(model)


def test_body_inside_a_body_captures_as_well() -> None:
    inner = BRANCHES.format(a="Conv (h, w1)", b="Neg (h)").replace("o1", "o3").replace("o2", "o4")
    inner = inner.replace("then ()", "deep ()").replace("other ()", "deeper ()")
    model = branching("h = Conv (x, w0)", f"If (p) <{inner}>", "Relu (h)", "y = Conv (i, w2)")
    analysis = prune(model)
    assert names(analysis) == {"v0", "w0"}
    assert ("w1", 1) in analysis["w0"].sites


def test_loop_ties_what_it_carries() -> None:
    body = (
        "body (int64 i, bool c, float[N,8,4,4] a) => (bool d, float[N,8,4,4] b) { d = Identity (c) b = Conv (a, w1) }"
    )
    text = f"{SIGNATURE} {{ h = Conv (x, w0) i = Loop (n, go, h) <body = {body}> y = Conv (i, w2) FREE }}"
    analysis = prune(model_of(text, n=np.array(2), go=np.array(True)))
    assert names(analysis) == {"v0", "w0"}
    assert set(analysis["w0"].sites) == {("w0", 0), ("w1", 0), ("w1", 1), ("w2", 1)}


def test_loop_whose_state_grows_locks() -> None:
    body = (
        "body (int64 i, bool c, float[N,C,4,4] a) => (bool d, float[N,D,4,4] b) "
        "{ d = Identity (c) e = Conv (h, w1) b = Concat <axis = 1> (a, e) }"
    )
    text = f"{SIGNATURE} {{ h = Conv (x, w0) i = Loop (n, go, h) <body = {body}> s = ReduceSum <keepdims = 1> (i, one) "
    text += "t = Expand (s, eight) y = Conv (t, w2) FREE }"
    model = model_of(text, n=np.array(2), go=np.array(True), one=np.array([1]), eight=np.array([1, 8, 1, 1]))
    analysis = prune(model)
    assert names(analysis) == {"v0"}


@pytest.mark.parametrize("constant", [False, True])
def test_weights_in_the_body_of_a_scan_are_counted_and_named(constant: bool) -> None:
    model = model_of(
        f"{SIGNATURE} {{ h = Conv (x, w0) k = Constant <value = float {{0.0}}> () i, j = Scan <num_scan_inputs = 1, "
        "body = body (float a, float[8,4,4] b) => (float c, float[8,4,4] d) { c = Identity (a) e = Reshape (w1, flat) "
        "f = ReduceMax <keepdims = 0> (e) d = Add (b, f) }> (k, h) y = Conv (j, w2) FREE }",
        flat=np.array([-1]),
    )  # fmt: skip
    proto = to_proto(model)
    body = next(a.g for n in proto.graph.node if n.op_type == "Scan" for a in n.attribute if a.name == "body")
    weight = next(t for t in body.initializer if t.name == "w1")
    if constant:
        body.node.insert(0, helper.make_node("Constant", [], ["w1"], value=weight))
        body.initializer.remove(weight)
    analysis = analyze(load(proto))
    assert CostModel(analysis).baseline.params == sum(int(np.prod(s)) for s in SHAPES.values()) + 1  # and k
    (lock,) = [k for k in analysis.locked if k.name == "w1"]
    assert (lock.channels, lock.op) == (8, "Scan")
    assert "body of a Scan" in lock.reason


def test_functions_are_inlined_and_their_channels_free() -> None:
    more = (
        '<domain: "my.domain", opset_import: ["" : 17, "my.domain" : 1]> block (a, w) => (b) '
        "{ c = Conv (a, w) b = my.domain.act (c) }"
        '<domain: "my.domain", opset_import: ["" : 17]> act (a) => (b) { b = Relu (a) }'
    )
    text = f"{SIGNATURE} {{ h = my.domain.block (x, w0) k = my.domain.block (h, w1) y = my.domain.block (k, w2) FREE }}"
    model = model_of(text, more=more)
    assert {n.op for n in model.graph.nodes} == {"Conv", "Relu"}
    assert not model.graph.functions
    assert names(prune(model)) == {"w0", "w1", "v0"}


def test_functions_that_stand_for_too_much_are_refused() -> None:
    levels = 24
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]

    def twice(i: int) -> list[onnx.NodeProto]:
        op, domain = ("Neg", "") if i == 0 else (f"f{i - 1}", "my.domain")
        return [helper.make_node(op, [a], [b], domain=domain) for a, b in (("a", "c"), ("c", "b"))]

    functions = [helper.make_function("my.domain", f"f{i}", ["a"], ["b"], twice(i), opsets) for i in range(levels)]
    graph = helper.make_graph(
        [helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="my.domain")], "g",
        [helper.make_tensor_value_info("x", 1, [2])], [helper.make_tensor_value_info("y", 1, [2])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    with pytest.raises(OnnxPruneError, match=f"{2**levels} nodes; the maximum is {MOST_NODES}"):
        load(proto)


def test_function_for_another_opset_stays_a_call_and_locks() -> None:
    more = '<domain: "my.domain", opset_import: ["" : 16]> act (a) => (b) { b = Sin (a) }'
    text = f"{SIGNATURE} {{ h = Conv (x, w0) k = my.domain.act (h) y = Conv (k, w2) FREE }}"
    analysis = analyze(model_of(text, more=more))
    assert "v0" in names(analysis)
    assert "w0" in names(analysis) or any("my.domain::act" in k.reason for k in analysis.locked)


def test_operator_without_a_record_says_how_to_add_one_and_shows_its_weights() -> None:
    text = f"{SIGNATURE} {{ h = Conv (x, w0) k = my.domain.Thing (h, w1) y = Conv (k, w2) FREE }}"
    analysis = analyze(model_of(text))
    assert names(analysis) == {"v0"}
    reasons = {k.name: k.reason for k in analysis.locked if k.op == "Thing"}
    assert set(reasons) == {"w0", "w1"}
    assert all(r.startswith("is used by my.domain::Thing, which has no record: add one") for r in reasons.values())
    assert all("onnxprune.ops" in r for r in reasons.values())


def test_channels_of_a_sequence_stay() -> None:
    text = (
        f"{SIGNATURE} {{ h = Conv (x, w0) s = SequenceConstruct (h, h) k = SequenceAt (s, z) y = Conv (k, w2) FREE }}"
    )
    analysis = prune(model_of(text, z=np.array(1)))
    assert names(analysis) == {"v0"}
    assert {k.reason for k in analysis.locked if k.name == "w0"} == {"is part of a sequence"}


@pytest.mark.parametrize("use", ["k = Add (h, z)", "k = Mul (z, h)", "k = Concat <axis = 1> (h, z)", "k = Max (h, z)"])
def test_dynamic_channel_dimension_locks_what_it_meets(use: str) -> None:
    # "C" may be 1 or 8, or for Concat anything: nothing that depends on which may be removed.
    tail = "y = ReduceMean <axes = [1]> (k)" if "Concat" in use else "y = Conv (k, w2)"
    text = (
        "g (float[N,2,4,4] x, float[N,C,4,4] z) => (float[N,M,4,4] y, float[N,3,4,4] y2) "
        f"{{ h = Conv (x, w0) {use} {tail} FREE }}"
    )
    model = model_of(text)
    analysis = analyze(model)
    assert names(analysis) == {"v0"}
    done = compile_plan(model, Plan("", {"v0": Removal(6, (1, 3))}), analysis=analysis, check=False)
    rng = np.random.default_rng(0)
    for channels in (8,) if "Concat" not in use else (1, 5):
        feeds = {
            "x": rng.standard_normal((2, 2, 4, 4)).astype("f"),
            "z": rng.standard_normal((2, channels, 4, 4)).astype("f"),
        }
        a, b = (Session(m).run(feeds, ["y"])[0] for m in (model, done.model))
        np.testing.assert_array_equal(a, b)


DATA_DEPENDENT = {
    "NonZero": "n = NonZero (h) t = Transpose (n) k = GatherND (h, t) u = ReduceSum <keepdims = 0> (k) m = Mul (h, u)",
    "Unique": "u, i = Unique <axis = 1> (h) s = ReduceMax <keepdims = 0> (u) m = Mul (h, s)",
    "Compress": "b = Greater (v, zero) c = Compress <axis = 1> (h, b) s = ReduceMax <keepdims = 0> (c) m = Mul (h, s)",
    "Range": "s = ReduceMax <keepdims = 0> (h) e = Cast <to = 7> (s) r = Range (i0, e, i1) f = Cast <to = 1> (r) "
             "t = ReduceSum <keepdims = 0> (f) m = Mul (h, t)",
    "Reshape by data": "s = ReduceMax <keepdims = 0> (x) c = Sub (s, s) e = Cast <to = 7> (c) q = Reshape (e, one) "
                       "a = Concat <axis = 0> (q, shape) r = Reshape (h, a) m = Reshape (r, back)",
}  # fmt: skip


@pytest.mark.parametrize("name", DATA_DEPENDENT)
@pytest.mark.parametrize("seed", [0, 1])
def test_shapes_that_depend_on_data_are_never_wrong(name: str, seed: int) -> None:
    text = f"{SIGNATURE} {{ h = Conv (x, w0) {DATA_DEPENDENT[name]} y = Conv (m, w2) FREE }}"
    consts = {"v": np.array([1, -1, 1, 1, -1, 1, 1, 1], np.float32), "i0": np.array(0), "i1": np.array(1), **ZERO}
    consts |= {"one": np.array([1]), "shape": np.array([8, 16]), "back": np.array([-1, 8, 4, 4])}
    used = {k: v for k, v in consts.items() if f" {k}" in text or f"({k}" in text}
    analysis = prune(model_of(text, **used), seed)
    assert "v0" in names(analysis)


# Steps that keep [N, 8, 4, 4] and mix hazards with what is free.
STEPS = (
    "{o} = Relu ({i})",
    "{o} = Conv ({i}, w1)",
    "{o} = my.domain.Thing ({i})",
    "{o}s = SequenceConstruct ({i}) {o} = SequenceAt ({o}s, k0)",
    "{o} = If (p) <then_branch = t{o} () => (float[N,8,4,4] a{o}) {{ a{o} = Conv ({i}, w1) }}, "
    "else_branch = e{o} () => (float[N,8,4,4] b{o}) {{ b{o} = Neg ({i}) }}>",
    "{o}q = QuantizeLinear ({i}, sc, zp) {o} = DequantizeLinear ({o}q, sc, zp)",
    "{o}a, {o}b = Split <axis = 1> ({i}) {o} = Concat <axis = 1> ({o}b, {o}a)",
    "{o} = Add ({i}, {i})",
)


@PROPERTY(max_examples=60)
@given(st.lists(st.sampled_from(range(len(STEPS))), min_size=1, max_size=5), st.integers(0, 2**16))
def test_hazards_among_free_operators_are_never_wrong(picks: list[int], seed: int) -> None:
    lines, last = [f"{TEST} h0 = Conv (x, w0)"], "h0"
    for place, pick in enumerate(picks):
        lines.append(STEPS[pick].format(i=last, o=f"h{place + 1}"))
        last = f"h{place + 1}"
    text = f"{SIGNATURE} {{ {' '.join(lines)} y = Conv ({last}, w2) FREE }}"
    consts = {**ZERO, "k0": np.array(0), "sc": np.float32(0.05), "zp": np.uint8(128)}
    more = ""
    if 2 in picks:  # onnxruntime has to run it: a function for an older opset, which is not inlined
        more = '<domain: "my.domain", opset_import: ["" : 16]> Thing (a) => (b) { b = Sin (a) }'
    prune(model_of(text, more=more, **consts), seed)


def test_a_body_that_collects_a_sequence_survives_a_copy() -> None:
    # graphsurgeon's own copy of a body makes tensors of its sequences, which onnxruntime refuses.
    model = model_of(
        """g (float[N, 2, 4, 4] x) => (float[M, 5, 4, 4] y, float[N, 3, 4, 4] y2) {
        a = Conv (x, w0)
        none = SequenceEmpty <dtype = 1> ()
        all = Loop (twice, yes, none) <body = b (int64 i, bool c, seq(float[N, 8, 4, 4]) before)
            => (bool d, seq(float[N, 8, 4, 4]) after) {
            d = Identity (c)
            after = SequenceInsert (before, a)
        }>
        both = ConcatFromSequence <axis = 0> (all)
        y = Conv (both, w2)
        FREE }""",
        twice=np.int64(2), yes=np.array(True),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)
    expected, got = (Session(m).run({"x": x}, ["y"])[0] for m in (model, model.copy()))
    assert np.array_equal(got, expected)
    assert got.shape == (6, 5, 4, 4)
    assert {g.name for g in prune(model).groups} == {"v0"}
