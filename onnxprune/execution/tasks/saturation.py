"""Warning about integer kernels that saturate on this CPU."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.execution.sessions import saturates_integers
from onnxprune.ir.model import Model

# Indices of the weight inputs, and of the input with the data's zero point (-1: the data is always uint8).
_INTEGER_PRODUCTS = {
    "QLinearConv": ((3,), 2), "QLinearMatMul": ((3,), 2), "QGemm": ((3,), 2), "MatMulInteger": ((1,), 2),
    "MatMulIntegerToFloat": ((1,), 4), "QAttention": ((1,), 6), "DynamicQuantizeMatMul": ((1,), -1),
    "DynamicQuantizeLSTM": ((1, 2), -1),
}  # fmt: skip
_SAFE = 64  # 2 x 255 x 64 fits into 16 bits; quantizers with reduce_range stay within it


def saturation_warning(model: Model) -> str:
    """Return one line if the model multiplies uint8 by large int8 weights and this CPU's kernels saturate; else "".

    The accuracy is that of the deployed kernels and is not corrected.
    """
    graphs = (model.graph, *model.graph.subgraphs(recursive=True))
    if not any(_may_saturate(node) for graph in graphs for node in graph.nodes) or not saturates_integers():
        return ""
    return (
        "the model multiplies uint8 by int8, and onnxruntime's kernels saturate on this CPU (it has no VNNI), so "
        "accuracy may be lower than elsewhere; quantize with reduce_range=True, or use a CPU with VNNI"
    )


def _may_saturate(node: gs.Node) -> bool:
    """Return whether a node multiplies uint8 by int8 weights of which two can exceed 16 bits."""
    if node.op in ("Conv", "MatMul", "Gemm"):  # between DequantizeLinear nodes it runs in integers
        sources = [t.inputs[0] if t.inputs and t.inputs[0].op == "DequantizeLinear" else None for t in node.inputs[:2]]
        data, weight = sources if len(sources) == 2 else (None, None)
        if data is None or weight is None or isinstance(data.inputs[0], gs.Constant):
            return False
        return _is_large(weight.inputs[0]) and not _is_int8(data, 2)
    if node.op not in _INTEGER_PRODUCTS:
        return False
    weights, zero = _INTEGER_PRODUCTS[node.op]
    return any(i < len(node.inputs) and _is_large(node.inputs[i]) for i in weights) and not _is_int8(node, zero)


def _is_large(tensor: gs.Tensor) -> bool:
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.int8:
        return False
    return bool((np.abs(tensor.values.astype(np.int16)) > _SAFE).any())


def _is_int8(node: gs.Node, zero: int) -> bool:
    """Return whether data is int8, by its type or its zero point's; int8 x int8 does not saturate."""
    return any(0 <= i < len(node.inputs) and node.inputs[i].dtype == np.int8 for i in (0, zero))
