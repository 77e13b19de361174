"""Metrics against their definitions, and what they refuse."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import METRICS, NEAR, Metric, get_metric

Y = np.array([0, 1, 2, 2])
LOGITS = np.array([[2.0, 1, 0], [0, 3, 1], [5, 1, 4], [1, 1, 1]])


def values(name: str, outputs: Any, labels: Any = None, reference: Any = None) -> Any:
    metric = get_metric(name)
    assert metric.samples is not None
    return metric.samples([outputs], labels, [reference])


def softmax(x: Any, axis: int = 1) -> Any:
    e = np.exp(x)
    return e / e.sum(axis, keepdims=True)


def test_top1_counts_labels_with_the_largest_score_ties_to_the_lower_class() -> None:
    assert values("top1", LOGITS, Y).tolist() == [1, 1, 0, 0]


def test_top5_of_seven_classes() -> None:
    scores = np.arange(7.0)[None].repeat(7, 0)
    assert values("top5", scores, np.arange(7)).tolist() == [0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("probabilities", [False, True])
def test_loss_is_cross_entropy_of_logits_and_of_probabilities(probabilities: bool) -> None:
    given = softmax(LOGITS) if probabilities else LOGITS
    assert values("loss", given, Y) == pytest.approx(-np.log(softmax(LOGITS)[np.arange(4), Y]))


def test_kl_is_that_of_probabilities_and_zero_for_the_original() -> None:
    other = LOGITS[::-1]
    p, q = softmax(LOGITS), softmax(other)
    assert values("kl", other, None, LOGITS) == pytest.approx((p * np.log(p / q)).sum(1))
    assert values("kl", LOGITS, None, LOGITS).tolist() == [0, 0, 0, 0]


def test_kl_of_a_segmentation_is_the_mean_over_places() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 3, 4, 4))
    p, q = softmax(a), softmax(b)
    assert values("kl", b, None, a) == pytest.approx((p * np.log(p / q)).sum(1).reshape(5, -1).mean(1))


def test_distances_of_several_outputs() -> None:
    a = [np.array([[3.0, 0.0]]), np.array([[4.0]])]
    b = [np.array([[3.0, 0.0]]), np.array([[0.0]])]
    cosine, mse = METRICS["cosine"].samples, METRICS["mse"].samples
    assert cosine is not None
    assert mse is not None
    assert cosine(a, None, b) == pytest.approx([9 / (5 * 3)])
    assert mse(a, None, b) == pytest.approx([16 / 3])
    assert cosine([np.zeros((1, 2))], None, [np.zeros((1, 2))]).tolist() == [1.0]


def test_value_and_standard_error_of_a_share() -> None:
    found = METRICS["top1"].mean(np.array([1.0, 1, 1, 0]))
    assert found.value == 0.75
    assert found.error == pytest.approx(np.sqrt(0.75 * 0.25 / 4))


def test_chance() -> None:
    chance = [METRICS[n].chance for n in ("top1", "top5")]
    assert [c(10) for c in chance if c] == [0.1, 0.5]
    assert METRICS["top5"].chance is not None
    assert METRICS["top5"].chance(3) == 1
    assert METRICS["loss"].chance is None


@given(
    scores=hnp.arrays(np.float64, (6, 8), elements=st.floats(-50, 50, width=32)),
    labels=hnp.arrays(np.int64, 6, elements=st.integers(0, 7)),
    noise=hnp.arrays(np.float64, (6, 8), elements=st.floats(-0.49, 0.49)),
    name=st.sampled_from(["top1", "top5"]),
)
def test_what_is_decided_stays_so_under_rounding(scores: Any, labels: Any, noise: Any, name: str) -> None:
    metric = METRICS[name]
    assert metric.undecided is not None
    decided = ~metric.undecided(scores, labels)
    moved = scores + noise * NEAR * np.abs(scores).max(1, keepdims=True)
    assert values(name, moved, labels)[decided].tolist() == values(name, scores, labels)[decided].tolist()


def test_a_tie_is_undecided_and_a_clear_lead_is_not() -> None:
    undecided = METRICS["top1"].undecided
    assert undecided is not None
    assert undecided(np.array([[1.0, 1.0, 0.0], [1.0, 2.0, 0.0]]), np.array([1, 1])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        ("top1", LOGITS, np.array([0, 1, 2, 3]), "label 3, the model 3 classes"),
        ("top1", LOGITS, np.array([0, 1, 2, -1]), "label -1"),
        ("loss", LOGITS, None, "no labels"),
        ("top1", np.full((4, 3), np.nan), Y, "not finite"),
        ("mse", np.full((4, 3), np.inf), None, "not finite"),
        ("mse", np.zeros((4, 2)), None, "that of the original"),
        ("kl", np.zeros(4), None, "that of the original|one score per class"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, outputs: Any, labels: Any, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        values(name, outputs, labels, LOGITS)


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(OnnxPruneError, match="unknown metric 'top2'") as err:
        get_metric("top2")
    assert "top1" in str(err.value)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("user_metrics")
    monkeypatch.setitem(sys.modules, "user_metrics", module)
    return module


def of_all(user: ModuleType, function: Any) -> Any:
    user.f = function  # type: ignore[attr-defined]
    return get_metric("user_metrics:f").of_all([LOGITS], Y, [LOGITS * 2])


def test_a_users_function_gives_one_number_or_one_per_sample(user: ModuleType) -> None:
    assert of_all(user, lambda outputs, labels: 0.25).value == 0.25
    assert of_all(user, lambda outputs, labels: 0.25).error is None
    per_sample = of_all(user, lambda outputs, labels: outputs.argmax(1) == labels)
    assert (per_sample.value, per_sample.error) == (0.5, pytest.approx(0.25))
    assert of_all(user, lambda outputs: float(outputs[0, 0])).value == 2
    assert of_all(user, lambda outputs, labels, reference: (reference - outputs).sum()).value == LOGITS.sum()


def test_a_users_function_says_which_way_is_better(user: ModuleType) -> None:
    def f(outputs: Any, labels: Any) -> float:
        return 0.0

    user.f = f  # type: ignore[attr-defined]
    assert get_metric("user_metrics:f").higher_is_better
    f.higher_is_better = False  # type: ignore[attr-defined]
    assert not get_metric("user_metrics:f").higher_is_better


@pytest.mark.parametrize(
    ("result", "message"),
    [(np.nan, "no finite number"), ([1, 2], r"returned \[2\]"), ("text", "failed: ValueError"), (None, "finite")],
)
def test_a_users_function_that_returns_no_number_is_refused(user: ModuleType, result: Any, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        of_all(user, lambda outputs, labels: result)


def test_a_users_function_that_raises_is_one_error(user: ModuleType) -> None:
    def f(outputs: Any, labels: Any) -> float:
        raise KeyError("boxes")

    with pytest.raises(OnnxPruneError, match="metric 'user_metrics:f' failed: KeyError: 'boxes'"):
        of_all(user, f)


@pytest.mark.parametrize("name", ["no_such_module_here:f", "user_metrics:missing", "user_metrics:", ":f", "math:pi"])
def test_what_cannot_be_imported_is_one_error(user: ModuleType, name: str) -> None:
    with pytest.raises(OnnxPruneError):
        get_metric(name)


def test_modules_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_metric.py").write_text("def f(outputs, labels):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    metric: Metric = get_metric("folder_metric:f")
    assert metric.function is not None
    assert metric.function(None, None) == 0.5
