"""Small models that a proof must accept or reject: one for each way a comparison of outputs goes wrong.

A case holds an original and, perhaps, an edit of the pruned model. Without an edit the proof must accept what the
compiler makes, and that must equal the masked original on the case's own inputs (`agrees`). With an edit it must
reject. `compiled` prunes a case; `edited` applies its edit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.analysis.coupling import Analysis
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import Pipeline, StripChannels
from onnxprune.passes.insert_masks import InsertMasks
from onnxprune.pipeline import analyze
from onnxprune.plans import Plan, Removal

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Edit = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class ProofCase:
    """A model, an edit of its pruned version, and the verdict that the proof must reach.

    Attributes:
        name: unique.
        original: the model before pruning.
        mutate: edits the pruned ModelProto in place; None: the compiler's own result.
        expectation: verdict of the proof.
        feeds: inputs on which a wrong model differs from the masked original; sizes and values are chosen for that.
        keep: share of the channels of every group that the plan keeps.
    """

    name: str
    original: onnx.ModelProto
    mutate: Edit | None
    expectation: Literal["accept", "reject"]
    feeds: tuple[Feeds, ...] = field(default=(), repr=False)
    keep: float = 0.5


def halved(analysis: Analysis, keep: float = 0.5) -> Plan:
    """Remove evenly spaced channels of every group; at least one channel remains."""
    groups = {}
    for g in analysis.groups:
        count = min(g.channels - 1, round(g.channels * (1 - keep)))
        removed = tuple(int(i) for i in np.linspace(0, g.channels - 1, count).round()) if count else ()
        groups[g.name] = Removal(g.channels, tuple(sorted(set(removed))))
    return Plan(analysis.source.fingerprint, groups)


def compiled(case: ProofCase) -> tuple[Analysis, Plan, Model]:
    """Return the analysis, the plan and the pruned model, unproved."""
    analysis = analyze(load(case.original))
    plan = halved(analysis, case.keep)
    return analysis, plan, Pipeline([StripChannels(plan, analysis)])(analysis.model)


def edited(case: ProofCase, pruned: Model) -> Model:
    """Return the pruned model with the case's edit applied."""
    if case.mutate is None:
        return pruned
    proto = to_proto(pruned)
    case.mutate(proto)
    return load(proto)


def agrees(case: ProofCase, analysis: Analysis, plan: Plan, pruned: Model, tolerance: float = 1e-3) -> bool:
    """Return True if a model equals the masked original on the case's feeds, shapes and non-finite entries included."""
    masked = Pipeline([InsertMasks(plan, analysis)])(analysis.source)
    sessions = [Session(m, threads=1, optimize=False) for m in (masked, pruned)]
    for feeds in case.feeds:
        wanted, got = (s.run(feeds) for s in sessions)
        for a, b in zip(got, wanted, strict=True):
            if a.shape != b.shape or a.dtype != b.dtype:
                return False
            axes = tuple(i for i in range(b.ndim) if i != 1)  # a scale for every channel
            wide = np.abs(np.nan_to_num(b.astype(np.float64)))
            scale = wide.max(axis=axes, keepdims=True, initial=0) if b.ndim > 1 else wide
            if not np.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True):
                return False
    return True


# ------------------------------------------------------------------------------------------------------- small parts


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng([16, *key])


def made(text: str, weights: Mapping[str, Array | tuple[int, ...]], *, opset: int = 17) -> onnx.ModelProto:
    """Parse a graph and add its weights: arrays as they are, shapes filled with random values."""
    imports = f'"" : {opset}, "com.microsoft" : 1'
    proto = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> {text}")
    for i, (name, value) in enumerate(weights.items()):
        if isinstance(value, tuple):
            fan = int(np.prod(value[1:])) or 1
            value = (_rng(i, *value).standard_normal(value) * fan**-0.5).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    onnx.checker.check_model(proto)
    return proto


CONV = {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (6, 16, 1, 1)}
BODY = "a = Conv <pads = [1, 1, 1, 1]> (%s, w0, b0) r = Relu (a) c = Conv (r, w1)"


def images(*shapes: tuple[int, ...], scale: float = 1.0, low: float | None = None) -> tuple[Feeds, ...]:
    """Float inputs `x` of these shapes: normal, or uniform between `low` and `scale`."""
    out = []
    for i, shape in enumerate(shapes):
        rng = _rng(i, 99)
        values = rng.standard_normal(shape) * scale if low is None else rng.uniform(low, scale, shape)
        out.append({"x": values.astype(np.float32)})
    return tuple(out)


