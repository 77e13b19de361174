"""Converters of activation functions, softmax, and dropout.

Formulas are those of the ONNX standard; PyTorch functions are used where they are identical.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torch import nn

from onnxprune.torch_bridge.converters._operands import apply, attribute, numbers, rank, unsupported
from onnxprune.torch_bridge.registry import converted, converts, same_as_before

same_as_before(6, "Elu", "HardSigmoid")
same_as_before(12, "Celu")
same_as_before(14, "HardSwish")


def selu(x: torch.Tensor, *, alpha: float, gamma: float) -> torch.Tensor:
    """Return gamma * (max(x, 0) + min(alpha * (exp(x) - 1), 0)): Klambauer et al. 2017, arXiv:1706.02515."""
    return gamma * F.elu(x, alpha)


def thresholded_relu(x: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Return x where it exceeds alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


def shrink(x: torch.Tensor, *, bias: float, limit: float) -> torch.Tensor:
    """Return x + bias below -limit, x - bias above limit, 0 between."""
    return torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def swish(x: torch.Tensor, *, alpha: float) -> torch.Tensor:
    """Return x * sigmoid(alpha * x): Ramachandran et al. 2017, arXiv:1710.05941."""
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


def prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """Return x where it is not negative, else slope * x: He et al. 2015, arXiv:1502.01852.

    Args:
        x: Data.
        slope: Slopes that broadcast to the data, aligned at the last axis as in ONNX.
    """
    per_channel = slope.dim() == x.dim() - 1 > 0 and slope.numel() == slope.shape[0] == x.shape[1]
    if per_channel or slope.numel() == 1:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x >= 0, x, slope * x)


def flat_softmax(x: torch.Tensor, *, axis: int, log: bool) -> torch.Tensor:
    """Return the softmax over an axis and all later ones together: the definition before opset 13."""
    flat = x.reshape(*x.shape[:axis], -1) if x.numel() else x
    return (F.log_softmax(flat, -1) if log else F.softmax(flat, -1)).reshape(x.shape)


def hardmax(x: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Return 1 at the first largest element of an axis, 0 elsewhere; no gradient."""
    first = x.argmax(axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)


def flat_hardmax(x: torch.Tensor, *, axis: int) -> torch.Tensor:
    """Return the hardmax over an axis and all later ones together (before opset 13)."""
    return hardmax(x.reshape(*x.shape[:axis], -1), axis=-1).reshape(x.shape)


class MaskedDropout(nn.Module):
    """Dropout that also returns the mask of kept elements.

    Args:
        p: Probability that an element is dropped in training mode.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the data, scaled by 1 / (1 - p) where kept, and the mask of kept elements."""
        if not self.training or self.p == 0:
            return x, torch.ones_like(x, dtype=torch.bool)
        mask = torch.rand_like(x) >= self.p
        return x * mask / (1 - self.p), mask


@converts("Selu")
def _selu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    alpha = attribute(node, "alpha", 1.67326319217681884765625)
    return apply(node, graph, selu, alpha=alpha, gamma=attribute(node, "gamma", 1.05070102214813232421875))


@converts("ThresholdedRelu")
def _thresholded_relu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, thresholded_relu, alpha=attribute(node, "alpha", 1.0))


@converts("Shrink")
def _shrink(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, shrink, bias=attribute(node, "bias", 0.0), limit=attribute(node, "lambd", 0.5))


@converts("Gelu")
def _gelu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return converted(nn.GELU(approximate=attribute(node, "approximate", "none")), node.input_values, node)


@converts("Mish")
def _mish(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return converted(nn.Mish(), node.input_values, node)


@converts("Swish")
def _swish(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, swish, alpha=attribute(node, "alpha", 1.0))


@converts("PRelu", since=7)
def _prelu(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, prelu)


@converts("Softmax", "LogSoftmax", since=13)
def _softmax(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    module = nn.LogSoftmax if node.operation_type == "LogSoftmax" else nn.Softmax
    return converted(module(dim=attribute(node, "axis", -1)), node.input_values, node)


@converts("Softmax", "LogSoftmax")
def _old_softmax(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis, log = attribute(node, "axis", 1), node.operation_type == "LogSoftmax"
    if axis in (-1, rank(node, graph) - 1):
        return converted((nn.LogSoftmax if log else nn.Softmax)(dim=-1), node.input_values, node)
    return apply(node, graph, flat_softmax, axis=axis, log=log)


@converts("Hardmax", since=13)
def _hardmax(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, hardmax, axis=attribute(node, "axis", -1))


@converts("Hardmax")
def _old_hardmax(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, flat_hardmax, axis=attribute(node, "axis", 1))


@converts("Dropout")
def _dropout(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    # Active in training mode, independent of `training_mode`: inference keeps every element.
    ratio = numbers(node, graph, 1, "ratio")
    if ratio is None and len(node.input_values) > 1 and node.input_values[1]:
        raise unsupported("a ratio computed from the data")
    p = float(ratio[0]) if ratio else 0.5
    module = nn.Dropout(p) if len(node.output_values) == 1 else MaskedDropout(p)
    return converted(module, node.input_values[:1], node)
