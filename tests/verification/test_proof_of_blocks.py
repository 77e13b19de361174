"""The proof of plans with blocks: right models are accepted, wrong ones refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks.residual import chain, conv, dense, graph, removed, removing
from onnx import helper

from onnxprune.analysis.blocks import inner_groups
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.sessions import Session
from onnxprune.ir.proto_graph import Graph
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import BlockRemoval
from onnxprune.verification import verify
from onnxprune.verification._claims import Claims
from onnxprune.verification._reference import Reference, signed_noise


@given(st.sets(st.integers(0, 3)), st.booleans(), st.sampled_from([0, 2, 3]))
@settings(max_examples=25, deadline=None)
def test_blocks_and_channels_in_one_plan_are_proved(indices: set[int], flipped: bool, every: int) -> None:
    model = load(chain(4, flipped=flipped))
    analysis = analyze(model)
    plan = removing(analysis, [f"stage.{i}" for i in indices], every)
    done = compile_plan(model, plan, analysis=analysis)
    assert sum(n.op == "Add" for n in done.model.graph.nodes) == 4 - len(indices)
    assert not [n for i in indices for n in done.model.graph.nodes if n.outputs[0].name in (f"a{i}", f"b{i}")]


def test_pruned_model_computes_the_branch_as_zero() -> None:
    proto = chain(2)
    analysis = analyze(load(proto))
    plan = removing(analysis, ["stage.1"])
    for tensor in proto.graph.initializer:
        if tensor.name == "stage.1.conv2.weight":
            tensor.raw_data = bytes(len(tensor.raw_data))
    x = {"x": np.random.default_rng(3).standard_normal((2, 8, 6, 6)).astype(np.float32)}
    expected, got = (Session(m).run(x, ["out"])[0] for m in (proto, to_proto(removed(analysis, plan))))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("gone", "stated"), [(["stage.0"], []), ([], ["stage.0"]), (["stage.1"], ["stage.0"])])
def test_other_block_than_the_plan_names_is_refused(gone: list[str], stated: list[str]) -> None:
    analysis = analyze(load(chain(3)))
    wrong = removed(analysis, removing(analysis, gone))
    with pytest.raises(VerificationError):
        verify(analysis, removing(analysis, stated), wrong)


def test_removed_shortcut_instead_of_the_branch_is_refused() -> None:
    analysis = analyze(load(chain(2)))
    plan = removing(analysis, ["stage.0"])
    wrong = to_proto(removed(analysis, removing(analysis, [])))
    for node in wrong.graph.node:
        node.input[:] = ["b0" if n == "y0" else n for n in node.input]
    with pytest.raises(VerificationError):
        verify(analysis, plan, load(wrong))


def test_plan_that_states_another_operand_is_refused() -> None:
    analysis = analyze(load(chain(2)))
    plan = removing(analysis, ["stage.0"])
    other = replace(plan, blocks={"stage.0": BlockRemoval("y0", 0)})
    with pytest.raises(OnnxPruneError, match=r"make the plan again"):
        compile_plan(analysis.source, other, analysis=analysis)
    with pytest.raises(VerificationError):
        verify(analysis, other, removed(analysis, plan))


def test_block_at_an_output_keeps_the_output() -> None:
    model = load(graph(conv("a", "x", "a.weight") + "out = Add(a, x)", ["a.weight"]))
    analysis = analyze(model)
    done = compile_plan(model, removing(analysis, [b.name for b in analysis.blocks]))
    assert [n.op for n in done.model.graph.nodes] == ["Identity"]


def test_parallel_and_nested_blocks_are_proved_in_every_combination() -> None:
    body = conv("i", "x", "inner.weight") + "n = Add(x, i) r = Relu(n) " + conv("o", "r", "outer.weight")
    body += (
        "y = Add(x, o) " + conv("p", "y", "p.weight") + conv("q", "y", "q.weight") + "pq = Add(p, q) z = Add(pq, y) "
    )
    names = [f"{n}.weight" for n in ("inner", "outer", "p", "q")]
    model = load(graph(body + conv("out", "z", "w"), [*names, "w"]))
    analysis = analyze(model)
    blocks = {b.branch: b.name for b in analysis.blocks}
    for chosen in (["i"], ["o"], ["i", "o"], ["p"], ["q"], ["p", "q"], ["pq"], ["i", "p", "q"]):
        compile_plan(model, removing(analysis, [blocks[c] for c in chosen]), analysis=analysis)


@given(st.sets(st.integers(0, 3)), st.sampled_from([0, 2, 3]))
@settings(max_examples=15, deadline=None)
def test_dense_layers_and_channels_in_one_plan_are_proved(indices: set[int], every: int) -> None:
    model = load(dense(4))
    analysis = analyze(model)
    plan = removing(analysis, [f"dense.{i}" for i in indices], every)
    gone = {
        g for i in indices for g in inner_groups(analysis.model.graph, analysis.groups, analysis.block(f"dense.{i}"))
    }
    plan = replace(plan, groups={n: r for n, r in plan.groups.items() if n not in gone})
    done = compile_plan(model, plan, analysis=analysis)
    assert not {f"f{i + 1}" for i in indices} & done.model.graph.tensors().keys()
    sizes = [len(n.inputs) for n in done.model.graph.nodes if n.outputs[0].name == "c"]
    assert sizes == [5 - len(indices)]


@pytest.mark.parametrize(("gone", "stated"), [(["dense.0"], []), ([], ["dense.0"]), (["dense.1"], ["dense.0"])])
def test_other_dense_layer_than_the_plan_names_is_refused(gone: list[str], stated: list[str]) -> None:
    analysis = analyze(load(dense(3)))
    wrong = removed(analysis, removing(analysis, gone))
    with pytest.raises(VerificationError):
        verify(analysis, removing(analysis, stated), wrong)


def test_dense_layer_under_another_operand_is_refused() -> None:
    analysis = analyze(load(dense(2)))
    plan = removing(analysis, ["dense.0"])
    other = replace(plan, blocks={"dense.0": BlockRemoval("c1", 0)})
    with pytest.raises(VerificationError, match="appends channels that are kept"):
        verify(analysis, other, removed(analysis, plan))


def test_activation_that_was_applied_already_is_dropped() -> None:
    model = load(chain(3))
    done = compile_plan(model, removing(analyze(model), ["stage.1", "stage.2"]))
    ops = [n.op for n in done.model.graph.nodes]
    assert ops.count("Relu") == 2  # inside the first block, and behind its addition
    clipped = chain(2)
    for node in clipped.graph.node:
        if node.op_type == "Relu" and node.output[0] == "s2":
            node.op_type = "Sigmoid"
    other = load(clipped)
    done = compile_plan(other, removing(analyze(other), ["stage.1"]))
    assert [n.op for n in done.model.graph.nodes][-2:] == ["Sigmoid", "Conv"]
    assert [n.op for n in done.model.graph.nodes].count("Relu") == 2


def test_activation_that_others_read_is_kept() -> None:
    body = conv("s", "x", "stem.weight") + "t = Relu(s) " + conv("f", "t", "f.weight") + "y = Add(t, f) z = Relu(y) "
    body += "w = Mul(z, t) " + conv("out", "w", "head.weight")
    model = load(graph(body, ["stem.weight", "f.weight", "head.weight"]))
    done = compile_plan(model, removing(analyze(model), ["f"]))
    assert [n.op for n in done.model.graph.nodes].count("Relu") == 2


def test_numbers_before_a_decision_behind_a_sum_are_compared_instead_of_it() -> None:
    body = conv("a", "x", "a.weight") + "y = Add(a, x) r = Relu(y) " + conv("c", "r", "w")
    body += "m = GlobalMaxPool(c) f = Flatten(m) s = Sigmoid(f) k = Constant<value_ints = [3]>() out, at = TopK(s, k)"
    proto = graph(body, ["a.weight", "w"])
    analysis = analyze(load(proto))
    plan = removing(analysis, [b.name for b in analysis.free_blocks])
    reference = Reference(Graph.of(analysis.model), Claims.of(analysis, plan))
    assert reference.summed == {"y": np.dtype(np.float32)}
    decided = reference.graph.discontinuous(reference.rounded)
    assert {"out", "at"} <= decided
    assert decided.isdisjoint(("y", "s", "f"))


@pytest.mark.parametrize("every", [0, 2])
def test_rounding_errors_reach_the_outputs(every: int) -> None:
    analysis = analyze(load(chain(3)))
    plan = removing(analysis, ["stage.1"], every)
    reference = Reference(Graph.of(analysis.model), Claims.of(analysis, plan))
    assert bool(reference.masked) == bool(every)
    assert set(reference.summed) == {"y1"}
    exact, _ = reference.graph.with_outputs(["out"])
    x = {"x": np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)}
    wanted, found = (Session(m).run(x, ["out"])[0] for m in (exact, reference.noisy(exact, seed=0)))
    gap = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 2.0**-24 < gap < 2.0**-14


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_rounding_errors_are_signed_and_of_the_type_s_size(kind: type[np.floating]) -> None:
    dtype = np.dtype(kind)
    nodes, constants = signed_noise("x", "y", dtype)
    elem = helper.np_dtype_to_tensor_dtype(dtype)
    ends = [helper.make_tensor_value_info(n, elem, ["n", "m"]) for n in ("x", "y")]
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], constants), opset_imports=opset)
    model.ir_version = 8
    x = np.random.default_rng(0).standard_normal((50, 20)).astype(dtype)
    change = Session(model).run({"x": x}, ["y"])[0].astype(float) / x.astype(float) - 1
    size = np.abs(change).max()
    assert np.finfo(dtype).eps < size < 20 * np.finfo(dtype).eps
    assert 0.4 < (change > 0).mean() < 0.6
