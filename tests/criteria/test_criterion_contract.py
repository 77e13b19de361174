"""Contract of every criterion, run over the whole registry; then each definition against a naive loop."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from onnxprune.criteria import Criterion, all_criteria, get, register
from onnxprune.criteria._registry import CRITERIA
from onnxprune.criteria.dscore import ranks, sign_distance_sums, step_keys
from onnxprune.criteria.geometric_median import Fpgm, distance_sums
from onnxprune.criteria.normalize import METHODS, normalize
from onnxprune.errors import OnnxPruneError

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Facts:
    """Properties of one criterion beyond the common contract; a new criterion adds its line to `FACTS`."""

    scale: str  # scores of c * w, c > 0: "linear" (c * scores) or "invariant"
    permutes: str  # permuting the filters permutes the scores: "always", "untied" (ranks break ties by index), "never"
    low: str  # scored lowest: the "zero" filter, the most "central" one, or "any"


FACTS = {
    "l1": Facts("linear", "always", "zero"),
    "l2": Facts("linear", "always", "zero"),
    "bn_scale": Facts("linear", "always", "zero"),
    "fpgm": Facts("linear", "always", "central"),
    "dscore": Facts("invariant", "untied", "zero"),
    "dstep": Facts("invariant", "untied", "zero"),
    "dstep_gm": Facts("invariant", "untied", "central"),
    "lamp": Facts("invariant", "untied", "zero"),
    "random": Facts("invariant", "never", "any"),  # by place and tensor name alone
}
INSTANCES = {name: rule for name, cls in all_criteria().items() if isinstance(rule := cls(), Criterion)}
every = pytest.mark.parametrize("criterion", INSTANCES.values(), ids=INSTANCES.keys())


def layer(criterion: Criterion, filters: int = 24, seed: int = 0) -> Array:
    """Random weights that float16 holds exactly, of the shape the criterion reads."""
    shape = (filters,) if criterion.reads == "bn_scale" else (filters, 5, 3, 3)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)


# ---------------------------------------------------------------- the contract


def test_facts_are_stated_for_exactly_the_registered_criteria() -> None:
    assert set(FACTS) == set(INSTANCES)


@every
def test_class_states_what_it_is(criterion: Criterion) -> None:
    assert INSTANCES[criterion.name] is criterion
    assert criterion.title
    assert "\n" not in criterion.title
    assert any(c.isdigit() for c in criterion.source), "a source has a year"
    assert criterion.reads in ("filters", "bn_scale")
    assert set(criterion.reductions) <= {"mean", "sum", "max", "first"}
    assert criterion.default_reduce in criterion.reductions
    assert criterion.default_normalize in METHODS
    doc = type(criterion).__doc__ or ""
    assert re.search(r"[sPQ]_[fc]|rank", doc), "the docstring gives the formula"


@every
def test_frozen_dataclass_equal_by_parameters(criterion: Criterion) -> None:
    assert dataclasses.is_dataclass(criterion)
    for field in (*vars(criterion), "anything"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(criterion, field, 1)
    assert criterion == type(criterion)()
    assert hash(criterion) == hash(type(criterion)())


@every
def test_shape_dtype_and_determinism(criterion: Criterion) -> None:
    weight = layer(criterion)
    scores = criterion.filter_scores(weight, tensor="w")
    assert scores.shape == (24,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(set(scores)) > 1
    np.testing.assert_array_equal(type(criterion)().filter_scores(weight.copy(), tensor="w"), scores)


@every
def test_input_is_not_changed(criterion: Criterion) -> None:
    for dtype in (np.float32, np.float64):  # float64 could be used in place by mistake
        weight = layer(criterion).astype(dtype)
        before = weight.copy()
        scores = criterion.filter_scores(weight)
        scores += 1.0
        np.testing.assert_array_equal(weight, before)
        weight.flags.writeable = False
        criterion.filter_scores(weight)


@every
@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ">f4"], ids=str)
def test_same_values_in_another_dtype_score_the_same(criterion: Criterion, dtype: Any) -> None:
    weight = layer(criterion).astype(dtype)
    same = weight.astype(np.float32)
    np.testing.assert_array_equal(criterion.filter_scores(weight), criterion.filter_scores(same))


@every
def test_accumulates_in_float64(criterion: Criterion) -> None:
    """float16 filters whose squares and sums leave float16's range."""
    weight = (layer(criterion) * 8192).astype(np.float16)
    assert np.isfinite(weight).all()
    np.testing.assert_array_equal(criterion.filter_scores(weight), criterion.filter_scores(weight.astype(np.float64)))


