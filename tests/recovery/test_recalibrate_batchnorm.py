"""Recalibrated statistics: measured again in whole runs of the result, beside those of the original."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from hypothesis import given
from numpy.typing import NDArray
from random_graphs.graphs import BATCH, PROPERTY, Spec, build, specs
from recovering import (
    FIRST,
    changed_constants,
    constants,
    cut,
    cut_at_random,
    digits,
    noise,
    outputs,
    parsed,
    raw,
    samples,
    tensors,
)

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.channel_moments import measure_statistics
from onnxprune.execution.data import Data
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import FuseBatchnorm
from onnxprune.plans import Plan
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm

Array = NDArray[Any]


def moments(model: Model, name: str, x: Array, axis: int = 1) -> tuple[Array, Array]:
    """Mean and variance per channel in one run."""
    [values] = tensors(model, [name], x)
    flat = np.moveaxis(values.astype(np.float64), axis, 0).reshape(values.shape[axis], -1)
    return flat.mean(1), flat.var(1)


def kept(analysis: Analysis, plan: Plan, name: str, axis: int = 1) -> Array:
    """Return a mask of the kept channels of a tensor."""
    axes = analysis.table.variables[name]
    found = analysis.keep(name, axis % len(axes), analysis.kept(plan))
    return np.ones(analysis.table.shapes[name][axis], bool) if found is None else found


def assert_matched(analysis: Analysis, plan: Plan, result: Model, name: str, data: Data, axis: int = 1) -> None:
    """Mean and variance are those of the original."""
    wanted = [m[kept(analysis, plan, name, axis)] for m in moments(analysis.model, name, data.x, axis)]
    mean, variance = moments(result, name, data.x, axis)
    np.testing.assert_allclose(variance, wanted[1], rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(mean, wanted[0], rtol=0, atol=1e-3 * np.sqrt(wanted[1].max()), err_msg=name)


def differs(analysis: Analysis, plan: Plan, pruned: Model, name: str, data: Data) -> bool:
    """Return True if a tensor of a pruned model differs from the original's."""
    [wanted], [found] = tensors(analysis.model, [name], data.x), tensors(pruned, [name], data.x)
    return bool(np.abs(wanted[:, kept(analysis, plan, name)] - found).max() > 1e-5 * np.abs(wanted).max())


def test_running_statistics_become_those_of_the_pruned_model() -> None:
    analysis, plan, pruned, data = digits("digits_cnn", 0.3)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    norms = [n for n in result.graph.nodes if n.op == "BatchNormalization"]
    changed = [n for n in norms if differs(analysis, plan, pruned, n.outputs[0].name, data)]
    assert len(changed) > 5
    at_once = 0  # statistics of the pruned model as it was would have been others
    for node in norms:
        mean, variance = (np.asarray(t.values) for t in node.inputs[3:5])
        if node not in changed:
            assert [mean.tobytes(), variance.tobytes()] == [
                constants(pruned)[t.name].tobytes() for t in node.inputs[3:5]
            ]
            continue
        # Batch by batch on all samples; the model is run here as it is in the end.
        found = moments(result, node.inputs[0].name, data.x)
        scale = np.sqrt(found[1].max())
        np.testing.assert_allclose(mean, found[0], rtol=0, atol=1e-4 * scale)
        np.testing.assert_allclose(variance, found[1], rtol=1e-3, atol=1e-7 * scale**2)
        at_once += not np.allclose(variance, moments(pruned, node.inputs[0].name, data.x)[1], rtol=1e-2)
    assert at_once > 3
    allowed = {t.name for n in changed for t in n.inputs[3:5]}
    assert changed_constants(pruned, result) == allowed


def test_where_it_was_folded_mean_and_variance_are_the_originals() -> None:
    analysis, plan, pruned, data = digits("digits_cnn_folded", 0.3)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    convolutions = [n for n in result.graph.nodes if n.op == "Conv"]
    changed = [n for n in convolutions if differs(analysis, plan, pruned, n.outputs[0].name, data)]
    assert 5 < len(changed) < len(convolutions)
    for node in changed:
        assert_matched(analysis, plan, result, node.outputs[0].name, data)
    # The last layer, and what the cut has not changed, are the same to the bit.
    assert changed_constants(pruned, result) == {t.name for n in changed for t in n.inputs[1:]}


