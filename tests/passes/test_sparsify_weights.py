"""Unstructured pruning: exact counts, patterns, what stays is untouched, zero units compute what removed ones do."""

from __future__ import annotations

import json
import zlib
from itertools import pairwise
from math import floor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import PROPERTY, SIDE, Spec, build, specs

from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.layer_weights import LayerWeight, constant_value, layer_weights
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import save
from onnxprune.passes.sparsify_weights import SparsifyWeights, exact, prunable, smallest, unit_norms
from onnxprune.pipeline import analyze, apply, plan
from onnxprune.planning.constraints import Constraints

Array = npt.NDArray[Any]
MODELS = Path(__file__).parent.parent.parent / "models"
DIGITS = MODELS / "digits_cnn.onnx"
shares = st.sampled_from((0.0, 0.1, 0.25, 0.29, 0.5, 0.57, 0.9, 0.99))
line = CommandLine()
ok, fails = line.out, line.fails


def constants(model: Model) -> dict[str, Array]:
    """Every constant of a graph; those of Constant nodes by the name of the output."""
    found = {n: np.asarray(t.values) for n, t in model.graph.tensors().items() if isinstance(t, gs.Constant)}
    for node in model.graph.nodes:
        if node.op == "Constant" and "value" in node.attrs:
            found[node.outputs[0].name] = np.asarray(node.attrs["value"].values)
    return found


def graph_of(nodes: list[onnx.NodeProto], arrays: dict[str, Array], shape: list[Any]) -> Model:
    """A model from x to y whose element type is that of its arrays."""
    tensors = [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in arrays.items()]
    kind = next(t.data_type for t in tensors if t.data_type != TensorProto.INT64)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", kind, None)],
        tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return load(onnx.shape_inference.infer_shapes(proto))  # it sets the shape of y


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def mlp(*widths: int, seed: int = 0, dtype: Any = np.float32) -> Model:
    """Gemm, Relu, Gemm, ... with random weights [in, out]."""
    nodes: list[onnx.NodeProto] = []
    arrays: dict[str, Array] = {}
    x = "x"
    for i, (fan_in, fan_out) in enumerate(pairwise(widths), 1):
        last = i == len(widths) - 1
        arrays[f"w{i}"] = normal(fan_in, fan_out, seed=seed + i, dtype=dtype)
        arrays[f"b{i}"] = normal(fan_out, seed=seed + 100 + i, dtype=dtype)
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], ["y" if last else f"g{i}"], name=f"fc{i}"))
        if not last:
            x = f"h{i}"
            nodes.append(helper.make_node("Relu", [f"g{i}"], [x]))
    return graph_of(nodes, arrays, ["N", widths[0]])


def run(model: Model, x: Array) -> Array:
    return Session(model, threads=1).run({"x": x})[0]


def names(weights: list[LayerWeight]) -> list[str]:
    return [w.name for w in weights]


# ------------------------------------------------------------------------------------------------- which weights


def test_weights_of_the_models_that_ship() -> None:
    found = layer_weights(load(DIGITS).graph)
    assert len(found) == len({w.name for w in found}) == 13
    assert names([w for w in found if w.last]) == ["fc.weight"]
    assert all(w.units == w.values.shape[0] for w in found)  # Conv, and Gemm with transB
    keras = layer_weights(load(MODELS / "digits_keras.onnx").graph)
    assert [w.last for w in keras] == [False] * (len(keras) - 1) + [True]


def as_seen(node: gs.Node) -> Array | None:
    """A layer's weight as its definition in the ONNX specification has it, as [units, inputs, positions]."""
    values = [constant_value(t) for t in node.inputs[:2]]
    if (values[0] is None) == (values[1] is None):
        return None
    if values[1] is None:
        a = np.asarray(values[0])
        return (a.T if node.attrs.get("transA", 0) else a)[..., None]
    w = values[1]
    if node.op == "Conv":
        return w.reshape(*w.shape[:2], -1)
    if node.op == "ConvTranspose":
        groups = int(node.attrs.get("group", 1))
        parts = [part.reshape(*part.shape[:2], -1).swapaxes(0, 1) for part in np.split(w, groups)]
        return np.concatenate(parts)
    return (w if node.attrs.get("transB", 0) else w.T)[..., None]


