"""Segmentation, from hand-made maps."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks._resize import resized
from onnxprune.execution.tasks.metrics import Outcome
from onnxprune.execution.tasks.segment import Maps, SegmentationWatch, _Counts, mean_iou, pixel_accuracy


def outcome(scores: np.ndarray, masks: list[np.ndarray], reference: np.ndarray | None = None) -> Outcome:
    return Outcome([scores], masks, () if reference is None else [reference], len(scores))


def one_hot(classes: np.ndarray, count: int) -> np.ndarray:
    return np.moveaxis(np.eye(count)[classes], -1, 1).astype(np.float32)


def test_linear_resizing_is_that_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    for size in ((10, 8), (7, 9), (3, 2), (5, 4)):
        wanted = torch.nn.functional.interpolate(torch.from_numpy(maps), size=size, mode="bilinear")
        assert resized(maps, size) == pytest.approx(wanted.numpy(), abs=1e-5)


def test_classes_are_resized_to_the_nearest() -> None:
    assert resized(np.array([[0, 1], [2, 3]]), (4, 4))[0].tolist() == [0, 0, 1, 1]


def test_mean_iou_and_pixel_accuracy_of_a_case_computed_by_hand() -> None:
    mask = np.array([[0, 0, 1, 255]])
    records = _Counts(Maps(1, 3))(outcome(one_hot(np.array([[[0, 1, 1, 2]]]), 3), [mask]))
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 occurs nowhere.
    assert mean_iou(records).value == pytest.approx(0.5)
    assert pixel_accuracy(records).value == pytest.approx(2 / 3)
    assert mean_iou(records).error is None  # one image has no spread


def test_the_error_is_that_of_leaving_out_one_image() -> None:
    rng = np.random.default_rng(1)
    masks = [rng.integers(0, 3, (6, 6)) for _ in range(5)]
    scores = rng.standard_normal((5, 3, 6, 6)).astype(np.float32)
    counts = _Counts(Maps(1, 3))
    records = list(counts(outcome(scores, masks)))
    each = [mean_iou(records[:i] + records[i + 1 :]).value for i in range(5)]
    assert mean_iou(records).error == pytest.approx(np.sqrt(4 / 5 * np.square(np.array(each) - np.mean(each)).sum()))


def test_small_maps_channels_last_single_scores_and_class_maps() -> None:
    mask = np.array([[0, 0, 1, 1]] * 2)
    small = one_hot(np.array([[[0, 1]]]), 2)  # [1, 2, 1, 2]
    for maps, scores in (
        (Maps(1, 2), small),
        (Maps(3, 2), np.moveaxis(small, 1, -1)),
        (Maps(1, 1), np.array([[[[-2.0, 2.0]]]])),
        (Maps(1, 1, True), np.array([[[[0.1, 0.9]]]])),
        (Maps(None, None), np.array([[[0, 1]]])),
    ):
        assert mean_iou(_Counts(maps)(outcome(scores, [mask]))).value == 1


def test_distances_from_the_original() -> None:
    a = one_hot(np.array([[[0, 1], [1, 0]]]), 2)
    b = one_hot(np.array([[[0, 1], [1, 1]]]), 2)
    counts = _Counts(Maps(1, 2))
    assert counts.agreement(outcome(b, [], a)) == [0.75]
    assert counts.divergence(outcome(a, [], a)) == [0]
    assert counts.divergence(outcome(b, [], a))[0] > 1


def test_a_class_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="a mask has the class 7, the model 2 classes"):
        _Counts(Maps(1, 2))(outcome(one_hot(np.zeros((1, 2, 2), np.int64), 2), [np.full((2, 2), 7)]))


def test_masks_that_are_off_by_one_are_named() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(1, 4, (8, 5, 5))
    watch = SegmentationWatch(Maps(1, 4))
    watch.add(outcome(one_hot(classes, 4), list(classes - 1)))
    assert "off by one: 100.0% of the pixels fit if every class were one larger" in watch.warnings({})[0]
    constant = SegmentationWatch(Maps(1, 4))
    constant.add(outcome(one_hot(np.zeros((8, 5, 5), np.int64), 4), list(rng.integers(0, 4, (8, 5, 5)))))
    assert constant.warnings({}) == ["the model gives every pixel the class 0: check the preprocessing"]
