"""Attributes that graphsurgeon cannot write: empty lists keep their type."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.node_export import exported_node
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_skeleton


def model(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 3])], [value("y", TensorProto.FLOAT, [1, 3])]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("own", 1)])


@pytest.mark.parametrize(
    ("domain", "op", "key", "kind"),
    [
        ("", "Conv", "pads", onnx.AttributeProto.INTS),
        ("", "RandomNormal", "shape", onnx.AttributeProto.INTS),
        ("ai.onnx.ml", "Scaler", "offset", onnx.AttributeProto.FLOATS),
        ("own", "Any", "things", onnx.AttributeProto.INTS),
    ],
)
def test_an_empty_list_keeps_the_type_of_the_schema(domain: str, op: str, key: str, kind: int) -> None:
    node = gs.Node(op, "n", {"other": 2, key: []}, [gs.Variable("x")], [gs.Variable("y")], domain)
    proto = exported_node(node)
    found = {a.name: a for a in proto.attribute}
    assert (found[key].type, found["other"].i) == (kind, 2)
    assert (proto.op_type, proto.name, proto.domain) == (op, "n", domain)
    assert (list(proto.input), list(proto.output)) == (["x"], ["y"])
    assert not node.attrs[key]  # the node is as before


def test_a_model_with_an_empty_list_is_written() -> None:
    node = helper.make_node("Any", ["x"], ["y"], name="n", domain="own")
    node.attribute.add(name="things", type=onnx.AttributeProto.INTS)
    proto, _ = to_skeleton(load(model(node)))
    assert [a.name for a in proto.graph.node[0].attribute] == ["things"]


def test_an_empty_list_inside_a_body_names_the_node() -> None:
    value = helper.make_tensor_value_info
    inner = helper.make_node("Any", ["x"], ["z"], name="inner", domain="own")
    inner.attribute.add(name="things", type=onnx.AttributeProto.INTS)
    body = helper.make_graph([inner], "b", [], [value("z", TensorProto.FLOAT, [1, 3])])
    body_like = helper.make_node("Whole", ["x"], ["y"], name="outer", domain="own", body=body)
    with pytest.raises(OnnxPruneError, match="cannot be written") as found:
        to_skeleton(load(model(body_like)))
    assert found.value.where == "Whole 'outer'"


def test_a_body_with_an_optional_output_names_the_node() -> None:
    out = gs.Variable("z", dtype=np.float32, shape=[1], type="optional_type")
    body = gs.Graph([], [], [out])
    node = gs.Node("SequenceMap", "outer", {"body": body}, [gs.Variable("x")], [gs.Variable("y")])
    with pytest.raises(OnnxPruneError, match="neither a tensor nor a sequence") as found:
        exported_node(node)
    assert found.value.where == "SequenceMap 'outer'"
