"""Random graphs over all operator records, element types and opsets; hypothesis draws and shrinks a `Fuzz`.

A graph is a chain of parts on a trunk of channels: the blocks of graphs.py, which choose sizes at random, and the cases
of test_op_contract.py, of which there is one for every record: so new records are drawn as well. They follow
parts of fuzz_sizes.py, which compute with the sizes of an image. Every compiled model is
verified, and then compared with the masked original again at sizes of `SIZES`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
from hypothesis import strategies as st
from networks.residual import drawn_blocks, with_blocks
from onnx import TensorProto, helper
from op_cases import CASES

from onnxprune import verification
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.passes.slice_statistics import masked_reference
from onnxprune.pipeline import Compiled, analyze, compile_plan
from onnxprune.plans import Plan, Removal
from random_graphs.fuzz_sizes import DECIDES, HIDDEN, SIZED, UNKNOWN, fixed
from random_graphs.graphs import BLOCKS, CLASSES, NEWER, Builder, Spec, T, removal

OPSETS = range(13, onnx.defs.onnx_opset_version() + 1)
DTYPES = ("float32", "float16", "float64")
DIMS = ("batch", "image", "unnamed", "fixed")
HEADS = ("plain", "tiny", "columns")
BATCH, SIDE = 2, 6

# Sizes of the batch and of the other dynamic dimensions, in order of appearance. None of a witness is among them.
SIZES = (
    (1, 1, 1, 1, 1), (2, 3, 1, 5, 2), (3, 7, 31, 2, 9), (1, 16, 13, 8, 1), (4, 8, 12, 33, 6), (1, 641, 3, 7, 17),
    (2, 5, 131, 101, 4),
)  # fmt: skip
SCALES = (1.0, 30.0)  # of float inputs; the second one reaches what is hidden behind thresholds
# Relative to the largest magnitude of a channel.
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2}
ROUNDED = 5e-2  # activations are rounded to integers: one on the edge of two may become either

# What decides by a threshold: in float16 rounding alone decides otherwise at some place of almost every tensor.
_DECIDES = re.compile(
    r"\b(Floor|Ceil|Round|Sign|Shrink|ThresholdedRelu|Equal|Greater\w*|Less\w*|Mod|Arg\w+|TopK|NonZero|Unique|OneHot|"
    r"NonMaxSuppression|Not|And|Or|Xor|Is\w+|Bit\w+|Cast <to = [2-79])\b"
)


def _case_names() -> dict[str, Any]:
    """Return the cases by name; `Op#2` is the second case of an operator. Cases without a kernel are omitted."""
    seen: dict[str, int] = {}
    out = {}
    for case in (c for c in CASES if c.runs):
        seen[case.op] = seen.get(case.op, 0) + 1
        out[f"{case.op}#{seen[case.op]}"] = case
    return out


CASE = _case_names()
PARTS = (*BLOCKS, *HIDDEN, *CASE)


@dataclass(frozen=True)
class Fuzz:
    """Recipe of one random graph; equal recipes give equal bytes.

    Attributes:
        parts: Names of blocks and cases, in order. A part that onnxruntime does not run in this type or opset is
            replaced by a convolution.
        seed: Seed of all weights, of the blocks' choices and of the removed channels.
        opset: Opset of the standard operators.
        dtype: Element type of weights and activations.
        dims: "fixed" (all of them), "batch" (symbolic; some parts fix it), "image" (height and width symbolic, too) or
            "unnamed" (the same without names).
        disguise: Allow weights behind Constant, Identity, Transpose or Cast nodes.
        sized: Names of parts of fuzz_sizes.py before the others.
        head: "plain", "tiny" (outputs near zero behind a Sigmoid) or "columns" (outputs of very different magnitude).
    """

    parts: tuple[str, ...]
    seed: int = 0
    opset: int = 17
    dtype: str = "float32"
    dims: str = "batch"
    disguise: bool = False
    sized: tuple[str, ...] = ()
    head: str = "plain"

    @property
    def dynamic(self) -> bool:
        """True if the batch is symbolic."""
        return self.dims != "fixed"


def fuzzes(max_parts: int = 4) -> st.SearchStrategy[Fuzz]:
    """Random graphs; the simplest are short, float32 and plain."""
    return st.builds(
        Fuzz,
        parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=max_parts).map(tuple),
        seed=st.integers(0, 2**16),
        opset=st.sampled_from(OPSETS),
        dtype=st.sampled_from(DTYPES),
        dims=st.sampled_from(DIMS),
        disguise=st.booleans(),
        sized=st.one_of(st.just(()), st.lists(st.sampled_from(tuple(SIZED)), min_size=1, max_size=3).map(tuple)),
        head=st.sampled_from(HEADS),
    )


class FuzzBuilder(Builder):
    """A Builder for every element type, and for cases."""

    def __init__(self, fuzz: Fuzz) -> None:
        self.fuzz = fuzz
        super().__init__(Spec((), fuzz.seed, fuzz.opset, dynamic=fuzz.dynamic, disguise=fuzz.disguise,
                              half=fuzz.dtype == "float16"))  # fmt: skip
        self.dtype = np.dtype(fuzz.dtype)
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        batches = {CASE[p].inputs[1:] for p in fuzz.parts if p in CASE and CASE[p].inputs.startswith("@")}
        # Of two parts that fix the batch differently the one with the larger gives way.
        self.batch: int | str | None = int(min(batches)) if batches else "N" if fuzz.dynamic else BATCH
        if fuzz.dims == "unnamed" and not batches:
            self.batch = None

    @property
    def kind(self) -> int:
        """The element type's number in ONNX."""
        return int(helper.np_dtype_to_tensor_dtype(self.dtype))

    def input(self, name: str, kind: int, dims: Sequence[int | str | None], shared: bool = False) -> str:
        """A further input of the model, made once; its named dimensions are as `dims` of the graph says.

        Args:
            shared: Named dimensions are the same in several inputs, so that none may be missing.
        """
        shape: list[int | str | None] = list(dims)
        if self.fuzz.dims == "unnamed" and not shared:
            shape = [None if isinstance(n, str) else n for n in shape]
        elif self.fuzz.dims not in ("image", "unnamed"):
            shape = [n if i == 0 or not isinstance(n, str) else 4 + i for i, n in enumerate(shape)]
        if name not in {i.name for i in self.inputs}:
            self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def conv(self, x: T, out: int, kernel: int = 3, stride: int = 1, group: int = 1, bias: bool = True) -> T:
        """Conv; for float64, of which onnxruntime has none, MatMul with the channels last."""
        if self.dtype != np.float64:
            y = super().conv(x, out, kernel, stride, group, bias)
            return T(y.name, out, UNKNOWN, UNKNOWN) if x.h == UNKNOWN else y
        name, h, w = x.name, x.h, x.w
        if stride > 1:
            name = self.slice(self.slice(name, 0, 2**31 - 1, 2, stride), 0, 2**31 - 1, 3, stride)
            h, w = ((n - 1) // stride + 1 if n != UNKNOWN else n for n in (h, w))
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


def _with(b: FuzzBuilder, x: T, part: str, variant: int | None) -> T:
    other = part in CASE and CASE[part].inputs.startswith("@") and CASE[part].inputs[1:] != str(b.batch)
    if variant is None or other:
        return b.unit(x, b.width(), kernel=1)
    if part in CASE:
        return b.case(x, part, plain=variant == 1)
    return {**BLOCKS, **HIDDEN, **SIZED}[part](b, x)


def build(fuzz: Fuzz) -> onnx.ModelProto:
    """The model."""
    return _build(fuzz, {p: _variant(p, fuzz.opset, fuzz.dtype) for p in (*fuzz.sized, *fuzz.parts)})


def _build(fuzz: Fuzz, variants: Mapping[str, int | None]) -> onnx.ModelProto:
    b = FuzzBuilder(fuzz)
    side = UNKNOWN if fuzz.dims in ("image", "unnamed") else SIDE
    x = b.unit(T("x", 3, side, side), b.width(), kernel=1)
    for part in fuzz.sized:
        x = _with(b, x, part, variants[part])
    if fuzz.sized:
        seen = b.conv(x, 2, kernel=1).name
        b.outputs.append(helper.make_tensor_value_info(seen, b.kind, [b.batch, 2, "seen_h", "seen_w"]))
    if fuzz.sized or side == UNKNOWN:
        x = fixed(b, x, SIDE)
    for part in fuzz.parts:
        x = _with(b, x, part, variants[part])
    dims = {"image": ("H", "W"), "unnamed": (None, None)}.get(fuzz.dims, (SIDE, SIDE))
    y = _head(b, x)
    graph = helper.make_graph(
        b.nodes,
        "fuzz",
        [helper.make_tensor_value_info("x", b.kind, [b.batch, 3, *dims]), *b.inputs],
        [helper.make_tensor_value_info(y, b.kind, [b.batch, CLASSES]), *b.outputs],
        b.initializers,
    )
    opsets = [helper.make_opsetid("", fuzz.opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10 if fuzz.opset >= 20 else 8)


def _head(b: FuzzBuilder, x: T) -> str:
    w = b.rng.standard_normal((x.c, CLASSES))
    if b.fuzz.head == "columns":
        w *= 10.0 ** np.linspace(-5, 3, CLASSES) if b.dtype != np.float16 else 10.0 ** np.linspace(-2, 1, CLASSES)
        bias = b.const(np.zeros(CLASSES, b.dtype))
    else:
        bias = b.weight(CLASSES, spread=0.3)
    y = b.node("Gemm", b.node("Flatten", b.mean(x.name)), b.weight(x.c, CLASSES, values=w), bias)
    if b.fuzz.head == "tiny":
        y = b.node("Sigmoid", b.node("Sub", y, b.const(np.full(1, 8, b.dtype))))
    return str(y)


def runs(proto: onnx.ModelProto) -> bool:
    """Return True if the checker and onnxruntime accept a model."""
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
    """Return True if onnxruntime runs a model, with and without optimizations, at the batches of a verification.

    Some parts are valid for one batch only (RoiAlign makes one map for each box), and onnxruntime has bugs. One was
    found this way: Transpose moved past Pad with `axes` (1.32.0) gives a Gather that is out of bounds.
    """
    try:
        analysis, session = analyze(load(proto)), Session(proto, threads=1)
        for batch in (1, 5):
            session.run(random_feeds(analysis, batch, seed))
    except OnnxPruneError:
        return False
    return True


@functools.cache
def _variant(part: str, opset: int, dtype: str) -> int | None:
    """Return the index of the variant of a part that onnxruntime runs in this opset and type; None if there is none."""
    decides = part in DECIDES or (part in CASE and _DECIDES.search(CASE[part].text))
    if opset < NEWER.get(part, 0) or (dtype == "float16" and decides):
        return None
    if opset >= 21 and "QLinearMatMul" in part:  # not exact on every CPU: see Session
        return None
    fuzz = Fuzz((), 0, opset, dtype, "image", sized=(part,)) if part in SIZED else Fuzz((part,), 0, opset, dtype)
    tried = range(2) if part in CASE and dtype != "float32" else range(1)
    return next((v for v in tried if runs(_build(fuzz, {part: v}))), None)


def where_it_runs(part: str, opsets: Sequence[int] = OPSETS) -> bool:
    """Return True if a part runs in float32 in any opset."""
    return any(_variant(part, opset, "float32") is not None for opset in reversed(opsets))


def random_plan(analysis: Analysis, seed: int) -> Plan:
    """Return some channels of every group, never all, and some blocks."""
    rng = np.random.default_rng(seed)
    groups = {g.name: Removal(g.channels, removal(g.channels, rng)) for g in analysis.groups}
    return with_blocks(analysis, Plan(analysis.source.fingerprint, groups), drawn_blocks(analysis, rng))


def without_branches(masked: Model, analysis: Analysis, plan: Plan) -> Model:
    """Return a masked model in which the branches of removed blocks add zeros; appended channels are masked already."""
    graph = masked.graph
    writers = {t.name: n for n in graph.nodes for t in n.outputs}
    for i, gone in enumerate(plan.blocks.values()):
        node = writers[gone.output]
        if node.op == "Concat":
            continue
        branch = node.inputs[gone.operand]
        dtype = np.dtype(branch.dtype or analysis.witness.dtypes[branch.name])
        select, zero = gs.Constant(f"select_{i}", np.zeros(1, bool)), gs.Constant(f"zero_{i}", np.zeros(1, dtype))
        out = gs.Variable(f"selected_{i}", dtype)
        node.inputs[gone.operand] = out
        graph.nodes.insert(
            graph.nodes.index(node), gs.Node("Where", f"where_{i}", {}, [select, branch, zero], [out])
        )  # fmt: skip
    return masked


class NotTaken(Exception):
    """Failure of onnxruntime on the original model."""


class Difference(VerificationError):
    """Difference of a compiled model from the masked original at sizes that its verification may not have run."""


def feeds_at(model: Model, sizes: Sequence[int], scale: float, seed: int) -> dict[str, Array]:
    """Return random inputs: floats of a scale, any bytes, booleans, indices valid in every table.

    Args:
        sizes: Sizes of the batch and of the other dynamic dimensions in order of appearance, by name.
    """
    rng = np.random.default_rng(seed)
    numbers: dict[Any, int] = {}
    feeds: dict[str, Array] = {}
    for t in model.graph.inputs:
        shape = []
        for axis, n in enumerate(t.shape or ()):
            if not (isinstance(n, int) and n > 0):
                key = "batch" if axis == 0 else n or (t.name, axis)
                if key not in numbers:
                    count = len(numbers.keys() - {"batch"})
                    numbers[key] = sizes[0] if axis == 0 else sizes[1 + count % (len(sizes) - 1)]
                n = numbers[key]
            shape.append(int(n))
        kind = np.dtype(t.dtype)
        if kind.kind == "f":
            feeds[t.name] = (scale * rng.standard_normal(shape)).astype(kind)
        else:
            feeds[t.name] = rng.integers(0, 256 if kind == np.uint8 else 2, shape).astype(kind)
    return feeds


def compared(analysis: Analysis, plan: Plan, pruned: Model, seed: int = 0) -> int:
    """Compare a compiled model with the masked original at all `SIZES` and `SCALES`, channel by channel.

    A difference counts if inputs changed in their last bits do not move the masked original nearly as far. Sizes at
    which the original itself fails are skipped, as are outputs that large inputs make infinite, and runs in which a
    removed channel is not finite, because zero times it is not zero.

    Returns:
        Number of sizes at which both ran.

    Raises:
        Difference: they differ, or only one of them runs.
    """
    masked = without_branches(masked_reference(analysis, plan), analysis, plan)
    try:
        sessions = [Session(masked, threads=1, exact_integers=True)]
    except OnnxPruneError:  # masks on integers take operators that onnxruntime may lack in this opset
        return 0
    sessions.append(Session(pruned, threads=1, exact_integers=True))
    dynamic = any(not (isinstance(n, int) and n > 0) for t in masked.graph.inputs for n in t.shape or ())
    limit = _limit(analysis)
    ran = 0
    for sizes in SIZES if dynamic else SIZES[:1]:
        for scale in SCALES:
            feeds = feeds_at(analysis.source, sizes, scale, seed)
            results = [_results(s, feeds) for s in sessions]
            shapes = {k: list(v.shape) for k, v in feeds.items()}
            if None in [r if r is None else 0 for r in results]:
                if _results(Session(analysis.source, threads=1), feeds) is None:
                    continue
                which = "masked original" if results[0] is None else "pruned model"
                raise Difference(f"only the {which} fails to run on inputs {shapes}, scale {scale:g}")
            wanted, got = results
            assert wanted is not None
            assert got is not None
            ran += 1
            again = None
            for i, t in enumerate(masked.graph.outputs):
                if scale > 1 and wanted[i].dtype.kind == "f" and not np.isfinite(wanted[i]).all():
                    continue
                # Near zero, kernels for Sigmoid (vector, scalar) differ by 0.5 epsilons, with AVX2 by 1.2.
                steps = 1.5 if t.inputs and t.inputs[0].op == "Sigmoid" else 0.0
                worst = _gap(got[i], wanted[i], limit, steps)
                if worst <= 1:
                    continue
                again = again or _results(sessions[0], _nudged(feeds)) or wanted
                moved = 20 * _gap(again[i], wanted[i], limit, steps)
                if worst > moved and not _masks_infinity(masked, analysis, feeds):
                    where = f"on inputs {shapes}, scale {scale:g}"
                    raise Difference(f"output {t.name!r} is {worst:.2g} tolerances off {where}")
    return ran


def _masks_infinity(masked: Model, analysis: Analysis, feeds: Mapping[str, Array]) -> bool:
    """Return True if a mask of the masked original makes NaN, from infinity or NaN in a removed channel."""
    proto = to_proto(masked)
    known = {o for n in to_proto(analysis.source).graph.node for o in n.output}
    masks = [n.output[0] for n in proto.graph.node if n.op_type == "Mul" and n.output[0] not in known]
    del proto.graph.output[:]
    for name in masks:
        proto.graph.output.add(name=name)
    results = _results(Session(proto, threads=1), feeds) if masks else []
    return any(not np.isfinite(v).all() for v in results or ())


def _limit(analysis: Analysis) -> Mapping[str, float]:
    rounding = ("DynamicQuantize", "QLinear", "QGemm", "QAttention", "QuantizeLinear")
    rounds = any(str(n.op).startswith(rounding) for n in analysis.model.graph.nodes)
    return {k: max(v, ROUNDED) for k, v in TOLERANCE.items()} if rounds else TOLERANCE


def _results(session: Session, feeds: Mapping[str, Array]) -> list[Array] | None:
    try:
        return session.run(feeds)
    except OnnxPruneError:
        return None


def _nudged(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Return the inputs with every float changed in its last bits."""
    rng = np.random.default_rng(0)
    return {
        k: (v * (1 + 8 * np.finfo(v.dtype).eps * rng.standard_normal(v.shape))).astype(v.dtype)
        if v.dtype.kind == "f"
        else v
        for k, v in feeds.items()
    }


def _gap(actual: Array, expected: Array, limit: Mapping[str, float], steps: float = 0) -> float:
    """Return the largest difference over the largest magnitude of the same channel (axis 1), in tolerances.

    Args:
        steps: Tolerance in epsilons, independent of the magnitude.
    """
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    if expected.dtype.kind != "f" or not expected.size:
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    axes = tuple(i for i in range(a.ndim) if i != 1)
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    gap, size = (np.abs(v).max(axis=axes) for v in (a - b, b))
    info = np.finfo(expected.dtype)
    allowed = np.maximum(limit[expected.dtype.name] * size, max(steps * float(info.eps), float(info.tiny)))
    return float((gap / allowed).max())


def proved(proto: onnx.ModelProto, plan_of: Any) -> Compiled:
    """Prune, verify, and compare at further sizes.

    A difference counts if three sets of random inputs show one: rounding may flip a decision on one input, while a
    wrong rewrite is wrong on all.

    Args:
        plan_of: Function from an analysis to a plan.

    Raises:
        NotTaken: Onnxruntime fails on the original.
        Exception: Any other failure.
    """
    model = load(proto)
    analysis = analyze(model)
    result = compile_plan(model, plan_of(analysis), analysis=analysis, check=False)
    pruned = to_proto(result.model)
    onnx.checker.check_model(pruned)
    for check in (_verified, compared):
        for seed in (0, 17, 34):
            try:
                check(analysis, result.plan, result.model, seed=seed)
            except VerificationError as err:
                if seed == 34 and not works(proto):
                    raise NotTaken from err
                if seed == 34:
                    raise
            except OnnxPruneError as err:
                if not works(proto):
                    raise NotTaken from err
                raise
            else:
                break
    return result


def _verified(analysis: Analysis, plan: Plan, pruned: Model, seed: int) -> None:
    """Verify on one thread."""
    verification.verify(analysis, plan, pruned, seed=seed, threads=1)