def test_a_product_with_its_bias_in_an_addition() -> None:
    analysis, plan, pruned, data = digits("digits_keras", 0.5)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    products = [n for n in result.graph.nodes if n.op == "MatMul"]
    assert len(products) == 2
    hidden, last = (n.outputs[0].outputs[0] for n in products)  # the additions
    assert_matched(analysis, plan, result, hidden.outputs[0].name, data, axis=-1)
    changed = changed_constants(pruned, result)
    own = [{t.name for t in (*p.inputs, *p.outputs[0].outputs[0].inputs)} for p in products]
    assert len(own[0] & changed) == 2
    assert not own[1] & changed  # scores that a Softmax follows stay as they are
    assert last.outputs[0].outputs[0].op == "Softmax"


def test_a_bias_that_was_trained_since_does_not_count_twice() -> None:
    analysis, plan, pruned, data = digits("digits_keras", 0.5)
    [bias] = [
        t for n in pruned.graph.nodes if n.op == "MatMul" and n.outputs[0].outputs[0].outputs[0].outputs[0].op == "Relu"
        for t in n.outputs[0].outputs[0].inputs if isinstance(t, gs.Constant)
    ]  # fmt: skip
    bias.values = np.asarray(bias.values) + np.float32(0.5)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    name = next(n.outputs[0].name for n in pruned.graph.nodes if any(t is bias for t in n.inputs))
    assert_matched(analysis, plan, result, name, data, axis=-1)


