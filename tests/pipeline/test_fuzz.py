"""Random graphs over all operator records; `make fuzz N=10000` runs more and stores what fails."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, reject
from op_cases import CASES, TEXT, UNREACHABLE
from random_graphs.fuzz_sizes import HIDDEN, SIZED
from random_graphs.fuzzing import (
    CASE,
    DTYPES,
    OPSETS,
    PARTS,
    SIZES,
    TOLERANCE,
    Difference,
    Fuzz,
    NotTaken,
    _gap,
    _variant,
    build,
    compared,
    feeds_at,
    fuzzes,
    proved,
    random_plan,
    runs,
    where_it_runs,
)
from random_graphs.graphs import BLOCKS, PROPERTY

from onnxprune.ir.reader import load
from onnxprune.ops import all_ops
from onnxprune.pipeline import analyze, compile_plan

# Of opsets before the oldest that is drawn.
OLD = {"Upsample": 9, "Scatter": 10}


@PROPERTY(max_examples=200)
@given(fuzzes())
def test_random_graph_is_pruned_and_proved(fuzz: Fuzz) -> None:
    proto = build(fuzz)
    if not runs(proto):
        reject()
    try:
        proved(proto, lambda analysis: random_plan(analysis, fuzz.seed))
    except NotTaken:
        reject()


def test_every_record_is_drawn_and_runs() -> None:
    # A record without a part would never be fuzzed; nor would one whose parts onnxruntime refuses.
    known = {f"{domain}.{op}" if domain else op for domain, op in all_ops()}
    able = {CASE[p].op for p in CASE if where_it_runs(p)}
    foreign = {c.op for c in CASES} - {c.op for c in CASES if c.runs}
    assert known - UNREACHABLE - TEXT - foreign - set(OLD) == able - set(OLD)
    assert not able & set(OLD)
    for op, opset in OLD.items():
        assert opset < min(OPSETS)
        assert max(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op) >= 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_most_blocks_run_in_every_type(dtype: str) -> None:
    able = [b for b in BLOCKS if _variant(b, 18, dtype) is not None]
    assert len(able) >= 0.6 * len(BLOCKS)


@pytest.mark.parametrize("part", PARTS)
def test_part_is_in_the_graph_it_is_drawn_for(part: str) -> None:
    if part not in CASE:
        return
    case = CASE[part]
    opset = next((o for o in reversed(OPSETS) if _variant(part, o, "float32") is not None), None)
    if opset is None:
        assert case.op in OLD or case.opset < min(OPSETS)
        return
    nodes = build(Fuzz((part,), opset=opset)).graph.node
    assert case.op in {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes}
    assert re.search(rf"\b{re.escape(case.op)}\b", case.text)


@pytest.mark.parametrize("dims", ["image", "unnamed"])
@pytest.mark.parametrize("part", [*SIZED, *HIDDEN])
def test_part_computes_the_same_at_every_size(part: str, dims: str) -> None:
    kind = {"sized": (part,), "parts": ("conv",)} if part in SIZED else {"parts": (part,)}
    fuzz = Fuzz(**kind, seed=len(part), opset=18, dims=dims, head="columns")
    proto = build(fuzz)
    assert _variant(part, fuzz.opset, fuzz.dtype) is not None
    done = proved(proto, lambda analysis: random_plan(analysis, fuzz.seed))
    assert done.plan.removed
    # None of these parts has sizes at which onnxruntime fails.
    assert compared(analyze(load(proto)), done.plan, done.model) == 2 * len(SIZES)


def test_shape_arithmetic_and_inputs_of_every_kind_are_drawn() -> None:
    protos = [build(Fuzz(("conv",), seed, sized=(part,), dims="image")) for part in SIZED for seed in range(20)]
    ops = {n.op_type for proto in protos for n in proto.graph.node}
    assert ops >= {"Min", "Max", "Mod", "Div", "Sub", "Clip", "Ceil", "Where", "If", "Equal", "Greater", "Less", "Not",
                   "And", "Range", "Pad", "Slice", "Split", "Reshape", "Expand", "Resize", "TopK"}  # fmt: skip
    kinds = {i.type.tensor_type.elem_type for proto in protos for i in proto.graph.input}
    assert kinds >= {onnx.TensorProto.BOOL, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT}
    names = {d.dim_param for proto in protos for i in proto.graph.input for d in i.type.tensor_type.shape.dim}
    assert names >= {"N", "H", "W", "L", "BH", "BW"}
    exposed = build(Fuzz(("exposed_constant",))).graph
    assert {o.name for o in exposed.output} & {t.name for t in exposed.initializer}


def test_sizes_differ_in_parity_and_magnitude() -> None:
    for column in np.array(SIZES).T[1:]:
        assert {n % 2 for n in column.tolist()} == {0, 1}
        assert min(column) <= 2
        assert max(column) >= 16
    proto = build(Fuzz(("conv",), sized=("attended", "bytes_image"), dims="image"))
    model = load(proto)
    for sizes in SIZES:
        feeds = feeds_at(model, sizes, 1.0, 0)
        assert feeds["x"].shape == (sizes[0], 3, *sizes[1:3])
        assert feeds["tokens"].shape[1:] == (sizes[3], 3)
        assert feeds["mask"].shape == feeds["tokens"].shape[:2]


def test_differences_are_relative_to_each_channel() -> None:
    wanted = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32) * [[[1.0], [1e-6], [1e6]]]
    wanted = wanted.astype(np.float32)
    assert _gap(wanted, wanted, TOLERANCE) == 0
    assert _gap(wanted * np.float32(1 + 5e-5), wanted, TOLERANCE) < 1
    for channel in range(3):
        got = wanted.copy()
        got[0, channel] += np.abs(wanted[:, channel]).max() / 100
        assert 50 < _gap(got, wanted, TOLERANCE) < 200
        got[0, channel] = np.nan
        assert _gap(got, wanted, TOLERANCE) == np.inf
        assert _gap(got, got, TOLERANCE) == 0
    assert _gap(wanted[:1], wanted, TOLERANCE) == np.inf
    assert _gap(np.array([1, 2]), np.array([1, 3]), TOLERANCE) == np.inf


@pytest.mark.parametrize("wrong", ["columns", "dead"])
def test_wrong_weight_is_found(wrong: str) -> None:
    """One that only the smallest column shows, and one that only large inputs do."""
    proto = build(Fuzz(("dead" if wrong == "dead" else "conv",), 3, head="columns"))
    analysis = analyze(load(proto))
    done = compile_plan(analysis.source, random_plan(analysis, 1), analysis=analysis)
    assert compared(analysis, done.plan, done.model) == 2 * len(SIZES)
    pruned = done.model.copy()
    if wrong == "columns":
        (node,) = [n for n in pruned.graph.nodes if n.op == "Gemm"]
        node.inputs[1].values = node.inputs[1].values * np.array([1.001, 1, 1, 1, 1], np.float32)
    else:
        (node,) = [n for n in pruned.graph.nodes if n.op == "Sub"]
        node.inputs[1].values = node.inputs[1].values * np.float32(1.01)
    with pytest.raises(Difference, match="tolerances off"):
        compared(analysis, done.plan, pruned)


def test_model_that_is_wrong_at_one_size_is_found() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,H,W] x) => (float[N,2,H,W] y)
      <int64[1] two = {2}, int64[1] limit = {SIZE}, float[1] one = {1.0}, float[1] other = {1.01}> {
        s = Shape (x) h = Gather (s, two) c = Greater (h, limit) f = Where (c, other, one) y = Mul (x, f) }"""
    analysis = analyze(load(onnx.parser.parse_model(text.replace("SIZE", "10000"))))
    plan = random_plan(analysis, 0)
    assert compared(analysis, plan, analysis.source) == 2 * len(SIZES)
    with pytest.raises(Difference, match=r"\[1, 2, 641, 3\]"):
        compared(analysis, plan, load(onnx.parser.parse_model(text.replace("SIZE", "600"))))
    frozen = load(onnx.parser.parse_model(text.replace("SIZE", "9").replace("float[N,2,H,W] x", "float[N,2,1,1] x")))
    with pytest.raises(Difference, match="only the pruned model fails"):
        compared(analysis, plan, frozen)