@PROPERTY(max_examples=60)
@given(spec=specs(half=True))
def test_every_layer_is_found_and_its_rows_are_what_a_unit_computes_with(spec: Spec) -> None:
    model = load(build(spec))
    found = {u.node.outputs[0].name: w for w in layer_weights(model.graph) for u in w.uses}
    layers = [n for n in model.graph.nodes if n.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    wanted = {n.outputs[0].name: v for n in layers if (v := as_seen(n)) is not None}
    assert set(found) == set(wanted)
    for name, expected in wanted.items():
        weight = found[name]
        rows = weight.rows(weight.values)
        assert weight.units == len(expected)
        # Where a Transpose turns the kernel round, its places are in the stored order.
        assert np.array_equal(np.sort(rows.astype(expected.dtype)), np.sort(expected))
        assert np.array_equal(weight.stored(rows), weight.values)


def test_transposes_in_a_row() -> None:
    turns = [[2, 0, 3, 1], [1, 2, 0, 3]]  # in the other order they would do something else
    stored = normal(4, 3, 5, 2)
    seen = stored.transpose(turns[0]).transpose(turns[1])
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=turns[0]),
        helper.make_node("Transpose", ["t"], ["u"], perm=turns[1]),
        helper.make_node("Conv", ["x", "u"], ["y"]),
    ]
    model = graph_of(nodes, {"w": stored}, [1, seen.shape[1], 8, 8])
    (weight,) = prunable(model, include_last=True)
    assert np.array_equal(np.sort(weight.rows(stored)), np.sort(seen.reshape(*seen.shape[:2], -1)))
    y = run(SparsifyWeights(0.5, "unit", include_last=True)(model), normal(1, seen.shape[1], 8, 8))
    assert (y == 0).all((0, 2, 3)).sum() == seen.shape[0] // 2


