"""Converters of convolutions: modules of `torch.nn` with the ONNX weights, or functions if the weight is computed.

PyTorch pads both ends of the data equally. Other paddings become a padding module before a Conv or a crop after a
ConvTranspose.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torch import nn

from onnxprune.torch_bridge.converters._operands import (
    FunctionModule,
    attribute,
    has_input,
    is_constant,
    known,
    rank,
    unsupported,
)
from onnxprune.torch_bridge.converters._windows import Window, pad
from onnxprune.torch_bridge.registry import converted, converts

_MODULES = {
    "Conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    "ConvTranspose": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
}
_FUNCTIONS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Conv": (F.conv1d, F.conv2d, F.conv3d),
    "ConvTranspose": (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
}


def same_pad(x: torch.Tensor, *, window: Window) -> torch.Tensor:
    """Pad the data with zeros so that every window of a convolution fits."""
    begin, end, _ = window.pads_and_counts(x.shape[2:])
    return pad(x, begin, end)


def fixed_pad(x: torch.Tensor, *, begin: Sequence[int], end: Sequence[int]) -> torch.Tensor:
    """Pad the data with zeros before and after; negative numbers crop."""
    return pad(x, begin, end)


def computed_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    function: Callable[..., Any],
    window: Window,
    groups: int,
) -> torch.Tensor:
    """Return a convolution whose weight another node computes.

    Args:
        x: Data [N, C, *spatial].
        weight: Weight [F, C / groups, *kernel].
        bias: Bias [F].
        function: PyTorch function for this number of spatial axes.
        window: Window of the node; the kernel size is read from the weight.
        groups: Number of channel groups.
    """
    window = replace(window, kernel=tuple(weight.shape[2:]))
    begin, end, _ = window.pads_and_counts(x.shape[2:])
    padding: Sequence[int] = begin
    if begin != end or min(begin) < 0:
        x, padding = pad(x, begin, end), (0,) * len(begin)
    return function(x, weight, bias, window.stride, padding, window.dilation, groups)


def computed_conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    function: Callable[..., Any],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    output_padding: Sequence[int],
    crop: tuple[Sequence[int], Sequence[int]],
) -> torch.Tensor:
    """Return a transposed convolution whose weight another node computes; `crop` is the standard's padding."""
    y = function(x, weight, bias, stride, 0, output_padding, groups, dilation)
    return pad(y, [-n for n in crop[0]], [-n for n in crop[1]])


