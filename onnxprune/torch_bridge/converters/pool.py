"""Converters of pooling: modules of `torch.nn` where they are equivalent, else sums over shifted views of the data.

PyTorch pads both ends equally, by at most half a window, and has no dilation in averages and p-norms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torch import nn

from onnxprune.errors import OnnxPruneError
from onnxprune.torch_bridge.converters._operands import apply, attribute, product, unsupported
from onnxprune.torch_bridge.converters._windows import Window, pad
from onnxprune.torch_bridge.registry import converted, converts, same_as_before

same_as_before(1, "GlobalAveragePool")

_MAX: tuple[tuple[Any, Callable[..., Any]], ...] = (
    (nn.MaxPool1d, F.max_pool1d),
    (nn.MaxPool2d, F.max_pool2d),
    (nn.MaxPool3d, F.max_pool3d),
)
_AVERAGE = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def max_pool(
    x: torch.Tensor, *, function: Callable[..., Any], window: Window, indices: bool, column_major: bool
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Return the maximum of every window.

    Args:
        x: Data [N, C, *spatial].
        function: PyTorch function for this number of spatial axes.
        window: Window of the node.
        indices: Also return the flat index of each maximum in the whole data.
        column_major: The first spatial axis varies fastest in these indices.
    """
    begin, sizes = window.pads_and_counts(x.shape[2:])[0], x.shape[2:]
    lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
    padded = pad(x, begin, window.tail(sizes), lowest)
    y = function(padded, window.kernel, window.stride, 0, window.dilation, return_indices=indices)
    if not indices:
        return y
    values, found = y
    places = torch.unravel_index(found, padded.shape[2:])
    plane = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    index, step = plane * product(sizes), 1
    order = range(len(sizes)) if column_major else reversed(range(len(sizes)))
    for axis in order:
        index = index + (places[axis] - begin[axis]) * step
        step *= sizes[axis]
    return values, index


def average_pool(x: torch.Tensor, *, window: Window, with_padding: bool) -> torch.Tensor:
    """Return the mean of every window over the data in it, or over data and padding.

    Args:
        x: Data [N, C, *spatial].
        window: Window of the node.
        with_padding: Count the padding; elements beyond it are never counted.
    """
    begin, end, _ = window.pads_and_counts(x.shape[2:])
    tail = window.tail(x.shape[2:])
    counted = x.new_ones((1, 1, *x.shape[2:]))
    if with_padding:
        counted = pad(counted, begin, end, 1.0)
        counted = pad(counted, [0] * len(begin), [t - e for t, e in zip(tail, end, strict=True)])
    else:
        counted = pad(counted, begin, tail)
    return window_sum(pad(x, begin, tail), window) / window_sum(counted, window)


def lp_pool(x: torch.Tensor, *, window: Window, p: float) -> torch.Tensor:
    """Return the p-norm of every window. The gradient of a window of zeros is zero."""
    begin, _, _ = window.pads_and_counts(x.shape[2:])
    powers = window_sum(pad(x.abs() ** p, begin, window.tail(x.shape[2:])), window)
    return powers.clamp_min(torch.finfo(x.dtype).tiny) ** (1 / p)


def window_sum(x: torch.Tensor, window: Window) -> torch.Tensor:
    """Return the sum of every window of padded data: per axis, a sum of views shifted by one element each."""
    for i, (kernel, stride, dilation, reach) in enumerate(
        zip(window.kernel, window.stride, window.dilation, window.reach, strict=True)
    ):
        axis = i + 2
        last = (x.shape[axis] - reach) // stride * stride
        before = (slice(None),) * axis
        views = [x[(*before, slice(n * dilation, n * dilation + last + 1, stride))] for n in range(kernel)]
        x = functools.reduce(torch.add, views)
    return x


def global_max_pool(x: torch.Tensor) -> torch.Tensor:
    """Return the maximum over the spatial axes, [N, C, 1, ...]."""
    return x.amax(list(range(2, x.dim())), keepdim=True)


def global_lp_pool(x: torch.Tensor, *, p: float) -> torch.Tensor:
    """Return the p-norm over the spatial axes, [N, C, 1, ...]."""
    return torch.linalg.vector_norm(x, p, list(range(2, x.dim())), keepdim=True)


@converts("MaxPool")
def _max_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    window = _window(node)
    indices = len(node.output_values) > 1
    module, function = _MAX[len(window.kernel) - 1]
    padding = _plain(window)
    if padding is None or indices:
        column_major = bool(attribute(node, "storage_order", 0))
        return apply(
            node, graph, max_pool, function=function, window=window, indices=indices, column_major=column_major
        )
    pooling = module(window.kernel, window.stride, padding, window.dilation, ceil_mode=window.ceil)
    return converted(pooling, node.input_values, node)


@converts("AveragePool")
def _average_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    window = _window(node)
    with_padding = bool(attribute(node, "count_include_pad", 0))
    padding = _plain(window)
    if padding is None or set(window.dilation) != {1}:
        return apply(node, graph, average_pool, window=window, with_padding=with_padding)
    module = _AVERAGE[len(window.kernel) - 1]
    pooling = module(window.kernel, window.stride, padding, ceil_mode=window.ceil, count_include_pad=with_padding)
    return converted(pooling, node.input_values, node)


@converts("LpPool")
def _lp_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, lp_pool, window=_window(node), p=attribute(node, "p", 2))


@converts("GlobalMaxPool")
def _global_max_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, global_max_pool)


@converts("GlobalLpPool")
def _global_lp_pool(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, global_lp_pool, p=attribute(node, "p", 2))


def _window(node: OnnxNode) -> Window:
    window = Window.of(node, attribute(node, "kernel_shape"), crops=True)
    if len(window.kernel) not in (1, 2, 3):
        raise unsupported(f"pooling over {len(window.kernel)} axes")
    if window.same and set(window.dilation) != {1}:
        raise OnnxPruneError(f"the ONNX standard and onnxruntime disagree on dilated windows with {window.same}")
    return window


def _plain(window: Window) -> Sequence[int] | None:
    """Return the padding if PyTorch supports it: equal at both ends, at most half a window; else None."""
    pads = window.fixed_pads
    if pads is None or pads[0] != pads[1]:
        return None
    fits = all(0 <= p <= reach // 2 for p, reach in zip(pads[0], window.reach, strict=True))
    fits = fits and all(p <= kernel // 2 for p, kernel in zip(pads[0], window.kernel, strict=True))
    return pads[0] if fits else None
