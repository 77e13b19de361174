"""SeNPIS against golden arrays of the original code, end to end, and part by part against loops.

Every array of senpis.npz is an input or is asserted. The originals are float32; tolerances came with them.
"""

from __future__ import annotations

import csv
import json
import re
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from random_graphs.graphs import CLASSES, PROPERTY, SIDE, Spec, build, specs

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.feature_maps import feature_sites
from onnxprune.criteria import all_criteria
from onnxprune.criteria.base import ScoringContext
from onnxprune.criteria.loss_change import class_means
from onnxprune.criteria.model_runs.masked_evaluation import MaskedEvaluator
from onnxprune.criteria.per_class import class_table
from onnxprune.criteria.scoring import score
from onnxprune.criteria.senpis import (
    Senpis,
    SenpisResult,
    class_samples,
    exponents,
    lowest,
    map_similarity,
    similar_pairs,
    similarities,
    vector_similarity,
)
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import METRICS, cross_entropy
from onnxprune.ir.reader import load
from onnxprune.passes import InsertMasks
from onnxprune.passes.insert_masks import MASK_INPUT
from onnxprune.pipeline import analyze, plan
from onnxprune.planning.targets import Target
from onnxprune.plans import Plan, Removal

Array = NDArray[Any]
GOLDENS = Path(__file__).parent.parent / "goldens"
MODELS = Path(__file__).parent.parent.parent / "models"
CASES, MODES, LAYERS = ("n8", "n32"), ("sequential", "independent"), ("conv1", "conv2", "fc1")
ATOL = 2e-6  # of IM and of similarity, as the goldens say
INPUTS = r"(conv1|conv2|fc1|fc2)_(weight|bias)|x|labels"
EXACT = ("exponent", "removed_30")
CLOSE = ("class_loss", "im_local", "similarity", "im_attenuated", "im_global")

each_case = pytest.mark.parametrize("case", CASES)
each_mode = pytest.mark.parametrize("mode", MODES)
each_layer = pytest.mark.parametrize("layer", LAYERS)