def ints(*values: int) -> Array:
    """An int64 vector."""
    return np.array(values, np.int64)


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Return an initializer by name."""
    return next(t for t in proto.graph.initializer if t.name == name)


def scaled_weight(name: str, factor: float = 2.0, index: Any = ...) -> Edit:
    """Multiply entries of an initializer."""

    def edit(proto: onnx.ModelProto) -> None:
        tensor = initializer(proto, name)
        values = numpy_helper.to_array(tensor).copy()
        values[index] *= factor
        tensor.CopyFrom(numpy_helper.from_array(values, name))

    return edit


def constant_in_place_of(name: str, value: Array) -> Edit:
    """Replace a computed tensor by a constant: every node that reads it reads the constant."""

    def edit(proto: onnx.ModelProto) -> None:
        _read_instead(proto, name, f"{name}_folded")
        proto.graph.initializer.append(numpy_helper.from_array(value, f"{name}_folded"))

    return edit


def _read_instead(proto: onnx.ModelProto, old: str, new: str) -> None:
    found = False
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
                found = True
    assert found, f"no node reads {old!r}; the pruned graph has it folded"


# ------------------------------------------------------------------------------------------------------- sizes


def pad_to_seven() -> Iterator[ProofCase]:
    """Height padded to a multiple of 7: every size that 224 divides into needs no padding."""
    original = made(
        f"""g (float[N,3,H,16] x) => (float[N,6,P,16] c) {{
        s = Shape (x) h = Gather <axis = 0> (s, two) rest = Mod (h, seven) gap = Sub (seven, rest)
        more = Mod (gap, seven) pads = Concat <axis = 0> (zeros, more, zero)
        p = Pad (x, pads) {BODY % "p"} }}""",
        {**CONV, "two": ints(2), "seven": ints(7), "zeros": ints(0, 0, 0, 0, 0, 0), "zero": ints(0)},
    )
    feeds = images((1, 3, 14, 16), (2, 3, 16, 16), (3, 3, 20, 16))
    yield ProofCase("pad_to_seven", original, None, "accept", feeds)

    def unpadded(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            if node.op_type == "Conv" and node.output[0] == "a":
                node.input[0] = "x"

    yield ProofCase("pad_to_seven_folded", original, unpadded, "reject", feeds)


def parity_of_batch() -> Iterator[ProofCase]:
    """Outputs scaled by 1 + batch % 2: tests with odd batches alone see a constant."""
    original = made(
        f"""g (float[N,3,8,8] x) => (float[N,6,8,8] y) {{
        {BODY % "x"} s = Shape (x) n = Gather <axis = 0> (s, zero) odd = Mod (n, two)
        f = Cast <to = 1> (odd) k = Add (f, one) y = Mul (c, k) }}""",
        {**CONV, "zero": np.int64(0), "two": np.int64(2), "one": np.float32(1)},
    )
    feeds = images((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8), (5, 3, 8, 8))
    yield ProofCase("parity_of_batch", original, None, "accept", feeds)

    def folded(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.output[0] == "y")
        node.input[1] = "k_folded"
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(2), "k_folded"))

    yield ProofCase("parity_of_batch_folded", original, folded, "reject", feeds)


def bounded_side() -> Iterator[ProofCase]:
    """Outputs scaled by Min or Max of a side and a number that all tested sides exceed."""
    for op, bound, sides in (("Min", 24, (8, 23, 24, 40)), ("Max", 4096, (8, 4096, 5000))):
        original = made(
            f"""g (float[N,3,H,4] x) => (float[N,6,H,4] y) {{
            {BODY % "x"} s = Shape (x) h = Gather <axis = 0> (s, two) m = {op} (h, bound)
            k = Cast <to = 1> (m) y = Mul (c, k) }}""",
            {**CONV, "two": np.int64(2), "bound": np.int64(bound)},
        )
        feeds = images(*((1 + i % 2, 3, side, 4) for i, side in enumerate(sides)))
        name = f"{op.lower()}_of_side"
        yield ProofCase(name, original, None, "accept", feeds)

        def folded(proto: onnx.ModelProto, value: int = bound) -> None:
            node = next(n for n in proto.graph.node if n.output[0] == "y")
            node.input[1] = "k_folded"
            proto.graph.initializer.append(numpy_helper.from_array(np.float32(value), "k_folded"))

        yield ProofCase(f"{name}_folded", original, folded, "reject", feeds)


def branch_on_size() -> Iterator[ProofCase]:
    """If on a side: small images are doubled, large ones are not."""
    original = made(
        f"""g (float[N,3,H,8] x) => (float[N,6,H,8] y) {{
        {BODY % "x"} s = Shape (x) h = Gather <axis = 0> (s, two) large = Greater (h, bound)
        y = If (large) <
          then_branch = t () => (float[N,6,H,8] ty) {{ ty = Relu (c) }},
          else_branch = e () => (float[N,6,H,8] ey) {{ ey = Add (c, c) }}> }}""",
        {**CONV, "two": np.int64(2), "bound": np.int64(16)},
    )
    feeds = images((1, 3, 8, 8), (2, 3, 16, 8), (2, 3, 17, 8), (1, 3, 40, 8))
    yield ProofCase("branch_on_size", original, None, "accept", feeds)

    def taken(proto: onnx.ModelProto) -> None:
        nodes = proto.graph.node
        at = next(i for i, n in enumerate(nodes) if n.output[0] == "y")
        nodes[at].CopyFrom(helper.make_node("Relu", ["c"], ["y"], name="taken"))

    yield ProofCase("branch_on_size_folded", original, taken, "reject", feeds)


LAYERS = """
    then_branch = t () => (float[N,6,H,8] ty) {
      td = Conv <pads = [1, 1, 1, 1]> (r, w2) te = Relu (td) ty = Conv (te, w3) },
    else_branch = e () => (float[N,6,H,8] ey) { ey = If (%s) <
      then_branch = u () => (float[N,6,H,8] uy) { ud = Conv (r, w4) uy = Relu (ud) },
      else_branch = v () => (float[N,6,H,8] vy) { vd = Neg (r) vy = Conv (vd, w1) }> }"""
INNER = {"w2": (12, 16, 3, 3), "w3": (6, 12, 1, 1), "w4": (6, 16, 1, 1)}


def branches_with_layers() -> Iterator[ProofCase]:
    """Nested branches with layers, by the input's own number, by a flag, and by the sign of a mean."""
    start = BODY.removesuffix("c = Conv (r, w1)") % "x"
    for name, more, conditions in (
        ("rate", ", int64 rate", "f = Equal (rate, high) o = Greater (rate, low)"),
        ("flag", ", bool f, bool o", ""),
        ("mean", "", "m = ReduceMean <keepdims = 0> (x) f = Greater (m, zero) i = Neg (m) o = Greater (i, zero)"),
    ):
        numbers = {"high": np.int64(16000), "low": np.int64(8000), "zero": np.float32(0)}
        text = (
            f"g (float[N,3,H,8] x{more}) => (float[N,6,H,8] y) {{ {start} {conditions} y = If (f) <{LAYERS % 'o'}> }}"
        )
        used = {n: v for n, v in numbers.items() if f" {n})" in text}
        original = made(text, {**CONV, **INNER, **used})
        feeds: list[Feeds] = []
        for i, feed in enumerate(images((1, 3, 8, 8), (2, 3, 5, 8), (2, 3, 9, 8))):
            extra: dict[str, Any] = {"rate": np.array((16000, 16001, 7)[i])} if name == "rate" else {}
            extra |= {"f": np.array(i == 0), "o": np.array(i == 1)} if name == "flag" else {}
            feeds.append({**feed, **extra})
        given = tuple(feeds) if name != "mean" else ()
        yield ProofCase(f"branches_by_{name}", original, None, "accept", given)
        for weight in ("w2", "w3", "w4", "w1"):
            wrong = scaled_weight(weight, -1.0, 0)
            yield ProofCase(f"branches_by_{name}_{weight}", original, wrong, "reject", given)
        for op, at in (("Relu", "te"), ("Neg", "vd")):

            def other(proto: onnx.ModelProto, op: str = op, at: str = at) -> None:
                node = next(n for n in _nodes(proto.graph) if at in n.output)
                assert node.op_type == op
                node.op_type = "Abs"

            yield ProofCase(f"branches_by_{name}_{at}", original, other, "reject", given)


