"""Loops that no run can end are refused when the model is read."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.errors import OnnxPruneError
from onnxprune.ir._reading.endless_loops import check_loops
from onnxprune.ir.reader import load

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 4] x, bool given, int64 many) => (float[N, 4] y) <int64 n = {COUNT}, bool yes = {1}, bool no = {0}> {
    y = Loop (TRIPS, START) <body = b (int64 i, bool go, float[A, B] state) => (bool further, float[A, B] next) {
        GO
        next = MatMul (state, w)
    }>
}
"""
SAME = "further = Identity (go)"
TRUE = "further = Constant <value = bool {1}> ()"
BY_DATA = "sum = ReduceSum <keepdims = 0> (state) zero = Sub (sum, sum) further = Less (zero, sum)"
HUGE = 2**63 - 1


def model(count: int, trips: str, start: str, go: str) -> onnx.ModelProto:
    text = TEXT.replace("COUNT", str(count)).replace("TRIPS", trips).replace("START", f"{start}, x").replace("GO", go)
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    return proto


@pytest.mark.parametrize(
    ("trips", "start", "go"), [("n", "yes", SAME), ("n", "", SAME), ("", "yes", SAME), ("n", "yes", TRUE)]
)
def test_a_loop_that_nothing_ends_is_refused(trips: str, start: str, go: str) -> None:
    with pytest.raises(OnnxPruneError, match="the Loop never ends"):
        load(model(HUGE, trips, start, go))


@pytest.mark.parametrize(
    ("count", "trips", "start", "go"),
    [
        (3, "n", "yes", SAME), (HUGE, "n", "yes", BY_DATA), (HUGE, "n", "given", SAME), (HUGE, "n", "no", SAME),
        (HUGE, "many", "yes", SAME), (2**31 - 1, "n", "yes", TRUE),
    ],
)  # fmt: skip
def test_loops_that_may_end_are_read(count: int, trips: str, start: str, go: str) -> None:
    assert load(model(count, trips, start, go)).graph.nodes


def test_a_loop_inside_a_branch_counts_with_constants_around_it() -> None:
    inner = model(HUGE, "n", "yes", SAME).graph.node[0]
    proto = model(3, "n", "yes", SAME)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(HUGE), "n"))
    branch = onnx.helper.make_graph([inner], "then", [], [onnx.ValueInfoProto(name="y")])
    nothing = onnx.helper.make_node("Identity", ["x"], ["z"])
    other = onnx.helper.make_graph([nothing], "else", [], [onnx.ValueInfoProto(name="z")])
    choice = onnx.helper.make_node("If", ["given"], ["y"], then_branch=branch, else_branch=other)
    del proto.graph.node[:]
    proto.graph.node.append(choice)
    with pytest.raises(OnnxPruneError, match="the Loop never ends"):
        check_loops(proto.graph)


def test_a_damaged_constant_is_no_number_of_iterations() -> None:
    proto = model(HUGE, "n", "yes", SAME)
    proto.graph.initializer[0].CopyFrom(onnx.TensorProto(name="n", data_type=7, raw_data=b"123"))
    check_loops(proto.graph)
