"""The record of com.example::Snake(x, alpha): x + sin(alpha x)^2 / alpha, with one alpha for each channel.

Ziyin et al. 2020, Neural Networks Fail to Learn Periodic Functions and How to Fix It; vocoders use it per channel.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ops import LabelTable, OpSpec, register


def couple_snake(node: gs.Node, table: LabelTable) -> None:
    """The output has the labels of x; alpha [C] is bound to x's channels."""
    x, alpha = node.inputs
    axes = table.get(x)
    table.bind(alpha, 0, axes[1])
    table.put(node.outputs[0], axes)


def register_ops() -> None:
    """Called once by onnxprune, when a model holds an operator that it does not know itself."""
    register(OpSpec("Snake", couple_snake, domain="com.example"))
