"""Shape arithmetic is a constant only if no dynamic dimension is in it: pruned models at sizes that no witness has.

Each of these models once was pruned to one that computes something else at most sizes, because the arithmetic happens
to give the same number for the two settings of the dynamic dimensions that were compared.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper, parser
from random_graphs.graphs import PROPERTY

import onnxprune as op
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.passes import NORMALIZE, Pipeline
from onnxprune.passes.slice_statistics import masked_reference

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
SIDES = ((1, 1), (2, 3), (7, 9), (28, 30), (100, 100), (131, 64))

CONSTANTS: dict[str, object] = {
    "none": 0, "one": 1, "two": 2, "three": 3, "four": 4, "six": 6, "seven": 7, "million": 10**6,
    "half": np.float32(0.5),
    "v0": [0], "v1": [1], "v2": [2], "v3": [3], "v4": [4], "v7": [7], "v8": [8],
    "minus": [-1], "short": np.float32([1]),
    "zeros6": [0] * 6,
}  # fmt: skip


def model_of(text: str, **weights: tuple[int, ...]) -> Model:
    """A model of text, which may use `CONSTANTS` and weights of given shapes."""
    proto = parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    read = {name for node in proto.graph.node for name in node.input}
    for name, value in CONSTANTS.items():
        if name in read:
            array = np.asarray(value, None if isinstance(value, np.generic | np.ndarray) else np.int64)
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
    for name, shape in weights.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    onnx.checker.check_model(proto)
    return load(proto)


def half(analysis: op.Analysis) -> op.Plan:
    """Every second channel of every group."""
    groups = {g.name: op.Removal(g.channels, tuple(range(1, g.channels, 2))) for g in analysis}
    return op.Plan(analysis.source.fingerprint, groups)


def compare(model: Model, feeds: list[dict[str, np.ndarray]]) -> op.Analysis:
    """Prunes half of what is free and compares with the masked original; inputs that both refuse count as equal."""
    analysis = op.analyze(model)
    plan = half(analysis)
    pruned = op.compile_plan(model, plan, analysis=analysis, check=False).model
    masked, small = Session(masked_reference(analysis, plan)), Session(pruned)
    ran = 0
    for feed in feeds:
        try:
            expected = masked.run(feed)
        except Exception:  # the original refuses this size
            continue
        ran += 1
        for a, b in zip(small.run(feed), expected, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert ran, "no size that the model accepts"
    return analysis


def images(batches: tuple[int, ...] = (1, 2, 3), channels: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {"x": rng.standard_normal((n, channels, *side)).astype(np.float32)}
        for n, side in itertools.product(batches, SIDES)
    ]


IMAGE = "g (float[N, 3, H, W] x) => (float[N, 4, P, Q] y) {{\n a = Conv (x, w)\n {body}\n y = Conv (r, v)\n}}"
CONV = {"w": (8, 3, 1, 1), "v": (4, 8, 1, 1)}
SIDE = "s = Shape (a)\n h = Gather (s, two)\n n = Gather (s, none)\n"

# Arithmetic with a size that is the same number at 224 and 1120, or at batches 11 and 23, and what is done with it.
BODIES = {
    "pad to a multiple of 7": SIDE + """
        over = Mod (h, seven)
        missing = Sub (seven, over)
        more = Mod (missing, seven)
        wide = Unsqueeze (more, v0)
        pads = Concat <axis = 0> (zeros6, wide, v0)
        r = Pad (a, pads)""",
    "pad the channels": SIDE + """
        odd = Mod (h, seven)
        wide = Unsqueeze (odd, v0)
        pads = Concat <axis = 0> (v0, v0, v0, v0, v0, wide, v0, v0)
        b = Pad (a, pads)
        r = Slice (b, v0, v8, v1)""",
    "scale by the parity of the batch": SIDE + """
        odd = Mod (n, two)
        f = Cast <to = 1> (odd)
        r = Mul (a, f)""",
    "scale by the smaller of a side and a number": SIDE + """
        least = Min (h, million)
        f = Cast <to = 1> (least)
        r = Mul (a, f)""",
    "scale by the larger of a side and 4": SIDE + """
        most = Max (h, four)
        is = Equal (most, h)
        f = Cast <to = 1> (is)
        r = Mul (a, f)""",
    "choose by a size": SIDE + """
        large = Greater (h, six)
        f = Where (large, half, third)
        r = Mul (a, f)""",
    "a slice that ends at a size": SIDE + """
        odd = Mod (h, seven)
        end = Add (odd, one)
        wide = Unsqueeze (end, v0)
        r = Slice (a, v0, wide, v2)""",
    "a resize to a size": SIDE + """
        odd = Mod (h, seven)
        end = Add (odd, one)
        wide = Unsqueeze (end, v0)
        batch = Unsqueeze (n, v0)
        sizes = Concat <axis = 0> (batch, v8, wide, wide)
        r = Resize <mode = "nearest"> (a, , , sizes)""",
    "a stretched axis": SIDE + """
        odd = Mod (h, seven)
        end = Add (odd, one)
        wide = Unsqueeze (end, v0)
        p = GlobalAveragePool (a)
        shape = Concat <axis = 0> (v1, v1, wide, v1)
        r = Expand (p, shape)""",
    "a tiled axis": SIDE + """
        odd = Mod (h, seven)
        end = Add (odd, one)
        wide = Unsqueeze (end, v0)
        repeats = Concat <axis = 0> (v1, v1, wide, v1)
        r = Tile (a, repeats)""",
    "the largest few": SIDE + """
        odd = Mod (h, seven)
        end = Add (odd, one)
        k = Unsqueeze (end, v0)
        flat = Flatten <axis = 2> (a)
        b = Transpose <perm = [0, 1, 3, 2]> (a)
        r, i = TopK <axis = 2> (a, k)""",
    "a range": SIDE + """
        odd = Mod (h, seven)
        end = Add (odd, two)
        range = Range (none, end, one)
        last = ReduceMax <keepdims = 0> (range)
        f = Cast <to = 1> (last)
        r = Mul (a, f)""",
    "one hot": SIDE + """
        odd = Mod (h, seven)
        depth = Add (odd, two)
        values = Constant <value = float[2] {0, 1}> ()
        hot = OneHot (v1, depth, values)
        all = Size (hot)
        f = Cast <to = 1> (all)
        r = Mul (a, f)""",
    "the rest behind a division": SIDE + """
        parts = Div (h, seven)
        back = Mul (parts, seven)
        rest = Sub (h, back)
        f = Cast <to = 1> (rest)
        r = Mul (a, f)""",
}  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_arithmetic_that_agrees_for_some_sizes_is_not_a_constant(what: str) -> None:
    model = model_of(IMAGE.format(body=BODIES[what]), **CONV, **({"third": ()} if "third" in BODIES[what] else {}))
    analysis = compare(model, images())
    if what == "pad the channels":
        assert {(g.op, g.reason) for g in analysis.locked} >= {
            ("Pad", "is padded or cropped by amounts computed at run time")
        }
    else:
        assert [g.channels for g in analysis] == [8]


IF_ON_A_LENGTH = """g (float[N, 3, H, W] x) => (float[N, 4, P, Q] y) {
    a = Conv (x, w)
    s = Shape (a)
    n = Gather (s, %s)
    large = Greater (n, six)
    r = If (large) <
        then_branch = t () => (float[N, 8, H, W] t1) { t1 = Relu (a) },
        else_branch = e () => (float[N, 8, H, W] e1) { e1 = Neg (a) }
    >
    y = Conv (r, v)
}"""


def test_an_if_on_a_size_stays() -> None:
    analysis = compare(model_of(IF_ON_A_LENGTH % "two", **CONV), images())
    assert "If" in {n.op for n in analysis.model.graph.nodes}
    assert [g.channels for g in analysis] == [8]


def test_an_if_on_a_constant_is_replaced_by_its_branch() -> None:
    analysis = compare(model_of(IF_ON_A_LENGTH % "one", **CONV), images())
    assert "If" not in {n.op for n in analysis.model.graph.nodes}
    assert [g.channels for g in analysis] == [8]


@pytest.mark.parametrize("names", [("N", "M"), ("", "")], ids=["named", "unnamed"])
def test_lengths_of_two_inputs_have_no_constant_quotient(names: tuple[str, str]) -> None:
    text = """g (float[N, 3] x, float[M, 3] z) => (float[K, 4] y) {
        a = MatMul (x, w)
        s = Shape <end = 1> (x)
        t = Shape <end = 1> (z)
        q = Div (s, t)
        f = Cast <to = 1> (q)
        r = Mul (a, f)
        y = MatMul (r, v)
    }"""
    rng = np.random.default_rng(0)
    feeds = [
        {"x": rng.standard_normal((n, 3)).astype(np.float32), "z": rng.standard_normal((m, 3)).astype(np.float32)}
        for n, m in ((1, 1), (4, 2), (9, 3), (3, 5))
    ]
    model = model_of(text, w=(3, 8), v=(8, 4))
    for t, name in zip(model.graph.inputs, names, strict=True):
        t.shape = [name or None, 3]
    analysis = compare(model, feeds)
    assert [g.channels for g in analysis] == [8]


def test_a_reshape_that_holds_for_equal_lengths_only_locks() -> None:
    text = """g (float[N, 3, M] x) => (float[M, K, 4] y) {
        a = Conv (x, w)
        s = Shape (a)
        n = Gather (s, v0)
        m = Gather (s, v2)
        shape = Concat <axis = 0> (m, v8, n)
        b = Reshape (a, shape)
        c = Transpose <perm = [0, 2, 1]> (b)
        y = MatMul (c, v)
    }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((n, 3, m)).astype(np.float32)} for n, m in ((1, 1), (2, 3), (5, 5), (4, 2))]
    analysis = compare(model_of(text, w=(8, 3, 1), v=(8, 4)), feeds)
    assert [(g.op, g.channels) for g in analysis.locked if g.op == "Reshape"] == [("Reshape", 8)]
    assert not analysis.groups


