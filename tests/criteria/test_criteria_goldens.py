"""The weight criteria against golden arrays that were checked against the original research code.

The arrays hold what a clean implementation gives (`removed_*`) and what the original code gave (`ref_removed_*`).
The latter is not asserted. It differs where that code has a defect or leaves ties open:

- l1, convolutions: everything up to the n-th smallest value goes, so ties remove more than n (edge12, 75 %).
- l2, edge cases: it breaks ties the other way.
- dscore, dstep, fully connected: it stops with an error when a filter has no negative weight (`[-1]`, edgefc12).
- dstep, convolutions: on overshoot it looks up the sort permutation where it needs the ranks (conv32, edge12).
- slimming: it keeps what is strictly above sorted[n], so it removes n + 1 channels, and all ties.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.criteria import get
from onnxprune.criteria.dscore import ranks, sign_distance_sums, sign_sums

GOLDENS = Path(__file__).parent.parent / "goldens"
CASES = ("conv8", "conv32", "conv128", "fc8", "fc32", "fc128", "edge12", "edgefc12")
MIX_CASES = ("conv32", "conv128", "edge12")
SLIMMING = {"small": 2, "medium": 3, "large": 3, "wipe": 3, "ties": 2}  # case: layers
WEIGHT_CRITERIA = ("l1", "l2", "fpgm", "dscore", "dstep", "dstep_gm")
PERCENT = (25, 50, 75)

# What the tests below assert, as patterns of array names; and what is there for information only.
ASSERTED = (
    r"(removed|sure|tied)_(25|50|75)|weight|score|pos_sum|neg_sum|dist_pos|dist_neg|rank_pos|rank_neg"
    r"|key1_max|key2_sum|mix_norm_removed_25|mix_dist_removed_25|mix_kept_after_norm|mix_dist_score_on_kept"
    r"|gamma_\d|removed_(global|local)_(25|50|75)_layer\d"
)
INFORMATION = r"seed|ref_.*|removed_allsum_(25|50|75)"  # allsum: another reading of D-Step, not ours


@cache
def golden(name: str) -> dict[str, NDArray[Any]]:
    with np.load(GOLDENS / f"{name}.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def rows_of(name: str, case: str) -> NDArray[np.float64]:
    weight = golden(name)[f"{case}/weight"].astype(np.float64)
    return weight.reshape(len(weight), -1)


def lowest(scores: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    return np.sort(np.argsort(scores, kind="stable")[:count])


@pytest.mark.parametrize("name", [*WEIGHT_CRITERIA, "slimming"])
def test_every_array_is_asserted_or_for_information(name: str) -> None:
    data = golden(name)
    cases = set(SLIMMING) if name == "slimming" else set(CASES)
    assert {key.split("/")[0] for key in data} == cases
    left = [k for k in data if not re.fullmatch(rf"\w+/({ASSERTED}|{INFORMATION})", k)]
    assert left == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["l1", "l2", "fpgm"])
def test_scores(name: str, case: str) -> None:
    data = golden(name)
    scores = get(name).filter_scores(data[f"{case}/weight"])
    np.testing.assert_allclose(scores, data[f"{case}/score"], rtol=1e-6)


@pytest.mark.parametrize("percent", PERCENT)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_removed_filters(name: str, case: str, percent: int) -> None:
    data = golden(name)
    scores = get(name).filter_scores(data[f"{case}/weight"])
    count = len(scores) * percent // 100
    removed = lowest(scores, count)
    np.testing.assert_array_equal(removed, data[f"{case}/removed_{percent}"])
    # The ties are exact too: duplicates and mirror images must score alike to the last bit.
    cut = np.sort(scores)[count - 1]
    np.testing.assert_array_equal(np.flatnonzero(scores < cut), data[f"{case}/sure_{percent}"])
    np.testing.assert_array_equal(np.flatnonzero(scores == cut), data[f"{case}/tied_{percent}"])


@pytest.mark.parametrize("case", CASES)
def test_dscore_parts(case: str) -> None:
    data = golden("dscore")
    positive, negative = sign_sums(rows_of("dscore", case))
    np.testing.assert_allclose(positive, data[f"{case}/pos_sum"], rtol=1e-6)
    np.testing.assert_allclose(negative, data[f"{case}/neg_sum"], rtol=1e-6)
    np.testing.assert_array_equal(ranks(positive), data[f"{case}/rank_pos"])
    np.testing.assert_array_equal(ranks(negative), data[f"{case}/rank_neg"])
    np.testing.assert_array_equal(get("dscore").filter_scores(data[f"{case}/weight"]), data[f"{case}/score"])


@pytest.mark.parametrize("case", CASES)
def test_dstep_gm_distances(case: str) -> None:
    data = golden("dstep_gm")
    positive, negative = sign_distance_sums(rows_of("dstep_gm", case))
    np.testing.assert_allclose(positive, data[f"{case}/dist_pos"], rtol=1e-6)
    np.testing.assert_allclose(negative, data[f"{case}/dist_neg"], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["dstep", "dstep_gm"])
def test_dstep_ranks_and_keys(name: str, case: str) -> None:
    data = golden(name)
    parts = sign_sums if name == "dstep" else sign_distance_sums
    positive, negative = parts(rows_of(name, case))
    np.testing.assert_array_equal(ranks(positive), data[f"{case}/rank_pos"])
    np.testing.assert_array_equal(ranks(negative), data[f"{case}/rank_neg"])
    scores = get(name).filter_scores(data[f"{case}/weight"])
    key1, key2 = np.divmod(scores, 2 * len(scores))
    np.testing.assert_array_equal(key1, data[f"{case}/key1_max"])
    np.testing.assert_array_equal(key2, data[f"{case}/key2_sum"])


@pytest.mark.parametrize("case", MIX_CASES)
def test_fpgm_mix(case: str) -> None:
    data = {key.split("/")[1]: array for key, array in golden("fpgm").items() if key.startswith(f"{case}/")}
    scores = get("fpgm", mix_norm=0.25).filter_scores(data["weight"])
    step = len(scores) // 4
    by_norm, kept = data["mix_norm_removed_25"], data["mix_kept_after_norm"]
    np.testing.assert_array_equal(lowest(scores, step), by_norm)
    np.testing.assert_array_equal(np.flatnonzero(scores >= 0), kept)
    np.testing.assert_allclose(scores[kept], data["mix_dist_score_on_kept"], rtol=1e-6)
    by_distance = np.setdiff1d(lowest(scores, 2 * step), by_norm)
    np.testing.assert_array_equal(by_distance, data["mix_dist_removed_25"])


def test_fpgm_mix_covers_every_golden_case() -> None:
    assert {key.split("/")[0] for key in golden("fpgm") if "/mix_" in key} == set(MIX_CASES)


@pytest.mark.parametrize("percent", PERCENT)
@pytest.mark.parametrize("case", SLIMMING)
def test_slimming(case: str, percent: int) -> None:
    """Locally per layer, and globally by one stable sort over all layers; no guard, so a layer may be emptied."""
    data = golden("slimming")
    criterion = get("bn_scale")
    layers = SLIMMING[case]
    assert sum(key.startswith(f"{case}/gamma_") for key in data) == layers
    scores = [criterion.filter_scores(data[f"{case}/gamma_{i}"]) for i in range(layers)]
    together = np.concatenate(scores)
    gone = lowest(together, len(together) * percent // 100)
    starts = np.cumsum([0, *map(len, scores)])
    for i, local in enumerate(scores):
        expected = data[f"{case}/removed_local_{percent}_layer{i}"]
        np.testing.assert_array_equal(lowest(local, len(local) * percent // 100), expected)
        of_layer = gone[(gone >= starts[i]) & (gone < starts[i + 1])] - starts[i]
        np.testing.assert_array_equal(of_layer, data[f"{case}/removed_global_{percent}_layer{i}"])


@pytest.mark.parametrize("case", SLIMMING)
def test_slimming_scores_are_absolute_values(case: str) -> None:
    for key, gamma in golden("slimming").items():
        if key.startswith(f"{case}/gamma_"):
            np.testing.assert_array_equal(get("bn_scale").filter_scores(gamma), np.abs(gamma.astype(np.float64)))
