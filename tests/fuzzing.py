"""Random graphs over all operator records, element types and opsets; hypothesis draws and shrinks a `Fuzz`.

A graph is a chain of parts on a trunk of channels: the blocks of graphs.py, which choose sizes at random, and the cases
of test_op_contract.py, of which there is one for every record: so a new record is drawn without a line here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
from graphs import BLOCKS, CLASSES, NEWER, Builder, Spec, T, removal
from hypothesis import strategies as st
from onnx import TensorProto, helper
from test_op_contract import CASES

from onnxprune import verification
from onnxprune.coupling import Analysis
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.model import load, to_proto
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.runtime import Session

OPSETS = range(13, onnx.defs.onnx_opset_version() + 1)
DTYPES = ("float32", "float16", "float64")
BATCH, SIDE = 2, 6

# What decides by a threshold: in float16 rounding alone decides otherwise at some place of almost every tensor.
_DECIDES = re.compile(
    r"\b(Floor|Ceil|Round|Sign|Shrink|ThresholdedRelu|Equal|Greater\w*|Less\w*|Mod|Arg\w+|TopK|NonZero|Unique|OneHot|"
    r"NonMaxSuppression|Not|And|Or|Xor|Is\w+|Bit\w+|Cast <to = [2-79])\b"
)


def _case_names() -> dict[str, Any]:
    """`Op#2` is the second case of an operator; those that onnxruntime does not have are left out."""
    seen: dict[str, int] = {}
    out = {}
    for case in (c for c in CASES if c.runs):
        seen[case.op] = seen.get(case.op, 0) + 1
        out[f"{case.op}#{seen[case.op]}"] = case
    return out


CASE = _case_names()
PARTS = (*BLOCKS, *CASE)


@dataclass(frozen=True)
class Fuzz:
    """One random graph: the same gives the same bytes.

    Attributes:
        parts: names of blocks and cases, in order. One that onnxruntime does not run in this type or opset gives way
            to a convolution.
        seed: of all weights, of the blocks' own choices and of what is removed.
        opset: of the standard operators.
        dtype: of weights and activations.
        dynamic: whether the batch is symbolic; some parts fix it.
        disguise: whether weights may hide behind Constant, Identity, Transpose or Cast nodes.
    """

    parts: tuple[str, ...]
    seed: int = 0
    opset: int = 17
    dtype: str = "float32"
    dynamic: bool = True
    disguise: bool = False


def fuzzes(max_parts: int = 4) -> st.SearchStrategy[Fuzz]:
    """Random graphs; the simplest are short, float32 and plain."""
    return st.builds(
        Fuzz,
        parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=max_parts).map(tuple),
        seed=st.integers(0, 2**16),
        opset=st.sampled_from(OPSETS),
        dtype=st.sampled_from(DTYPES),
        dynamic=st.sampled_from((True, True, False)),
        disguise=st.booleans(),
    )


class FuzzBuilder(Builder):
    """A Builder for every element type, and for cases."""

    def __init__(self, fuzz: Fuzz) -> None:
        super().__init__(Spec((), fuzz.seed, fuzz.opset, dynamic=fuzz.dynamic, disguise=fuzz.disguise,
                              half=fuzz.dtype == "float16"))  # fmt: skip
        self.dtype = np.dtype(fuzz.dtype)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        batches = {CASE[p].inputs[1:] for p in fuzz.parts if p in CASE and CASE[p].inputs.startswith("@")}
        # Of two parts that fix the batch differently the one with the larger gives way.
        self.batch: int | str = int(min(batches)) if batches else "N" if fuzz.dynamic else BATCH

    @property
    def kind(self) -> int:
        """The element type's number in ONNX."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def conv(self, x: T, out: int, kernel: int = 3, stride: int = 1, group: int = 1, bias: bool = True) -> T:
        """Conv; for float64, of which onnxruntime has none, MatMul with the channels last."""
        if self.dtype != np.float64:
            return super().conv(x, out, kernel, stride, group, bias)
        name, h, w = x.name, x.h, x.w
        if stride > 1:
            name = self.slice(self.slice(name, 0, h, 2, stride), 0, w, 3, stride)
            h, w = (h - 1) // stride + 1, (w - 1) // stride + 1
        y = self.node("MatMul", self.node("Transpose", name, perm=[0, 2, 3, 1]), self.weight(x.c, out))
        if bias:
            y = self.node("Add", y, self.weight(out, spread=0.5))
        return T(self.node("Transpose", y, perm=[0, 3, 1, 2]), out, h, w)

    def act(self, x: T) -> T:
        """One of the activations; onnxruntime has few of them for float64."""
        if self.dtype != np.float64:
            return super().act(x)
        return T(self.node(str(self.rng.choice(["Relu", "Sigmoid", "Tanh"])), x.name), x.c, x.h, x.w)

    def mean(self, x: str) -> str:
        """The mean over space, kept as two axes of 1."""
        if self.opset >= 18:
            return str(self.node("ReduceMean", x, self.const([2, 3])))
        return str(self.node("ReduceMean", x, axes=[2, 3]))

    def sized(self, x: T, side: int) -> T:
        """Cut or padded at the end to a square."""
        name = x.name
        for axis, n in ((2, x.h), (3, x.w)):
            if n > side:
                name = self.slice(name, 0, side, axis)
        more = [max(0, side - x.h), max(0, side - x.w)]
        if any(more):
            name = self.node("Pad", name, self.const([0, 0, 0, 0, 0, 0, *more]))
        return T(name, x.c, side, side)

    def case(self, x: T, name: str, plain: bool) -> T:
        """A case of the contract table: `h` is made of the trunk, `m` gates it or becomes an output.

        Args:
            plain: leave constants that are given as values in float32: scales of Resize stay so in every type.
        """
        case = CASE[name]
        h = self.conv(self.sized(x, 4), 8, kernel=1)
        more = "" if case.inputs.startswith("@") else case.inputs
        graph = onnx.parser.parse_graph(f"g (float[N,8,4,4] h{more}) => (float[M] m) {{ {case.text} }}")
        names = {"": "", "h": h.name}

        def new(old: str) -> str:
            if old not in names:
                names[old] = self.fresh(f"{old}_")
            return names[old]

        for value in graph.input[1:]:
            value.name = new(value.name)
            kind = value.type.tensor_type
            if kind.elem_type == TensorProto.FLOAT:
                kind.elem_type = self.kind
            for dim in kind.shape.dim:
                if dim.dim_param == "N" and isinstance(self.batch, int):
                    dim.dim_value = self.batch
            self.inputs.append(value)
        for key, value in case.consts.items():
            given = not isinstance(value, tuple)
            array = np.asarray(value) if given else self.rng.standard_normal(value).astype(np.float32)
            if array.dtype == np.float32 and not (plain and given):
                array = array.astype(self.dtype)
            names[key] = self.const(array)

        def rename(nodes: Sequence[onnx.NodeProto]) -> None:
            for node in nodes:
                node.input[:] = [new(i) for i in node.input]
                node.output[:] = [new(o) for o in node.output]
                node.name = self.fresh("n_")
                for attribute in node.attribute:
                    if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                        attribute.i = self.kind
                    for body in (*attribute.graphs, attribute.g):
                        rename(body.node)
                        for value in (*body.input, *body.output):
                            value.name = new(value.name)
                            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                                value.type.tensor_type.elem_type = self.kind

        rename(graph.node)
        self.nodes.extend(graph.node)
        m = new("m")
        if not case.reads:
            kind = self.kind if case.kind == "float" else TensorProto.DataType.Value(case.kind.upper())
            dims = [f"{m}_{i}" for i in range(case.rank)]
            m = self.node("Identity", m)
            self.outputs.append(helper.make_tensor_value_info(m, kind, dims))
            return h
        gate = self.mean(self.conv(T(m, case.reads, 1, 1), 8, kernel=1).name)
        return T(self.node("Mul", h.name, self.node("Sigmoid", gate)), 8, 4, 4)


