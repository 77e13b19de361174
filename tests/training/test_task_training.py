"""Training of detectors, segmenters and recognizers on the outputs of their original."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from networks.task_models import Builder, backbone, classifier, detector, recognizer, segmenter

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Boxes, Data
from onnxprune.training import Settings, retrain
from onnxprune.training._distillation_points import DistillationPoint, distillation_points

RNG = np.random.default_rng(2)
QUICK = Settings(epochs=2, batch=8, optimizer="adamw", keep="last", threads=1, device="cpu", val_share=0.25)


def images(height: int = 32) -> Any:
    return RNG.standard_normal((32, 3, height, 32)).astype(np.float32)


def cut(model: Any, share: float = 0.3) -> tuple[op.Model, op.Model]:
    """A model and a pruned one."""
    original = op.load(model)
    return original, op.prune(original, ratio=share, constraints=op.Constraints(round_to=1)).model


def kinds(model: Any) -> dict[str, tuple[str, int]]:
    original, pruned = cut(model)
    return {p.name: (p.kind, p.axis) for p in distillation_points(pruned, original)}


def test_points_lie_before_sigmoid_softmax_and_decoding() -> None:
    found = kinds(detector())
    assert sorted(k for k, _ in found.values()) == ["sigmoid", "value", "value"]  # the centres, and a Tanh of the sizes
    assert [axis for kind, axis in kinds(recognizer()).values() if kind == "softmax"] == [2]
    assert [k for k, _ in kinds(segmenter()).values()] == ["value"]


def with_suppression(classes: int = 3) -> Any:
    """Detector whose outputs are selected by NonMaxSuppression."""
    b = Builder()
    x = b.conv(backbone(b), 16, 16, stride=2)
    boxes = b.add("Reshape", b.conv(x, 16, 4, kernel=1, relu=False), b.constant([0, 4, 64]))
    scores = b.add("Sigmoid", b.add("Reshape", b.conv(x, 16, classes, kernel=1, relu=False),
                                    b.constant([0, classes, 64])))  # fmt: skip
    turned = b.add("Transpose", boxes, perm=[0, 2, 1])
    chosen = b.add("NonMaxSuppression", turned, scores, b.constant(10), b.constant([0.5], np.float32),
                   b.constant([0.4], np.float32))  # fmt: skip
    b.output(b.add("Cast", chosen, to=1), "selected", ["k", 3])
    return b.model()


def test_points_of_a_model_with_suppression_lie_before_it() -> None:
    found = kinds(with_suppression())
    assert sorted(k for k, _ in found.values()) == ["sigmoid", "value"]


def test_a_model_with_suppression_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    original, pruned = cut(with_suppression())
    module = ModuleType("constant_metric")
    module.one = lambda outputs, targets: 1.0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "constant_metric", module)
    task = op.TaskOptions(task="regress", metric="constant_metric:one")
    done = retrain(pruned, Data(images(), None, "d"), teacher=original, settings=QUICK, task=task)
    assert done.metric == "constant_metric:one"
    assert done.history[-1].loss < done.history[0].loss


def test_models_without_common_points_behind_a_suppression_say_what_to_do() -> None:
    with pytest.raises(OnnxPruneError, match="non-maximum suppression") as err:
        distillation_points(op.load(with_suppression(3)), op.load(with_suppression(4)))
    assert "nms=False" in str(err.value)


def test_the_distance_is_zero_for_the_teacher_and_falls_in_training() -> None:
    original, pruned = cut(segmenter())
    same = retrain(original, Data(images(), None, "d"), teacher=original, settings=QUICK)
    assert same.history[0].loss == pytest.approx(0, abs=1e-9)
    assert same.history[0].value == 1
    done = retrain(pruned, Data(images(), None, "d"), teacher=original, settings=QUICK)
    assert done.metric == "agreement"
    assert done.history[-1].loss < done.history[0].loss
    assert done.before.value == pytest.approx(done.history[0].value)
    assert "agreement" in repr(done)
    assert "agreement" in done._repr_html_()


def test_features_are_matched_beside_the_points() -> None:
    b = Builder()
    x = backbone(b)
    b.output(b.conv(b.add("Add", x, b.conv(x, 16, 16)), 16, 5, kernel=1, relu=False), "masks", ["n", 5, 16, 16])
    original = op.load(b.model())
    made = op.prune(original, ratio=0.3, constraints=op.Constraints(round_to=1, protect=("residual",)))
    settings = Settings(**{**vars(QUICK), "features": 1.0})
    done = retrain(made.model, Data(images(), None, "d"), teacher=original, settings=settings)
    assert done.history[-1].train_loss is not None
    assert np.isfinite(done.history[-1].train_loss)


def test_targets_serve_the_validation_of_a_detector() -> None:
    original, pruned = cut(detector())
    low = RNG.uniform(0, 20, (32, 1, 2))
    targets = [Boxes(np.concatenate([p, p + 8], 1).astype(np.float32), np.array([i % 3]), np.zeros(1, np.bool_))
               for i, p in enumerate(low)]  # fmt: skip
    done = retrain(pruned, Data(images(), None, "d", targets), teacher=original, settings=QUICK)
    assert done.metric == "map"
    assert done.as_dict()["history"][0]["value"] is not None
    after = op.evaluate(done.model, done.val, metric="map").value
    assert after == pytest.approx(done.after.value, abs=1e-6)


def test_another_metric_chooses_the_epoch_of_a_classifier() -> None:
    _, pruned = cut(classifier())
    data = Data(images(), np.arange(32) % 4, "d")
    done = retrain(pruned, data, settings=QUICK, task=op.TaskOptions(metric="top5"))
    assert (done.metric, done.before.value) == ("top5", 1.0)
    plain = retrain(pruned, data, settings=QUICK)
    assert (plain.metric, plain.before.value) == ("top1", None)


def test_without_a_teacher_only_classifiers_train() -> None:
    _, pruned = cut(segmenter())
    with pytest.raises(OnnxPruneError, match="task segment") as err:
        retrain(pruned, Data(images(), None, "d"), settings=QUICK)
    assert "--teacher" in str(err.value)


def test_losses_of_points() -> None:
    a, b = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    for kind, axis in (("softmax", 2), ("softmax", 1), ("sigmoid", 1), ("value", 1)):
        point = DistillationPoint("t", kind, axis)
        assert float(point.loss(a, a, 4.0)) == pytest.approx(0, abs=1e-5)
        assert float(point.loss(b, a, 4.0)) > 0
    p, q = torch.softmax(a, 2), torch.softmax(b, 2)
    wanted = float((p * (p / q).log()).sum(2).mean())
    assert float(DistillationPoint("t", "softmax", 2).loss(b, a, 1.0)) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(OnnxPruneError, match="the teacher's"):
        DistillationPoint("t", "value").loss(a[:, :3], b, 1.0)