@cache
def golden() -> dict[str, Array]:
    with np.load(GOLDENS / "senpis.npz", allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@cache
def tiny(case: str) -> tuple[Analysis, Data]:
    analysis = analyze(load(GOLDENS / f"tiny_senpis_{case}.onnx"))
    return analysis, Data(golden()[f"{case}/x"], golden()[f"{case}/labels"], case)


@cache
def found(case: str, mode: str) -> dict[str, SenpisResult]:
    """Layers by the goldens' names."""
    analysis, data = tiny(case)
    rule = Senpis(mode=mode, samples=5)
    layers = rule.layers(ScoringContext(analysis, analysis.groups, Calibration(data, threads=1)), similarity=True)
    return {layer.group.removesuffix("_weight"): layer for layer in layers}


# ------------------------------------------------------------------------------------------------------------- goldens


def test_every_array_is_an_input_or_asserted() -> None:
    known = re.compile(rf"(n8|n32)/({INPUTS}|({'|'.join(MODES)})/\w+/({'|'.join((*EXACT, *CLOSE, 'feature_map'))}))")
    assert [name for name in golden() if not known.fullmatch(name)] == []
    assert len(golden()) == 2 * (10 + 6 * len((*EXACT, *CLOSE)) + 3)


@each_case
def test_the_networks_hold_the_goldens_weights(case: str) -> None:
    analysis, _ = tiny(case)
    tensors = analysis.source.graph.tensors()
    for name in (n for n in golden() if re.fullmatch(rf"{case}/\w+_(weight|bias)", n)):
        np.testing.assert_array_equal(tensors[name.partition("/")[2]].values, golden()[name])


@each_case
@each_mode
def test_layers_in_the_order_of_the_network(case: str, mode: str) -> None:
    assert list(found(case, mode)) == list(LAYERS)  # the last one is never pruned


@each_case
@each_mode
@each_layer
def test_end_to_end(case: str, mode: str, layer: str) -> None:
    got = found(case, mode)[layer]
    wanted = {what: golden()[f"{case}/{mode}/{layer}/{what}"] for what in (*EXACT, *CLOSE)}
    for what in CLOSE:
        assert getattr(got, what).dtype == np.float64
        np.testing.assert_allclose(getattr(got, what), wanted[what], rtol=0, atol=ATOL, err_msg=what)
    np.testing.assert_array_equal(got.exponent, wanted["exponent"])
    np.testing.assert_array_equal(got.removed, wanted["removed_30"])


@each_case
@each_mode
def test_scores_and_the_table_by_class(case: str, mode: str) -> None:
    analysis, data = tiny(case)
    scores = score(analysis, "senpis", mode=mode, samples=5, calibration=Calibration(data, threads=1))
    for group in analysis.groups:
        where = f"{case}/{mode}/{group.name.removesuffix('_weight')}"
        np.testing.assert_allclose(scores.groups[group.name], golden()[f"{where}/im_global"], rtol=0, atol=ATOL)
        table = np.stack(list(scores.per_class[group.name].values()))
        assert list(scores.per_class[group.name]) == [0, 1, 2, 3]
        assert table.dtype == np.float64
        np.testing.assert_allclose(table, golden()[f"{where}/im_attenuated"], rtol=0, atol=ATOL)


@each_case
def test_feature_maps_without_what_was_removed_before(case: str) -> None:
    """Zeroing a filter and its bias, as the original does, leaves later layers what masking leaves them."""
    analysis, data = tiny(case)
    evaluator = MaskedEvaluator(analysis, {}, data, METRICS["loss"], batch=5, threads=1)
    for layer in LAYERS:
        [site] = feature_sites(analysis, [analysis[f"{layer}_weight"]], "active")
        maps = np.concatenate([tensor for _, [tensor] in evaluator.tensors([site.tensor])])
        wanted = golden()[f"{case}/sequential/{layer}/feature_map"]
        np.testing.assert_allclose(maps[:, : wanted.shape[1]], wanted, rtol=0, atol=ATOL)
        evaluator.remove(f"{layer}_weight", golden()[f"{case}/sequential/{layer}/removed_30"])


@each_layer
def test_similarity_of_the_goldens_maps(layer: str) -> None:
    maps = golden()[f"n8/sequential/{layer}/feature_map"].astype(np.float64)
    for k, wanted in enumerate(golden()[f"n8/sequential/{layer}/similarity"]):
        mine = maps[golden()["n8/labels"] == k]
        got = vector_similarity(mine.T @ mine) if layer == "fc1" else map_similarity(mine.mean(0))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=ATOL)


