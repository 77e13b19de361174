"""Insertion of an identity BatchNormalization after every convolution into which one was folded.

Both torch exporters and Keras fold BatchNormalization into the convolution before it, which helps inference but not
training: this pass inserts it again, and `fuse_batchnorm(only_inserted=True)` folds the inserted nodes.

Before:  y = Conv(x, W, b) ; z = Relu(y)
After:   y = Conv(x, W, b) ; n = BatchNormalization(y, gamma, beta, mean, var) ; z = Relu(n)
Formula: mean and var are those of y per channel, measured on data, over samples and positions (Ioffe & Szegedy 2015);
gamma = sqrt(var + epsilon), beta = mean, so n = y in inference, and nearly so with the statistics of a batch.
Conditions: 1. Conv or ConvTranspose, with groups or without, whose floating weight and bias are constants: folding
always produces a bias. The weight has no other consumer: it cannot absorb the scales of two normalizations. (Constants
computed by other nodes are found once the model is normalized: passes.NORMALIZE.)
2. its output is not a graph output and has more than one position in the witness shapes: the convolutions of
squeeze-excite and of heads after a global pool never had a normalization.
3. every consumer of the output is an activation; Conv or ConvTranspose (linear bottlenecks); Add, Sub, Mul, Div, Sum,
Max, Min or Pow (shortcuts, gates, and decomposed activations); or Concat, Pad, Resize or a pool whose own consumers
are such. So no normalization follows (InstanceNormalization, LayerNormalization after a Transpose, ...), and no
Reshape of a detector's or an attention's output. A global pool (a mean over positions) may lead to Gemm, MatMul, Conv
or an activation through Reshape, Squeeze or Flatten: squeeze-excite, or a classifier. The input is not a
LayerNormalization's output (ConvNeXt between its stages): such networks normalize before they convolve.
4. a constant operand of a consumer is a scalar: part of an activation. A constant per channel is an unfolded scale or
shift. (Keras writes the BatchNormalization after a depthwise convolution as Mul and Add with [1, C, 1, 1]: it is not
changed and trains as scale and shift.)
5. the output of such a consumer is not a graph output, unless the consumer is Relu or a similar rectifier: a last
Sigmoid, Tanh or Add computes predictions.
A plain convolution with a bias cannot be told from a folded one (VGG, SqueezeNet): it also gets a BatchNormalization.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.channel_moments import measure_statistics
from onnxprune.ir.model import Array, Model
from onnxprune.ops.op_spec import normal_axis
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import unique_name

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
_SIZES = frozenset(("Shape", "Size"))  # these read the shape only


def inserted(node: gs.Node) -> bool:
    """Return whether `insert_batchnorm` inserted a node; the node name, which files keep, marks it."""
    return node.op == "BatchNormalization" and bool(_INSERTED.search(node.name or ""))


@register
@dataclass(frozen=True)
class InsertBatchnorm(Pass):
    """Insert an identity BatchNormalization after convolutions into which one was folded.

    With `feeds` the statistics are the data's, so training starts from unchanged activations. Without, they are mean 0
    and variance 1 (gamma = sqrt(1 + epsilon), beta = 0): inference is unchanged, but training normalizes by the batch,
    so its first step replaces every channel's mean and variance by 0 and 1, which destroys what was learned; then
    train with frozen statistics, or pass data.

    Args:
        feeds: Inputs of the model, one batch each; a few hundred samples suffice.
        epsilon: Constant added to the variance.
        momentum: Momentum of the running statistics as in ONNX: new = momentum * old + (1 - momentum) * batch.
            PyTorch's is one minus this.
        device: Device on which the statistics are measured: "auto", "cpu" or "cuda".

    Raises:
        OnnxPruneError: An epsilon or momentum out of range.
    """

    name: ClassVar[str] = "insert_batchnorm"
    feeds: Sequence[Mapping[str, Array]] = field(default=(), repr=False)
    epsilon: float = 1e-5
    momentum: float = 0.9
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < np.inf:
            raise OnnxPruneError(f"epsilon is {self.epsilon}", fix="use a small number above 0, such as 1e-5")
        if not 0 <= self.momentum < 1:
            raise OnnxPruneError(f"momentum is {self.momentum}", fix="use a number in [0, 1)")

    def rewrite(self, model: Model) -> Model:
        """Insert after every convolution that meets the conditions.

        Raises:
            OnnxPruneError: Feeds that do not fit the model, or activations that are not finite, with the node.
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
        """Return the normalization of one convolution, inserted between it and all its consumers."""
        # gamma and beta are computed from the statistics as rounded to the type, so the identity is not affected.
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
    """Return the nodes that meet the conditions, in graph order."""
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
    """Return whether a node meets condition 1."""
    if node.op not in _CONVOLUTIONS or node.domain not in _STANDARD or len(node.inputs) < 3:
        return False
    weight, bias = node.inputs[1:3]
    if not isinstance(weight, gs.Constant) or not isinstance(bias, gs.Constant):
        return False
    return bool(weight.dtype.kind == "f") and len(weight.outputs) == 1


