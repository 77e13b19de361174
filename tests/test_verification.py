"""What the proof accepts and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.coupling import Analysis
from onnxprune.decisions import decisions
from onnxprune.errors import VerificationError
from onnxprune.model import Model, load, to_proto
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.verification import mean_difference, relative_difference, verify


def classifier(last: str) -> onnx.ModelProto:
    """Conv, Relu, Conv, then class numbers per pixel by the operator `last`."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["scores"]),
    ]
    shape: list[object] = ["N", 64, 64] if last == "ArgMax" else ["N", 5, 64, 64]
    kind = onnx.TensorProto.INT64
    if last == "ArgMax":
        nodes.append(helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0))
    elif last == "Cast":
        nodes.append(helper.make_node("Cast", ["scores"], ["y"], to=kind))
    elif last == "Floor":
        nodes += [helper.make_node("Floor", ["scores"], ["steps"]), helper.make_node("Neg", ["steps"], ["y"])]
        kind = onnx.TensorProto.FLOAT
    else:
        nodes += [helper.make_node("Sigmoid", ["scores"], ["p"]), helper.make_node("Greater", ["p", "half"], ["y"])]
        kind = onnx.TensorProto.BOOL
    weights = [
        numpy_helper.from_array(rng.standard_normal((16, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((5, 16, 1, 1)).astype(np.float32), "v"),
        numpy_helper.from_array(np.float32(0.5), "half"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 66, 66])],
        [helper.make_tensor_value_info("y", kind, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def cut(proto: onnx.ModelProto, *removed: int) -> tuple[Analysis, Plan, Compiled]:
    """The model's only group without these channels, proved."""
    model = load(proto)
    analysis = analyze(model)
    (group,) = analysis.groups
    plan = Plan(model.fingerprint, {group.name: Removal(group.channels, removed)})
    return analysis, plan, compile_plan(model, plan, analysis=analysis)


@pytest.mark.parametrize("last", ["ArgMax", "Greater"])
def test_model_that_ends_in_class_numbers_is_proved_by_its_scores(last: str) -> None:
    _, _, done = cut(classifier(last), *range(0, 16, 2))
    assert done.verification is not None
    assert 0 < done.verification.max_relative <= 1e-4 < done.verification.effect
    assert list(done.verification.outputs) == ["p" if last == "Greater" else "scores"]
    assert [t.name for t in done.model.graph.outputs] == ["y"]  # looking inside must not change the interface


def test_wrong_weights_behind_class_numbers_are_refused() -> None:
    analysis, plan, done = cut(classifier("ArgMax"), 0, 3)
    proto = to_proto(done.model)
    weight = next(t for t in proto.graph.initializer if t.name == "v")
    # Every class number stays what it was: only the scores tell.
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), "v"))
    with pytest.raises(VerificationError, match="differs from the masked original"):
        verify(analysis, plan, load(proto))


@pytest.mark.parametrize("last", ["ArgMax", "Greater", "Cast"])
def test_one_wrong_weight_behind_a_decision_is_refused(last: str) -> None:
    analysis, plan, done = cut(classifier(last), 0, 3)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        # One of 70 weights: of all scores the mean moves by less than the tolerance, a single one by more.
        verify(analysis, plan, changed(done.model, "v", 3e-4, 0))


def test_what_is_rounded_inside_a_model_is_compared_by_its_mean() -> None:
    analysis, plan, done = cut(classifier("Floor"), 0, 3)
    assert done.verification is not None
    assert list(done.verification.decided) == ["steps"]
    assert done.verification.outputs["y"] == 0
    verify(analysis, plan, changed(done.model, "v", 3e-4, 0))
    with pytest.raises(VerificationError, match="output 'scores'"):
        verify(analysis, plan, changed(done.model, "v", 3e-2, 0))


def test_a_result_that_is_rounded_too_is_compared_by_its_largest_difference() -> None:
    proto = classifier("Floor")
    proto.graph.output.append(helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["N", 5, 64, 64]))
    analysis, plan, done = cut(proto, 0, 3)
    with pytest.raises(VerificationError, match="output 'scores'"):
        verify(analysis, plan, changed(done.model, "v", 3e-4, 0))


def test_a_decision_without_numbers_to_compare_is_not_taken_over() -> None:
    model = load(classifier("ArgMax"))
    analysis = analyze(model)
    made = decisions(analysis, analysis.source)
    assert (made.tensors, made.reasons, made.rounded) == (("y",), ("scores",), frozenset())
    other = analysis.source.copy()
    for t in other.graph.tensors().values():
        if t.name != "y":
            t.name += "_elsewhere"
    assert decisions(analysis, other).tensors == ()


