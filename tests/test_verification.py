"""What the proof accepts and what it refuses."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.model import load, to_proto
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.verification import verify


def classifier(last: str) -> onnx.ModelProto:
    """Conv, Relu, Conv, then class numbers per pixel by the operator `last`."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["scores"]),
    ]
    shape: list[object] = ["N", 64, 64] if last == "ArgMax" else ["N", 5, 64, 64]
    if last == "ArgMax":
        nodes.append(helper.make_node("ArgMax", ["scores"], ["y"], axis=1, keepdims=0))
        kind = onnx.TensorProto.INT64
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


@pytest.mark.parametrize("last", ["ArgMax", "Greater"])
def test_model_that_ends_in_class_numbers_is_proved_by_its_scores(last: str) -> None:
    model = load(classifier(last))
    analysis = analyze(model)
    (group,) = analysis.groups
    plan = Plan(model.fingerprint, {group.name: Removal(16, tuple(range(0, 16, 2)))})
    done = compile_plan(model, plan, analysis=analysis)
    assert done.verification is not None
    assert 0 < done.verification.max_relative <= 1e-4 < done.verification.effect
    assert list(done.verification.outputs) == ["p" if last == "Greater" else "scores"]
    assert [t.name for t in done.model.graph.outputs] == ["y"]  # looking inside must not change the interface


def test_wrong_weights_behind_class_numbers_are_refused() -> None:
    model = load(classifier("ArgMax"))
    analysis = analyze(model)
    (group,) = analysis.groups
    plan = Plan(model.fingerprint, {group.name: Removal(16, (0, 3))})
    proto = to_proto(compile_plan(model, plan, analysis=analysis).model)
    weight = next(t for t in proto.graph.initializer if t.name == "v")
    # Every class number stays what it was: only the scores tell.
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.001), "v"))
    with pytest.raises(VerificationError, match="differs from the masked original"):
        verify(analysis, plan, load(proto))