KINDS = {
    "conv": ("e = Conv <strides = [2, 1], pads = [1, 0, 2, 1]> (b, v, c)", (4, 6, 3, 3), (4,)),
    "grouped": ("e = Conv <group = 2> (b, v, c)", (4, 3, 3, 3), (4,)),
    "transposed": ("e = ConvTranspose <strides = [2, 2]> (b, v, c)", (6, 4, 3, 3), (4,)),
    "transposed and grouped": ("e = ConvTranspose <strides = [2, 2], group = 2> (b, v, c)", (6, 2, 3, 3), (4,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind: str) -> None:
    body, shape, bias = KINDS[kind]
    analysis = parsed(FIRST + body + " f = Relu (e) y = Conv (f, u)",
                      {"w": (6, 3, 3, 3), "d": (6,), "v": shape, "c": bias, "u": (2, 4, 1, 1)})  # fmt: skip
    plan, pruned = cut(analysis, {"w": (1,)})
    data = noise(30)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    assert differs(analysis, plan, pruned, "e", data)
    assert_matched(analysis, plan, result, "e", data)
    assert changed_constants(pruned, result) == {"v", "c"}


def test_gemm_with_factors() -> None:
    body = FIRST + "g = GlobalAveragePool (b) f = Flatten (g) e = Gemm <alpha = 0.5, beta = 2.0, transB = 1> (f, v, c) "
    analysis = parsed(body + "k = Relu (e) y = MatMul (k, u)",
                      {"w": (6, 3, 3, 3), "d": (6,), "v": (4, 6), "c": (4,), "u": (4, 2)}, "float[N,a] y")  # fmt: skip
    plan, pruned = cut(analysis, {"w": (1, 2)})
    data = noise(30)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    assert_matched(analysis, plan, result, "e", data)


def test_a_channel_that_has_vanished_is_only_shifted() -> None:
    # Output 0 reads the removed channel alone, output 1 was constant from the start, output 2 hardly varied then.
    rng = np.random.default_rng(0)
    v = rng.standard_normal((4, 6, 1, 1))
    v[0, 1:], v[1], v[2, 1:] = 0, 0, 1e-6 * v[2, 1:]
    analysis = parsed(FIRST + "e = Conv (b, v, c) f = Relu (e) y = Conv (f, u)",
                      {"w": (6, 3, 3, 3), "d": (6,), "c": (4,), "u": (2, 4, 1, 1)}, values={"v": v})  # fmt: skip
    plan, pruned = cut(analysis, {"w": (0,)})
    data = noise(30)
    result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
    weight = constants(pruned)["v"]
    assert constants(result)["v"][:3].tobytes() == weight[:3].tobytes()
    assert constants(result)["v"][3].tobytes() != weight[3].tobytes()
    mean = moments(analysis.model, "e", data.x)[0]
    np.testing.assert_allclose(moments(result, "e", data.x)[0], mean, rtol=0, atol=1e-5)


def test_no_channel_is_blown_up_beyond_measure() -> None:
    rng = np.random.default_rng(0)
    v = rng.standard_normal((2, 6, 1, 1))
    v[0, 1:] *= 0.01
    analysis = parsed(FIRST + "e = Conv (b, v, c) f = Relu (e) y = Conv (f, u)",
                      {"w": (6, 3, 3, 3), "d": (6,), "c": (2,), "u": (2, 2, 1, 1)}, values={"v": v})  # fmt: skip
    plan, pruned = cut(analysis, {"w": (0,)})
    result = RecalibrateBatchnorm(plan, analysis, samples(noise(30)))(pruned)
    np.testing.assert_allclose(constants(result)["v"][0], 10 * constants(pruned)["v"][0], rtol=1e-6)


def on_its_own_data(model: Model, data: Data) -> Model:
    """A model whose running statistics are the moments of its own activations on the data."""
    for node in model.graph.nodes:
        if node.op == "BatchNormalization":
            name = node.inputs[0].name
            found = measure_statistics(model, [name], [{"x": data.x}], threads=1)[name]
            for t, values in zip(node.inputs[3:5], found, strict=True):
                t.values = values.astype(np.float32)
    return model


@pytest.mark.parametrize("blocks", [("projection",), ("depthwise", "conv")])
def test_kept_and_folded_give_the_same_outputs(blocks: tuple[str, ...]) -> None:
    data = noise(60)
    model = on_its_own_data(load(build(Spec(blocks, seed=4))), data)
    results = []
    for version in (model, FuseBatchnorm()(model)):
        analysis = op.analyze(version)
        plan, pruned = cut_at_random(analysis, 3, 0.3)
        result = RecalibrateBatchnorm(plan, analysis, samples(data))(pruned)
        norms = sum(n.op == "BatchNormalization" for n in result.graph.nodes)
        results.append(
            (outputs(result, data.x), outputs(pruned, data.x), norms, {n: r.removed for n, r in plan.groups.items()})
        )
    (one, cut_one, norms, gone), (other, cut_other, none, same) = results
    assert norms > 1
    assert (none, same) == (0, gone)
    scale = np.abs(one).max()
    np.testing.assert_allclose(cut_one, cut_other, rtol=0, atol=1e-4 * scale)
    assert np.abs(one - cut_one).max() > 0.02 * scale
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-3 * scale)


def test_without_samples_or_analysis_nothing_changes() -> None:
    analysis, plan, pruned, data = digits("digits_cnn_folded", 0.5, 60)
    assert raw(RecalibrateBatchnorm(plan, analysis)(pruned)) == raw(pruned)
    assert raw(RecalibrateBatchnorm(plan, None, samples(data))(pruned)) == raw(pruned)


def test_labels_do_not_matter_nor_do_batches() -> None:
    analysis, plan, pruned, data = digits("digits_cnn", 0.5, 60)
    results = [
        RecalibrateBatchnorm(plan, analysis, samples(d, batch))(pruned)
        for d, batch in ((data, 16), (Data(data.x, None, "bare"), 16), (data, 7))
    ]
    assert raw(results[0]) == raw(results[1])
    for name, values in constants(results[0]).items():
        np.testing.assert_allclose(constants(results[2])[name], values, rtol=1e-4, atol=1e-5)


def test_samples_that_are_no_numbers_give_one_error() -> None:
    analysis, plan, pruned, data = digits("digits_cnn_folded", 0.5, 60)
    x = data.x.copy()
    x[17] = np.nan
    with pytest.raises(OnnxPruneError, match="not finite"):
        RecalibrateBatchnorm(plan, analysis, samples(Data(x, None, "nan")))(pruned)


@PROPERTY(max_examples=20)
@given(specs(max_blocks=3, half=True))
def test_any_graph_keeps_its_form_and_stays_finite(spec: Spec) -> None:
    analysis = op.analyze(load(build(spec)))
    plan, pruned = cut_at_random(analysis, spec.seed)
    data = noise(2 * BATCH + 8)
    result = RecalibrateBatchnorm(plan, analysis, samples(data, 5))(pruned)
    one, other = to_proto(pruned), to_proto(result)
    del one.graph.initializer[:], other.graph.initializer[:]
    assert one.SerializeToString() == other.SerializeToString()
    onnx.checker.check_model(to_proto(result))
    was, now = constants(pruned), constants(result)
    assert {n: (v.shape, v.dtype) for n, v in was.items()} == {n: (v.shape, v.dtype) for n, v in now.items()}
    assert all(np.isfinite(v).all() for v in now.values() if v.dtype.kind == "f")
    assert np.isfinite(outputs(result, data.x[:BATCH])).all()