@pytest.mark.parametrize(("trans", "shape"), [(0, (6, 4)), (1, (4, 6))])
def test_constant_on_the_left_of_a_product_is_a_weight(trans: int, shape: tuple[int, int]) -> None:
    """Y = A' X: a unit is a row of A'."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Gemm", ["w", "r"], ["y"], transA=trans)]
    model = graph_of(nodes, {"w": normal(*shape)}, [4, 3])
    (weight,) = prunable(model, include_last=True)
    w = weight.values
    assert np.array_equal(weight.rows(w)[..., 0], w.T if trans else w)
    y = run(SparsifyWeights(0.5, "unit", include_last=True)(model), normal(4, 3))
    assert (y == 0).all(1).sum() == 3


def test_heads_of_a_batched_product_share_their_units() -> None:
    model = graph_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(2, 5, 6)}, [2, 3, 5])
    (weight,) = prunable(model, include_last=True)
    assert np.array_equal(weight.rows(weight.values), weight.values.transpose(2, 1, 0))
    y = run(SparsifyWeights(0.5, "unit", include_last=True)(model), normal(2, 3, 5))
    assert (y == 0).all((0, 1)).sum() == 3


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_units_of_a_grouped_transposed_convolution_are_its_output_channels(groups: int) -> None:
    w = normal(8, 12 // groups, 3, 3)
    model = graph_of([helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=groups)], {"w": w}, [1, 8, 4, 4])
    energy = np.square(w).sum((2, 3)).reshape(groups, -1, 12 // groups).sum(1).reshape(-1)
    y = run(SparsifyWeights(0.5, "unit", include_last=True)(model), normal(1, 8, 4, 4))
    silent = np.flatnonzero((y == 0).all((0, 2, 3)))
    assert silent.tolist() == sorted(np.argsort(energy)[:6].tolist())


def test_last_layers_are_those_before_the_outputs() -> None:
    """Through Softmax, an addition and a Reshape; but a shape that is read is no way to an output."""
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "b"], ["p"]),
        helper.make_node("Gemm", ["r", "c"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["s"]),
        helper.make_node("Softmax", ["s"], ["t"]),
        helper.make_node("Shape", ["h"], ["size"]),
        helper.make_node("Slice", ["size", "zero", "one"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["t", "target"], ["y"]),
    ]
    integers = {"zero": np.array([0]), "one": np.array([1]), "rest": np.array([3, 2])}
    model = graph_of(nodes, {**{n: normal(6, 6) for n in "abc"}, **integers}, ["N", 6])
    assert [(w.name, w.last) for w in layer_weights(model.graph)] == [("a", False), ("b", True), ("c", True)]
    assert names(prunable(model)) == ["a"]
    assert names(prunable(model, include_last=True)) == ["a", "b", "c"]


def test_quantized_and_integer_weights_are_no_weights_but_layers() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"]),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["b"]),
        helper.make_node("MatMul", ["h", "b"], ["y"]),
    ]
    arrays = {"a": normal(4, 4), "q": np.ones((4, 2), np.int8), "scale": np.array(0.5, np.float32)}
    model = graph_of(nodes, arrays, ["N", 4])
    assert [(w.name, w.last) for w in layer_weights(model.graph)] == [("a", False)]


def test_patterns_exclude_by_the_name_of_the_weight_or_of_its_layer() -> None:
    model = load(MODELS / "digits_cnn_folded.onnx")
    whole = names(prunable(model))
    assert whole[0].startswith("onnx::Conv_")  # nobody wants to type that
    assert names(prunable(model, ["stem*"])) == whole[1:]
    assert names(prunable(model, [whole[0]])) == whole[1:]
    assert names(prunable(model, ["residual?.a*", whole[0]])) == [n for n in whole[1:] if n not in layers(model)]


def layers(model: Model) -> list[str]:
    return [
        w.name for w in layer_weights(model.graph) if "residual" in w.uses[0].node.name and "/a/" in w.uses[0].node.name
    ]


# ------------------------------------------------------------------------------------------------- single weights


@PROPERTY(max_examples=40)
@given(spec=specs(half=True), share=shares)
def test_exactly_the_smallest_of_each_weight_go_and_nothing_else_changes(spec: Spec, share: float) -> None:
    model = load(build(spec))
    try:
        chosen = set(names(prunable(model)))
    except OnnxPruneError:
        return  # a graph of last layers only
    before, pruned = constants(model), SparsifyWeights(share)(model)
    after = constants(pruned)
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype
        if name not in chosen:
            assert new.tobytes() == old.tobytes()
            continue
        gone = new != old
        assert np.count_nonzero(new == 0) >= floor(old.size * exact(share)) >= np.count_nonzero(gone)
        if (old != 0).all():  # float16 may round to zero
            assert np.count_nonzero(gone) == floor(old.size * exact(share))
        assert not new[gone].any()
        assert np.abs(old[gone], dtype=np.float64).max(initial=0) <= np.abs(old[~gone], dtype=np.float64).min()
    again = constants(SparsifyWeights(share)(pruned))
    assert all(np.array_equal(again[n], v) for n, v in after.items())


@PROPERTY(max_examples=8)
@given(spec=specs(half=True), method=st.sampled_from(["weight", "unit", "2:4"]))
def test_the_result_is_valid_and_runs(spec: Spec, method: str) -> None:
    model = load(build(spec))
    rule = SparsifyWeights(0.5, include_last=True, **({"pattern": method} if ":" in method else {"method": method}))
    pruned = rule(model)
    x = normal(2, 3, SIDE, SIDE, dtype=np.float16 if spec.half else np.float32)
    assert np.isfinite(run(pruned, x)).all()


@PROPERTY(max_examples=40)
@given(spec=specs(), share=shares)
def test_one_threshold_for_all(spec: Spec, share: float) -> None:
    model = load(build(spec))
    before = {w.name: w.values for w in prunable(model, include_last=True)}
    after = constants(SparsifyWeights(share, scope="global", include_last=True)(model))
    old = np.concatenate([v.reshape(-1) for v in before.values()])
    new = np.concatenate([after[n].reshape(-1) for n in before])
    gone = new != old
    assert np.count_nonzero(gone) == floor(old.size * exact(share))
    assert not new[gone].any()
    assert np.abs(old[gone]).max(initial=0) <= np.abs(old[~gone]).min()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types(dtype: Any) -> None:
    model = mlp(8, 30, 20, 5, dtype=dtype)
    before, after = constants(model), constants(SparsifyWeights(0.29)(model))
    for name in ("w1", "w2"):
        old, new = before[name], after[name]
        assert new.dtype == np.dtype(dtype)
        order = np.argsort(np.abs(old.astype(np.float64)), axis=None, kind="stable")
        count = floor(old.size * exact(0.29))
        assert (new.reshape(-1)[order[:count]] == 0).all()
        assert new.reshape(-1)[order[count:]].tobytes() == old.reshape(-1)[order[count:]].tobytes()


def test_types_that_are_mixed_compare_by_value() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "a"], ["h"]),
        helper.make_node("Cast", ["b"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["h", "wide"], ["y"]),
    ]
    arrays = {"a": np.full((2, 2), 0.3, np.float32), "b": np.array([[0.1, 0.2], [0.3, 0.4]])}
    model = graph_of(nodes, arrays, ["N", 2])
    after = constants(SparsifyWeights(0.5, scope="global", include_last=True)(model))
    # float32(0.3) is above 0.3
    assert after["a"].tolist() == [[0, np.float32(0.3)], [np.float32(0.3)] * 2]
    assert after["b"].tolist() == [[0, 0], [0, 0.4]]


def test_decimal_digits_are_taken_at_their_word() -> None:
    assert int(100 * 0.29) == 28
    assert floor(100 * exact(0.29)) == 29
    assert floor(1000 * exact(0.001)) == 1


def test_of_equal_weights_the_earlier_and_the_lower_go_first() -> None:
    keys = [np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.5, 1.0])]
    gone = [[m.tolist() for m in smallest(keys, n)] for n in (1, 2, 4, 5, 6)]
    no, yes = False, True
    assert gone == [
        [[no, no, no], [no, yes, no]],
        [[no, yes, no], [no, yes, no]],
        [[no, yes, yes], [yes, yes, no]],
        [[no, yes, yes], [yes, yes, yes]],
        [[yes, yes, yes], [yes, yes, yes]],
    ]


def test_a_weight_that_two_layers_share_is_pruned_once() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w"], ["s"], transB=1),
        helper.make_node("Gemm", ["s", "v"], ["y"]),
    ]
    model = graph_of(nodes, {"w": normal(6, 8), "v": normal(6, 2)}, ["N", 6])
    (weight,) = prunable(model)
    assert [u.node.outputs[0].name for u in weight.uses] == ["h", "s"]
    after = constants(SparsifyWeights(0.5)(model))
    assert np.count_nonzero(after["w"] == 0) == 24
    pattern = constants(SparsifyWeights(pattern="1:2")(model))["w"]  # units as the first layer has them: columns
    assert (np.count_nonzero(pattern.reshape(3, 2, 8), axis=1) == 1).all()


# ------------------------------------------------------------------------------------------------------- patterns


@PROPERTY(max_examples=40)
@given(spec=specs(), of=st.integers(1, 6), data=st.data())
def test_of_every_m_inputs_the_n_largest_stay(spec: Spec, of: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, of))
    model = load(build(spec))
    rule = SparsifyWeights(pattern=f"{kept}:{of}", include_last=True)
    pruned = rule(model)
    after = {w.name: w for w in prunable(pruned, include_last=True)}
    for w in prunable(model, include_last=True):
        old, new = w.rows(w.values), w.rows(after[w.name].values)
        whole = old.shape[1] // of * of
        assert np.array_equal(old[:, whole:], new[:, whole:])
        for start in range(0, whole, of):
            a, b = old[:, start : start + of], new[:, start : start + of]
            assert (np.count_nonzero(b, axis=1) == kept).all()
            assert np.array_equal(np.where(b != 0, a, 0), b)
            assert np.allclose(np.abs(b).sum(1), np.sort(np.abs(a), axis=1)[:, of - kept :].sum(1), rtol=1e-6)
    twice = constants(rule(pruned))
    assert all(np.array_equal(twice[n], v) for n, v in constants(pruned).items())


def test_pattern_counts_along_the_inputs_in_memory_order_too() -> None:
    w = np.array([[4, 3, 2, 1], [1, 1, 1, 1]], np.float32)  # [out, in]
    model = graph_of([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], {"w": w}, ["N", 4])
    after = constants(SparsifyWeights(pattern="2:4", include_last=True)(model))["w"]
    assert after.tolist() == [[4, 3, 0, 0], [0, 0, 1, 1]]


# ---------------------------------------------------------------------------------------------------------- units


def stripped(model: Model, share: float) -> Model:
    """The same share of every group, by l2, really removed."""
    analysis = analyze(model)
    constraints = Constraints(round_to=1, max_ratio=share)
    return apply(model, plan(score(analysis, "l2"), ratio=share, constraints=constraints), analysis=analysis)


def effect(model: Model, share: float, x: Array) -> float:
    """Assert that zero units compute the same as removed ones; return their relative difference from the original."""
    silent, small = SparsifyWeights(share, "unit")(model), stripped(model, share)
    wanted = run(small, x)
    assert np.abs(run(silent, x) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    return float(np.abs(run(model, x) - wanted).max() / np.abs(wanted).max())


@PROPERTY(max_examples=15)
@given(
    hidden=st.lists(st.integers(4, 40), min_size=1, max_size=3), seed=st.integers(0, 99),
    share=st.sampled_from((0.25, 0.5, 0.7, 0.9)),
)  # fmt: skip
def test_zero_units_of_a_network_compute_what_removed_ones_do(hidden: list[int], seed: int, share: float) -> None:
    effect(mlp(6, *hidden, 5, seed=seed), share, normal(7, 6, seed=seed))


def test_exactly_the_columns_of_smallest_norm_go_with_their_biases() -> None:
    model = mlp(8, 30, 20, 5)
    before, after = constants(model), constants(SparsifyWeights(0.29, "unit")(model))
    for w, b in (("w1", "b1"), ("w2", "b2")):
        norms = np.linalg.norm(before[w].astype(np.float64), axis=0)
        gone = np.argsort(norms, kind="stable")[: floor(len(norms) * exact(0.29))]
        keep = np.ones(len(norms), np.bool_)
        keep[gone] = False
        assert np.array_equal(after[w], before[w] * keep)
        assert np.array_equal(after[b], before[b] * keep)
    assert np.array_equal(after["w3"], before["w3"])
    assert np.array_equal(after["b3"], before["b3"])


def test_units_of_all_layers_together_are_compared_per_weight() -> None:
    """Norms grow with the number of inputs: by them the narrow layer alone would go."""
    model = mlp(4, 60, 60, 3)
    before = constants(model)
    size = {w: np.sqrt(np.square(before[w].astype(np.float64)).mean(0)) for w in ("w1", "w2")}
    cut = np.sort(np.concatenate(list(size.values())))[36 - 1]
    after = constants(SparsifyWeights(0.3, "unit", "global")(model))
    gone = {w: ~after[w].any(0) for w in size}
    assert sum(g.sum() for g in gone.values()) == 36
    assert all(np.array_equal(gone[w], size[w] <= cut) for w in size)


def _after(kind: str) -> tuple[list[onnx.NodeProto], dict[str, Array]]:
    """Layers x [N, 3, 6, 6] -> c [N, 8, 6, 6] whose channels all emit something of their own."""
    conv = {"w": normal(8, 3, 3, 3)}
    pads = {"pads": [1, 1, 1, 1]}
    bias = normal(8, seed=1)
    if kind == "bias":
        return [helper.make_node("Conv", ["x", "w", "b"], ["c"], **pads)], {**conv, "b": bias}
    if kind == "shared bias":  # exporters store equal vectors once
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c0"], **pads), helper.make_node("Relu", ["c0"], ["r0"]),
                 helper.make_node("Conv", ["r0", "w2", "b"], ["c"], **pads)]  # fmt: skip
        return nodes, {**conv, "w2": normal(8, 8, 3, 3, seed=2), "b": bias}
    if kind == "constant node":
        tensor = numpy_helper.from_array(bias)
        nodes = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Identity", ["k"], ["b"]),
                 helper.make_node("Conv", ["x", "w", "b"], ["c"], **pads)]  # fmt: skip
        return nodes, conv
    if kind == "batchnorm":
        names = ["s", "b", "m", "v"]
        nodes = [helper.make_node("Conv", ["x", "w"], ["c0"], **pads),
                 helper.make_node("BatchNormalization", ["c0", *names], ["c"])]  # fmt: skip
        stats = {n: np.abs(normal(8, seed=i)) + 0.5 for i, n in enumerate(names)}
        return nodes, {**conv, **stats}
    if kind == "scale and shift":
        nodes = [helper.make_node("Conv", ["x", "w"], ["c0"], **pads), helper.make_node("Mul", ["k", "c0"], ["c1"]),
                 helper.make_node("Sub", ["b", "c1"], ["c"])]  # fmt: skip
        return nodes, {**conv, "k": normal(8, 1, 1, seed=3), "b": bias.reshape(1, 8, 1, 1)}
    if kind == "quotient":
        nodes = [helper.make_node("Conv", ["x", "w"], ["c0"], **pads), helper.make_node("Div", ["c0", "k"], ["c1"]),
                 helper.make_node("Add", ["c1", "b"], ["c"])]  # fmt: skip
        return nodes, {**conv, "k": normal(8, 1, 1, seed=3), "b": bias.reshape(8, 1, 1)}
    assert kind == "one number"
    nodes = [helper.make_node("Conv", ["x", "w"], ["c0"], **pads), helper.make_node("Add", ["c0", "b"], ["c"])]
    return nodes, {**conv, "b": np.array(0.7, np.float32)}


@pytest.mark.parametrize(
    "kind", ["bias", "shared bias", "constant node", "batchnorm", "scale and shift", "quotient", "one number"]
)
def test_zero_filters_emit_zero_whatever_is_added_to_them(kind: str) -> None:
    nodes, arrays = _after(kind)
    nodes += [
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "fb"], ["y"]),
    ]
    model = graph_of(nodes, {**arrays, "fc": normal(8, 4, seed=5), "fb": normal(4, seed=6)}, ["N", 3, 6, 6])
    assert effect(model, 0.5, normal(3, 3, 6, 6, seed=7)) > 1e-3


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1,), ()])
def test_bias_of_a_product_is_an_addition(shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["b", "m"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "v"], ["y"]),
    ]
    bias = np.abs(normal(*shape, seed=3)) if shape else np.array(0.4, np.float32)
    model = graph_of(nodes, {"w": normal(5, 12), "b": bias, "v": normal(12, 3)}, ["N", 5])
    assert effect(model, 0.5, normal(4, 5)) > 1e-3


@pytest.mark.parametrize("shape", [(12,), (1, 12), (1,), (4, 12)])
def test_bias_of_a_gemm_broadcasts(shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"], alpha=0.5, beta=2.0),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"]),
    ]
    arrays = {"w": normal(5, 12), "b": np.abs(normal(*shape, seed=3)), "v": normal(12, 3)}
    assert effect(graph_of(nodes, arrays, [4, 5]), 0.5, normal(4, 5)) > 1e-3


def test_a_shared_weight_read_in_two_directions_has_the_units_of_the_first() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "c"], ["s"], transB=1),
        helper.make_node("Gemm", ["s", "v"], ["y"]),
    ]
    arrays = {"w": normal(8, 8), "b": normal(8, seed=1), "c": normal(8, seed=2), "v": normal(8, 2)}
    after = constants(SparsifyWeights(0.5, "unit")(graph_of(nodes, arrays, ["N", 8])))
    assert (after["w"] == 0).all(0).sum() == 4
    assert np.array_equal(after["b"] == 0, (after["w"] == 0).all(0))
    assert np.array_equal(after["c"], arrays["c"])


def test_a_bias_that_others_read_stays_theirs() -> None:
    nodes, arrays = _after("shared bias")
    model = graph_of([*nodes, helper.make_node("Relu", ["c"], ["y"])], arrays, [2, 3, 6, 6])
    pruned = SparsifyWeights(0.5, "unit")(model)  # the second convolution is the last layer
    by_name = {n.outputs[0].name: n for n in pruned.graph.nodes}
    assert np.array_equal(by_name["c"].inputs[2].values, arrays["b"])
    assert np.count_nonzero(by_name["c0"].inputs[2].values == 0) == 4
    assert np.array_equal(constants(model)["b"], arrays["b"])


def test_a_residual_addition_is_no_bias() -> None:
    """Values that another layer adds to a zero unit are kept."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["a"]),
        helper.make_node("Add", ["a", "x"], ["s"]),
        helper.make_node("Relu", ["s"], ["y"]),
    ]
    arrays = {"w": normal(6, 6), "b": normal(6, seed=1)}
    model = graph_of(nodes, arrays, ["N", 6])
    x = normal(5, 6, seed=2)
    y = run(SparsifyWeights(0.5, "unit", include_last=True)(model), x)
    gone = np.argsort(unit_norms(prunable(model, include_last=True)[0]), kind="stable")[:3]
    assert np.array_equal(y[:, gone], np.maximum(x[:, gone], 0))


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": 1.0}, "in [0, 1)"),
        ({"sparsity": -0.1}, "in [0, 1)"),
        ({"sparsity": float("nan")}, "in [0, 1)"),
        ({"method": "units"}, "did you mean 'unit'"),
        ({"scope": "locally"}, "unknown scope"),
        ({"pattern": "2"}, "not '2'"),
        ({"pattern": "0:4"}, "not '0:4'"),
        ({"pattern": "5:4"}, "for example 2:4"),
        ({"pattern": "2:4", "method": "unit"}, "not for units"),
        ({"exclude": ("w9",)}, "known: w1, w2, w3"),
        ({"exclude": ("w*",)}, "no weight is left"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OnnxPruneError) as caught:
        SparsifyWeights(**options)(mlp(4, 5, 6, 2))
    assert says in str(caught.value)


