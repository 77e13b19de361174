"""Every converter to PyTorch, at every schema version it serves, against onnxruntime (where it has the operator).

A case is one node. It is built at every version of its operator that means what the case says; what comes out of the
module must be what onnxruntime computes. The same modules run on the `meta` device, which has shapes and no values:
what works there reads no number from a tensor, so it never makes a host wait for its accelerator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from random_graphs.graphs import PROPERTY, Array

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.reader import load
from onnxprune.ops import all_ops
from onnxprune.torch_bridge import bindings, to_torch
from onnxprune.torch_bridge.registry import find, since_version

torch.set_num_threads(1)
OLDEST = 9
# The newest opset onnxruntime runs; newer versions of operators are compared with onnx.reference.
RUNTIME_NEWEST = 26
NEWEST = min(onnx.defs.onnx_opset_version(), 28)
# Versions that only take more element types, and that onnxruntime has not: the version before says the same.
NOT_IN_RUNTIME = {"GlobalLpPool": 22, "RoiAlign": 22}
TOLERANCE = {"float16": 5e-3, "float32": 5e-6, "float64": 1e-12}


@dataclass(frozen=True)
class Case:
    """One node.

    Attributes:
        op: its operator.
        args: names of its inputs in order; "_" for one that is absent.
        data: values of the inputs, or the shape of a random normal one.
        live: names that are fed at run time; the others are constants.
        attrs: attributes.
        outputs: how many outputs it has.
        since: the first schema version that has this form.
        until: the last one.
        trains: inputs that must become parameters with a gradient.
        oracle: "runtime" or "reference".
        offline: whether it runs without reading numbers from tensors.
        label: tells cases of an operator apart.
        floats: type of the random values.
    """

    op: str
    args: str
    data: Mapping[str, Any]
    live: tuple[str, ...] = ("x",)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    since: int = 1
    until: int = 99
    trains: tuple[str, ...] = ()
    oracle: str = "runtime"
    offline: bool = True
    label: str = ""
    floats: str = "float32"

    @property
    def names(self) -> list[str]:
        return ["" if a == "_" else a for a in self.args.split()]

    @property
    def versions(self) -> list[int]:
        """Schema versions that a model of opset 9 or later can hold and that this case is about."""
        known = versions_of(self.op)
        return [v for v in known if self.since <= v <= self.until]


def versions_of(op: str) -> list[int]:
    """Versions in force at some opset from OLDEST to NEWEST."""
    found = set()
    for opset in range(OLDEST, NEWEST + 1):
        try:
            schema = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
        if not schema.deprecated:
            found.add(int(schema.since_version))
    return sorted(found)


def case(op: str, args: str, data: Mapping[str, Any], /, **more: Any) -> Case:
    """A case; keyword arguments that are no fields are attributes of the node."""
    fields = {k: more.pop(k) for k in list(more) if k in Case.__dataclass_fields__}
    return Case(op, args, data, attrs=more, **fields)


def values(case: Case) -> dict[str, Array]:
    rng = np.random.default_rng(len(case.op) + len(case.args))
    return {
        name: rng.standard_normal(value).astype(case.floats) if isinstance(value, tuple) else np.asarray(value)
        for name, value in case.data.items()
    }


def build(case: Case, version: int) -> tuple[onnx.ModelProto, dict[str, Array], list[Array]]:
    """The one-node model, what it is fed with, and what it computes. The first axis of the data is dynamic."""
    data = values(case)
    used = dict.fromkeys(n for n in case.names if n)
    inputs = []
    for name in (n for n in used if n in case.live):
        shape: list[int | str] = list(data[name].shape)
        if name == "x" and len(shape) > 1:
            shape[0] = "N"
        inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(data[name].dtype), shape))
    outputs = [f"y{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, case.names, outputs, name="node", **case.attrs)
    constants = [numpy_helper.from_array(data[n], n) for n in used if n not in case.live]
    untyped = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph([node], "one", inputs, untyped, constants)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", max(version, OLDEST))], ir_version=10)
    feeds = {n: data[n] for n in used if n in case.live}
    want = expected(case, proto, feeds, version)
    for output, value in zip(proto.graph.output, want, strict=True):
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        output.CopyFrom(helper.make_tensor_value_info(output.name, kind, [None] * value.ndim))
    return proto, feeds, want


def expected(case: Case, proto: onnx.ModelProto, feeds: Mapping[str, Array], version: int) -> list[Array]:
    if case.oracle == "reference" or version > RUNTIME_NEWEST:
        return [np.asarray(v) for v in ReferenceEvaluator(proto).run(None, dict(feeds))]
    if NOT_IN_RUNTIME.get(case.op) == version:
        older = onnx.ModelProto.FromString(proto.SerializeToString())
        older.opset_import[0].version = version - 1
        proto = older
    return run(proto, feeds)


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def tensors(feeds: Mapping[str, Array]) -> list[Any]:
    return [torch.from_numpy(np.array(v)) for v in feeds.values()]


def as_tuple(results: Any) -> tuple[Any, ...]:
    return results if isinstance(results, tuple) else (results,)


def agree(got: Any, want: Array, *, exact_type: bool = True, scale: float = 1.0) -> None:
    """Same shape, same type, same numbers up to rounding."""
    result = got.detach().numpy()
    assert result.shape == want.shape
    if exact_type:
        assert result.dtype == want.dtype
    if want.dtype.kind == "f":
        size = float(np.abs(np.where(np.isfinite(want), want, 0)).max(initial=1e-3))
        bound = TOLERANCE[want.dtype.name] * scale
        np.testing.assert_allclose(result, want, rtol=bound, atol=bound * size)
    else:
        np.testing.assert_array_equal(result, want)


def i64(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def f32(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


X = {"x": (2, 3, 6, 5)}
MATRIX = {"x": (4, 6)}
INTS = {"x": np.array([[7, -7, 5], [-5, 12, 1]], np.int64), "z": np.array([[2, 2, -3], [3, -5, 1]], np.int64)}
BOOLS = {"x": np.array([[True, False], [True, True]]), "z": np.array([[True, True], [False, True]])}
POSITIVE = {"x": np.linspace(1.1, 3, 24, dtype=np.float32).reshape(4, 6)}
UNIT = {"x": np.linspace(-0.9, 0.9, 24, dtype=np.float32).reshape(4, 6)}
HALF = {"x": np.linspace(-3, 3, 24, dtype=np.float16).reshape(4, 6)}
NAN = {"x": f32(1, math.nan, math.inf, -math.inf)}
IMAGE = {"x": (2, 4, 9, 8)}
BATCH_NORM = {**X, "s": f32(0.5, 1, 2), "b": (3,), "m": (3,), "v": f32(0.5, 1, 2)}

UNARY = [
    *(case(op, "x", MATRIX) for op in (
        "Abs", "Neg", "Sigmoid", "Tanh", "Erf", "Exp", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Atan",
        "Sinh", "Cosh", "Asinh", "Relu", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "HardSwish", "Softplus",
        "Softsign", "ThresholdedRelu", "Shrink", "Celu", "Mish", "Gelu", "Swish", "Identity",
    )),
    *(case(op, "x", POSITIVE) for op in ("Log", "Sqrt", "Reciprocal", "Acosh")),
    *(case(op, "x", UNIT) for op in ("Asin", "Acos", "Atanh")),
    case("LeakyRelu", "x", MATRIX, alpha=0.3, label="alpha"),
    case("Elu", "x", MATRIX, alpha=0.5, label="alpha"),
    case("Celu", "x", MATRIX, alpha=0.5, label="alpha"),
    case("Selu", "x", MATRIX, alpha=1.2, gamma=0.7, label="alpha"),
    case("HardSigmoid", "x", MATRIX, alpha=0.4, beta=0.3, label="alpha"),
    case("ThresholdedRelu", "x", MATRIX, alpha=0.3, label="alpha"),
    case("Shrink", "x", MATRIX, lambd=0.3, bias=0.1, label="bias"),
    case("Gelu", "x", MATRIX, approximate="tanh", label="tanh"),
    case("Swish", "x", MATRIX, alpha=1.7, label="alpha"),
    case("IsNaN", "x", NAN),
    case("IsInf", "x", NAN),
    case("IsInf", "x", NAN, detect_negative=0, label="positive"),
    case("IsInf", "x", NAN, detect_positive=0, label="negative"),
    case("IsInf", "x", NAN, detect_positive=0, detect_negative=0, label="neither"),
    case("Not", "x", {"x": BOOLS["x"]}),
    case("BitwiseNot", "x", {"x": INTS["x"]}),
    case("Softmax", "x", X), case("LogSoftmax", "x", X), case("Hardmax", "x", X),
    *(case(op, "x", X, axis=a, label=f"axis{a}") for op in ("Softmax", "LogSoftmax", "Hardmax") for a in (0, 2, 3)),
    *(case(op, "x", X, since=11, axis=-2, label="axis-2") for op in ("Softmax", "LogSoftmax", "Hardmax")),
    case("PRelu", "x s", {**X, "s": (3, 1, 1)}, trains=("s",)),
    case("PRelu", "x s", {**X, "s": (1,)}, trains=("s",), label="one"),
    case("PRelu", "x s", {**X, "s": (5,)}, trains=("s",), label="last"),
    case("PRelu", "x s", {"x": (2, 3, 3), "s": (3,)}, trains=("s",), label="last as long as channels"),
    case("PRelu", "x s", {"x": (2, 3), "s": (3,)}, trains=("s",), label="matrix"),
    case("PRelu", "x s", {**X, "s": (2, 3, 6, 5)}, live=("x", "s"), label="computed"),
    case("Clip", "x", MATRIX, until=6, min=-0.5, max=0.7),
    case("Clip", "x", MATRIX, until=6, min=0.0, label="low"),
    case("Clip", "x", MATRIX, until=6, label="unbounded"),
    case("Clip", "x l h", {**MATRIX, "l": np.float32(-0.5), "h": np.float32(0.7)}, since=11),
    case("Clip", "x _ h", {**MATRIX, "h": np.float32(0.7)}, since=11, label="high"),
    case("Clip", "x l h", {**MATRIX, "l": np.float32(-0.5), "h": np.float32(0.7)}, since=11, live=("x", "l", "h"),
         label="computed"),
    case("Clip", "x l h", {"x": INTS["x"], "l": np.int64(-3), "h": np.int64(6)}, since=12, label="integers"),
    case("Dropout", "x", MATRIX, until=10, ratio=0.3),
    case("Dropout", "x r", {**MATRIX, "r": np.float32(0.3)}, since=12),
    case("Dropout", "x r t", {**MATRIX, "r": np.float32(0.3), "t": np.array(False)}, since=12, outputs=2, label="mask"),
    *(case("Cast", "x", MATRIX, to=to, label=str(to)) for to in (6, 7, 9, 10, 11)),
    case("Cast", "x", HALF, to=1, label="half"),
    case("Cast", "x", {"x": BOOLS["x"]}, to=1, label="bool"),
    case("CastLike", "x z", {**MATRIX, "z": i64(1)}),
    case("Trilu", "x", X), case("Trilu", "x k", {**X, "k": np.int64(-1)}, upper=0, label="lower"),
    case("Trilu", "x k", {**X, "k": np.int64(2)}, label="diagonal"),
    case("EyeLike", "x", MATRIX), case("EyeLike", "x", MATRIX, k=-1, dtype=11, label="below"),
    case("EyeLike", "x", MATRIX, k=2, dtype=7, label="above"),
]  # fmt: skip

BINARY = [
    *(case(op, "x z", {**X, "z": (3, 1, 5)}) for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, "z x", {**X, "z": (6, 5)}, live=("x", "z"), label="live") for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, "x z", INTS, label="integers") for op in ("Add", "Sub", "Mul", "Div")),
    *(case(op, "x z", {**X, "z": (3, 1, 5)}) for op in ("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual")
      if op != "Equal"),
    case("Equal", "x z", INTS),
    case("Equal", "x z", MATRIX | {"z": (4, 6)}, since=11, label="floats"),
    *(case(op, "x z", BOOLS) for op in ("And", "Or", "Xor")),
    *(case(op, "x z", INTS) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *(case(op, "x z u", {**X, "z": (3, 1, 5), "u": (1,)}, live=("x", "z")) for op in ("Sum", "Mean", "Max", "Min")),
    *(case(op, "x", X, label="one") for op in ("Sum", "Mean", "Max", "Min")),
    *(case(op, "x z", INTS, since=12, label="integers") for op in ("Max", "Min")),
    case("Pow", "x z", {**POSITIVE, "z": np.float32(2.5)}),
    case("Pow", "x z", {**MATRIX, "z": np.float32(2)}, label="square"),
    case("Pow", "x z", {**POSITIVE, "z": (4, 6)}, live=("x", "z"), label="computed"),
    case("Pow", "x z", {"x": f32(1, 2), "z": np.full((1, 1), 2, np.float32)}, label="more axes"),
    case("Pow", "x z", {"x": INTS["x"], "z": np.float32(2)}, since=12, label="integers"),
    case("Mod", "x z", INTS), case("Mod", "x z", INTS, fmod=1, label="fmod"),
    case("Mod", "x z", {**MATRIX, "z": np.float32(0.7)}, fmod=1, label="floats"),
    case("Where", "c x z", {"c": np.eye(4, 6, dtype=bool), "x": (4, 6), "z": (6,)}),
    case("Where", "c x z", {"c": np.eye(4, 6, dtype=bool), "x": (4, 6), "z": (1,)}, live=("c", "x"), label="live"),
]  # fmt: skip

WEIGHTS = {"w": (6, 4, 3, 3), "b": (6,)}
CONV = [
    case("Conv", "x w b", {**IMAGE, **WEIGHTS}, trains=("w", "b")),
    case("Conv", "x w", {**IMAGE, **WEIGHTS}, trains=("w",), kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 1],
         label="no bias"),
    case("Conv", "x w b", {**IMAGE, **WEIGHTS}, trains=("w", "b"), pads=[0, 1, 2, 0], strides=[2, 2], label="uneven"),
    *(case("Conv", "x w b", {**IMAGE, **WEIGHTS}, trains=("w", "b"), auto_pad=p, strides=[s, s], label=f"{p}{s}")
      for p in ("SAME_UPPER", "SAME_LOWER", "VALID") for s in (1, 2)),
    case("Conv", "x w b", {**IMAGE, "w": (6, 4, 2, 2), "b": (6,)}, trains=("w", "b"), auto_pad="SAME_LOWER",
         label="even kernel"),
    case("Conv", "x w b", {**IMAGE, "w": (8, 1, 3, 3), "b": (8,)}, trains=("w", "b"), group=4, dilations=[2, 1],
         label="depthwise"),
    case("Conv", "x w b", {"x": (2, 4, 9), "w": (6, 2, 3), "b": (6,)}, trains=("w", "b"), group=2, pads=[2, 1],
         label="1d"),
    case("Conv", "x w b", {"x": (2, 2, 5, 6, 7), "w": (3, 2, 2, 3, 2), "b": (3,)}, trains=("w", "b"),
         pads=[1, 1, 0, 1, 1, 0], label="3d"),
    case("ConvTranspose", "x w b", {**IMAGE, "w": (4, 6, 3, 3), "b": (6,)}, trains=("w", "b")),
    case("ConvTranspose", "x w", {**IMAGE, "w": (4, 3, 4, 4)}, trains=("w",), strides=[2, 2], pads=[1, 1, 1, 1],
         group=2, label="groups"),
    case("ConvTranspose", "x w b", {**IMAGE, "w": (4, 6, 3, 3), "b": (6,)}, trains=("w", "b"), strides=[2, 3],
         pads=[0, 1, 1, 2], output_padding=[1, 2], label="uneven"),
    *(case("ConvTranspose", "x w b", {**IMAGE, "w": (4, 6, 3, 3), "b": (6,)}, trains=("w", "b"), strides=[2, 2],
           auto_pad=p, label=p) for p in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    case("ConvTranspose", "x w b", {**IMAGE, "w": (4, 6, 3, 3), "b": (6,)}, trains=("w", "b"), strides=[2, 2],
         output_shape=[18, 16], label="size"),
    case("ConvTranspose", "x w b", {**IMAGE, "w": (4, 6, 1, 1), "b": (6,)}, trains=("w", "b"), strides=[2, 2],
         output_shape=[18, 16], label="larger size"),
    case("ConvTranspose", "x w", {"x": (2, 4, 9), "w": (4, 3, 3)}, trains=("w",), dilations=[2], pads=[1, 0],
         label="1d"),
    case("ConvTranspose", "x w", {"x": (1, 2, 3, 4, 3), "w": (2, 2, 2, 2, 2)}, trains=("w",), strides=[2, 1, 2],
         label="3d"),
]  # fmt: skip

LINEAR = [
    *(case("Gemm", "x w b", {**MATRIX, "w": (6, 5), "b": (5,)}, trains=("w", "b"), alpha=a, beta=b, label=f"{a}{b}")
      for a, b in ((1.0, 1.0), (0.5, 2.0), (2.0, 0.0))),
    case("Gemm", "x w b", {**MATRIX, "w": (5, 6), "b": (5,)}, trains=("w", "b"), transB=1, alpha=0.5, label="B"),
    case("Gemm", "x w b", {"x": (6, 4), "w": (5, 6), "b": (5,)}, trains=("w", "b"), transA=1, transB=1, label="AB"),
    case("Gemm", "x w b", {**MATRIX, "w": (6, 5), "b": (1, 5)}, trains=("w", "b"), label="row"),
    case("Gemm", "x w b", {**MATRIX, "w": (6, 5), "b": (4, 1)}, trains=("w", "b"), beta=0.5, label="column"),
    case("Gemm", "x w", {**MATRIX, "w": (6, 5)}, since=11, trains=("w",), label="no bias"),
    case("MatMul", "x w", {**MATRIX, "w": (6, 5)}, trains=("w",)),
    case("MatMul", "w x", {**X, "w": (4, 6)}, trains=("w",), label="left"),
    case("MatMul", "x z", {"x": (2, 3, 4, 5), "z": (3, 5, 4)}, live=("x", "z"), label="batched"),
    case("Einsum", "x w", {"x": (2, 4, 6), "w": (3, 6, 5)}, trains=("w",), equation="bik,hkn->bhin"),
    case("Einsum", "x z", {"x": (2, 4, 6), "z": (2, 5, 6)}, live=("x", "z"), equation="...ik, ...jk", label="implicit"),
]  # fmt: skip

NORM = [
    case("BatchNormalization", "x s b m v", BATCH_NORM, trains=("s", "b"), epsilon=1e-3),
    case("BatchNormalization", "x s b m v", BATCH_NORM | {"x": (4, 3)}, trains=("s", "b"), label="matrix"),
    case("BatchNormalization", "x s b m v", BATCH_NORM | {"x": (2, 3, 5)}, trains=("s", "b"), label="1d"),
    case("BatchNormalization", "x s b m v", BATCH_NORM | {"x": (2, 3, 2, 3, 2)}, trains=("s", "b"), label="3d"),
    case("BatchNormalization", "x s b m v", BATCH_NORM, since=14, outputs=3, training_mode=1, momentum=0.8,
         label="training"),
    case("InstanceNormalization", "x s b", {**X, "s": (3,), "b": (3,)}, trains=("s", "b"), epsilon=1e-3),
    case("InstanceNormalization", "x s b", {"x": (2, 3, 7), "s": (3,), "b": (3,)}, trains=("s", "b"), label="1d"),
    case("LayerNormalization", "x s b", {**X, "s": (5,), "b": (5,)}, trains=("s", "b")),
    case("LayerNormalization", "x s", {**X, "s": (3, 6, 5)}, trains=("s",), axis=1, epsilon=1e-3, label="axes"),
    case("LayerNormalization", "x s b", {**X, "s": (5,), "b": (5,)}, outputs=3, trains=("s", "b"), label="outputs"),
    case("LayerNormalization", "x s", {**X, "s": (1, 5)}, axis=-2, trains=("s",), oracle="reference",
         label="broadcast"),
    case("RMSNormalization", "x s", {**X, "s": (5,)}, trains=("s",)),
    case("RMSNormalization", "x s", {**X, "s": (6, 5)}, trains=("s",), axis=-2, epsilon=1e-3, label="axes"),
    case("GroupNormalization", "x s b", {"x": (2, 6, 4, 3), "s": (6,), "b": (6,)}, since=21, trains=("s", "b"),
         num_groups=3),
    *(case("LRN", "x", {"x": (2, 7, 4, 4)}, size=s, alpha=0.3, beta=0.6, bias=1.5, label=str(s)) for s in (3, 5)),
    # As many samples as channels: onnx.reference normalizes that many channels only.
    case("LRN", "x", {"x": (7, 7, 4, 4)}, size=4, alpha=0.3, oracle="reference", label="even"),
    *(case("LpNormalization", "x", X, p=p, axis=a, label=f"{p}{a}") for p, a in ((1, 1), (2, -1))),
    case("MeanVarianceNormalization", "x", X),
    case("MeanVarianceNormalization", "x", X, axes=[1, -1], label="axes", oracle="reference"),
]  # fmt: skip

POOL = [
    *(case(op, "x", IMAGE) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")),
    case("GlobalLpPool", "x", IMAGE, p=3, label="p"),
    *(case(op, "x", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1], label="even pads")
      for op in ("MaxPool", "AveragePool", "LpPool")),
    *(case(op, "x", IMAGE, kernel_shape=[3, 3], pads=[2, 0, 1, 2], label="uneven")
      for op in ("MaxPool", "AveragePool", "LpPool")),
    *(case(op, "x", IMAGE, kernel_shape=[3, 2], strides=[2, 2], auto_pad=p, label=p)
      for op in ("MaxPool", "AveragePool", "LpPool") for p in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    *(case(op, "x", {"x": (2, 3, 9)}, kernel_shape=[3], label="1d") for op in ("MaxPool", "AveragePool", "LpPool")),
    *(case(op, "x", {"x": (1, 2, 5, 6, 4)}, kernel_shape=[2, 3, 2], strides=[1, 2, 2], pads=[0, 1, 1, 1, 1, 0],
           label="3d") for op in ("MaxPool", "AveragePool")),
    *(case("MaxPool", "x", IMAGE, since=10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=p,
           label=f"ceil{p[2]}") for p in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1])),
    case("MaxPool", "x", IMAGE, since=10, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 1, 1, 1], label="dilated"),
    case("MaxPool", "x", IMAGE, outputs=2, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1], label="indices"),
    case("MaxPool", "x", IMAGE, outputs=2, kernel_shape=[3, 2], strides=[2, 2], storage_order=1, label="column major"),
    case("MaxPool", "x", {"x": (1, 2, 4, 5, 6)}, outputs=2, kernel_shape=[2, 2, 2], storage_order=1,
         label="3d indices"),
    case("AveragePool", "x", IMAGE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1,
         label="padding counts"),
    case("AveragePool", "x", IMAGE, kernel_shape=[3, 3], pads=[2, 0, 1, 2], count_include_pad=1, label="uneven counts"),
    *(case("AveragePool", "x", IMAGE, since=10, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=p,
           label=f"ceil{p[2]}") for p in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1])),
    case("AveragePool", "x", IMAGE, since=19, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 1, 1, 1],
         count_include_pad=1, label="ceil counts"),
    *(case("AveragePool", "x", IMAGE, since=19, kernel_shape=[2, 3], dilations=[3, 2], pads=[1, 1, 1, 1],
           count_include_pad=c, label=f"dilated{c}") for c in (0, 1)),
    case("LpPool", "x", IMAGE, kernel_shape=[2, 2], p=3, label="p"),
    case("LpPool", "x", IMAGE, since=18, kernel_shape=[2, 3], dilations=[3, 2], ceil_mode=1, strides=[2, 2],
         label="dilated"),
]  # fmt: skip

REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
              "ReduceSumSquare", "ReduceLogSumExp")  # fmt: skip
REDUCE_DATA = {**dict.fromkeys(REDUCTIONS, X), "ReduceLogSum": POSITIVE}


def last_with_attribute(op: str) -> int:
    """The last version that takes the axes as an attribute."""
    return 11 if op == "ReduceSum" else 13


REDUCE = [
    c
    for op, data in REDUCE_DATA.items()
    for old, new in [(last_with_attribute(op), last_with_attribute(op) + 1)]
    for c in (
        case(op, "x", data, until=old, axes=[0, 1]),
        case(op, "x", data, until=old, axes=[1], keepdims=0, label="gone"),
        case(op, "x", data, label="all"),
        case(op, "x", data, keepdims=0, label="all gone"),
        case(op, "x a", {**data, "a": i64(-1, 0)}, since=new),
        case(op, "x a", {**data, "a": i64(-2)}, since=new, keepdims=0, label="gone"),
        case(op, "x a", {**data, "a": i64()}, since=new, label="empty"),
        # onnxruntime leaves out what a reduction does to every element, against the standard's later wording.
        case(op, "x", data, since=new, noop_with_empty_axes=1, oracle="reference", label="none"),
    )
] + [
    *(case("ReduceSum", "x a", {"x": INTS["x"].astype(np.int32), "a": i64(1)}, since=13, label="integers"),),
    *(case(op, "x a", {"x": BOOLS["x"], "a": i64(1)}, since=20, label="booleans") for op in ("ReduceMax", "ReduceMin")),
    *(case(op, "x", X, axis=a, keepdims=k, label=f"{a}{k}")
      for op in ("ArgMax", "ArgMin") for a, k in ((0, 1), (2, 0))),
    *(case(op, "x", {"x": np.array([[1, 3, 3], [0, 0, 2]], np.float32)}, since=12, axis=-1, select_last_index=last,
           label=f"tie{last}") for op in ("ArgMax", "ArgMin") for last in (0, 1)),
    case("TopK", "x k", {**X, "k": i64(3)}, since=10, outputs=2),
    case("TopK", "x k", {**X, "k": i64(2)}, since=11, outputs=2, axis=1, largest=0, label="smallest"),
    case("TopK", "x", X, until=1, outputs=2, k=2, axis=2),
    case("TopK", "x k", {**X, "k": i64(3)}, since=10, live=("x", "k"), outputs=2, offline=False, label="computed"),
    *(case("CumSum", "x a", {**X, "a": np.int64(-2)}, exclusive=e, reverse=r, label=f"{e}{r}")
      for e in (0, 1) for r in (0, 1)),
    case("CumSum", "x a", {**X, "a": np.int32(1)}, label="default"),
]  # fmt: skip

LAYOUT = [
    case("Reshape", "x s", {**X, "s": i64(0, 5, -1)}),
    case("Reshape", "x s", {**X, "s": i64(-1, 18, 5)}, label="numbers"),
    case("Reshape", "x s", {**X, "s": i64(-1, 3, 30)}, since=14, allowzero=1, label="allowzero"),
    case("Reshape", "x s", {"x": (0, 3), "s": i64(3, 0)}, since=14, allowzero=1, label="empty"),
    case("Reshape", "x s", {**X, "s": i64(0, -1)}, live=("x", "s"), offline=False, label="computed"),
    *(case("Flatten", "x", X, axis=a, label=str(a)) for a in (0, 1, 2, 4)),
    case("Flatten", "x", X, since=11, axis=-1, label="negative"),
    case("Flatten", "x", {"x": (4,)}, label="vector"),
    case("Squeeze", "x", {"x": (2, 1, 3, 1)}, until=11, axes=[1, 3]),
    case("Squeeze", "x a", {"x": (2, 1, 3, 1), "a": i64(-1)}, since=13),
    case("Squeeze", "x", {"x": (2, 1, 3, 1)}, label="all"),
    case("Unsqueeze", "x", {"x": (2, 3)}, until=11, axes=[3, 0]),
    case("Unsqueeze", "x a", {"x": (2, 3), "a": i64(-1, 0, -3)}, since=13),
    case("Transpose", "x", X, perm=[0, 2, 3, 1]), case("Transpose", "x", X, label="reversed"),
    case("Concat", "x z x", {**X, "z": (2, 3, 1, 5)}, live=("x", "z"), axis=2),
    case("Concat", "x z", {"x": INTS["x"], "z": INTS["z"]}, axis=0, label="integers"),
    case("Split", "x", X, until=11, outputs=2, axis=2, split=[2, 4]),
    case("Split", "x", X, until=13, outputs=3, axis=2, label="alike"),
    case("Split", "x s", {**X, "s": i64(2, 4)}, since=13, outputs=2, axis=-2),
    case("Split", "x", {"x": (2, 7)}, since=18, outputs=3, axis=1, num_outputs=3, label="uneven"),
    case("Split", "x", X, since=18, outputs=1, axis=1, num_outputs=1, label="one"),
    case("Expand", "x s", {"x": (2, 1, 3), "s": i64(4, 1)}),
    case("Expand", "x s", {"x": (2, 1, 3), "s": i64(5, 1, 1, 3)}, label="more axes"),
    case("Expand", "x s", {"x": (2, 1, 3), "s": i64(4, 1)}, live=("x", "s"), offline=False, label="computed"),
    case("Tile", "x s", {**X, "s": i64(1, 2, 1, 3)}),
    case("Tile", "x s", {**X, "s": i64(1, 2, 1, 3)}, live=("x", "s"), offline=False, label="computed"),
    case("Shape", "x", X), case("Shape", "x", X, since=15, start=1, end=-1, label="part"),
    case("Shape", "x", X, since=15, start=-3, end=9, label="clamped"),
    case("Size", "x", X),
    case("ConstantOfShape", "x", {"x": i64(2, 3)}, offline=False),
    case("ConstantOfShape", "x", {"x": i64(2, 3)}, offline=False, value=numpy_helper.from_array(i64(7)),
         label="integer"),
    case("Range", "x l d", {"x": np.int64(1), "l": np.int64(9), "d": np.int64(3)}, offline=False),
    case("Range", "x l d", {"x": np.float32(1), "l": np.float32(-2), "d": np.float32(-0.7)}, offline=False,
         label="floats"),
    case("DepthToSpace", "x", {"x": (2, 8, 2, 3)}, blocksize=2),
    *(case("DepthToSpace", "x", {"x": (2, 8, 2, 3)}, since=11, blocksize=2, mode=m, label=m) for m in ("DCR", "CRD")),
    case("SpaceToDepth", "x", {"x": (2, 3, 4, 6)}, blocksize=2),
    case("SpaceToDepth", "x", {"x": (2, 3, 4, 6)}, since=28, blocksize=2, mode="CRD", label="CRD"),
    case("ReverseSequence", "x l", {"x": (3, 4, 2), "l": i64(4, 1, 2)}, batch_axis=0, time_axis=1),
    case("ReverseSequence", "x l", {"x": (4, 3, 2), "l": i64(4, 1, 2)}, live=("x", "l"), label="time first"),
    case("Pad", "x", X, until=2, pads=[0, 1, 0, 2, 0, 0, 1, 1], value=0.5),
    case("Pad", "x p v", {**X, "p": i64(0, 1, 0, 2, 0, 0, 1, 1), "v": np.float32(0.5)}, since=11),
    case("Pad", "x p", {**X, "p": i64(0, 0, -1, 2, 0, 0, 1, -2)}, since=11, label="crop"),
    *(case("Pad", "x p", {**X, "p": i64(0, 0, 2, 1, 0, 0, 1, 3)}, since=11, mode=m, label=m)
      for m in ("reflect", "edge")),
    *(case("Pad", "x p", {**X, "p": i64(0, 1, 2, 0, 0, 2, 1, 0)}, since=11, mode=m, label=f"{m} channels")
      for m in ("reflect", "edge")),
    case("Pad", "x p", {**X, "p": i64(0, 0, 2, 1, 0, 0, 1, 3)}, since=19, mode="wrap", label="wrap"),
    case("Pad", "x p", {**X, "p": i64(0, 2, 0, 0, 0, 2, 0, 0)}, since=19, mode="wrap", label="wrap channels"),
    case("Pad", "x p _ a", {**X, "p": i64(1, 2, 0, 3), "a": i64(-1, 2)}, since=18, label="axes"),
    case("Pad", "x p", {"x": INTS["x"], "p": i64(0, 1, 0, 2)}, since=11, mode="reflect", label="integers"),
    case("Pad", "x p v", {**X, "p": i64(0, 1, 0, 2, 0, 0, 1, 1), "v": np.float32(0.5)}, since=11, live=("x", "p", "v"),
         offline=False, label="computed"),
]  # fmt: skip

GATHER = [
    case("Gather", "x i", {**X, "i": np.array([[2, 0], [-1, 1]], np.int64)}, axis=1),
    case("Gather", "x i", {**X, "i": np.int64(-1)}, axis=2, label="one"),
    case("Gather", "x i", {**X, "i": i64(1)}, axis=-1, label="last"),
    case("Gather", "x i", {**X, "i": np.array([[2, 0], [-1, 1]], np.int32)}, live=("x", "i"), axis=1, label="computed"),
    case("Gather", "w x", {"w": (7, 4), "x": np.array([[0, 6], [-2, 3]], np.int64)}, trains=("w",), label="embedding"),
    case("GatherElements", "x i", {**MATRIX, "i": np.array([[0, -1, 3, 2, 1, -4]], np.int64)}),
    case("GatherElements", "x i", {**MATRIX, "i": np.array([[0], [-1], [5], [2]], np.int64)}, live=("x", "i"), axis=1,
         label="computed"),
    case("GatherND", "x i", {**X, "i": np.array([[0, 2], [1, -1]], np.int64)}),
    case("GatherND", "x i", {**X, "i": np.array([[[0, 2], [1, -1]]] * 2, np.int64)}, since=12, batch_dims=1,
         label="batch"),
    case("ScatterElements", "x i u", {**MATRIX, "i": np.array([[0, -1, 3, 2, 1, -4]], np.int64), "u": (1, 6)},
         live=("x", "u")),
    *(case("ScatterElements", "x i u", {**MATRIX, "i": np.array([[0], [0], [5], [-1]], np.int64), "u": (4, 1)},
           since=16 if r in ("add", "mul") else 18, axis=1, live=("x", "u"), reduction=r, label=r)
      for r in ("add", "mul", "max", "min")),
    case("Scatter", "x i u", {**MATRIX, "i": np.array([[0, 1, 3, 2, 1, 0]], np.int64), "u": (1, 6)}, live=("x", "u")),
    case("ScatterND", "x i u", {**X, "i": np.array([[0, 2], [1, -1]], np.int64), "u": (2, 6, 5)}, live=("x", "u")),
    *(case("ScatterND", "x i u", {**X, "i": np.array([[0, 2], [1, -1], [0, 2]], np.int64), "u": (3, 6, 5)},
           since=16 if r in ("add", "mul") else 18, live=("x", "u"), reduction=r, label=r)
      for r in ("add", "mul", "max", "min")),
    case("Slice", "x", X, until=1, starts=[1, -4], ends=[3, 2**31 - 1], axes=[1, 2]),
    case("Slice", "x", X, until=1, starts=[0, 1], ends=[1, 9], label="first axes"),
    case("Slice", "x s e a t", {**X, "s": i64(-1, 0), "e": i64(-(2**62), 9), "a": i64(2, -1), "t": i64(-2, 2)},
         since=10),
    case("Slice", "x s e", {**X, "s": i64(0, 1), "e": i64(1, 3)}, since=10, label="first axes"),
    case("Slice", "x s e a", {**X, "s": i64(4), "e": i64(2), "a": i64(2)}, since=10, label="empty"),
    case("Slice", "x s e a t", {**X, "s": i64(-1), "e": i64(-4), "a": i64(2), "t": i64(-1)}, since=10,
         live=("x", "s", "e"), offline=False, label="computed"),
    case("OneHot", "x d v", {"x": np.array([[0, 2], [-1, 5]], np.int64), "d": np.int64(4), "v": f32(0.5, 2)}),
    case("OneHot", "x d v", {"x": np.array([[0, 2], [-1, 5]], np.int64), "d": np.int64(4), "v": i64(0, 1)}, axis=1,
         label="axis"),
    case("Compress", "x c", {**X, "c": np.array([True, False, True])}, axis=1, offline=False),
    case("Compress", "x c", {**MATRIX, "c": np.array([True, False, True, True])}, offline=False, label="flat"),
    case("NonZero", "x", {"x": INTS["x"] % 2}, offline=False),
    case("Det", "x", {"x": (2, 3, 3)}),
    case("NonMaxSuppression", "x s n t", {"x": np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 5, 1, 6]]], np.float32),
                                          "s": np.array([[[0.9, 0.8, 0.7]]], np.float32), "n": i64(3), "t": f32(0.5)},
         live=("x", "s"), offline=False),
]  # fmt: skip

SCALES = {"s": f32(1, 1, 2, 2)}
RESIZE = [
    case("Upsample", "x s", {**X, **SCALES}), case("Upsample", "x s", {**X, **SCALES}, mode="linear", label="linear"),
    case("Resize", "x s", {**X, **SCALES}, until=10),
    case("Resize", "x s", {**X, "s": f32(1, 1, 0.6, 0.4)}, until=10, label="smaller"),
    case("Resize", "x s", {**X, "s": f32(1, 1, 1.5, 0.6)}, until=10, mode="linear", label="linear"),
    *(case("Resize", "x _ s" if v > 11 else "x r s", {**X, "r": f32(), **SCALES}, since=v, until=11 if v == 11 else 99,
           label=f"since {v}") for v in (11, 13)),
    case("Resize", "x r e s", {**X, "r": f32(), "e": f32(), "s": i64(2, 3, 9, 4)}, since=11, mode="linear",
         label="sizes"),
    case("Resize", "x r s", {**X, "r": f32(), **SCALES}, since=11, live=("x", "s"), offline=False, mode="linear",
         label="computed"),
    *(case("Resize", "x r s", {**X, "r": f32(), "s": f32(1, 1, *s)}, since=11, mode=m, coordinate_transformation_mode=c,
           label=f"{m} {c} {s[0]}")
      for s in ((2, 3), (1.7, 0.6), (0.5, 0.2)) for m in ("linear", "cubic")
      for c in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")),
    *(case("Resize", "x r s", {**X, "r": f32(), "s": f32(1, 1, *s)}, since=11, coordinate_transformation_mode=c,
           nearest_mode=n, label=f"{n} {c} {s[0]}")
      for s in ((2, 3), (1.7, 0.6)) for c in ("half_pixel", "asymmetric", "align_corners")
      for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")),
    case("Resize", "x r s", {**X, "r": f32(), **SCALES}, since=11, until=11,
         coordinate_transformation_mode="tf_half_pixel_for_nn", label="tf"),
    case("Resize", "x r s", {**X, "r": f32(), "s": f32(1, 1, 1.7, 0.6)}, since=11, mode="cubic", cubic_coeff_a=-0.5,
         exclude_outside=1, label="cubic options"),
    case("Resize", "x r s", {"x": (2, 3, 7), "r": f32(), "s": f32(1, 1, 2)}, since=11, mode="linear", label="1d"),
    case("Resize", "x r s", {"x": (1, 2, 3, 4, 3), "r": f32(), "s": f32(1, 1, 2, 1.5, 2)}, since=11, mode="linear",
         label="3d"),
    case("Resize", "x r s", {"x": (2, 4, 5, 3), "r": f32(), "s": f32(1, 2, 2, 1)}, since=11, label="channels last"),
    case("Resize", "x _ _ s", {**X, "s": i64(9, 4)}, since=18, axes=[2, 3], mode="linear", label="axes"),
    *(case("Resize", "x _ _ s", {**X, "s": i64(9, 7)}, since=18, axes=[2, 3], mode="linear",
           keep_aspect_ratio_policy=p, label=p) for p in ("not_larger", "not_smaller")),
    *(case("Resize", "x _ s", {**X, "s": f32(1, 1, *s)}, since=18, mode=m, antialias=1, exclude_outside=e,
           label=f"{m} antialias {e} {s[0]}")
      for s in ((0.5, 0.6), (1.7, 0.4)) for m, e in (("linear", 0), ("cubic", 0), ("cubic", 1))),
    *(case("Resize", "x _ s", {**X, "s": f32(1, 1, 1.3, 0.6)}, since=19, mode=m,
           coordinate_transformation_mode="half_pixel_symmetric", label=f"{m} symmetric")
      for m in ("linear", "nearest")),
]  # fmt: skip

GRID = {"x": (2, 3, 5, 6), "g": (2, 4, 3, 2)}
BOXES = np.array([[0.2, 0.4, 3.7, 4.1], [1, 0, 4.5, 2.2], [0, 1, 2, 2.5]], np.float32)
ROIS = {**GRID, "r": BOXES, "i": i64(0, 1, 1)}
VISION = [
    *(case("GridSample", "x g", GRID, until=16, mode=m, padding_mode=p, align_corners=a, label=f"{m} {p} {a}")
      for m in ("bilinear", "nearest", "bicubic") for p in ("zeros", "border", "reflection") for a in (0, 1)),
    *(case("GridSample", "x g", GRID, since=20, mode=m, label=m) for m in ("linear", "nearest", "cubic")),
    case("GridSample", "x g", {"x": (2, 3, 4, 5, 3), "g": (2, 2, 3, 2, 3)}, since=20, label="3d"),
    case("RoiAlign", "x r i", ROIS, output_height=2, output_width=3, sampling_ratio=2, spatial_scale=0.8),
    case("RoiAlign", "x r i", ROIS, since=16, coordinate_transformation_mode="output_half_pixel", label="unshifted"),
]  # fmt: skip

STEPS = {"s": np.float32(0.1), "z": np.uint8(120)}
PER_AXIS = {"s": f32(0.1, 0.02, 0.5), "z": np.array([3, -4, 0], np.int8)}
CODES = np.arange(-90, 90, dtype=np.int8).reshape(2, 3, 6, 5)
QUANTIZE = [
    case("QuantizeLinear", "x s z", {**X, **STEPS}),
    case("QuantizeLinear", "x s", {**X, "s": np.float32(0.01)}, label="no zero point"),
    case("QuantizeLinear", "x s z", {**X, **PER_AXIS}, since=13, axis=1, label="axis"),
    case("QuantizeLinear", "x s z", {**X, "s": (2, 3, 3, 5), "z": np.full((2, 3, 3, 5), 2, np.int8)}, since=21, axis=2,
         block_size=2, label="blocks"),
    case("QuantizeLinear", "x s", {**X, "s": np.float32(0.01)}, since=21, output_dtype=3, label="type"),
    case("DequantizeLinear", "x s z", {"x": CODES.view(np.uint8), **STEPS}),
    case("DequantizeLinear", "x s z", {"x": CODES, **PER_AXIS}, since=13, axis=-3, label="axis"),
    case("DequantizeLinear", "x s", {"x": CODES.astype(np.int32), "s": np.float32(0.25)}, label="no zero point"),
    case("DequantizeLinear", "x s", {"x": CODES, "s": (2, 3, 2, 5)}, since=21, axis=2, block_size=3, label="blocks"),
]  # fmt: skip

# Other float types, on one operator of each kind; onnxruntime has not all of them in float64.
HALVES = [
    case("Conv", "x w b", {**IMAGE, **WEIGHTS}, trains=("w", "b"), pads=[0, 1, 2, 0]),
    case("GlobalAveragePool", "x", X), case("Gelu", "x", X),
]  # fmt: skip
BOTH = [
    case("Gemm", "x w b", {**MATRIX, "w": (6, 5), "b": (5,)}, trains=("w", "b"), alpha=0.5),
    case("LayerNormalization", "x s b", {**X, "s": (5,), "b": (5,)}, trains=("s", "b")),
    case("Relu", "x", X), case("Softmax", "x", X), case("ReduceL2", "x", X),
    case("Pad", "x p", {**X, "p": i64(0, 0, 2, 1, 0, 0, 1, 3)}, since=11, mode="edge"),
]  # fmt: skip
TYPES = [
    *(replace(c, floats="float16", label="float16") for c in [*HALVES, *BOTH]),
    *(replace(c, floats="float64", label="float64") for c in BOTH),
]

CASES = [*TYPES, *UNARY, *BINARY, *CONV, *LINEAR, *NORM, *POOL, *REDUCE, *LAYOUT, *GATHER, *RESIZE, *VISION, *QUANTIZE]
# Where no exact type can be expected: quantised numbers stay floats, so that a gradient can pass.
ANY_TYPE = {"QuantizeLinear"}
# Operators whose kernels sum or exponentiate differently: more rounding than one operation's.
ROUGH = {
    "ReduceProd": 4,
    "Tan": 4,
    "Resize": 4,
    "GridSample": 8,
    "ReduceLogSumExp": 2,
    "Selu": 4,
    "Conv": 2,
    "LpPool": 2,
}


def label(c: Case) -> str:
    return f"{c.op} {c.label}".strip()


def module_of(c: Case, version: int) -> tuple[Any, list[Array], dict[str, Array]]:
    """The module, what onnxruntime computes, and the feeds."""
    proto, feeds, want = build(c, version)
    return to_torch(load(proto)), want, feeds


def check_gradients_of_data(module: Any, feeds: Mapping[str, Array]) -> None:
    """Check that the gradients of the data are finite, if there are any."""
    inputs = tensors(feeds)
    floats = [t.requires_grad_() for t in inputs if t.is_floating_point() and torch.isfinite(t).all()]
    results = [r for r in as_tuple(module(*inputs)) if r.requires_grad]
    if results and floats:
        sum(r.sum() for r in results).backward()
        assert all(torch.isfinite(t.grad).all() for t in floats if t.grad is not None)


def check_no_number_is_read(module: Any, feeds: Mapping[str, Array], want: Sequence[Array]) -> None:
    """On `meta` there are shapes and no values: reading one raises."""
    results = as_tuple(module.to("meta")(*[t.to("meta") for t in tensors(feeds)]))
    assert [tuple(r.shape) for r in results] == [w.shape for w in want]


@pytest.mark.parametrize("c", CASES, ids=label)
def test_every_version_computes_what_onnxruntime_computes(c: Case) -> None:
    assert c.versions
    for version in c.versions:
        module, want, feeds = module_of(c, version)
        module.eval()
        got = as_tuple(module(*tensors(feeds)))
        assert len(got) == len(want) == c.outputs
        for g, w in zip(got, want, strict=True):
            agree(g, w, exact_type=c.op not in ANY_TYPE, scale=ROUGH.get(c.op, 1))
    check_gradients_of_data(module, feeds)
    if c.offline:
        check_no_number_is_read(module, feeds, want)


@pytest.mark.parametrize("c", [c for c in CASES if c.trains], ids=label)
def test_weights_are_parameters_with_a_gradient(c: Case) -> None:
    # A Gemm with beta = 0 has a bias that nothing depends on.
    expect = {n for n in c.trains if not (n == "b" and c.attrs.get("beta") == 0)}
    module, _, feeds = module_of(c, c.versions[-1])
    trained = {b.initializer: b.path for b in bindings(module) if b.kind == "trained"}
    assert set(trained) == set(c.trains)
    results = as_tuple(module(*tensors(feeds)))
    generator = torch.Generator().manual_seed(0)
    sum((r * torch.randn(r.shape, generator=generator)).sum() for r in results).backward()
    parameters = dict(module.named_parameters())
    for name in expect:
        gradient = parameters[trained[name]].grad
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("op", ["Conv", "Gemm", "BatchNormalization", "Gather", "MaxPool", "Resize", "Clip"])
def test_copies_compute_the_same(op: str) -> None:
    for c in [c for c in CASES if c.op == op]:
        module, _, feeds = module_of(c, c.versions[-1])
        module.eval()
        results = as_tuple(module(*tensors(feeds))), as_tuple(copy.deepcopy(module)(*tensors(feeds)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# ----------------------------------------------------------------------------------------------------- coverage

# Operators with a record but no converter, each for a reason.
WITHOUT_CONVERTER = {
    "BitShift": "shifts integers; no network that trains has one",
    "Constant": "the passes before turn it into an initializer",
    "If": "converted in flat form (test_control_flow)",
    "RandomNormal": "PyTorch's random numbers are others than onnxruntime's",
    "RandomUniform": "likewise",
    "SimplifiedLayerNormalization": "the checker knows no such operator",
    "Unique": "finds values; nothing passes a gradient through it",
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"), "PyTorch's random numbers are others"
    ),
    **dict.fromkeys(
        ("ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"),
        "computes with integers; train the model before it is quantized",
    ),
    **dict.fromkeys(
        ("Loop", "Scan", "Optional", "OptionalGetElement", "OptionalHasElement", "ConcatFromSequence",
         "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength",
         "SequenceMap", "SplitToSequence"),
        "not converted yet: control flow and sequences",
    ),
    **dict.fromkeys(
        ("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        "takes text or files; nothing passes a gradient through it",
    ),
    **dict.fromkeys(
        ("BlackmanWindow", "HammingWindow", "HannWindow", "MelWeightMatrix", "STFT", "DFT", "BitCast"),
        "not converted yet: signal processing",
    ),
    **dict.fromkeys(
        ("GRU", "LSTM", "RNN", "Attention", "LinearAttention", "RotaryEmbedding", "CausalConvWithState",
         "TensorScatter", "SwiGLU"),
        "not converted yet: recurrent layers, and attention as one operator",
    ),
    **dict.fromkeys(
        ("AffineGrid", "CenterCropPad", "Col2Im", "CumProd", "DeformConv", "MaxRoiPool", "MaxUnpool",
         "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        "not converted yet: seldom exported",
    ),
}  # fmt: skip


class _Node:
    """As much of a node as the registry looks at."""

    def __init__(self, op: str, domain: str) -> None:
        self.operation_type, self.domain, self.name = op, domain, "node"


def has_converter(op: str, domain: str, opset: int) -> bool:
    try:
        find(_Node(op, domain), opset)
    except OnnxPruneError:
        return False
    return True


@pytest.mark.parametrize("opset", [NEWEST, RUNTIME_NEWEST])
def test_every_operator_with_a_record_has_a_converter_at_the_newest_opset(opset: int) -> None:
    missing = {op for domain, op in all_ops() if not domain and not has_converter(op, domain, opset)}
    assert missing == set(WITHOUT_CONVERTER)


def test_operators_that_onnxruntime_fuses_have_none() -> None:
    # They come from optimizing for a runtime; what is trained is the model they were made from.
    assert not any(has_converter(op, domain, NEWEST) for domain, op in all_ops() if domain == "com.microsoft")


@pytest.mark.parametrize("opset", range(OLDEST, NEWEST + 1))
def test_every_version_of_an_operator_has_a_converter(opset: int) -> None:
    for domain, op in all_ops():
        if domain or op in WITHOUT_CONVERTER:
            continue
        try:
            schema = onnx.defs.get_schema(op, opset, "")
        except onnx.defs.SchemaError:
            continue
        assert schema.deprecated or has_converter(op, "", opset), f"{op} {since_version(op, opset)}"


def test_every_operator_and_version_is_tested() -> None:
    tested = {(c.op, v) for c in CASES for v in c.versions}
    wanted = {(op, v) for domain, op in all_ops() if not domain for v in versions_of(op)}
    assert {(op, v) for op, v in wanted - tested if op not in WITHOUT_CONVERTER} == set()


# --------------------------------------------------------------------------------------------- several nodes


def text_model(text: str, opset: int = 17, **constants: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(3)
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> agraph {text}')
    for name, value in constants.items():
        array = rng.standard_normal(value).astype(np.float32) if isinstance(value, tuple) else np.asarray(value)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def compare(proto: onnx.ModelProto, *batches: int, x: tuple[int, ...] = (3, 8, 8)) -> Any:
    """The module, after it agreed with onnxruntime on batches of several sizes and ran on `meta`."""
    module = to_torch(load(proto)).eval()
    for batch in batches or (1, 3):
        data = np.random.default_rng(batch).standard_normal((batch, *x)).astype(np.float32)
        (want,) = run(proto, {"x": data})
        agree(module(torch.from_numpy(data)), want, scale=4)
        assert copy.deepcopy(module).to("meta")(torch.from_numpy(data).to("meta")).shape == want.shape
    return module


def test_shapes_read_at_run_time() -> None:
    compare(text_model(
        """(float[N,3,8,8] x) => (float[a,b,c] y) {
           s = Shape (x) n = Gather (s, zero) u = Unsqueeze (n, axis) t = Concat <axis = 0> (u, rest)
           y = Reshape (x, t) }""",
        zero=np.int64(0), axis=i64(0), rest=i64(6, -1),
    ))  # fmt: skip


def test_arithmetic_on_sizes_joins_data() -> None:
    # The scale of attention, computed from the data's own size.
    compare(text_model(
        """(float[N,H,8] x) => (float[N,H,8] y) {
           s = Shape (x) d = Slice (s, from, to) f = Cast <to = 1> (d) r = Sqrt (f) q = Div (x, r)
           z = Size (x) g = Cast <to = 1> (z) y = Add (q, g) }""",
        **{"from": i64(1), "to": i64(2)},
    ), x=(5, 8))  # fmt: skip


def test_computed_grid_of_places() -> None:
    compare(text_model(
        """(float[N,3,H,8] x) => (float[N,3,H,8] y) {
           s = Shape (x) h = Gather (s, two) r = Range (zero, h, one) f = Cast <to = 1> (r)
           u = Unsqueeze (f, axis) k = ConstantOfShape (s) m = Add (x, u) y = Add (m, k) }""",
        two=np.int64(2), zero=np.int64(0), one=np.int64(1), axis=i64(1),
    ))  # fmt: skip


def test_resize_to_the_size_of_another_tensor() -> None:
    compare(text_model(
        """(float[N,3,H,8] x) => (float[N,3,H,8] y) {
           p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) s = Shape (x) f = Shape (p)
           hw = Slice (s, two, four) nc = Slice (f, zero, two) t = Concat <axis = 0> (nc, hw)
           y = Resize <mode = "linear"> (p, , , t) }""",
        zero=i64(0), two=i64(2), four=i64(4),
    ))  # fmt: skip


def test_gemm_and_batchnorm_of_computed_tensors() -> None:
    compare(text_model(
        """(float[N,8] x) => (float[N,8] y) {
           m = ReduceMean <axes = [0], keepdims = 0> (x) d = Sub (x, m) q = Mul (d, d)
           v = ReduceMean <axes = [0], keepdims = 0> (q) n = BatchNormalization (x, s, b, m, v)
           g = Gemm <transA = 1, beta = 0.5> (n, n, s) y = MatMul (x, g) }""",
        s=(8,), b=(8,),
    ), 4, 6, x=(8,))  # fmt: skip


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("attrs", ["pads = [1, 1, 1, 1]", "pads = [1, 0, 2, 1], strides = [2, 2]"])
def test_weight_that_another_node_computes(op: str, attrs: str) -> None:
    module = compare(text_model(
        f"""(float[N,3,8,8] x) => (float[N,3,a,b] y) {{
            m = ReduceMean <keepdims = 0> (x) v = Mul (w, m) y = {op} <{attrs}> (x, v, b) }}""",
        w=(3, 3, 3, 3), b=(3,),
    ))  # fmt: skip
    assert {b.initializer for b in bindings(module) if b.kind == "trained"} == {"w", "b"}


def test_shared_weight_of_a_gemm_stays_one_parameter() -> None:
    module = compare(text_model(
        """(float[N,72] x) => (float[N,72] y) { h = Gemm <alpha = 0.5> (x, w) t = Tanh (h)
           y = Gemm <transB = 1> (t, w) }""",
        w=(72, 72),
    ), x=(72,))  # fmt: skip
    assert len(list(module.parameters())) == 1


def test_quantized_convolution_trains() -> None:
    proto = text_model(
        """(float[N,3,8,8] x) => (float[N,4,6,6] y) {
           q = QuantizeLinear (x, sx, zx) d = DequantizeLinear (q, sx, zx) v = DequantizeLinear <axis = 0> (w, sw)
           c = Conv (d, v) y = Mul (c, k) }""",
        sx=np.float32(0.03), zx=np.uint8(127), w=np.arange(-54, 54, dtype=np.int8).reshape(4, 3, 3, 3),
        sw=f32(0.01, 0.02, 0.03, 0.01), k=(4, 1, 1),
    )  # fmt: skip
    module = compare(proto)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module(x).sum().backward()
    inside = (x.detach() > -3.8) & (x.detach() < 3.8)
    assert (x.grad[inside] != 0).float().mean() > 0.99  # straight through the rounding
    assert not x.grad[(x.detach() > 3.9) | (x.detach() < -3.9)].any()  # what saturates has no gradient


def test_dropout_acts_in_training_mode_only() -> None:
    (c,) = [c for c in CASES if c.op == "Dropout" and c.since == 12 and c.outputs == 2]
    module, _, _ = module_of(c, 13)
    torch.manual_seed(0)
    y, mask = module.train()(torch.ones(400, 6))
    assert abs(mask.float().mean().item() - 0.7) < 0.05
    assert torch.equal(y != 0, mask)
    assert torch.allclose(y[mask], torch.tensor(1 / 0.7))


def test_padding_of_zeros_has_no_gradient_that_is_no_number() -> None:
    # A window of zeros has p-norm 0, where the root has no slope.
    (c,) = [c for c in CASES if c.op == "LpPool" and c.label == "uneven"]
    for chosen in (c, *[c for c in CASES if c.op in ("ReduceL2", "GlobalLpPool") and c.label in ("all", "")]):
        module, _, feeds = module_of(chosen, chosen.versions[-1])
        x = torch.zeros(feeds["x"].shape, requires_grad=True)
        module(x).sum().backward()
        assert torch.isfinite(x.grad).all()


# ----------------------------------------------------------------------------------------------------- refusals

REFUSALS = [
    (case("Resize", "x r s", {**X, "r": f32(0, 0, 0, 0, 1, 1, 1, 1), **SCALES}, since=13,
          coordinate_transformation_mode="tf_crop_and_resize"), "tf_crop_and_resize"),
    (case("MaxPool", "x", IMAGE, since=10, kernel_shape=[2, 2], dilations=[2, 2], auto_pad="SAME_UPPER"), "disagree"),
    (case("RoiAlign", "x r i", ROIS, mode="max"), "'max'"),
    (case("Cast", "x", MATRIX, to=8), "STRING"),
    (case("LSTM", "x w r", {"x": (5, 2, 3), "w": (1, 16, 3), "r": (1, 16, 4)}, hidden_size=4), "LSTM"),
    (case("CumSum", "x a", {**X, "a": np.int64(1)}, live=("x", "a")), "axis computed"),
    (case("ReduceSum", "x a", {**X, "a": i64(1)}, since=13, live=("x", "a")), "axes are computed"),
]  # fmt: skip


@pytest.mark.parametrize(("c", "says"), REFUSALS, ids=[f"{c.op} {says}" for c, says in REFUSALS])
def test_what_cannot_be_converted_is_named(c: Case, says: str) -> None:
    proto, _, _ = build(c, c.versions[-1])
    with pytest.raises(OnnxPruneError, match=says) as caught:
        to_torch(load(proto))
    assert c.op in str(caught.value)
    assert "node" in (caught.value.where or "")


def test_resize_that_fixes_the_batch_refuses_another() -> None:
    c = case("Resize", "x r e s", {**X, "r": f32(), "e": f32(), "s": i64(2, 3, 9, 4)}, since=13, mode="linear")
    module, _, _ = module_of(c, 13)
    with pytest.raises(OnnxPruneError, match="batch size from 3"):
        module(torch.zeros(3, 3, 6, 5))


# -------------------------------------------------------------------------------------------------- properties


def check(c: Case, version: int, scale: float = 1) -> None:
    """The case agrees with onnxruntime; what onnxruntime refuses is no example."""
    try:
        proto, feeds, want = build(c, version)
    except Exception:  # onnxruntime's own classes
        assume(False)
    assume(all(w.size for w in want))
    module = to_torch(load(proto)).eval()
    for got, w in zip(as_tuple(module(*tensors(feeds))), want, strict=True):
        agree(got, w, scale=scale)


@st.composite
def pads(draw: st.DrawFn) -> Case:
    mode = draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    sizes = draw(st.lists(st.integers(2, 5), min_size=1, max_size=5))
    low = -1 if mode == "constant" else 0
    amounts = [draw(st.integers(low, n - 1)) for n in sizes * 2]
    axes = draw(st.permutations(range(len(sizes))))[: draw(st.integers(1, len(sizes)))]
    chosen = [amounts[a + half * len(sizes)] for half in (0, 1) for a in axes]
    data = {"x": tuple(sizes), "p": np.array(chosen, np.int64), "a": np.array(axes, np.int64)}
    return case("Pad", "x p _ a", data, mode=mode)


@PROPERTY(max_examples=30)
@given(pads())
def test_pad(c: Case) -> None:
    check(c, 19)


@st.composite
def slices(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    axes = draw(st.permutations(range(len(sizes))))[: draw(st.integers(1, len(sizes)))]
    bound = st.integers(-8, 8) | st.sampled_from([2**62, -(2**62)])
    step = st.integers(-3, 3).filter(bool)
    columns = [[draw(s) for _ in axes] for s in (bound, bound, step)]
    rank = len(sizes)
    given_axes = [a - rank if draw(st.booleans()) else a for a in axes]
    data = dict(zip("sea", (np.array(v, np.int64) for v in (*columns[:2], given_axes)), strict=True))
    return case("Slice", "x s e a t", {"x": tuple(sizes), **data, "t": np.array(columns[2], np.int64)})


@PROPERTY(max_examples=40)
@given(slices())
def test_slice(c: Case) -> None:
    check(c, 13)


@st.composite
def pools(draw: st.DrawFn) -> Case:
    op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    axes = draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": [draw(st.integers(1, 3)) for _ in range(axes)]}
    if not auto.startswith("SAME"):
        attrs["dilations"] = [draw(st.integers(1, 2)) for _ in range(axes)]
    if auto == "NOTSET":
        attrs["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
        attrs["ceil_mode"] = draw(st.integers(0, 1))
    else:
        attrs["auto_pad"] = auto
    if op == "AveragePool":
        attrs["count_include_pad"] = draw(st.integers(0, 1))
    spatial = tuple(draw(st.integers(6, 9)) for _ in range(axes))
    return case(op, "x", {"x": (2, 2, *spatial)}, **attrs)


@PROPERTY(max_examples=50)
@given(pools())
def test_pool(c: Case) -> None:
    check(c, 22, scale=2)


@st.composite
def resizes(draw: st.DrawFn) -> Case:
    mode = draw(st.sampled_from(["nearest", "linear"]))
    axes = draw(st.integers(1, 2))
    spatial = tuple(draw(st.integers(2, 7)) for _ in range(axes))
    coordinates = draw(st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]))
    attrs = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode == "nearest":
        attrs["nearest_mode"] = draw(st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]))
    data: dict[str, Any] = {"x": (2, 2, *spatial)}
    if draw(st.booleans()):
        data["s"] = np.array([2, 2, *[draw(st.integers(1, 12)) for _ in spatial]], np.int64)
        return case("Resize", "x _ _ s", data, **attrs)
    # Quarters are exact in float32, so that rounding to the nearest is, too.
    data["s"] = np.array([1, 1, *[draw(st.integers(2, 12)) / 4 for _ in spatial]], np.float32)
    return case("Resize", "x _ s", data, **attrs)


@PROPERTY(max_examples=50)
@given(resizes())
def test_resize(c: Case) -> None:
    check(c, 19, scale=4)


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    op = draw(st.sampled_from(["Conv", "ConvTranspose"]))
    axes = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(axes)]
    groups = draw(st.sampled_from([1, 2]))
    attrs: dict[str, Any] = {
        "group": groups,
        "strides": [draw(st.integers(1, 3)) for _ in range(axes)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(axes)],
    }
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    attrs |= {"pads": [draw(st.integers(0, 2)) for _ in kernel * 2]} if auto == "NOTSET" else {"auto_pad": auto}
    spatial = tuple(draw(st.integers(5, 8)) for _ in range(axes))
    weight = (4, 4 // groups, *kernel)
    return case(op, "x w b", {"x": (2, 4, *spatial), "w": weight, "b": (4,)}, **attrs)


@PROPERTY(max_examples=40)
@given(convolutions())
def test_convolution(c: Case) -> None:
    check(c, 22, scale=2)
