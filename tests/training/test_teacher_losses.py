"""Each form of output has its loss, zero at the teacher's own output, and training reduces it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.training import Settings, retrain
from onnxprune.training._distillation import distillation_loss
from onnxprune.training._teacher_losses import detection_loss, teacher_loss


def model_of(
    text: str, metadata: dict[str, str] | None = None, shapes: dict[str, tuple[int, ...]] | None = None
) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    rng = np.random.default_rng(0)
    for name, shape in (shapes or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name))
    onnx.helper.set_model_props(proto, metadata or {})
    return load(proto)


YOLO = {"task": "detect", "names": "{0: 'a', 1: 'b', 2: 'c'}"}


def detector() -> Model:
    """A head [n, 7, 16]: sizes and places by exp, scores by sigmoid."""
    return model_of(
        "g (float[N,3,16,16] x) => (float[N,7,16] y) "
        "{ a = Conv <strides=[4,4], kernel_shape=[4,4]> (x, w0) b = Relu (a) "
        "c = Conv (b, w1) d = Exp (c) e = Conv (b, w2) f = Sigmoid (e) g = Concat <axis=1> (d, f) "
        "shape = Constant <value_ints=[0, 7, 16]> () y = Reshape (g, shape) }",
        YOLO,
        {"w0": (12, 3, 4, 4), "w1": (4, 12, 1, 1), "w2": (3, 12, 1, 1)},
    )


def boxes(seed: int, n: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    whole = np.concatenate([rng.uniform(4, 12, (n, 4, 16)), rng.uniform(0.01, 0.99, (n, 3, 16))], 1)
    return torch.from_numpy(whole.astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_detection_loss_is_zero_for_the_teacher_and_falls_along_its_gradient(seed: int, objectness: bool) -> None:
    teacher, student = boxes(seed), boxes(seed + 1)
    if objectness:
        teacher, student = (torch.cat([t[:, :4], t[:, 4:5], t[:, 4:]], 1).swapaxes(1, 2) for t in (teacher, student))
    options = {"classes": 3, "objectness": objectness}
    assert float(detection_loss(teacher, teacher, **options)) == pytest.approx(0, abs=1e-5)
    student = student.clone().requires_grad_()
    before = detection_loss(student, teacher, **options)
    before.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    with torch.no_grad():
        after = detection_loss(student - 1e-3 * student.grad, teacher, **options)
    assert 0 < float(after) < float(before.detach())


def test_boxes_without_extent_are_no_obstacle() -> None:
    teacher = boxes(0)
    teacher[:, 2:4, 8:] = 0
    teacher[:, 4:, 8:] = 0
    student = teacher.clone().requires_grad_()
    detection_loss(student, teacher, classes=3).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(OnnxPruneError, match="boxes are"):
        detection_loss(boxes(0), boxes(0)[:, :, :8])


def test_the_form_of_the_output_chooses_the_loss() -> None:
    ours, theirs = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    frames = model_of("g (float[N,3,8,20] x) => (float[N,5,4] y) { y = Identity (x) }", {"character": "a\nb\nc"})
    expected = distillation_loss(ours.reshape(10, 4), theirs.reshape(10, 4), 2.0)
    assert float(teacher_loss(frames, 2.0)(ours, theirs)) == pytest.approx(float(expected), rel=1e-5)
    scores = model_of("g (float[N,4] x) => (float[N,4] y) { y = Identity (x) }")
    assert float(teacher_loss(scores, 2.0)(ours[:, 0], theirs[:, 0])) == pytest.approx(
        float(distillation_loss(ours[:, 0], theirs[:, 0], 2.0))
    )
    found = teacher_loss(detector(), 2.0)
    assert float(found(boxes(0), boxes(1))) == pytest.approx(float(detection_loss(boxes(0), boxes(1), classes=3)))


def test_a_detector_learns_from_its_teacher_without_labels() -> None:
    teacher = detector()
    student = detector()
    rng = np.random.default_rng(5)
    for t in student.graph.tensors().values():
        if t.name in ("w1", "w2"):
            t.values = t.values + rng.normal(0, 0.1, t.values.shape).astype(np.float32)
    data = Data(rng.normal(0, 1, (96, 3, 16, 16)).astype(np.float32), None, "noise")
    options = Settings(epochs=4, batch=16, lr=0.003, optimizer="adamw", device="cpu", threads=1, insert_batchnorm=False)
    result = retrain(student, data, teacher=teacher, settings=options)
    assert result.improved
    assert result.after.loss < 0.85 * result.before.loss