def test_a_single_layer_says_how_to_prune_it_all_the_same() -> None:
    with pytest.raises(OnnxPruneError, match="--include-last"):
        SparsifyWeights()(mlp(4, 2))
    relu = graph_of([helper.make_node("Add", ["x", "b"], ["y"])], {"b": normal(4)}, ["N", 4])
    with pytest.raises(OnnxPruneError, match="no weights of Conv"):
        SparsifyWeights()(relu)


@pytest.mark.parametrize("options", [{}, {"scope": "global"}, {"method": "unit"}, {"pattern": "2:4"}])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_nan_is_refused_by_name(options: dict[str, Any], dtype: Any) -> None:
    model = mlp(4, 8, 8, 2, dtype=dtype)
    w = model.graph.tensors()["w2"]
    w.values = np.array(w.values)
    w.values[3, 3] = np.nan
    with pytest.raises(OnnxPruneError, match="w2"):
        SparsifyWeights(**options)(model)


def test_a_bias_that_is_computed_is_refused() -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["b"], axes=[0], keepdims=0),
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="first"),
        helper.make_node("Gemm", ["g", "v"], ["y"]),
    ]
    model = graph_of(nodes, {"w": normal(4, 4), "v": normal(4, 2)}, ["N", 4])
    with pytest.raises(OnnxPruneError, match="first"):
        SparsifyWeights(0.5, "unit")(model)
    assert np.count_nonzero(constants(SparsifyWeights(0.5)(model))["w"]) == 8


