"""Models that the proof accepts and refuses."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from proofs.proof_cases import BODY, CONV, ProofCase, agrees, cases, compiled, edited, ints, made

import onnxprune.verification as package
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.ir.model import Model
from onnxprune.ir.proto_graph import Graph
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.verification import _sizes as sizes
from onnxprune.verification import verify
from onnxprune.verification._claims import Claims, MaskSite, StatisticSite, resized
from onnxprune.verification._compare import TensorComparison
from onnxprune.verification._reference import Reference


def cut(proto: onnx.ModelProto, *removed: int) -> tuple[Analysis, Plan, Compiled]:
    """Return the model's only group without these channels, proved."""
    model = load(proto)
    analysis = analyze(model)
    (group,) = analysis.groups
    plan = Plan(model.fingerprint, {group.name: Removal(group.channels, removed)})
    return analysis, plan, compile_plan(model, plan, analysis=analysis)


def simple(last: str = "") -> onnx.ModelProto:
    """Conv, Relu, Conv, and what `last` says of `c`."""
    return made(f"g (float[N,3,H,8] x) => (float[N,6,H,8] {'y' if last else 'c'}) {{ {BODY % 'x'} {last} }}", CONV)


def changed(model: Model, name: str, by: float, place: int = 0) -> Model:
    """Return a copy with one number of a weight moved by a share of the largest one."""
    proto = to_proto(model)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[place] += np.float32(by * max(float(np.abs(value).max()), 1.0))
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return load(proto)


# ------------------------------------------------------------------------------------------------------ whole proofs


@pytest.mark.parametrize("case", cases().values(), ids=lambda c: c.name)
def test_verdict(case: ProofCase) -> None:
    analysis, plan, pruned = compiled(case)
    if case.expectation == "accept":
        assert agrees(case, analysis, plan, pruned)
        proof = verify(analysis, plan, pruned, threads=1)
        assert proof.nodes == len([n for n in pruned.graph.nodes if n.op != "Constant"])
        assert proof.max_relative <= proof.tolerance
        return
    wrong = edited(case, pruned)
    with pytest.raises(VerificationError):
        verify(analysis, plan, wrong, threads=1)


@pytest.mark.parametrize("seed", range(3))
def test_verdicts_do_not_depend_on_the_seed(seed: int) -> None:
    case = cases()["dynamic_reshape"]
    analysis, plan, pruned = compiled(case)
    assert verify(analysis, plan, pruned, seed=seed).max_relative <= 1e-6


def test_certificate() -> None:
    _, _, done = cut(simple(), 0, 3, 5)
    proof = done.verification
    assert proof is not None
    assert (proof.nodes, proof.tensors, proof.weights, proof.inputs) == (3, 3, "identical", "random")
    assert len(proof.sizes) >= 3
    assert 0 <= proof.max_relative <= 1e-5
    assert list(proof.outputs) == ["c"]
    assert proof.effect > 1e-2
    assert proof.summary.startswith(f"3 of 3 nodes, {len(proof.sizes)} size assignments, worst ")
    said = proof.as_dict()
    assert said["summary"] == proof.summary
    assert said["seconds"] > 0
    assert len(said["worst"]) == 4


def test_the_first_broken_node_is_named() -> None:
    analysis, plan, done = cut(simple("y = LeakyRelu (c)"), 0, 3)
    proto = to_proto(done.model)
    node = next(n for n in proto.graph.node if n.op_type == "Relu")
    node.op_type, node.name = "Abs", "broken"
    with pytest.raises(VerificationError) as caught:
        verify(analysis, plan, load(proto))
    assert "Abs 'broken'" in str(caught.value.where)
    node.op_type = "Relu"
    proto.graph.node.insert(2, helper.make_node("Transpose", ["r"], ["t"], name="turned", perm=[0, 1, 3, 2]))
    next(n for n in proto.graph.node if n.output[0] == "c").input[0] = "t"
    with pytest.raises(VerificationError) as caught:
        verify(analysis, plan, load(proto))
    assert "tensor 'c'" in str(caught.value.where)


def test_one_weight_in_the_last_bit_is_refused() -> None:
    analysis, plan, done = cut(simple(), 0, 3)
    with pytest.raises(VerificationError, match="not the original's, compressed") as caught:
        verify(analysis, plan, changed(done.model, "w1", 1e-7, 5))
    assert "w1" in str(caught.value.where)


