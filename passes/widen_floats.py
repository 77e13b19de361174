"""Conversion of bfloat16 (or float16) computations to float32, for runtimes that lack the kernels.

onnxruntime's CPU has no bfloat16 Conv, MatMul or Add. Every bfloat16 number is a float32 number, so the weights keep
their values, and two equal models remain equal.

Before:  x: bfloat16 ; Conv(x, W: bfloat16) ; Cast(to=bfloat16)
After:   x: float32 ; Conv(x, W: float32) ; Cast(to=float32)
Conditions: 1. types are stated in: graph inputs and outputs, constants, the attributes `to`, `dtype`, `output_dtype`,
`stash_type`, `softmax_precision` and `value` of any node, and the same inside subgraphs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.passes.base import Pass, register

_TYPES = {"bfloat16": onnx.TensorProto.BFLOAT16, "float16": onnx.TensorProto.FLOAT16}
_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")  # condition 1


def narrow(dtype: Any, name: str = "bfloat16") -> bool:
    """Return whether a numpy dtype or ONNX type number is the narrow type `name`."""
    if dtype is None:
        return False
    return bool(dtype == _TYPES[name]) if isinstance(dtype, int) else np.dtype(dtype).name == name


@register
@dataclass(frozen=True)
class WidenFloats(Pass):
    """Convert narrow floats to float32 throughout the model.

    Args:
        dtype: "bfloat16" or "float16".
    """

    name: ClassVar[str] = "widen_floats"
    dtype: str = "bfloat16"

    def rewrite(self, model: Model) -> Model:
        """Change every stated type.

        Raises:
            OnnxPruneError: `dtype` is neither of the two.
        """
        if self.dtype not in _TYPES:
            raise OnnxPruneError(f"widen_floats does not support the type {self.dtype!r}", fix="bfloat16 or float16")
        self._graph(model.graph)
        values = {k: self._value_info(v) for k, v in model.sidecar.values.items()}
        return replace(model, sidecar=replace(model.sidecar, values=values))

    def _graph(self, graph: gs.Graph) -> None:
        for t in graph.tensors().values():
            if isinstance(t, gs.Constant):
                if narrow(t.dtype, self.dtype):
                    t.values = np.asarray(t.values).astype(np.float32)
            elif t.dtype is not None:
                t.dtype = self._type(t.dtype)
        for node in graph.nodes:
            for key, value in node.attrs.items():
                node.attrs[key] = self._attribute(key, value)
            for body in node.subgraphs():
                self._graph(body)

    def _type(self, dtype: Any) -> Any:
        return np.dtype(np.float32) if narrow(dtype, self.dtype) else dtype

    def _attribute(self, key: str, value: Any) -> Any:
        if isinstance(value, gs.Constant):
            if narrow(value.dtype, self.dtype):
                return gs.Constant(value.name, np.asarray(value.values).astype(np.float32))
            return value
        if key not in _ATTRIBUTES:
            return value
        if isinstance(value, int):
            return int(onnx.TensorProto.FLOAT) if value == _TYPES[self.dtype] else value
        return self._type(value)

    def _value_info(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        out = onnx.ValueInfoProto()
        out.CopyFrom(value)
        if out.type.tensor_type.elem_type == _TYPES[self.dtype]:
            out.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        return out
