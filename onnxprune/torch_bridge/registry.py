"""Which converter makes a PyTorch module of an ONNX node: ours, onnx2torch's, or onnx2torch's for an older version.

Converters have onnx2torch's own form: a function of its node and graph that returns a module and the names of the
tensors the module is called with. Ours come first, because they also serve the versions onnx2torch has but cannot
train (weights hidden in buffers) or cannot convert (operands as inputs).
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

from onnxprune.errors import OnnxPruneError

Converter = Callable[[OnnxNode, OnnxGraph], OperationConverterResult]

_ours: dict[tuple[str, str], list[tuple[int, Converter]]] = {}
# Later versions of these only take more element types (or attributes that mean what the default meant): the converter
# onnx2torch has for the version named serves them all.
_older: dict[str, int] = {}


def converts(*ops: str, since: int = 1, domain: str = "") -> Callable[[Converter], Converter]:
    """Decorator: a converter of ours for operators from a schema version (its `since_version`) on.

    Raises:
        OnnxPruneError: the operator has one for that version already.
    """

    def register(converter: Converter) -> Converter:
        for op in ops:
            known = _ours.setdefault((domain, op), [])
            if any(version == since for version, _ in known):
                raise OnnxPruneError(f"two converters to PyTorch for {op} {since}")
            known.append((since, converter))
            known.sort(key=lambda pair: -pair[0])
        return converter

    return register


def same_as_before(version: int, *ops: str) -> None:
    """Says that onnx2torch's converter of that version serves all later versions of these operators."""
    _older.update(dict.fromkeys(ops, version))


def find(node: OnnxNode, opset: int) -> Converter:
    """The converter of a node.

    Raises:
        OnnxPruneError: there is none, with operator, version and node.
    """
    domain, op = node.domain if node.domain != "ai.onnx" else "", node.operation_type
    version = since_version(op, opset, domain)
    for since, converter in _ours.get((domain, op), ()):
        if version >= since:
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
    """The schema version of an operator in an opset; the opset itself for operators onnx does not know."""
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def converted(module: nn.Module, inputs: Sequence[str], node: OnnxNode) -> OperationConverterResult:
    """What a converter returns: the module, and the tensors it is called with ("" for one that is absent)."""
    return OperationConverterResult(module, OnnxMapping(tuple(inputs), node.output_values))


def constant(graph: OnnxGraph, name: str) -> Any:
    """The numpy value of an initializer; None if the tensor is computed or absent."""
    return graph.initializers[name].to_numpy() if name and name in graph.initializers else None


def operand(node: OnnxNode, graph: OnnxGraph, index: int, attribute: str | None = None) -> list[int] | None:
    """Integers a node takes as an attribute (old versions) or a constant input (new ones); None where absent.

    Raises:
        OnnxPruneError: the input is computed at run time.
    """
    if attribute is not None and attribute in node.attributes:
        value = node.attributes[attribute]
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    if index >= len(node.input_values) or not node.input_values[index]:
        return None
    value = constant(graph, node.input_values[index])
    if value is None:
        raise OnnxPruneError(
            f"{node.operation_type} takes {node.input_values[index]!r} as a number, but it is computed from the data",
            where=f"node {node.name!r}",
        )
    return [int(v) for v in value.reshape(-1)]