@each_case
@each_mode
@each_layer
def test_parts_on_the_goldens_arrays(case: str, mode: str, layer: str) -> None:
    g = {what: golden()[f"{case}/{mode}/{layer}/{what}"] for what in (*EXACT, *CLOSE)}
    rows = zip(g["similarity"].astype(np.float64), g["im_local"], strict=True)
    exponent = np.stack([exponents(similar_pairs(s, 1.0), im) for s, im in rows])
    np.testing.assert_array_equal(exponent, g["exponent"])
    attenuated = g["im_local"].astype(np.float64) * 0.9**exponent
    np.testing.assert_allclose(attenuated, g["im_attenuated"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(attenuated.mean(0), g["im_global"], rtol=0, atol=ATOL)
    np.testing.assert_array_equal(lowest(g["im_global"], 0.3), g["removed_30"])


def test_dead_neurons_are_exactly_nothing() -> None:
    """They tie at the cut, so that the lower index has to go first."""
    layer = found("n32", "independent")["fc1"]
    dead = np.flatnonzero(layer.im_global == 0)
    assert len(dead) > len(layer.removed)
    np.testing.assert_array_equal(layer.removed, dead[: len(layer.removed)])


# --------------------------------------------------------------------------------------------------- parts, by a loop


def naive_window(x: Array) -> Array:
    """A 3 x 3 Gaussian of sigma 1.5, normalised, with zeros around."""
    weight = np.exp(-np.add.outer(np.arange(-1, 2) ** 2, np.arange(-1, 2) ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    padded = np.pad(x, 1)
    out = np.zeros(x.shape)
    for r in range(x.shape[0]):
        for c in range(x.shape[1]):
            out[r, c] = (padded[r : r + 3, c : c + 3] * weight).sum()
    return out


def naive_ssim(x: Array, y: Array) -> float:
    mx, my = naive_window(x), naive_window(y)
    vx, vy = naive_window(x * x) - mx**2, naive_window(y * y) - my**2
    cov = naive_window(x * y) - mx * my
    top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
    return abs(float((top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean()))


maps_strategy = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)), elements=st.floats(0, 8, width=16)
)


@PROPERTY(max_examples=30)
@given(maps_strategy, st.sampled_from([1, 7, 1 << 17]))
def test_map_similarity_by_loop(maps: Array, block: int) -> None:
    wanted = [naive_ssim(maps[i], maps[j]) for i in range(len(maps)) for j in range(i + 1, len(maps))]
    np.testing.assert_allclose(map_similarity(maps, block=block), wanted, rtol=1e-9, atol=1e-12)


def test_several_maps_of_a_channel_are_compared_in_turn() -> None:
    maps = np.random.default_rng(0).random((3, 2, 4, 4)) - 0.5  # signs differ, so |mean| is not the mean of |.|
    pairs = [(0, 1), (0, 2), (1, 2)]

    def signed(x: Array, y: Array) -> float:
        mx, my = naive_window(x), naive_window(y)
        vx, vy, cov = naive_window(x * x) - mx**2, naive_window(y * y) - my**2, naive_window(x * y) - mx * my
        top = (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
        return float((top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean())

    wanted = [abs(np.mean([signed(a, b) for a, b in zip(maps[i], maps[j], strict=True)])) for i, j in pairs]
    np.testing.assert_allclose(map_similarity(maps), wanted, rtol=1e-9)


@PROPERTY(max_examples=50)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.sampled_from([0.0, 0.5, 3.0]))
)
def test_vector_similarity_by_loop(vectors: Array) -> None:
    wanted = []
    for i in range(len(vectors)):
        for j in range(i + 1, len(vectors)):
            a, b = vectors[i], vectors[j]
            if not a.any() or not b.any():
                wanted.append(1.0 if not a.any() and not b.any() else 0.0)
            else:
                wanted.append(abs(float(a @ b)) / float(np.linalg.norm(a) * np.linalg.norm(b)))
    np.testing.assert_allclose(vector_similarity(vectors @ vectors.T), wanted, rtol=1e-12)


def test_opposite_neurons_are_similar() -> None:
    vectors = np.array([[1.0, 2.0], [-2.0, -4.0]])
    assert vector_similarity(vectors @ vectors.T) == pytest.approx([1.0])


@PROPERTY(max_examples=50)
@given(st.integers(2, 7), st.data())
def test_exponents_by_loop(channels: int, drawn: st.DataObject) -> None:
    pairs = channels * (channels - 1) // 2
    similar = drawn.draw(hnp.arrays(np.bool_, pairs))
    importance = drawn.draw(hnp.arrays(np.float64, channels, elements=st.sampled_from([0.0, 0.25, 1.0])))
    wanted, p = [0] * channels, 0
    for i in range(channels):
        for j in range(i + 1, channels):
            if similar[p]:
                wanted[i if importance[i] <= importance[j] else j] += 1
            p += 1
    assert exponents(similar, importance).tolist() == wanted


def test_pairs_are_similar_above_mean_and_deviation() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0])  # mean 0.25, deviation 0.5 (n - 1), 0.433 (n)
    assert similar_pairs(values, 1.4).tolist() == [False, False, False, True]
    assert not similar_pairs(values, 1.6).any()  # with n it would be similar
    assert not similar_pairs(values, 1.5).any()  # above, not at
    assert similar_pairs(values, -1.0).all()
    for few in ([], [0.7]):
        assert not similar_pairs(np.array(few), -9.0).any()
    assert not similar_pairs(np.full(5, 0.3), 0.0).any()


@pytest.mark.parametrize(
    ("amount", "channels", "count"),
    [(0.3, 6, 2), (0.3, 8, 2), (0.3, 5, 2), (0.3, 15, 4), (0.25, 2, 0), (0.25, 6, 2), (0.0, 9, 0), (0.9, 1, 0),
     (0.99, 4, 3), (0.145, 100, 14), (0.155, 100, 16), (1e-05, 50_000, 0)],
)  # fmt: skip
def test_share_of_a_layer_is_rounded_to_even_and_leaves_one(amount: float, channels: int, count: int) -> None:
    assert len(lowest(np.zeros(channels), amount)) == count
    assert lowest(np.zeros(channels), amount).tolist() == list(range(count))


