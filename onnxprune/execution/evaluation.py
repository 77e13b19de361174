"""Accuracy of a classifier on labelled data, in onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.formatting import counted, percent
from onnxprune._utils.html import html_table
from onnxprune._utils.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, Preprocess, model_batches
from onnxprune.execution.metrics import Samples, cross_entropy, hits, scores_of
from onnxprune.execution.sessions import Session, saturates_integers
from onnxprune.ir.model import Model

# Indices of the weight inputs, and of the input with the data's zero point (-1: the data is always uint8).
_INTEGER_PRODUCTS = {
    "QLinearConv": ((3,), 2), "QLinearMatMul": ((3,), 2), "QGemm": ((3,), 2), "MatMulInteger": ((1,), 2),
    "MatMulIntegerToFloat": ((1,), 4), "QAttention": ((1,), 6), "DynamicQuantizeMatMul": ((1,), -1),
    "DynamicQuantizeLSTM": ((1, 2), -1),
}  # fmt: skip
_SAFE = 64  # 2 x 255 x 64 fits into 16 bits; quantizers with reduce_range stay within it


@dataclass(frozen=True, repr=False)
class Accuracy:
    """Top-1 and top-5 accuracy and mean cross-entropy.

    Attributes:
        top1: Share of samples whose largest output is their label.
        top1_error: Its standard error, sqrt(p (1 - p) / n).
        top5: Share of samples whose label is among the five largest outputs.
        loss: Mean cross-entropy in nats; outputs that are probabilities are used as such.
        images: Number of samples.
        provider: Execution provider of onnxruntime.
        warning: Reason why other CPUs may compute another accuracy; see `saturation_warning`.
    """

    top1: float
    top1_error: float
    top5: float
    loss: float
    images: int
    provider: str
    warning: str = ""

    def __repr__(self) -> str:
        figures = f"top-1 {percent(self.top1)} +- {percent(self.top1_error)}, top-5 {percent(self.top5)}"
        return f"<Accuracy: {figures}, loss {self.loss:.4f}, {counted(self.images, 'sample')}, {self.provider}>"

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        row = [percent(self.top1), percent(self.top1_error), percent(self.top5), f"{self.loss:.4f}"]
        note = f"{counted(self.images, 'sample')}, {self.provider}. {self.warning}".strip(". ")
        return html_table("accuracy", ["top-1", "+-", "top-5", "loss"], [row], text=(), note=note)


def saturation_warning(model: Model) -> str:
    """Return one line if the model multiplies uint8 by large int8 weights and this CPU's kernels saturate; else "".

    The accuracy is that of the deployed kernels and is not corrected.
    """
    graphs = (model.graph, *model.graph.subgraphs(recursive=True))
    if not any(_may_saturate(node) for graph in graphs for node in graph.nodes) or not saturates_integers():
        return ""
    return (
        "the model multiplies uint8 by int8, and onnxruntime's kernels saturate on this CPU (it has no VNNI), so "
        "accuracy may be lower than elsewhere; quantize with reduce_range=True, or use a CPU with VNNI"
    )


def _may_saturate(node: gs.Node) -> bool:
    """Return whether a node multiplies uint8 by int8 weights of which two can exceed 16 bits."""
    if node.op in ("Conv", "MatMul", "Gemm"):  # between DequantizeLinear nodes it runs in integers
        sources = [t.inputs[0] if t.inputs and t.inputs[0].op == "DequantizeLinear" else None for t in node.inputs[:2]]
        data, weight = sources if len(sources) == 2 else (None, None)
        if data is None or weight is None or isinstance(data.inputs[0], gs.Constant):
            return False
        return _is_large(weight.inputs[0]) and not _is_int8(data, 2)
    if node.op not in _INTEGER_PRODUCTS:
        return False
    weights, zero = _INTEGER_PRODUCTS[node.op]
    return any(i < len(node.inputs) and _is_large(node.inputs[i]) for i in weights) and not _is_int8(node, zero)


def _is_large(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.int8:
        return False
    return bool((np.abs(tensor.values.astype(np.int16)) > _SAFE).any())


def _is_int8(node: gs.Node, zero: int) -> bool:
    """Return whether data is int8, by its type or its zero point's; int8 x int8 does not saturate."""
    return any(0 <= i < len(node.inputs) and node.inputs[i].dtype == np.int8 for i in (0, zero))


def evaluate(
    model: Model,
    data: Data,
    *,
    preprocess: Preprocess | None = None,
    batch: int = 64,
    threads: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Accuracy:
    """Return the accuracy of a classifier on labelled data.

    Raises:
        OnnxPruneError: The data has no labels, samples or labels do not fit the model, or outputs are not finite.
    """
    if data.y is None:
        raise OnnxPruneError(f"the data {data.name!r} has no labels", fix="add an array y")
    session = Session(model, device=device, threads=threads)
    found: list[list[Samples]] = []
    done = 0
    for feed, y in model_batches(model, data, preprocess or Preprocess(), batch):
        assert isinstance(y, np.ndarray)
        scores = scores_of(session.run(feed)[0], len(next(iter(feed.values()))))[: len(y)]
        found.append([hits(scores, y, 1), hits(scores, y, 5), cross_entropy(scores, y)])
        done += len(y)
        if progress is not None:
            progress(done, len(data))
    top1, top5, loss = (float(np.concatenate(column).mean()) for column in zip(*found, strict=True))
    warning = saturation_warning(model)
    return Accuracy(top1, sqrt(top1 * (1 - top1) / done), top5, loss, done, session.provider, warning)