STANDARDIZED = """
    mean = ReduceMean <axes = [1, 2, 3]> (w0) centred = Sub (w0, mean) squared = Mul (centred, centred)
    variance = ReduceMean <axes = [1, 2, 3]> (squared) shifted = Add (variance, epsilon) deviation = %s
    weight = Div (centred, deviation) a = Conv (x, weight) r = Relu (a) y = Conv (r, w1)
"""


@pytest.mark.parametrize("root", ["Sqrt (shifted)", "Pow (shifted, half)"])
def test_a_weight_that_the_original_computes_is_the_exact_value_rounded(root: str) -> None:
    weights = {k: v for k, v in CONV.items() if k != "b0"}
    weights |= {"epsilon": np.float32(1e-5), "half": np.float32(0.5)}
    proto = made(f"g (float[N,3,H,8] x) => (float[N,6,P,Q] y) {{ {STANDARDIZED % root} }}", weights)
    analysis, plan, done = cut(proto, 0, 3)
    w = numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float64)
    centred = w - w.mean((1, 2, 3), keepdims=True)
    exact = centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True) + np.float64(np.float32(1e-5)))
    stated = next(numpy_helper.to_array(t) for t in to_proto(done.model).graph.initializer if t.name == "weight")
    np.testing.assert_array_equal(stated, np.delete(exact.astype(np.float32), (0, 3), 0))
    verify(analysis, plan, done.model)
    for place in (0, 100, 377):
        proto = to_proto(done.model)
        tensor = next(t for t in proto.graph.initializer if t.name == "weight")
        value = numpy_helper.to_array(tensor).copy()
        value.reshape(-1)[place] *= np.float32(1 + 1e-6)
        tensor.CopyFrom(numpy_helper.from_array(value, "weight"))
        with pytest.raises(VerificationError, match="another constant than the original computes"):
            verify(analysis, plan, load(proto))


def test_a_computed_weight_may_be_more_exact_than_the_runtime() -> None:
    # 1 - Sigmoid(6) has few digits in float32: a runtime is more than 64 units in the last place from the exact value.
    text = """
        s = Sigmoid (gate) g = Sub (one, s) a = Conv (x, w0, b0)
        c = Mul (a, g) d = Mul (a, s) e = Add (c, d) y = Conv (e, w1)
    """
    gate = np.linspace(5, 6, 16, dtype=np.float32).reshape(16, 1, 1)
    proto = made(
        f"g (float[N,3,H,8] x) => (float[N,6,P,Q] y) {{ {text} }}", {**CONV, "gate": gate, "one": np.float32(1)}
    )
    cut(proto, 0, 3)


def test_all_weights_of_a_retrained_model_may_differ_but_nothing_else() -> None:
    analysis, plan, done = cut(simple(), 0, 3)
    other = changed(changed(done.model, "w1", 0.5), "w0", 0.3, 7).with_metadata({"onnxprune.retrained": "{}"})
    proof = verify(analysis, plan, other)
    assert proof.weights == "not compared"
    proto = to_proto(other)
    next(n for n in proto.graph.node if n.op_type == "Relu").op_type = "Abs"
    with pytest.raises(VerificationError):
        verify(analysis, plan, load(proto))
    proto = to_proto(other)
    weight = next(t for t in proto.graph.initializer if t.name == "b0")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[1:], "b0"))
    with pytest.raises(OnnxPruneError):
        verify(analysis, plan, load(proto))


@pytest.mark.parametrize("recovered", [True, False])
def test_a_bias_that_recovery_added_is_one_of_the_weights(recovered: bool) -> None:
    text = "a = Conv (x, w0) r = Relu (a) y = Conv (r, w1)"
    proto = made(f"g (float[N,3,H,8] x) => (float[N,6,P,Q] y) {{ {text} }}", {k: CONV[k] for k in ("w0", "w1")})
    analysis, plan, done = cut(proto, 0, 3)
    mark = {"onnxprune.recovered": "{}"} if recovered else {}
    proto = to_proto(done.model.with_metadata(mark))
    first = next(n for n in proto.graph.node if "a" in n.output)
    first.input.append("w0_bias")
    channels = next(t.dims[0] for t in proto.graph.initializer if t.name == first.input[1])
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(channels, np.float32), "w0_bias"))
    if not recovered:
        with pytest.raises(VerificationError):
            verify(analysis, plan, load(proto))
        return
    assert verify(analysis, plan, load(proto)).weights == "not compared"
    relu = next(n for n in proto.graph.node if n.op_type == "Relu")
    relu.op_type, relu.input[:] = "PRelu", [relu.input[0], "slope"]  # a constant of its own that is no bias
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0.25], np.float32), "slope"))
    with pytest.raises(VerificationError):
        verify(analysis, plan, load(proto))


