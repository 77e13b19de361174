"""Forced selections: a detector selects nothing in noise, so that later nodes would never run."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxprune.ir.model import Array

LEAST = 3
"""Minimum number of elements that NonZero finds, if there are as many."""


def with_forced_selections(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which NonZero finds the first elements and NonMaxSuppression accepts any score.

    Its runs are only used for the shapes of its tensors.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    nodes = list(out.graph.node)
    del out.graph.node[:]
    constants: dict[str, Array] = {
        "//zero": np.array(0), "//one": np.array(1), "//least": np.array(LEAST), "//lowest": np.array([-3e38], "f"),
    }  # fmt: skip
    for i, node in enumerate(nodes):
        if node.op_type == "NonZero":
            x = node.input[0]
            size, count, places, first, as_x, truth, more = (
                f"//{n}{i}" for n in ("size", "count", "places", "first", "as_x", "truth", "more")
            )
            out.graph.node.extend(
                [
                    helper.make_node("Shape", [x], [size]),
                    helper.make_node("ReduceProd", [size], [count], keepdims=0),
                    helper.make_node("Range", ["//zero", count, "//one"], [places]),
                    helper.make_node("Less", [places, "//least"], [first]),
                    helper.make_node("Reshape", [first, size], [as_x]),
                    helper.make_node("Cast", [x], [truth], to=onnx.TensorProto.BOOL),
                    helper.make_node("Or", [truth, as_x], [more]),
                ]
            )
            node.input[0] = more
        elif node.op_type == "NonMaxSuppression" and len(node.input) > 4:
            node.input[4] = "//lowest"
        out.graph.node.append(node)
    out.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    return out