def test_lowest_go_first_and_of_equal_ones_the_lower_index() -> None:
    assert lowest(np.array([3.0, 1.0, 2.0, 1.0, 1.0]), 0.4).tolist() == [1, 3]


def test_a_wide_layer_takes_little_memory() -> None:
    """All pairs of 512 maps of 7 x 7 at once would be 51 MB an array."""
    maps = np.random.default_rng(0).random((512, 7, 7))
    tracemalloc.start()
    try:
        similar = map_similarity(maps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert similar.shape == (512 * 511 // 2,)
    assert peak < 25 * 2**20
    i, j = np.triu_indices(512, 1)
    for p in (0, 511, 70_000, -1):
        assert similar[p] == pytest.approx(naive_ssim(maps[i[p]], maps[j[p]]), rel=1e-9)


# ---------------------------------------------------------------------------------------------------------- the sampler


def test_samples_of_every_class_in_the_order_of_classes() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    chosen = class_samples(labels, 4, 12, 0)
    assert labels[chosen].tolist() == [k for k in range(4) for _ in range(12)]
    assert len(set(chosen.tolist())) == len(chosen)
    for part in chosen.reshape(4, 12):
        assert (np.diff(part) > 0).all()
    np.testing.assert_array_equal(chosen, class_samples(labels, 4, 12, 0))
    assert (chosen != class_samples(labels, 4, 12, 1)).any()
    first = np.concatenate([np.flatnonzero(labels == k)[:12] for k in range(4)])
    assert (chosen != first).any()  # drawn, not the first ones


def test_all_samples_class_after_class() -> None:
    labels = np.array([1, 0, 2, 1, 0])
    assert class_samples(labels, 3, 0, 5).tolist() == [1, 4, 0, 3, 2]
    assert class_samples(np.array([0]), 1, 1, 0).tolist() == [0]


def test_the_draw_is_the_same_everywhere() -> None:
    assert class_samples(np.arange(40) % 2, 2, 3, 7).tolist() == [6, 24, 32, 23, 37, 39]


# ------------------------------------------------------------------------------- on networks, against full forward runs


@pytest.fixture(scope="module")
def digits() -> Analysis:
    return analyze(load(MODELS / "digits_cnn.onnx"))


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:train", images=80)


def naive_layers(analysis: Analysis, data: Data, order: list[str], rule: Senpis) -> dict[str, Any]:
    """im_local and similarity of groups, each channel by a full forward pass of the masked model."""
    assert data.y is not None
    chosen = class_samples(data.y, int(data.y.max()) + 1, rule.samples, rule.seed)
    x, y = data.x[chosen], data.y[chosen]
    classes = int(y.max()) + 1
    gone: dict[str, tuple[int, ...]] = {}
    masked = InsertMasks(analysis=analysis, as_input=True)(analysis.model)
    output = masked.graph.outputs[0].name
    tensors = masked.graph.tensors()
    names = {s.tensor for n in order for s in feature_sites(analysis, [analysis[n]], "active")} - {output}
    for t in (tensors[n] for n in names):
        t.dtype = np.float32
        masked.graph.outputs.append(t)
    session = Session(masked, threads=1)

    def run(more: dict[str, tuple[int, ...]], maps: list[str]) -> Any:
        plan = Plan("", {n: Removal(analysis[n].channels, r) for n, r in {**gone, **more}.items()})
        mask = analysis.kept(plan).astype(np.float32)
        scores, *found = session.run({masked.graph.inputs[0].name: x, MASK_INPUT: mask}, [output, *maps])
        return class_means(cross_entropy(scores, y), y, classes), found

    out: dict[str, Any] = {}
    for name in order:
        group = analysis[name]
        sites = feature_sites(analysis, [group], "active")
        before, maps = run({}, [s.tensor for s in sites])
        im = np.stack([np.abs(run({name: (c,)}, [])[0] - before) for c in range(group.channels)], 1)
        similar = []
        for k in range(classes):
            each = []
            for site, values in zip(sites, maps, strict=True):
                at = [int(np.flatnonzero(site.components == c)[0]) for c in group.components]
                mine = np.moveaxis(values, site.axis, 1)[y == k][:, at].astype(np.float64)
                if mine.ndim == 4:
                    each.append(map_similarity(mine.mean(0)))
                else:
                    each.append(vector_similarity(np.einsum("nc...,nd...->cd", mine, mine)))
            similar.append(np.mean(each, axis=0))
        exponent = np.stack([exponents(similar_pairs(s, rule.sigma), v) for s, v in zip(similar, im, strict=True)])
        score = (im * rule.attenuation**exponent).mean(0)
        out[name] = {"im": im, "similarity": np.stack(similar), "score": score}
        if rule.mode == "sequential":
            gone[name] = tuple(lowest(score, rule.amount).tolist())
    return out


def test_a_residual_network_step_by_step(digits: Analysis) -> None:
    """Residual and dense blocks: groups are read again after others lost channels; their maps lie on many tensors."""
    data = load_data("digits:train", images=20)
    rule = Senpis(samples=2, amount=0.4)
    order = [digits.groups[i].name for i in (0, 2, 6)]
    case = ScoringContext(digits, tuple(digits[n] for n in reversed(order)), Calibration(data, threads=1))
    layers = {layer.group: layer for layer in rule.layers(case, similarity=True)}
    assert list(layers) == order
    wanted = naive_layers(digits, data, order, rule)
    assert max(len(feature_sites(digits, [digits[n]], "active")) for n in order) > 1
    for name in order:
        np.testing.assert_allclose(layers[name].im_local, wanted[name]["im"], atol=1e-5)
        np.testing.assert_allclose(layers[name].similarity, wanted[name]["similarity"], atol=1e-5)
        np.testing.assert_allclose(layers[name].im_global, wanted[name]["score"], atol=1e-5)
        assert wanted[name]["im"].max() > 1e-3


@PROPERTY(max_examples=8)
@given(spec=specs(max_blocks=2))
def test_random_graphs_step_by_step(spec: Spec) -> None:
    """Attention heads, shuffled channels, padding, windows: what it is measured on is the same as in full runs."""
    spec = replace(spec, half=False, head="pool")
    analysis = analyze(load(build(spec)))
    rng = np.random.default_rng(spec.seed)
    x = rng.standard_normal((2 * CLASSES, 3, SIDE, SIDE)).astype(np.float32)
    data = Data(x, np.arange(len(x)) % CLASSES, "random")
    rule = Senpis(samples=2)
    case = ScoringContext(analysis, analysis.groups, Calibration(data, threads=1, batch=3))
    layers = {layer.group: layer for layer in rule.layers(case, similarity=True)}
    assert set(layers) == {g.name for g in analysis.groups}
    if not spec.dynamic:
        return  # full runs of all samples at once need a free batch
    gone: dict[str, Removal] = {}
    chosen = class_samples(data.y, CLASSES, 2, 0)  # type: ignore[arg-type]
    x, y = x[chosen], np.repeat(np.arange(CLASSES), 2)
    for name, layer in layers.items():
        group = analysis[name]
        worst = int(np.argmax(layer.im_local.max(0)))
        means = []
        for channels in ((), (worst,)):
            removals = {**gone, name: Removal(group.channels, channels)}
            masked = InsertMasks(Plan("", {n: r for n, r in removals.items() if r.removed}), analysis)(analysis.model)
            means.append(class_means(cross_entropy(Session(masked, threads=1).run({"x": x})[0], y), y, CLASSES))
        room = 1e-4 * max(1.0, float(np.abs(means).max()))
        np.testing.assert_allclose(layer.class_loss, means[0], atol=room)
        np.testing.assert_allclose(layer.im_local[:, worst], np.abs(means[1] - means[0]), atol=room)
        gone[name] = Removal(group.channels, tuple(layer.removed.tolist()))


def test_bn_kept_and_folded_score_the_same(digits: Analysis, data: Data) -> None:
    folded = analyze(load(MODELS / "digits_cnn_folded.onnx"))
    each = [score(a, "senpis", samples=8, mode="independent", calibration=Calibration(data, threads=1))
            for a in (digits, folded)]  # fmt: skip
    assert len(each[0].groups) == len(each[1].groups)
    for a, b in zip(each[0].groups.values(), each[1].groups.values(), strict=True):
        # An exponent may differ by one where a similarity lies at the threshold: a tenth of the score.
        np.testing.assert_allclose(a, b, rtol=0.11, atol=1e-4)
        assert np.mean(np.abs(a - b) < 1e-4) > 0.9


def test_a_keras_model(data: Data) -> None:
    analysis = analyze(load(MODELS / "digits_keras.onnx"))
    pictures = replace(data, x=data.x.transpose(0, 2, 3, 1))
    scores = score(analysis, "senpis", samples=2, calibration=Calibration(pictures, threads=1))
    assert analysis.groups
    for g in analysis.groups:
        assert scores.groups[g.name].shape == (g.channels,)
        assert scores.groups[g.name].min() >= 0 < scores.groups[g.name].max()


def test_similarities_of_a_stream_are_the_mean_of_its_tensors(digits: Analysis, data: Data) -> None:
    group = max(digits.groups, key=lambda g: len(feature_sites(digits, [g], "active")))
    sites = feature_sites(digits, [group], "active")
    assert len(sites) > 1
    assert data.y is not None
    order = np.argsort(data.y, kind="stable")
    classes = Data(data.x[order], data.y[order], "d")
    labels = data.y[order]
    evaluator = MaskedEvaluator(digits, {}, classes, METRICS["loss"], batch=7, threads=1)
    each = []
    for site in sites:
        maps = np.concatenate([t for _, [t] in evaluator.tensors([site.tensor])]).astype(np.float64)
        index = [int(np.flatnonzero(site.components == c)[0]) for c in group.components]
        each.append(map_similarity(maps[labels == 3].mean(0)[index]))
    found = list(similarities(evaluator, group, labels))
    assert len(found) == 10
    np.testing.assert_allclose(found[3], np.mean(each, axis=0), rtol=1e-9, atol=1e-12)
    assert np.abs(each[0] - each[1]).max() > 1e-3


def test_attenuation_and_sigma_say_how_much_similar_channels_lose(digits: Analysis, data: Data) -> None:
    case = ScoringContext(digits, digits.groups[1:2], Calibration(data, threads=1))
    plain, strong, wide = (
        next(rule.layers(case))
        for rule in (
            Senpis(samples=8, attenuation=1.0),
            Senpis(samples=8, attenuation=0.5),
            Senpis(samples=8, sigma=-9),
        )
    )
    np.testing.assert_array_equal(plain.im_attenuated, plain.im_local)
    np.testing.assert_array_equal(strong.im_attenuated, strong.im_local * 0.5**strong.exponent)
    assert strong.exponent.max() > 0
    assert wide.exponent.sum() == 10 * 32 * 31 // 2  # every pair is similar, one of it loses
    assert plain.similarity is None


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_global_ranking_is_refused_with_its_reason(digits: Analysis, data: Data) -> None:
    scores = score(digits, "senpis", samples=2, groups=[g.name for g in digits.groups[-2:]],
                   calibration=Calibration(data, threads=1))  # fmt: skip
    with pytest.raises(OnnxPruneError, match="cannot be ranked across layers: it removes the same share"):
        plan(scores, Target.parse("macs=0.9"))
    assert plan(scores, ratio=0.3).removed > 0


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: Data(d.x, None, "d"), {}, "needs labels"),
        (lambda d: Data(d.x, d.y, "d"), {}, "at least 100 samples here; there are 80"),
        (lambda d: Data(d.x, d.y, "d"), {"samples": 9}, "at least 90 samples"),
        (lambda d: Data(d.x[d.y != 3], d.y[d.y != 3], "d"), {"samples": 2}, "class 3 has no samples"),
        (lambda d: Data(d.x[16:], np.sort(d.y)[16:] // 2 * 2 + 1, "d"), {"samples": 0}, "class 0 has no samples"),
        (lambda d: Data(d.x, np.where(d.y == 7, 6, d.y), "d"), {"samples": 8}, "class 7 has no samples"),
        (lambda d: Data(d.x[1:], d.y[1:], "d"), {"samples": 7, "seed": 3}, None),
        (lambda d: Data(d.x, np.where(np.arange(80) == 5, 10, d.y), "d"), {"samples": 2}, "label 10, the model 10"),
        (lambda d: Data(np.full_like(d.x, np.nan), d.y, "d"), {"samples": 2}, "not finite"),
    ],
)
def test_data_that_does_not_do_is_one_error(
    digits: Analysis, data: Data, change: Any, options: dict[str, Any], message: str | None
) -> None:
    def run() -> Any:
        calibration = Calibration(change(data), threads=1)
        return score(digits, "senpis", groups=[digits.groups[-1].name], calibration=calibration, **options)

    if message is None:
        run()
        return
    with pytest.raises(OnnxPruneError, match=message):
        run()


def test_a_class_with_too_few_samples_is_named() -> None:
    with pytest.raises(OnnxPruneError, match="the class 1 has 2 samples, but 3 of each") as err:
        class_samples(np.array([0, 0, 0, 0, 1, 1]), 2, 3, 0, name="mine")
    assert "mine" in str(err.value)
    assert "samples=2" in str(err.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("amount", 1.0), ("amount", -0.1), ("amount", "half"), ("sigma", float("nan")), ("sigma", "1"),
     ("attenuation", 0), ("attenuation", 1.1), ("mode", "parallel"), ("samples", -1), ("samples", 2.5),
     ("samples", True), ("seed", -1), ("seed", "x")],
)  # fmt: skip
def test_parameters_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(OnnxPruneError, match=name):
        Senpis(**{name: value})