def _behind_layer_norm(t: gs.Tensor) -> bool:
    """Return whether a LayerNormalization computes the input (condition 3)."""
    node = t.inputs[0] if t.inputs else None
    if node is not None and node.op == "Transpose":
        return _behind_layer_norm(node.inputs[0])
    return bool(node is not None and node.op == "LayerNormalization")


class _ConsumerRules:
    """Checks of conditions 2 to 5 on a tensor, its consumers, and their consumers."""

    def __init__(self, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.outputs = {id(t) for t in model.graph.outputs}
        self.shapes = shapes
        self.known: dict[tuple[int, bool], bool] = {}

    def spread(self, t: gs.Tensor) -> bool:
        """Return whether a tensor has more than one position (condition 2); False if its shape is unknown."""
        return prod(self.shapes.get(t.name, (0, 0, 0))[2:]) > 1

    def fit(self, t: gs.Tensor, pooled: bool = False) -> bool:
        """Return whether a normalization may have preceded all consumers of a tensor.

        Args:
            t: Tensor to check.
            pooled: The tensor is a mean over positions, or computed from one.
        """
        key = id(t), pooled
        if key not in self.known:
            reading = [node for node in t.outputs if node.op not in _SIZES]
            fits = bool(reading) and id(t) not in self.outputs
            self.known[key] = fits and all(self._fits(node, t, pooled) for node in reading)
        return self.known[key]

    def _fits(self, node: gs.Node, t: gs.Tensor, pooled: bool) -> bool:
        if node.op in _RECTIFIERS:  # of any domain: com.microsoft also has Gelu and QuickGelu
            return True
        if node.domain not in _STANDARD:
            return False
        last = any(id(out) in self.outputs for out in node.outputs)  # condition 5
        if node.op in _SQUASHERS:
            return not last
        if node.op in _CONVOLUTIONS:
            return node.inputs[0] is t
        if node.op in _ARITHMETIC:
            # After a mean over positions a difference is part of a decomposed normalization: x - mean.
            return not pooled and not last and all(map(_is_number_or_data, node.inputs))
        if node.op in _ONWARDS:
            return self.fit(node.outputs[0], pooled)
        if node.op in _GLOBAL_POOLS or (node.op in _REDUCTIONS and self._over_positions(node)):
            return self.fit(node.outputs[0], True)
        if pooled and node.op in _RESHAPES:
            return self.fit(node.outputs[0], True)
        return pooled and node.op in _PRODUCTS

    def _over_positions(self, node: gs.Node) -> bool:
        """Return whether a reduction keeps batch and channels."""
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
            axes = node.inputs[1].values.tolist()
        rank = len(self.shapes.get(node.inputs[0].name, ()))
        return bool(axes) and all(normal_axis(int(a), rank) >= 2 for a in axes)


def _is_number_or_data(t: gs.Tensor) -> bool:
    """Return whether an operand is a scalar or data (condition 4). A constant computed by a node may be anything."""
    if isinstance(t, gs.Constant):
        return prod(map(int, t.shape)) == 1
    return not t.inputs or any(not isinstance(i, gs.Constant) for i in t.inputs[0].inputs)
