"""Work that grows with the square of the number of nodes, counted, not timed; tools/bench_scaling.py has the times."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze


def arithmetic(blocks: int) -> onnx.ModelProto:
    """Reshapes whose sizes are computed; all computations read the same index, as deduplicating exporters leave it."""
    nodes = []
    x = "x"
    for i in range(blocks):
        nodes += [
            helper.make_node("Shape", [x], [f"s{i}"]),
            helper.make_node("Gather", [f"s{i}", "zero"], [f"g{i}"], axis=0),
            helper.make_node("Concat", [f"g{i}", "flat"], [f"c{i}"], axis=0),
            helper.make_node("Reshape", [x, f"c{i}"], [f"r{i}"]),
            helper.make_node("Shape", [f"r{i}"], [f"t{i}"]),
            helper.make_node("Concat", ["one", f"g{i}", "one"], [f"e{i}"], axis=0),
            helper.make_node("Expand", [f"r{i}", f"e{i}"], [f"x{i}"]),
            helper.make_node("Squeeze", [f"x{i}", "zero"], [f"y{i}"]),
        ]
        x = f"y{i}"
    constants = {"zero": [0], "one": [1], "flat": [4]}
    graph = helper.make_graph(
        nodes, "arithmetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["M", 4])],
        [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def comparisons(blocks: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the number of comparisons of two nodes while a model is analysed."""
    count = [0]
    same = gs.Node.__eq__

    def counted(self: gs.Node, other: object) -> bool:
        count[0] += 1
        return bool(same(self, other))

    model = load(arithmetic(blocks))
    with monkeypatch.context() as patch:
        patch.setattr(gs.Node, "__eq__", counted)
        analyze(model)
    return count[0]


def test_comparisons_of_nodes_grow_with_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = (comparisons(n, monkeypatch) for n in (20, 80))
    assert issubclass(SynchronizedList, list)  # what `passes.edit` relies on
    assert many <= 5 * max(few, 20)
