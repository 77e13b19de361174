"""Sizes that no machine should try, found before anything of that size is made."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import parser

from onnxprune.analysis.shapes._memory_check import check_memory
from onnxprune.errors import OnnxPruneError
from onnxprune.pipeline import analyze

SIDE = 10_000  # a float32 matrix of this side takes 400 MB


def made_from(stored: int) -> tuple[gs.Graph, dict[str, tuple[int, ...]]]:
    """Return a graph that computes a matrix from constants alone and adds it to an input, and the shapes."""
    sizes, table = gs.Constant("sizes", np.array([SIDE, SIDE])), gs.Constant("table", np.zeros(stored, np.float32))
    zero, ones, x, y = (gs.Variable(name, np.dtype(np.float32)) for name in ("zero", "ones", "x", "y"))
    nodes = [
        gs.Node("ReduceSum", inputs=[table], outputs=[zero]),
        gs.Node("ConstantOfShape", name="fill", inputs=[sizes], outputs=[ones]),
        gs.Node("Sum", inputs=[x, ones, zero], outputs=[y]),
    ]
    return gs.Graph(nodes, [x], [y]), {"zero": (), "ones": (SIDE, SIDE), "x": (1, 1), "y": (SIDE, SIDE)}


def test_large_constants_that_a_small_file_computes_are_refused() -> None:
    graph, shapes = made_from(100)
    with pytest.raises(OnnxPruneError, match=r"'ones' takes 400 MB and is computed from constants alone") as found:
        check_memory(graph, shapes, dict.fromkeys(shapes, np.dtype(np.float32)))
    assert found.value.where == "ConstantOfShape 'fill'"


def test_constants_in_proportion_to_the_file_are_not() -> None:
    graph, shapes = made_from(SIDE * SIDE // 1000)
    check_memory(graph, shapes, dict.fromkeys(shapes, np.dtype(np.float32)))


def test_a_body_may_read_what_its_node_does_not() -> None:
    graph, shapes = made_from(100)
    graph.nodes[1].op, graph.nodes[1].attrs = "Loop", {"body": gs.Graph()}
    check_memory(graph, shapes, dict.fromkeys(shapes, np.dtype(np.float32)))


def test_a_long_vector_is_not_taken_for_a_shape() -> None:
    """Value propagation would make a list of 2^27 sizes, which takes gigabytes."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4] x) => (float[N, M] y) <float[1] half = {0.5}> { '
        "k = RandomUniform<shape: ints = [134217728]>() z = Mul(k, half) y = Add(x, z) }"
    )
    with pytest.raises(OnnxPruneError, match="'k' takes 537 MB and is computed from constants alone"):
        analyze(proto)