@every
def test_memory_layout_does_not_matter(criterion: Criterion) -> None:
    weight = layer(criterion).astype(np.float64) / 3  # thirds: sums round, so their order shows
    strided = np.repeat(weight, 2, axis=0)[::2]
    scores = criterion.filter_scores(weight)
    flat = np.asfortranarray(weight.reshape(24, -1) if weight.ndim > 1 else weight)
    for same in (np.asfortranarray(weight), flat, strided, weight[::-1].copy()[::-1]):
        np.testing.assert_array_equal(criterion.filter_scores(same), scores)


@every
def test_trailing_shape_does_not_matter(criterion: Criterion) -> None:
    if criterion.reads == "filters":
        weight = layer(criterion)
        flat = weight.reshape(24, 45)
        np.testing.assert_array_equal(criterion.filter_scores(flat), criterion.filter_scores(weight))


@every
def test_permuting_filters_permutes_scores(criterion: Criterion) -> None:
    weight = layer(criterion, filters=300)  # more than one block of distances
    order = np.random.default_rng(1).permutation(300)
    moved = criterion.filter_scores(weight[order])
    scores = criterion.filter_scores(weight)
    assert np.array_equal(moved, scores[order]) == (FACTS[criterion.name].permutes != "never")


@every
def test_permuting_tied_filters(criterion: Criterion) -> None:
    """Equal filters score equally, unless ranks tell them apart by their index."""
    weight = layer(criterion, filters=20)
    weight[12:16] = weight[3]
    scores = criterion.filter_scores(weight)
    alike = bool((scores[12:16] == scores[3]).all())
    assert alike == (FACTS[criterion.name].permutes == "always")
    if FACTS[criterion.name].permutes == "untied":  # the lower index goes first
        assert (np.diff(scores[[3, 12, 13, 14, 15]]) > 0).all()


@every
@pytest.mark.parametrize("factor", [2.0**-20, 4.0, 2.0**30])
def test_scaling_the_layer(criterion: Criterion, factor: float) -> None:
    weight = layer(criterion)
    scores = criterion.filter_scores(weight)
    scaled = criterion.filter_scores(weight * np.float32(factor))
    expected = scores * (factor if FACTS[criterion.name].scale == "linear" else 1.0)
    np.testing.assert_allclose(scaled, expected, rtol=1e-12)


@every
def test_sign_of_the_layer_does_not_matter(criterion: Criterion) -> None:
    weight = layer(criterion)
    np.testing.assert_allclose(criterion.filter_scores(-weight), criterion.filter_scores(weight), rtol=1e-12)


@every
def test_a_zero_filter_goes_first(criterion: Criterion) -> None:
    weight = layer(criterion)
    weight[7] = 0.0
    scores = criterion.filter_scores(weight)
    if FACTS[criterion.name].low == "zero":
        assert (np.delete(scores, 7) > scores[7]).all()
    elif FACTS[criterion.name].low == "central":
        # No special case, but of otherwise random filters zero is nearest to all: higher = keep is not turned round.
        assert scores.argmin() == 7


@every
def test_an_outstanding_filter_goes_last(criterion: Criterion) -> None:
    weight = layer(criterion)
    weight[7] *= 1000.0
    scores = criterion.filter_scores(weight)
    if FACTS[criterion.name].low != "any":
        assert (np.delete(scores, 7) < scores[7]).all()


