"""Puts a BatchNormalization that changes nothing behind every convolution whose own was folded into it.

Both torch exporters and Keras fold BatchNormalization into the convolution before it. Inference gains by that, training
loses: this pass makes room for it again, and `fuse_batchnorm(only_inserted=True)` folds what it put in.

Before:  y = Conv(x, W, b) ; z = Relu(y)
After:   y = Conv(x, W, b) ; n = BatchNormalization(y, gamma, beta, mean, var) ; z = Relu(n)
Formula: mean and var are those of y per channel, measured on data, over samples and positions (Ioffe & Szegedy 2015);
gamma = sqrt(var + epsilon), beta = mean, so n = y in inference, and nearly so with the statistics of a batch.
Conditions: 1. Conv or ConvTranspose, with groups or without, whose floating weight and bias are constants: folding
always leaves a bias. Nobody else reads the weight: one weight cannot take the scales of two normalizations. (Constants
behind other nodes are found once the model is normalized: passes.NORMALIZE.)
2. its output is no output of the graph and has more than one position in the witness shapes: the convolutions of
squeeze-excite and of heads behind a global pool never had a normalization.
3. every reader of the output is an activation; Conv or ConvTranspose (linear bottlenecks); Add, Sub, Mul, Div, Sum,
Max, Min or Pow (shortcuts, gates, and activations in their parts); or Concat, Pad, Resize or a pool whose own readers
are such. So no normalization follows (InstanceNormalization, LayerNormalization behind a Transpose, ...), and no
Reshape of a detector's or an attention's output. A global pool (a mean over positions) may go on to Gemm, MatMul, Conv
or an activation through Reshape, Squeeze or Flatten: squeeze-excite, or a classifier. Nor is the input a
LayerNormalization's (ConvNeXt between its stages): such networks normalize before they convolve.
4. where a reader computes with a constant, that is one number: a part of an activation. A constant per channel is a
scale or shift that still stands. (Keras writes the BatchNormalization behind a depthwise convolution as Mul and Add
with [1, C, 1, 1]: it is left alone and trains as scale and shift.)
5. what such a reader writes is no output of the graph, unless the reader is Relu or one of its kin: a last Sigmoid,
Tanh or Add makes predictions.
A plain convolution with a bias looks just like a folded one (VGG, SqueezeNet): it gets a BatchNormalization as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.channel_statistics import measure_statistics
from onnxprune.errors import OnnxPruneError
from onnxprune.model import Array, Model
from onnxprune.ops.record import normal_axis
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import unique_name
from onnxprune.shapes import witness

_SUFFIX = "/inserted_batchnorm"
_INSERTED = re.compile(re.escape(_SUFFIX) + r"(__\d+)?$")

_STANDARD = (None, "", "ai.onnx")
_RECTIFIERS = frozenset(
    ("Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSwish", "Swish", "Mish",
     "Gelu", "QuickGelu")
)  # fmt: skip
_SQUASHERS = frozenset(("Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign", "Erf"))
_ARITHMETIC = frozenset(("Add", "Sub", "Mul", "Div", "Sum", "Max", "Min", "Pow"))
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))
_PRODUCTS = frozenset(("Gemm", "MatMul"))
_ONWARDS = frozenset(("Concat", "Pad", "Resize", "Upsample", "MaxPool", "AveragePool", "Identity", "Dropout"))
_GLOBAL_POOLS = frozenset(("GlobalAveragePool", "GlobalMaxPool"))
_REDUCTIONS = frozenset(("ReduceMean", "ReduceMax"))
_RESHAPES = frozenset(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
_SIZES = frozenset(("Shape", "Size"))  # read no values: any tensor of that shape serves them


def inserted(node: gs.Node) -> bool:
    """Whether a node is a BatchNormalization that `insert_batchnorm` put in; told by its name, which files keep."""
    return node.op == "BatchNormalization" and bool(_INSERTED.search(node.name or ""))


@register
@dataclass(frozen=True)
class InsertBatchnorm(Pass):
    """Puts an identity BatchNormalization behind convolutions that lost theirs in the export.

    With `feeds` the statistics are the data's, so a step of training starts from activations as they are. Without, they
    are mean 0 and variance 1 (gamma = sqrt(1 + epsilon), beta = 0): inference is unchanged all the same, but training
    normalizes by the batch, so its first step sees every channel at mean 0 and variance 1 instead of its own. What the
    network has learnt is lost on the way; then train with the statistics frozen, or give data.

    Args:
        feeds: inputs of the model, a batch each; a few hundred samples do.
        epsilon: added to the variance.
        momentum: of the running statistics as ONNX has it: new = momentum * old + (1 - momentum) * batch. PyTorch's is
            one minus this.
        device: that the statistics are measured on: "auto", "cpu" or "cuda".

    Raises:
        OnnxPruneError: an epsilon or momentum out of range.
    """

    name: ClassVar[str] = "insert_batchnorm"
    feeds: Sequence[Mapping[str, Array]] = field(default=(), repr=False)
    epsilon: float = 1e-5
    momentum: float = 0.9
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < np.inf:
            raise OnnxPruneError(f"epsilon is {self.epsilon}", fix="give a small number above 0, such as 1e-5")
        if not 0 <= self.momentum < 1:
            raise OnnxPruneError(f"momentum is {self.momentum}", fix="give a number from 0 on and below 1")

    def rewrite(self, model: Model) -> Model:
        """Inserts after every convolution that meets the conditions; where none does the model stays as it is.

        Raises:
            OnnxPruneError: feeds that do not fit the model, or activations that are not finite, with the node.
        """
        graph = model.graph
        chosen = folded_convolutions(model)
        outputs = [node.outputs[0].name for node in chosen]
        measured = measure_statistics(model, outputs, self.feeds, device=self.device) if len(self.feeds) else {}
        names = set(graph.tensors())
        taken = {node.name for node in graph.nodes}
        new: dict[int, gs.Node] = {}
        for node in chosen:
            weight = node.inputs[1].values
            channels = node.inputs[2].values.size
            mean, var = measured.get(node.outputs[0].name) or (np.zeros(channels), np.ones(channels))
            new[id(node)] = self._normalization(node, mean, var, weight.dtype, names, taken)
        graph.nodes[:] = [n for node in graph.nodes for n in (node, new.get(id(node))) if n is not None]
        return model

    def _normalization(
        self, conv: gs.Node, mean: Array, var: Array, dtype: np.dtype[Any], names: set[str], used_names: set[str]
    ) -> gs.Node:
        """The node for one convolution, between it and all its readers."""
        # Statistics as the type holds them; gamma and beta follow from these, so the identity does not suffer.
        limit = np.finfo(dtype).max
        mean, var = mean.astype(dtype), np.minimum(var, limit).astype(dtype)
        gamma = np.sqrt(var.astype(np.float64) + self.epsilon).astype(dtype)
        base = conv.inputs[1].name.removesuffix(".weight")
        parameters = [
            gs.Constant(unique_name(names, f"{base}.bn.{what}"), values)
            for what, values in (("weight", gamma), ("bias", mean), ("running_mean", mean), ("running_var", var))
        ]
        y = conv.outputs[0]
        shape = None if y.shape is None else list(y.shape)
        out = gs.Variable(unique_name(names, f"{y.name}.bn"), y.dtype, shape)
        for reader in list(y.outputs):
            for i, t in enumerate(reader.inputs):
                if t is y:
                    reader.inputs[i] = out
        return gs.Node(
            "BatchNormalization",
            unique_name(used_names, f"{conv.name or y.name}{_SUFFIX}"),
            {"epsilon": self.epsilon, "momentum": self.momentum},
            [y, *parameters],
            [out],
        )


def folded_convolutions(model: Model) -> list[gs.Node]:
    """The nodes that meet the conditions, in graph order."""
    found = [node for node in model.graph.nodes if _is_folded(node)]
    if not found:
        return []
    readers = _ConsumerRules(model, witness(model).shapes)
    return [
        node
        for node in found
        if readers.spread(node.outputs[0]) and readers.fit(node.outputs[0]) and not _behind_layer_norm(node.inputs[0])
    ]


def _is_folded(node: gs.Node) -> bool:
    """Condition 1."""
    if node.op not in _CONVOLUTIONS or node.domain not in _STANDARD or len(node.inputs) < 3:
        return False
    weight, bias = node.inputs[1:3]
    if not isinstance(weight, gs.Constant) or not isinstance(bias, gs.Constant):
        return False
    return bool(weight.dtype.kind == "f") and len(weight.outputs) == 1


def _behind_layer_norm(t: gs.Tensor) -> bool:
    """Condition 3, its last sentence."""
    node = t.inputs[0] if t.inputs else None
    if node is not None and node.op == "Transpose":
        return _behind_layer_norm(node.inputs[0])
    return bool(node is not None and node.op == "LayerNormalization")


class _ConsumerRules:
    """Conditions 2 to 5: what a tensor is, what reads it, and what reads that."""

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.outputs = {id(t) for t in model.graph.outputs}
        self.shapes = shapes
        self.known: dict[tuple[int, bool], bool] = {}

    def spread(self, t: gs.Tensor) -> bool:
        """Whether a tensor has more than one position (condition 2); where its shape is unknown it has none."""
        return prod(self.shapes.get(t.name, (0, 0, 0))[2:]) > 1

    def fit(self, t: gs.Tensor, pooled: bool = False) -> bool:
        """Whether a normalization may have stood before all readers of a tensor.

        Args:
            t: the tensor.
            pooled: it is a mean over positions, or made of one.
        """
        key = id(t), pooled
        if key not in self.known:
            reading = [node for node in t.outputs if node.op not in _SIZES]
            fits = bool(reading) and id(t) not in self.outputs
            self.known[key] = fits and all(self._fits(node, t, pooled) for node in reading)
        return self.known[key]

    def _fits(self, node: gs.Node, t: gs.Tensor, pooled: bool) -> bool:
        if node.op in _RECTIFIERS:  # of any domain: Gelu and QuickGelu are com.microsoft's as well
            return True
        if node.domain not in _STANDARD:
            return False
        last = any(id(out) in self.outputs for out in node.outputs)  # condition 5
        if node.op in _SQUASHERS:
            return not last
        if node.op in _CONVOLUTIONS:
            return node.inputs[0] is t
        if node.op in _ARITHMETIC:
            # After a mean over positions a difference is a normalization in its parts: x - mean.
            return not pooled and not last and all(map(_is_number_or_data, node.inputs))
        if node.op in _ONWARDS:
            return self.fit(node.outputs[0], pooled)
        if node.op in _GLOBAL_POOLS or (node.op in _REDUCTIONS and self._over_positions(node)):
            return self.fit(node.outputs[0], True)
        if pooled and node.op in _RESHAPES:
            return self.fit(node.outputs[0], True)
        return pooled and node.op in _PRODUCTS

    def _over_positions(self, node: gs.Node) -> bool:
        """Whether a reduction leaves batch and channels."""
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
            axes = node.inputs[1].values.tolist()
        rank = len(self.shapes.get(node.inputs[0].name, ()))
        return bool(axes) and all(normal_axis(int(a), rank) >= 2 for a in axes)


def _is_number_or_data(t: gs.Tensor) -> bool:
    """Condition 4. A constant behind another node may be anything."""
    if isinstance(t, gs.Constant):
        return prod(map(int, t.shape)) == 1
    return not t.inputs or any(not isinstance(i, gs.Constant) for i in t.inputs[0].inputs)
