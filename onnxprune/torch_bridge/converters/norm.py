"""Converters of normalizations. BatchNorm becomes the `torch.nn` module with its statistics, others functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torch import nn

from onnxprune.torch_bridge.converters._operands import apply, attribute, is_constant, known, rank, unsupported
from onnxprune.torch_bridge.registry import converted, converts

_BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def batch_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *,
    epsilon: float,
) -> torch.Tensor:
    """Return (x - mean) / sqrt(variance + epsilon) * scale + bias, with statistics that other nodes compute."""
    return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=epsilon)


def batch_statistics_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    *,
    epsilon: float,
    momentum: float,
    outputs: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Return BatchNormalization with training_mode = 1: always with the statistics of the batch.

    Returns:
        The normalized data and, by `outputs`, the running mean and (as in ONNX, population) variance:
        momentum * old + (1 - momentum) * that of the batch.
    """
    y = F.batch_norm(x, None, None, scale, bias, training=True, eps=epsilon)
    if outputs == 1:
        return y
    axes = [0, *range(2, x.dim())]
    new_mean = momentum * mean + (1 - momentum) * x.mean(axes)
    new_variance = momentum * variance + (1 - momentum) * x.var(axes, unbiased=False)
    return (y, new_mean, new_variance)[:outputs]


def instance_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """Normalize every channel of every sample: Ulyanov et al. 2016, arXiv:1607.08022."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


def layer_norm(
    x: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    axis: int,
    epsilon: float,
    outputs: int,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Normalize over an axis and all later ones: Ba et al. 2016, arXiv:1607.06450.

    Args:
        x: Data.
        scale: Scale that broadcasts to the normalized axes.
        bias: Shift that broadcasts to the normalized axes.
        axis: First normalized axis.
        epsilon: Constant added to the variance.
        outputs: Number of outputs; above one, the mean and 1 / sqrt(variance + epsilon) are returned as well.
    """
    shape = x.shape[axis:]
    y = F.layer_norm(x, shape, _spread(scale, shape), _spread(bias, shape), epsilon)
    if outputs == 1:
        return y
    axes = list(range(axis % x.dim(), x.dim()))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + epsilon)
    return (y, mean, inverse)[:outputs]


def rms_norm(x: torch.Tensor, scale: torch.Tensor, *, axis: int, epsilon: float) -> torch.Tensor:
    """Return x / sqrt(mean(x**2) + epsilon) * scale: Zhang and Sennrich 2019, arXiv:1910.07467."""
    shape = x.shape[axis:]
    return F.rms_norm(x, shape, _spread(scale, shape), epsilon)


def group_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, *, groups: int, epsilon: float
) -> torch.Tensor:
    """Normalize groups of channels: Wu and He 2018, arXiv:1803.08494."""
    return F.group_norm(x, groups, scale, bias, epsilon)


def local_response_norm(x: torch.Tensor, *, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """Divide by (bias + alpha / size * sum of squares of the neighbouring channels) ** beta.

    Krizhevsky et al. 2012. With an even size ONNX reads one more channel after than before, PyTorch before than after.
    """
    if size % 2:
        return F.local_response_norm(x, size, alpha, beta, bias)
    return F.local_response_norm(x.flip(1), size, alpha, beta, bias).flip(1)


def lp_normalize(x: torch.Tensor, *, p: int, axis: int) -> torch.Tensor:
    """Divide by the p-norm along an axis; zeros stay zeros."""
    return F.normalize(x, p=p, dim=axis)


def mean_variance_norm(x: torch.Tensor, *, axes: Sequence[int]) -> torch.Tensor:
    """Normalize to zero mean and unit variance over some axes; the standard adds 1e-9 to the deviation."""
    mean = x.mean(axes, keepdim=True)
    deviation = x.var(axes, unbiased=False, keepdim=True).sqrt()
    return (x - mean) / (deviation + 1e-9)


def _spread(parameter: torch.Tensor | None, shape: Sequence[int]) -> torch.Tensor | None:
    """Return a parameter in the shape of the normalized axes."""
    if parameter is None or parameter.shape == tuple(shape):
        return parameter
    # Axes before the normalized ones are of size 1.
    return parameter.reshape(parameter.shape[-len(shape) :]).broadcast_to(shape)


@converts("BatchNormalization", since=9)
def _batch_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    epsilon, momentum = attribute(node, "epsilon", 1e-5), attribute(node, "momentum", 0.9)
    outputs = len(node.output_values)
    if attribute(node, "training_mode", 0):
        return apply(node, graph, batch_statistics_norm, epsilon=epsilon, momentum=momentum, outputs=outputs)
    if outputs > 1:
        raise unsupported("statistics as outputs outside training mode")
    axes = rank(node, graph)
    if not all(is_constant(node, graph, i) for i in range(1, 5)) or axes not in _BATCH_NORMS:
        return apply(node, graph, batch_norm, epsilon=epsilon)
    channels = known(graph, node.input_values[1]).shape[0]
    module = _BATCH_NORMS[axes](channels, eps=epsilon, momentum=1 - momentum)
    names = dict(zip(("weight", "bias", "running_mean", "running_var"), node.input_values[1:], strict=True))
    for place, name in names.items():
        tensor = graph.initializers[name].to_torch()
        setattr(module, place, nn.Parameter(tensor) if place in ("weight", "bias") else tensor)
    module.onnx_parameters = {place: (name, False, 1.0) for place, name in names.items()}
    return converted(module, node.input_values[:1], node)


@converts("InstanceNormalization")
def _instance_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, instance_norm, epsilon=attribute(node, "epsilon", 1e-5))


@converts("LayerNormalization")
def _layer_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axis, epsilon = attribute(node, "axis", -1), attribute(node, "epsilon", 1e-5)
    return apply(node, graph, layer_norm, axis=axis, epsilon=epsilon, outputs=len(node.output_values))


@converts("RMSNormalization")
def _rms_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, rms_norm, axis=attribute(node, "axis", -1), epsilon=attribute(node, "epsilon", 1e-5))


@converts("GroupNormalization", since=21)  # the ONNX checker rejects the older version, with a scale per group
def _group_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(
        node, graph, group_norm, groups=attribute(node, "num_groups"), epsilon=attribute(node, "epsilon", 1e-5)
    )


@converts("LRN")
def _lrn(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    alpha, beta = attribute(node, "alpha", 1e-4), attribute(node, "beta", 0.75)
    bias, size = attribute(node, "bias", 1.0), attribute(node, "size")
    return apply(node, graph, local_response_norm, size=size, alpha=alpha, beta=beta, bias=bias)


@converts("LpNormalization")
def _lp_normalization(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, lp_normalize, p=attribute(node, "p", 2), axis=attribute(node, "axis", -1))


@converts("MeanVarianceNormalization")
def _mean_variance_norm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    axes = attribute(node, "axes")
    return apply(node, graph, mean_variance_norm, axes=tuple([0, 2, 3] if axes is None else axes))
