"""Channels that statistics run over: what is free on request, how it is proved, and what such a proof can catch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import pytest
from command_line import CommandLine
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import numpy_helper
from random_graphs.graphs import PROPERTY, removal
from random_graphs.streams import BLOCKS, TOKENS, Stream, build_stream, streams

from onnxprune import pipeline
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.data import Data
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save, to_proto
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.ops import find
from onnxprune.passes import InsertMasks, SliceStatistics, strip_channels
from onnxprune.passes.slice_statistics import masked_reference
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.sensitivity_sweep import sensitivity
from onnxprune.plans import Plan, Removal, load_plan, save_plan
from onnxprune.verification import TOLERANCE, relative_difference, verify

Array = npt.NDArray[Any]
seeds = st.integers(0, 2**16)


def random_plan(analysis: Analysis, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    groups = {g.name: Removal(g.channels, removal(g.channels, rng)) for g in analysis.groups}
    return Plan(analysis.source.fingerprint, groups, options=analysis.choices.options())


def compiled(stream: Stream, seed: int) -> Compiled:
    model = load(build_stream(stream))
    return compile_plan(model, random_plan(analyze(model, include_inexact=True), seed))


def stream_of(analysis: Analysis) -> Any:
    """The group of the residual stream: the one that sits on the most tensors."""
    return max(analysis.groups, key=lambda g: len(g.sites))


# ------------------------------------------------------------------------------------------------ what must hold


@PROPERTY(max_examples=100)
@given(streams(), seeds)
def test_stripped_model_computes_what_the_sliced_original_computes(stream: Stream, seed: int) -> None:
    done = compiled(stream, seed)
    proof = done.verification
    assert proof is not None
    assert proof.max_relative <= proof.tolerance == 1e-4
    assert list(proof.inexact) == [
        g.name for g in done.analysis.groups if not g.exact and done.plan.groups[g.name].removed
    ]
    onnx.checker.check_model(to_proto(done.model))


@PROPERTY(max_examples=30)
@given(streams(), seeds)
def test_without_inexact_groups_the_reference_is_the_masked_original(stream: Stream, seed: int) -> None:
    model = load(build_stream(stream))
    analysis = analyze(model)
    assert all(g.exact for g in analysis.groups)
    # A mean written as a sum and a count is exact: what is masked adds nothing. A net of such norms has no such lock.
    assume(any(lock.inexact for lock in analysis.locked))
    plan = random_plan(analysis, seed)
    assert "inexact" not in plan.options
    masked = InsertMasks(plan, analysis)(model)
    for made in (masked_reference(analysis, plan), SliceStatistics(plan, analysis)(masked)):
        assert to_proto(made).SerializeToString() == to_proto(masked).SerializeToString()


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_every_block_frees_its_stream_and_slicing_is_not_masking(name: str, opset: int) -> None:
    # Without this the properties above could hold because nothing is ever removed, or nothing is ever sliced.
    model = load(build_stream(Stream((name,), 3, words=opset % 2 == 1, opset=opset)))
    analysis = analyze(model, include_inexact=True)
    group = stream_of(analysis)
    assert not group.exact
    assert {lock.op for lock in analysis.locked} == {"output"}
    plan = Plan("", {group.name: Removal(group.channels, (0, 2, group.channels - 1))}, options={"inexact": True})
    done = compile_plan(model, plan)
    assert done.verification is not None
    assert done.verification.effect > 1e-3
    feeds = random_feeds(analysis, 5)
    masked, sliced = (
        Session(m).run(feeds, ["y"])[0] for m in (InsertMasks(plan, analysis)(model), masked_reference(analysis, plan))
    )
    assert relative_difference(masked, sliced) > 1e-3


# ------------------------------------------------------------------------------------------------------- float16


def one_other(analysis: Analysis, seed: int) -> tuple[Plan, Plan]:
    """A random plan, and one that differs from it in a single channel of the residual stream.

    Half of the channels stay at least where statistics are taken. A norm of one or two divides what they differ by,
    which may be little more than the rounding of float16, by itself: even the original is then far from what is exact.
    """
    rng = np.random.default_rng(seed)
    plan = random_plan(analysis, seed)
    group = stream_of(analysis)
    order = rng.permutation(group.channels)
    gone = int(rng.integers(1, group.channels // 2 + 1))
    inexact = {
        g.name: replace(r, removed=r.removed[: g.channels // 2])
        for g in analysis.groups
        if not g.exact and (r := plan.groups[g.name]).removed
    }
    plans = []
    for removed in (order[:gone], order[1 : gone + 1]):
        stream = {group.name: Removal(group.channels, tuple(sorted(removed.tolist())))}
        plans.append(replace(plan, groups={**plan.groups, **inexact, **stream}))
    return plans[0], plans[1]


@PROPERTY(max_examples=40)
@given(streams(half=True), seeds)
def test_float16_is_proved_at_a_tolerance_that_one_wrong_channel_exceeds(stream: Stream, seed: int) -> None:
    model = load(build_stream(stream))
    analysis = analyze(model, include_inexact=True)
    right, wrong = one_other(analysis, seed)
    done = compile_plan(model, right, analysis=analysis)
    proof = done.verification
    assert proof is not None
    assert stream_of(analysis).name in proof.inexact
    assert proof.tolerance == TOLERANCE["float16"]
    assert proof.max_relative <= proof.tolerance / 2
    # What states a count, a share or a scale has stayed in the type of the model.
    constants = (t for t in done.model.graph.tensors().values() if isinstance(t, gs.Constant))
    assert {np.dtype(t.dtype).name for t in constants} - {"int64", "bool"} == {"float16"}
    onnx.checker.check_model(to_proto(done.model), full_check=True)
    with pytest.raises(VerificationError):
        verify(analysis, wrong, done.model)


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("opset", [13, 21])
def test_slicing_is_not_masking_by_more_than_float16_is_allowed(name: str, opset: int) -> None:
    # Otherwise a proof in float16 could not tell a removed channel in a statistic from a masked one.
    analysis = analyze(load(build_stream(Stream((name,), 3, opset=opset, half=True))), include_inexact=True)
    group = stream_of(analysis)
    plan = Plan("", {group.name: Removal(group.channels, (0, 2))}, options={"inexact": True})
    feeds = random_feeds(analysis, 5)
    masked, sliced = (
        Session(m).run(feeds, ["y"])[0]
        for m in (InsertMasks(plan, analysis)(analysis.source), masked_reference(analysis, plan))
    )
    assert relative_difference(masked, sliced) > TOLERANCE["float16"]


def test_outputs_of_the_model_stay_whole_whatever_is_asked_for() -> None:
    analysis = analyze(load(build_stream(Stream(("mlp",)))), include_inexact=True)
    (lock,) = analysis.locked
    assert (lock.op, lock.channels, lock.inexact) == ("output", 4, False)


def test_embedding_table_class_token_and_places_follow_the_stream() -> None:
    model = load(build_stream(Stream(("attention", "mlp"), words=True)))
    analysis = analyze(model, include_inexact=True)
    group = stream_of(analysis)
    plan = Plan("", {group.name: Removal(group.channels, (0, 3))}, options={"inexact": True})
    pruned = compile_plan(model, plan).model.graph.tensors()
    before = model.graph.tensors()
    tables = [t for t, axis in group.sites if len(before[t].shape) == 3 or before[t].shape[0] == 11]
    assert sorted(tuple(before[t].shape[:-1]) for t in tables) == [(1, 1), (1, TOKENS), (11,)]
    for t in tables:
        kept = np.delete(np.asarray(before[t].values), (0, 3), axis=-1)
        assert np.array_equal(np.asarray(pruned[t].values), kept)


# ----------------------------------------------------------------------------------- a reference by hand, in numpy


def _layer_norm(x: Array, scale: Array, shift: Array) -> Array:
    d = x - x.mean(-1, keepdims=True)
    return np.asarray(d / np.sqrt((d**2).mean(-1, keepdims=True) + 1e-5) * scale + shift)


MEANS = "m = ReduceMean <axes = [-1]> (x) d = Sub (x, m) q = Pow (d, two) v = ReduceMean <axes = [-1]> (q)"
SUMS = """a0 = ReduceSum (x, last) m = Div (a0, count) d = Sub (x, m) q = Mul (d, d)
          a1 = ReduceSum (q, last) v = Mul (share, a1)"""
REST = " e = Add (v, eps) r = Sqrt (e) z = Div (d, r) s = Mul (z, g) n = Add (s, b)"
NORMS = {
    "native": (17, "n = LayerNormalization <axis = -1, epsilon = 0.00001> (x, g, b)"),
    "means": (13, MEANS + REST),
    "sums": (13, SUMS + REST),  # a stated 10 and 1/10 have to follow
}


@pytest.mark.parametrize("spelling", NORMS)
def test_pruned_transformer_block_is_the_formula_on_sliced_weights(spelling: str) -> None:
    rng = np.random.default_rng(0)
    c, h = 10, 14
    w = {
        "table": rng.standard_normal((11, c)), "g": rng.uniform(0.5, 1.5, c), "b": rng.standard_normal(c),
        "up": rng.standard_normal((c, h)), "down": rng.standard_normal((h, c)), "head": rng.standard_normal((c, 4)),
    }  # fmt: skip
    opset, norm = NORMS[spelling]
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> agraph (int64[N,6] ids) => (float[N,6,4] y) {{'
        f" x = Gather (table, ids) {norm} u = MatMul (n, up) a = Relu (u) t = MatMul (a, down) o = Add (x, t)"
        " y = MatMul (o, head) }"
    )
    constants = {**w, "two": np.array(2.0), "eps": np.array(1e-5), "count": np.array(c), "share": np.array([1 / c])}
    used = {i for n in proto.graph.node for i in n.input}
    for name in used & constants.keys():
        proto.graph.initializer.append(numpy_helper.from_array(constants[name].astype(np.float32), name))
    if spelling == "sums":
        proto.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "last"))
    model = load(proto)
    gone, hidden = (1, 4, 9), (0, 13)
    plan = Plan("", {"table": Removal(c, gone), "up": Removal(h, hidden)}, options={"inexact": True})
    pruned = compile_plan(model, plan).model
    ids = rng.integers(0, 11, (3, 6))
    k, j = np.delete(np.arange(c), gone), np.delete(np.arange(h), hidden)
    x = w["table"][ids][..., k]
    n = _layer_norm(x, w["g"][k], w["b"][k])
    o = x + np.maximum(n @ w["up"][np.ix_(k, j)], 0) @ w["down"][np.ix_(j, k)]
    got = Session(pruned).run({"ids": ids}, ["y"])[0]
    assert relative_difference(got, (o @ w["head"][k]).astype(np.float32)) < 1e-5
    wanted = Session(masked_reference(analyze(model, include_inexact=True), plan)).run({"ids": ids}, ["y"])[0]
    assert relative_difference(wanted, (o @ w["head"][k]).astype(np.float32)) < 1e-5


# ------------------------------------------------------------------------------------- what the proof must catch


def _broken(model: Model, plan: Plan, wrong: Any) -> tuple[Analysis, Model]:
    """Return the analysis, and the pruned model with every constant changed by `wrong(name, whole, right values)`."""
    done = compile_plan(model, plan)
    whole = {n: np.array(t.values) for n, t in model.graph.tensors().items() if isinstance(t, gs.Constant)}
    pruned = done.model.copy()
    for name, t in pruned.graph.tensors().items():
        if isinstance(t, gs.Constant) and name in whole:
            t.values = wrong(name, whole[name], np.asarray(t.values))
    return done.analysis, pruned


def _of(names: set[str]) -> Any:
    """Keeps the first channels of these vectors instead of the right ones."""

    def first(name: str, whole: Array, kept: Array) -> Array:
        return whole[: len(kept)] if name in names and kept.shape != whole.shape else kept

    return first


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("half", [False, True])
def test_wrong_scale_or_shift_of_a_norm_is_caught(part: int, opset: int, half: bool) -> None:
    model = load(build_stream(Stream(("mlp",), seed=1, opset=opset, half=half)))
    analysis = analyze(model, include_inexact=True)
    group = stream_of(analysis)
    plan = Plan("", {group.name: Removal(group.channels, (0, 2))}, options={"inexact": True})
    ops = ("LayerNormalization",) if opset >= 17 else ("Mul", "Add")[part - 1 : part]
    norms = {t.name for n in model.graph.nodes if n.op in ops for t in n.inputs[1:] if len(t.shape or ()) == 1}
    assert norms
    if opset >= 17:
        norms = {n.inputs[part].name for n in model.graph.nodes if n.op in ops}
    analysis, wrong = _broken(model, plan, _of(norms))
    with pytest.raises(VerificationError, match="not the original's, compressed"):
        verify(analysis, plan, wrong)


@pytest.mark.parametrize("half", [False, True])
def test_wrong_rows_of_a_weight_behind_a_norm_are_caught(half: bool) -> None:
    model = load(build_stream(Stream(("mlp",), seed=1, half=half)))
    group = stream_of(analyze(model, include_inexact=True))
    plan = Plan("", {group.name: Removal(group.channels, (0, 2))}, options={"inexact": True})
    weight = [n.inputs[1].name for n in model.graph.nodes if n.op in ("Gemm", "MatMul")][-1]
    analysis, wrong = _broken(model, plan, lambda name, whole, kept: kept[::-1] if name == weight else kept)
    with pytest.raises(VerificationError):
        verify(analysis, plan, wrong)


def test_statistics_over_what_was_masked_are_caught() -> None:
    # A stripped model with the original's mean and variance would be right by masking, and wrong here.
    model = load(build_stream(Stream(("post_norm",), seed=2, opset=13)))
    analysis = analyze(model, include_inexact=True)
    group = stream_of(analysis)
    plan = Plan("", {group.name: Removal(group.channels, (1, 2))}, options={"inexact": True})
    pruned = to_proto(compile_plan(model, plan).model)
    means = [n for n in pruned.graph.node if n.op_type == "ReduceMean"]
    share = numpy_helper.from_array(np.float32((group.channels - 2) / group.channels), "share")
    pruned.graph.initializer.append(share)
    place = list(pruned.graph.node).index(means[0])
    scaled = onnx.helper.make_node("Mul", [means[0].output[0] + "_own", "share"], [means[0].output[0]])
    means[0].output[0] += "_own"
    pruned.graph.node.insert(place + 1, scaled)
    with pytest.raises(VerificationError):
        verify(analysis, plan, load(pruned))


def test_number_of_groups_that_follows_channels_instead_of_groups_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> agraph (float[N,3,4,4] x) => (float[N,5,4,4] y) {
        h = Conv (x, w) n = GroupNormalization <num_groups = 2> (h, s, b) y = Conv (n, v) }"""
    )
    rng = np.random.default_rng(0)
    for name, shape in {"w": (8, 3, 1, 1), "s": (8,), "b": (8,), "v": (5, 8, 1, 1)}.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    model = load(proto)
    plan = Plan("", {"w": Removal(4, (0, 3))}, options={"inexact": True})  # the same two places in both groups
    assert compile_plan(model, plan).model.graph.nodes[1].attrs["num_groups"] == 2

    def halved(node: Any, patcher: Any) -> None:
        node.attrs["num_groups"] = 1

    def found(node: Any) -> Any:
        return replace(find(node), patch=halved) if node.op == "GroupNormalization" else find(node)

    monkeypatch.setattr(strip_channels, "find", found)
    with pytest.raises(VerificationError):
        compile_plan(model, plan)


