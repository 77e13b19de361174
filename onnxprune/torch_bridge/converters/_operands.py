"""Functions that converters share: attributes, ranks, element types, and the module that applies a function.

Sizes and settings become Python numbers at conversion. Numbers computed at run time (a Shape and the arithmetic on it)
stay on the CPU: reading a number from an accelerator's tensor makes the host wait for the device. Errors omit operator,
version and node; the bridge adds them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OperationConverterResult
from torch import nn

from onnxprune.errors import OnnxPruneError
from onnxprune.torch_bridge.registry import converted

_TORCH_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32, onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16, onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8, onnx.TensorProto.INT16: torch.int16, onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32, onnx.TensorProto.UINT64: torch.uint64, onnx.TensorProto.BOOL: torch.bool,
}  # fmt: skip


class FunctionModule(nn.Module):
    """Module that calls a function with a node's tensors and the settings fixed at conversion.

    Args:
        function: Function of the node's inputs in order (None for an absent one) and the settings. It must be a
            module-level function, so that the module can be copied and pickled.
        constants: Inputs known at conversion, by index; the module is called with the others. They follow the module
            to its device, keep a copy on the CPU, and are not in the state dict.
        settings: Keyword arguments.
    """

    def __init__(
        self, function: Callable[..., Any], constants: Mapping[int, torch.Tensor] | None = None, /, **settings: Any
    ) -> None:
        super().__init__()
        self.function = function
        self.settings = settings
        self.on_cpu = dict(constants or {})
        for place, value in self.on_cpu.items():
            self.register_buffer(f"input_{place}", value, persistent=False)

    def forward(self, *tensors: Any) -> Any:
        """Return the function's result; CPU tensors move to the accelerator of the others, if any."""
        if self.on_cpu:
            stay = bool(tensors) and all(t is None or t.device.type == "cpu" for t in tensors)
            tensors = self._with_constants(tensors, stay)
        if len(tensors) > 1:
            tensors = _on_one_device(tensors)
        return self.function(*tensors, **self.settings)

    def _with_constants(self, tensors: Sequence[Any], stay: bool) -> tuple[Any, ...]:
        """Return all inputs in order; constants are the CPU copies if `stay`."""
        live, operands = iter(tensors), []
        for place in range(max(len(tensors) + len(self.on_cpu), max(self.on_cpu, default=-1) + 1)):
            if place in self.on_cpu:
                operands.append(self.on_cpu[place] if stay else getattr(self, f"input_{place}"))
            else:
                operands.append(next(live, None))
        return tuple(operands)

    def extra_repr(self) -> str:
        """Return the function and its settings, for `print(module)`."""
        name = getattr(self.function, "__name__", repr(self.function)).strip("_")
        return ", ".join([name, *(f"{k}={v}" for k, v in self.settings.items())])


class NumericArgumentModule(FunctionModule):
    """`Apply` for data and operands that are read as numbers, such as a shape: those stay on the CPU."""

    def forward(self, *tensors: Any) -> Any:
        """Return the function's result."""
        return self.function(*self._with_constants(tensors, stay=True), **self.settings)


def apply(
    node: OnnxNode, graph: OnnxGraph, function: Callable[..., Any], /, **settings: Any
) -> OperationConverterResult:
    """Return a module that calls a function with the node's inputs; integer and boolean constants are fixed.

    Args:
        node: Node to convert.
        graph: Graph of the node.
        function: Function as in `Apply`.
        settings: Keyword arguments of the function.
    """
    return apply_to(node, graph, node.input_values, function, **settings)


def apply_to(
    node: OnnxNode, graph: OnnxGraph, inputs: Sequence[str], function: Callable[..., Any], /, **settings: Any
) -> OperationConverterResult:
    """Return `apply` on some of the inputs, without those that are settings."""
    return _applied(FunctionModule, node, graph, inputs, function, settings)


def apply_numbers(
    node: OnnxNode, graph: OnnxGraph, inputs: Sequence[str], function: Callable[..., Any], /, **settings: Any
) -> OperationConverterResult:
    """Return `apply_to` with inputs that the function reads as numbers."""
    return _applied(NumericArgumentModule, node, graph, inputs, function, settings)