def _with(b: FuzzBuilder, x: T, part: str, variant: int) -> T:
    if part in CASE:
        return b.case(x, part, plain=variant == 1)
    return BLOCKS[part](b, x)


def build(fuzz: Fuzz) -> onnx.ModelProto:
    """The model."""
    return _build(fuzz, [_variant(p, fuzz.opset, fuzz.dtype) for p in fuzz.parts])


def _build(fuzz: Fuzz, variants: Sequence[int | None]) -> onnx.ModelProto:
    b = FuzzBuilder(fuzz)
    x = b.unit(T("x", 3, SIDE, SIDE), b.width(), kernel=1)
    for part, variant in zip(fuzz.parts, variants, strict=True):
        other = part in CASE and CASE[part].inputs.startswith("@") and CASE[part].inputs[1:] != str(b.batch)
        x = b.unit(x, b.width(), kernel=1) if variant is None or other else _with(b, x, part, variant)
    y = b.node("Flatten", b.mean(x.name))
    y = b.node("Gemm", y, b.weight(x.c, CLASSES, spread=1.0), b.weight(CLASSES, spread=0.3))
    graph = helper.make_graph(
        b.nodes,
        "fuzz",
        [helper.make_tensor_value_info("x", b.kind, [b.batch, 3, SIDE, SIDE]), *b.inputs],
        [helper.make_tensor_value_info(y, b.kind, [b.batch, CLASSES]), *b.outputs],
        b.initializers,
    )
    opsets = [helper.make_opsetid("", fuzz.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if fuzz.opset >= 20 else 8)


def runs(proto: onnx.ModelProto) -> bool:
    """Whether the checker and onnxruntime take a model as it is."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnx.checker.check_model(proto)
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # each has exceptions of its own
        return False
    return True


def works(proto: onnx.ModelProto, seed: int = 0) -> bool:
    """Whether onnxruntime runs a model, as it is and optimized, at the batches of a verification.

    Some parts hold for one batch only (RoiAlign makes as many maps as there are boxes), and it has bugs of its own.
    One was found this way: Transpose moved past Pad with `axes` (1.32.0) gives a Gather that is out of bounds.
    """
    try:
        analysis, session = analyze(load(proto)), Session(proto, threads=1)
        for batch in verification.BATCHES:
            session.run(verification.random_feeds(analysis, batch, seed))
    except OnnxPruneError:
        return False
    return True


@functools.cache
def _variant(part: str, opset: int, dtype: str) -> int | None:
    """How a part is written so that onnxruntime runs it in this opset and type; None: not at all."""
    if opset < NEWER.get(part, 0) or (dtype == "float16" and part in CASE and _DECIDES.search(CASE[part].text)):
        return None
    fuzz = Fuzz((part,), 0, opset, dtype)
    tried = range(2) if part in CASE and dtype != "float32" else range(1)
    return next((v for v in tried if runs(_build(fuzz, [v]))), None)


def where_it_runs(part: str, opsets: Sequence[int] = OPSETS) -> bool:
    """Whether any opset takes a part in float32."""
    return any(_variant(part, opset, "float32") is not None for opset in reversed(opsets))


def random_plan(analysis: Analysis, seed: int) -> Plan:
    """Some channels of every group, never all."""
    rng = np.random.default_rng(seed)
    groups = {g.name: Removal(g.channels, removal(g.channels, rng)) for g in analysis.groups}
    return Plan(analysis.source.fingerprint, groups)


class NotTaken(Exception):
    """Onnxruntime fails on the model as it was before anything was done to it."""


def proved(proto: onnx.ModelProto, plan_of: Any) -> Compiled:
    """Prunes and verifies.

    A decision at the edge of rounding may fall either way on one input; a wrong rewrite is wrong on all. So a
    difference counts if three sets of random inputs show one.

    Args:
        plan_of: makes the plan of an analysis.

    Raises:
        NotTaken: onnxruntime's own fault.
        Exception: whatever is wrong.
    """
    model = load(proto)
    analysis = analyze(model)
    result = compile_plan(model, plan_of(analysis), analysis=analysis, check=False)
    pruned = to_proto(result.model)
    onnx.checker.check_model(pruned)
    for seed in (0, 17, 34):
        try:
            with mock.patch.object(verification, "Session", functools.partial(Session, threads=1)):
                verification.verify(analysis, result.plan, result.model, seed=seed)
        except VerificationError:
            if seed == 34:
                raise
        except OnnxPruneError as err:
            if not works(proto):
                raise NotTaken from err
            raise
        else:
            break
    return result
