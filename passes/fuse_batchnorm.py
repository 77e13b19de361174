"""Folding of BatchNormalization into the convolution or product before it.

Before:  y = Conv(x, W, b) ; n = BatchNormalization(y, gamma, beta, mean, var) ; z = Relu(n)
After:   y = Conv(x, W', b') ; z = Relu(y)
Formula: s = gamma / sqrt(var + epsilon) per channel (Ioffe & Szegedy 2015); W' = W * s along the weight's output axis,
b' = (b - mean) * s + beta (Jacob et al. 2018, section 3.2), in float64, rounded once to the weight's type. The bias of
a Gemm absorbs its factor `beta`; a missing bias is 0.
Conditions: 1. BatchNormalization in its inference form (one output) with constant parameters. 2. its producer is a
Conv, ConvTranspose (with groups or without) or Gemm with a floating constant weight, and a bias that is a constant per
channel or missing. 3. that input has no other consumer and is not a graph output.
Names are kept: of the node, of its weight, bias and output (if the normalization's output is a graph output, that name
is kept instead). A weight or bias with other consumers is first copied under a new name.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Array, Model
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import bypass, unique_name
from onnxprune.passes.insert_batchnorm import inserted

_STANDARD = (None, "", "ai.onnx")


@register
@dataclass(frozen=True)
class FuseBatchnorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    Args:
        only_inserted: Fold only nodes that `insert_batchnorm` inserted.
    """

    name: ClassVar[str] = "fuse_batchnorm"
    only_inserted: bool = False

    def rewrite(self, model: Model) -> Model:
        """Fold every normalization that meets the conditions, in graph order, so chains are folded as well.

        Raises:
            OnnxPruneError: A folded weight is not finite in the weight's type; the error names the node.
        """
        graph = model.graph
        outputs = {id(t) for t in graph.outputs}
        names: set[str] | None = None
        gone: set[int] = set()
        for node in graph.nodes:
            if self.only_inserted and not inserted(node):
                continue
            producer = _producer(node, outputs)
            if producer is None:
                continue
            if names is None:
                names = set(graph.tensors())
            _fold(node, producer, names)
            _remove_normalization(node, producer, graph, outputs)
            gone.add(id(node))
        if gone:
            graph.nodes[:] = [n for n in graph.nodes if id(n) not in gone]
        return model


def _producer(node: gs.Node, outputs: set[int]) -> gs.Node | None:
    """Return the node to fold into, if all conditions hold."""
    if node.op != "BatchNormalization" or node.domain not in _STANDARD or node.attrs.get("training_mode", 0):
        return None
    if any(t.name for t in node.outputs[1:]) or any(not isinstance(t, gs.Constant) for t in node.inputs[1:5]):
        return None  # condition 1
    y = node.inputs[0]
    producer = y.inputs[0] if y.inputs else None
    if producer is None or len(y.outputs) != 1 or id(y) in outputs:  # condition 3
        return None
    if producer.op not in ("Conv", "ConvTranspose", "Gemm") or producer.domain not in _STANDARD:
        return None
    weight, bias = producer.inputs[1], _bias(producer)
    if not isinstance(weight, gs.Constant) or id(weight) in outputs:
        return None
    if weight.dtype.kind != "f" and weight.dtype.name != "bfloat16":  # an extension type to numpy, of kind V
        return None
    if bias is not None and (not isinstance(bias, gs.Constant) or not _per_channel(bias, node.inputs[1].values.size)):
        return None  # condition 2
    return producer


def _bias(node: gs.Node) -> gs.Tensor | None:
    return node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None


def _per_channel(bias: gs.Constant, channels: int) -> bool:
    """Return whether a bias is a scalar, or one number per column: Gemm may add a whole matrix."""
    shape: tuple[int, ...] = tuple(bias.shape)
    return prod(shape) == 1 or (prod(shape) == channels and shape[-1] == channels)


def _fold(node: gs.Node, producer: gs.Node, names: set[str]) -> None:
    """Write the folded weight and bias into the producer."""
    gamma, beta, mean, var = (np.asarray(t.values, np.float64) for t in node.inputs[1:5])
    weight, bias = producer.inputs[1], _bias(producer)
    old = np.zeros(1) if bias is None else np.asarray(bias.values, np.float64)
    if producer.op == "Gemm" and "beta" in producer.attrs:
        old = old * float(producer.attrs["beta"])
        producer.attrs["beta"] = 1.0
    with np.errstate(all="ignore"):  # the result is checked for finite values below
        s = gamma / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
        new_weight = _scaled(producer, np.asarray(weight.values, np.float64), s).astype(weight.dtype)
        new_bias = ((old - mean) * s + beta).astype(weight.dtype)
    for values in (new_weight, new_bias):
        if not np.isfinite(np.asarray(values, np.float64)).all():
            raise OnnxPruneError(
                f"folding this BatchNormalization makes weights that are not finite in {weight.dtype.name}",
                where=node.name or node.outputs[0].name,
                fix="check its parameters (a variance below zero?); float16 may need float32 weights",
            )
    _set_constant(producer, 1, new_weight, names, weight.name)
    if bias is not None:
        _set_constant(producer, 2, new_bias, names, bias.name)
        return
    base = weight.name.removesuffix(".weight")
    if len(producer.inputs) > 2:
        producer.inputs.pop()  # an empty name stands for "none"
    producer.inputs.append(gs.Constant(unique_name(names, f"{base}.bias"), new_bias))


def _scaled(node: gs.Node, weight: Array, s: Array) -> Array:
    """Return a weight times one factor per output channel."""
    if node.op == "Gemm":
        return weight * (s[:, None] if node.attrs.get("transB", 0) else s)
    if node.op == "Conv":
        return weight * s.reshape(-1, *[1] * (weight.ndim - 1))
    # ConvTranspose [in, out / groups, ...]: the rows of each group produce its own share of the output channels.
    groups = int(node.attrs.get("group", 1))
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * s.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def _set_constant(node: gs.Node, index: int, values: Array, names: set[str], name: str) -> None:
    """Replace an input of a node by a constant: under the old name, unless the old one has other consumers."""
    old = node.inputs[index]
    if len(old.outputs) == 1:
        old.values = values
    else:
        node.inputs[index] = gs.Constant(unique_name(names, name), values)


def _remove_normalization(node: gs.Node, producer: gs.Node, graph: gs.Graph, outputs: set[int]) -> None:
    """Connect the normalization's consumers to its producer."""
    out = node.outputs[0]
    if id(out) not in outputs:
        bypass(node, graph)
        return
    node.inputs.clear()
    node.outputs.clear()
    producer.outputs[0] = out  # the name of a graph output is the model's interface
