"""Distances from a teacher's output that training minimizes, by the form of the output.

| output | loss |
|---|---|
| class scores [n, classes], maps [n, classes, h, w] | divergence of class probabilities, `distillation_loss` |
| frames [n, frames, classes] of a recognizer | the same, frames count as samples |
| boxes of an Ultralytics head, [n, 4 + classes, boxes] or [n, boxes, 5 + classes] | `detection_loss` |
| others of three axes | squared error relative to the teacher's variance, `feature_loss` |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.detect import find_head
from onnxprune.execution.tasks.task import ModelView, bind_task
from onnxprune.ir.model import Model
from onnxprune.training._distillation import distillation_loss, feature_loss

TeacherLoss = Callable[[Tensor, Tensor], Tensor]

_BOX_WEIGHT = 5.0  # of boxes against scores; 1 - overlap is small where both models are close
_TINY = 1e-6  # least distance of a score from 0 and 1


def teacher_loss(model: Model, temperature: float) -> TeacherLoss:
    """Return the loss of (student's first output, teacher's) for a model.

    Args:
        model: The student, complete.
        temperature: Temperature of class probabilities; see `distillation_loss`.
    """
    classes = partial(distillation_loss, temperature=temperature)
    view = ModelView(model)
    if not view.outputs or view.outputs[0].rank != 3:
        return classes
    head = find_head(view)
    if head is not None and head[0].kind in ("v8", "v5") and head[0].reads[0] == view.outputs[0].name:
        return partial(detection_loss, classes=head[0].classes, objectness=head[0].kind == "v5")
    try:
        task = bind_task(model).name
    except OnnxPruneError:
        task = ""
    if task == "recognize":
        return lambda student, teacher: classes(student.swapaxes(1, 2), teacher.swapaxes(1, 2))
    return lambda student, teacher: feature_loss([student], [teacher])


def detection_loss(student: Tensor, teacher: Tensor, *, classes: int | None = None, objectness: bool = False) -> Tensor:
    """Return the divergence of raw boxes and scores from the teacher's, 0 if they are equal.

    The divergence of every score, in nats, plus the complete IoU loss (Zheng et al. 2020) of every box times the
    teacher's largest score for it, both over the sum of these largest scores: about one unit per object.

    Args:
        student: Output of the student; gradients go there.
        teacher: Output of the teacher, of the same shape.
        classes: Number of classes; None: as many as there are. What follows the classes does not count.
        objectness: [n, boxes, 5 + classes], scores are multiplied by the objectness; else [n, 4 + classes, boxes].

    Raises:
        OnnxPruneError: Other shapes.
    """
    if student.shape != teacher.shape or student.ndim != 3:
        raise OnnxPruneError(
            f"the student's boxes are {list(student.shape)}, the teacher's {list(teacher.shape)}",
            fix="use the model that the student was pruned from",
        )
    (boxes, scores), (wanted, sure) = (
        _split(side if objectness else side.swapaxes(1, 2), classes, objectness) for side in (student, teacher.detach())
    )
    q, p = scores.clamp(_TINY, 1 - _TINY), sure.clamp(_TINY, 1 - _TINY)
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()
    weight = sure.amax(-1).flatten()
    boxes, wanted = boxes.flatten(0, 1), wanted.flatten(0, 1)
    # A box without extent has no IoU, and its gradient would be NaN.
    real = (weight > _TINY) & (_extent(boxes.detach()) > 0) & (_extent(wanted) > 0)
    apart = complete_box_iou_loss(boxes[real], wanted[real], reduction="none")
    return (divergence + _BOX_WEIGHT * (weight[real] * apart).sum()) / weight.sum().clamp_min(1.0)


def _extent(corners: Tensor) -> Tensor:
    """Return the shorter side of boxes."""
    return (corners[..., 2:] - corners[..., :2]).amin(-1)


def _split(rows: Tensor, classes: int | None, objectness: bool) -> tuple[Tensor, Tensor]:
    """Return corners [n, boxes, 4] and scores [n, boxes, classes]."""
    first = 5 if objectness else 4
    half = rows[..., 2:4] / 2
    scores = rows[..., first : None if classes is None else first + classes]
    if objectness:
        scores = scores * rows[..., 4:5] if scores.shape[-1] else rows[..., 4:5]
    return torch.cat([rows[..., :2] - half, rows[..., :2] + half], -1), scores