@every
def test_all_zero_layer_and_single_filter(criterion: Criterion) -> None:
    for weight in (np.zeros_like(layer(criterion)), layer(criterion, filters=1)):
        scores = criterion.filter_scores(weight)
        assert scores.shape == (len(weight),)
        assert np.isfinite(scores).all()


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_an_error(criterion: Criterion, value: float) -> None:
    weight = layer(criterion)
    weight.flat[3] = value
    with pytest.raises(OnnxPruneError, match="NaN or infinity") as caught:
        criterion.filter_scores(weight, tensor="conv1.weight")
    assert caught.value.where == "conv1.weight"


@every
def test_wrong_shapes_are_an_error(criterion: Criterion) -> None:
    one, two = np.ones(4, np.float32), np.ones((4, 2), np.float32)
    wrong, empty = (two, np.ones(0)) if criterion.reads == "bn_scale" else (one, np.ones((4, 0)))
    for weight in (wrong, np.float32(1.0)):
        with pytest.raises(OnnxPruneError, match="must be"):
            criterion.filter_scores(weight)  # type: ignore[arg-type]
    with pytest.raises(OnnxPruneError, match="empty"):
        criterion.filter_scores(empty)
    if criterion.reads == "filters":
        with pytest.raises(OnnxPruneError, match="empty"):
            criterion.filter_scores(np.ones((0, 3)))


@every
@pytest.mark.parametrize("dtype", [np.int8, np.complex64, bool, object], ids=str)
def test_weights_that_are_not_floats_are_an_error(criterion: Criterion, dtype: Any) -> None:
    with pytest.raises(OnnxPruneError, match="floating-point"):
        criterion.filter_scores(layer(criterion).astype(dtype))


@pytest.mark.parametrize("name", ["l2", "fpgm", "lamp"])
def test_overflow_is_an_error_and_not_an_infinity(name: str) -> None:
    with pytest.raises(OnnxPruneError, match="overflow"):
        get(name).filter_scores(np.full((3, 2), 1e200) * np.arange(3)[:, None])


# ---------------------------------------------------------------- definitions, against loops

# Eighths up to 4: sums and squares are exact in float64, so ties are real ties in either summation order.
eighths = st.integers(-32, 32).map(lambda k: k / 8)
shapes = hnp.array_shapes(min_dims=2, max_dims=4, max_side=6)
tied_weights = hnp.arrays(np.float32, shapes, elements=eighths)
weights = hnp.arrays(np.float32, shapes, elements=st.floats(-8, 8, width=32))
TINY = 1e-30  # squares of subnormal float32 numbers may vanish


def filters_of(weight: Array) -> list[list[float]]:
    return [[float(v) for v in np.ravel(f)] for f in weight]


def naive_rank(values: list[float]) -> list[int]:
    return [sum((other, j) < (value, i) for j, other in enumerate(values)) for i, value in enumerate(values)]


def naive_distances(filters: list[list[float]]) -> list[float]:
    return [math.fsum(math.dist(f, g) for g in filters) for f in filters]


@given(weights)
def test_l1_and_l2_by_loop(weight: Array) -> None:
    filters = filters_of(weight)
    l1 = [math.fsum(map(abs, f)) for f in filters]
    l2 = [math.hypot(*f) for f in filters]
    np.testing.assert_allclose(get("l1").filter_scores(weight), l1, rtol=1e-12)
    np.testing.assert_allclose(get("l2").filter_scores(weight), l2, rtol=1e-12, atol=TINY)


@given(weights)
def test_fpgm_by_loop(weight: Array) -> None:
    expected = naive_distances(filters_of(weight))
    np.testing.assert_allclose(get("fpgm").filter_scores(weight), expected, rtol=1e-9, atol=TINY)


