"""Detection: COCO mean average precision, and agreement with the original's boxes without targets.

The standard error of a mean average precision would need hundreds of evaluations, so it has none.
"""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks._boxes import (
    GRIDS,
    LEAST_SCORE,
    RAW_HEADS,
    BoxTargets,
    Detections,
    Head,
    agreement,
    divergence,
    overlaps,
)
from onnxprune.execution.tasks.metrics import Metric, MetricValue, Outcome, numbers
from onnxprune.execution.tasks.task import TASKS, BoundTask, ModelView, Task, Tensor, Watch
from onnxprune.ir.model import Array
from onnxprune.options.tasks import TaskOptions

SCORE = 0.25  # of the original's boxes that serve as targets
_ENOUGH = 20  # images from which a figure is judged implausible
_ULTRALYTICS = ("detect", "segment", "pose", "obb")


@dataclass(frozen=True)
class _ReferenceBoxes:
    """Boxes of the original as targets."""

    boxes: Array
    classes: Array

    @property
    def crowd(self) -> Array:
        return np.zeros(len(self.classes), np.bool_)


class DetectionWatch(Watch):
    """Looks for classes off by one, boxes in another scale, and models that detect nothing."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.records: list[tuple[Detections, BoxTargets]] = []

    def add(self, outcome: Outcome) -> None:
        if outcome.targets is not None and len(self.records) < 500:
            found = self.head.decode(outcome.outputs, outcome.count, outcome.size)
            self.records += list(zip(found, outcome.targets, strict=True))

    def warnings(self, values: Mapping[str, MetricValue]) -> list[str]:
        if len(self.records) < _ENOUGH:
            return []
        best = values.get("map50", values.get("map"))
        if best is None or best.value > 0.02:
            return []
        if not any(len(found.above(0.05).scores) for found, _ in self.records):
            return ["the model detects nothing with a score of 0.05: check the preprocessing (scale, --mean, --std)"]
        hits = {shift: self._hits(shift) for shift in (0, 1, -1)}
        shift = max(hits, key=lambda s: hits[s])
        if shift and hits[shift] > 3 * hits[0] + 5:
            more = "larger" if shift > 0 else "smaller"
            return [
                f"the classes of the targets look off by one: {hits[shift]} boxes fit the targets if every class were "
                f"one {more}, {hits[0]} as they are; check the order of the categories"
            ]
        ours = [f.above(0.05).boxes for f, _ in self.records if len(f.above(0.05).boxes)]
        theirs = [t.boxes for _, t in self.records if len(t.boxes)]
        if ours and theirs:
            largest = [float(np.concatenate(side).max()) for side in (ours, theirs)]
            if max(largest) > 20 * max(min(largest), 1e-9):
                return [
                    f"the model's boxes reach to {largest[0]:.4g} and those of the targets to {largest[1]:.4g}: one of "
                    "them is a share of the image, the other in pixels"
                ]
        return ["the boxes of the model fit no target: check the preprocessing (--preprocess, --size) and the targets"]

    def _hits(self, shift: int) -> int:
        """Return the number of targets that a box of their class, moved by the shift, overlaps by half."""
        total = 0
        for found, target in self.records:
            if len(found.scores) and len(target.classes):
                near = overlaps(np.asarray(target.boxes, np.float64), found.boxes) >= 0.5
                same = np.asarray(target.classes)[:, None] + shift == found.classes[None]
                total += int((near & same).any(1).sum())
        return total


@dataclass(frozen=True)
class _Collector:
    """Records of a batch: the boxes of each image beside those of its targets."""

    head: Head
    of_original: bool

    def __call__(self, outcome: Outcome) -> Sequence[tuple[Detections, BoxTargets]]:
        found = self.head.decode(outcome.outputs, outcome.count, outcome.size)
        if self.of_original:
            return list(zip(found, map(_as_targets, self._reference(outcome)), strict=True))
        assert outcome.targets is not None
        for target in outcome.targets:
            self._check(target)
        return list(zip(found, outcome.targets, strict=True))

    def _reference(self, outcome: Outcome) -> list[Detections]:
        return self.head.decode(outcome.reference, outcome.count, outcome.size)

    def _check(self, target: BoxTargets) -> None:
        classes = np.asarray(target.classes)
        if (
            self.head.classes is not None
            and len(classes)
            and not 0 <= classes.min() <= classes.max() < self.head.classes
        ):
            worst = int(classes.max() if classes.max() >= self.head.classes else classes.min())
            raise OnnxPruneError(f"the data has boxes of the class {worst}, the model {self.head.classes} classes")

    def agreement(self, outcome: Outcome) -> Sequence[float]:
        """Return the agreement with the original's boxes of each image."""
        found = self.head.decode(outcome.outputs, outcome.count, outcome.size)
        pairs = zip(found, self._reference(outcome), strict=True)
        return [
            agreement(ours.above(least), theirs.above(least)) for ours, theirs in pairs for least in [_least(theirs)]
        ]

    def divergence(self, outcome: Outcome) -> Sequence[float]:
        """Return the divergence of raw boxes and scores from the original's, of each image.

        Raises:
            OnnxPruneError: The outputs are lists of boxes.
        """
        ours, theirs = (self.head.raw(side) for side in (outcome.outputs, outcome.reference))
        if ours is None or theirs is None:
            raise OnnxPruneError("the model's boxes have been selected, so that they cannot be compared one by one")
        return numbers(divergence(ours, theirs)[: outcome.count])


