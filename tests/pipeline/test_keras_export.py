"""The Keras export that ships: NHWC input, Dense as MatMul and Add, Softmax at the end; pruned, retrained, all kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune as op
from onnxprune.execution.sessions import Session
from onnxprune.ir.writer import to_proto
from onnxprune.passes import InsertBatchnorm
from onnxprune.torch_bridge import bindings, logits_of, to_torch

KERAS = Path(__file__).parent.parent.parent / "models" / "digits_keras.onnx"


def nhwc(part: str) -> op.Data:
    data = op.load_data(f"digits:{part}")
    return op.Data(data.x.transpose(0, 2, 3, 1).copy(), data.y, data.name)


def ends(model: op.Model) -> list[str]:
    return [n.op_type for n in to_proto(model).graph.node][-3:]


@pytest.fixture(scope="module")
def pruned() -> op.Model:
    model = op.load(KERAS)
    plan = op.plan(op.score(op.analyze(model), "l2"), op.Target(macs=0.4), constraints=op.Constraints(round_to=4))
    return op.apply(model, plan)


def test_the_file_is_as_keras_writes_it() -> None:
    model = op.load(KERAS)
    assert list(model.graph.inputs[0].shape[1:]) == [8, 8, 1]
    assert ends(model) == ["MatMul", "Add", "Softmax"]
    assert op.evaluate(model, nhwc("test")).top1 > 0.98


def test_dense_layers_and_scales_train() -> None:
    kinds = {(b.op, b.kind) for b in bindings(to_torch(logits_of(op.load(KERAS))))}
    assert {("MatMul", "trained"), ("Add", "trained"), ("Mul", "trained"), ("Conv", "trained")} <= kinds


def test_batchnorm_comes_back_behind_folded_convolutions_only() -> None:
    # The depthwise convolution's BatchNorm was never folded: tf2onnx wrote it as Mul and Add.
    grown = InsertBatchnorm()(op.load(KERAS))
    nodes = to_proto(grown).graph.node
    made_by = {o: n for n in nodes for o in n.output}
    behind = [made_by[n.input[0]] for n in nodes if n.op_type == "BatchNormalization"]
    assert {n.op_type for n in behind} == {"Conv"}
    assert len(behind) == sum(n.op_type == "Conv" for n in nodes) - 1


def test_retraining_keeps_layout_and_softmax(pruned: op.Model) -> None:
    train, test = nhwc("train"), nhwc("test")
    settings = op.Settings(epochs=4, batch=64, optimizer="adamw", lr=3e-3, device="cpu")
    done = op.retrain(pruned, data=train, settings=settings, teacher=op.load(KERAS))
    assert done.improved
    before, after = op.evaluate(pruned, test).top1, op.evaluate(done.model, test).top1
    assert before < 0.9 < after
    one, other = to_proto(pruned).graph, to_proto(done.model).graph
    assert [(n.op_type, n.name, list(n.input), list(n.output)) for n in one.node] == [
        (n.op_type, n.name, list(n.input), list(n.output)) for n in other.node
    ]
    assert list(one.input) == list(other.input)
    assert list(one.output) == list(other.output)
    probabilities = Session(done.model).run({one.input[0].name: test.x[:8]})[0]
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    onnx.checker.check_model(to_proto(done.model))