def detector(*, body: bool = False) -> onnx.ModelProto:
    """Two anchors a place that score alike; the three best boxes, and what a second layer makes of them.

    Args:
        body: whether the selection stands in a branch of an If, as torchvision's detectors have it.
    """
    rng = np.random.default_rng(1)
    pick = [
        helper.make_node("Flatten", ["scores"], ["flat"], axis=1),
        helper.make_node("TopK", ["flat", "three"], ["best", "places"], axis=1),
    ]
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)), "v": np.repeat(rng.standard_normal((1, 8, 1, 1)), 2, axis=0),
        "u": rng.standard_normal((2, 8, 1, 1)), "h": rng.standard_normal((3, 4)),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v", "b"], ["scores"]),
        helper.make_node("Conv", ["r", "u"], ["boxes"]),
    ]
    if body:
        kind = helper.make_tensor_value_info("places", onnx.TensorProto.INT64, None)
        branch = helper.make_graph(pick, "then", [], [kind])
        other = helper.make_node("Constant", [], ["none"], value=numpy_helper.from_array(np.zeros((1, 3), np.int64)))
        branches = {
            "then_branch": branch,
            "else_branch": helper.make_graph(
                [other], "else", [], [helper.make_tensor_value_info("none", onnx.TensorProto.INT64, None)]
            ),
        }
        nodes.append(helper.make_node("If", ["yes"], ["places"], **branches))
    else:
        nodes += pick
    nodes += [
        helper.make_node("Flatten", ["boxes"], ["all"], axis=1),
        helper.make_node("GatherElements", ["all", "places"], ["chosen"], axis=1),
        helper.make_node("MatMul", ["chosen", "h"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    tensors += [numpy_helper.from_array(np.zeros(2, np.float32), "b"), numpy_helper.from_array(np.array([3]), "three")]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])]
    if body:  # of a condition that is known beforehand only one branch would be left
        inputs.append(helper.make_tensor_value_info("yes", onnx.TensorProto.BOOL, []))
    graph = helper.make_graph(
        nodes, "g", inputs,
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 4])], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def changed(model: Model, name: str, by: float, place: int) -> Model:
    """A copy with one number of a weight moved by a share of the largest one."""
    proto = to_proto(model)
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[place] += np.float32(by * max(float(np.abs(value).max()), 1.0))
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return load(proto)


@pytest.mark.parametrize("body", [False, True])
def test_selections_are_those_of_the_reference(body: bool) -> None:
    analysis, plan, done = cut(detector(body=body), 1, 4)
    assert done.verification is not None
    assert list(done.verification.decided) == ["places"]
    assert {"y", "scores" if body else "flat"} <= done.verification.outputs.keys()
    assert done.verification.effect > 1e-2
    # Anchors that score alike come in another order for the last bit of a score: other boxes, the same detector.
    nudged = changed(done.model, "b", 3e-7, 1)
    assert 0 < verify(analysis, plan, nudged).max_relative <= 1e-6


@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize("weight", ["w", "v", "u", "h", "b"])
def test_what_a_selection_is_made_from_and_what_is_made_of_it_is_compared(weight: str, body: bool) -> None:
    analysis, plan, done = cut(detector(body=body), 1, 4)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        verify(analysis, plan, changed(done.model, weight, 0.01, 0))


def test_a_comparison_inside_an_activation_is_no_decision() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Greater", ["a", "zero"], ["positive"]),
        helper.make_node("Where", ["positive", "a", "zero"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal((5, 8, 1, 1)).astype(np.float32), "v"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 9, 9])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5, 5, 5])], weights,
    )  # fmt: skip
    _, _, done = cut(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), 0)
    assert done.verification is not None
    assert done.verification.decided == []


def test_one_ill_conditioned_number_behind_a_decision_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.standard_normal(1000)
    got = wanted + 1e-7 * rng.standard_normal(1000)
    got[7] += 1e-3
    assert relative_difference(got, wanted) > 1e-4 > mean_difference(got, wanted)
    assert mean_difference(got + 1e-3, wanted) > 1e-4
    assert mean_difference(got[1:], wanted) == mean_difference(np.where(wanted > 2, np.nan, got), wanted) == np.inf
    assert mean_difference(np.array([1, 2]), np.array([1, 3])) == np.inf
    assert mean_difference(np.zeros(3), np.zeros(3)) == 0
