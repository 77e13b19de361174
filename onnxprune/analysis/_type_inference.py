"""Output types of single nodes by ONNX's shape inference; results of equal nodes are reused.

A type is a serialized `TypeProto`: the input and output format of inference, hashable and comparable without parsing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxprune.ir.model import Array, Model
from onnxprune.ir.node_export import exported_node
from onnxprune.ops import find

SMALL = 4096  # elements; larger values are not passed to inference

_LIKE_INPUT = frozenset(("GroupNormalization", "MeanVarianceNormalization"))
_FEW = 16  # floats of the scales and sizes of a Resize; longer arrays are weights, whose values do not affect shapes
_LONG = 2**16  # elements of a vector; no shape has as many sizes
_PLAIN = frozenset((int, float, bool, str, bytes))


class NodeTypes:
    """Output types of the nodes of one model, cached across assignments of dynamic dimensions."""

    def __init__(self, model: Model) -> None:
        graph = model.graph
        versions = {d.domain: d.version for d in graph.import_domains or ()} | {"": model.opset}
        # Functions remain only in domains for which an installed package has operator records.
        self._shell = onnx.ModelProto(
            ir_version=graph.ir_version,
            opset_import=[onnx.helper.make_opsetid(*version) for version in versions.items()],
            functions=[OnnxExporter.export_function(f) for f in graph.functions],
            graph=onnx.GraphProto(name="one"),
        )
        self._found: dict[Any, list[bytes | None]] = {}

    def outputs(
        self, node: gs.Node, types: Mapping[str, bytes], values: Sequence[Array | None], known: Mapping[str, Array]
    ) -> list[bytes | None]:
        """Return the types of a node's outputs, None where unknown.

        Args:
            node: Node of the model.
            types: Tensor -> type, for everything the node and its bodies read.
            values: Values of the inputs; None for unknown or large ones.
            known: Tensor -> value, for everything its bodies read.
        """
        told = [v if v is not None and (v.dtype.kind in "iub" or v.size <= _FEW) else None for v in values]
        attributes = hashable(node.attrs)
        if attributes is None:
            return self._ask(node, types, told, known)
        reads = [
            types.get(t.name, t.name != "") if v is None else (types[t.name], array_contents(v))
            for t, v in zip(node.inputs, told, strict=True)
        ]
        key = node.op, node.domain, attributes, tuple(t.name != "" for t in node.outputs), *reads
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._ask(node, types, told, known)
        return found

    def _ask(
        self, node: gs.Node, types: Mapping[str, bytes], values: Sequence[Array | None], known: Mapping[str, Array]
    ) -> list[bytes | None]:
        """Infer the shapes of a model that consists of this node, or of the nodes that stand in for it."""
        spec = find(node)
        if not node.domain and node.op in _LIKE_INPUT:
            nodes = [onnx.helper.make_node("Identity", [node.inputs[0].name], [node.outputs[0].name])]
        elif spec is not None and spec.stand_in is not None:
            nodes = spec.stand_in(node)
        else:
            nodes = [exported_node(node)]
        told = {t.name: v for t, v in zip(node.inputs, values, strict=True) if v is not None}
        outer = {t.name for t in captured(node)}
        told |= {name: known[name] for name in outer & known.keys() if known[name].size <= SMALL}
        reads = {t.name for t in node.inputs if t.name} | outer
        model = onnx.ModelProto()
        model.CopyFrom(self._shell)
        model.graph.node.extend(nodes)
        for name in sorted(reads):
            if name in told:
                model.graph.initializer.append(numpy_helper.from_array(told[name], name))
            elif name in types:
                model.graph.input.add(name=name).type.ParseFromString(types[name])
        # onnx takes a vector for a shape when it propagates values, and makes a list of as many sizes.
        sizes = not any(_is_long_vector(i.type.tensor_type.shape.dim) for i in model.graph.input)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=sizes).graph
        found = {v.name: v.type.SerializeToString() for v in inferred.value_info}
        return [found.get(t.name) for t in node.outputs]


def _is_long_vector(dims: Sequence[onnx.TensorShapeProto.Dimension]) -> bool:
    return len(dims) == 1 and dims[0].dim_value > _LONG


def captured(node: gs.Node) -> list[gs.Tensor]:
    """Return the outer tensors that the bodies of an If, Loop or Scan use."""
    for value in node.attrs.values():
        if isinstance(value, gs.Graph):
            break
    else:
        return []
    bodies = list(node.subgraphs(recursive=True))
    used = [t for body in bodies for t in (*(t for n in body.nodes for t in n.inputs), *body.outputs) if t.name]
    made = {t.name for body in bodies for t in (*body.inputs, *(t for n in body.nodes for t in n.outputs))}
    return [t for t in used if t.name not in made]


def body_constants(node: gs.Node) -> list[gs.Constant]:
    """Return the constants of the bodies of a Loop or Scan, those that Constant nodes hold included.

    The value of a Constant node has the name of the node's output.
    """
    out: list[gs.Constant] = []
    for body in node.subgraphs(recursive=True):
        for inner in body.nodes:
            value = inner.attrs.get("value") if inner.op == "Constant" else None
            if isinstance(value, gs.Constant):
                out.append(gs.Constant(inner.outputs[0].name, np.asarray(value.values)))
            out += [t for t in inner.inputs if isinstance(t, gs.Constant)]
    return list({t.name: t for t in out}.values())


def of_input(t: gs.Tensor, dims: Mapping[tuple[str, int], int]) -> bytes:
    """Return the type of a model input with its dynamic dimensions, by (name, axis), set to numbers."""
    kind = OnnxExporter.export_value_info_proto(t, True).type
    for axis, dim in enumerate(kind.tensor_type.shape.dim):
        if (t.name, axis) in dims:
            dim.dim_value = dims[t.name, axis]
    out: bytes = kind.SerializeToString()
    return out


@functools.lru_cache(4096)
def of_array(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return the type of an array."""
    out: bytes = onnx.helper.make_tensor_type_proto(
        onnx.helper.np_dtype_to_tensor_dtype(dtype), shape
    ).SerializeToString()
    return out