def test_files_that_do_not_belong_together_are_said_so() -> None:
    analysis, plan, done = cut(simple(), 0, 3)
    other = dataclasses.replace(plan, groups={n: Removal(r.channels, (1, 2)) for n, r in plan.groups.items()})
    with pytest.raises(VerificationError, match="made by another plan"):
        verify(analysis, other, done.model)
    with pytest.raises(VerificationError, match="made from another original"):
        verify(analysis, plan, done.model.with_metadata({"onnxprune.source": "0" * 64}))
    unsigned = done.model.with_metadata({"onnxprune.source": "", "onnxprune.plan": ""})
    assert verify(analysis, plan, unsigned).max_relative <= 1e-5
    with pytest.raises(VerificationError):
        verify(analysis, other, unsigned)


def test_data_is_run_besides_random_inputs() -> None:
    analysis, plan, done = cut(simple(), 0, 3)
    feeds = [{"x": np.full((4, 3, 11, 8), 200, np.float32)}]
    proof = verify(analysis, plan, done.model, feeds=feeds)
    assert proof.inputs == "random and data"


def test_a_model_that_takes_one_size_only_is_proved_at_it() -> None:
    proto = made(
        """g (float[N,3,H,8] x) => (float[N,6,29,8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a) c = Conv (r, w1) s = Reshape (c, shape)
        y = Add (s, table) }""",
        {**CONV, "shape": ints(-1, 6, 29, 8), "table": (1, 6, 29, 8)},
    )
    model = load(proto)
    analysis = analyze(model)
    plan = Plan(model.fingerprint, {g.name: Removal(g.channels, (0, 1)) for g in analysis.groups if g.name == "w0"})
    done = compile_plan(model, plan, analysis=analysis, check=False)
    assert {int(size.split(",")[-2]) for size in verify(analysis, plan, done.model).sizes} == {29}
    unaware = dataclasses.replace(analysis, witness=dataclasses.replace(analysis.witness, settled={}))
    with pytest.raises(OnnxPruneError, match="all sizes tried") as err:
        verify(unaware, plan, done.model)
    assert "--shape" in str(err.value.fix)
    feeds = [{"x": np.zeros((2, 3, 29, 8), np.float32)}]
    assert verify(unaware, plan, done.model, feeds=feeds).sizes == ["x [2, 3, 29, 8]"]


def test_tolerance_is_the_callers_where_given() -> None:
    analysis, plan, done = cut(simple(), 0, 3)
    assert verify(analysis, plan, done.model, tolerance=0.5).tolerance == 0.5
    with pytest.raises(VerificationError, match="allowed"):
        verify(analysis, plan, done.model, tolerance=-1.0)


@pytest.mark.parametrize("rename", [True, False])
def test_inputs_and_outputs_have_to_be_the_originals(rename: bool) -> None:
    analysis, plan, done = cut(simple("y = Relu (c)"), 0, 3)
    proto = to_proto(done.model)
    if rename:
        proto.graph.node.append(helper.make_node("Identity", ["y"], ["z"]))
        proto.graph.output[0].name = "z"
    else:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(VerificationError, match=r"output|dynamic in one"):
        verify(analysis, plan, load(proto))


def test_untouched_parts_are_proved_by_their_text() -> None:
    proto = made(
        """g (float[N,3,8,8] x) => (float[N,6,8,8] c, float[N,3,8,8] z) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a) c = Conv (r, w1) t = Tanh (x) z = Sigmoid (t) }""",
        CONV,
    )
    _, _, done = cut(proto, 0, 3)
    assert done.verification is not None
    assert done.verification.by_text == 2


@pytest.mark.parametrize("bytes_", [1, 2**30])
def test_segments_do_not_change_the_verdict(monkeypatch: pytest.MonkeyPatch, bytes_: int) -> None:
    import onnxprune.verification._induction as induction

    monkeypatch.setattr(induction, "SEGMENT_BYTES", bytes_)
    analysis, plan, done = cut(simple("y = Relu (c)"), 0, 3)
    assert verify(analysis, plan, done.model).tensors == 4