@given(tied_weights, st.integers(0, 99))
def test_fpgm_mix_by_loop(weight: Array, percent: int) -> None:
    filters = filters_of(weight)
    squares = [math.fsum(v * v for v in f) for f in filters]
    by_norm = [i for _, i in sorted(zip(squares, range(len(filters)), strict=True))]
    first = by_norm[: len(filters) * percent // 100]
    kept = sorted(set(by_norm) - set(first))
    scores = get("fpgm", mix_norm=percent / 100).filter_scores(weight)
    assert list(np.argsort(scores, kind="stable")[: len(first)]) == first
    assert (scores[first] < 0).all()
    np.testing.assert_allclose(scores[kept], naive_distances([filters[i] for i in kept]), rtol=1e-9)


@given(tied_weights)
def test_dscore_by_loop(weight: Array) -> None:
    filters = filters_of(weight)
    positive = naive_rank([math.fsum(v for v in f if v > 0) for f in filters])
    negative = naive_rank([math.fsum(-v for v in f if v < 0) for f in filters])
    expected = [p + q for p, q in zip(positive, negative, strict=True)]
    np.testing.assert_array_equal(get("dscore").filter_scores(weight), expected)


@given(tied_weights)
def test_dstep_by_growing_prefixes(weight: Array) -> None:
    """The paper's procedure itself: take what is in the first j of both orders, for growing j."""
    filters = filters_of(weight)
    positive = naive_rank([math.fsum(v for v in f if v > 0) for f in filters])
    negative = naive_rank([math.fsum(-v for v in f if v < 0) for f in filters])
    taken: list[int] = []
    for j in range(1, len(filters) + 1):
        both = [i for i in range(len(filters)) if positive[i] < j and negative[i] < j and i not in taken]
        taken += sorted(both, key=lambda i: (positive[i] + negative[i], i))
    scores = get("dstep").filter_scores(weight)
    assert list(np.argsort(scores, kind="stable")) == taken


@given(weights)
def test_dstep_gm_by_loop(weight: Array) -> None:
    filters = filters_of(weight)
    positive, negative = sign_distance_sums(np.array(filters))
    expected = naive_distances([[max(v, 0.0) for v in f] for f in filters])
    np.testing.assert_allclose(positive, expected, rtol=1e-9, atol=TINY)
    expected = naive_distances([[max(-v, 0.0) for v in f] for f in filters])
    np.testing.assert_allclose(negative, expected, rtol=1e-9, atol=TINY)
    # Ranked from the sums just checked: mathematical ties may round either way.
    p, q = naive_rank(positive.tolist()), naive_rank(negative.tolist())
    order = sorted(range(len(filters)), key=lambda i: (max(p[i], q[i]), p[i] + q[i], i))
    assert list(np.argsort(get("dstep_gm").filter_scores(weight), kind="stable")) == order


@given(tied_weights)
def test_lamp_by_loop(weight: Array) -> None:
    squares = [math.fsum(v * v for v in f) for f in filters_of(weight)]
    key = [(s, i) for i, s in enumerate(squares)]
    expected = [k[0] / sum(o[0] for o in key if o >= k) if k[0] else 0.0 for k in key]
    scores = get("lamp").filter_scores(weight)
    np.testing.assert_allclose(scores, expected, rtol=1e-12)
    np.testing.assert_array_equal(ranks(scores), naive_rank(squares))


@given(hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(-8, 8, width=32)))
def test_bn_scale_by_loop(gamma: Array) -> None:
    np.testing.assert_array_equal(get("bn_scale").filter_scores(gamma), [abs(float(g)) for g in gamma])


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_step_keys_order_by_largest_rank_then_sum(p: list[int], q: list[int]) -> None:
    keys = step_keys(np.array(p), np.array(q))
    expected = sorted(range(6), key=lambda i: (max(p[i], q[i]), p[i] + q[i], i))
    assert list(np.argsort(keys, kind="stable")) == expected


def test_step_keys_are_exact_for_wide_layers() -> None:
    top = np.array([2**20 - 1, 2**20 - 2])
    wide = np.concatenate([top, np.zeros(2**20 - 2, dtype=np.int64)])
    assert step_keys(wide, np.zeros_like(wide))[0] == (2**20 - 1) * 2**21 + 2**20 - 1


# ---------------------------------------------------------------- distances, where the fast form is delicate


def test_equal_filters_are_exactly_nothing_apart() -> None:
    filter_ = np.random.default_rng(0).standard_normal(4608) * 1e3
    assert (distance_sums(np.stack([filter_] * 300)) == 0.0).all()
    assert (distance_sums(np.array([[0.0, 1.0], [-0.0, 1.0]])) == 0.0).all()


