"""`taylor` and `gradient` against golden arrays end to end, and against derivatives measured in onnxruntime; bad input.

The golden arrays hold what the research code computes (`one_batch`, `two_batches`: form "code") and the paper's form.
For `gradient` there is no paper's form in them: it is Taylor's with 1 for the activation, checked by differences.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from random_graphs.graphs import Spec, build

import onnxprune as op
from onnxprune.analysis.feature_maps import feature_sites
from onnxprune.criteria import get
from onnxprune.criteria.base import ScoringContext
from onnxprune.criteria.model_runs import torch_runs
from onnxprune.criteria.scoring import score
from onnxprune.criteria.taylor import Gradient, Taylor, layer_normalized, raw_scores, sample_means, share_of
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import cross_entropy
from onnxprune.ir.reader import load

HERE = Path(__file__).parent.parent
MODELS = HERE.parent / "models"
CASES = ("s8", "s32")
NAMES = ("taylor", "gradient")
LAYERS = ("conv1", "conv2")
TOLERANCE = 1e-5  # of the golden arrays

Array = NDArray[Any]


@cache
def golden(name: str, case: str) -> dict[str, Array]:
    with np.load(HERE / "goldens" / f"{name}.npz", allow_pickle=False) as file:
        return {key.removeprefix(f"{case}/"): file[key] for key in file.files if key.startswith(f"{case}/")}


@cache
def tiny(case: str) -> op.Analysis:
    return op.analyze(load(HERE / "goldens" / f"tiny_{case}.onnx"))


def runs() -> list[Any]:
    """(criterion, case, form of the score in the golden arrays)."""
    kinds = {"taylor": ("one_batch", "two_batches", "paper"), "gradient": ("one_batch", "two_batches")}
    return [(name, case, run) for name in NAMES for case in CASES for run in kinds[name]]


def settings(name: str, case: str, run: str) -> tuple[Taylor | Gradient, Calibration]:
    data = golden(name, case)
    rule = get(name, form="paper" if run == "paper" else "code")
    assert isinstance(rule, Taylor | Gradient)
    # A batch of `batch_split` leaves a second one of what is left.
    batch = int(data["batch_split"]) if run == "two_batches" else 12
    return rule, Calibration(Data(data["x"], data["labels"], "golden"), batch=batch)


def lowest(scores: Array, count: int) -> Array:
    return np.sort(np.argsort(scores, kind="stable")[:count])


# ------------------------------------------------------------------------------------------------------- goldens


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_array_is_asserted(name: str) -> None:
    inputs = r"(conv[12]|fc[12])_(weight|bias)|x|labels|batch_split|loss"
    asserted = (
        r"conv[12]_output(_grad)?|(one_batch|two_batches|paper)/((raw|score|removed_(25|50|75))_conv[12]|global_lowest)"
    )
    for case in CASES:
        assert [k for k in golden(name, case) if not re.fullmatch(f"{inputs}|{asserted}", k)] == []


@pytest.mark.parametrize(("name", "case", "run"), runs())
def test_golden_scores_end_to_end(name: str, case: str, run: str) -> None:
    data, (rule, calibration) = golden(name, case), settings(name, case, run)
    scores = score(tiny(case), rule, calibration=calibration)
    assert scores.normalize == "none"
    found = {layer: scores.groups[f"{layer}_weight"] for layer in LAYERS}
    for layer, mine in found.items():
        np.testing.assert_allclose(mine, data[f"{run}/score_{layer}"], atol=TOLERANCE)
        for percent in (25, 50, 75):
            if (key := f"{run}/removed_{percent}_{layer}") in data:
                np.testing.assert_array_equal(lowest(mine, len(mine) * percent // 100), data[key])
    if f"{run}/global_lowest" in data:
        expected = data[f"{run}/global_lowest"]
        together = np.concatenate(list(found.values()))
        order = np.argsort(together, kind="stable")[: len(expected)]
        first = len(found["conv1"])
        mine = np.stack([order >= first, np.where(order >= first, order - first, order)], 1)
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize(("name", "case", "run"), runs())
def test_golden_raw_scores(name: str, case: str, run: str) -> None:
    data, (rule, calibration) = golden(name, case), settings(name, case, run)
    analysis = tiny(case)
    sites = feature_sites(analysis, analysis.groups, "linear")
    raw = raw_scores(ScoringContext(analysis, analysis.groups, calibration), sites, rule)
    for site, mine in zip(sites, raw, strict=True):
        if site.filters is not None and site.filters.node in LAYERS:
            expected = data[f"{run}/raw_{site.filters.node}"]
            np.testing.assert_allclose(mine, expected, atol=TOLERANCE)
            np.testing.assert_allclose(layer_normalized(mine), data[f"{run}/score_{site.filters.node}"], atol=TOLERANCE)
    assert [s.filters.node for s in sites if s.filters] == ["conv1", "conv2", "fc1"]


@pytest.mark.parametrize("case", CASES)
def test_golden_inputs_are_those_of_the_model(case: str) -> None:
    model = onnx.load(HERE / "goldens" / f"tiny_{case}.onnx")
    data = golden("taylor", case)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert set(weights) == {k for k in data if k.endswith(("_weight", "_bias"))}
    for key, weight in weights.items():
        np.testing.assert_array_equal(weight, data[key])
    logits = Session(tiny(case).model).run({"x": data["x"]})[0]
    np.testing.assert_allclose(cross_entropy(logits, data["labels"]).mean(), data["loss"], atol=TOLERANCE)


@pytest.mark.parametrize("layer", LAYERS)
def test_definitions_on_golden_maps_and_gradients(layer: str) -> None:
    data = golden("taylor", "s8")
    maps, gradients = data[f"{layer}_output"], data[f"{layer}_output_grad"] * 12  # of each sample's own loss
    means = sample_means(maps, gradients)
    code = share_of(means, "code", samples=12, batch=12)
    np.testing.assert_allclose(code, data[f"one_batch/raw_{layer}"], atol=TOLERANCE)
    paper = share_of(means[:5], "paper", samples=12, batch=12) + share_of(means[5:], "paper", samples=12, batch=12)
    np.testing.assert_allclose(paper, data[f"paper/raw_{layer}"], atol=TOLERANCE)
    np.testing.assert_allclose(layer_normalized(paper), data[f"paper/score_{layer}"], atol=TOLERANCE)
    plain = share_of(sample_means(np.ones_like(maps), gradients), "code", samples=12, batch=12)
    np.testing.assert_allclose(plain, golden("gradient", "s8")[f"one_batch/raw_{layer}"], atol=TOLERANCE)


def test_layer_normalization() -> None:
    np.testing.assert_allclose(layer_normalized(np.array([3.0, -4.0, 0.0])), [0.6, 0.8, 0.0])
    np.testing.assert_array_equal(layer_normalized(np.zeros(3)), np.zeros(3))
    np.testing.assert_allclose(layer_normalized(np.array([3e-200, -4e-200])), [0.6, 0.8])  # squares vanish


# ---------------------------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_measured_in_onnxruntime(name: str) -> None:
    """Scaling a filter's map by 1 + t changes a sample's loss by t * sum(a * g); shifting it by t, by t * sum(g)."""
    data, analysis = golden("taylor", "s8"), tiny("s8")
    proto = onnx.load(HERE / "goldens" / "tiny_s8.onnx")
    step = 2e-3
    derivatives = []
    for f in range(8):
        losses = []
        for t in (-step, step):
            moved = onnx.ModelProto()
            moved.CopyFrom(proto)
            for tensor in moved.graph.initializer:
                if tensor.name in ("conv2_weight", "conv2_bias"):
                    values = numpy_helper.to_array(tensor).copy()
                    if name == "taylor":
                        values[f] *= 1 + t
                    elif tensor.name == "conv2_bias":
                        values[f] += t
                    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            logits = Session(load(moved)).run({"x": data["x"]})[0]
            losses.append(cross_entropy(logits, data["labels"]))
        derivatives.append((losses[1] - losses[0]) / (2 * step))
    expected = np.abs(np.stack(derivatives)).mean(1)
    scores = score(analysis, name, calibration=Calibration(Data(data["x"], data["labels"], "golden")))
    mine = scores.groups["conv2_weight"]
    # float32 losses near 1 over a step of 2e-3; a ReLU or a maximum may turn within it.
    np.testing.assert_allclose(mine, expected / np.linalg.norm(expected), atol=3e-3)
    assert np.ptp(mine) > 0.1


# ---------------------------------------------------------------------------------------------------------- models


def digits(images: int = 100, *, last: bool = False) -> Data:
    data = load_data("digits:train", images=images)
    return Data(data.x.transpose(0, 2, 3, 1), data.y, "digits, channels last") if last else data


@pytest.mark.parametrize("name", NAMES)
def test_kept_and_folded_batchnorm_score_alike(name: str) -> None:
    found = []
    for file in ("digits_cnn", "digits_cnn_folded"):
        analysis = op.analyze(load(MODELS / f"{file}.onnx"))
        found.append(score(analysis, name, calibration=Calibration(digits())).groups)
    assert list(found[0]) == list(found[1])
    for group, mine in found[0].items():
        np.testing.assert_allclose(mine, found[1][group], atol=TOLERANCE)
        assert np.ptp(mine) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_keras_model_that_ends_in_softmax(name: str) -> None:
    analysis = op.analyze(load(MODELS / "digits_keras.onnx"))
    data = digits(last=True)
    scores = score(analysis, name, calibration=Calibration(data))
    # The gradient is that of the cross-entropy of the probabilities: cut by hand, it is the same.
    cut = load(MODELS / "digits_keras.onnx")
    (softmax,) = (n for n in cut.graph.nodes if n.op == "Softmax")
    logits = softmax.inputs[0]
    logits.dtype, logits.shape = np.dtype(np.float32), cut.graph.outputs[0].shape
    cut.graph.outputs[:] = [logits]
    cut.graph.cleanup()
    again = score(op.analyze(cut), name, calibration=Calibration(data))
    assert list(scores.groups) == list(again.groups)
    for group, mine in scores.groups.items():
        np.testing.assert_array_equal(mine, again.groups[group])
        assert np.ptp(mine) > 0.05


@pytest.mark.parametrize("name", NAMES)
def test_papers_form_does_not_depend_on_batches_nor_on_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = op.analyze(load(MODELS / "digits_cnn.onnx"))
    groups = [analysis.groups[-1].name]

    def scored(batch: int, form: str) -> Array:
        calibration = Calibration(digits(50), batch=batch)
        return score(analysis, name, form=form, groups=groups, calibration=calibration).groups[groups[0]]

    paper, code = scored(50, "paper"), scored(50, "code")
    np.testing.assert_allclose(scored(7, "paper"), paper, atol=TOLERANCE)
    assert np.abs(scored(7, "code") - code).max() > 100 * TOLERANCE
    monkeypatch.setitem(torch_runs._MEMORY, "cpu", 2**20)  # a few samples at a time
    np.testing.assert_allclose(scored(50, "paper"), paper, atol=TOLERANCE)
    np.testing.assert_allclose(scored(50, "code"), code, atol=TOLERANCE)


def test_fixed_batch_leaves_the_copies_out() -> None:
    fixed, free = (op.analyze(load(build(Spec(("residual",), dynamic=d)))) for d in (False, True))
    shape = fixed.model.graph.inputs[0].shape
    count = int(shape[0]) + 1  # so that a second batch is filled up
    rng = np.random.default_rng(0)
    data = Data(rng.standard_normal((count, *shape[1:])).astype(np.float32), np.arange(count) % 3, "noise")
    for name in NAMES:
        mine, other = (score(a, name, calibration=Calibration(data)).groups for a in (fixed, free))
        for group in other:
            np.testing.assert_allclose(mine[group], other[group], atol=TOLERANCE)


@pytest.mark.parametrize("half", [True, False])
def test_float16_and_float64_models(half: bool) -> None:
    """Half precision is scored in float32: the scores are those of the same weights in float64."""
    model = build(Spec(("residual", "depthwise"), half=True))
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float16:
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float64), tensor.name))
    for info in (*wide.graph.input, *wide.graph.output):
        info.type.tensor_type.elem_type = TensorProto.DOUBLE
    if not half:  # float32 around float16 within
        wide, model = model, onnx.ModelProto()
        model.CopyFrom(wide)
        source, result = model.graph.input[0].name, model.graph.output[0].name
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                node.input[i] = "half" if name == source else name
            for i, name in enumerate(node.output):
                node.output[i] = "result" if name == result else name
        model.graph.node.insert(0, helper.make_node("Cast", [source], ["half"], to=TensorProto.FLOAT16))
        model.graph.node.append(helper.make_node("Cast", ["result"], [result], to=TensorProto.FLOAT))
        for info in (*model.graph.input, *model.graph.output):
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    x = np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float16)
    found = []
    for proto, dtype in ((model, np.float16 if half else np.float32), (wide, np.float64 if half else np.float16)):
        calibration = Calibration(Data(x.astype(dtype), np.arange(6) % 3, "noise"))
        found.append(list(score(op.analyze(load(proto)), "taylor", calibration=calibration).groups.values()))
    for mine, other in zip(*found, strict=True):
        np.testing.assert_allclose(mine, other, atol=TOLERANCE)


def test_read_only_data_and_threads() -> None:
    import torch

    data = digits(20)
    data.x.flags.writeable = False
    assert data.y is not None
    data.y.flags.writeable = False
    before = torch.get_num_threads()
    seen: list[tuple[int, int]] = []
    analysis = op.analyze(load(MODELS / "digits_cnn.onnx"))
    calibration = Calibration(data, batch=8, threads=before + 1)
    score(analysis, "taylor", calibration=calibration, progress=lambda *now: seen.append(now))
    assert seen == [(8, 20), (16, 20), (20, 20)]
    assert torch.get_num_threads() == before


# ------------------------------------------------------------------------------------------------------- bad input


def model_of(nodes: Sequence[onnx.NodeProto], weights: dict[str, Array], shape: Sequence[int | str]) -> op.Analysis:
    graph = helper.make_graph(
        list(nodes), "test", [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return op.analyze(load(onnx.shape_inference.infer_shapes(proto)))


def dense(first: Array, second: Array, inner: Sequence[str] = ("Relu",)) -> op.Analysis:
    """x W1 -> functions -> W2."""
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["t0"])]
    nodes += [helper.make_node(kind, [f"t{i}"], [f"t{i + 1}"]) for i, kind in enumerate(inner)]
    nodes += [helper.make_node("MatMul", [f"t{len(inner)}", "w2"], ["y"])]
    return model_of(nodes, {"w1": first, "w2": second}, ("n", first.shape[0]))


ONES = Data(np.ones((4, 3), np.float32), np.array([0, 1, 1, 0]), "ones")


def test_labels_are_needed_and_must_be_classes() -> None:
    analysis = dense(np.ones((3, 4)), np.ones((4, 2)))
    with pytest.raises(OnnxPruneError, match="needs labels"):
        score(analysis, "taylor", calibration=Calibration(Data(ONES.x, None, "ones")))
    for labels, wrong in (([0, 1, 2, 0], 2), ([0, -1, 1, 0], -1)):
        with pytest.raises(OnnxPruneError, match=f"the label {wrong}, the model 2 classes"):
            score(analysis, "taylor", calibration=Calibration(Data(ONES.x, np.array(labels), "ones")))


def test_output_must_be_a_score_per_class() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("MatMul", ["a", "w2"], ["b"]),
        helper.make_node("ReduceMean", ["b"], ["y"], axes=[0], keepdims=0),
    ]  # fmt: skip
    analysis = model_of(nodes, {"w1": np.ones((3, 4)), "w2": np.ones((4, 2))}, ("n", 3))
    with pytest.raises(OnnxPruneError, match="not one score per class"):
        score(analysis, "taylor", calibration=Calibration(ONES))


def test_what_is_not_finite_is_said() -> None:
    weights = np.random.default_rng(0).standard_normal((3, 4))
    outputs = dense(weights, np.full((4, 2), np.float32(3e38)))
    with pytest.raises(OnnxPruneError, match="outputs are not finite"):
        score(outputs, "taylor", calibration=Calibration(Data(ONES.x * 100, ONES.y, "large")))
    loss = dense(np.eye(3), np.array([[3e38, -3e38]] * 3) / 3)
    with pytest.raises(OnnxPruneError, match="the loss is not finite"):
        score(loss, "taylor", calibration=Calibration(Data(ONES.x, np.ones(4, np.int64), "ones")))
    weights[:, 2] = 0  # the root of the square of zero has no derivative
    nodes = ("Abs", "Sqrt", "Relu")
    with pytest.raises(OnnxPruneError, match="gradient of the loss is not finite") as caught:
        score(dense(weights, np.ones((4, 2)) + weights[:2].T, nodes), "taylor", calibration=Calibration(ONES))
    assert caught.value.where == "tensor 't0'"


def test_forms_and_devices_are_known() -> None:
    with pytest.raises(OnnxPruneError, match="unknown form 'papers'"):
        get("taylor", form="papers")
    analysis = dense(np.ones((3, 4)), np.ones((4, 2)))
    with pytest.raises(OnnxPruneError, match="unknown device 'tpu'"):
        score(analysis, "gradient", calibration=Calibration(ONES, device="tpu"))


def test_cuda_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    analysis = dense(np.ones((3, 4)), np.ones((4, 2)))
    assert score(analysis, "gradient", calibration=Calibration(ONES, device="auto")).groups
    with pytest.raises(OnnxPruneError, match="this PyTorch has none"):
        score(analysis, "gradient", calibration=Calibration(ONES, device="cuda"))


def test_without_torch_the_extra_is_named() -> None:
    code = f"""
import sys
sys.modules["torch"] = None
import numpy as np, onnxprune as op
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.criteria.scoring import score
analysis = op.analyze(op.load({str(MODELS / "digits_cnn.onnx")!r}))
calibration = Calibration(Data(np.zeros((1, 1, 8, 8), np.float32), np.zeros(1, np.int64), "zeros"))
for name in ("taylor", "gradient", "lrp"):
    try:
        score(analysis, name, calibration=calibration)
    except op.OnnxPruneError as err:
        print(err.fix)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["pip install 'onnxprune[train]'"] * 3, run.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*NAMES, "lrp"])
def test_cuda_agrees_with_the_cpu(name: str) -> None:
    analysis = op.analyze(load(MODELS / "digits_cnn.onnx"))
    cpu, cuda = (
        score(analysis, name, calibration=Calibration(digits(), device=device)).groups for device in ("cpu", "cuda")
    )
    for group, mine in cuda.items():  # convolutions may round to TF32: 10 bits of mantissa
        np.testing.assert_allclose(mine, cpu[group], atol=1e-2)
