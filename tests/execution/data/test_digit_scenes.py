"""Scenes are the same on every run, and their boxes surround what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Feeds, Preprocess, load_data
from onnxprune.execution.data.digit_scenes import COUNTS, NAMES, SIZE, digit_scene, read_digits, split_digits
from onnxprune.ir.reader import load

ROOT = Path(__file__).parent.parent.parent.parent


def test_a_scene_follows_from_part_index_and_seed() -> None:
    pixels, boxes, classes = digit_scene("test", 5)
    again = digit_scene("test", 5)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    for a, b in zip((pixels, boxes, classes), again, strict=True):
        np.testing.assert_array_equal(a, b)
    for other in (digit_scene("test", 6), digit_scene("train", 5), digit_scene("test", 5, seed=1)):
        assert (other[0] != pixels).any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["train", "test"]), st.integers(64, 160), st.integers(64, 160))
def test_boxes_lie_in_the_scene_and_hardly_overlap(index: int, part: str, height: int, width: int) -> None:
    pixels, boxes, classes = digit_scene(part, index, size=(height, width))
    assert pixels.shape == (height, width, 3)
    assert boxes.shape == (len(classes), 4)
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 3).all()
    assert ((classes >= 0) & (classes < len(NAMES))).all()
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            shared = np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0))
            assert shared <= 0.1 * min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])) + 1e-3


def test_digits_differ_from_what_surrounds_them() -> None:
    contrasts = []
    for index in range(40):
        pixels, boxes, _ = digit_scene("test", index)
        for x1, y1, x2, y2 in boxes.astype(int):
            inside = pixels[y1:y2, x1:x2].astype(np.float64)
            contrasts.append(inside.std((0, 1)).max())
    assert np.median(contrasts) > 25
    assert len(contrasts) > 60
    assert len({int(c) for i in range(40) for c in digit_scene("test", i)[2]}) == 10


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="no part 'val'") as refused:
        digit_scene("val", 0)
    assert "digit-scenes:train" in str(refused.value)


def test_the_source_yields_bytes_and_boxes_of_the_scenes() -> None:
    data = load_data("digit-scenes:test", images=5)
    model = load(ROOT / "models" / "digits_detector.onnx")
    feeds = Feeds(model, data, Preprocess(), 3)
    feed, targets = feeds[1]
    assert len(feeds) == 2
    assert data.kind == "boxes"
    pixels, boxes, classes = digit_scene("test", 3)
    np.testing.assert_allclose(feed["images"][0], pixels.transpose(2, 0, 1) / np.float32(255), rtol=1e-6)
    assert targets is not None
    np.testing.assert_array_equal(targets[0].boxes, boxes)
    np.testing.assert_array_equal(targets[0].classes, classes)
    assert len(load_data("digit-scenes")) == COUNTS["test"]
    assert load_data("digit-scenes:train").digest() != load_data("digit-scenes:test").digest()


def test_an_unknown_part_of_the_source_is_refused() -> None:
    with pytest.raises(OnnxPruneError, match="no part 'val'"):
        load_data("digit-scenes:val")


def test_the_digits_that_ship_are_those_of_scikit_learn() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    for part in ("train", "test"):
        index = split_digits(len(digits.target), part)
        images, labels = read_digits(part)
        assert images.dtype == np.float32
        assert np.array_equal(images, (digits.images[index] / 16).astype(np.float32))
        assert labels.dtype == np.int64
        assert np.array_equal(labels, digits.target[index])
