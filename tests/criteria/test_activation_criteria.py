"""apoz, act_mean and act_var: numpy on the tensors they measure, and whatever way the batches are cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from random_graphs.graphs import PROPERTY

from onnxprune.criteria.activations import ZeroCounts
from onnxprune.criteria.scoring import score
from onnxprune.execution.calibration import Calibration, exposing
from onnxprune.execution.data import Data
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze

Array = NDArray[Any]
NAMES = ("apoz", "act_mean", "act_var")

CHAIN = """a = Conv <pads = [1,1,1,1]> (x, w0) {0} c = Conv (b, w1) d = Relu (c)
  e = GlobalAveragePool (d) f = Flatten (e) g = Gemm <transB = 1> (f, w2, b2) h = Relu (g)
  y = Gemm <transB = 1> (h, w3)"""
CHAIN_SHAPES = {"w0": (4, 2, 3, 3), "w1": (6, 4, 3, 3), "w2": (5, 6), "w3": (3, 5), "b2": (5,)}
RESIDUAL = """a = Conv (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c) e = Conv (d, w2) s = Add (e, b) f = Relu (s)
  g = GlobalAveragePool (f) h = Flatten (g) y = Gemm <transB = 1> (h, w3)"""
RESIDUAL_SHAPES = {"w0": (4, 2, 1, 1), "w1": (6, 4, 1, 1), "w2": (4, 6, 1, 1), "w3": (3, 4)}


def made(body: str, shapes: dict[str, tuple[int, ...]]) -> Model:
    head = '<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,2,6,5] x) => (float[N,3] y)'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    rng = np.random.default_rng(3)
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 1, shape).astype(np.float32), name))
    return load(proto)


def by_numpy(name: str, maps: Array) -> Array:
    values = np.moveaxis(maps.astype(np.float64), 1, 0).reshape(maps.shape[1], -1)
    if name == "apoz":
        return 1 - (values == 0).mean(1)
    return np.asarray(values.mean(1) if name == "act_mean" else values.var(1))


X = np.random.default_rng(4).standard_normal((30, 2, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_moments_after_the_nonlinearity(name: str) -> None:
    model = made(CHAIN.format("b = Relu (a)"), CHAIN_SHAPES)
    scores = score(analyze(model), name, calibration=Calibration(Data(X, None, "random"), batch=7)).groups
    maps = Session(exposing(model, ["b", "d", "h"])).run({"x": X})
    for group, tensor in zip(("w0", "w1", "w2"), maps, strict=True):
        assert (tensor == 0).any()
        np.testing.assert_allclose(scores[group], by_numpy(name, tensor), rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_residual_stream_is_measured_after_each_addition(name: str) -> None:
    model = made(RESIDUAL, RESIDUAL_SHAPES)
    scores = score(analyze(model), name, calibration=Calibration(Data(X, None, "random"))).groups
    first, inner, last = Session(exposing(model, ["b", "d", "f"])).run({"x": X})
    np.testing.assert_allclose(scores["w0"], (by_numpy(name, first) + by_numpy(name, last)) / 2, rtol=1e-5)
    np.testing.assert_allclose(scores["w1"], by_numpy(name, inner), rtol=1e-5)


def test_activations_that_are_never_zero() -> None:
    """SiLU, written out: its output is measured; its share of zeros tells nothing, and its mean has a sign."""
    model = made(CHAIN.format("s = Sigmoid (a) b = Mul (a, s)"), CHAIN_SHAPES)
    x = X / 4  # below -18 or so onnxruntime's sigmoid is 0
    analysis, calibration = analyze(model), Calibration(Data(x, None, "random"))
    maps = Session(exposing(model, ["b"])).run({"x": x})[0]
    assert (score(analysis, "apoz", calibration=calibration).groups["w0"] == 1).all()
    mean = score(analysis, "act_mean", calibration=calibration).groups["w0"]
    np.testing.assert_allclose(mean, by_numpy("act_mean", maps), rtol=1e-5)
    linear = made(CHAIN.format("b = Identity (a)"), CHAIN_SHAPES)
    signed = score(analyze(linear), "act_mean", calibration=calibration).groups["w0"]
    assert signed.min() < 0 < signed.max()


@PROPERTY(max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 11), max_size=6),
    shape=st.sampled_from([(5,), (5, 3), (5, 3, 4), (5, 2, 2, 2)]),
    per_sample=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_zeros_count_alike_however_batches_are_cut(
    cuts: list[int], shape: tuple[int, ...], per_sample: int, seed: int
) -> None:
    maps = np.maximum(np.random.default_rng(seed).integers(-4, 3, (12 * per_sample, *shape)), 0).astype(np.float32)
    expected = np.moveaxis(maps == 0, 1, 0).reshape(5, -1).mean(1)
    for axis in (1, maps.ndim - 1):
        zeros = ZeroCounts(axis)
        edges = sorted({0, 12, *cuts})
        for start, stop in pairwise(edges):
            batch = maps[start * per_sample : stop * per_sample]
            zeros.add(np.moveaxis(batch, 1, axis), range(start, stop))
        np.testing.assert_array_equal(zeros.share, expected)


def test_negative_zero_is_a_zero_and_the_smallest_number_is_none() -> None:
    zeros = ZeroCounts()
    zeros.add(np.array([[-0.0, 1e-45, 0.0]], np.float32), range(1))
    assert zeros.share.tolist() == [1, 0, 1]
    assert zeros.share.dtype == np.float64