def test_the_sign_of_zero_does_not_part_equal_filters() -> None:
    """The positive part of a filter holds zeros of both signs; equal filters must tie exactly all the same."""
    rows = np.random.default_rng(0).standard_normal((300, 30))
    rows[:, 0] = 2.0  # as bytes, 2.0 lies between the two zeros: taken for different rows, the twins would be far apart
    rows[5:9] = rows[5]
    rows[5:9, 0] = [0.0, -0.0, 0.0, -0.0]
    assert len(set(distance_sums(rows)[5:9])) == 1


def test_nearly_equal_filters_keep_their_distance() -> None:
    """|a|^2 + |b|^2 - 2 a.b loses all digits here; the differences do not."""
    rng = np.random.default_rng(0)
    for size, spread in itertools.product((1e-6, 1.0, 1e6), (1e-3, 1e-6, 1e-9, 1e-12)):
        rows = size * (rng.standard_normal(50) + spread * rng.standard_normal((140, 50)))
        expected = naive_distances(rows.tolist())
        np.testing.assert_allclose(distance_sums(rows), expected, rtol=1e-7)


def test_many_near_pairs_are_computed_in_chunks() -> None:
    rows = 1.0 + 1e-8 * np.random.default_rng(0).standard_normal((40, 7))
    np.testing.assert_array_equal(distance_sums(rows, pair_values=20), distance_sums(rows))


@pytest.mark.parametrize("filters", [127, 128, 129, 300])
def test_every_pair_counts_once_across_blocks(filters: int) -> None:
    points = np.arange(filters, dtype=np.float64)
    expected = [abs(points - p).sum() for p in points]
    np.testing.assert_allclose(distance_sums(points[:, None]), expected, rtol=1e-9)
    repeated = np.concatenate([points, points[:50], points[-3:]])  # merged and counted
    expected = [abs(repeated - p).sum() for p in repeated]
    np.testing.assert_allclose(distance_sums(repeated[:, None]), expected, rtol=1e-9)


def test_fpgm_removes_the_median_first() -> None:
    line = np.array([-4.0, -1.0, 0.5, 6.0, 9.0])[:, None] * np.ones(3)
    assert get("fpgm").filter_scores(line).argmin() == 2


def test_fpgm_mix_share_is_decimal() -> None:
    weight = np.arange(1.0, 101.0)[:, None]
    assert 0.29 * 100 < 29  # the trap
    for percent in range(100):
        assert (Fpgm(mix_norm=percent / 100).filter_scores(weight) < 0).sum() == percent
    assert (Fpgm(mix_norm=0.9).filter_scores(weight[:10]) < 0).sum() == 9


def test_fpgm_mix_scales_with_the_weights_and_orders_equal_filters() -> None:
    mix = Fpgm(mix_norm=0.5)
    weight = layer(mix)
    np.testing.assert_array_equal(mix.filter_scores(weight * 4), mix.filter_scores(weight) * 4)
    same = mix.filter_scores(np.ones((4, 2)))
    assert list(np.argsort(same, kind="stable")) == [0, 1, 2, 3]
    assert list(same < 0) == [True, True, False, False]


@pytest.mark.parametrize("value", [1, 1.0, -0.1, math.nan, math.inf, True, False, "0.1", None])
def test_fpgm_mix_out_of_range(value: Any) -> None:
    with pytest.raises(OnnxPruneError, match="mix_norm"):
        get("fpgm", mix_norm=value)


# ---------------------------------------------------------------- random


def test_random_is_the_same_everywhere_and_for_ever() -> None:
    """Pinned: a plan made on another machine, years ago, must be reproducible."""
    weight = np.zeros((3, 1))
    expected = [0.34396855470643517, 0.4956313005284877, 0.427081435360286]
    assert get("random").filter_scores(weight, tensor="conv1.weight").tolist() == expected
    expected = [0.8870686747329113, 0.22666076516727107, 0.9777997953584722]
    assert get("random", seed=7).filter_scores(weight, tensor="conv1.weight").tolist() == expected


