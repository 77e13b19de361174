"""Converters of elementwise operators: arithmetic, comparisons, logic, functions, casts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult

from onnxprune.torch_bridge.converters._operands import (
    apply,
    apply_to,
    attribute,
    is_constant,
    numbers,
    rank,
    torch_dtype,
    unsupported,
)
from onnxprune.torch_bridge.registry import constant, converts, same_as_before

same_as_before(1, "Not", "Softplus", "Softsign")
same_as_before(7, "Acos", "Asin", "Atan", "Cos", "Sin", "Tan")
same_as_before(11, "Round")
same_as_before(16, "Identity")


def divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the quotient; that of integers is truncated towards zero."""
    if a.is_floating_point() or b.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def power(base: torch.Tensor, exponent: torch.Tensor | float) -> torch.Tensor:
    """Return base ** exponent in the element type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


def is_infinite(x: torch.Tensor, *, negative: bool, positive: bool) -> torch.Tensor:
    """Return True for elements that are -inf (`negative`) or inf (`positive`)."""
    if negative and positive:
        return torch.isinf(x)
    if not negative and not positive:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isneginf(x) if negative else torch.isposinf(x)


def total(*tensors: torch.Tensor) -> torch.Tensor:
    """Return the sum of tensors that broadcast."""
    return functools.reduce(torch.add, tensors)


def mean(*tensors: torch.Tensor) -> torch.Tensor:
    """Return the mean of tensors that broadcast."""
    return total(*tensors) / len(tensors)


def largest(*tensors: torch.Tensor) -> torch.Tensor:
    """Return the elementwise maximum of tensors that broadcast."""
    return functools.reduce(torch.maximum, tensors)


def smallest(*tensors: torch.Tensor) -> torch.Tensor:
    """Return the elementwise minimum of tensors that broadcast."""
    return functools.reduce(torch.minimum, tensors)


def cast(x: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """Cast to another element type; no gradient passes through integers."""
    return x.to(dtype)


def cast_like(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cast to the element type of another tensor."""
    return x.to(like.dtype)


def where(condition: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return elements of `a` where the condition holds, else of `b`."""
    return torch.where(condition, a, b)


def clip(x: torch.Tensor, *, min: float | None, max: float | None) -> torch.Tensor:
    """Clamp elements to bounds, each optional."""
    return x if min is None and max is None else torch.clamp(x, min, max)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": divide,
    "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt, "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le,
    "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "BitwiseAnd": torch.bitwise_and, "BitwiseOr": torch.bitwise_or, "BitwiseXor": torch.bitwise_xor,
    "Sum": total, "Mean": mean, "Max": largest, "Min": smallest, "Where": where, "CastLike": cast_like,
}  # fmt: skip
_UNARY: dict[str, Callable[..., Any]] = {
    "Acosh": torch.acosh, "Asinh": torch.asinh, "Atanh": torch.atanh, "Cosh": torch.cosh, "Sinh": torch.sinh,
    "BitwiseNot": torch.bitwise_not, "IsNaN": torch.isnan,
}  # fmt: skip


@converts(*_FUNCTIONS, since=7)
def _broadcasting(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, _FUNCTIONS[node.operation_type])


@converts(*_UNARY)
def _unary(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, _UNARY[node.operation_type])


@converts("Pow", since=7)
def _pow(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    # A constant exponent becomes a Python number: torch has fast, differentiable squares and square roots. Its shape
    # must not add axes to the base.
    if is_constant(node, graph, 1):
        exponent = constant(graph, node.input_values[1])
        if exponent.size == 1 and (exponent.ndim == 0 or exponent.ndim <= rank(node, graph)):
            return apply_to(node, graph, node.input_values[:1], power, exponent=exponent.item())
    return apply(node, graph, power)


@converts("Mod")
def _mod(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, torch.fmod if attribute(node, "fmod", 0) else torch.remainder)


@converts("IsInf")
def _is_inf(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    negative, positive = (bool(attribute(node, f"detect_{sign}", 1)) for sign in ("negative", "positive"))
    return apply(node, graph, is_infinite, negative=negative, positive=positive)


@converts("Cast")
def _cast(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    return apply(node, graph, cast, dtype=torch_dtype(attribute(node, "to")))


@converts("Clip")
def _clip(node: OnnxNode, graph: OnnxGraph) -> OperationConverterResult:
    computed = [i for i in (1, 2) if i < len(node.input_values) and node.input_values[i]]
    if any(not is_constant(node, graph, i) for i in computed):
        return apply(node, graph, torch.clamp)
    low, high = numbers(node, graph, 1, "min"), numbers(node, graph, 2, "max")
    if any(bound is not None and len(bound) != 1 for bound in (low, high)):
        raise unsupported("bounds that are not scalars")
    bounds = {"min": low[0] if low else None, "max": high[0] if high else None}
    return apply_to(node, graph, node.input_values[:1], clip, **bounds)
