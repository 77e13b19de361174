"""Evaluation of single nodes with numpy, for shape arithmetic and constant expressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Array
from onnxprune.ir.node_export import exported_node
from onnxprune.ops import find


def compute_node(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    """Compute the first output of a node with numpy; None if the operator or these values do not allow it."""
    spec = find(node)
    if spec is not None and spec.evaluate is not None:
        try:
            with np.errstate(all="ignore"):
                result = spec.evaluate(node, inputs)
        except (ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError):
            return None  # impossible under this assignment: the value is unknown
        return None if result is None else np.asarray(result)
    if spec is None or not inputs:
        return None
    return _reference(node, inputs, opset)


def _reference(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    from onnx.reference import ReferenceEvaluator

    proto = exported_node(node)
    feeds = {t.name: v for t, v in zip(node.inputs, inputs, strict=True) if t.name}
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)  # type: ignore[union-attr]
         for n, v in feeds.items()],
        [onnx.helper.make_empty_tensor_value_info(proto.output[0])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):  # a constant may be log(0) that a Where does not select
            results: Any = ReferenceEvaluator(model).run(None, feeds)
        result = results[0]
    except Exception:  # the reference raises any of numpy's exceptions; an unknown value is always correct
        return None
    return np.asarray(result)