# ----------------------------------------------------------------------------------------------- what it costs to keep


def test_compressed_size_is_that_of_the_file(tmp_path: Path) -> None:
    model = SparsifyWeights(0.9)(load(DIGITS))
    whole = save(model, tmp_path / "z.onnx").read_bytes()
    assert compressed_size(model) == len(zlib.compress(whole, 6)) < compressed_size(load(DIGITS)) / 3


def test_parameters_are_counted_as_cost_counts_them_less_the_zeros() -> None:
    model = load(DIGITS)
    zeros = sum(int((v == 0).sum()) for n, v in constants(model).items() if v.dtype.kind == "f" and "running" not in n)
    assert nonzero_parameters(model) == CostModel(analyze(model)).baseline.params - zeros
    w = sum(w.values.size for w in prunable(model))
    before = sum(int(np.count_nonzero(w.values)) for w in prunable(model))
    left = sum(int(np.count_nonzero(w.values)) for w in prunable(SparsifyWeights(0.75)(model)))
    assert nonzero_parameters(SparsifyWeights(0.75)(model)) == nonzero_parameters(model) - before + left
    assert left == pytest.approx(0.25 * w, abs=len(prunable(model)))


# --------------------------------------------------------------------------------------------------- command line


def test_sparsify_writes_what_it_says(tmp_path: Path) -> None:
    out = tmp_path / "z.onnx"
    told = json.loads(ok("sparsify", DIGITS, "-o", out, "--sparsity", 0.9, "--exclude", "stem*", "--json"))
    found = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(out)).graph.initializer}
    assert len(told["weights"]) == 13
    for w in told["weights"]:
        values = found[w["name"]]
        assert w["shape"] == list(values.shape)
        assert w["zeros"] == np.count_nonzero(values == 0)
        assert w["pruned"] == (w["name"] not in ("stem.conv.weight", "fc.weight"))
        assert not w["pruned"] or w["zeros"] == floor(values.size * exact(0.9))
    pruned = [w for w in told["weights"] if w["pruned"]]
    assert told["sparsity"] == sum(w["zeros"] for w in pruned) / sum(w["elements"] for w in pruned)
    assert told["compressed_bytes"]["after"] == len(zlib.compress(out.read_bytes(), 6))
    assert told["params"]["after"] < 0.25 * told["params"]["before"]
    props = {p.key: p.value for p in onnx.load(str(out)).metadata_props}
    assert props["onnxprune.source"] == load(DIGITS).fingerprint
    assert props["onnxprune.sparsify_weights"] == "method=weight sparsity=0.9 scope=layer"