@functools.lru_cache(4096)
def shape_and_dtype(kind: bytes) -> tuple[tuple[int, ...] | None, np.dtype[Any] | None]:
    """Return a tensor type's shape, if all dimensions are known, and its element type."""
    parsed = onnx.TypeProto.FromString(kind)
    if not parsed.HasField("tensor_type"):
        return None, None
    tensor = parsed.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
        return None, dtype
    return tuple(d.dim_value for d in dims), dtype


def with_number(kind: bytes, number: int) -> bytes:
    """Return a tensor type with every unknown dimension set to a number; a type without rank is unchanged."""
    parsed = onnx.TypeProto.FromString(kind)
    for dim in parsed.tensor_type.shape.dim:
        if not dim.HasField("dim_value"):
            dim.dim_value = number
    out: bytes = parsed.SerializeToString()
    return out


def with_shape(kind: bytes, shape: Sequence[int]) -> bytes:
    """Return a tensor type with another shape."""
    parsed = onnx.TypeProto.FromString(kind)
    del parsed.tensor_type.shape.dim[:]
    for n in shape:
        parsed.tensor_type.shape.dim.add(dim_value=n)
    out: bytes = parsed.SerializeToString()
    return out


def is_tensor(kind: bytes) -> bool:
    """Return whether a type is that of a tensor of known rank."""
    parsed = onnx.TypeProto.FromString(kind)
    return bool(parsed.HasField("tensor_type") and parsed.tensor_type.HasField("shape"))


def known_axes(kind: bytes) -> list[bool]:
    """Return, for every axis of a tensor type, whether its dimension is known."""
    return [dim.HasField("dim_value") for dim in onnx.TypeProto.FromString(kind).tensor_type.shape.dim]


def array_contents(value: Array) -> object:
    """Return the elements of an array as a hashable value."""
    return value.tobytes() if value.dtype != object else tuple(value.flat)  # bytes of strings would be addresses


def hashable(attributes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...] | None:
    """Return attributes as a hashable value; None if one is more than numbers, strings and short lists of them."""
    if not attributes:
        return ()
    out = []
    for name, value in attributes.items():
        if type(value) in _PLAIN:
            pass
        elif isinstance(value, list | tuple):
            if not _PLAIN.issuperset(map(type, value)):
                return None
            value = tuple(value)
        elif isinstance(value, gs.Constant) and value.values.size <= _FEW:
            value = (value.values.dtype, value.values.shape, array_contents(value.values))
        else:
            return None
        out.append((name, value))
    return tuple(out)