def loop_with_layers() -> Iterator[ProofCase]:
    """Two states and a result of every iteration; the second state decides when to stop."""
    start = BODY.removesuffix("c = Conv (r, w1)") % "x"
    original = made(
        f"""g (float[N,3,H,8] x, int64 count) => (float[N,6,H,8] y, float[T,N,6,H,8] each) {{
        {start} k = Mul (r, half) trips = Min (count, four) i, j, each = Loop (trips, go, r, k) <body = body
          (int64 t, bool c, float[N,16,H,8] u, float[N,16,H,8] v) =>
          (bool d, float[N,16,H,8] un, float[N,16,H,8] vn, float[N,6,H,8] e) {{
            ud = Conv <pads = [1, 1, 1, 1]> (u, w2) ue = Relu (ud) uf = Conv (ue, w3)
            un = Add (uf, v) vn = Tanh (un) e = Conv (vn, w1)
            m = ReduceMax <keepdims = 0> (vn) d = Less (m, limit) }}>
        z = Add (i, j) y = Conv (z, w4) }}""",
        {**CONV, "w2": (12, 16, 3, 3), "w3": (16, 12, 1, 1), "w4": (6, 16, 1, 1), "half": np.float32(0.5),
         "go": np.array(True), "limit": np.float32(2), "four": np.int64(4)},
    )  # fmt: skip
    feeds = tuple({**f, "count": np.array(i + 1)} for i, f in enumerate(images((1, 3, 8, 8), (2, 3, 5, 8))))
    yield ProofCase("loop", original, None, "accept", feeds)
    for weight in ("w2", "w3", "w1", "w4"):
        yield ProofCase(f"loop_{weight}", original, scaled_weight(weight, -1.0, 0), "reject", feeds)

    def swapped_states(proto: onnx.ModelProto) -> None:
        body = next(n for n in proto.graph.node if n.op_type == "Loop").attribute[0].g
        one, two = body.output[1].name, body.output[2].name
        body.output[1].name, body.output[2].name = two, one

    def swapped_initial(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.op_type == "Loop")
        node.input[2], node.input[3] = node.input[3], node.input[2]

    def without_condition(proto: onnx.ModelProto) -> None:
        body = next(n for n in proto.graph.node if n.op_type == "Loop").attribute[0].g
        last = next(n for n in body.node if n.op_type == "Less")
        last.op_type = "Greater"

    def other_activation(proto: onnx.ModelProto) -> None:
        next(n for n in _nodes(proto.graph) if "ue" in n.output).op_type = "Abs"

    for edit in (swapped_states, swapped_initial, without_condition, other_activation):
        yield ProofCase(f"loop_{edit.__name__}", original, edit, "reject", feeds)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [m for n in graph.node for a in n.attribute if a.HasField("g") for m in _nodes(a.g)]
    return [*graph.node, *inner]


