"""`lrp`: against golden arrays end to end, each operator's rule against a formula, and what is conserved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import BLOCKS, Spec, build

import onnxprune as op
from onnxprune.analysis.feature_maps import feature_sites
from onnxprune.criteria import get
from onnxprune.criteria.base import ScoringContext
from onnxprune.criteria.lrp import raw_scores, share_of_relevance
from onnxprune.criteria.model_runs import torch_runs
from onnxprune.criteria.model_runs.relevance import Relevance
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import cross_entropy
from onnxprune.ir.reader import load
from onnxprune.torch_bridge import to_torch

HERE = Path(__file__).parent.parent
MODELS = HERE.parent / "models"
CASES = ("s8", "s32")
RUNS = ("one_batch", "two_batches")
LAYERS = ("conv1", "conv2")
TOLERANCE = 1e-5  # of the golden arrays

Array = NDArray[Any]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same numbers, whichever ran before."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------------- goldens


@cache
def golden(case: str) -> dict[str, Array]:
    with np.load(HERE / "goldens" / "lrp.npz", allow_pickle=False) as file:
        return {key.removeprefix(f"{case}/"): file[key] for key in file.files if key.startswith(f"{case}/")}


@cache
def tiny(case: str) -> op.Analysis:
    return op.analyze(load(HERE / "goldens" / f"tiny_{case}.onnx"))


def calibration_of(case: str, run: str) -> Calibration:
    data = golden(case)
    batch = int(data["batch_split"]) if run == "two_batches" else 12
    return Calibration(Data(data["x"], data["labels"], "golden"), batch=batch)


def raw_of(analysis: op.Analysis, calibration: Calibration) -> dict[str, Array]:
    """Raw relevance by the name of the tensor."""
    sites = feature_sites(analysis, analysis.groups, "linear")
    raw = raw_scores(ScoringContext(analysis, analysis.groups, calibration), sites)
    return {site.tensor: values for site, values in zip(sites, raw, strict=True)}


def lowest(scores: Array, count: int) -> Array:
    return np.sort(np.argsort(scores, kind="stable")[:count])


@pytest.mark.parametrize("case", CASES)
def test_every_golden_array_is_asserted(case: str) -> None:
    inputs = r"(conv[12]|fc[12])_(weight|bias)|x|labels|batch_split|loss"
    asserted = r"(one_batch|two_batches)/((raw|score|removed_(25|50|75))_conv[12]|global_lowest)"
    data = golden(case)
    assert [k for k in data if not re.fullmatch(f"{inputs}|{asserted}", k)] == []
    model = onnx.load(HERE / "goldens" / f"tiny_{case}.onnx")
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), data[tensor.name])
    logits = Session(tiny(case).model).run({"x": data["x"]})[0]
    np.testing.assert_allclose(cross_entropy(logits, data["labels"]).mean(), data["loss"], atol=TOLERANCE)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_golden_scores_end_to_end(case: str, run: str) -> None:
    data, calibration = golden(case), calibration_of(case, run)
    scores = score(tiny(case), "lrp", calibration=calibration)
    assert scores.normalize == "none"
    found = [scores.groups[f"{layer}_weight"] for layer in LAYERS]
    for layer, mine in zip(LAYERS, found, strict=True):
        np.testing.assert_allclose(mine, data[f"{run}/score_{layer}"], atol=TOLERANCE)
        for percent in (25, 50, 75):
            expected = data[f"{run}/removed_{percent}_{layer}"]
            np.testing.assert_array_equal(lowest(mine, len(mine) * percent // 100), expected)
    order = np.argsort(np.concatenate(found), kind="stable")[: len(data[f"{run}/global_lowest"])]
    first = len(found[0])
    mine = np.stack([order >= first, np.where(order >= first, order - first, order)], 1)
    np.testing.assert_array_equal(mine, data[f"{run}/global_lowest"])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_golden_raw_scores(case: str, run: str) -> None:
    data = golden(case)
    raw = raw_of(tiny(case), calibration_of(case, run))
    for tensor, layer in (("c1", "conv1"), ("c2", "conv2")):
        np.testing.assert_allclose(raw[tensor], data[f"{run}/raw_{layer}"], atol=TOLERANCE)
        np.testing.assert_allclose(share_of_relevance(raw[tensor]), data[f"{run}/score_{layer}"], atol=TOLERANCE)
        np.testing.assert_allclose(raw[tensor].sum(), 12, rtol=1e-5)


def test_share_of_relevance() -> None:
    np.testing.assert_allclose(share_of_relevance(np.array([3.0, 1.0, 0.0])), [0.75, 0.25, 0])
    np.testing.assert_allclose(share_of_relevance(np.array([1.0, -3.0])), [0.25, -0.75])  # the order stays
    np.testing.assert_allclose(share_of_relevance(np.zeros(4)), [0.25] * 4)


# ---------------------------------------------------------------------------------------------------- the rules


def node(kind: str, inputs: str, output: str, **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), **attrs)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Array],
    shape: Sequence[int | str],
    kind: int = TensorProto.FLOAT,
) -> op.Model:
    """A model of one input x and one output y."""
    graph = helper.make_graph(
        list(nodes), "test", [helper.make_tensor_value_info("x", kind, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return load(onnx.shape_inference.infer_shapes(proto))


def relevance(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], x: Array, r: Array, of: str
) -> list[Array]:
    """Relevance of tensors (names with spaces between) where that of the output y is r."""
    model = model_of(nodes, constants, x.shape)
    run = Relevance(to_torch(model, outputs=["y", *of.split()]).eval())
    return [found.numpy() for found in run(torch.from_numpy(x), lambda y: torch.from_numpy(r).reshape(y.shape))]


def z_plus(x: Array, w: Array, r: Array) -> Array:
    """The definition in loops: each output's relevance to the inputs, in proportion to positive products x_i w_ij."""
    out = np.zeros_like(x, np.float64)
    for n in range(len(x)):
        for j in range(w.shape[1]):
            gains = np.array([max(float(x[n, i]) * float(w[i, j]), 0.0) for i in range(len(w))])
            if gains.sum() > 0:
                out[n] += gains / gains.sum() * r[n, j]
    return out


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["MatMul", "MatMul left", "Gemm", "Gemm transB", "Einsum", "Conv"])
def test_weights_share_by_positive_products(kind: str, signed: bool) -> None:
    x, w, b, r = floats(3, 5), floats(5, 4), floats(4), np.abs(floats(3, 4))
    x = x if signed else np.abs(x)
    expected = z_plus(x, w, r)
    start = [node("Identity", "x", "a0"), node("Neg", "a0", "a1"), node("Neg", "a1", "a")]
    if kind == "Conv":
        nodes = [*start, node("Unsqueeze", "a axis", "u"), node("Conv", "u w b", "y")]
        weights = {"w": w.T[..., None].copy(), "b": b, "axis": np.array([2])}
    elif kind == "MatMul left":
        nodes = [*start, node("Transpose", "a", "t", perm=[1, 0]), node("MatMul", "w t", "p"),
                 node("Transpose", "p", "y", perm=[1, 0])]  # fmt: skip
        weights = {"w": w.T.copy()}
    elif kind == "Einsum":
        nodes, weights = [*start, node("Einsum", "a w", "y", equation="ni,ij->nj")], {"w": w}
    elif kind == "MatMul":
        nodes, weights = [*start, node("MatMul", "a w", "p"), node("Add", "p b", "y")], {"w": w, "b": b}
    elif kind == "Gemm":
        nodes, weights = [*start, node("Gemm", "a w b", "y", beta=0.5)], {"w": w, "b": b}
    else:
        nodes, weights = [*start, node("Gemm", "a w b", "y", transB=1)], {"w": w.T.copy(), "b": b}
    (found,) = relevance(nodes, weights, x, r, "a")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if not signed:  # the formula of the definition
        v = np.maximum(w, 0)
        np.testing.assert_allclose(found, x * ((r / (x @ v + 1e-9)) @ v.T), rtol=1e-4)


