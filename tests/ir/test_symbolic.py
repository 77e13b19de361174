"""Expressions of dimensions: canonical, simplified only where that always holds, and the same numbers as integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.structures import FOLDER, filled
from random_graphs.graphs import PROPERTY, Spec, build, specs

import onnxprune as op
from onnxprune.analysis.shapes.shape_inference import assignments, witness
from onnxprune.ir.model import Model
from onnxprune.ir.symbolic import (
    Atom,
    Expr,
    Size,
    atom_of,
    bounds,
    divide,
    equal,
    evaluate,
    floor_divide,
    less,
    maximum,
    minimum,
    modulo,
    opaque,
    quotient,
    select,
    symbol,
)
from onnxprune.passes import LiftConstants, Pipeline, RemoveIdentity

N, H, W = symbol("N"), symbol("H"), symbol("W")


def test_equal_polynomials_are_equal() -> None:
    assert (N + 1) * (H + 2) == H * N + 2 * N + H + 2
    assert hash((N + 1) * H) == hash(H + N * H)
    assert N - N == 0
    assert N * 0 == 0
    assert 3 - N == -(N - 3)
    assert N != H
    assert symbol("N") == N
    assert symbol(("x", 0)) != symbol(("z", 0))


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (floor_divide(N * 6, 6), N), (floor_divide(N * H, H), N), (floor_divide(H + 4, 2), floor_divide(H, 2) + 2),
        (floor_divide(floor_divide(H, 2), 3), floor_divide(H, 6)), (modulo(N * 6, 3), 0), (modulo(H * W, W), 0),
        (modulo(H + 7, 7), modulo(H, 7)), (modulo(modulo(H, 7), 7), modulo(H, 7)), (minimum(N, N), N),
        (minimum(N, N + 1), N), (maximum(N, 1), N), (minimum(H, minimum(H, 512)), minimum(H, 512)), (less(N, 1), 0),
        (less(N, N + 1), 1), (equal(N, 0), 0), (equal(N, N), 1), (equal(N, H), equal(H, N)), (select(1, N, H), N),
        (select(less(N, H), 3, 3), 3), (divide(N * 12, 4), N * 3), (divide(N, 3), floor_divide(N, 3)),
        (floor_divide(modulo(H, 7), 7), 0), (quotient((H + 1) * (W + 2), W + 2), H + 1), (quotient(H, W), None),
        (quotient(H + 1, 2), None), (minimum(N, H), minimum(H, N)),
    ],
)  # fmt: skip
def test_simplifications(found: Size | None, wanted: Size | None) -> None:
    assert found == wanted


def test_what_only_some_sizes_make_constant_is_none() -> None:
    for size in (
        modulo(N, 2), minimum(H, 10**6), maximum(H, 4), floor_divide(N, H), modulo(7 - modulo(H, 7), 7), equal(H, 224),
        less(H, 10**9), select(less(H, 32), 1, 2), N - H, divide(N - 5, 2),
    ):  # fmt: skip
        assert isinstance(size, Expr)


def test_opaque_is_equal_to_itself_only() -> None:
    one, two = opaque(), opaque()
    assert one == one
    assert one != two
    assert isinstance(one - two, Expr)
    assert one - one == 0
    assert isinstance(floor_divide(one, one), Expr), "it may be zero"
    assert isinstance(maximum(one, 0), Expr)
    assert maximum(opaque(0), 0) != 0
    assert evaluate(one, {}) is None


def test_expressions_that_grow_become_opaque() -> None:
    out: Size = 1
    for i in range(12):
        out = out * (symbol(f"d{i}") + 1)
    assert isinstance(out, Expr)
    assert len(out.terms) <= 64
    assert "?" in repr(out)


# Functions of two expressions and what they are of integers; None where it is not defined.
FUNCTIONS = {
    "add": (lambda a, b: a + b, lambda a, b: a + b), "subtract": (lambda a, b: a - b, lambda a, b: a - b),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b), "floor": (floor_divide, lambda a, b: a // b if b else None),
    "divide": (divide, lambda a, b: math.trunc(a / b) if b else None), "min": (minimum, min), "max": (maximum, max),
    "modulo": (modulo, lambda a, b: a % b if b else None), "less": (less, lambda a, b: int(a < b)),
    "equal": (equal, lambda a, b: int(a == b)), "select": (lambda a, b: select(less(a, b), a, b), min),
}  # fmt: skip
TREES = st.recursive(
    st.sampled_from(("N", "H", "W")) | st.integers(-3, 12),
    lambda inner: st.tuples(st.sampled_from(sorted(FUNCTIONS)), inner, inner),
    max_leaves=8,
)
NUMBERS = st.fixed_dictionaries({name: st.integers(1, 40) for name in "NHW"})


def in_symbols(tree: object) -> Size:
    if isinstance(tree, tuple):
        return FUNCTIONS[tree[0]][0](in_symbols(tree[1]), in_symbols(tree[2]))
    return symbol(tree) if isinstance(tree, str) else int(tree)  # type: ignore[call-overload]


def in_numbers(tree: object, numbers: dict[str, int]) -> int | None:
    if isinstance(tree, tuple):
        a, b = (in_numbers(part, numbers) for part in tree[1:])
        return None if a is None or b is None else FUNCTIONS[tree[0]][1](a, b)
    return numbers[tree] if isinstance(tree, str) else int(tree)  # type: ignore[call-overload]


@PROPERTY(max_examples=400)
@given(TREES, NUMBERS)
def test_expressions_are_the_same_numbers(tree: object, numbers: dict[str, int]) -> None:
    expected = in_numbers(tree, numbers)
    found = in_symbols(tree)
    known: dict[Atom, int | None] = {atom_of(symbol(name)): n for name, n in numbers.items()}
    number = evaluate(found, known)
    if expected is not None and number is not None:
        assert number == expected
        low, high = bounds(found)
        assert low is None or low <= expected
        assert high is None or expected <= high
    assert expected is None or number is not None or "?" in repr(found)


@PROPERTY(max_examples=200)
@given(TREES)
def test_the_same_expression_is_found_again(tree: object) -> None:
    one, two = in_symbols(tree), in_symbols(tree)
    assert one == two or "?" in repr(one)


# ------------------------------------------------------------------------------------------------------ whole models


def holds_for_other_numbers(model: Model) -> int:
    """Evaluates all sizes and values for other dimensions and compares; returns how many sizes depend on one."""
    model = Pipeline([LiftConstants(), RemoveIdentity()])(model)
    one, two = (assignments(model) * 2)[:2]
    first, second = witness(model, one), witness(model, two)
    known: dict[Atom, int | None] = {}
    for t in model.graph.inputs:
        for axis, dim in enumerate(t.shape):
            if (t.name, axis) in two:
                known[atom_of(symbol(dim if isinstance(dim, str) and dim else (t.name, axis)))] = two[t.name, axis]
    for name in first.shapes.keys() & second.shapes.keys():
        for size, n in zip(first.symbolic(name) or (), second.shapes[name], strict=True):
            assert size is not None
            assert evaluate(size, known) in (n, None), name
    for name in first.values.keys() & second.values.keys():
        value = first.constant(name)
        assert value is None or np.array_equal(value, second.values[name]), name
        elements = first.elements(name) if name in first.formulas else None
        for size, n in zip(elements or (), second.values[name].reshape(-1).tolist(), strict=elements is not None):
            assert size is not None
            assert evaluate(size, known) in (n, None), name
    return len(first.sizes)


@pytest.mark.parametrize(
    "name",
    ["resnet18.ts", "swin_t.ts", "hf_deberta_v2.ts", "raft_small.ts", "timm_cait_xxs24_224.ts", "hf_segformer.ts"],
)
def test_what_is_said_of_a_model_holds_for_other_numbers(name: str) -> None:
    assert holds_for_other_numbers(filled(FOLDER / f"{name}.onnx.xz")) > 20


@PROPERTY(max_examples=60)
@given(specs())
def test_what_is_said_of_any_graph_holds_for_other_numbers(spec: Spec) -> None:
    holds_for_other_numbers(op.load(build(spec)))