def test_random_differs_by_tensor_and_is_uniform() -> None:
    weight = np.zeros((10_000, 1))
    a = get("random").filter_scores(weight, tensor="a")
    b = get("random").filter_scores(weight, tensor="b")
    assert not np.intersect1d(a, b).size
    assert a.min() >= 0.0
    assert a.max() < 1.0
    assert (abs(np.histogram(a, bins=10, range=(0, 1))[0] - 1000) < 150).all()  # 5 standard deviations


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_random_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(OnnxPruneError, match="seed"):
        get("random", seed=seed)


# ---------------------------------------------------------------- normalisation

score_vectors = hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0, 1e300))


def test_normalisation_formulas() -> None:
    s = np.array([1.0, 5.0, 2.0])
    by_hand = {
        "none": s,
        "mean": s * 3 / 8,
        "max": s / 5,
        "sum": s / 8,
        "gaussian": (s - Fraction(8, 3)) / math.sqrt(30 / 3 - 64 / 9),
        "lamp": [1 / 8, 1.0, 2 / 7],
    }
    assert set(by_hand) == set(METHODS)
    for how, expected in by_hand.items():
        np.testing.assert_allclose(normalize(s, how), np.array(expected, dtype=np.float64), rtol=1e-14)
    assert s.tolist() == [1.0, 5.0, 2.0]


@pytest.mark.parametrize("how", METHODS)
@given(scores=score_vectors)
def test_normalisation_keeps_the_order(how: str, scores: Array) -> None:
    result = normalize(scores, how)
    assert result is not scores
    assert result.dtype == np.float64
    assert np.isfinite(result).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(result[order]) >= 0).all()


@pytest.mark.parametrize("how", sorted(set(METHODS) - {"lamp"}))
def test_negative_scores_keep_their_order_though_their_mean_is_negative(how: str) -> None:
    for scores in ([-9.0, -1.0, 2.0, 3.0], [-9.0, -5.0, -1.0]):
        assert (np.diff(normalize(np.array(scores), how)) > 0).all()


@pytest.mark.parametrize("how", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.1, 5e-324])
def test_constant_groups(how: str, value: float) -> None:
    result = normalize(np.full(7, value), how)
    ones = {"none": value, "mean": 1.0, "max": 1.0, "sum": 1 / 7, "gaussian": 0.0}
    if value == 0.0:
        expected = [0.0] * 7
    elif how == "lamp":  # each a share of those not yet removed
        expected = [1 / k for k in range(7, 0, -1)]
    else:
        expected = [ones[how]] * 7
    np.testing.assert_allclose(result, expected, rtol=1e-14)


def test_normalisation_errors() -> None:
    with pytest.raises(OnnxPruneError, match="normalization 'means'") as caught:
        normalize(np.ones(2), "means")
    assert caught.value.fix is not None
    assert "'mean'" in caught.value.fix
    with pytest.raises(OnnxPruneError, match="lamp"):
        normalize(np.array([-1.0, 1.0]), "lamp")
    for scores in (np.ones(0), np.ones((2, 2)), np.array([1.0, np.nan]), np.array([1.0, np.inf])):
        with pytest.raises(OnnxPruneError):
            normalize(scores, "mean")


# ---------------------------------------------------------------- the registry


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(OnnxPruneError, match="'dscor'") as caught:
        get("dscor")
    assert caught.value.fix is not None
    assert "'dscore'" in caught.value.fix


def test_unknown_parameter_names_the_valid_ones() -> None:
    with pytest.raises(OnnxPruneError, match="no parameter 'norm'") as caught:
        get("fpgm", norm=1)
    assert caught.value.fix is not None
    assert "mix_norm" in caught.value.fix
    with pytest.raises(OnnxPruneError) as caught:
        get("l1", norm=1)
    assert caught.value.fix == "it has none"
    with pytest.raises(OnnxPruneError, match="no parameter 'title'"):
        get("l1", title="x")  # a class variable, not a parameter