def test_convolution_with_stride_padding_and_groups() -> None:
    """Against its own matrix: the responses to unit inputs."""
    x, w, r = floats(1, 4, 5, 5), floats(6, 2, 3, 3), np.abs(floats(1, 6, 3, 2))
    settings = {"group": 2, "strides": [2, 2], "pads": [1, 0, 1, 1], "kernel_shape": [3, 3]}
    units = np.eye(100, dtype=np.float32).reshape(100, 4, 5, 5)
    matrix = Session(model_of([node("Conv", "x w", "y", **settings)], {"w": w}, ("n", 4, 5, 5))).run({"x": units})[0]
    nodes = [node("Neg", "x", "a1"), node("Neg", "a1", "a"), node("Conv", "a w b", "y", **settings)]
    (found,) = relevance(nodes, {"w": w, "b": floats(6)}, x, r, "a")
    expected = z_plus(x.reshape(1, -1), matrix.reshape(100, -1), r.reshape(1, -1))
    np.testing.assert_allclose(found.reshape(1, -1), expected, atol=1e-5)


def test_functions_normalisations_and_constants_pass_it_on() -> None:
    x, r = floats(2, 3, 4, 4), np.abs(floats(2, 3, 4, 4))
    nodes = [
        node("Neg", "x", "a"), node("Sigmoid", "a", "b"), node("Mul", "b c", "d"), node("Sub", "c d", "e"),
        node("BatchNormalization", "e s s m v", "f"), node("Clip", "f", "g"), node("Div", "g c", "h"),
        node("Softmax", "h", "i"), node("Pow", "i two", "j"), node("Max", "j c", "k"), node("Add", "k c", "y"),
    ]  # fmt: skip
    constants = {
        "c": floats(3, 1, 1), "s": floats(3), "m": floats(3), "v": np.abs(floats(3)), "two": np.array([2], np.float32),
    }  # fmt: skip
    (found,) = relevance(nodes, constants, x, r, "a")
    np.testing.assert_array_equal(found, r)