def quotient_of_lengths() -> Iterator[ProofCase]:
    """Outputs scaled by 1 + L // M of two inputs' lengths: 0 wherever L < M."""
    original = made(
        """g (float[N,L,8] x, float[N,M,8] z) => (float[N,L,6] y) {
        a = MatMul (x, w0) r = Relu (a) c = MatMul (r, w1) sx = Shape (x) sz = Shape (z)
        l = Gather <axis = 0> (sx, one) m = Gather <axis = 0> (sz, one) q = Div (l, m) f = Cast <to = 1> (q)
        k = Add (f, unit) t = Mul (c, k) d = ReduceMean <axes = [1, 2], keepdims = 1> (z) y = Add (t, d) }""",
        {"w0": (8, 16), "w1": (16, 6), "one": np.int64(1), "unit": np.float32(1)},
    )
    feeds = tuple(
        {"x": _rng(n, m).standard_normal((2, n, 8)).astype(np.float32), "z": np.ones((2, m, 8), np.float32)}
        for n, m in ((5, 7), (7, 7), (14, 7), (64, 3))
    )
    yield ProofCase("quotient_of_lengths", original, None, "accept", feeds)

    def folded(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.output[0] == "t")
        node.input[1] = "k_folded"
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(1), "k_folded"))

    yield ProofCase("quotient_of_lengths_folded", original, folded, "reject", feeds)


def dynamic_batch_reshape() -> Iterator[ProofCase]:
    """Reshape by a target that holds the batch; the edit writes one batch into it."""
    original = made(
        f"""g (float[N,3,4,4] x) => (float[N,5] y) {{
        {BODY % "x"} s = Shape (c) n = Slice (s, first, second) target = Concat <axis = 0> (n, rest)
        flat = Reshape (c, target) y = Gemm (flat, w2) }}""",
        {**CONV, "w2": (96, 5), "first": ints(0), "second": ints(1), "rest": ints(-1)},
    )
    feeds = images((1, 3, 4, 4), (2, 3, 4, 4), (3, 3, 4, 4))
    yield ProofCase("dynamic_reshape", original, None, "accept", feeds)

    def frozen(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.output[0] == "flat")
        node.input[1] = "target_folded"
        proto.graph.initializer.append(numpy_helper.from_array(ints(1, -1), "target_folded"))

    yield ProofCase("dynamic_reshape_frozen", original, frozen, "reject", feeds)