def test_a_reshape_that_holds_for_one_image_size_only_locks() -> None:
    text = """g (float[N, 3, H, H] x) => (float[K, 4] y) {
        a = Conv (x, w)
        shape = Concat <axis = 0> (minus, size)
        b = Reshape (a, shape)
        y = MatMul (b, v)
    }"""
    proto = parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for name, value in (("minus", [-1]), ("size", [8 * 224 * 224])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    for name, shape in (("w", (8, 3, 1, 1)), ("v", (8 * 224 * 224, 4))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    # 4 images of 112 make one row, of which the channels are in 4 places: at 224 they would be in one.
    feeds = [{"x": rng.standard_normal((n, 3, h, h)).astype(np.float32)} for n, h in ((4, 112), (1, 224))]
    analysis = compare(load(proto), feeds)
    assert {g.reason for g in analysis.locked if g.op == "Reshape"} == {
        "is reshaped to dimensions that nest at some sizes only"
    }


def test_a_grouped_split_that_holds_at_one_size_only_locks() -> None:
    # 8 channels of H places seen as H groups of 8: channel 0 is group 0 where H is 8 only.
    text = """g (float[N, 3, H] x) => (float[N, H, 4] y) {
        a = Conv (x, w)
        s = Shape (a)
        n = Gather (s, v0)
        h = Gather (s, v2)
        shape = Concat <axis = 0> (n, h, v8)
        b = Reshape (a, shape)
        y = MatMul (b, v)
    }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 3, h)).astype(np.float32)} for h in (1, 8, 16, 7)]
    analysis = compare(model_of(text, w=(8, 3, 1), v=(8, 4)), feeds)
    assert not [g for g in analysis if g.name == "w"]


def test_a_selection_of_at_most_two_is_not_a_constant() -> None:
    text = """g (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y) {
        a = Conv (x, w)
        m = ReduceMax <keepdims = 0> (x)
        f = Unsqueeze (m, v0)
        good = Greater (f, half)
        c = Concat <axis = 0> (good, good, good)
        found = NonZero (c)
        flat = Reshape (found, minus)
        kept = Slice (flat, v0, v2)
        s = Shape (kept)
        g = Cast <to = 1> (s)
        r = Mul (a, g)
        y = Conv (r, v)
    }"""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    analysis = compare(model_of(text, **CONV), [{"x": x}, {"x": -np.abs(x)}])  # of the second one nothing is selected
    assert [g.channels for g in analysis] == [8]


def test_what_grows_with_the_batch_is_no_constant() -> None:
    text = """g (float[N, 3, H, W] x) => (float[N, 4, H, W] y) {
        a = Conv (x, w)
        s = Shape (a)
        ones = ConstantOfShape <value = float[1] {1}> (s)
        r = Mul (a, ones)
        y = Conv (r, v)
    }"""
    analysis = op.analyze(model_of(text, **CONV))
    assert "ConstantOfShape" in {n.op for n in analysis.model.graph.nodes}


@pytest.mark.parametrize("side", [22, 23, 92])
def test_large_constants_of_any_size_are_constants(side: int) -> None:
    # Their size is divisible by 11 or 23, which were taken for the batch.
    text = f"""g (float[N, 3, {side}, {side}] x) => (float[N, 4, {side}, {side}] y) {{
        a = Conv (x, w)
        s = Shape (a)
        h = Slice (s, v1, v4)
        t = Concat <axis = 0> (h, wide)
        ones = ConstantOfShape <value = float[1] {{1}}> (t)
        most = ReduceMax <axes = [3], keepdims = 0> (ones)
        r = Mul (a, most)
        y = Conv (r, v)
    }}"""
    proto = parser.parse_model(HEAD + text)
    for name, value in (("v1", [1]), ("v4", [4]), ("wide", [100])):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    rng = np.random.default_rng(0)
    for name, shape in CONV.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    analysis = op.analyze(load(proto))
    assert {n.op for n in analysis.model.graph.nodes} == {"Conv", "Mul"}


@pytest.mark.parametrize("what", ["Gather (b, places)", "Slice (b, v0, v8, v1)"])
def test_places_on_an_axis_of_dynamic_size_lock(what: str) -> None:
    # 8 channels of H places each as one axis: places 0 to 7 are those of one channel or of eight.
    text = f"""g (float[N, 3, H] x) => (float[N, 4] y) {{
        a = Conv (x, w)
        b = Flatten (a)
        c = {what.replace("Gather (", "Gather <axis = 1> (")}
        y = MatMul (c, v)
    }}"""
    proto_places = {"places": (8,)} if "places" in what else {}
    model = model_of(text, w=(8, 3, 1), v=(8, 4), **proto_places)
    for t in model.graph.tensors().values():
        if t.name == "places":
            t.values = np.arange(8)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((2, 3, h)).astype(np.float32)} for h in (1, 2, 8, 41, 100)]
    analysis = compare(model, feeds)
    assert "is on an axis whose size is not constant" in {g.reason for g in analysis.locked}


@pytest.mark.parametrize("names", [("N", "M"), ("N", "N")])
def test_batches_of_two_inputs_that_broadcast(names: tuple[str, str]) -> None:
    # A mask of another batch, or of one for all; exporters reshape back to the length of one of the inputs.
    text = """g (float[N, T, 3] x, float[M, 1, T] mask) => (float[N, T, 4] y) {
        a = MatMul (x, w)
        s = Shape (x)
        n = Gather (s, v0)
        t = Gather (s, v1)
        apart = Concat <axis = 0> (n, t, v2, v4)
        b = Reshape (a, apart)
        c = Transpose <perm = [0, 2, 1, 3]> (b)
        d = Transpose <perm = [0, 2, 3, 1]> (b)
        q = MatMul (c, d)
        wide = Unsqueeze (mask, v1)
        p = Add (q, wide)
        r = Softmax <axis = -1> (p)
        e = MatMul (r, c)
        f = Transpose <perm = [0, 2, 1, 3]> (e)
        back = Concat <axis = 0> (n, t, v8)
        g = Reshape (f, back)
        y = MatMul (g, v)
    }"""
    model = model_of(text, w=(3, 8), v=(8, 4))
    model.graph.inputs[1].shape = [names[1], 1, "T"]
    rng = np.random.default_rng(0)
    feeds = [
        {
            "x": rng.standard_normal((n, t, 3)).astype(np.float32),
            "mask": rng.standard_normal((m, 1, t)).astype(np.float32),
        }
        for n, m, t in ((1, 1, 5), (3, 3, 7), *([] if names[1] == "N" else [(4, 1, 2)]))
    ]
    analysis = compare(model, feeds)
    assert [(g.channels, g.kind) for g in analysis] == [(2, "heads")]


# Lines that compute one length `o` from lengths `a`, `b` and `c`, each a tensor of one number; `p` is at least 1.
ARITHMETIC = (
    "o = Add (a, b)", "o = Sub (a, b)", "o = Min (a, b)", "o = Max (a, b)", "o = Div (a, p)", "o = Mod (a, p)",
    "o = Neg (a)", "o = Abs (a)", "l = Mod (a, v7) o = Mul (l, b)", "d = Equal (a, b) o = Where (d, b, c)",
    "d = Less (a, b) e = Not (d) o = Where (e, a, c)", "l = Concat <axis = 0> (a, b, c) o = ReduceMax (l)",
    "l = Concat <axis = 0> (a, b) n = Mod (l, v7) o = ReduceProd (n)",
    "l = Concat <axis = 0> (a, b, c) o = Slice (l, v1, v2)",
    "f = Cast <to = 1> (a) g = Mul (f, half) l = Floor (g) o = Cast <to = 7> (l)",
    "l = Mod (p, v7) n = Squeeze (l) r = Range (none, n, one) o = Shape (r)",
    "l = Mod (p, v7) n = Add (l, v1) e = Tile (short, n) o = Shape (e)",
    "l = Mod (p, v7) e = ConstantOfShape (l) n = Shape (e) o = Identity (n)",
    "l = Concat <axis = 0> (a, b, c, a) n = Mod (p, v3) e = Slice (l, v0, n) o = Shape (e)",
    "l = Concat <axis = 0> (a, b, c) d = Greater (l, v7) e = NonZero (d) n = Shape (e) o = Gather (n, v1)",
    "l = MaxPool <kernel_shape = [2, 2], strides = [2, 1], pads = [1, 0, 1, 0]> (x) n = Shape (l) o = Gather (n, v2)",
    "l = AveragePool <kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 1> (x) n = Shape (l) "
    "o = Gather (n, v3)",
    "l = Concat <axis = 0> (minus, p) e = Reshape (short, minus) n = Shape (e) o = Mul (n, b)",
)  # fmt: skip


@PROPERTY(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(ARITHMETIC), *[st.integers(0, 99)] * 3), min_size=1, max_size=12))
def test_folded_arithmetic_is_the_same_for_other_sizes(steps: list[tuple[str, int, int, int]]) -> None:
    lengths = ["n", "h", "w", "m", "v1", "v2", "v7", "v8", "minus"]
    lines = ["s = Shape (x) n = Gather (s, v0) h = Gather (s, v2) w = Gather (s, v3) m = Shape (z)"]
    for i, (line, *picked) in enumerate(steps):
        a, b, c = (lengths[-1 - k % len(lengths)] for k in picked)  # the last ones more often
        names = {"a": a, "b": b, "c": c} | {name: f"{name}_{i}" for name in "defglnopr"}
        words = (names.get(word, word) for word in re.split(r"\b", line))
        lines.append(f"q_{i} = Abs ({b}) p_{i} = Max (q_{i}, v1) " + "".join(words))
        lengths.append(f"o_{i}")
    outputs = [f"y_{i}" for i in range(len(steps))]
    lines += [f"y_{i} = Identity (o_{i})" for i in range(len(steps))]
    interface = ", ".join(f"int64[1] {name}" for name in outputs)
    model = model_of(f"g (float[N, 3, H, W] x, float[M] z) => ({interface}) {{ {' '.join(lines)} }}")
    whole, folded = Session(model), Session(Pipeline(NORMALIZE)(model))
    for n, h, w, m in ((1, 2, 3, 4), (2, 7, 9, 1), (3, 100, 31, 2), (5, 1, 1, 5), (11, 224, 448, 11)):
        feed = {"x": np.zeros((n, 3, h, w), np.float32), "z": np.zeros(m, np.float32)}
        try:
            expected = whole.run(feed)
        except op.OnnxPruneError:
            continue
        for one, two in zip(folded.run(feed), expected, strict=True):
            np.testing.assert_array_equal(one, two)