def test_reader_without_a_mask_would_show() -> None:
    # What a removed channel holds behind a slice is junk, not zero: without masks the reference is another function.
    model = load(build_stream(Stream(("mlp",), seed=4)))
    analysis = analyze(model, include_inexact=True)
    group = stream_of(analysis)
    plan = Plan("", {group.name: Removal(group.channels, (1,))}, options={"inexact": True})
    feeds = random_feeds(analysis, 3)
    models = (masked_reference(analysis, plan), SliceStatistics(plan, analysis)(model))
    masked, unmasked = (Session(m).run(feeds, ["y"])[0] for m in models)
    assert relative_difference(masked, unmasked) > 1e-3


# --------------------------------------------------------------------------------------- attention, and its kinds


def test_grouped_query_attention_keeps_its_ratio() -> None:
    model = load(build_stream(Stream(("grouped_query",), seed=0)))
    analysis = analyze(model)
    (heads,) = [g for g in analysis.groups if g.kind == "heads"]
    assert heads.channels == 2  # key and value heads; three query heads go with each
    plan = Plan("", {heads.name: Removal(2, (0,))})
    done = compile_plan(model, plan)
    before, after = model.graph.tensors(), done.model.graph.tensors()
    for tensor, axis in heads.sites:
        assert 2 * after[tensor].shape[axis] == before[tensor].shape[axis]
    assert len({before[t].shape[a] for t, a in heads.sites}) == 2  # of queries and outputs; of keys and values