class CroppedConvTranspose(nn.Module):
    """Transposed convolution whose output is cropped differently at the two ends, or to a given size.

    Args:
        conv: Convolution without padding.
        crop: Elements to drop (at the start, at the end), or None if they follow from `size`.
        size: Output size per spatial axis; 0 means the input's size times the stride.
        upper: Drop an odd element at the end.
    """

    def __init__(
        self,
        conv: nn.Module,
        crop: tuple[Sequence[int], Sequence[int]] | None,
        size: Sequence[int] = (),
        upper: bool = False,
    ) -> None:
        super().__init__()
        self.conv = conv
        self.crop = crop
        self.size = tuple(size)
        self.upper = upper

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output [N, F, *spatial] for data [N, C, *spatial]."""
        if self.crop is not None:
            return pad(self.conv(x), [-n for n in self.crop[0]], [-n for n in self.crop[1]])
        conv, begins, ends, sizes = self.conv, [], [], []
        for i, n in enumerate(x.shape[2:]):
            reach = (conv.kernel_size[i] - 1) * conv.dilation[i] + 1
            natural = (n - 1) * conv.stride[i] + reach + conv.output_padding[i]
            # Kernels smaller than the stride give less than the standard's size; onnxruntime does not pad it.
            target = self.size[i] or min(n * conv.stride[i], natural)
            surplus = max(natural - target, 0)
            begins.append(surplus // 2 if self.upper else surplus - surplus // 2)
            ends.append(surplus - begins[-1])
            sizes.append(max(natural, target))
        return pad(conv(x, output_size=sizes), [-n for n in begins], [-n for n in ends])


@converts("Conv")
def _conv(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    spatial = _spatial_axes(node, graph)
    groups = attribute(node, "group", 1)
    if not _weights_known(node, graph):
        window = Window.of(node, attribute(node, "kernel_shape") or [1] * spatial)
        function = _FUNCTIONS["Conv"][spatial - 1]
        return converted(
            FunctionModule(computed_conv, function=function, window=window, groups=groups), node.input_values, node
        )
    shape = known(graph, node.input_values[1]).shape
    kernel = shape[2:]
    window = Window.of(node, kernel)
    pads = window.fixed_pads
    symmetric = pads is not None and pads[0] == pads[1] and min(pads[0]) >= 0
    conv = _MODULES["Conv"][spatial - 1](
        shape[1] * groups,
        shape[0],
        kernel,
        stride=window.stride,
        padding=pads[0] if pads is not None and symmetric else 0,
        dilation=window.dilation,
        groups=groups,
        bias=has_input(node, 2),
        device="meta",
    )
    if symmetric:
        return _holding(conv, conv, "", node, graph)
    before = (
        FunctionModule(same_pad, window=window)
        if pads is None
        else FunctionModule(fixed_pad, begin=pads[0], end=pads[1])
    )
    return _holding(nn.Sequential(OrderedDict(pad=before, conv=conv)), conv, "conv.", node, graph)


@converts("ConvTranspose")
def _conv_transpose(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    spatial = _spatial_axes(node, graph)
    groups = attribute(node, "group", 1)
    has_weights = _weights_known(node, graph)
    shape: tuple[int, ...] = known(graph, node.input_values[1]).shape if has_weights else ()
    kernel = shape[2:] if has_weights else attribute(node, "kernel_shape") or [1] * spatial
    window = Window.of(node, kernel)
    size = list(attribute(node, "output_shape") or [])[-spatial:]
    if window.same and not size:
        size = [0] * spatial
    output_padding = list(attribute(node, "output_padding") or [0] * spatial)
    upper = window.same == "SAME_UPPER"
    if not has_weights:
        if size:
            raise unsupported("a computed weight with an explicit output size")
        settings = {"stride": window.stride, "dilation": window.dilation, "groups": groups}
        made = FunctionModule(
            computed_conv_transpose,
            function=_FUNCTIONS["ConvTranspose"][spatial - 1],
            output_padding=output_padding,
            crop=(window.begin, window.end),
            **settings,
        )
        return converted(made, node.input_values, node)
    # PyTorch itself drops the padding common to both ends.
    common = [0 if size else max(min(pair), 0) for pair in zip(window.begin, window.end, strict=True)]
    crop = tuple([n - c for n, c in zip(side, common, strict=True)] for side in (window.begin, window.end))
    conv = _MODULES["ConvTranspose"][spatial - 1](
        shape[0],
        shape[1] * groups,
        kernel,
        stride=window.stride,
        padding=common,
        output_padding=output_padding,
        dilation=window.dilation,
        groups=groups,
        bias=has_input(node, 2),
        device="meta",
    )
    if size:
        return _holding(CroppedConvTranspose(conv, None, size, upper), conv, "conv.", node, graph)
    if any(crop[0]) or any(crop[1]):
        return _holding(CroppedConvTranspose(conv, (crop[0], crop[1])), conv, "conv.", node, graph)
    return _holding(conv, conv, "", node, graph)


def _spatial_axes(node: OnnxNode, graph: OnnxGraph) -> int:
    spatial = rank(node, graph, 1 if is_constant(node, graph, 1) else 0) - 2
    if spatial not in (1, 2, 3):
        raise unsupported(f"convolution over {spatial} axes")
    return spatial


def _weights_known(node: OnnxNode, graph: OnnxGraph) -> bool:
    return is_constant(node, graph, 1) and (not has_input(node, 2) or is_constant(node, graph, 2))


def _holding(
    made: nn.Module, conv: nn.Module, prefix: str, node: OnnxNode, graph: OnnxGraph
) -> OperationConverterResult:
    """Return the conversion result with the node's weights set in its convolution, which was made without storage."""
    held = {}
    for name, index in (("weight", 1), ("bias", 2)):
        if has_input(node, index):
            source = node.input_values[index]
            setattr(conv, name, nn.Parameter(graph.initializers[source].to_torch()))
            held[prefix + name] = (source, False, 1.0)
    made.onnx_parameters = held
    return converted(made, node.input_values[:1], node)