def test_sparsify_tells_the_same_in_a_table(tmp_path: Path) -> None:
    text = ok("sparsify", DIGITS, "-o", tmp_path / "z.onnx", "--pattern", "1:4", "--include-last")
    assert "(whole)" not in text
    assert "75.0 %" in text
    text = ok("sparsify", DIGITS, "-o", tmp_path / "z.onnx", "--sparsity", 0.5, "--what", "unit", "--scope", "global")
    assert text.count("(whole)") == 1
    assert all(len(row) <= 80 for row in text.splitlines() if str(tmp_path) not in row)


def test_sparsify_external_data(tmp_path: Path) -> None:
    ok("sparsify", DIGITS, "-o", tmp_path / "z.onnx", "--sparsity", 0.5, "--external-data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["z.onnx", "z.onnx.data"]


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([], 2, "--sparsity or --pattern"),
        (["--sparsity", 0.5, "--pattern", "2:4"], 2, "--sparsity or --pattern"),
        (["--pattern", "2:4", "--scope", "layer"], 2, "leave out --scope"),
        (["--sparsity", 1], 1, "in [0, 1)"),
        (["--sparsity", 0.5, "--exclude", "stme*"], 1, "unknown weight"),
        (["--pattern", "2:4", "--what", "unit"], 1, "not for units"),
    ],
)
def test_sparsify_refuses(args: list[object], code: int, says: str, tmp_path: Path) -> None:
    assert says in fails("sparsify", DIGITS, "-o", tmp_path / "z.onnx", *args, code=code)
    assert list(tmp_path.iterdir()) == []


def test_sparsify_does_not_overwrite_its_input(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(DIGITS.read_bytes())
    assert "is the input file" in fails("sparsify", source, "-o", source, "--sparsity", 0.5)
    assert source.read_bytes() == DIGITS.read_bytes()
