"""A trial gives what the stripped model gives, however it is run: masked, folded, stripped, in one piece or many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from onnx import numpy_helper
from random_graphs.graphs import BATCH, PROPERTY, SIDE, Spec, build, specs

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.feature_maps import feature_sites
from onnxprune.criteria.model_runs.masked_evaluation import MaskedEvaluator, Order, default_batch, even_batch
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import exposing
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import METRICS, Metric, MetricValue, get_metric
from onnxprune.ir.reader import load
from onnxprune.passes import InsertMasks
from onnxprune.pipeline import analyze, compile_plan, score
from onnxprune.plans import Plan, Removal

DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
SAMPLES = 6  # three batches of two


def orders_of(analysis: Analysis) -> dict[str, Order]:
    scores = score(analysis, "l1")
    return {n: np.argsort(s, kind="stable") for n, s in scores.groups.items()}


def samples(spec: Spec) -> Data:
    count = SAMPLES if spec.dynamic else 2 * BATCH - 1  # the last batch of a fixed one is filled up
    rng = np.random.default_rng(spec.seed)
    x = rng.standard_normal((count, 3, SIDE, SIDE)).astype(np.float16 if spec.half else np.float32)
    return Data(x, None, "random")


def outputs_of(analysis: Analysis, data: Data, evaluator: MaskedEvaluator, plan: Plan) -> list[Any]:
    """The stripped model's outputs, batch by batch as the trials are run."""
    session = Session(compile_plan(analysis.source, plan, analysis=analysis, check=False).model, threads=1)
    runs = [evaluator.runner.real(session.run(evaluator.feeds[i][0]), i) for i in range(len(evaluator.feeds))]
    return [np.concatenate(column) for column in zip(*runs, strict=True)]


