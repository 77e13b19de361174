"""Converters of sampling operators: GridSample and RoiAlign."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torchvision.ops import roi_align

from onnxprune.torch_bridge.converters._operands import apply, attribute, unsupported
from onnxprune.torch_bridge.registry import converts

_MODES = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}


def grid_sample(x: torch.Tensor, grid: torch.Tensor, *, mode: str, padding: str, corners: bool) -> torch.Tensor:
    """Sample at positions between -1 and 1, [N, *spatial, axes]: Jaderberg et al. 2015, arXiv:1506.02025."""
    return F.grid_sample(x, grid, mode, padding, corners)


def regions(
    x: torch.Tensor,
    boxes: torch.Tensor,
    batch: torch.Tensor,
    *,
    size: tuple[int, int],
    scale: float,
    samples: int,
    aligned: bool,
) -> torch.Tensor:
    """Average the data in boxes, on a grid: He et al. 2017, arXiv:1703.06870.

    Args:
        x: Data [N, C, H, W].
        boxes: Boxes [boxes, 4] as x1, y1, x2, y2.
        batch: Sample index of every box, [boxes].
        size: Size of the grid.
        scale: Factor from box coordinates to data coordinates.
        samples: Samples per cell and axis; 0 adapts to the box.
        aligned: Shift coordinates by half a pixel.
    """
    numbered = torch.cat([batch.to(boxes.dtype).unsqueeze(1), boxes], 1)
    return roi_align(x, numbered, size, scale, samples, aligned)


@converts("GridSample")
def _grid_sample(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    mode = attribute(node, "mode", "linear")
    if mode not in _MODES:
        raise unsupported(f"mode {mode!r}")
    padding, corners = attribute(node, "padding_mode", "zeros"), bool(attribute(node, "align_corners", 0))
    return apply(node, graph, grid_sample, mode=_MODES[mode], padding=padding, corners=corners)


@converts("RoiAlign", since=16)
def _roi_align(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return _aligned(node, graph, attribute(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel")


@converts("RoiAlign", since=10)
def _old_roi_align(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return _aligned(node, graph, False)


def _aligned(node: OnnxNode, graph: OnnxGraph, aligned: bool) -> OperationConverterResult:
    if attribute(node, "mode", "avg") != "avg":
        raise unsupported(f"mode {attribute(node, 'mode')!r}")
    return apply(
        node,
        graph,
        regions,
        size=(attribute(node, "output_height", 1), attribute(node, "output_width", 1)),
        scale=attribute(node, "spatial_scale", 1.0),
        samples=attribute(node, "sampling_ratio", 0),
        aligned=aligned,
    )
