"""Storage cost of a sparse model: non-zero parameters and size of the compressed file."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues

from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Model
from onnxprune.ir.writer import to_skeleton

LEVEL = 6
"""Default level of gzip and zip."""


class _Counter:
    """File object that counts compressed bytes and stores nothing."""

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
    """Return the size in bytes of the model file, weights included, as one zlib stream (deflate).

    The file is compressed as a stream and never held in memory or written. gzip, zip and other zlib builds differ by
    about one percent.
    """
    file: Any = _Counter(level)
    protobuf_wire.write(file, *to_skeleton(model))
    return int(file.close())


def nonzero_parameters(model: Model) -> int:
    """Return the number of non-zero elements of floating-point constants, BatchNormalization statistics excluded."""
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
            # Types of ml_dtypes (bfloat16, float8_*) have kind "V" and are recognized by name.
            if t.dtype.kind == "f" or t.dtype.name.startswith(("bfloat", "float")):
                count += int(np.count_nonzero(t.values))
    return count
