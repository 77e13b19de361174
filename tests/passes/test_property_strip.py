"""Properties of any model and any plan, on random coupled networks (see graphs.py)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from random_graphs.graphs import BATCH, BLOCKS, NEWER, PROPERTY, SIDE, Array, Spec, build, removal, specs

from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis, assemble, couple
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import NORMALIZE, InsertMasks, Pipeline, StripChannels
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.plans import Plan, Removal

TOLERANCE = {"float32": 1e-4, "float16": 2e-2}
NOTHING = Plan("", {})
# Blocks that neither choose a factor of a dimension (the choice may fall otherwise once channels are gone) nor cut a
# group into parts (a part of one channel is locked).
PLAIN = {"conv", "strided", "residual", "projection", "dense", "depthwise", "squeeze_excite", "shared_weight", "mlp",
         "prelu", "scaled", "instance_norm", "nhwc", "resize", "pad", "pools", "channel_sum"}  # fmt: skip


def run(model: onnx.ModelProto, x: Array, *, optimize: bool = True) -> Array:
    """The output of a model in onnxruntime, without onnxprune's own runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def image(spec: Spec, batch: int) -> Array:
    rng = np.random.default_rng(spec.seed + batch)
    return rng.standard_normal((batch, 3, SIDE, SIDE)).astype(np.float16 if spec.half else np.float32)


def batches(spec: Spec) -> tuple[int, ...]:
    return (1, 5) if spec.dynamic else (BATCH,)


