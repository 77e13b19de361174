"""HRank against golden arrays, a loop over numpy's matrix_rank, and whatever way the batches are cut.

Not asserted: what the original hooks gave. Their scores are float32 means (`ref_score`), and their sort is unstable, so
that filters of equal mean rank are removed in any order (`ref_removed_P`).
"""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper
from random_graphs.graphs import PROPERTY

from onnxprune.criteria import get
from onnxprune.criteria.hrank import Ranks, matrix_ranks
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, exposing
from onnxprune.execution.data import Data
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = ("c8", "c32", "c128")
ASSERTED = r"conv_output|ranks|score|batch_split|(removed|sure|tied)_(25|50|75)"
INFORMATION = r"ref_score|ref_removed_(25|50|75)"
EPS = float(np.finfo(np.float32).eps)

Array = NDArray[Any]


@cache
def golden() -> dict[str, Array]:
    with np.load(GOLDENS / "hrank.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def collected(maps: Array, cuts: list[int], images: int = 10**6, axis: int = 1, per_sample: int = 1) -> Array:
    """The statistic of maps `[n * per_sample, ...]` that come in batches cut at these samples."""
    n = len(maps) // per_sample
    ranks = Ranks(axis, samples=n, images=images)
    edges = sorted({0, n, *(c for c in cuts if c < n)})
    for start, stop in pairwise(edges):
        ranks.add(maps[start * per_sample : stop * per_sample], range(start, stop))
    return ranks.mean


# ---------------------------------------------------------------- goldens


def test_every_array_is_asserted_or_for_information() -> None:
    assert {key.split("/")[0] for key in golden()} == set(CASES)
    assert [k for k in golden() if not re.fullmatch(rf"\w+/({ASSERTED}|{INFORMATION})", k)] == []


@pytest.mark.parametrize("case", CASES)
def test_golden_ranks_and_scores(case: str) -> None:
    data = golden()
    maps = np.maximum(data[f"{case}/conv_output"], 0)
    np.testing.assert_array_equal(matrix_ranks(maps), data[f"{case}/ranks"])
    scores = collected(maps, [int(data[f"{case}/batch_split"])])
    np.testing.assert_array_equal(scores, data[f"{case}/score"])  # sums of whole numbers: exact


@pytest.mark.parametrize("percent", [25, 50, 75])
@pytest.mark.parametrize("case", CASES)
def test_golden_removed(case: str, percent: int) -> None:
    data = golden()
    scores = collected(np.maximum(data[f"{case}/conv_output"], 0), [])
    count = len(scores) * percent // 100
    removed = np.sort(np.argsort(scores, kind="stable")[:count])
    np.testing.assert_array_equal(removed, data[f"{case}/removed_{percent}"])
    cut = np.sort(scores)[count - 1]
    np.testing.assert_array_equal(np.flatnonzero(scores < cut), data[f"{case}/sure_{percent}"])
    np.testing.assert_array_equal(np.flatnonzero(scores == cut), data[f"{case}/tied_{percent}"])


# ---------------------------------------------------------------- matrix_ranks


def low_rank(rng: np.random.Generator, height: int, width: int, rank: int) -> Array:
    """A float32 matrix whose rank is known: its singular values are from 1 to 2, and what float32 rounds away."""
    rank = min(rank, height, width)
    left = np.linalg.qr(rng.standard_normal((height, rank)))[0]
    right = np.linalg.qr(rng.standard_normal((width, rank)))[0]
    return (left * rng.uniform(1, 2, rank) @ right.T).astype(np.float32)


@PROPERTY(max_examples=40)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    ranks=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    seed=st.integers(0, 2**16),
)
def test_rank_of_matrices_of_known_rank(height: int, width: int, ranks: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = np.stack([low_rank(rng, height, width, r) for r in ranks]).reshape(1, len(ranks), height, width)
    expected = [[min(r, height, width) for r in ranks]]
    np.testing.assert_array_equal(matrix_ranks(maps), expected)
    np.testing.assert_array_equal(matrix_ranks(maps.swapaxes(2, 3)), expected)
    np.testing.assert_array_equal(matrix_ranks(maps * np.float32(2.0**40)), expected)


def test_bound_is_size_times_float32_rounding() -> None:
    for side, other in ((3, 8), (8, 3), (5, 5)):
        bound = max(side, other) * EPS
        for factor, rank in ((1.02, 2), (0.98, 1)):
            diagonal = np.zeros((side, other))
            diagonal[0, 0], diagonal[1, 1] = 1.0, factor * bound
            assert matrix_ranks(diagonal[None]).tolist() == [rank]


def test_zero_and_small_maps() -> None:
    assert matrix_ranks(np.zeros((2, 3, 4, 4), np.float32)).tolist() == [[0] * 3] * 2
    assert matrix_ranks(np.array([0.0, 1e-30, -2.0]).reshape(3, 1, 1)).tolist() == [0, 1, 1]
    assert matrix_ranks(np.array([[[0.0, 0.0]], [[0.0, 3.0]]])).tolist() == [0, 1]
    assert matrix_ranks(np.zeros((0, 4, 4))).tolist() == []


def test_many_blocks_of_maps() -> None:
    """More than the block that is decomposed at once, zero maps among them."""
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.integers(-3, 3, (1500, 12, 12)), 0).astype(np.float32)
    maps[rng.random(1500) < 0.3] = 0
    expected = [np.linalg.matrix_rank(m, tol=12 * EPS * np.linalg.norm(m, 2)) for m in maps.astype(np.float64)]
    np.testing.assert_array_equal(matrix_ranks(maps), expected)