def _least(reference: Detections) -> float:
    """Return the score from which the original's boxes count: 0.25, or half of the largest where that is below."""
    return min(SCORE, max(LEAST_SCORE, float(reference.scores[0]) / 2)) if len(reference.scores) else SCORE


def _as_targets(reference: Detections) -> _ReferenceBoxes:
    chosen = reference.above(_least(reference))
    return _ReferenceBoxes(chosen.boxes, chosen.classes)


def mean_average_precision(records: Sequence[tuple[Detections, BoxTargets]], *, at: float | None = None) -> MetricValue:
    """Return COCO's mean average precision, of overlaps 0.5 to 0.95, or of one overlap.

    Raises:
        OnnxPruneError: faster-coco-eval is missing, or no image has a box.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as err:
        raise OnnxPruneError(
            f"mean average precision needs faster-coco-eval ({err})", fix="pip install 'onnxprune[detect]'"
        ) from err
    annotations: list[dict[str, Any]] = []
    rows: list[list[float]] = []
    for image, (found, target) in enumerate(records, 1):
        for box, label, crowd in zip(target.boxes, target.classes, target.crowd, strict=True):
            x, y, width, height = _xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": int(label), "iscrowd": int(crowd),
                    "bbox": [x, y, width, height], "area": width * height,
                }
            )  # fmt: skip
        for box, label, score in zip(*found, strict=True):
            rows.append([image, *_xywh(box), float(score), int(label)])
    if not any(not a["iscrowd"] for a in annotations):
        raise OnnxPruneError("the targets hold no boxes, so there is nothing to detect", fix="check the annotations")
    if not rows:
        return MetricValue(0.0, None)
    classes = sorted({int(a["category_id"]) for a in annotations} | {int(r[6]) for r in rows})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(len(records))],
            "categories": [{"id": c, "name": str(c)} for c in classes],
            "annotations": annotations,
        }
        truth.createIndex()
        counted = COCOeval_faster(truth, truth.loadRes(np.asarray(rows, np.float64)), "bbox")
        if at is not None:
            counted.params.iouThrs = np.array([at])
        counted.evaluate()
        counted.accumulate()
    precision = np.asarray(counted.eval["precision"])[:, :, :, 0, -1]  # of all areas, the most detections
    valid = precision[precision > -1]
    return MetricValue(float(valid.mean()) if valid.size else 0.0, None)


def _xywh(box: Array) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return x1, y1, x2 - x1, y2 - y1


def _class_count(view: ModelView) -> int | None:
    """Return the number of classes in the metadata of an Ultralytics model; None for other models."""
    try:
        names = ast.literal_eval(view.metadata.get("names", ""))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return len(names) if isinstance(names, dict | list | tuple) and names else None


def find_head(view: ModelView, *, lenient: bool = False) -> tuple[Head, str] | None:
    """Return the head of a detector, with the reason; None if the outputs are not clearly those of one.

    Args:
        view: The model.
        lenient: Accept outputs by their shapes alone, for models that are said to be detectors.
    """
    outputs = {t.name: t for t in view.outputs}
    if {"logits", "pred_boxes"} <= outputs.keys():
        kind = "rtdetr" if view.operators & {"TopK", "GridSample"} else "detr"
        return Head(kind, ("logits", "pred_boxes")), "RT-DETR head" if kind == "rtdetr" else "DETR head"
    if {"boxes", "labels", "scores"} <= outputs.keys():
        return Head("torchvision", ("boxes", "scores", "labels")), "boxes, labels and scores"
    three = _unnamed_torchvision(view)
    if three is not None:
        return three, "boxes, labels and scores"
    raw = next((t for t in view.outputs if t.rank == 3 and t.dtype.kind in "fV"), None)
    return _raw_head(view, raw, lenient) if raw is not None else None


def _unnamed_torchvision(view: ModelView) -> Head | None:
    if len(view.outputs) != 3:
        return None
    boxes = [t for t in view.outputs if t.rank == 2 and t.size(1) == 4]
    lists = [t for t in view.outputs if t.rank == 1]
    labels, scores = [t for t in lists if t.dtype.kind in "iu"], [t for t in lists if t.dtype.kind in "fV"]
    if len(boxes) != 1 or len(labels) != 1 or len(scores) != 1:
        return None
    return Head("torchvision", (boxes[0].name, scores[0].name, labels[0].name))


def _raw_head(view: ModelView, raw: Tensor, lenient: bool) -> tuple[Head, str] | None:
    """Return the head of an output [n, a, b]."""
    classes = _class_count(view)
    ultralytics = classes is not None and view.metadata.get("task", "detect") in _ULTRALYTICS
    rows, columns = raw.size(1), raw.size(2)
    if columns == 6 and view.operators & {"TopK", "NonMaxSuppression"}:
        return Head("end2end", (raw.name,), classes), "boxes after suppression [n, boxes, 6]"
    if ultralytics and classes is not None:
        if rows is not None and rows >= 4 + classes and (columns is None or columns > rows):
            return Head("v8", (raw.name,), classes), "Ultralytics head"
        if columns is not None and columns >= 5 + classes:
            return Head("v5", (raw.name,), classes), "Ultralytics head"
    cells = _cells(view)
    if cells is not None and columns == cells and rows is not None and rows > 4:
        return Head("v8", (raw.name,)), f"one output [n, 4 + {rows - 4} classes, {columns} boxes]"
    if cells is not None and rows == 3 * cells and columns is not None and columns > 4:
        return Head("v5", (raw.name,)), f"one output [n, {rows} boxes, 5 + {columns - 5} classes]"
    if cells is not None and rows == cells and columns is not None and columns > 5:
        kind = "yolox" if _is_raw(view, raw) else "v5"
        return Head(kind, (raw.name,)), f"one output [n, {rows} boxes, 5 + {columns - 5} classes]"
    if not lenient:
        return None
    if rows is not None and rows > 4 and (columns is None or columns > rows):
        return Head("v8", (raw.name,)), f"one output [n, 4 + {rows - 4} classes, boxes]"
    if columns is not None and columns > 5:
        return Head("v5", (raw.name,)), f"one output [n, boxes, 5 + {columns - 5} classes]"
    return None


def _is_raw(view: ModelView, output: Tensor) -> bool:
    """Return whether no arithmetic lies between the last convolutions and an output: boxes are not decoded."""
    todo = [t for t in view.model.graph.outputs if t.name == output.name]
    seen: set[str] = set()
    while todo:
        tensor = todo.pop()
        if tensor.name in seen or not tensor.inputs:
            continue
        seen.add(tensor.name)
        node = tensor.inputs[0]
        if node.op in ("Mul", "Add", "Exp", "Pow", "Sub", "Div"):
            return False
        if node.op not in ("Conv", "Gemm", "MatMul", "Shape"):
            todo += list(node.inputs)
    return True


def _cells(view: ModelView) -> int | None:
    """Return the cells of the usual three grids (strides 8, 16, 32) of the image input; None if its size is dynamic."""
    if view.image is None:
        return None
    height, width = (view.image[0].size(axis) for axis in view.image_axes)
    if height is None or width is None:
        return None
    return sum(-(-height // stride) * -(-width // stride) for stride in GRIDS)


class Detect(Task):
    """Boxes with classes and scores."""

    name: ClassVar[str] = "detect"
    title: ClassVar[str] = "boxes with classes"
    targets: ClassVar[tuple[str, ...]] = ("boxes",)
    metrics: ClassVar[tuple[str, ...]] = ("map", "map50", "agreement", "map_to_original", "divergence")
    precedence: ClassVar[int] = 0

    def guess(self, view: ModelView) -> str | None:
        found = find_head(view)
        return found[1] if found is not None else None

    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        found = find_head(view, lenient=True)
        if found is None:
            shapes = ", ".join(f"{t.name} {list(t.shape)}" for t in view.outputs)
            raise OnnxPruneError(
                f"the outputs ({shapes}) are not those of a known detector",
                fix="the heads are listed in docs/tasks.md; for others use --metric package.module:function",
            )
        head, reason = found
        truth, original = _Collector(head, False), _Collector(head, True)
        reads = tuple(head.reads)
        return BoundTask(
            self.name,
            reason,
            (
                Metric("map", True, "labels", collect=truth, combine=mean_average_precision, reads=reads),
                Metric("map50", True, "labels", collect=truth, combine=_map50, reads=reads),
            ),
            (
                Metric("agreement", True, "reference", collect=original.agreement, reads=reads),
                Metric("map_to_original", True, "reference", collect=original, combine=mean_average_precision,
                       reads=reads),
                *([Metric("divergence", False, "reference", collect=original.divergence, reads=reads)]
                  if head.kind in RAW_HEADS else []),
            ),
            view,
            batch=1 if head.kind == "torchvision" else None,
            watch=lambda: DetectionWatch(head),
        )  # fmt: skip


def _map50(records: Sequence[tuple[Detections, BoxTargets]]) -> MetricValue:
    return mean_average_precision(records, at=0.5)


TASKS.register(Detect())