# -------------------------------------------------------------------------------------- what the checker may rely on


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    allowed = {
        "onnxprune.errors", "onnxprune.ir.model", "onnxprune.ir.writer", "onnxprune.ir.protobuf_wire",
        "onnxprune.execution.sessions", "onnxprune.plans",
        "onnxprune._utils.output.formatting", "onnxprune._utils.output.html",
        "onnxprune.passes.widen_floats", "onnxprune.ir.proto_graph", "onnxprune.execution.random_values",
        "onnxprune.ir.branches",
    }  # fmt: skip
    folder = Path(package.__file__).parent
    for path in (
        *folder.glob("*.py"),
        folder.parent / "ir" / "proto_graph.py",
        folder.parent / "execution" / "random_values.py",
    ):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        typing = {
            id(n) for i in ast.walk(tree) if isinstance(i, ast.If) and ast.unparse(i.test) == "TYPE_CHECKING"
            for n in ast.walk(i)
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not any(a.name.startswith("onnxprune") for a in node.names), path.name
            if (
                isinstance(node, ast.ImportFrom)
                and id(node) not in typing
                and (node.module or "").startswith("onnxprune")
            ):
                names = {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
                assert any(n in allowed or str(n).startswith("onnxprune.verification") for n in names), (
                    path.name,
                    names,
                )


@pytest.mark.parametrize(
    ("op", "index", "known"), [("Conv", 0, True), ("Relu", 0, False), ("Conv", 1, False), ("Add", 0, False)]
)
def test_masks_stand_at_contractions_only(op: str, index: int, known: bool) -> None:
    text = {"Relu": "y = Relu (x)", "Add": "y = Add (x, x)"}.get(op, "y = Conv (x, w)")
    graph = Graph.of(load(made(f"g (float[N,3,8,8] x) => (float[N,M,8,8] y) {{ {text} }}", {"w": (4, 3, 1, 1)})))
    site = MaskSite("y", index, 1, 4, np.array([True, False, True]))
    claims = Claims({}, (site,), (), {}, {}, ())
    if known:
        Reference(graph, claims)
        assert [n.op_type for n in graph.nodes] == ["Where", "Conv"]
    else:
        with pytest.raises(VerificationError, match="does not sum over it"):
            Reference(graph, claims)


@pytest.mark.parametrize("dtype", ["float", "double", "float16"])
def test_a_removed_channel_may_be_infinite_or_no_number(dtype: str) -> None:
    kind = {"float": np.float32, "double": np.float64, "float16": np.float16}[dtype]
    weights = {k: np.random.default_rng(0).standard_normal(s).astype(kind) for k, s in (("w", (6, 3)), ("v", (4, 6)))}
    weights["v"] = np.abs(weights["v"])
    weights["b"] = np.array([-500, 500, 500, 500, 500, -500], kind)
    text = "a = Gemm <transB = 1> (x, w, b) l = Log (a) y = Gemm <transB = 1> (l, v)"
    analysis, plan, done = cut(made(f"g ({dtype}[N,3] x) => ({dtype}[N,4] y) {{ {text} }}", weights), 0, 5)
    assert verify(analysis, plan, done.model).outputs["y"] < 0.1


def test_a_model_that_onnxruntime_does_not_run_is_refused_with_its_reason() -> None:
    weights = {k: np.ones(s) for k, s in (("w", (6, 3)), ("v", (6, 4)), ("i", (1, 6, 4)), ("r", (1, 6, 2)))}
    weights |= {"w": np.random.default_rng(0).standard_normal((6, 3)), "axis": ints(0)}
    text = """
        a = Gemm <transB = 1> (x, w) c = Gemm (a, v) f = Floor (c) s = Unsqueeze (f, axis)
        z = GRU <hidden_size = 2> (s, i, r) y = Abs (c)
    """
    model = load(made(f"g (double[N,3] x) => (double[N,4] y, double[A,B,C,D] z) {{ {text} }}", weights))
    group = next(g for g in analyze(model).groups if g.channels == 6)
    plan = Plan(model.fingerprint, {group.name: Removal(group.channels, (0,))})
    with pytest.raises(OnnxPruneError, match="GRU operator does not support double"):
        compile_plan(model, plan)


@pytest.mark.parametrize(("op", "inexact", "message"), [
    ("Softmax", (), "does not allow"), ("Relu", ("g",), "takes no statistic"), ("Softmax", ("g",), ""),
])  # fmt: skip
def test_statistics_are_sliced_where_plan_and_operator_allow_it(op: str, inexact: Sequence[str], message: str) -> None:
    graph = Graph.of(load(made(f"g (float[N,3,8,8] x) => (float[N,3,8,8] y) {{ y = {op} (x) }}", {})))
    site = StatisticSite("y", np.array([True, False, True]), ((0, 1),), ((0, 1),), False)
    claims = Claims({}, (), (site,), {}, {}, tuple(inexact))
    if message:
        with pytest.raises(VerificationError, match=message):
            Reference(graph, claims)
    else:
        Reference(graph, claims)
        assert [n.op_type for n in graph.nodes] == ["Gather", op, "Gather"]


@given(
    part=st.lists(st.booleans(), min_size=2, max_size=6), outer=st.integers(1, 5), inner=st.integers(1, 4),
    other=st.integers(1, 7),
)  # fmt: skip
def test_a_claim_follows_the_outer_count(part: list[bool], outer: int, inner: int, other: int) -> None:
    kept = np.repeat(np.tile(part, outer), inner)
    wanted = np.repeat(np.tile(part, other), inner)
    assert resized(kept, len(wanted), "t").tolist() == wanted.tolist()


def test_a_claim_that_fits_no_size_is_refused() -> None:
    with pytest.raises(VerificationError, match="claimed for an axis of 5"):
        resized(np.array([True, False, True, True]), 5, "t")


# ------------------------------------------------------------------------------------------------------------- sizes


def _inputs(*dims: Sequence[object]) -> Graph:
    values = [helper.make_tensor_value_info(f"x{i}", onnx.TensorProto.FLOAT, list(d)) for i, d in enumerate(dims)]
    nodes = [helper.make_node("Relu", [v.name], [f"y{i}"]) for i, v in enumerate(values)]
    outputs = [helper.make_tensor_value_info(f"y{i}", onnx.TensorProto.FLOAT, list(d)) for i, d in enumerate(dims)]
    graph = helper.make_graph(nodes, "g", values, outputs)
    return Graph.of(load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)))


