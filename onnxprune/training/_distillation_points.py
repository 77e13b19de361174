"""Tensors at which a student is compared with its teacher, for outputs other than the scores of a classifier.

Outputs of detectors, segmenters and recognizers are computed from raw predictions by steps without weights: Sigmoid,
decoding of boxes, concatenation, non-maximum suppression. Those steps saturate, select or are not differentiable, so
the comparison is before them. From each output the graph is followed back through such steps to

| point | compared by |
|---|---|
| input of a Softmax or LogSoftmax | divergence of the classes along its axis, T^2 KL |
| input of a Sigmoid | divergence of each probability, relative to the sum of the teacher's probabilities |
| any other tensor, such as the output of a convolution | squared error relative to the teacher's variance |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
import torch
from torch import Tensor
from torch.nn import functional as fn

from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.training._distillation import distillation_loss

# Operators without weights behind the raw predictions. Arithmetic counts only with constants.
_FOLLOWED = frozenset(
    ("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Concat", "Split", "Slice",
     "Gather", "GatherND", "GatherElements", "ScatterND", "TopK", "NonMaxSuppression", "Exp", "Log", "Sqrt", "Pow",
     "Neg", "Abs", "Clip", "Min", "Max", "Add", "Sub", "Mul", "Div", "Where", "Expand", "Tile", "Resize", "ArgMax",
     "ReduceMax", "NonZero", "Compress", "Round", "Floor", "Greater", "GreaterOrEqual", "Less", "Equal", "Not", "And",
     "Shape")
)  # fmt: skip
_SELECTS = frozenset(("NonMaxSuppression", "TopK", "NonZero", "Compress"))


@dataclass(frozen=True)
class DistillationPoint:
    """Tensor of the normalized graph, and how it is compared: "softmax" (along an axis), "sigmoid" or "value"."""

    name: str
    kind: str
    axis: int = 1

    def loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the distance of a student's tensor from the teacher's; a scalar, >= 0."""
        ours, theirs = student.float(), teacher.detach().float()
        if ours.shape != theirs.shape:
            raise OnnxPruneError(
                f"the student's tensor is {list(ours.shape)}, the teacher's {list(theirs.shape)}",
                where=f"tensor {self.name!r}",
                fix="the teacher is the model before it was pruned",
            )
        if self.kind == "softmax":
            return distillation_loss(ours.movedim(self.axis, 1), theirs.movedim(self.axis, 1), temperature)
        if self.kind == "sigmoid":
            wanted = torch.sigmoid(theirs)
            least = fn.binary_cross_entropy_with_logits(theirs, wanted, reduction="sum")
            gap = fn.binary_cross_entropy_with_logits(ours, wanted, reduction="sum") - least
            # Few of a detector's probabilities are not close to 0, and those count.
            return gap / wanted.sum().clamp_min(1.0)
        spread = theirs.var(correction=0).clamp_min(torch.finfo(theirs.dtype).tiny ** 0.5)
        return fn.mse_loss(ours, theirs) / spread


def distillation_points(student: Model, teacher: Model) -> tuple[DistillationPoint, ...]:
    """Return the points of the outputs that both models have under the same name and shape.

    Args:
        student: The pruned model.
        teacher: The original.

    Raises:
        OnnxPruneError: An output is selected from tensors that the models do not have in common.
    """
    ours, theirs = (Pipeline(NORMALIZE)(m) for m in (student, teacher))
    shapes = witness(ours).shapes, witness(theirs).shapes
    own = {t.name for n in theirs.graph.nodes for t in n.outputs}
    found: dict[str, DistillationPoint] = {}
    for output in ours.graph.outputs:
        for point in _followed(output, shapes, own):
            found.setdefault(point.name, point)
    if not found:
        raise OnnxPruneError(
            "the model and its teacher have no raw predictions in common to train on",
            fix="the teacher is the model before it was pruned",
        )
    return tuple(found.values())


def _followed(
    output: gs.Tensor, shapes: tuple[Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]], own: set[str]
) -> list[DistillationPoint]:
    """Return the points behind an output; the output itself if one of them is not in both models."""
    points: list[DistillationPoint] = []
    seen: set[str] = set()
    todo, selects = [output], False
    while todo:
        tensor = todo.pop()
        if tensor.name in seen or not tensor.inputs:
            continue
        seen.add(tensor.name)
        node = tensor.inputs[0]
        selects = selects or node.op in _SELECTS
        if node.op in ("Softmax", "LogSoftmax") and not node.domain:
            source = node.inputs[0]
            rank = len(shapes[0].get(source.name, ()))
            points.append(DistillationPoint(source.name, "softmax", int(node.attrs.get("axis", -1)) % max(1, rank)))
        elif node.op == "Sigmoid" and not node.domain:
            points.append(DistillationPoint(node.inputs[0].name, "sigmoid"))
        elif node.op in _FOLLOWED and not node.domain:
            todo += [t for t in node.inputs if isinstance(t, gs.Variable)]
        elif np.dtype(tensor.dtype or np.float32).kind in "fV":
            points.append(DistillationPoint(tensor.name, "value"))
    if points and all(_shared(p.name, shapes, own) for p in points):
        return points
    if selects or not _shared(output.name, shapes, own) or np.dtype(output.dtype or np.float32).kind not in "fV":
        raise OnnxPruneError(
            f"the output {output.name!r} is selected from raw predictions (non-maximum suppression) that the model and "
            "its teacher do not have in common",
            fix="export the model without suppression (Ultralytics: nms=False), prune and retrain that, and add the "
            "suppression afterwards",
        )
    return [DistillationPoint(output.name, "value")]


def _shared(name: str, shapes: tuple[Mapping[str, Sequence[int]], Mapping[str, Sequence[int]]], own: set[str]) -> bool:
    ours, theirs = (s.get(name) for s in shapes)
    return name in own and ours is not None and theirs is not None and tuple(ours) == tuple(theirs)