def test_what_moves_takes_it_along() -> None:
    nodes = [
        node("Neg", "x", "a"), node("Reshape", "a shape", "b"), node("Transpose", "b", "c", perm=[0, 2, 1]),
        node("Split", "c", "d e", axis=1), node("Pad", "e pads", "f"), node("Concat", "d f", "y", axis=2),
    ]  # fmt: skip
    constants = {"shape": np.array([2, 3, 4]), "pads": np.array([0, 0, 1, 0, 0, 0])}
    r = np.abs(floats(2, 2, 7))
    (found,) = relevance(nodes, constants, floats(2, 12), r, "a")
    expected = np.concatenate([r[:, :, :3], r[:, :, 4:]], 1).transpose(0, 2, 1)  # the padding's share is lost
    np.testing.assert_array_equal(found, expected.reshape(2, 12))


def test_maximum_takes_all() -> None:
    x, r = floats(2, 3, 4, 4), np.abs(floats(2, 3, 2, 2))
    nodes = [node("Neg", "x", "a"), node("MaxPool", "a", "y", kernel_shape=[2, 2], strides=[2, 2])]
    (found,) = relevance(nodes, {}, x, r, "a")
    windows = -x.reshape(2, 3, 2, 2, 2, 2)
    expected = np.where(windows == windows.max((3, 5), keepdims=True), r[:, :, :, None, :, None], 0)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("kind", ["Add", "Sub", "Sum"])
def test_additions_share_by_the_sign_of_the_sum(kind: str) -> None:
    x, c, r = floats(2, 6), floats(6), np.abs(floats(2, 6))
    nodes = [node("Neg", "x", "a"), node("Mul", "a c", "b"), node(kind, "a b", "y")]
    (found,) = relevance(nodes, {"c": c}, x, r, "b")
    a, b = -x, -x * c
    parts = np.stack([a, -b if kind == "Sub" else b])
    same = np.where(np.sign(parts) == np.sign(parts.sum(0)), np.abs(parts), 0)
    np.testing.assert_allclose(found, same[1] / same.sum(0) * r, rtol=1e-4)


