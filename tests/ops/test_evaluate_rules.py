"""Values computed by records equal those of ONNX's reference implementation; every record with such a rule is here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_graphsurgeon import import_onnx

from onnxprune.ops import all_ops, find

F = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
UNIT = (np.abs(F) % 0.9 + 0.05).astype(np.float32)
INTS = np.arange(-6, 6).reshape(3, 4)
BITS = F > 0
CHANNELS = [UNIT[0, :, 0], F[0, :, 1], F[0, :, 2], UNIT[1, :, 3]]
EIGHT = np.array([0.5, 0.25, 2], np.float32), np.array([3, 0, 250], np.uint8)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, dict[str, Any], list[Any]]] = [
    *((op, {}, [F]) for op in (
        "Abs", "Neg", "Floor", "Ceil", "Identity", "Relu", "Sigmoid", "Tanh", "Exp", "Sin", "Cos", "Flatten",
    )),
    *((op, {}, [UNIT]) for op in ("Sqrt", "Log", "Reciprocal")),
    *((op, {}, [F, UNIT[:, :1]]) for op in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Greater", "Less", "Equal",
                                            "GreaterOrEqual", "LessOrEqual")),
    *((op, {}, [INTS, i64(4, -3, 2, 1)]) for op in ("Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal")),
    *((op, {}, [F[0], F[1], UNIT[0], UNIT[1]]) for op in ("Min", "Max")),
    *((op, {}, [F]) for op in ("Min", "Max")),
    *((op, {}, [BITS, ~BITS[:1]]) for op in ("And", "Or", "Xor")),
    ("Mod", {"fmod": 1}, [F, UNIT]),
    ("Not", {}, [BITS]),
    ("Where", {}, [BITS, F, UNIT[:1]]),
    ("Pow", {}, [UNIT, F]),
    ("Pow", {}, [INTS, i64(2)]),
    ("Clip", {}, [F, np.float32(-0.5), np.float32(0.25)]),
    ("Clip", {}, [F, None, np.float32(0.25)]),
    ("Cast", {"to": onnx.TensorProto.INT64}, [3 * F]),
    ("Cast", {"to": onnx.TensorProto.BOOL}, [INTS]),
    ("MatMul", {}, [F, F[0].T]),
    ("MatMul", {}, [F[0, 0], F[1].T]),
    ("BatchNormalization", {}, [F, *CHANNELS]),
    ("BatchNormalization", {"training_mode": 1, "epsilon": 1e-3}, [F, *CHANNELS]),
    *(("Flatten", {"axis": axis}, [F]) for axis in (0, 2, 3, -1, -2)),
    ("Reshape", {}, [F, i64(0, -1, 2)]),
    ("Reshape", {"allowzero": 1}, [F[:, :0], i64(0, 7)]),
    ("Squeeze", {}, [F[:, :1]]),
    ("Squeeze", {}, [F[:, :1, :1], i64(-1)]),
    ("Unsqueeze", {}, [F, i64(0, -1)]),
    ("Transpose", {}, [F]),
    ("Transpose", {"perm": [1, 2, 0]}, [F]),
    ("Concat", {"axis": -1}, [F, UNIT[..., :1]]),
    ("Gather", {}, [F, i64(1, 0, -1)]),
    ("Gather", {"axis": -1}, [F, np.array(2)]),
    ("Slice", {}, [F, i64(-1, 0), i64(-9, 2), i64(2, 1), i64(-2, 1)]),
    ("Slice", {}, [F, i64(1), i64(9)]),
    ("Expand", {}, [F[:, :1], i64(3, 1)]),
    ("Tile", {}, [F, i64(1, 2, 3)]),
    ("Range", {}, [np.array(7), np.array(-2), np.array(-3)]),
    ("Range", {}, [np.float32(0), np.float32(1), np.float32(0.25)]),
    ("Constant", {"value": numpy_helper.from_array(F)}, []),
    ("Constant", {"value_ints": [3, 1, 2]}, []),
    ("Constant", {"value_float": 0.5}, []),
    ("ConstantOfShape", {}, [i64(2, 3)]),
    ("ConstantOfShape", {"value": numpy_helper.from_array(i64(5))}, [i64(2)]),
    *((op, {}, [UNIT, i64(-1, 0)]) for op in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin")),
    *((op, {"keepdims": 0}, [UNIT]) for op in ("ReduceSum", "ReduceMean", "ReduceProd", "ReduceMax", "ReduceMin")),
    ("ReduceMean", {"noop_with_empty_axes": 1}, [F]),
    ("ScatterND", {}, [F, np.array([[[0, 2], [1, -1]]]), UNIT[:1, :2]]),
    ("ScatterND", {}, [INTS[:, 0], np.array([[2], [0]]), i64(7, 8)]),
    *(("ScatterND", {"reduction": how}, [F, np.array([[1], [1]]), UNIT]) for how in ("add", "mul", "max", "min")),
    ("QuantizeLinear", {"axis": 1}, [40 * F, *EIGHT]),
    ("QuantizeLinear", {}, [40 * F, np.float32(0.5), np.int8(-3)]),
    ("DequantizeLinear", {"axis": 1}, [np.abs(60 * F).astype(np.uint8), *EIGHT]),
    ("DequantizeLinear", {}, [np.abs(60 * F).astype(np.uint8), np.float32(0.25)]),
]  # fmt: skip


def test_every_rule_has_a_case() -> None:
    rules = {op for (domain, op), spec in all_ops().items() if spec.evaluate is not None and not domain}
    assert rules == {op for op, _, _ in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_it_computes_what_the_reference_computes(case: tuple[str, dict[str, Any], list[Any]]) -> None:
    op, attributes, values = case
    names = ["" if v is None else f"x{i}" for i, v in enumerate(values)]
    feeds = {name: np.asarray(v) for name, v in zip(names, values, strict=True) if name}
    outputs = ["y", "mean", "variance"] if attributes.get("training_mode") else ["y"]
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, **attributes)],
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [helper.make_empty_tensor_value_info("y")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    wanted = ReferenceEvaluator(proto).run(None, feeds)[0]
    node = import_onnx(proto).nodes[0]
    kept = {name: v.copy() for name, v in feeds.items()}
    spec = find(node)
    assert spec is not None
    assert spec.evaluate is not None
    found = np.asarray(spec.evaluate(node, [feeds.get(name) for name in names]))
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    tolerance = 8 * np.finfo(found.dtype).eps if found.dtype.kind == "f" else 0
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    assert all(np.array_equal(v, kept[name]) for name, v in feeds.items())
