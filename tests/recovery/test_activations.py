"""Scalar functions behind linear nodes: what is recognized, their values, and targets that lower the error."""

from __future__ import annotations

from collections.abc import Callable
from math import erf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs.graphs import PROPERTY
from recovering import parsed

from onnxprune.ir.model import Model
from onnxprune.recovery._activations import Activation, Clamp, activation, chain

NUMBERS = {"half": 0.5, "one": 1.0, "root": 2**0.5, "zero": 0.0, "three": 3.0, "six": 6.0}
# Chain behind e -> (its last tensor, the function).
CHAINS: dict[str, tuple[str, Callable[[float], float]]] = {
    "f = HardSwish (e)": ("f", lambda z: z * min(max(z / 6 + 0.5, 0), 1)),
    "k = Add (e, three) l = Clip (k, zero, six) m = Mul (l, e) f = Div (m, six)": (
        "f", lambda z: z * min(max(z + 3, 0), 6) / 6,
    ),
    "k = Sigmoid (e) f = Mul (e, k)": ("f", lambda z: z / (1 + np.exp(-z))),
    "k = Div (e, root) l = Erf (k) m = Add (l, one) n = Mul (e, m) f = Mul (n, half)": (
        "f", lambda z: z * (1 + erf(z / 2**0.5)) / 2,
    ),
    "k = LeakyRelu <alpha = 0.25> (e) l = Mul (k, three) f = Add (l, one)": (
        "f", lambda z: 3 * max(z, 0.25 * z) + 1,
    ),
    "f = PRelu (e, half)": ("f", lambda z: max(z, 0.5 * z)),
    "f = Mul (e, e)": ("f", lambda z: z * z),
    "k = Tanh (e) f = Mul (k, channels)": ("k", np.tanh),  # one number a channel ends it
}  # fmt: skip
NONE = {
    "linear": "k = Mul (e, half) f = Add (k, one)",
    "decoded boxes": "f = Exp (e)",
    "one slope a channel": "f = PRelu (e, channels)",
    "an inverse": "f = Div (one, e)",
    "another tensor": "f = Mul (e, b)",
    "one number a channel": "k = Mul (e, channels) f = Sigmoid (k)",
    "read elsewhere as well": "k = Sigmoid (e) l = Add (k, b) f = Sub (l, e)",
    "two ends": "k = Sigmoid (e) l = Tanh (e) m = Softmax <axis = 1> (k) n = Softmax <axis = 1> (l) f = Add (m, n)",
    "not elementwise": "f = Softmax <axis = 1> (e)",
}


def behind(text: str) -> Model:
    values = {n: np.array(v) for n, v in NUMBERS.items()}
    values["channels"] = np.arange(1.0, 5.0).reshape(1, 4, 1, 1)
    body = f"b = Conv <kernel_shape = [1, 1]> (x, w) e = Conv <kernel_shape = [1, 1]> (b, v) {text} y = Conv (f, u)"
    shapes = {"w": (4, 3, 1, 1), "v": (4, 4, 1, 1), "u": (3, 4, 1, 1)}
    return parsed(body, shapes, values=values).model


def found(text: str) -> tuple[Model, str, Activation] | None:
    model = behind(text)
    known = {o.name for n in model.graph.nodes for o in n.outputs}
    t = model.graph.tensors()["e"]
    nodes = chain(t, {x.name for x in model.graph.outputs}, known)
    if nodes is None:
        return None
    return model, nodes[1].name, activation(model, t, nodes, np.dtype(np.float32))


@pytest.mark.parametrize("text", CHAINS)
def test_a_chain_is_the_function_that_it_computes(text: str) -> None:
    end, function = CHAINS[text]
    result = found(text)
    assert result is not None
    assert result[1] == end
    z = np.linspace(-8, 8, 4_001, dtype=np.float32).reshape(-1, 1)
    np.testing.assert_allclose(result[2](z), np.vectorize(function)(z.astype(np.float64)), rtol=1e-6, atol=2e-6)
    np.testing.assert_array_equal(result[2](z.reshape(1, -1)), result[2](z).reshape(1, -1))


@pytest.mark.parametrize("why", NONE)
def test_other_nodes_are_no_chain(why: str) -> None:
    assert found(NONE[why]) is None


def test_values_that_are_not_finite_make_it_the_identity() -> None:
    result = found("f = Pow (e, half)")
    assert result is not None
    assert result[2] == Clamp()


def test_a_chain_ends_before_outputs_and_bodies() -> None:
    graph = behind("k = Sigmoid (e) f = Mul (e, k)").graph
    t = graph.tensors()["e"]
    known = {o.name for n in graph.nodes for o in n.outputs}
    assert chain(t, {"y"}, known) is not None
    assert chain(t, {"f"}, known) is None
    assert chain(t, {"e"}, known) is None
    assert chain(t, {"y"}, known - {"k"}) is None  # written in a body


@PROPERTY(max_examples=30)
@given(st.sampled_from(sorted(CHAINS)), st.integers(0, 1000), st.floats(0.1, 3))
def test_a_target_lowers_the_error_of_what_is_passed_on(text: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    wanted = (scale * rng.standard_normal((300, 4))).astype(np.float32)
    given = wanted + np.float32(0.1 * scale) * rng.standard_normal(wanted.shape).astype(np.float32)
    result = found(text)
    assert result is not None
    f = result[2]
    target = f.target(given, wanted, f(wanted))
    assert target.dtype == given.dtype
    assert f.bends(wanted)
    before, after = (np.square(f(z) - f(wanted), dtype=np.float64).sum() for z in (given, target))
    assert after < 0.999 * before


@PROPERTY(max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([(0.0, np.inf), (-0.5, 0.5), (-np.inf, 0.3), (-np.inf, np.inf)]))
def test_bounds_want_nothing_beyond_them(seed: int, limits: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    wanted, given = rng.standard_normal((2, 50, 3)).astype(np.float32)
    f = Clamp(*limits)
    target = f.target(given, wanted, f(wanted))
    np.testing.assert_array_equal(f(target), f(wanted))
    inside = (wanted > limits[0]) & (wanted < limits[1])
    np.testing.assert_array_equal(target[inside], wanted[inside])
    both = (f(given) == f(wanted)) & ~inside
    np.testing.assert_array_equal(target[both], given[both])
    assert f.bends(wanted) == (not inside.all())
