"""Sizes that the nodes of a model admit are found, and a model without any is refused with the node's name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.sized import RECOGNIZER, proto_of
from onnx import numpy_helper, parser
from random_graphs.graphs import PROPERTY

from onnxprune.analysis.shapes._size_constraints import violations
from onnxprune.analysis.shapes.shape_inference import assignments, witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.ir.input_sizes import with_shapes
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal


def made(
    text: str, values: Mapping[str, np.ndarray | tuple[int, ...]] | None = None, opset: int = 17
) -> onnx.ModelProto:
    """A model from text, with random constants of the given shapes."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    rng = np.random.default_rng(0)
    for name, value in (values or {}).items():
        array = value if isinstance(value, np.ndarray) else rng.standard_normal(value).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, name))
    return proto


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


ADMIT = {
    "Reshape": (
        "g (float[N,3,H,W] x) => (float[N,K] y) { c = Conv <strides = [4, 4]> (x, w) r = Reshape (c, s) "
        "y = MatMul (r, u) }",
        {"w": (8, 3, 4, 4), "s": ints(0, 8 * 36), "u": (8 * 36, 4)},
    ),
    "Reshape to rows": (
        "g (float[N,L] x) => (float[a,b,c] y) { y = Reshape (x, s) }",
        {"s": ints(0, -1, 48)},
    ),
    "Concat": (
        "g (float[N,C,H] x) => (float[a,b,c] y) { m = MaxPool <kernel_shape = [2], strides = [2]> (x) "
        "u = Upsample (m, t) y = Concat <axis = 1> (x, u) }",
        {"t": np.array([1, 1, 2], np.float32)},
    ),
    "positions": (
        "g (float[N,3,H,W] x) => (float[a,b,c,d] y) { c = Conv <strides = [8, 8]> (x, w) y = Add (c, p) }",
        {"w": (6, 3, 8, 8), "p": (1, 6, 5, 7)},
    ),
    "MatMul": (
        "g (float[N,3,L] x) => (float[a,b,c] y) { y = MatMul (x, w) }",
        {"w": (100, 6)},
    ),
    "kernel": (
        "g (float[N,1,L] x) => (float[a,b,c] y) { a = Conv <strides = [64]> (x, w) y = Conv (a, v) }",
        {"w": (4, 1, 256), "v": (4, 4, 3)},
    ),
    "reflect": (
        'g (float[N,L] x) => (float[a,b] y) { y = Pad <mode = "reflect"> (x, p) }',
        {"p": ints(0, 64, 0, 64)},
    ),
    "Split": (
        "g (float[N,L] x) => (float[a,b] y) { y, z = Split <axis = 1> (x, s) }",
        {"s": ints(20, 30)},
    ),
    "Squeeze": (
        "g (float[N,3,H,W] x) => (float[a,b,c] y) { m = MaxPool <kernel_shape = [32, 2], strides = [32, 2]> (x) "
        "y = Squeeze (m, a) }",
        {"a": ints(2)},
    ),
    "Gather": (
        "g (float[N,L] x) => (float[a,b] y) { y = Gather <axis = 1> (x, i) }",
        {"i": ints(700, 3)},
    ),
    "SpaceToDepth": (
        "g (float[N,3,H,W] x) => (float[a,b,c,d] y) { y = SpaceToDepth <blocksize = 3> (x) }",
        {},
    ),
    "Expand": (
        "g (float[N,C,L] x) => (float[a,b,c] y) { y = Expand (x, s) }",
        {"s": ints(1, 1, 77)},
    ),
    "equal lengths": (
        "g (float[N,L,8] a, float[M,K,8] b) => (float[a,b,c] y) { y = Add (a, b) }",
        {},
    ),
    "states": (
        "g (float[L,N,4] x, float[1,M,6] h) => (float[a,b,c,d] y) { "
        'y = GRU <hidden_size = 6> (x, w, r, "", "", h) }',
        {"w": (1, 18, 4), "r": (1, 18, 6)},
    ),
}  # fmt: skip
"""Models that onnxruntime runs at some sizes only, and not at the first ones."""
OPSETS = {"Concat": 9}


@pytest.mark.parametrize("name", ADMIT)
def test_the_sizes_found_are_admitted_by_onnxruntime(name: str) -> None:
    text, values = ADMIT[name]
    model = load(made(text, values, OPSETS.get(name, 17)))
    assert violations(model, witness(model, assignments(model, single=True)[0]))
    seen = witness(model)
    assert seen.settled
    assert not violations(model, seen)
    rng = np.random.default_rng(0)
    feeds = {t.name: rng.standard_normal(seen.shapes[t.name]).astype(np.float32) for t in model.graph.inputs}
    for t, value in zip(model.graph.outputs, Session(model).run(feeds), strict=True):
        assert seen.shapes[t.name] == value.shape


def test_a_size_that_a_node_does_not_take_is_refused_with_one_that_it_takes() -> None:
    model = load(made(*ADMIT["positions"]), shapes={"x": "1x3x40x40"})
    with pytest.raises(OnnxPruneError, match="cannot run at the given size: it combines 5 and 7 on axis 3") as err:
        witness(model)
    assert err.value.where == "Add 'y'"
    assert err.value.fix == "a size that it takes: --shape x=?x3x40x56"