def test_places_in_every_head_of_grouped_query_attention_can_go() -> None:
    model = load(build_stream(Stream(("grouped_query",), seed=0)))
    analysis = analyze(model, attention="head_dim")
    groups = [g for g in analysis.groups if g.kind == "head_dim"]
    assert len(groups) == 2  # of queries and keys, of values and outputs
    plan = random_plan(analysis, 5)
    assert any(plan.groups[g.name].removed for g in groups)
    compile_plan(model, plan, analysis=analysis)


@pytest.mark.parametrize(
    ("attention", "only", "kinds"),
    [
        ("heads", ["heads"], {"heads"}),
        ("head_dim", ["head_dim"], {"head_dim"}),
        ("head_dim", ["attention"], {"head_dim"}),
        ("heads", ["mlp"], {"mlp"}),
        ("heads", ["stream"], {"stream"}),
        ("heads", ["heads", "mlp"], {"heads", "mlp"}),
    ],
)
def test_only_says_which_kinds_go(attention: str, only: list[str], kinds: set[str]) -> None:
    model = load(build_stream(Stream(("attention", "grouped_query", "mlp", "gated"), seed=7)))
    analysis = analyze(model, attention=attention, include_inexact=True)
    scores = pipeline.score(analysis)
    plan = pipeline.plan(scores, ratio=0.5, constraints=Constraints(round_to=1, only=only))
    assert {analysis[name].kind for name, r in plan.groups.items() if r.removed} == kinds
    left = pipeline.plan(scores, ratio=0.5, constraints=Constraints(round_to=1, protect=only))
    assert not {analysis[name].kind for name, r in left.groups.items() if r.removed} & kinds
    compile_plan(model, plan, analysis=analysis)


