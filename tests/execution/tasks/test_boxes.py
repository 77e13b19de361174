"""Boxes of detectors, from hand-made outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks._boxes import (
    Detections,
    Head,
    agreement,
    corners,
    overlaps,
    suppressed,
)
from onnxprune.execution.tasks.detect import mean_average_precision

SIZE = (100, 200)  # height, width


@dataclass(frozen=True)
class Truth:
    boxes: Any
    classes: Any
    crowd: Any


def truth(boxes: Any, classes: Any, crowd: Any = None) -> Truth:
    return Truth(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(classes, np.int64),
                 np.zeros(len(classes), np.bool_) if crowd is None else np.asarray(crowd, np.bool_))  # fmt: skip


def found(boxes: Any, classes: Any, scores: Any) -> Detections:
    return Detections(np.asarray(boxes, np.float64).reshape(-1, 4), np.asarray(classes, np.int64),
                      np.asarray(scores, np.float64))  # fmt: skip


def test_centre_and_size_become_corners() -> None:
    assert corners(np.array([[10.0, 20, 4, 8]])).tolist() == [[8, 16, 12, 24]]


def test_overlap_is_intersection_over_union() -> None:
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]])
    assert overlaps(a, b)[0].tolist() == pytest.approx([1, 50 / 150, 0, 0])


def test_v8_head_suppresses_overlapping_boxes_of_one_class() -> None:
    out = np.zeros((1, 6, 4))  # [n, 4 + 2 classes, boxes]
    out[0, :4] = np.array([[50, 50, 20, 20], [51, 50, 20, 20], [51, 50, 20, 20], [150, 50, 20, 20]]).T
    out[0, 4:] = np.array([[0.9, 0], [0.8, 0], [0, 0.7], [0, 0.0005]]).T
    [boxes] = Head("v8", ("o",)).decode([out], 1, SIZE)
    assert boxes.classes.tolist() == [0, 1]  # the second is suppressed, the third is of another class
    assert boxes.scores.tolist() == [0.9, 0.7]
    assert boxes.boxes[0].tolist() == [40, 40, 60, 60]


def test_v8_head_ignores_what_follows_the_classes() -> None:
    out = np.zeros((1, 4 + 1 + 3, 1))
    out[0, :, 0] = [50, 50, 20, 20, 0.5, 9, 9, 9]  # one class and three mask coefficients
    [boxes] = Head("v8", ("o",), 1).decode([out], 1, SIZE)
    assert (boxes.classes.tolist(), boxes.scores.tolist()) == ([0], [0.5])


def test_v5_head_multiplies_objectness_and_class() -> None:
    out = np.array([[[50, 50, 20, 20, 0.5, 0.2, 0.8], [150, 50, 20, 20, 0.0, 1, 1]]])
    [boxes] = Head("v5", ("o",)).decode([out], 1, SIZE)
    assert boxes.scores.tolist() == pytest.approx([0.4, 0.1])
    assert boxes.classes.tolist() == [1, 0]


def test_v5_head_of_one_class_without_a_class_column() -> None:
    [boxes] = Head("v5", ("o",)).decode([np.array([[[50, 50, 20, 20, 0.5]]])], 1, SIZE)
    assert (boxes.classes.tolist(), boxes.scores.tolist()) == ([0], [0.5])


def test_yolox_head_is_placed_on_its_grids() -> None:
    out = np.zeros((1, 16 + 4 + 1, 7))  # an image of 32 by 32: grids of 4, 2 and 1 cells
    out[0, 5] = [0.5, 0.25, np.log(2), 0, 1, 0.9, 0]  # second row, second cell of the stride 8
    out[0, 20] = [0.5, 0.5, 0, 0, 1, 0, 0.8]
    [boxes] = Head("yolox", ("o",)).decode([out], 1, (32, 32))
    assert boxes.boxes.tolist() == [[4, 6, 20, 14], [0, 0, 32, 32]]
    assert boxes.classes.tolist() == [0, 1]
    with pytest.raises(OnnxPruneError, match="not those of an image of 64 by 64"):
        Head("yolox", ("o",)).decode([out], 1, (64, 64))


def test_end_to_end_head_drops_empty_rows() -> None:
    out = np.array([[[1, 2, 3, 4, 0.3, 2], [5, 6, 7, 8, 0.9, 1], [0, 0, 0, 0, 0, 0]]])
    [boxes] = Head("end2end", ("o",)).decode([out], 1, SIZE)
    assert (boxes.classes.tolist(), boxes.scores.tolist()) == ([1, 2], [0.9, 0.3])
    assert boxes.boxes[0].tolist() == [5, 6, 7, 8]


def test_detr_head_is_softmax_without_the_last_class_in_pixels() -> None:
    logits = np.log(np.array([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]]))
    boxes = np.array([[[0.5, 0.5, 0.2, 0.4], [0.5, 0.5, 0.1, 0.1]]])
    [got] = Head("detr", ("logits", "pred_boxes")).decode([logits, boxes], 1, SIZE)
    assert got.classes[0] == 0
    assert got.scores[0] == pytest.approx(0.7)
    assert got.boxes[0].tolist() == pytest.approx([80, 30, 120, 70])
    assert len(got.scores) == 3  # a query is its best class; both of the second are equal


def test_rtdetr_head_is_a_sigmoid_of_every_class() -> None:
    logits = np.array([[[2.0, -2.0]]])
    [got] = Head("rtdetr", ("logits", "pred_boxes")).decode([logits, np.array([[[0.5, 0.5, 1, 1]]])], 1, SIZE)
    assert got.scores.tolist() == pytest.approx([1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))])
    assert got.classes.tolist() == [0, 1]
    assert got.boxes[0].tolist() == [0, 0, 200, 100]


def test_torchvision_counts_the_background_as_class_0() -> None:
    outputs = [np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]), np.array([0.2, 0.6]), np.array([3, 1])]
    head = Head("torchvision", ("boxes", "scores", "labels"))
    [got] = head.decode(outputs, 1, SIZE)
    assert (got.classes.tolist(), got.scores.tolist()) == ([0, 2], [0.6, 0.2])
    with pytest.raises(OnnxPruneError, match="cannot be told apart"):
        head.decode(outputs, 2, SIZE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(OnnxPruneError, match="not finite"):
        Head("v8", ("o",)).decode([np.full((1, 6, 3), value)], 1, SIZE)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(OnnxPruneError, match="not those of 2 images"):
        Head("v8", ("o",)).decode([np.zeros((1, 6, 3))], 2, SIZE)


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_suppression_equals_one_box_after_the_other(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 30, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 30, (count, 2))], 1)
    all_boxes = found(boxes, rng.integers(0, 2, count), np.sort(rng.uniform(0.1, 1, count))[::-1])
    kept: list[int] = []
    shared = overlaps(boxes, boxes)
    for i in range(count):
        if not any(all_boxes.classes[j] == all_boxes.classes[i] and shared[i, j] > 0.5 for j in kept):
            kept.append(i)
    assert suppressed(all_boxes, 0.5).scores.tolist() == all_boxes.scores[kept].tolist()


def test_agreement_is_weighted_by_overlap_and_counts_what_is_missing() -> None:
    a = found([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 1], [0.9, 0.8])
    assert agreement(a, a) == 1
    assert agreement(a, found([], [], [])) == 0
    assert agreement(found([], [], []), found([], [], [])) == 1
    half = found([[0, 0, 10, 8]], [0], [0.9])
    assert agreement(a, half) == pytest.approx(2 * 0.8 / 3)
    assert agreement(found([[0, 0, 10, 10]], [1], [0.9]), found([[0, 0, 10, 10]], [0], [0.9])) == 0


def test_mean_average_precision_of_a_case_computed_by_hand() -> None:
    # Two targets; the first box hits one exactly, the second misses, the third hits the other with an overlap of 0.8.
    # At overlaps to 0.8: precision 1 up to a recall of 0.5, then 2 / 3; above 0.8 only the first part.
    records = [
        (found([[0, 0, 10, 10], [50, 50, 60, 60], [20, 20, 30, 28]], [0, 0, 0], [0.9, 0.8, 0.7]),
         truth([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0]))
    ]  # fmt: skip
    points = np.linspace(0, 1, 101)
    full = np.mean(np.where(points <= 0.5, 1.0, 2 / 3))
    part = np.mean(np.where(points <= 0.5, 1.0, 0.0))
    assert mean_average_precision(records, at=0.5).value == pytest.approx(full, abs=1e-6)
    assert mean_average_precision(records).value == pytest.approx((7 * full + 3 * part) / 10, abs=1e-6)
    assert mean_average_precision(records).error is None


def test_crowds_neither_count_nor_hurt() -> None:
    box = [[0, 0, 10, 10]]
    both = truth([*box, [20, 20, 40, 40]], [0, 0], [False, True])
    inside = found([*box, [22, 22, 38, 38]], [0, 0], [0.9, 0.8])
    assert mean_average_precision([(inside, both)]).value == pytest.approx(1)


def test_nothing_found_is_zero_and_nothing_to_find_is_an_error() -> None:
    none = found([], [], [])
    assert mean_average_precision([(none, truth([[0, 0, 10, 10]], [0]))]).value == 0
    with pytest.raises(OnnxPruneError, match="hold no boxes"):
        mean_average_precision([(none, truth([], []))])