def _applied(
    kind: type[FunctionModule],
    node: OnnxNode,
    graph: OnnxGraph,
    inputs: Sequence[str],
    function: Callable[..., Any],
    settings: Mapping[str, Any],
) -> OperationConverterResult:
    constants, live = {}, []
    for place, name in enumerate(inputs):
        if is_integer_constant(graph, name):
            constants[place] = graph.initializers[name].to_torch()
        else:
            live.append(name)
    return converted(kind(function, constants, **settings), live, node)


def _on_one_device(tensors: Sequence[Any]) -> tuple[Any, ...]:
    devices = {t.device for t in tensors if t is not None}
    if len(devices) < 2:
        return tuple(tensors)
    (target,) = {d for d in devices if d.type != "cpu"}
    return tuple(None if t is None else t.to(target, non_blocking=True) for t in tensors)


def attribute(node: OnnxNode, name: str, default: Any = None) -> Any:
    """Return the value of an attribute; onnx2torch returns the message itself for an empty list."""
    value = node.attributes.get(name, default)
    return [] if isinstance(value, onnx.AttributeProto) else value


def has_input(node: OnnxNode, index: int) -> bool:
    """Return whether an optional input is present."""
    return index < len(node.input_values) and bool(node.input_values[index])


def is_constant(node: OnnxNode, graph: OnnxGraph, index: int) -> bool:
    """Return whether an input is present and known at conversion."""
    return has_input(node, index) and node.input_values[index] in graph.initializers


def known(graph: OnnxGraph, name: str) -> Any:
    """Return the numpy value of a constant, read-only: the bridge's `_Graph` returns it without a copy."""
    tensor = graph.initializers[name]
    values = getattr(tensor, "values", None)
    return tensor.to_numpy() if values is None else values


def is_integer_constant(graph: OnnxGraph, name: str) -> bool:
    """Return whether a tensor is a constant of integers or booleans."""
    return name in graph.initializers and known(graph, name).dtype.kind in "iub"


def numbers(node: OnnxNode, graph: OnnxGraph, index: int, name: str | None = None) -> list[Any] | None:
    """Return the numbers that a node has as an attribute (old versions) or an input (new versions).

    Returns:
        Python ints or floats; None if they are absent or computed at run time (see `is_constant`).
    """
    if name is not None and name in node.attributes:
        value = attribute(node, name)
        return list(value) if isinstance(value, list) else [value]
    if not is_constant(node, graph, index):
        return None
    return [v.item() for v in known(graph, node.input_values[index]).reshape(-1)]


def axes_of(node: OnnxNode, graph: OnnxGraph, index: int = 1) -> tuple[int, ...] | None:
    """Return the axes in the attribute `axes` or in an input; None if they are absent.

    Raises:
        OnnxPruneError: The axes are computed at run time.
    """
    axes = numbers(node, graph, index, "axes")
    if axes is None and has_input(node, index):
        raise OnnxPruneError("the axes are computed from the data")
    return None if axes is None else tuple(int(a) for a in axes)


def rank(node: OnnxNode, graph: OnnxGraph, index: int = 0) -> int:
    """Return the number of axes of an input.

    Raises:
        OnnxPruneError: Its rank is unknown.
    """
    name = node.input_values[index]
    if name in graph.initializers:
        return int(known(graph, name).ndim)
    kind = graph.value_info[name].type.tensor_type if name in graph.value_info else None
    if kind is None or not kind.HasField("shape"):
        raise OnnxPruneError(f"the number of axes of {name!r} is unknown")
    return len(kind.shape.dim)


def torch_dtype(kind: int) -> torch.dtype:
    """Return PyTorch's element type for ONNX's.

    Raises:
        OnnxPruneError: PyTorch has none (strings, 4-bit numbers).
    """
    if kind not in _TORCH_DTYPES:
        name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else str(kind)
        raise unsupported(f"the element type {name}")
    return _TORCH_DTYPES[kind]


def unsupported(what: str) -> OnnxPruneError:
    """Return the error for an operator or setting without a counterpart in PyTorch."""
    return OnnxPruneError(f"{what} has no counterpart in PyTorch")


def as_ints(values: torch.Tensor) -> list[int]:
    """Return numbers computed at run time, such as a target shape; they are on the CPU unless computed from data."""
    return [int(v) for v in values.reshape(-1).tolist()]


def product(values: Sequence[int]) -> int:
    """Return the product of sizes; 1 for none."""
    return math.prod(values)
