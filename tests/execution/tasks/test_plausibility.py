"""Implausible results are named with the probable reason; plausible ones are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks.task_models import MODELS, Builder, classifier, pooled, regressor

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Boxes, Data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks._boxes import Detections, Head
from onnxprune.execution.tasks.classify import ClassificationWatch, chance_warning
from onnxprune.execution.tasks.detect import DetectionWatch
from onnxprune.execution.tasks.embed import retrieval
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.execution.tasks.metrics import MetricValue, Outcome
from onnxprune.execution.tasks.regress import RegressionWatch

RNG = np.random.default_rng(5)


def scores(classes: np.ndarray, count: int = 10) -> np.ndarray:
    return 5 * np.eye(count)[classes] + RNG.uniform(0, 1, (len(classes), count))


def warnings(predicted: np.ndarray, labels: np.ndarray, **values: float) -> list[str]:
    watch = ClassificationWatch()
    for part in np.array_split(np.arange(len(labels)), 3):
        watch.add(Outcome([scores(predicted[part])], labels[part], (), len(part)))
    return watch.warnings({k: MetricValue(v, None) for k, v in values.items()})


def test_good_results_pass_without_a_word() -> None:
    labels = RNG.integers(0, 10, 200)
    assert warnings(np.where(RNG.uniform(size=200) < 0.7, labels, 0), labels, loss=1.0) == []


def test_accuracy_at_chance_is_named_with_enough_samples() -> None:
    labels = RNG.integers(0, 10, 200)
    [line] = warnings(RNG.integers(0, 10, 200), labels)
    assert "no better than guessing among 10 classes" in line
    assert warnings(RNG.integers(0, 10, 20), labels[:20]) == []


def test_the_limit_of_chance_is_the_binomial_distribution() -> None:
    assert chance_warning(60, 100, 2) == ""  # P(X >= 60) = 2.8 %
    assert chance_warning(57, 100, 2)  # P(X >= 57) = 9.7 %
    assert chance_warning(0, 100, 1000)
    assert chance_warning(2, 100, 1000) == ""
    assert chance_warning(5, 29, 10) == ""


@pytest.mark.parametrize("shift", [1, -1, 5])
def test_labels_that_are_off_are_an_error_where_nothing_else_explains_it(shift: int) -> None:
    predicted = RNG.integers(max(0, shift), 10 + min(0, shift), 100)
    with pytest.raises(OnnxPruneError, match=f"labels are off by {abs(shift)}: top1 is 0.0 %") as err:
        warnings(predicted, predicted - shift)
    assert f"{abs(shift)} {'larger' if shift > 0 else 'smaller'}" in str(err.value)


def test_a_shift_that_fits_somewhat_better_is_a_warning() -> None:
    labels = RNG.integers(0, 9, 400)
    kind = RNG.uniform(size=400)
    predicted = np.where(kind < 0.2, labels, np.where(kind < 0.8, labels + 1, RNG.integers(0, 10, 400)))
    [line] = warnings(predicted, labels)
    assert "off by 1" in line


def test_one_class_of_labels_proves_no_shift() -> None:
    assert "off by" not in " ".join(warnings(np.full(60, 4), np.full(60, 3)))


def test_a_loss_far_above_guessing_is_named() -> None:
    labels = RNG.integers(0, 10, 60)
    [line] = warnings(labels, labels, loss=40.0)
    assert line.startswith("the loss 40 is far above that of guessing (2.3)")


def test_outputs_that_do_not_change_are_named() -> None:
    x = RNG.standard_normal((40, 3, 32, 32)).astype(np.float32)
    b = Builder()
    b.output(b.add("Mul", b.gemm(pooled(b), 16, 4), b.constant(0.0, np.float32)), "scores", ["n", 4])
    dead = op.load(b.model())
    found = evaluate(dead, Data(x, np.arange(40) % 4, "d"))
    assert found.warnings[0].startswith("the outputs are the same for all 40 samples")
    alive = op.load(classifier())
    assert not any("same for all" in w for w in evaluate(alive, Data(x, np.arange(40) % 4, "d")).warnings)
    equal = evaluate(alive, Data(np.repeat(x[:1], 40, 0), np.arange(40) % 4, "d"))
    assert equal.warnings[0] == "all 40 samples are equal"


def test_check_false_is_silent() -> None:
    x = np.zeros((40, 3, 32, 32), np.float32)
    assert evaluate(op.load(classifier()), Data(x, np.arange(40) % 4, "d"), check=False).warnings == ()


def detections(boxes: Any, classes: Any) -> np.ndarray:
    """Output [1, boxes, 6] of an end-to-end head with scores of 0.9."""
    return np.concatenate([boxes, np.full((len(boxes), 1), 0.9), np.asarray(classes)[:, None]], 1)[None]


def watched(boxes: np.ndarray, ours: np.ndarray, theirs: np.ndarray, scale: float = 1.0) -> list[str]:
    watch = DetectionWatch(Head("end2end", ("o",)))
    for _ in range(25):
        target = Boxes(boxes.astype(np.float32), theirs, np.zeros(len(theirs), np.bool_))
        watch.add(Outcome([detections(boxes * scale, ours)], [target], (), 1))
    return watch.warnings({"map50": MetricValue(0.0, None)})


BOXES = np.array([[2.0, 3, 20, 25], [30, 30, 60, 50]])


def test_classes_of_boxes_that_are_off_by_one_are_named() -> None:
    [line] = watched(BOXES, np.array([1, 2]), np.array([0, 1]))
    assert "off by one: 50 boxes fit the targets if every class were one larger, 0 as they are" in line


def test_boxes_in_another_unit_are_named() -> None:
    [line] = watched(BOXES, np.array([0, 1]), np.array([0, 1]), scale=1 / 64)
    assert "one of them is a share of the image, the other in pixels" in line


def test_detecting_nothing_is_named() -> None:
    watch = DetectionWatch(Head("end2end", ("o",)))
    for _ in range(25):
        target = Boxes(BOXES.astype(np.float32), np.array([0, 1]), np.zeros(2, np.bool_))
        watch.add(Outcome([np.zeros((1, 5, 6))], [target], (), 1))
    assert watch.warnings({"map50": MetricValue(0.0, None)})[0].startswith("the model detects nothing")
    assert watch.warnings({"map50": MetricValue(0.5, None)}) == []


def test_regression_that_is_worse_than_the_mean_is_named() -> None:
    watch = RegressionWatch()
    watch.add(Outcome([np.zeros((30, 1))], [np.float32(0)] * 30, (), 30))
    assert watch.warnings({"r2": MetricValue(-4.0, None)})[0].startswith("r2 -4: the mean of the targets")
    assert watch.warnings({"r2": MetricValue(0.4, None)}) == []


def test_r2_of_a_case_computed_by_hand() -> None:
    model = op.load(regressor())
    x = RNG.standard_normal((8, 3, 32, 32)).astype(np.float32)
    y = np.arange(8.0, dtype=np.float32)
    out = Session(model).run({"x": x})[0][:, 0]
    found = evaluate(model, Data(x, None, "d", list(y)))
    assert found.metrics["mse"].value == pytest.approx(np.mean((out - y) ** 2), rel=1e-5)
    assert found.metrics["mae"].value == pytest.approx(np.mean(np.abs(out - y)), rel=1e-5)
    assert found.metrics["r2"].value == pytest.approx(
        1 - np.sum((out - y) ** 2) / np.sum((y - y.mean()) ** 2), rel=1e-5
    )


def test_retrieval_counts_the_nearest_other_sample() -> None:
    rows = [np.array(v) / np.linalg.norm(v) for v in ([1.0, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.05])]
    assert retrieval(list(zip(rows, [0, 0, 1, 1, 1], strict=True))).value == pytest.approx(2 / 5)
    with pytest.raises(OnnxPruneError, match="no two samples have the same label"):
        retrieval(list(zip(rows[:2], [0, 1], strict=True)))


def test_every_model_of_the_tests_is_watched_without_an_error() -> None:
    x = RNG.standard_normal((32, 3, 32, 32)).astype(np.float32)
    for task in ("classify", "embed"):
        evaluate(op.load(MODELS[task]()), Data(x, np.arange(32) % 4, "d"))


def test_detections_above_a_score() -> None:
    found = Detections(BOXES, np.array([0, 1]), np.array([0.9, 0.2]))
    assert found.above(0.5).classes.tolist() == [0]
