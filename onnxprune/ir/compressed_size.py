"""What a model with zeros in it costs to keep: parameters that are not zero, bytes of the compressed file."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues

from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Model, to_skeleton

LEVEL = 6
"""The default of gzip and zip."""


class _Counter:
    """A file that keeps the length of what it would hold, compressed."""

    def __init__(self, level: int) -> None:
        self.size = 0
        self._stream = zlib.compressobj(level)

    def write(self, data: Any) -> int:
        self.size += len(self._stream.compress(data))
        return len(data)

    def close(self) -> int:
        self.size += len(self._stream.flush())
        return self.size


def compressed_size(model: Model, level: int = LEVEL) -> int:
    """Bytes of the model's file, weights included, in one zlib stream (deflate).

    Nothing is written, and the file is never in memory as a whole. gzip, zip and other builds of zlib come within about
    a percent.
    """
    file: Any = _Counter(level)
    protobuf_wire.write(file, *to_skeleton(model))
    return int(file.close())


def nonzero_parameters(model: Model) -> int:
    """Elements of floating-point constants that are not zero, without BatchNormalization's running statistics."""
    seen: set[int] = set()
    count = 0
    for node in model.graph.nodes:
        statistics = node.inputs[3:5] if node.op == "BatchNormalization" else []
        seen.update(map(id, statistics))
        constants = [t for t in node.inputs if isinstance(t, gs.Constant)]
        if node.op == "Constant" and isinstance(node.attrs.get("value"), gs.Constant):
            constants.append(node.attrs["value"])
        for t in constants:
            if id(t) in seen or isinstance(t._values, SparseValues):
                continue
            seen.add(id(t))
            # The types of ml_dtypes (bfloat16, float8_*) have kind "V", so their names have to do.
            if t.dtype.kind == "f" or t.dtype.name.startswith(("bfloat", "float")):
                count += int(np.count_nonzero(t.values))
    return count
