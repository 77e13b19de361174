"""Converters of matrix products: Gemm becomes `nn.Linear` where possible."""

from __future__ import annotations

import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torch import nn

from onnxprune.torch_bridge.converters._operands import FunctionModule, apply, attribute, has_input, is_constant, known
from onnxprune.torch_bridge.registry import converted, converts, same_as_before

same_as_before(12, "Einsum")


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor | None = None,
    *,
    alpha: float,
    beta: float,
    transpose_a: bool,
    transpose_b: bool,
) -> torch.Tensor:
    """Return alpha * A B + beta * C.

    Args:
        a: A [M, K], or [K, M] if transposed.
        b: B [K, N], or [N, K] if transposed.
        c: C, broadcasts to [M, N].
        alpha: Factor of the product.
        beta: Factor of `c`.
        transpose_a: A is transposed.
        transpose_b: B is transposed.
    """
    y = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    if alpha != 1:
        y = alpha * y
    if c is None:
        return y
    return y + (c if beta == 1 else beta * c)


@converts("Gemm", since=7)
def _gemm(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    transpose_a, transpose_b = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
    if transpose_a or not _is_linear(node, graph, alpha, beta, transpose_b):
        module = FunctionModule(gemm, alpha=alpha, beta=beta, transpose_a=transpose_a, transpose_b=transpose_b)
        return converted(module, node.input_values, node)
    weight = graph.initializers[node.input_values[1]].to_torch()
    weight = weight if transpose_b else weight.T.contiguous()
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=has_input(node, 2), device="meta")
    linear.weight = nn.Parameter(weight if alpha == 1 else alpha * weight)
    held = {"weight": (node.input_values[1], not transpose_b, float(alpha))}
    if has_input(node, 2):
        bias = graph.initializers[node.input_values[2]].to_torch()
        linear.bias = nn.Parameter(bias if beta == 1 else beta * bias)
        held["bias"] = (node.input_values[2], False, float(beta))
    linear.onnx_parameters = held
    return converted(linear, node.input_values[:1], node)


def _is_linear(node: OnnxNode, graph: OnnxGraph, alpha: float, beta: float, transpose_b: bool) -> bool:
    """Return whether nn.Linear can hold B and C: constants, C [outputs], both recoverable from the module.

    A weight that other nodes also read keeps the graph's own form, so that all of them share one parameter.
    """
    shared: set[str] = getattr(graph, "shared", set())
    if not is_constant(node, graph, 1) or alpha == 0:
        return False
    if node.input_values[1] in shared and not (transpose_b and alpha == 1):
        return False
    if not has_input(node, 2):
        return True
    if not is_constant(node, graph, 2) or beta == 0 or (node.input_values[2] in shared and beta != 1):
        return False
    outputs = known(graph, node.input_values[1]).shape[0 if transpose_b else 1]
    return bool(known(graph, node.input_values[2]).shape == (outputs,))


@converts("MatMul")
def _matmul(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, torch.matmul)