@pytest.mark.parametrize("kind", ["GlobalAveragePool", "ReduceMean", "ReduceSum", "AveragePool", "Resize"])
def test_averages_share_by_the_sign_of_the_sum(kind: str) -> None:
    x = floats(3, 2, 4, 4)
    x[0] = np.abs(x[0])
    x[1] = -np.abs(x[1])
    operands, attrs, constants = {
        "GlobalAveragePool": ("a", {}, {}),
        "ReduceMean": ("a", {"axes": [2, 3]}, {}),
        "ReduceSum": ("a axes", {}, {"axes": np.array([2, 3])}),
        "AveragePool": ("a", {"kernel_shape": [4, 4]}, {}),
        "Resize": ("a   sizes", {"mode": "linear"}, {"sizes": np.array([3, 2, 1, 1])}),
    }[kind]
    r = np.abs(floats(3, 2, 1, 1))
    split = [node("Neg", "x", "b"), node("Neg", "b", "a")]
    last = helper.make_node(kind, operands.split(" "), ["y"], **attrs)
    (found,) = relevance([*split, last], constants, x, r, "a")
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum((2, 3), keepdims=True), r, rtol=1e-4)
    if kind != "Resize":  # all elements count alike
        part = np.where(np.sign(x) == np.sign(x.sum((2, 3), keepdims=True)), np.abs(x), 0)
        np.testing.assert_allclose(found, part / part.sum((2, 3), keepdims=True) * r, rtol=1e-4)


def test_gates_get_nothing() -> None:
    x, r = floats(2, 3, 4, 4), np.abs(floats(2, 3, 4, 4))
    squeeze_excite = [
        node("Neg", "x", "a"), node("GlobalAveragePool", "a", "g"), node("Conv", "g w", "s"), node("Relu", "s", "t"),
        node("Mul", "t a", "y"),
    ]  # fmt: skip
    found, gate = relevance(squeeze_excite, {"w": floats(3, 3, 1, 1)}, x, r, "a s")
    np.testing.assert_array_equal(found, r)
    assert not gate.any()
    swish = [node("Neg", "x", "a"), node("Add", "a c", "b"), node("Sigmoid", "b", "g"), node("Mul", "g a", "y")]
    found, gate = relevance(swish, {"c": floats(1)}, x, r, "a b")
    np.testing.assert_array_equal(found, r)
    assert not gate.any()
    halves = [node("Split", "x", "a b", axis=2), node("Sigmoid", "b", "g"), node("Mul", "a g", "y")]
    signal, gate = relevance(halves, {}, x, r[:, :, :2], "a b")
    np.testing.assert_array_equal(signal, r[:, :, :2])
    assert not gate.any()
    broadcast = [node("Split", "x", "a b", axis=2), node("ReduceMax", "b", "g", axes=[1]), node("Mul", "g a", "y")]
    signal, gate = relevance(broadcast, {}, x, r[:, :, :2], "a b")
    np.testing.assert_array_equal(signal, r[:, :, :2])
    assert not gate.any()
    alike = [node("Split", "x", "a b", axis=2), node("Mul", "a b", "y")]
    for half in relevance(alike, {}, x, r[:, :, :2], "a b"):
        np.testing.assert_array_equal(half, r[:, :, :2] / 2)
    (square,) = relevance([node("Neg", "x", "a"), node("Mul", "a a", "y")], {}, x, r, "a")
    np.testing.assert_array_equal(square, r)
    quotient, below = relevance([node("Split", "x", "a b", axis=2), node("Div", "a b", "y")], {}, x, r[:, :, :2], "a b")
    np.testing.assert_array_equal(quotient, r[:, :, :2])
    assert not below.any()


def test_products_of_activations_share_by_the_sign_of_the_sum() -> None:
    x, r = floats(2, 6, 3), np.abs(floats(2, 3, 3))
    nodes = [node("Split", "x", "a b", axis=1), node("MatMul", "a b", "y")]
    left, right = relevance(nodes, {}, x, r, "a b")
    a, b = x[:, :3], x[:, 3:]
    products = a[:, :, :, None] * b[:, None]  # [n, i, k, j]
    same = np.where(np.sign(products) == np.sign(products.sum(2, keepdims=True)), np.abs(products), 0)
    shares = same / same.sum(2, keepdims=True) * r[:, :, None] / 2
    np.testing.assert_allclose(left, shares.sum(3), rtol=1e-4)
    np.testing.assert_allclose(right, shares.sum(1), rtol=1e-4)


