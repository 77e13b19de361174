"""Registry of converters from an ONNX node to a PyTorch module: ours first, then onnx2torch's.

Converters have onnx2torch's form: a function of its node and graph that returns a module and the names of the tensors
the module is called with. Ours come first, because they also cover versions that onnx2torch has but cannot train
(weights hidden in buffers) or cannot convert (operands as inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx
from onnx2torch.node_converters.registry import get_converter
from onnx2torch.onnx_graph import OnnxGraph
from onnx2torch.onnx_node import OnnxNode
from onnx2torch.utils.common import OnnxMapping, OperationConverterResult
from torch import nn

from onnxprune._utils.registry import Registry
from onnxprune.errors import OnnxPruneError

Converter = Callable[[OnnxNode, OnnxGraph], OperationConverterResult]

CONVERTERS: Registry[tuple[str, str, int], Converter] = Registry(
    "converter to PyTorch", label=lambda key: f"{key[0] or 'ai.onnx'}::{key[1]} version {key[2]}"
)
"""Our converters by (domain, operator, schema version from which on they serve)."""
# Later versions of these operators only add element types (or attributes whose default is the old behaviour), so
# onnx2torch's converter of the version named here is valid for all of them.
_older: dict[str, int] = {}


def converts(*ops: str, since: int = 1, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a converter for operators from a schema version (its `since_version`) on; a decorator.

    Raises:
        OnnxPruneError: The operator already has a converter for that version.
    """

    def register(converter: Converter) -> Converter:
        for op in ops:
            CONVERTERS.add((domain, op, since), converter)
        return converter

    return register


def same_as_before(version: int, *ops: str) -> None:
    """Declare onnx2torch's converter of a version valid for all later versions of these operators."""
    _older.update(dict.fromkeys(ops, version))


def find(node: OnnxNode, opset: int) -> Converter:
    """Return the converter of a node.

    Raises:
        OnnxPruneError: There is none; the error has operator, version and node.
    """
    domain, op = node.domain if node.domain != "ai.onnx" else "", node.operation_type
    version = since_version(op, opset, domain)
    for since in range(version, 0, -1):
        converter = CONVERTERS.find((domain, op, since))
        if converter is not None:
            return converter
    for candidate in (version, *([_older[op]] if op in _older and not domain and version > _older[op] else [])):
        try:
            found: Converter = get_converter(op, candidate, domain)
            return found
        except NotImplementedError:
            continue
    raise OnnxPruneError(
        f"no converter to PyTorch for {domain + '::' if domain else ''}{op} version {version}",
        where=f"node {node.name!r}",
        fix="register one with onnxprune.torch_bridge.registry.converts",
    )


def since_version(op: str, opset: int, domain: str = "") -> int:
    """Return the schema version of an operator in an opset; the opset itself for operators unknown to onnx."""
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def converted(module: nn.Module, inputs: Sequence[str], node: OnnxNode) -> OperationConverterResult:
    """Return a converter's result: the module, and the tensors it is called with ("" for an absent one)."""
    return OperationConverterResult(module, OnnxMapping(tuple(inputs), node.output_values))


def constant(graph: OnnxGraph, name: str) -> Any:
    """Return the numpy value of an initializer; None if the tensor is computed or absent."""
    return graph.initializers[name].to_numpy() if name and name in graph.initializers else None


def operand(node: OnnxNode, graph: OnnxGraph, index: int, attribute: str | None = None) -> list[int] | None:
    """Return integers that a node has as an attribute (old versions) or a constant input (new versions), else None.

    Raises:
        OnnxPruneError: The input is computed at run time.
    """
    if attribute is not None and attribute in node.attributes:
        value = node.attributes[attribute]
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    if index >= len(node.input_values) or not node.input_values[index]:
        return None
    value = constant(graph, node.input_values[index])
    if value is None:
        raise OnnxPruneError(
            f"{node.operation_type} needs a constant {node.input_values[index]!r}, but it is computed from the data",
            where=f"node {node.name!r}",
        )
    return [int(v) for v in value.reshape(-1)]
