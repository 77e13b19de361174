"""Embeddings: retrieval with labels, cosine to the original's without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.metrics import METRICS, Metric, MetricValue, Outcome, numbers, scores_of
from onnxprune.execution.tasks.task import TASKS, BoundTask, ModelView, Task, Tensor, deciding_node
from onnxprune.ir.model import Array
from onnxprune.options.tasks import TaskOptions

_NAMES = ("embed", "feature", "descriptor")
_DEPTH = 4  # nodes between a length and the division by it
_BLOCK = 1024  # rows of the table of cosines at a time


def unit(values: Array) -> Array:
    """Return rows of length 1; rows of zeros are kept."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(np.divide(values, length, out=np.zeros_like(values), where=length > 0))


def collect_embeddings(outcome: Outcome) -> Sequence[tuple[Array, int]]:
    """Return the embedding and the label of each sample."""
    rows = unit(scores_of(outcome.outputs[0], len(outcome.outputs[0]))[: outcome.count]).astype(np.float32)
    assert outcome.targets is not None
    return list(zip(rows, (int(t) for t in outcome.targets), strict=True))


def retrieval(records: Sequence[tuple[Array, int]]) -> MetricValue:
    """Return the share of samples whose nearest other sample has their label.

    Raises:
        OnnxPruneError: No two samples have the same label.
    """
    rows, labels = np.stack([r for r, _ in records]), np.array([label for _, label in records])
    if len(np.unique(labels)) == len(labels):
        raise OnnxPruneError("no two samples have the same label, so nothing can be retrieved", fix="use more samples")
    hits = np.empty(len(rows), np.float64)
    for start in range(0, len(rows), _BLOCK):
        cosines = rows[start : start + _BLOCK] @ rows.T
        here = np.arange(len(cosines))
        cosines[here, start + here] = -np.inf
        hits[start : start + _BLOCK] = labels[cosines.argmax(1)] == labels[start : start + _BLOCK]
    return METRICS["top1"].mean(hits)


def collect_cosines(outcome: Outcome) -> Sequence[float]:
    """Return the cosine of each embedding with the original's."""
    ours, theirs = (
        unit(scores_of(side[0], len(side[0]))[: outcome.count]) for side in (outcome.outputs, outcome.reference)
    )
    return numbers((ours * theirs).sum(1))


class Embed(Task):
    """One vector for each sample."""

    name: ClassVar[str] = "embed"
    title: ClassVar[str] = "one vector for each sample"
    targets: ClassVar[tuple[str, ...]] = ("labels",)
    metrics: ClassVar[tuple[str, ...]] = ("retrieval", "cosine", "mse")
    precedence: ClassVar[int] = 3

    def guess(self, view: ModelView) -> str | None:
        output = _vector(view)
        if output is None:
            return None
        if any(word in output.name.lower() for word in _NAMES):
            return f"the output is named {output.name}"
        return "the output is normalized" if _normalized(view, output) else None

    def bind(self, view: ModelView, options: TaskOptions, feed: Mapping[str, Array] | None) -> BoundTask:
        output = _vector(view) or view.outputs[0]
        if output.dtype.kind not in "fV" or output.rank < 2:
            raise OnnxPruneError(f"the output {output.name} {list(output.shape)} is not one vector for each sample")
        reads = (output.name,)
        return BoundTask(
            self.name,
            "one vector for each sample",
            (Metric("retrieval", True, "labels", collect=collect_embeddings, combine=retrieval, reads=reads),),
            (Metric("cosine", True, "reference", collect=collect_cosines, reads=reads), METRICS["mse"]),
            view,
        )


def _vector(view: ModelView) -> Tensor | None:
    """Return the output [n, d]: one named as an embedding, or else the first."""
    found = [t for t in view.outputs if t.rank == 2 and t.dtype.kind in "fV" and t.size(1) != 1]
    named = [t for t in found if any(word in t.name.lower() for word in _NAMES)]
    return next(iter(named or found), None)


def _normalized(view: ModelView, output: Tensor) -> bool:
    """Return whether an output is divided by its own length."""
    tensor = next(t for t in view.model.graph.outputs if t.name == output.name)
    node = deciding_node(tensor)
    if node is None or node.op in ("LpNormalization", "Normalize"):
        return node is not None
    if node.op != "Div" or len(node.inputs) < 2:
        return False
    tensors = [node.inputs[1]]
    for _ in range(_DEPTH):
        nodes = [n for t in tensors for n in t.inputs]
        if any(n.op in ("ReduceL2", "Sqrt") for n in nodes):
            return True
        tensors = [t for n in nodes for t in n.inputs]
    return False


TASKS.register(Embed())