def test_other_operators_share_by_input_times_gradient() -> None:
    x, r = floats(2, 5), np.abs(floats(2))
    (found,) = relevance([node("Neg", "x", "a"), node("ReduceL2", "a", "y", axes=[1], keepdims=0)], {}, x, r, "a")
    np.testing.assert_allclose(found, x**2 / (x**2).sum(1, keepdims=True) * r[:, None], rtol=1e-4)


def test_several_readers_add_up_and_shapes_carry_none() -> None:
    x, r = floats(2, 6), np.abs(floats(2, 18))
    nodes = [
        node("Neg", "x", "a"), node("Relu", "a", "b"), node("Shape", "a", "s"), node("Reshape", "a s", "c"),
        node("Concat", "a b c", "y", axis=1),
    ]  # fmt: skip
    (found,) = relevance(nodes, {}, x, r, "a")
    np.testing.assert_allclose(found, r[:, :6] + r[:, 6:12] + r[:, 12:], rtol=1e-6)


# ------------------------------------------------------------------------------------------------------- networks


def digits(images: int = 60, *, last: bool = False) -> Data:
    data = load_data("digits:train", images=images)
    return Data(data.x.transpose(0, 2, 3, 1), data.y, "digits, channels last") if last else data


def test_a_network_of_relus_without_bias_conserves_relevance() -> None:
    """Through convolutions, a residual addition, both kinds of pooling and a dense layer, whatever the weights."""
    nodes = [
        node("Conv", "x w1", "c1", pads=[1] * 4), node("Relu", "c1", "r1"), node("MaxPool", "r1", "p1",
        kernel_shape=[2, 2], strides=[2, 2]), node("Conv", "p1 w2", "c2", pads=[1] * 4), node("Relu", "c2", "r2"),
        node("Conv", "r2 w3", "c3", pads=[1] * 4), node("Add", "c3 p1", "s"), node("Relu", "s", "r3"),
        node("Conv", "r3 w4", "c4", pads=[1] * 4), node("Relu", "c4", "r4"), node("GlobalAveragePool", "r4", "g"),
        node("Flatten", "g", "f"), node("Gemm", "f w5", "y"),
    ]  # fmt: skip
    weights = {
        "w1": floats(16, 3, 3, 3), "w2": floats(16, 16, 3, 3), "w3": floats(16, 16, 3, 3) / 20,
        "w4": floats(16, 16, 3, 3), "w5": floats(16, 4),
    }  # fmt: skip
    analysis = op.analyze(model_of(nodes, weights, ("n", 3, 8, 8)))
    calibration = Calibration(Data(floats(9, 3, 8, 8), np.arange(9) % 4, "noise"), batch=4)
    raw = raw_of(analysis, calibration)
    assert set(raw) == {"c1", "c2", "c3", "c4"}
    for whole in ("c1", "c4"):
        np.testing.assert_allclose(raw[whole].sum(), 9, rtol=1e-4)
    assert 1 < raw["c3"].sum() < 8  # the shortcut carries the rest
    np.testing.assert_allclose(raw["c2"].sum(), raw["c3"].sum(), rtol=1e-4)
    assert all((values >= 0).all() for values in raw.values())


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_relevance_is_never_negative_and_never_made(block: str) -> None:
    analysis = op.analyze(load(build(Spec((block, "conv"), seed=1, opset=21))))
    shape = analysis.model.graph.inputs[0].shape[1:]
    calibration = Calibration(Data(floats(4, *shape), np.arange(4) % 3, "noise"))
    raw = raw_of(analysis, calibration)
    for values in raw.values():
        assert (values >= 0).all()
        assert values.sum() <= 4 * (1 + 1e-4)
    assert max(values.sum() for values in raw.values()) > 0.99  # and it does arrive
    for scores in score(analysis, "lrp", calibration=calibration).groups.values():
        assert np.isfinite(scores).all()