def test_a_model_that_takes_no_size_is_refused_with_the_node() -> None:
    text = "g (float[N,3,H,W] x) => (float[a,b,c,d] y) { p = Add (x, u) y = Concat <axis = 3> (x, v) }"
    model = load(made(text, {"u": (1, 3, 5, 1), "v": (1, 3, 6, 1)}))
    with pytest.raises(OnnxPruneError, match="runs at some input sizes only, and none was found") as err:
        witness(model)
    assert err.value.where == "Add 'p'"
    assert err.value.fix == "give a size that it takes: --shape x=Nx3xHxW"


def test_sizes_that_depend_on_data_are_left_alone() -> None:
    text = """g (float[N,3,H,W] x) => (float[a,b] y) {
        n = NonZero (x) r = Reshape (n, s) y = Relu (r) }"""
    assert witness(load(made(text, {"s": ints(4, 77)}))).settled == {}


def test_a_dynamic_channel_of_another_input_locks_what_it_meets() -> None:
    text = """g (float[N,3,4,4] x, float[N,C,4,4] z) => (float[N,6,4,4] y) {
        h = Conv (x, w) k = Mul (h, z) y = Conv (k, v) }"""
    proto = made(text, {"w": (8, 3, 1, 1), "v": (6, 8, 1, 1)})
    for shapes in (None, {"z": (None, 1, 4, 4)}, {"z": (None, 8, 4, 4)}):
        assert [g.name for g in analyze(load(proto, shapes=shapes)).groups] == []


@PROPERTY(max_examples=25)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.data())
def test_a_model_with_a_fixed_height_is_pruned_for_all_sizes_it_takes(
    stride: int, pool: int, rows: int, table: bool, data: st.DataObject
) -> None:
    """Rows of the image are averaged until `rows` remain, as a reshaped tensor or a table of positions requires."""
    fixed = "f = Add (p, t)" if table else "f = Reshape (p, s)"
    text = f"""g (float[N,3,H,W] x) => (float[a,5,b,c] y) {{
        c0 = Conv <strides = [{stride}, 1], pads = [1, 1, 1, 1]> (x, w) c = Relu (c0)
        p = AveragePool <kernel_shape = [{pool}, 1], strides = [{pool}, 1]> (c)
        {fixed} e = Conv (f, v) r = Relu (e) y = Conv (r, o) }}"""
    tail = {"t": (1, 7, rows, 1)} if table else {"s": ints(0, 7, rows, -1)}
    proto = made(text, {"w": (7, 3, 3, 3), "v": (6, 7, 1, 1), "o": (5, 6, 1, 1), **tail})
    model = load(proto)
    analysis = analyze(model)
    groups = {
        g.name: Removal(g.channels, tuple(sorted(data.draw(st.sets(st.integers(0, g.channels - 1), max_size=3)))))
        for g in analysis.groups
    }
    done = compile_plan(model, Plan(model.fingerprint, groups), analysis=analysis)  # proves the result
    whole, small = Session(model), Session(done.model)
    ran = 0
    for height, width in itertools.product(range(1, 30), (3, 8)):
        feeds = {"x": np.random.default_rng(height).standard_normal((2, 3, height, width)).astype(np.float32)}
        try:
            [wanted] = whole.run(feeds)
        except OnnxPruneError:
            continue
        [found] = small.run(feeds)
        assert found.shape == wanted.shape
        ran += 1
    assert ran


def test_a_recognizer_is_analyzed_at_a_height_that_it_takes() -> None:
    model = load(proto_of(RECOGNIZER))
    analysis = analyze(model)
    assert set(analysis.witness.settled) == {("x", 2)}
    assert {g.name for g in analysis.groups} == {"w1", "w2", "w3"}
    done = compile_plan(
        model, Plan(model.fingerprint, {g.name: Removal(g.channels, (0, 2, 5)) for g in analysis.groups})
    )
    assert done.verification is not None
    assert len(done.verification.sizes) >= 3
    assert len({size.split(",")[-1] for size in done.verification.sizes}) > 1  # widths


def test_given_sizes_are_tried_by_the_proof() -> None:
    model = load(proto_of(RECOGNIZER), shapes={"x": (1, 3, 10, 31)})
    group = analyze(model).groups[0]
    done = compile_plan(model, Plan(model.fingerprint, {group.name: Removal(group.channels, (1,))}))
    assert done.verification is not None
    assert "x [1, 3, 10, 31]" in done.verification.sizes
    assert done.model.sizes == model.sizes
    assert [t.shape for t in done.model.graph.inputs] == [["N", 3, "H", "W"]]


def test_another_input_of_the_same_dimension_has_its_size() -> None:
    text = "g (float[N,L] x, float[N,L] z) => (float[N,L] y) { y = Add (x, z) }"
    assert with_shapes(load(made(text)), {"z": (None, 9)}).sizes == {("z", 1): 9}
    assert witness(load(made(text), shapes={"z": (None, 9)})).shapes["x"] == (11, 9)