@PROPERTY(max_examples=40)
@given(spec=specs())
def test_trials_agree_with_the_stripped_model(spec: Spec) -> None:
    spec = replace(spec, half=False)
    model = load(build(spec))
    analysis = analyze(model)
    if not analysis.groups:
        return
    data, orders = samples(spec), orders_of(analysis)
    found: dict[str, dict[str, list[Any]]] = {}
    for way in ("never", "folded", "stripped"):
        evaluator = MaskedEvaluator(analysis, orders, data, capture(METRICS["mse"]), batch=2, threads=1, strip=way)
        found[way] = {}
        for g in sorted(analysis.groups, key=lambda g: evaluator.segmenter.consumers[g.name].first):
            evaluator.feeds.data = data
            CAPTURED.clear()
            list(evaluator.measure(g.name, [g.channels // 2] if g.channels > 1 else []))
            found[way][g.name] = [np.concatenate(c) for c in zip(*CAPTURED, strict=True)]
    for g in analysis.groups:
        if g.channels < 2 or not found["never"][g.name]:
            continue
        gone = tuple(sorted(orders[g.name][: g.channels // 2].tolist()))
        wanted = outputs_of(analysis, data, evaluator, Plan("", {g.name: Removal(g.channels, gone)}))
        for way in found:
            for a, b in zip(found[way][g.name], wanted, strict=True):
                assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-30), (way, g.name)
        for a, b in zip(found["never"][g.name], found["folded"][g.name], strict=True):
            assert np.array_equal(a, b), g.name  # the same sums, with zeros on the other side of a product


CAPTURED: list[list[Any]] = []


def capture(metric: Any) -> Any:
    """The metric, with the outputs it is given kept aside."""

    def numbers(outputs: Any, labels: Any, reference: Any) -> Any:
        CAPTURED.append([np.asarray(o) for o in outputs])
        return metric.samples(outputs, labels, reference)

    return replace(metric, samples=numbers)


@pytest.fixture(scope="module")
def digits() -> tuple[Analysis, dict[str, Order], Data]:
    analysis = analyze(load(DIGITS))
    return analysis, orders_of(analysis), load_data("digits:test", images=100)


def sweep(digits: tuple[Analysis, dict[str, Order], Data], metric: str, **options: Any) -> dict[str, list[MetricValue]]:
    analysis, orders, data = digits
    evaluator = MaskedEvaluator(analysis, orders, data, get_metric(metric), **{"batch": 10, "threads": 1, **options})
    return {g.name: [v for _, v in evaluator.measure(g.name, [1, 9, 17, 25, 30])] for g in analysis.groups}


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_counts_are_identical_masked_folded_and_stripped(
    digits: tuple[Analysis, dict[str, Order], Data], metric: str
) -> None:
    wanted = sweep(digits, metric, strip="never")
    assert len({v.value for curve in wanted.values() for v in curve}) > 3
    for way in ("folded", "stripped", "auto"):
        assert sweep(digits, metric, strip=way) == wanted


@pytest.mark.parametrize("metric", ["loss", "kl", "cosine", "mse"])
def test_continuous_metrics_are_identical_to_the_last_bit(
    digits: tuple[Analysis, dict[str, Order], Data], metric: str
) -> None:
    wanted = sweep(digits, metric, strip="never")
    for options in ({"strip": "auto"}, {"strip": "folded"}, {"cache_memory": 0}, {"threads": 3}):
        assert sweep(digits, metric, **options) == wanted
    stripped = sweep(digits, metric, strip="stripped")  # which auto therefore does not use for them
    for name, curve in wanted.items():
        for a, b in zip(stripped[name], curve, strict=True):
            assert a.value == pytest.approx(b.value, rel=1e-4, abs=1e-6)


def test_the_order_of_trials_does_not_matter(digits: tuple[Analysis, dict[str, Order], Data]) -> None:
    analysis, orders, data = digits
    wanted = sweep(digits, "loss")
    evaluator = MaskedEvaluator(analysis, orders, data, get_metric("loss"), batch=10, threads=1)
    for g in reversed(analysis.groups):
        for n in (30, 1):
            [(_, value)] = evaluator.measure(g.name, [n])
            assert value == wanted[g.name][[1, 9, 17, 25, 30].index(n)]


def test_dead_channels_cost_nothing(digits: tuple[Analysis, dict[str, Order], Data]) -> None:
    analysis, orders, data = digits
    evaluator = MaskedEvaluator(analysis, orders, data, get_metric("loss"), batch=10, threads=1, strip="never")
    group = analysis.groups[1].name
    [name] = {n for n, _ in evaluator.segmenter.consumers[group].contractions}
    list(evaluator.measure(group, [2]))
    assert evaluator.cache.activations is not None
    for values in evaluator.cache.activations.values:  # the first channels of the order go to zero in every sample
        dead = values[name].numpy().copy()
        dead[:, orders[group][:8]] = 0
        values[name] = Session(analysis.model).to_device(dead)
    assert evaluator.current is not None
    evaluator.current.of = None
    some = dict(evaluator.measure(group, [2, 5, 8, 30]))
    assert some[2] == some[5] == some[8] != some[30]
    assert len(evaluator.current.memory) == 2


def test_cuts_carry_what_is_read_later() -> None:
    analysis = analyze(load(DIGITS))
    segmenter = MaskedSegmenter(analysis)
    for node_index in range(len(segmenter.nodes) + 1):
        live = segmenter.live(node_index)
        made = {t.name for t in analysis.model.graph.inputs}
        made |= {o.name for n in segmenter.nodes[:node_index] for o in n.outputs}
        wanted = {t.name for n in segmenter.nodes[node_index:] for t in n.inputs} | set(segmenter.outputs)
        assert set(live) == made & wanted


def test_work_falls_from_cut_to_cut() -> None:
    segmenter = MaskedSegmenter(analyze(load(DIGITS)))
    work = [segmenter.work(p) for p in range(len(segmenter.nodes) + 1)]
    assert work == sorted(work, reverse=True)
    assert work[0] > 0 == work[-1]


def test_default_batch_keeps_activations_small() -> None:
    class Fake:
        def __init__(self, largest: int) -> None:
            self.largest = lambda: largest

    assert [default_batch(Fake(n)) for n in (1, 64 * 1024, 10 * 2**20)] == [64, 32, 8]  # type: ignore[arg-type]


def test_outputs_that_are_not_finite_name_the_trial(digits: tuple[Analysis, dict[str, Order], Data]) -> None:
    analysis, orders, data = digits
    evaluator = MaskedEvaluator(analysis, orders, data, get_metric("top1"), batch=10, threads=1, strip="never")
    group = analysis.groups[0].name
    list(evaluator.measure(group, [1]))
    assert evaluator.cache.activations is not None
    for values in evaluator.cache.activations.values:
        for name in values:
            values[name] = Session(analysis.model).to_device(np.full_like(values[name].numpy(), np.nan))
    with pytest.raises(OnnxPruneError, match="not finite") as err:
        list(evaluator.measure(group, [3]))
    assert f"group '{group}' with 3 channels removed" in str(err.value)


def test_a_group_behind_the_measured_output_changes_nothing() -> None:
    """Two heads: accuracy is the first one's, the second one's hidden layer has a curve all the same."""
    rng = np.random.default_rng(0)
    weights = {"a": (6, 4), "first": (3, 6), "b": (8, 6), "second": (2, 8)}
    text = """<ir_version: 8, opset_import: ["" : 17]>
    heads (float[N, 4] x) => (float[N, 3] one, float[N, 2] two) {
        h = Gemm <transB = 1> (x, a)
        r = Relu (h)
        one = Gemm <transB = 1> (r, first)
        k = Gemm <transB = 1> (r, b)
        s = Relu (k)
        two = Gemm <transB = 1> (s, second)
    }"""
    model = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    analysis = analyze(load(model))
    data = Data(rng.standard_normal((30, 4)).astype(np.float32), rng.integers(0, 3, 30), "random")
    found = {}
    for metric in ("top1", "mse"):
        evaluator = MaskedEvaluator(analysis, orders_of(analysis), data, get_metric(metric), batch=10, threads=1)
        found[metric] = {g.name: dict(evaluator.measure(g.name, [2]))[2] for g in analysis.groups}
        if metric == "top1":
            assert found[metric]["b"] == evaluator.baseline
    assert set(found["mse"]) == {"a", "b"}
    assert found["mse"]["b"].value > 0  # the second head does change
    assert found["mse"]["a"].value > 0


# ------------------------------------------------------------------------- single channels, and removal between trials


def projected(outputs: Any, labels: Any = None, reference: Any = None) -> Any:
    """A number per sample that every output takes part in, of their own size."""
    flat = np.concatenate([np.asarray(o, np.float64).reshape(len(o), -1) for o in outputs], 1)
    return flat @ np.random.default_rng(0).standard_normal(flat.shape[1]) / np.sqrt(flat.shape[1])


def masked_outputs(analysis: Analysis, data: Data, evaluator: MaskedEvaluator, gone: dict[str, list[int]]) -> list[Any]:
    """Outputs of one full run of a copy in which nothing reads some channels: no pieces, no cached activations."""
    plan = Plan("", {n: Removal(analysis[n].channels, tuple(sorted(c))) for n, c in gone.items() if c})
    session = Session(InsertMasks(plan, analysis)(analysis.model), threads=1)
    runs = [evaluator.runner.real(session.run(evaluator.feeds[i][0]), i) for i in range(len(evaluator.feeds))]
    return [np.concatenate(column) for column in zip(*runs, strict=True)]


@PROPERTY(max_examples=10)
@given(spec=specs())
def test_single_channels_with_others_removed_before_agree_with_the_masked_model(spec: Spec) -> None:
    """Groups in the order of their first reader, which keeps what is cached, and in a random one, which does not."""
    spec = replace(spec, half=False)
    analysis = analyze(load(build(spec)))
    data, rng = samples(spec), np.random.default_rng(spec.seed)
    for options in ({"strip": "never"}, {"strip": "folded", "cache_memory": 0}, {"strip": "stripped", "threads": 2}):
        metric = replace(METRICS["mse"], samples=projected)
        evaluator = MaskedEvaluator(analysis, {}, data, metric, **{"batch": 2, "threads": 1, **options})  # type: ignore[arg-type]
        order = sorted(analysis.groups, key=lambda g: evaluator.segmenter.consumers[g.name].first)
        if options["strip"] != "never":
            order = [order[i] for i in rng.permutation(len(order))]
        gone: dict[str, list[int]] = {}
        for g in order:
            channel = int(rng.integers(g.channels))
            for which, found in zip(([], [channel]), evaluator.samples(g.name, [[], [channel]]), strict=True):
                outputs = masked_outputs(analysis, data, evaluator, {**gone, g.name: which})
                room = 1e-4 * max(1e-30, *(np.abs(o).max() for o in outputs))
                np.testing.assert_allclose(found, projected(outputs), atol=room, err_msg=str((options, g.name, which)))
            gone[g.name] = sorted(rng.choice(g.channels, g.channels // 2, replace=False).tolist())
            evaluator.remove(g.name, gone[g.name])


def test_removal_gives_the_same_bits_whatever_was_measured_before(
    digits: tuple[Analysis, dict[str, Order], Data],
) -> None:
    """Step by step, as the cached activations go from group to group, and each from the start."""
    analysis, _, data = digits
    gone = np.arange(10)
    options: dict[str, Any] = {"batch": 10, "threads": 1, "strip": "never"}
    stepping = MaskedEvaluator(analysis, {}, data, get_metric("loss"), **options)
    fresh = {}
    order = sorted(analysis.groups, key=lambda g: stepping.segmenter.consumers[g.name].first)
    for i, g in enumerate(order):
        found = list(stepping.samples(g.name, [[], [0], [5]]))
        assert stepping.cache.activations is not None  # what was cached before is a start
        anew = MaskedEvaluator(analysis, {}, data, get_metric("loss"), **options)
        for before in order[:i]:
            anew.remove(before.name, gone)
        fresh[g.name] = list(anew.samples(g.name, [[], [0], [5]]))
        for a, b in zip(found, fresh[g.name], strict=True):
            np.testing.assert_array_equal(a, b)
        kept = stepping.cache.activations
        stepping.remove(g.name, gone)
        assert stepping.cache.activations is kept  # its first reader comes after them
    whole = [
        s
        for g in order
        for s in MaskedEvaluator(analysis, {}, data, get_metric("loss"), **options).samples(g.name, [[]])
    ]
    for losses in whole:  # the same network, cut at another place: other sums
        np.testing.assert_allclose(losses, whole[0], atol=1e-5)
    assert not np.allclose(fresh[order[-1].name][0], whole[0], atol=1e-3)


@pytest.mark.parametrize("memory", [0, 2**30])
@pytest.mark.parametrize(("first", "then"), [(4, 4), (2, 4), (4, 2), (0, 0)])
def test_what_was_cached_before_a_removal_is_not_used_after_it(
    digits: tuple[Analysis, dict[str, Order], Data], memory: int, first: int, then: int
) -> None:
    """Channels of an early group go after a later one was measured: pieces and activations there are out of date."""
    analysis, orders, data = digits
    options: dict[str, Any] = {"batch": 10, "threads": 1, "strip": "never", "cache_memory": memory}
    evaluator, fresh = (MaskedEvaluator(analysis, {}, data, get_metric("loss"), **options) for _ in range(2))
    names = [g.name for g in sorted(analysis.groups, key=lambda g: evaluator.segmenter.consumers[g.name].first)]
    gone = orders[names[0]][-10:]
    [before] = evaluator.samples(names[first], [[]])
    evaluator.remove(names[0], gone)
    fresh.remove(names[0], gone)
    [after] = evaluator.samples(names[then], [[]])
    [wanted] = fresh.samples(names[then], [[]])
    np.testing.assert_array_equal(after, wanted)
    assert not np.allclose(before, after, atol=1e-3)


def test_channels_removed_twice_are_removed_once(digits: tuple[Analysis, dict[str, Order], Data]) -> None:
    analysis, orders, data = digits
    evaluator = MaskedEvaluator(analysis, {}, data, get_metric("loss"), batch=10, threads=1)
    name = analysis.groups[0].name
    last = orders[name][-4:].tolist()  # some that matter
    evaluator.remove(name, [last[2], last[0]])
    evaluator.remove(name, [last[0], last[1]])
    assert evaluator.removed.groups == {name: Removal(32, tuple(sorted(last[:3])))}
    before, again, more = evaluator.samples(name, [[], [last[1]], [last[3]]])
    np.testing.assert_array_equal(before, again)
    assert (before != more).any()


def test_means_after_a_removal_are_of_what_is_left(digits: tuple[Analysis, dict[str, Order], Data]) -> None:
    analysis, orders, data = digits
    first, second = analysis.groups[0].name, analysis.groups[3].name
    for way in ("never", "folded", "stripped"):
        evaluator = MaskedEvaluator(analysis, orders, data, get_metric("top1"), batch=10, threads=1, strip=way)
        evaluator.remove(first, orders[first][:12])
        [(_, found)] = evaluator.measure(second, [20])
        gone = {first: orders[first][:12].tolist(), second: orders[second][:20].tolist()}
        scores = masked_outputs(analysis, data, evaluator, gone)[0]
        assert found.value == np.mean(scores.argmax(1) == data.y)


@PROPERTY(max_examples=15)
@given(spec=specs())
def test_tensors_are_those_of_the_masked_model(spec: Spec) -> None:
    spec = replace(spec, half=False)
    analysis = analyze(load(build(spec)))
    data = samples(spec)
    evaluator = MaskedEvaluator(analysis, {}, data, METRICS["mse"], batch=2, threads=2)
    gone: dict[str, list[int]] = {}
    for g in sorted(analysis.groups, key=lambda g: evaluator.segmenter.consumers[g.name].first):
        names = list(dict.fromkeys(s.tensor for s in feature_sites(analysis, [g], "active")))
        plan = Plan("", {n: Removal(analysis[n].channels, tuple(c)) for n, c in gone.items()})
        whole = Session(exposing(InsertMasks(plan, analysis)(analysis.model), names), threads=1)
        wanted = [evaluator.runner.real(whole.run(evaluator.feeds[i][0]), i) for i in range(len(evaluator.feeds))]
        found = list(evaluator.tensors(names))
        assert [i for r, _ in found for i in r] == list(range(len(data)))
        for (_, mine), theirs in zip(found, wanted, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.shape == b.shape or len(a) % len(b) == 0
                np.testing.assert_allclose(a, b[: len(a)], atol=1e-4 * max(1e-30, np.abs(b).max()))
        list(evaluator.samples(g.name, [[]]))
        gone[g.name] = [0] if g.channels > 1 else []
        evaluator.remove(g.name, gone[g.name])


def test_a_metric_over_everything_has_no_numbers_per_sample(digits: tuple[Analysis, dict[str, Order], Data]) -> None:
    analysis, _, data = digits
    evaluator = MaskedEvaluator(
        analysis, {}, data, Metric("mine", True, "", function=lambda o, y: 1.0), batch=50, threads=1
    )
    with pytest.raises(OnnxPruneError, match="no number per sample"):
        list(evaluator.samples(analysis.groups[0].name, [[]]))


def test_even_batches_keep_all_threads_busy() -> None:
    assert [even_batch(100, 32, t) for t in (1, 2, 3)] == [25, 25, 17]
    assert [even_batch(n, 64, 2) for n in (1, 2, 64, 129)] == [1, 1, 32, 33]
    for n in range(1, 300):
        for threads in (1, 2, 5):
            batch = even_batch(n, 16, threads)
            assert 1 <= batch <= 16
