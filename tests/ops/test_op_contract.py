"""Contract of every operator record, run over the whole registry: one table, a graph for every operator.

In every case `h` [N, 8, 4, 4] comes from a convolution with weight `w0`, the case's lines make `m` of it, and what
follows reads `m`. The table says how many channels of `w0` can be removed, or that the operator locks them.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from op_cases import CASES, TEXT, UNREACHABLE
from op_cases.case import INEXACT, LOCKED, Case, model_of
from random_graphs.graphs import removal

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir.reader import load
from onnxprune.ir.symbolic import Atom, atom_of, evaluate, symbol
from onnxprune.ir.writer import to_proto
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.ops import all_ops
from onnxprune.passes import InsertMasks
from onnxprune.passes.slice_statistics import masked_reference
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.verification import relative_difference

each = pytest.mark.parametrize("case", CASES, ids=lambda c: c.label)


def prune(proto: onnx.ModelProto, seed: int, runs: bool = True) -> tuple[Analysis, Plan]:
    """Removes random channels, half of `v0` at least, and verifies."""
    model = load(proto)
    analysis = analyze(model)
    rng = np.random.default_rng(seed)
    groups = {g.name: Removal(g.channels, removal(g.channels, rng)) for g in analysis.groups}
    groups["v0"] = Removal(6, (0, 2, 5))
    plan = Plan(model.fingerprint, groups)
    result = compile_plan(model, plan, analysis=analysis, check=runs)
    if not runs:
        feeds = random_feeds(analysis, 2)
        models = (to_proto(InsertMasks(plan, analysis)(model)), to_proto(result.model))
        wanted, got = (ReferenceEvaluator(m).run(None, feeds) for m in models)
        assert max(relative_difference(g, w) for g, w in zip(got, wanted, strict=True)) < 1e-5
    onnx.checker.check_model(to_proto(result.model))
    return analysis, result.plan


def test_every_registered_operator_has_a_case() -> None:
    known = {f"{domain}.{op}" if domain else op for domain, op in all_ops()}
    assert {c.op for c in CASES} | UNREACHABLE | TEXT == known
    for case in CASES:
        nodes = model_of(case).graph.node
        assert case.op in {f"{n.domain}.{n.op_type}" if n.domain else n.op_type for n in nodes}


def test_every_operator_of_onnx_up_to_opset_28_has_a_record() -> None:
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if not s.domain and s.since_version <= 28}
    assert names <= {op for domain, op in all_ops() if not domain}


@pytest.mark.parametrize("op", sorted(UNREACHABLE))
def test_operators_without_a_case_are_refused_by_the_checker(op: str) -> None:
    with pytest.raises(OnnxPruneError, match="checker rejects"):
        load(model_of(Case(op, f"m = {op} (h)", LOCKED)))


@each
def test_channels_are_free_or_locked_as_the_table_says(case: Case) -> None:
    analysis = analyze(load(model_of(case)))
    free = {g.name: g.channels for g in analysis.groups}
    assert free.get("v0") == 6
    locks = [lock for lock in analysis.locked if lock.name.startswith("w0")]
    # A part that is cut off sits on other axes than the rest: `w0#2`.
    mine = {name: n for name, n in free.items() if name.split("#")[0] == "w0"}
    if isinstance(case.expect, int):
        assert sum(mine.values()) == case.expect
    else:
        assert not mine
        assert locks
        assert {lock.inexact for lock in locks} == {case.expect == INEXACT}
        assert all(lock.reason and lock.node for lock in locks)
    if case.expect == INEXACT:
        assert {lock.op for lock in locks} == {case.op.split(".")[-1]}


INEXACT_CASES = [c for c in CASES if c.on_request]


@pytest.mark.parametrize("case", INEXACT_CASES, ids=lambda c: c.label)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inexact_channels_are_free_on_request_and_proved_by_slicing(case: Case, seed: int) -> None:
    model = load(model_of(case))
    analysis = analyze(model, include_inexact=True)
    group = analysis["w0"]
    assert (group.channels, group.statistics) == (case.on_request, (case.op.split(".")[-1],))
    gone = removal(group.channels, np.random.default_rng(seed)) or (seed,)
    plan = Plan(model.fingerprint, {"w0": Removal(group.channels, gone)}, options={"inexact": True})
    done = compile_plan(model, plan)  # how the groups were found is in the plan
    assert done.verification is not None
    assert tuple(done.verification.inexact) == ("w0",)
    assert done.verification.max_relative <= 1e-4
    onnx.checker.check_model(to_proto(done.model))


@pytest.mark.parametrize("case", INEXACT_CASES, ids=lambda c: c.label)
def test_masking_alone_does_not_prove_inexact_channels(case: Case) -> None:
    # The slices in the reference must matter, or they would prove nothing.
    model = load(model_of(case))
    analysis = analyze(model, include_inexact=True)
    n = analysis["w0"].channels
    worst = 0.0
    for first in range(n - 1):  # a maximum is the same whichever of the smaller ones goes
        plan = Plan("", {"w0": Removal(n, tuple(range(first + 1)))}, options={"inexact": True})
        masked, sliced = InsertMasks(plan, analysis)(model), masked_reference(analysis, plan)
        x = np.random.default_rng(0).standard_normal((5, 2, 4, 4)).astype(np.float32)
        a, b = (Session(m, exact_integers=True).run({"x": x}, ["y"])[0] for m in (masked, sliced))
        worst = max(worst, relative_difference(a, b))
    assert worst > 1e-3


@each
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_removal_is_proved_by_verification(case: Case, seed: int) -> None:
    _, plan = prune(model_of(case), seed, case.runs)
    assert plan.removed >= 3


@each
@pytest.mark.parametrize("head", ["unlabelled", "partly fixed"])
def test_rule_takes_axes_without_labels_and_fixed_indices(case: Case, head: str) -> None:
    analysis, _ = prune(model_of(case, head), 3, case.runs)
    if head == "unlabelled":
        assert not any(g.name.startswith("w0") for g in analysis.groups)


@each
def test_sizes_in_symbols_are_those_of_other_numbers(case: Case) -> None:
    proto = model_of(case)
    for t in (*proto.graph.input, *proto.graph.output):
        for dim in t.type.tensor_type.shape.dim:
            if dim.dim_value == 4:
                dim.dim_param = "S"
    model = load(proto)

    def numbers(batch: int, side: int) -> dict[tuple[str, int], int]:
        named = {"N": batch, "S": side}
        dims = {(t.name, axis): named.get(d) for t in model.graph.inputs for axis, d in enumerate(t.shape or ())}
        return {place: n for place, n in dims.items() if n is not None}

    seen = witness(model, numbers(11, 4))
    for batch, side in ((5, 6), (3, 12), (2, 9)):
        other = witness(model, numbers(batch, side))
        known: dict[Atom, int | None] = {atom_of(symbol("N")): batch, atom_of(symbol("S")): side}
        for name in seen.shapes.keys() & other.shapes.keys():
            for size, n in zip(seen.symbolic(name) or (), other.shapes[name], strict=True):
                assert size is not None
                assert evaluate(size, known) in (n, None), name
        for name in seen.values.keys() & other.values.keys():
            value = seen.constant(name)
            assert value is None or np.array_equal(value, other.values[name]), name


@pytest.mark.parametrize("case", [c for c in CASES if isinstance(c.expect, int)], ids=lambda c: c.label)
def test_removing_channels_puts_masks_into_the_reference(case: Case) -> None:
    # The oracle must not be the original itself: a removal of w0 has to put masks in.
    model = load(model_of(case))
    analysis = analyze(model)
    plan = Plan("", {g.name: Removal(g.channels, (0,)) for g in analysis.groups if g.name.startswith("w0")})
    assert plan.groups
    masked = InsertMasks(plan, analysis)(model)
    assert any("_mask" in t for t in masked.graph.tensors())


def test_operator_without_a_record_locks_what_it_touches_and_is_named() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
    agraph (float[N,2,4,4] x) => (float[N,5,4,4] y, float[N,3,4,4] y2) {
      h = Conv (x, w0) m = my.domain.Thing (h) y = Conv (m, w1) p0 = Conv (x, v0) y2 = Conv (p0, v1) }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in {"w0": (8, 2, 1, 1), "w1": (5, 8, 1, 1), "v0": (6, 2, 1, 1), "v1": (3, 6, 1, 1)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    analysis = analyze(load(proto))
    assert [g.name for g in analysis.groups] == ["v0"]
    (lock,) = [lock for lock in analysis.locked if lock.name == "w0"]
    assert (lock.op, lock.channels, lock.inexact) == ("Thing", 8, False)
    assert "my.domain::Thing" in lock.reason


def test_known_operator_of_an_unknown_domain_is_not_mistaken_for_the_standard_one() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "my.domain" : 1]>
    agraph (float[N,2,4,4] x) => (float[N,5,4,4] y) { h = Conv (x, w0) m = my.domain.Relu (h) y = Conv (m, w1) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in {"w0": (8, 2, 1, 1), "w1": (5, 8, 1, 1)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    analysis = analyze(load(proto))
    assert not analysis.groups
    assert {lock.op for lock in analysis.locked if lock.name == "w0"} == {"Relu"}


def test_padding_channels_can_be_removed_on_their_own() -> None:
    (case,) = [c for c in CASES if c.op == "Pad" and c.reads == 11]
    model = load(model_of(case))
    analysis = analyze(model)
    (padding,) = [g for g in analysis.groups if g.op == "Pad"]
    assert padding.channels == 2  # of the single channel before the data nothing could be chosen
    pruned = compile_plan(model, Plan("", {padding.name: Removal(2, (1,))}), analysis=analysis).model
    assert pruned.graph.tensors()["w1"].shape[1] == 10
