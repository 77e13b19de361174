"""Convolutions of integers in onnxruntime's own domain, as the standard operator with transposed data."""

from __future__ import annotations

import onnx
from onnx import helper

_DOMAIN = "com.microsoft"


def standard_convolutions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which QLinearConv of com.microsoft is the operator of ONNX; the given model if it has none.

    onnxruntime rewrites int8 weights of the standard operator as uint8 where kernels saturate, but not those of its
    own. Nodes of the graph whose weight is an initializer are replaced, those with `channels_last` between two
    transpositions.
    """
    ranks = {t.name: len(t.dims) for t in proto.graph.initializer}
    if not any(_is_own(node, ranks) for node in proto.graph.node):
        return proto
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    del out.graph.node[:]
    for node in proto.graph.node:
        out.graph.node.extend(_standard(node, ranks[node.input[3]]) if _is_own(node, ranks) else [node])
    return out


def _is_own(node: onnx.NodeProto, ranks: dict[str, int]) -> bool:
    return (node.op_type, node.domain) == ("QLinearConv", _DOMAIN) and len(node.input) > 3 and node.input[3] in ranks


def _standard(node: onnx.NodeProto, rank: int) -> list[onnx.NodeProto]:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    made.domain = ""
    last = any(a.name == "channels_last" and a.i for a in node.attribute)
    kept = [a for a in node.attribute if a.name != "channels_last"]
    del made.attribute[:]
    made.attribute.extend(kept)
    if not last:
        return [made]
    x, y = node.input[0], node.output[0]
    made.input[0], made.output[0] = f"{y}.data_channels_first", f"{y}.channels_first"
    first, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    return [
        helper.make_node("Transpose", [x], [made.input[0]], perm=first),
        made,
        helper.make_node("Transpose", [made.output[0]], [y], perm=back),
    ]