def test_parameters_arrive() -> None:
    assert get("fpgm", mix_norm=0.1) == Fpgm(mix_norm=0.1) != get("fpgm")


def test_all_criteria_is_a_sorted_copy() -> None:
    first = all_criteria()
    assert list(first) == sorted(first)
    first.clear()
    assert "l1" in all_criteria()


PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from onnxprune.criteria import Criterion, register

@register
@dataclass(frozen=True)
class Last(Criterion):
    """The last value."""
    name: ClassVar[str] = "last"
    title: ClassVar[str] = "the last value"
    source: ClassVar[str] = "nobody 2026"
    default_normalize: ClassVar[str] = "none"

    def score_rows(self, rows, tensor):
        return rows[:, -1]
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two third-party entry points, one of them broken; returns the groups that were asked for."""
    (tmp_path / "onnxprune_test_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxprune_test_plugin", raising=False)
    asked: list[str] = []

    def entry_points(*, group: str) -> list[importlib.metadata.EntryPoint]:
        asked.append(group)
        return [
            importlib.metadata.EntryPoint("broken", "onnxprune_no_such_module:X", group),
            importlib.metadata.EntryPoint("last", "onnxprune_test_plugin:Last", group),
        ]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    with CRITERIA.isolated(reload=True):
        yield asked


def test_entry_points_are_loaded_once_and_only_when_needed(plugins: list[str]) -> None:
    get("l1")
    assert plugins == []
    assert get("last").filter_scores(np.array([[1.0, 2.0], [3.0, 4.0]])).tolist() == [2.0, 4.0]
    assert "last" in all_criteria()
    with pytest.raises(OnnxPruneError):
        get("lastt")
    assert plugins == ["onnxprune.criteria"]


def test_all_criteria_loads_entry_points(plugins: list[str]) -> None:
    assert "last" in all_criteria()
    assert plugins == ["onnxprune.criteria"]


def test_a_broken_entry_point_is_logged_and_named_when_asked_for(
    plugins: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert "broken" not in all_criteria()
    assert "onnxprune_no_such_module" in caplog.text
    with pytest.raises(OnnxPruneError, match="could not be loaded: ModuleNotFoundError"):
        get("broken")


def make(name: str = "mine", frozen: bool = True, **attributes: Any) -> type:
    """A criterion class to register, with some attributes replaced."""
    body: dict[str, Any] = {
        "name": name,
        "title": "mine",
        "source": "me 2026",
        "default_normalize": "none",
        "score_rows": lambda self, rows, tensor: rows[:, 0],
        **attributes,
    }
    return dataclasses.dataclass(frozen=frozen)(type("Mine", (Criterion,), body))


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (int, "it derives neither"),
        (make(frozen=False), "frozen"),
        (type("Plain", (Fpgm,), {}), "frozen dataclass"),
        (make(score_rows=Criterion.score_rows), "score_rows is missing"),
        (make(title=""), "`title`"),
        (make(name=""), "`name`"),
        (make(reads="everything"), "`reads`"),
        (make(default_reduce="median"), "`default_reduce`"),
        (make(reductions=("max",)), "`default_reduce`"),
        (make(default_normalize="median"), "`default_normalize`"),
        (make(name="l1"), "is already registered"),
    ],
)
def test_malformed_criteria_are_not_registered(cls: Any, reason: str) -> None:
    before = all_criteria()
    with pytest.raises(OnnxPruneError, match=reason):
        register(cls)
    assert all_criteria() == before


@CRITERIA.isolated()
def test_registering_twice_is_harmless() -> None:
    mine = make()
    assert register(register(mine)) is mine
    assert isinstance(get("mine"), mine)


# ---------------------------------------------------------------- imports


def test_importing_criteria_stays_cheap() -> None:
    """Criteria that need data import what they need when they score."""
    code = """
import sys, onnxprune.criteria
heavy = {"scipy", "torch", "onnxruntime", "sklearn"} & set(sys.modules)
assert not heavy, heavy
assert "l1" in onnxprune.criteria._registry.CRITERIA
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
