"""What converters share: attributes, ranks, element types, and the module that applies a function.

Sizes and settings are baked in as Python numbers when a model is converted. Numbers that only a run knows (a Shape and
the arithmetic on it) stay on the CPU: a tensor of an accelerator read as numbers makes the host wait for the device.
Errors leave operator, version and node to the bridge, which knows them.
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
    """Calls a function with a node's tensors and the settings fixed at conversion.

    Args:
        function: takes the node's inputs in order (None for an absent one) and the settings. It must be a module-level
            function, so that the module can be copied and pickled.
        constants: inputs known at conversion, by place; the module is called with the others. They follow the module
            to its device, stay on the CPU as well, and are not in the state dict.
        settings: keyword arguments.
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
        """The function's result; tensors of the CPU move to the accelerator of the others, if there is one."""
        if self.on_cpu:
            stay = bool(tensors) and all(t is None or t.device.type == "cpu" for t in tensors)
            tensors = self._with_constants(tensors, stay)
        if len(tensors) > 1:
            tensors = _on_one_device(tensors)
        return self.function(*tensors, **self.settings)

    def _with_constants(self, tensors: Sequence[Any], stay: bool) -> tuple[Any, ...]:
        """All inputs in order; constants are those of the CPU if they `stay` there."""
        live, operands = iter(tensors), []
        for place in range(max(len(tensors) + len(self.on_cpu), max(self.on_cpu, default=-1) + 1)):
            if place in self.on_cpu:
                operands.append(self.on_cpu[place] if stay else getattr(self, f"input_{place}"))
            else:
                operands.append(next(live, None))
        return tuple(operands)

    def extra_repr(self) -> str:
        """The function and its settings, for `print(module)`."""
        name = getattr(self.function, "__name__", repr(self.function)).strip("_")
        return ", ".join([name, *(f"{k}={v}" for k, v in self.settings.items())])


class NumericArgumentModule(FunctionModule):
    """`Apply` to data and to numbers that say what to do with it, such as a shape: those stay on the CPU."""

    def forward(self, *tensors: Any) -> Any:
        """The function's result."""
        return self.function(*self._with_constants(tensors, stay=True), **self.settings)


def apply(
    node: OnnxNode, graph: OnnxGraph, function: Callable[..., Any], /, **settings: Any
) -> OperationConverterResult:
    """A module that calls a function with the node's inputs; integer and boolean constants are baked in.

    Args:
        node: the node.
        graph: its graph.
        function: see `Apply`.
        settings: keyword arguments of the function.
    """
    return apply_to(node, graph, node.input_values, function, **settings)


def apply_to(
    node: OnnxNode, graph: OnnxGraph, inputs: Sequence[str], function: Callable[..., Any], /, **settings: Any
) -> OperationConverterResult:
    """`apply` to some of the inputs: those that are no settings."""
    return _applied(FunctionModule, node, graph, inputs, function, settings)


def apply_numbers(
    node: OnnxNode, graph: OnnxGraph, inputs: Sequence[str], function: Callable[..., Any], /, **settings: Any
) -> OperationConverterResult:
    """`apply_to` with inputs that the function reads as numbers."""
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
    """The value of an attribute; onnx2torch hands out the message itself for an empty list."""
    value = node.attributes.get(name, default)
    return [] if isinstance(value, onnx.AttributeProto) else value


def has_input(node: OnnxNode, index: int) -> bool:
    """Whether an optional input is there."""
    return index < len(node.input_values) and bool(node.input_values[index])


def is_constant(node: OnnxNode, graph: OnnxGraph, index: int) -> bool:
    """Whether an input is there and known at conversion."""
    return has_input(node, index) and node.input_values[index] in graph.initializers


def known(graph: OnnxGraph, name: str) -> Any:
    """The numpy value of a constant, only to be looked at: the bridge's own view of the graph hands it out uncopied."""
    tensor = graph.initializers[name]
    values = getattr(tensor, "values", None)
    return tensor.to_numpy() if values is None else values


def is_integer_constant(graph: OnnxGraph, name: str) -> bool:
    """Whether a tensor is a constant of integers or booleans."""
    return name in graph.initializers and known(graph, name).dtype.kind in "iub"


def numbers(node: OnnxNode, graph: OnnxGraph, index: int, name: str | None = None) -> list[Any] | None:
    """Numbers a node takes as an attribute (old versions) or an input (new ones).

    Returns:
        Python ints or floats; None if there are none, or if they are computed at run time (see `is_constant`).
    """
    if name is not None and name in node.attributes:
        value = attribute(node, name)
        return list(value) if isinstance(value, list) else [value]
    if not is_constant(node, graph, index):
        return None
    return [v.item() for v in known(graph, node.input_values[index]).reshape(-1)]


def axes_of(node: OnnxNode, graph: OnnxGraph, index: int = 1) -> tuple[int, ...] | None:
    """Axes given as the attribute `axes` or as an input; None if they are absent.

    Raises:
        OnnxPruneError: they are computed at run time.
    """
    axes = numbers(node, graph, index, "axes")
    if axes is None and has_input(node, index):
        raise OnnxPruneError("the axes are computed from the data")
    return None if axes is None else tuple(int(a) for a in axes)


def rank(node: OnnxNode, graph: OnnxGraph, index: int = 0) -> int:
    """How many axes an input has.

    Raises:
        OnnxPruneError: nothing is known about its shape.
    """
    name = node.input_values[index]
    if name in graph.initializers:
        return int(known(graph, name).ndim)
    kind = graph.value_info[name].type.tensor_type if name in graph.value_info else None
    if kind is None or not kind.HasField("shape"):
        raise OnnxPruneError(f"the number of axes of {name!r} is unknown")
    return len(kind.shape.dim)


def torch_dtype(kind: int) -> torch.dtype:
    """PyTorch's element type for ONNX's.

    Raises:
        OnnxPruneError: PyTorch has none (strings, 4-bit numbers).
    """
    if kind not in _TORCH_DTYPES:
        name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else str(kind)
        raise unsupported(f"the element type {name}")
    return _TORCH_DTYPES[kind]


def unsupported(what: str) -> OnnxPruneError:
    """The error for what has no counterpart in PyTorch."""
    return OnnxPruneError(f"{what} has no counterpart in PyTorch")


def as_ints(values: torch.Tensor) -> list[int]:
    """Numbers that a run computes, such as a target shape. They come from the CPU unless the data itself made them."""
    return [int(v) for v in values.reshape(-1).tolist()]


def product(values: Sequence[int]) -> int:
    """Product of sizes; 1 of none."""
    return math.prod(values)