def windows() -> Iterator[ProofCase]:
    """Pad, Slice, Split, Expand and Resize by constants: each edit keeps all shapes."""
    original = made(
        """g (float[N,3,10,10] x) => (float[N,6,18,18] y, float[N,6,9,9] z) {
        p = Pad (x, pads) a = Conv (p, w0, b0) r = Relu (a) s = Slice (r, start, end, axes)
        u, v = Split <axis = 1> (s, parts) c = Conv (u, w1) d = Conv (v, w2)
        y = Resize <mode = "nearest"> (c, , , sizes)
        m = GlobalAveragePool (d) shape = Shape (c) e = Expand (m, shape) z = Add (c, e) }""",
        {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (6, 8, 1, 1), "w2": (6, 8, 1, 1), "pads": ints(0, 0, 0, 2, 0, 0, 2, 0),
         "start": ints(1, 0), "end": ints(10, 9), "axes": ints(2, 3), "parts": ints(8, 8),
         "sizes": ints(1, 6, 18, 18)},
    )  # fmt: skip
    for dim in (original.graph.input[0], *original.graph.output):
        dim.type.tensor_type.shape.dim[0].dim_value = 1  # Resize has a size for it
    feeds = images((1, 3, 10, 10))
    yield ProofCase("windows", original, None, "accept", feeds)

    def edit(name: str, value: Array) -> Edit:
        def change(proto: onnx.ModelProto) -> None:
            initializer(proto, name).CopyFrom(numpy_helper.from_array(value, name))

        return change

    yield ProofCase("pad_moved", original, edit("pads", ints(0, 0, 2, 2, 0, 0, 0, 0)), "reject", feeds)
    yield ProofCase("slice_moved", original, edit("axes", ints(3, 2)), "reject", feeds)

    def linear(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.op_type == "Resize")
        node.attribute[0].s = b"linear"

    yield ProofCase("resize_mode", original, linear, "reject", feeds)


# ------------------------------------------------------------------------------------------------------- values


def bool_inputs() -> Iterator[ProofCase]:
    """`Where` on a bool input: the second side is never used if every bool is true."""
    original = made(
        """g (float[N,3,8,8] x, bool[N,1,1,1] m) => (float[N,6,8,8] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a) c = Conv (r, w1) d = Conv (r, w2)
        y = Where (m, c, d) }""",
        {**CONV, "w2": (6, 16, 1, 1)},
    )
    feeds = tuple(
        {**f, "m": np.array([True, False] * len(f["x"]))[: len(f["x"])].reshape(-1, 1, 1, 1) ^ bool(i)}
        for i, f in enumerate(images((1, 3, 8, 8), (1, 3, 8, 8), (3, 3, 8, 8)))
    )
    yield ProofCase("bool_where", original, None, "accept", feeds)
    yield ProofCase("bool_where_other_side", original, scaled_weight("w2"), "reject", feeds)


def dead_activation() -> Iterator[ProofCase]:
    """Bias -100 in front of Relu: nothing behind it is ever read with inputs from N(0, 1)."""
    text = f"g (float[N,3,8,8] x) => (float[N,6,8,8] y) {{ {BODY % 'x'} y = Add (c, x6) }}"
    weights = {**CONV, "b0": np.full(16, -100, np.float32), "x6": _rng(6).standard_normal((6, 1, 1))}
    weights["x6"] = weights["x6"].astype(np.float32)
    original = made(text, weights)
    feeds = images((1, 3, 8, 8), (2, 3, 8, 8), scale=300.0)
    yield ProofCase("dead_relu", original, None, "accept", feeds)
    yield ProofCase("dead_relu_weight", original, scaled_weight("w1"), "reject", feeds)
    yield ProofCase("dead_relu_bias", original, scaled_weight("b0", 0.9), "reject", feeds)


def alive_on_images() -> Iterator[ProofCase]:
    """Channels that only inputs in 0..255 switch on."""
    rng = _rng(7)
    weights = {
        **CONV,
        "w0": rng.uniform(0.01, 0.05, (16, 3, 3, 3)).astype(np.float32),
        "b0": rng.uniform(-60, -30, 16).astype(np.float32),
        "b1": rng.standard_normal(6).astype(np.float32),
    }
    text = f"g (float[N,3,8,8] x) => (float[N,6,8,8] y) {{ {BODY.replace('c = Conv (r, w1)', '') % 'x'} "
    original = made(text + "y = Conv (r, w1, b1) }", weights)
    feeds = images((1, 3, 8, 8), (2, 3, 8, 8), scale=255.0, low=0.0)
    yield ProofCase("alive_on_images", original, None, "accept", feeds)
    yield ProofCase("alive_on_images_weight", original, scaled_weight("w1", 1.5), "reject", feeds)


