"""Check that a value of another rank can pass through the nodes after it.

TorchScript writes `squeeze` as an If whose branches return other ranks. Often only one of them is possible: an LSTM
after it requires three axes. Ranks do not depend on sizes, so such a branch never returns in a run that succeeds.
"""

from __future__ import annotations

import graphlib
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnxprune.ir.node_export import exported_node

_MOST_NODES = 200  # nodes after the value that are tried
_FEW = 64  # elements of a constant whose value is passed to the inference


def can_pass(t: gs.Tensor, kind: bytes, types: Mapping[str, bytes], opset: int) -> bool:
    """Return False if some node after a tensor rejects a value of this type whatever its sizes are.

    Args:
        t: Tensor of the graph.
        kind: Serialized type of the value; only its rank and element type count.
        types: Types of other tensors, of which likewise only these count.
        opset: Version of the standard operator set.
    """
    nodes = _after(t)
    made = {o.name for n in nodes for o in n.outputs}
    model = onnx.ModelProto(ir_version=8, opset_import=[onnx.helper.make_opsetid("", opset)])
    model.graph.name = "after"
    model.graph.node.extend(exported_node(n) for n in nodes)
    model.graph.input.add(name=t.name).type.CopyFrom(_rank_of(kind))
    known = {t.name}
    for operand in (i for n in nodes for i in n.inputs):
        name = operand.name
        if not name or name in known or name in made:
            continue
        known.add(name)
        if isinstance(operand, gs.Constant) and operand.dtype.kind in "iub" and np.prod(operand.shape) <= _FEW:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(operand.values), name))
        elif isinstance(operand, gs.Constant):
            element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(operand.dtype))
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, element, list(operand.shape)))
        elif name in types:
            model.graph.input.add(name=name).type.CopyFrom(_rank_of(types[name]))
    try:
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except onnx.shape_inference.InferenceError:
        return False
    return True


def _after(t: gs.Tensor) -> list[gs.Node]:
    """Return standard nodes that depend on a tensor, in order, up to an If and to nodes with bodies."""
    found: dict[int, gs.Node] = {}
    front = list(t.outputs)
    while front and len(found) < _MOST_NODES:
        node = front.pop(0)
        if id(node) not in found and not node.domain and not any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            found[id(node)] = node
            front += [reader for o in node.outputs for reader in o.outputs]
    needs = {i: {id(p) for t in n.inputs for p in t.inputs if id(p) in found} for i, n in found.items()}
    return [found[i] for i in graphlib.TopologicalSorter(needs).static_order()]


def _rank_of(kind: bytes) -> onnx.TypeProto:
    """Return a type with all dimensions unknown."""
    out: onnx.TypeProto = onnx.TypeProto.FromString(kind)
    for dim in out.tensor_type.shape.dim:
        dim.Clear()
    return out
