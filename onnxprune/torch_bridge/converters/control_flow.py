"""Converter of an If in flat form: both branches are computed, and the condition selects the results."""

from __future__ import annotations

from typing import Any

import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.ir.branches import FLAT
from onnxprune.torch_bridge.converters._operands import apply
from onnxprune.torch_bridge.registry import converts


def select(condition: torch.Tensor, *results: Any) -> Any:
    """Return the results of one branch: the first half of all results if the condition is true."""
    count = len(results) // 2
    chosen = results[:count] if bool(condition.any()) else results[count:]
    return chosen[0] if count == 1 else tuple(chosen)


@converts("If", domain=FLAT)
def _if(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, select)