def saturated_activation() -> Iterator[ProofCase]:
    """Relu replaced by Clip(0, 100), which no activation of the test reaches."""
    original = made(f"g (float[N,3,8,8] x) => (float[N,6,8,8] c) {{ {BODY % 'x'} }}", CONV)
    feeds = images((1, 3, 8, 8), scale=1000.0)

    def clipped(proto: onnx.ModelProto) -> None:
        nodes = proto.graph.node
        at = next(i for i, n in enumerate(nodes) if n.output[0] == "r")
        nodes[at].CopyFrom(helper.make_node("Clip", ["a", "low", "high"], ["r"], name="clipped"))
        for name, value in (("low", 0), ("high", 100)):
            proto.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))

    yield ProofCase("relu_clipped_at_100", original, clipped, "reject", feeds)


def integer_inputs() -> Iterator[ProofCase]:
    """Integer inputs of which a test draws 0 and 1 only, because no table is found behind them."""
    tokens = made(
        """g (int64[N,L] x) => (float[N,L,5] y) {
        i = Add (x, zero) e = Gather (table, i) a = MatMul (e, w0) r = Relu (a) y = MatMul (r, w1) }""",
        {"table": (30, 8), "zero": np.int64(0), "w0": (8, 16), "w1": (16, 5)},
    )
    feeds = ({"x": _rng(8).integers(0, 30, (2, 40))}, {"x": np.arange(30).reshape(1, 30)})
    yield ProofCase("token_table", tokens, None, "accept", feeds)
    yield ProofCase("token_table_row", tokens, scaled_weight("table", 2.0, 17), "reject", feeds)
    levels = made(
        """g (int32[N,8] x) => (float[N,5] y) {
        f = Cast <to = 1> (x) a = MatMul (f, w0) b = Add (a, b0) r = Relu (b) c = Clip (r, none, top)
        y = MatMul (c, w1) }""",
        {"w0": (8, 16), "b0": (16,), "none": np.float32(0), "top": np.float32(1e6), "w1": (16, 5)},
    )
    feeds = ({"x": _rng(9).integers(-500, 500, (4, 8)).astype(np.int32)},)
    yield ProofCase("integer_levels", levels, None, "accept", feeds)

    def lower(proto: onnx.ModelProto) -> None:
        initializer(proto, "top").CopyFrom(numpy_helper.from_array(np.float32(50), "top"))

    yield ProofCase("integer_levels_top", levels, lower, "reject", feeds)


# ------------------------------------------------------------------------------------------------------- outputs


def small_columns() -> Iterator[ProofCase]:
    """One output column a million times smaller than the others; the edit replaces it by its negative."""
    values = _rng(10).standard_normal((16, 5)).astype(np.float32)
    values[:, 3] *= 1e-6
    original = made(
        "g (float[N,8] x) => (float[N,5] y) { a = MatMul (x, w0) r = Relu (a) y = MatMul (r, w1) }",
        {"w0": (8, 16), "w1": values},
    )
    feeds = images((4, 8))
    yield ProofCase("small_column", original, None, "accept", feeds)

    def negative(proto: onnx.ModelProto) -> None:
        scaled_weight("w1", -1.0, (slice(None), 3))(proto)

    yield ProofCase("small_column_negative", original, negative, "reject", feeds)


def not_a_number() -> Iterator[ProofCase]:
    """Outputs that are NaN on every small input: alone, and beside a finite one."""
    weights = {**CONV, "far": np.float32(-1000), "w2": (6, 16, 1, 1)}
    feeds = images((1, 3, 8, 8), (2, 3, 8, 8), scale=3000.0)
    alone = made(
        f"g (float[N,3,8,8] x) => (float[N,6,8,8] y) {{ {BODY % 'x'} m = Add (c, far) y = Sqrt (m) }}", weights
    )
    yield ProofCase("nan_output", alone, None, "accept", feeds)
    yield ProofCase("nan_output_weight", alone, scaled_weight("w1"), "reject", feeds)
    beside = made(
        f"""g (float[N,3,8,8] x) => (float[N,6,8,8] d, float[N,6,8,8] y) {{
        {BODY % "x"} d = Conv (r, w2) m = Add (c, far) y = Sqrt (m) }}""",
        weights,
    )
    yield ProofCase("nan_beside_finite", beside, None, "accept", feeds)
    yield ProofCase("nan_beside_finite_weight", beside, scaled_weight("w1"), "reject", feeds)
    finite = made(f"g (float[N,3,8,8] x) => (float[N,6,8,8] y) {{ {BODY % 'x'} y = Sigmoid (c) }}", CONV)

    def poisoned(proto: onnx.ModelProto) -> None:
        scaled_weight("w1", float("nan"))(proto)

    yield ProofCase("nan_weights", finite, poisoned, "reject", feeds)