def test_kept_and_folded_batchnorm_score_alike() -> None:
    found = []
    for file in ("digits_cnn", "digits_cnn_folded"):
        analysis = op.analyze(load(MODELS / f"{file}.onnx"))
        found.append(score(analysis, "lrp", calibration=Calibration(digits())).groups)
    assert list(found[0]) == list(found[1])
    for group, mine in found[0].items():
        np.testing.assert_allclose(mine, found[1][group], atol=TOLERANCE)
        assert np.ptp(mine) > 0.01


def test_keras_model_that_ends_in_softmax() -> None:
    analysis = op.analyze(load(MODELS / "digits_keras.onnx"))
    scores = score(analysis, "lrp", calibration=Calibration(digits(last=True)))
    assert len(scores.groups) == 5
    for mine in scores.groups.values():
        np.testing.assert_allclose(mine.sum(), 1, rtol=1e-6)
        assert (mine >= 0).all()
        assert np.ptp(mine) > 0.01


def test_batches_and_parts_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = op.analyze(load(MODELS / "digits_cnn.onnx"))
    whole = raw_of(analysis, Calibration(digits(), batch=60))
    parted = raw_of(analysis, Calibration(digits(), batch=7))
    monkeypatch.setitem(torch_runs._MEMORY, "cpu", 2**20)
    in_parts = raw_of(analysis, Calibration(digits(), batch=60))
    for tensor, values in whole.items():
        np.testing.assert_allclose(parted[tensor], values, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(in_parts[tensor], values, rtol=1e-4, atol=1e-6)


def test_fixed_batch_leaves_the_copies_out() -> None:
    fixed, free = (op.analyze(load(build(Spec(("residual",), dynamic=d)))) for d in (False, True))
    shape = fixed.model.graph.inputs[0].shape
    count = int(shape[0]) + 1  # so that a second batch is filled up
    data = Data(floats(count, *shape[1:]), np.arange(count) % 3, "noise")
    mine, other = (raw_of(a, Calibration(data)) for a in (fixed, free))
    for tensor in other:
        np.testing.assert_allclose(mine[tensor], other[tensor], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["lrp", "taylor", "gradient"])
def test_tokens_as_input(name: str) -> None:
    nodes = [
        node("Gather", "table x", "e"), node("MatMul", "e w1", "h"), node("Relu", "h", "r"),
        node("ReduceMean", "r", "m", axes=[1], keepdims=0), node("MatMul", "m w2", "y"),
    ]  # fmt: skip
    weights = {"table": floats(20, 6), "w1": floats(6, 8), "w2": floats(8, 3)}
    analysis = op.analyze(model_of(nodes, weights, ("n", 5), TensorProto.INT64))
    data = Data(RNG.integers(0, 20, (7, 5)), np.arange(7) % 3, "tokens")
    scores = score(analysis, name, calibration=Calibration(data))
    assert scores.groups
    for mine in scores.groups.values():
        assert np.isfinite(mine).all()
        assert np.ptp(mine) > 0.01
    if name == "lrp":
        np.testing.assert_allclose(raw_of(analysis, Calibration(data))["h"].sum(), 7, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- bad input


def test_bad_labels_and_outputs() -> None:
    analysis = op.analyze(load(MODELS / "digits_cnn.onnx"))
    data = digits(10)
    with pytest.raises(OnnxPruneError, match="needs labels"):
        score(analysis, "lrp", calibration=Calibration(Data(data.x, None, "digits")))
    assert data.y is not None
    with pytest.raises(OnnxPruneError, match="the label 12, the model 10 classes"):
        score(analysis, "lrp", calibration=Calibration(Data(data.x, data.y + (data.y == 9) * 3, "digits")))
    with pytest.raises(OnnxPruneError, match="outputs are not finite"):
        score(analysis, "lrp", calibration=Calibration(Data(np.full_like(data.x, np.nan), data.y, "nan")))
    with pytest.raises(OnnxPruneError, match="has none"):
        get("lrp", form="paper")