# ------------------------------------------------------------------------------------------------------ command line


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    path = tmp_path_factory.mktemp("senpis") / "data.npz"
    np.savez(path, x=golden()["n8/x"], y=golden()["n8/labels"])
    return CommandLine("score", GOLDENS / "tiny_senpis_n8.onnx", "-c", "senpis", "--data", path)


def test_command_line_writes_the_table_by_class(command: CommandLine, tmp_path: Path) -> None:
    rows, document = tmp_path / "t.csv", tmp_path / "t.JSON"
    scores = json.loads(command.out("-p", "samples=5", "--per-class", rows, "--json"))
    command.ok("-p", "samples=5", "--per-class", document)
    with rows.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    strict = json.loads(document.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert list(table[0]) == ["group", "channel", "class", "importance"]
    assert len(table) == 4 * (6 + 8 + 12)
    assert strict["criterion"] == scores["criterion"]
    assert strict["criterion"]["mode"] == "sequential"
    for layer in LAYERS:
        wanted = golden()[f"n8/sequential/{layer}/im_attenuated"]
        name = f"{layer}_weight"
        mine = np.zeros(wanted.shape)
        for row in (r for r in table if r["group"] == name):
            mine[int(row["class"]), int(row["channel"])] = float(row["importance"])
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=ATOL)
        assert [strict["groups"][name][str(k)] for k in range(4)] == mine.tolist()
        np.testing.assert_allclose(scores["groups"][name], mine.mean(0), rtol=1e-12)


def test_command_line_refuses_before_it_scores(command: CommandLine, tmp_path: Path) -> None:
    assert ".csv or .json" in command.fails("--per-class", tmp_path / "t.txt")
    assert "has no importance by class" in command.fails("-c", "l2", "--per-class", tmp_path / "t.csv")
    assert "does not exist" in command.fails("--per-class", tmp_path / "no" / "t.csv")
    assert "--per-class" in command.fails("--compare", "l1,l2", "--per-class", tmp_path / "t.csv", code=2)
    assert "at least 40 samples here; there are 20" in command.fails("--per-class", tmp_path / "t.csv")
    assert "mode must be" in command.fails("-p", "mode=both", "--per-class", tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


def test_scores_from_a_file_hold_no_classes(digits: Analysis) -> None:
    with pytest.raises(OnnxPruneError, match="have no importance by class"):
        class_table(score(digits, "l1"), ".csv")


def test_criteria_say_whether_they_know_classes() -> None:
    assert {n for n, rule in all_criteria().items() if rule.classwise} == {"loss_change", "senpis"}