# ---------------------------------------------------------------- the statistic


@PROPERTY(max_examples=25)
@given(
    cuts=st.lists(st.integers(1, 11), max_size=6),
    shape=st.sampled_from([(5,), (5, 3), (5, 3, 4), (5, 2, 2, 2)]),
    images=st.integers(1, 20),
    per_sample=st.integers(1, 2),
    seed=st.integers(0, 2**16),
)
def test_batches_may_be_cut_anywhere(
    cuts: list[int], shape: tuple[int, ...], images: int, per_sample: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    maps = np.maximum(rng.integers(-4, 3, (12 * per_sample, *shape)), 0).astype(np.float32)
    whole = collected(maps, [], images, per_sample=per_sample)
    np.testing.assert_array_equal(collected(maps, cuts, images, per_sample=per_sample), whole)
    last = np.moveaxis(maps, 1, -1)  # channels last, as a Keras model may have them
    np.testing.assert_array_equal(collected(last, cuts, images, maps.ndim - 1, per_sample), whole)
    if len(shape) != 3:  # no matrices: 1 where anything is not zero
        chosen = [i for i in range(12) if (i + 1) * min(images, 12) // 12 > i * min(images, 12) // 12]
        rows = maps.reshape(12, per_sample, 5, -1)[chosen]
        np.testing.assert_array_equal(whole, rows.any(-1).mean((0, 1)))


@pytest.mark.parametrize("images", [1, 2, 5, 7, 11, 12, 13])
def test_images_are_spread_evenly(images: int) -> None:
    """Each sample fills a channel of its own, so that the scores tell which were looked at."""
    scores = collected(np.eye(12, dtype=np.float32), [5], images)
    looked = np.flatnonzero(scores)
    assert len(looked) == min(images, 12)
    assert np.ptp(np.diff(looked)) <= 1 if len(looked) > 2 else True
    np.testing.assert_allclose(scores[looked], 1 / len(looked))


@pytest.mark.parametrize("images", [0, -1, 1.5, True, "all"])
def test_images_is_a_number_from_one_up(images: Any) -> None:
    with pytest.raises(OnnxPruneError, match="images"):
        get("hrank", images=images)


# ---------------------------------------------------------------- on a model

MODEL = """<ir_version: 8, opset_import: ["" : 17]> agraph (float[N,2,6,5] x) => (float[N,3] y) {
  a = Conv <pads = [1,1,1,1]> (x, w0) b = Relu (a) c = Conv (b, w1) d = Relu (c)
  e = GlobalAveragePool (d) f = Flatten (e) g = Gemm <transB = 1> (f, w2, b2) h = Relu (g)
  y = Gemm <transB = 1> (h, w3) }"""


def small_model() -> Model:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(3)
    shapes = {"w0": (4, 2, 3, 3), "w1": (6, 4, 3, 3), "w2": (5, 6), "w3": (3, 5), "b2": (5,)}
    for name, shape in shapes.items():
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(-0.05, 1, shape).astype(np.float32), name))
    return load(proto)


def test_scores_are_mean_ranks_after_the_nonlinearity() -> None:
    model = small_model()
    x = np.random.default_rng(4).standard_normal((30, 2, 6, 5)).astype(np.float32)
    x[:, :, 3:] = 0  # rows that are alike, so that not every map has full rank
    analysis = analyze(model)
    scores = score(analysis, "hrank", calibration=Calibration(Data(x, None, "random"), batch=7))
    b, d, h = Session(exposing(model, ["b", "d", "h"])).run({"x": x})
    for group, maps in (("w0", b), ("w1", d)):
        tol = max(maps.shape[2:]) * EPS
        ranks = [[np.linalg.matrix_rank(m, tol=tol * np.linalg.norm(m, 2)) for m in image] for image in maps]
        np.testing.assert_array_equal(scores.groups[group], np.mean(ranks, axis=0))
        assert len(np.unique(ranks)) > 1
    np.testing.assert_array_equal(scores.groups["w2"], (h != 0).mean(0))
    assert any(0 < s < 1 for s in scores.groups["w2"])


def test_fewer_images_are_those_alone() -> None:
    model = small_model()
    x = np.random.default_rng(5).standard_normal((12, 2, 6, 5)).astype(np.float32)
    some = Calibration(Data(x[[3, 7, 11]], None, "some"), batch=2)
    whole = Calibration(Data(x, None, "whole"), batch=5)
    expected = score(analyze(model), "hrank", calibration=some).groups
    found = score(analyze(model), get("hrank", images=3), calibration=whole).groups
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])