def output_type() -> Iterator[ProofCase]:
    """Output of another element type, with the same numbers in it."""
    original = made(f"g (float[N,3,8,8] x) => (float[N,6,8,8] y) {{ {BODY % 'x'} y = Sigmoid (c) }}", CONV)

    def cast(proto: onnx.ModelProto) -> None:
        node = next(n for n in proto.graph.node if n.output[0] == "y")
        node.output[0] = "y_float"
        proto.graph.node.append(helper.make_node("Cast", ["y_float"], ["y"], name="cast", to=TensorProto.DOUBLE))
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE

    yield ProofCase("output_as_double", original, cast, "reject", images((2, 3, 8, 8)))


def cancelling(rng: np.random.Generator, size: float, *shape: int) -> dict[str, Array]:
    """Two weights `wp` and `wm` whose results nearly cancel: their difference is as large as its rounding error allows.

    Args:
        size: standard deviation of what both share; their difference has that of a normal layer.
    """
    shared, own = rng.standard_normal((2, *shape))
    own *= int(np.prod(shape[1:])) ** -0.5
    return {"wp": (size * shared + own).astype(np.float32), "wm": (size * shared).astype(np.float32)}


def near_zero() -> Iterator[ProofCase]:
    """Probabilities near zero: their logits are differences of large numbers, and Sigmoid makes the error relative."""
    original = made(
        """g (float[N,3,16,16] x) => (float[N,6,16,16] y) { a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a)
        p = Conv <pads = [1, 1, 1, 1]> (r, wp) m = Conv <pads = [1, 1, 1, 1]> (r, wm) d = Sub (p, m)
        l = Add (d, low) y = Sigmoid (l) }""",
        {"w0": (64, 3, 3, 3), "b0": (64,), **cancelling(_rng(11), 60, 6, 64, 3, 3), "low": np.float32(-6)},
    )
    yield ProofCase("probabilities_near_zero", original, None, "accept", images((1, 3, 16, 16)))
    edit = scaled_weight("wp", 1.01)
    yield ProofCase("probabilities_near_zero_weight", original, edit, "reject", images((1, 3, 16, 16)))


# ------------------------------------------------------------------------------------------------------- decisions


def detector() -> Iterator[ProofCase]:
    """Boxes from noise behind NonMaxSuppression: near ties are decided either way."""
    original = made(
        """g (float[1,3,32,32] x) => (float[K,4] best, float[K,1] score, int64[K,3] picked) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a) k = Conv <pads = [1, 1, 1, 1]> (r, wk) q = Relu (k)
        cls = Conv (q, wc) box = Conv (q, wb)
        flat = Reshape (cls, to_scores) p = Sigmoid (flat) corner = Reshape (box, to_boxes)
        t = Transpose <perm = [0, 2, 1]> (corner) u = Sigmoid (t)
        picked = NonMaxSuppression (u, p, most, overlap, least)
        which = Gather <axis = 1> (picked, two) best3 = Gather <axis = 1> (u, which) best = Squeeze (best3, zero1)
        ps = Transpose <perm = [0, 2, 1]> (p) s3 = Gather <axis = 1> (ps, which) score = Squeeze (s3, zero1) }""",
        {
            "w0": (32, 3, 3, 3), "b0": (32,), "wk": (32, 32, 3, 3), "wc": (1, 32, 1, 1), "wb": (4, 32, 1, 1),
            "to_scores": ints(1, 1, -1), "to_boxes": ints(1, 4, -1), "most": ints(200), "two": np.int64(2),
            "overlap": np.array([0.4], np.float32), "least": np.array([0.4], np.float32), "zero1": ints(0),
        },
    )  # fmt: skip
    yield ProofCase("detector_on_noise", original, None, "accept")
    feeds = images((1, 3, 32, 32))
    yield ProofCase("detector_box_weight", original, scaled_weight("wb", 1.2, 0), "reject", feeds)
    yield ProofCase("detector_score_weight", original, scaled_weight("wc", 1.2), "reject", feeds)

    def more(proto: onnx.ModelProto) -> None:
        initializer(proto, "overlap").CopyFrom(numpy_helper.from_array(np.array([0.9], np.float32), "overlap"))

    yield ProofCase("detector_overlap", original, more, "reject", feeds)