def test_unknown_kind_is_refused_with_those_there_are() -> None:
    model = load(build_stream(Stream(("mlp",))))
    scores = pipeline.score(analyze(model))
    with pytest.raises(OnnxPruneError, match="unknown kind of group 'neurons'"):
        pipeline.plan(scores, ratio=0.5, constraints=Constraints(only=["neurons"]))


# ------------------------------------------------------------------------------------------------- command line

line = CommandLine()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inexact")
    found = {name: folder / name for name in ("m.onnx", "s.onnx", "plan.json", "exact.json")}
    save(load(build_stream(Stream(("attention", "mlp"), seed=3))), found["m.onnx"])
    line.out("prune", found["m.onnx"], "-o", found["s.onnx"], "--ratio", 0.5, "--include-inexact", "--round-to", 1,
             "--plan", found["plan.json"])  # fmt: skip
    line.out("plan", found["m.onnx"], "-o", found["exact.json"], "--ratio", 0.5, "--round-to", 1)
    return found


def test_plan_says_that_inexact_groups_were_allowed(files: dict[str, Path]) -> None:
    assert load_plan(files["plan.json"]).options == {"attention": "heads", "inexact": True}
    assert load_plan(files["exact.json"]).options == {"attention": "heads"}


def test_apply_and_verify_read_it_from_the_plan(files: dict[str, Path], tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    done = json.loads(line.out("apply", files["m.onnx"], files["plan.json"], "-o", again, "--json"))
    assert again.read_bytes() == files["s.onnx"].read_bytes()
    groups = {g["kind"]: g for g in done["groups"]}
    assert (groups["stream"]["exact"], groups["stream"]["reference"]) == (False, "sliced")
    assert groups["stream"]["statistics"] == ["LayerNormalization"]
    assert (groups["heads"]["exact"], groups["heads"]["reference"]) == (True, "masked")
    assert done["verification"]["inexact"] == [groups["stream"]["name"]]
    proof = json.loads(line.out("verify", files["m.onnx"], again, files["plan.json"], "--json"))
    assert proof["reference"] == "original, sliced in statistics and masked elsewhere"
    assert proof["max_relative"] <= 1e-4 < proof["effect"]
    text = line.out("verify", files["m.onnx"], again, files["plan.json"])
    assert text.splitlines()[-2].startswith("proved: ")
    assert "1 group is inexact" in text


def test_plan_for_inexact_groups_does_not_pass_as_one_without(files: dict[str, Path], tmp_path: Path) -> None:
    plan = load_plan(files["plan.json"])
    other = tmp_path / "plan.json"
    save_plan(Plan(plan.model, plan.groups, plan.criterion, {"attention": "heads"}, plan.tool), other)
    assert "--include-inexact" in line.fails("apply", files["m.onnx"], other, "-o", tmp_path / "s.onnx")
    assert not (tmp_path / "s.onnx").exists()


def test_inspect_shows_kinds_and_what_makes_a_removal_inexact(files: dict[str, Path]) -> None:
    text = line.out("inspect", files["m.onnx"], "--include-inexact")
    assert "(inexact: LayerNormalization)" in " ".join(text.split())
    document = json.loads(line.out("inspect", files["m.onnx"], "--include-inexact", "--json"))
    assert {g["kind"]: g["exact"] for g in document["groups"]} == {"stream": False, "heads": True, "mlp": True}
    exact = json.loads(line.out("inspect", files["m.onnx"], "--json"))
    assert {g["kind"] for g in exact["groups"]} == {"heads", "mlp"}


def test_scores_and_plan_in_steps_give_the_plan_of_prune(files: dict[str, Path], tmp_path: Path) -> None:
    scores, plan = tmp_path / "s.json", tmp_path / "p.json"
    line.out("score", files["m.onnx"], "--include-inexact", "-o", scores)
    line.out(
        "plan", files["m.onnx"], "--include-inexact", "--scores", scores, "--ratio", 0.5, "--round-to", 1, "-o", plan
    )
    assert plan.read_bytes() == files["plan.json"].read_bytes()


def test_only_on_the_command_line(files: dict[str, Path], tmp_path: Path) -> None:
    plan = tmp_path / "p.json"
    line.out("plan", files["m.onnx"], "--ratio", 0.5, "--round-to", 1, "--only", "mlp", "-o", plan)
    document = json.loads(line.out("inspect", files["m.onnx"], "--json"))
    kinds = {g["name"]: g["kind"] for g in document["groups"]}
    assert {kinds[name] for name in load_plan(plan).groups} == {"mlp"}


def test_pruning_in_steps_and_recovery_take_inexact_groups(files: dict[str, Path], tmp_path: Path) -> None:
    plan, small, better = tmp_path / "p.json", tmp_path / "s.onnx", tmp_path / "b.onnx"
    line.out("prune", files["m.onnx"], "-o", small, "--include-inexact", "--ratio", 0.4, "--steps", 2, "--round-to", 1,
             "--plan", plan)  # fmt: skip
    assert load_plan(plan).options["inexact"] is True
    data = tmp_path / "x.npz"
    np.savez(data, x=np.random.default_rng(0).integers(0, 11, (40, TOKENS - 1)))
    done = json.loads(line.out("recover", files["m.onnx"], small, plan, "--data", data, "-o", better, "--json"))
    assert done["stages"][-1]["distance"] <= done["stages"][0]["distance"]


def test_sensitivity_leaves_inexact_groups_out(files: dict[str, Path]) -> None:
    # Its trials mask, and a mask is not what removing such a channel does.
    model = load(files["m.onnx"])
    scores = pipeline.score(analyze(model, include_inexact=True))
    data = Data(np.random.default_rng(0).integers(0, 11, (16, TOKENS - 1)), np.arange(16) % 4, "words")
    curves = sensitivity(scores, data, ratios=[0.5])
    assert set(curves.groups) == {g.name for g in scores.analysis.groups if g.exact}
    assert curves.options == {"attention": "heads", "inexact": True}


def test_recipe_takes_inexact_groups(files: dict[str, Path], tmp_path: Path) -> None:
    data, recipe = tmp_path / "x.npz", tmp_path / "r.toml"
    np.savez(data, x=np.random.default_rng(0).integers(0, 11, (20, TOKENS - 1)), y=np.arange(20) % 4)
    recipe.write_text(
        f'name = "r"\nmodel = "{files["m.onnx"].as_posix()}"\ndata = "{data.as_posix()}"\ninclude_inexact = true\n'
        '[bench]\nruns = 1\n[[step]]\ndo = "score"\ncriterion = "l2"\n'
        '[[step]]\ndo = "prune"\nratio = 0.5\nround_to = 1\nonly = ["stream"]\n'
    )
    line.out("run", recipe, "-o", tmp_path / "run")
    (plan,) = (load_plan(p) for p in (tmp_path / "run").rglob("*plan*.json"))
    assert plan.options["inexact"] is True
    assert len(plan.groups) == 1
