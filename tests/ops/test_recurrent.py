"""RNN, GRU and LSTM: hidden units go, in both directions, with their rows of every gate."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune.analysis.coupling import Analysis
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.passes import DropZeroStates, LiftConstants, Pipeline
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
CELLS = pytest.mark.parametrize("op", list(GATES))


def model_of(op: str, call: str, *, directions: int = 1, before: str = "", inputs: str = "", opset: int = 17) -> Model:
    """x [5, N, 3] -> the cell with 6 hidden units -> a projection; weights w, q, b, of the projection c."""
    if directions == 1:
        after = "z = Squeeze (o, one) y = MatMul (z, c)"
    else:
        after = "t = Transpose <perm = [0, 2, 1, 3]> (o) z = Reshape (t, flat) y = MatMul (z, c)"
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : {opset}]>
      g (float[5,N,3] x{inputs}) => (float[5,N,4] y) {{ {before} {call} {after} }}""")
    rng = np.random.default_rng(0)
    d, g = directions, GATES[op]
    consts = {
        "w": rng.standard_normal((d, 6 * g, 3)), "q": rng.standard_normal((d, 6 * g, 6)),
        "b": rng.standard_normal((d, 12 * g)), "c": rng.standard_normal((6 * d, 4)),
    }  # fmt: skip
    ints = {"one": [1], "flat": [0, 0, 6 * d], "six": [6], "zero": [0]}
    for name, value in consts.items():
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    for name, numbers in ints.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
    return load(proto)


def without(analysis: Analysis, group: str, *removed: int) -> Model:
    plan = Plan("", {group: Removal(analysis[group].channels, removed)})
    done = compile_plan(analysis.source, plan, analysis=analysis)
    assert done.verification is not None
    assert done.verification.max_relative < 1e-5 < done.verification.effect
    return done.model


@CELLS
def test_hidden_units_are_a_group(op: str) -> None:
    analysis = analyze(model_of(op, f"o = {op} <hidden_size = 6> (x, w, q, b)"))
    (group,) = analysis.groups
    assert (group.name, group.channels, group.width, group.op) == ("w", 6, GATES[op], op)
    model = without(analysis, "w", 0, 3, 4)
    shapes = {n: tuple(t.shape) for n, t in model.graph.tensors().items() if n in ("w", "q", "b", "c")}
    g = GATES[op]
    assert shapes == {"w": (1, 3 * g, 3), "q": (1, 3 * g, 3), "b": (1, 6 * g), "c": (3, 4)}
    assert model.graph.nodes[0].attrs["hidden_size"] == 3


@CELLS
def test_both_directions_lose_the_same_units(op: str) -> None:
    call = f'o, e = {op} <hidden_size = 6, direction = "bidirectional"> (x, w, q, b)'
    analysis = analyze(model_of(op, call, directions=2))
    assert [g.channels for g in analysis.groups] == [6]
    assert without(analysis, "w", 1, 5).graph.tensors()["c"].shape == (8, 4)


@CELLS
@pytest.mark.parametrize(
    "state",
    [
        "k = Concat <axis = 0> (one, n, six) h = ConstantOfShape (k)",
        "k = Concat <axis = 0> (one, n, six) f = Constant <value_float = 0.0> () h = Expand (f, k)",
        "k = Concat <axis = 0> (one, n, six) i = ConstantOfShape (k) j = Concat <axis = 0> (i, i) "
        "h = Slice (j, one, two, zero)",
    ],
    ids=["ConstantOfShape", "Expand", "Slice"],
)
def test_a_state_of_zeros_in_the_batchs_size_is_no_obstacle(op: str, state: str) -> None:
    before = f"two = Constant <value_ints = [2]> () s = Shape (x) n = Gather (s, one) {state}"
    states = "h, h" if op == "LSTM" else "h"
    model = model_of(op, f"o = {op} <hidden_size = 6> (x, w, q, b, , {states})", before=before)
    dropped = Pipeline([LiftConstants(), DropZeroStates()])(model)
    assert [n.op for n in dropped.graph.nodes] == [op, "Squeeze", "MatMul"]
    analysis = analyze(model)
    assert [g.name for g in analysis.groups] == ["w"]
    without(analysis, "w", 2)


@CELLS
def test_a_state_from_outside_locks_the_units(op: str) -> None:
    model = model_of(op, f"o = {op} <hidden_size = 6> (x, w, q, b, , h)", inputs=", float[1,N,6] h")
    analysis = analyze(model)
    assert not analysis.groups
    (lock,) = [k for k in analysis.locked if k.name == "w"]
    assert lock.op == op


def test_a_state_that_is_not_zero_is_kept() -> None:
    before = "s = Shape (x) n = Gather (s, one) k = Concat <axis = 0> (one, n, six) i = ConstantOfShape (k) h = Cos (i)"
    model = model_of("GRU", "o = GRU <hidden_size = 6> (x, w, q, b, , h)", before=before)
    assert "Cos" in {n.op for n in DropZeroStates()(model).graph.nodes}


def test_a_constant_state_goes_along() -> None:
    proto_state = "h = Constant <value = float[1,1,6] {0.1, 0.2, 0.3, 0.4, 0.5, 0.6}> () s = Shape (x) "
    before = f"{proto_state} n = Gather (s, one) k = Concat <axis = 0> (one, n, six) e = Expand (h, k)"
    model = model_of("GRU", "o = GRU <hidden_size = 6> (x, w, q, b, , e)", before=before)
    analysis = analyze(model)
    assert [g.channels for g in analysis.groups] == [6]
    without(analysis, "w", 0, 5)
