"""Random inputs for timing and comparisons."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.model import Array
from onnxprune.passes.widen_floats import narrow


def random_feeds(analysis: Analysis, batch: int, seed: int = 0) -> dict[str, Array]:
    """Return random inputs: normal values for floats, small numbers valid in every looked-up table for integers.

    Inputs declared as bfloat16 are float32, because such models run as float32 copies.
    """
    rng = np.random.default_rng(seed)
    graph = analysis.source.graph
    dims = analysis.witness.dims
    feeds: dict[str, Array] = {}
    for t in graph.inputs:
        shape = []
        for axis, n in enumerate(t.shape or ()):
            dynamic = (t.name, axis) in dims
            shape.append((batch if axis == 0 else dims[t.name, axis]) if dynamic else int(n))
        dtype = np.dtype(np.float32 if narrow(t.dtype) else t.dtype)
        if dtype.kind in "iu":
            feeds[t.name] = rng.integers(0, _largest_index(t), shape).astype(dtype)
        elif dtype.kind == "b":
            feeds[t.name] = np.ones(shape, bool)
        else:
            feeds[t.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _largest_index(t: gs.Tensor) -> int:
    """Return the number of rows of the smallest table that an integer input looks up."""
    rows = [2**15]
    front = [t]
    while front:
        for node in front.pop().outputs:
            if node.op == "Gather" and isinstance(node.inputs[0], gs.Constant):
                rows.append(int(node.inputs[0].shape[int(node.attrs.get("axis", 0))]))
            elif node.op in ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape"):
                front.extend(node.outputs)
    return min(rows) if len(rows) > 1 else 2