@pytest.mark.parametrize("dims", [("N", 3, "H", "W"), ("N", "T"), (None, 3, None, None), ("N",)])
def test_sizes_disagree_in_parity_residues_and_magnitude(dims: Sequence[object]) -> None:
    graph = _inputs(dims)
    found = [a for a, _ in zip(sizes.candidates(sizes.dynamic(graph)), range(12), strict=False)]
    for d in sizes.dynamic(graph):
        values = [a[d.name] for a in found]
        for modulus in (2, 3, 4, 5, 7, 8):
            assert len({v % modulus for v in values}) > 1, (d, values)
        assert max(values) >= 2 * min(values)


def test_every_dimension_has_a_number_of_its_own_at_first() -> None:
    graph = _inputs(("N", 3, "H", "W"), ("M", "T"), (None, "T"))
    dims = sizes.dynamic(graph)
    assert [d.name for d in dims] == ["N", "H", "W", "M", "T", "x2:0", "T"]
    first = next(iter(sizes.candidates(dims)))
    assert len({first[n] for n in ("N", "M", "x2:0")}) == 3
    assert first["H"] != first["W"]
    tied = [a for a in sizes.candidates(dims) if a["N"] == a["M"] == a["x2:0"]]
    assert tied


def test_known_sizes_are_tried_first_and_then_in_part() -> None:
    graph = _inputs(("N", 3, "H", "W"))
    known = {"N": 1, "H": 48, "W": 320}
    found = [a for a, _ in zip(sizes.candidates(sizes.dynamic(graph), known), range(24), strict=False)]
    assert found[0] == known
    assert any(a["H"] == 48 and a["W"] != 320 and a["N"] != 1 for a in found)
    assert any(a["H"] == 48 and a["W"] == 320 and a["N"] != 1 for a in found)
    assert any(not set(a.items()) & set(known.items()) for a in found)


def test_question_marks_are_dimensions_of_their_own() -> None:
    dims = sizes.dynamic(_inputs(("?", 3, "?", "?")))
    assert [d.name for d in dims] == ["x0:0", "x0:2", "x0:3"]


def test_no_dynamic_dimension_gives_one_assignment() -> None:
    graph = _inputs((2, 3))
    assert list(sizes.candidates(sizes.dynamic(graph))) == [{}]


