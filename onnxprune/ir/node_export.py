"""Writing of nodes of the graph as NodeProto, with empty lists among their attributes."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnxprune.errors import OnnxPruneError


def exported_node(node: gs.Node) -> onnx.NodeProto:
    """Return a node as a message.

    graphsurgeon does not keep the type of an attribute, and cannot write an empty list without one: the type comes from
    the operator's schema, and is a list of integers where there is no schema.

    Raises:
        OnnxPruneError: an attribute cannot be written, such as an empty list inside a body.
    """
    empty = [k for k, v in node.attrs.items() if isinstance(v, list | tuple) and not v]
    name = node.name or next((t.name for t in node.outputs), "")
    try:
        if not empty:
            proto: onnx.NodeProto = OnnxExporter.export_node(node)
            return proto
        proto = onnx.helper.make_node(
            node.op, [t.name for t in node.inputs], [t.name for t in node.outputs], node.name, domain=node.domain
        )
        proto.attribute.extend(OnnxExporter.export_attributes({k: v for k, v in node.attrs.items() if k not in empty}))
    except UnboundLocalError as err:  # graphsurgeon's answer to optional values, maps and opaque types
        raise OnnxPruneError(
            "a body of the node has an input or output that is neither a tensor nor a sequence of tensors",
            where=f"{node.op} {name!r}",
            fix="export the model again",
        ) from err
    except (TypeError, ValueError) as err:
        raise OnnxPruneError(
            f"the node's attributes cannot be written ({err})",
            where=f"{node.op} {name!r}",
            fix="remove attributes without a value, or export the model again",
        ) from err
    for key in empty:
        proto.attribute.add(name=key, type=_list_type(node, key))
    return proto


def _list_type(node: gs.Node, key: str) -> onnx.AttributeProto.AttributeType:
    try:
        known = onnx.defs.get_schema(node.op, domain=node.domain or "").attributes.get(key)
    except onnx.defs.SchemaError:
        known = None
    # Numbers of the schema's enumeration are those of the message.
    return (
        onnx.AttributeProto.INTS
        if known is None
        else onnx.AttributeProto.AttributeType.Value(str(known.type).rpartition(".")[2])
    )