def gap(actual: Array, expected: Array) -> float:
    """Largest difference as a share of the largest magnitude."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert np.isfinite(expected).all()
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(a - b).max() / np.abs(b).max())


def random_plan(analysis: Analysis, seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    groups = {g.name: Removal(g.channels, removal(g.channels, rng)) for g in analysis.groups}
    return Plan(analysis.source.fingerprint, groups)


def compiled(spec: Spec, seed: int, *, check: bool = False) -> Compiled:
    model = load(build(spec))
    analysis = analyze(model)
    return compile_plan(model, random_plan(analysis, seed), analysis=analysis, check=check)


def positions(analysis: Analysis) -> Iterator[tuple[int, tuple[str, int, int]]]:
    """Every place of every weight a channel sits on: (component, (tensor, axis, index))."""
    for tensor, axes in analysis.table.constants.items():
        for axis, labels in enumerate(axes):
            if labels is not None:
                for index, component in enumerate(analysis.component[labels].tolist()):
                    yield component, (tensor, axis, index)


def partition(analysis: Analysis) -> set[frozenset[frozenset[tuple[str, int, int]]]]:
    """Groups as sets of channels, channels as sets of weight indices: no names, numbers or order."""
    places: dict[int, set[tuple[str, int, int]]] = {}
    for component, place in positions(analysis):
        places.setdefault(component, set()).add(place)
    return {frozenset(frozenset(places[c]) for c in g.components.tolist()) for g in analysis.groups}


seeds = st.integers(0, 2**16)


@PROPERTY(max_examples=170)
@given(specs(half=True), seeds)
def test_stripped_model_computes_what_the_masked_original_computes(spec: Spec, seed: int) -> None:
    result = compiled(spec, seed, check=True)
    assert result.verification is not None
    assert (
        result.verification.max_relative
        <= result.verification.tolerance
        == TOLERANCE["float16" if spec.half else "float32"]
    )
    pruned = to_proto(result.model)
    onnx.checker.check_model(pruned)
    masked = to_proto(InsertMasks(result.plan, result.analysis)(result.analysis.source))
    for batch in batches(spec):
        x = image(spec, batch)
        assert gap(run(pruned, x), run(masked, x)) <= result.verification.tolerance


@pytest.mark.parametrize("name", sorted(BLOCKS))
def test_every_block_offers_channels_and_masking_them_changes_the_output(name: str) -> None:
    # Without this the property above could hold because nothing is ever removed.
    for seed in range(3):
        spec = Spec(("conv", name), seed=seed, opset=max(17, NEWER.get(name, 0)), disguise=seed == 2)
        result = compiled(spec, seed + 7, check=True)
        kept = [g.channels - len(result.plan.groups[g.name].removed) for g in result.analysis.groups]
        assert result.plan.removed > 0
        assert min(kept) >= 1
        assert result.verification is not None
        assert result.verification.effect > 1e-3
        assert result.after.params < result.before.params


@PROPERTY(max_examples=60)
@given(specs(), seeds)
def test_order_of_ties_does_not_matter(spec: Spec, seed: int) -> None:
    analysis = analyze(load(build(spec)))
    before = partition(analysis)
    rng = np.random.default_rng(seed)
    ties = [(a, b) if rng.random() < 0.5 else (b, a) for a, b in analysis.table.ties]
    analysis.table.ties[:] = [ties[i] for i in rng.permutation(len(ties))]
    assert partition(assemble(analysis.model, analysis.witness, analysis.table)) == before


@PROPERTY(max_examples=80)
@given(specs(), seeds)
def test_another_topological_order_finds_the_same_groups(spec: Spec, seed: int) -> None:
    analysis = analyze(load(build(spec)))
    other = analysis.model.copy()
    rng = np.random.default_rng(seed)
    known = {t.name for t in other.graph.inputs}
    waiting, order = list(other.graph.nodes), []
    produced = {t.name for n in waiting for t in n.outputs}
    while waiting:
        ready = [n for n in waiting if all(t.name in known or t.name not in produced for t in n.inputs)]
        node = ready[int(rng.integers(len(ready)))]
        order.append(node)
        known |= {t.name for t in node.outputs}
        waiting = [n for n in waiting if n is not node]
    other.graph.nodes[:] = order
    assert partition(couple(other)) == partition(analysis)


@PROPERTY(max_examples=50)
@given(specs(), seeds)
def test_stripping_nothing_from_the_pruned_model_leaves_its_bytes(spec: Spec, seed: int) -> None:
    pruned = compiled(spec, seed).model
    again = Pipeline([*NORMALIZE, StripChannels(NOTHING)])(pruned)
    assert to_proto(again).SerializeToString() == to_proto(pruned).SerializeToString()


@PROPERTY(max_examples=50)
@given(specs())
def test_normalizing_twice_is_normalizing_once(spec: Spec) -> None:
    once = Pipeline(NORMALIZE)(load(build(spec)))
    twice = Pipeline(NORMALIZE)(once)
    assert to_proto(twice).SerializeToString() == to_proto(once).SerializeToString()


@PROPERTY(max_examples=40)
@given(specs(half=True))
def test_pruning_nothing_changes_nothing(spec: Spec) -> None:
    # Not disguised: a weight behind a node is lifted out of it, and onnxruntime packs initializers for other kernels.
    spec = replace(spec, disguise=False)
    model = load(build(spec))
    pruned = compile_plan(model, NOTHING, check=False)
    assert pruned.before == pruned.after
    x = image(spec, batches(spec)[-1])
    assert np.array_equal(run(to_proto(pruned.model), x, optimize=False), run(build(spec), x, optimize=False))


@PROPERTY(max_examples=80)
@given(specs(), seeds)
def test_cost_of_the_plan_is_the_cost_of_the_stripped_model(spec: Spec, seed: int) -> None:
    result = compiled(spec, seed)
    fresh = CostModel(analyze(load(to_proto(result.model)))).baseline
    assert (fresh.macs, fresh.params) == (result.after.macs, result.after.params)


@PROPERTY(max_examples=40)
@given(specs(), seeds)
def test_parameters_count_floating_elements_without_running_statistics(spec: Spec, seed: int) -> None:
    # By onnx alone: no label, no cost model.
    result = compiled(spec, seed)
    proto = to_proto(result.model)
    statistics = {i for n in proto.graph.node if n.op_type == "BatchNormalization" for i in n.input[3:5]}
    used = {i for n in proto.graph.node for i in n.input}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    tensors = [t for t in proto.graph.initializer if t.data_type in floats and t.name in used - statistics]
    assert result.after.params == sum(int(np.prod(t.dims)) for t in tensors)


@PROPERTY(max_examples=60)
@given(specs(), seeds)
def test_weights_shrink_by_the_channels_removed(spec: Spec, seed: int) -> None:
    result = compiled(spec, seed)
    analysis = result.analysis
    gone = {c for g in analysis.groups for c in g.components[list(result.plan.groups[g.name].removed)].tolist()}
    lost: dict[tuple[str, int], int] = {}
    for component, (tensor, axis, _) in positions(analysis):
        lost[tensor, axis] = lost.get((tensor, axis), 0) + (component in gone)
    # Integer constants are shapes and indices, which follow by their operators' rules.
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    before = {t.name: t.dims for t in to_proto(analysis.model).graph.initializer if t.data_type in floats}
    after = {t.name: t.dims for t in to_proto(result.model).graph.initializer}
    for tensor, dims in before.items():
        if tensor in after:
            assert list(after[tensor]) == [n - lost.get((tensor, axis), 0) for axis, n in enumerate(dims)]


@PROPERTY(max_examples=60)
@given(specs(), seeds)
def test_groups_of_the_stripped_model_have_the_kept_counts(spec: Spec, seed: int) -> None:
    spec = replace(spec, blocks=tuple(b for b in spec.blocks if b in PLAIN))
    model = load(build(spec))
    analysis = analyze(model)
    rng = np.random.default_rng(seed)
    # Two channels stay at least: a single one is nothing that could be removed, so it is no group any more.
    gone = {g.name: removal(g.channels - 1, rng) if g.channels > 1 else () for g in analysis.groups}
    plan = Plan("", {g.name: Removal(g.channels, gone[g.name]) for g in analysis.groups})
    pruned = compile_plan(model, plan, analysis=analysis, check=False).model
    again = analyze(load(to_proto(pruned)))
    assert {g.name: g.channels for g in again.groups} == {
        g.name: g.channels - len(gone[g.name]) for g in analysis.groups
    }


@pytest.mark.parametrize("step", NORMALIZE, ids=lambda p: p.name)
def test_normalization_keeps_the_outputs(step: object) -> None:
    @PROPERTY(max_examples=25)
    @given(specs())
    def check(spec: Spec) -> None:
        proto = build(spec)
        model: Model = step(load(proto))  # type: ignore[operator]
        for batch in batches(spec):
            x = image(spec, batch)
            assert gap(run(to_proto(model), x), run(proto, x)) <= 1e-6

    check()


@pytest.mark.parametrize(("block", "heads", "dim"), [("packed_attention", 3, 4), ("attention", 2, 3)])
@pytest.mark.parametrize("choice", ["heads", "head_dim"])
def test_attention_frees_whole_heads_or_places_in_every_head(block: str, heads: int, dim: int, choice: str) -> None:
    # The first seed at which the block draws these sizes (packed attention always does).
    sizes = f"reshape of [{heads}, {dim}]"
    for seed in range(20):
        proto = build(Spec((block,), seed=seed))
        shapes = [numpy_helper.to_array(t).tolist() for t in proto.graph.initializer if t.dims and t.data_type == 7]
        if any(s[-2:] == [heads, dim] for s in shapes):
            break
    else:
        pytest.fail(f"no seed draws a {sizes}")
    model = load(proto)
    group = next(g for g in analyze(model, attention=choice).groups if g.op == "MatMul" and g.width > 1)
    assert group.channels == (heads if choice == "heads" else dim)
    plan = Plan("", {group.name: Removal(group.channels, (0,))}, options={"attention": choice})
    compile_plan(model, plan)