def jumps() -> Iterator[ProofCase]:
    """Activations with a jump, of numbers that carry a rounding error: some are at its edge."""
    for op in ("ThresholdedRelu", "Shrink"):
        attributes = "<alpha = 1.0>" if op == "ThresholdedRelu" else "<lambd = 1.0, bias = 0.0>"
        original = made(
            f"""g (float[N,3,32,32] x) => (float[N,6,32,32] y) {{
            a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu (a) p = Conv <pads = [1, 1, 1, 1]> (r, wp)
            m = Conv <pads = [1, 1, 1, 1]> (r, wm) d = Sub (p, m) t = {op} {attributes} (d) y = Conv (t, w2) }}""",
            {"w0": (64, 3, 3, 3), "b0": (64,), **cancelling(_rng(12), 200, 32, 64, 3, 3), "w2": (6, 32, 1, 1)},
        )
        yield ProofCase(op.lower(), original, None, "accept")
        feeds = images((1, 3, 32, 32))
        yield ProofCase(f"{op.lower()}_weight", original, scaled_weight("w2", 1.5), "reject", feeds)

        def moved(proto: onnx.ModelProto) -> None:
            node = next(n for n in proto.graph.node if n.output[0] == "t")
            for attribute in node.attribute:
                if attribute.f == 1.0:
                    attribute.f = 1.02

        yield ProofCase(f"{op.lower()}_threshold", original, moved, "reject", feeds)


def quantized() -> Iterator[ProofCase]:
    """QDQ model of onnxruntime's static quantization: every activation is rounded to 8 bits."""
    original = _quantized()
    yield ProofCase("qdq", original, None, "accept", ())
    weights = [t.name for t in original.graph.initializer if t.name.startswith("w1") and t.name.endswith("_quantized")]

    def negative(proto: onnx.ModelProto) -> None:
        tensor = initializer(proto, weights[0])
        values = numpy_helper.to_array(tensor).copy()
        values[0] = -values[0]
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    yield ProofCase("qdq_weight", original, negative, "reject", images((2, 3, 16, 16)))
    yield ProofCase("qdq_scale", original, scaled_weight("r_scale", 1.3), "reject", images((2, 3, 16, 16)))


@functools.cache
def _quantized_bytes() -> bytes:
    import logging
    import tempfile
    from pathlib import Path

    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(images((4, 3, 16, 16), (4, 3, 16, 16)))

        def get_next(self) -> Feeds | None:
            return next(self.feeds, None)

    plain = made(
        f"g (float[N,3,16,16] x) => (float[N,5] y) {{ {BODY % 'x'} d = Relu (c) m = GlobalAveragePool (d) "
        "f = Flatten (m) y = Gemm (f, w2) }",
        {**CONV, "w2": (6, 5)},
    )
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "plain.onnx", Path(folder) / "qdq.onnx"
            onnx.save(plain, source)
            q.quantize_static(
                source, target, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
            )  # fmt: skip
            return target.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


def _quantized() -> onnx.ModelProto:
    return onnx.load_from_string(_quantized_bytes())


def constant_output() -> Iterator[ProofCase]:
    """A weight that is an output of the model, beside a step function behind which nothing is compared but scores."""
    for op in ("Floor", "Sign", "ArgMax"):
        kind = "int64" if op == "ArgMax" else "float"
        attributes = "<axis = 1, keepdims = 1>" if op == "ArgMax" else ""
        channels = 1 if op == "ArgMax" else 6
        original = made(
            f"""g (float[N,3,8,8] x) => ({kind}[N,{channels},8,8] y, int64[3] anchors) {{
            {BODY % "x"} y = {op} {attributes} (c) }}""",
            {**CONV, "anchors": ints(8, 16, 32)},
        )
        yield ProofCase(f"constant_output_{op.lower()}", original, None, "accept")
        feeds = images((2, 3, 8, 8))
        yield ProofCase(f"constant_output_{op.lower()}_weight", original, scaled_weight("w1", -1.0), "reject", feeds)

        def other(proto: onnx.ModelProto) -> None:
            initializer(proto, "anchors").CopyFrom(numpy_helper.from_array(ints(8, 16, 33), "anchors"))

        yield ProofCase(f"constant_output_{op.lower()}_value", original, other, "reject", feeds)


FAMILIES = (
    pad_to_seven, parity_of_batch, bounded_side, branch_on_size, branches_with_layers, loop_with_layers,
    quotient_of_lengths, dynamic_batch_reshape, windows, bool_inputs, dead_activation, alive_on_images,
    saturated_activation, integer_inputs, small_columns, not_a_number, output_type, near_zero, detector, jumps,
    quantized, constant_output,
)  # fmt: skip


@functools.cache
def cases() -> dict[str, ProofCase]:
    """Return every case by name."""
    found = [case for family in FAMILIES for case in family()]
    assert len({c.name for c in found}) == len(found)
    return {c.name: c for c in found}