# ------------------------------------------------------------------------------------------------------- differences


def compare(*pairs: tuple[object, object]) -> TensorComparison:
    found = TensorComparison()
    for actual, expected in pairs:
        found.add(np.asarray(actual), np.asarray(expected))
    return found


def test_a_small_column_is_judged_by_its_own_scale() -> None:
    rng = np.random.default_rng(0)
    expected = rng.standard_normal((50, 4)).astype(np.float32) * np.float32([1e6, 1, 1, 1])
    actual = expected.copy()
    actual[:, 2] = rng.standard_normal(50)
    worst, axis, index = compare((actual, expected)).worst()
    assert worst > 0.5
    assert (axis, index) == (1, 2)


def test_scales_are_taken_over_all_runs() -> None:
    near_zero = (np.float32([[1e-9 + 1e-7, 1]]), np.float32([[1e-9, 1]]))
    assert compare(near_zero).worst()[0] > 10
    assert compare(near_zero, (np.float32([[2, 1]]), np.float32([[2, 1]]))).worst()[0] < 1e-6


@pytest.mark.parametrize(
    ("actual", "expected", "problem"),
    [
        (np.float32([1, np.nan]), np.float32([1, 2]), "NaN or infinite"),
        (np.float32([1, 2]), np.float32([1, np.nan]), "NaN or infinite"),
        (np.float32([1, -np.inf]), np.float32([1, np.inf]), "NaN or infinite"),
        (np.float64([1, 2]), np.float32([1, 2]), "element type"),
        (np.float32([[1, 2]]), np.float32([1, 2]), "shape"),
        (np.int64([1, 2]), np.int64([1, 3]), "of its values"),
        (np.array([True]), np.array([False]), "of its values"),
        (np.array(["a"], object), np.array(["b"], object), "values are not"),
    ],
)
def test_what_no_tolerance_excuses(actual: object, expected: object, problem: str) -> None:
    found = compare((actual, expected))
    assert problem in found.problem
    assert found.worst()[0] == np.inf


def test_equal_values_that_are_no_numbers_agree() -> None:
    x = np.float32([[1, np.nan, np.inf, -np.inf]])
    assert compare((x, x.copy())).worst()[0] == 0


def test_one_quantized_integer_in_a_hundred_may_be_rounded_the_other_way() -> None:
    expected = np.arange(200, dtype=np.uint8)
    actual = expected.copy()
    actual[7] += 1
    assert compare((actual, expected)).worst()[0] == 0
    actual[7] += 1
    assert compare((actual, expected)).worst()[0] == np.inf
    assert compare((expected + np.uint8(1), expected)).worst()[0] == np.inf


def test_a_channel_with_one_value_is_quiet() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    assert not compare((x, x)).quiet()
    x[:, 1] = 0
    assert compare((x, x)).quiet()


@given(st.integers(0, 3), st.integers(0, 2**31))
def test_worst_is_that_of_a_loop_over_all_axes(rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 5, rank))
    expected = rng.standard_normal(shape)
    actual = expected + 1e-3 * rng.standard_normal(shape)
    gap = np.abs(actual - expected)
    wanted = float((gap.max() / np.abs(expected).max()) if rank else gap / np.abs(expected))
    for axis in range(rank):
        for i in range(shape[axis]):
            wanted = max(wanted, float(np.take(gap, i, axis).max() / np.abs(np.take(expected, i, axis)).max()))
    assert compare((actual, expected)).worst()[0] == pytest.approx(wanted)


def test_the_certificate_names_branches_that_no_run_executed() -> None:
    case = cases()["branches_by_mean"]
    analysis, plan, pruned = compiled(case)
    found = verify(analysis, plan, pruned)
    assert found.branches == ["else branch of If 'ey'"]
    assert found.as_dict()["branches"] == found.branches
    assert "never executed" in found.unexecuted
    assert "else branch of If" in found._repr_html_()
    both = verify(*compiled(cases()["branches_by_rate"]))
    assert (both.branches, both.unexecuted) == ([], "")


def test_the_terminal_names_branches_that_no_run_executed() -> None:
    from onnxprune.cli._support.display import proof_line

    text = proof_line(verify(*compiled(cases()["branches_by_mean"])))
    assert "sizes of the analysis only" in " ".join(text.split())
    assert all(len(row) <= 80 for row in text.splitlines())
