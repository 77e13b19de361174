"""Tensors whose shapes may depend on data: Loops that data ends, and Loops whose iterations are counted."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.execution.sessions import Session
from onnxprune.ir.proto_graph import SIDE, Graph
from onnxprune.ir.reader import load

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, bool flag, int64 many) => (float[N, 4] y)
<int64 three = {3}, bool yes = {1}, int64[1] first = {0}, int64[1] half = {2}, int64[1] axis = {1}> {
    start = Relu (x)
    y = Loop (TRIPS, yes, start) <body = b (int64 i, bool go, float[A, B] state) => (bool further, float[A, B] next) {
        GO
        BODY
        next = MatMul (more, w)
    }>
}
"""
COUNTED = "further = Identity (go)"
ENDED_BY_DATA = "sum = ReduceSum <keepdims = 0> (state) zero = Sub (sum, sum) further = LessOrEqual (zero, sum)"
ENDED_BY_COUNT = "two = Add (i, i) further = Less (two, three)"
RELU = "more = Relu (state)"
CHOICE = """
more = If (flag) <then_branch = t () => (float[A, B] one) { one = Relu (state) },
                  else_branch = e () => (float[A, B] other) { other = OTHER }>
"""


def graph(trips: str, go: str, body: str = RELU) -> Graph:
    text = TEXT.replace("TRIPS", trips).replace("GO", go).replace("BODY", body)
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return Graph.of(load(proto))


@pytest.mark.parametrize(
    ("trips", "go", "expected"),
    [
        ("three", COUNTED, set()), ("", ENDED_BY_COUNT, set()), ("three", ENDED_BY_COUNT, set()),
        ("many", COUNTED, {"y"}), ("three", ENDED_BY_DATA, {"y"}),
    ],
)  # fmt: skip
def test_results_of_a_loop_depend_on_data_if_its_iterations_do(trips: str, go: str, expected: set[str]) -> None:
    assert graph(trips, go).selected() & {"y"} == expected


@pytest.mark.parametrize(("other", "equal"), [("Tanh (state)", True), ("Concat <axis = 0> (state, state)", False)])
def test_shapes_of_both_branches_in_a_loop_can_be_compared(other: str, equal: bool) -> None:
    whole = graph("three", COUNTED, CHOICE.replace("OTHER", other))
    name = next(o for o in whole.branches_by_data())
    assert "y" in whole.selected()
    assert "y" not in whole.selected({name})
    proto, external, sizes = whole.with_side([name])
    feeds = {"x": np.ones((2, 4), np.float32), "flag": np.array(True), "many": np.array(1, np.int64)}
    session = Session(proto, weights=external)
    found = [session.run({**feeds, SIDE: np.array(side)}, sizes)[0].tolist() for side in (True, False)]
    assert (found[0] == found[1]) is equal
    assert found[0] == [[2, 4, 1]] * 3
