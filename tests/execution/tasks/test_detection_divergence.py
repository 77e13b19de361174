"""The divergence of boxes and scores is smooth, ignores the background, and replaces the squared error of detectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.execution.tasks._boxes import RAW_HEADS, Head, divergence
from onnxprune.execution.tasks.output_distance import OutputDistance
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load

Array = npt.NDArray[np.float64]


def detector(metadata: bool = True) -> Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,32,32] x) => (float[N,7,21] y) { y = Identity (x) }'
    )
    del proto.graph.value_info[:]
    if metadata:
        onnx.helper.set_model_props(proto, {"task": "detect", "names": "{0: 'a', 1: 'b', 2: 'c'}"})
    return load(proto)


def heads(rng: np.random.Generator, n: int = 2, anchors: int = 21) -> Array:
    """Outputs [n, 7, anchors] with one certain box per image."""
    centre, size = rng.uniform(8, 24, (n, 2, anchors)), rng.uniform(4, 12, (n, 2, anchors))
    scores = rng.uniform(0.0, 0.01, (n, 3, anchors))
    scores[:, 1, 4] = 0.9
    return np.concatenate([centre, size, scores], 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 0.2))
def test_it_is_zero_at_equality_and_grows_with_the_change(seed: int, step: float) -> None:
    rng = np.random.default_rng(seed)
    whole = heads(rng)
    raw = Head("v8", ("y",), 3).raw
    reference = raw([whole])
    assert reference is not None
    np.testing.assert_allclose(divergence(reference, reference), 0, atol=1e-9)
    near, far = whole.copy(), whole.copy()
    near[:, 1 + 4, 4] -= step
    far[:, 1 + 4, 4] -= 2 * step
    a, b = (divergence(found, reference) for x in (near, far) if (found := raw([x])) is not None)
    assert (a > 0).all()
    assert (b > a).all()


def test_boxes_of_the_background_hardly_count() -> None:
    whole = heads(np.random.default_rng(0))
    raw = Head("v8", ("y",), 3).raw
    background, object_ = whole.copy(), whole.copy()
    background[:, 0, 5:] += 5
    object_[:, 0, 4] += 5
    found = [divergence(a, b).sum() for x in (background, object_) if (a := raw([x])) and (b := raw([whole]))]
    assert found[0] < 0.2 * found[1]


@pytest.mark.parametrize("kind", RAW_HEADS)
def test_raw_boxes_are_those_that_are_decoded(kind: str) -> None:
    rng = np.random.default_rng(1)
    outputs: list[Any]
    if kind == "v8":
        outputs = [heads(rng)]
    elif kind == "v5":
        rows = heads(rng).swapaxes(1, 2)
        outputs = [np.concatenate([rows[..., :4], np.full((2, 21, 1), 0.8), rows[..., 4:]], 2)]
    else:
        outputs = [rng.normal(0, 3, (2, 6, 4)), rng.uniform(0.2, 0.6, (2, 6, 4))]
    head = Head(kind, ("y", "boxes")[: len(outputs)])
    found = head.raw(outputs)
    assert found is not None
    boxes, scores = found
    scale = 1.0 if kind in ("v5", "v8") else 100.0
    for image, decoded in enumerate(head.decode(outputs, 2, (100, 100))):
        place = np.unravel_index(scores[image].argmax(), scores[image].shape)
        assert decoded.scores[0] == pytest.approx(scores[image].max())
        np.testing.assert_allclose(decoded.boxes[0], boxes[image][place[0]] * scale)
        assert decoded.classes[0] == place[1]


def test_lists_of_boxes_have_no_raw_form() -> None:
    assert Head("end2end", ("y",)).raw([np.zeros((1, 4, 6))]) is None


def test_the_distance_of_a_detector_weighs_scores_and_that_of_others_does_not() -> None:
    whole = heads(np.random.default_rng(2))
    lost, moved = whole.copy(), whole.copy()
    lost[:, 1 + 4, 4] = 0.05  # no object is found any more
    moved[:, :4, 5:] += 1.0  # the background moved
    for model, first_is_larger in ((detector(), True), (detector(metadata=False), True), (None, False)):
        distance = OutputDistance(["y"], [{"y": whole}], model)
        assert distance([{"y": whole}]) == pytest.approx(0, abs=1e-9)
        assert (distance([{"y": lost}]) > distance([{"y": moved}])) is first_is_larger
