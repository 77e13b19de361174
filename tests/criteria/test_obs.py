"""Obs against trying every channel by numpy's least squares, and its unit against whole runs of changed models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine
from hypothesis import example, given
from hypothesis import strategies as st
from least_squares import Layer, greedy
from networks.reading_layers import ALL, BODIES, IMAGE, W, analysis_of, calibration, noise, parsed
from numpy.typing import NDArray
from random_graphs.graphs import PROPERTY, Spec, build

import onnxprune as op
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.analysis.linear_layers import linear_node
from onnxprune.criteria import obs as module
from onnxprune.criteria.base import ScoringContext
from onnxprune.criteria.model_runs import output_effects as effects_module
from onnxprune.criteria.model_runs.compensation import Compensation
from onnxprune.criteria.model_runs.consumer_errors import (
    ConsumerStatistics,
    Contributions,
    RemovalOrder,
    StatisticLimits,
    consumer_statistics,
    ordered_scores,
)
from onnxprune.criteria.model_runs.output_effects import output_effects
from onnxprune.criteria.obs import Obs, ablations, levels, removal_order, scaled
from onnxprune.criteria.scoring import score
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, exposing
from onnxprune.execution.data import Data
from onnxprune.execution.gram import consumers
from onnxprune.execution.sessions import Session
from onnxprune.ir.reader import load
from onnxprune.passes import InsertMasks
from onnxprune.planning.iterative import plan_steps
from onnxprune.plans import Plan, Removal

Array = NDArray[Any]
MODELS = Path(__file__).parent.parent.parent / "models"
RIDGE = 1e-3


@cache
def network() -> Analysis:
    """A classifier of several layers."""
    return op.analyze(load(build(Spec(("conv", "residual", "grouped_positions", "conv"), seed=5))))


def layers_of(analysis: Analysis, group: Group, data: Data) -> list[tuple[Layer, float]]:
    """The layers that read a group, with all rows of all samples, and their output variance."""
    found = []
    for c in consumers(analysis, [group]):
        [x] = Session(exposing(analysis.model, [c.tensor]), threads=1).run({"x": data.x})
        rows = c.node.rows(x).astype(np.float64)
        if c.node.intercept:
            rows -= rows.mean(1, keepdims=True)
        parts = list(zip(rows, c.node.matrix(), strict=True))
        energy = sum(float(np.square(r @ w).sum()) / len(r) for r, w in parts)
        found += [(Layer(r, w, c.blocks(q, group.components)), energy) for q, (r, w) in enumerate(parts)]
    return found


# --------------------------------------------------------------------------------------------------------- the order


@pytest.mark.parametrize("name", BODIES)
def test_scores_are_those_of_trying_every_channel(name: str) -> None:
    analysis = analysis_of(name)
    scores = score(analysis, "obs", weigh="layer", rows=ALL, ridge=RIDGE, calibration=calibration())
    for group in analysis.groups:
        order, rises = greedy(layers_of(analysis, group, noise()), group.channels, RIDGE)
        found = scores.groups[group.name]
        assert np.argsort(found, kind="stable").tolist() == order
        wanted = ordered_scores(RemovalOrder(np.array(order), np.array(rises)))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * wanted.max())
        assert sum(rises) > 0.1


@pytest.mark.parametrize(("end", "costs"), [("y = MatMul (b, v)", True), ("m = MatMul (b, v) y = Add (m, c)", False)])
def test_a_constant_channel_costs_what_no_bias_takes_up(end: str, costs: bool) -> None:
    analysis = parsed(
        "p = Flatten (x) a = MatMul (p, w) i = Add (a, k) b = Relu (i) " + end,
        {"w": (108, 7), "k": (7,), "v": (7, 5)} | ({} if costs else {"c": (5,)}), "float[N,5] y",
    )  # fmt: skip
    tensors = analysis.model.graph.tensors()
    tensors["w"].values = tensors["w"].values * (np.arange(7, dtype=np.float32) != 3)
    tensors["k"].values = np.full(7, 2, np.float32)
    scores = score(analysis, "obs", weigh="layer", rows=ALL, calibration=calibration()).groups["w"]
    assert (scores[3] > 1e-3) == costs
    assert np.delete(scores, 3).min() > 1e-3


def test_channels_that_nothing_reads_but_a_sum_go_by_number() -> None:
    analysis = op.analyze(load(build(Spec(("channel_sum",), seed=3))))
    scores = score(analysis, "obs", calibration=calibration(noise(20)))
    assert all(np.isfinite(s).all() for s in scores.groups.values())
    unread = [g for g in analysis.groups if not consumers(analysis, [g])]
    for g in unread:
        assert np.argsort(scores.groups[g.name], kind="stable").tolist() == list(range(g.channels))


def test_few_rows_give_nearly_the_same() -> None:
    analysis = analysis_of("conv")
    data = noise(400)
    every, some = (
        score(analysis, "obs", weigh="layer", rows=rows, calibration=calibration(data)).groups["w"]
        for rows in (ALL, 2 * len(data))
    )
    assert np.abs(some - every).max() > 0
    np.testing.assert_allclose(some, every, rtol=0.25)


def limited(limits_: StatisticLimits, **params: Any) -> Obs:
    class Limited(Obs):
        limits = limits_

    return Limited(**params)


@pytest.mark.parametrize("weigh", ["layer", "outputs"])
def test_portions_give_what_one_gives(weigh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = network()
    whole = score(analysis, "obs", weigh=weigh, calibration=calibration())
    runs = []
    collect = Calibration.collect
    monkeypatch.setattr(Calibration, "collect", lambda *a, **k: (runs.append(len(a[2])), collect(*a, **k))[1])
    apart = score(analysis, limited(StatisticLimits(memory=2**16), weigh=weigh), calibration=calibration())
    assert len([n for n in runs if n]) > 2
    for group, scores in whole.groups.items():
        # What the outputs lose comes from float32 sessions, cut in other places.
        np.testing.assert_allclose(apart.groups[group], scores, rtol=1e-4, atol=1e-6 * scores.max())


# --------------------------------------------------------------------------------------------------------- the scores


@PROPERTY(max_examples=100)
@given(st.lists(st.floats(-1, 10, allow_subnormal=False), min_size=1, max_size=20), st.integers(0, 2**16))
def test_scores_keep_the_order_and_are_the_nearest_that_grow(rises: list[float], seed: int) -> None:
    from scipy.optimize import isotonic_regression

    channels = np.random.default_rng(seed).permutation(len(rises))
    found = ordered_scores(RemovalOrder(channels, np.array(rises)))
    assert np.argsort(found, kind="stable").tolist() == channels.tolist()
    assert (np.diff(found[channels]) > 0).all()
    np.testing.assert_allclose(found[channels], isotonic_regression(rises).x, rtol=1e-9, atol=1e-12)
    assert found.sum() == pytest.approx(sum(rises), rel=1e-9, abs=1e-9)
    running, hull = np.cumsum(rises), np.cumsum(found[channels])
    assert (hull <= running + 1e-9).all()


@PROPERTY(max_examples=100)
@given(
    st.lists(st.floats(0, 10, allow_subnormal=False), min_size=2, max_size=20),
    st.dictionaries(st.integers(1, 19), st.floats(0, 5, allow_subnormal=False), min_size=1, max_size=4),
)
@example([0.0] * 13 + [6.0, 10.0, 0.0, 1e-10, 0.0], {17: 1.0, 15: 0.0})  # running sums cancelled
def test_scaled_rises_sum_to_the_losses_that_were_measured(rises: list[float], effects: dict[int, float]) -> None:
    effects = {n: v for n, v in effects.items() if n < len(rises)}
    order = RemovalOrder(np.arange(len(rises)), np.array(rises))
    found = scaled(order, effects)
    np.testing.assert_array_equal(found.channels, order.channels)
    assert (found.error_increases >= 0).all()
    if not effects:
        assert found is order
        return
    worst = 0.0
    for n in sorted(effects):
        worst = max(worst, effects[n])
        assert found.error_increases[:n].sum() == pytest.approx(worst, rel=1e-6, abs=1e-9)
    last = max(effects)
    if sum(rises[:last]) > 1e-6:  # beyond the last trial: as much for each error as up to there
        wanted = worst * sum(rises[last:]) / sum(rises[:last])
        assert found.error_increases[last:].sum() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_levels_leave_some_channels() -> None:
    assert [levels(n) for n in (1, 2, 3, 4, 16)] == [[], [1], [1, 2], [1, 2, 3], [2, 4, 8, 12]]


# ------------------------------------------------------------------------------------------- what the outputs lose


def divergence(found: Array, wanted: Array) -> float:
    p, q = (np.exp(v - v.max(1, keepdims=True)) for v in (wanted.astype(np.float64), found.astype(np.float64)))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float((p * np.log(p / q)).sum(1).mean())


def squares(found: Sequence[Array], wanted: Sequence[Array]) -> float:
    shares = [
        np.square(f.astype(np.float64) - w).sum() / len(w) / w.astype(np.float64).reshape(len(w), -1).var(0).sum()
        for f, w in zip(found, wanted, strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("name", [n for n in BODIES if n != "concat"])
def test_effects_are_those_of_a_whole_run_with_weights_by_numpy(name: str) -> None:
    analysis, data = analysis_of(name), noise()
    case = ScoringContext(analysis, analysis.groups, calibration())
    [group] = analysis.groups
    [[(_, known)]] = list(consumer_statistics(case, [], ALL, 0, StatisticLimits()))
    order = removal_order(group, known, RIDGE)
    found = output_effects(case, [(group, ablations(group, known, order, RIDGE))], 1)[group.name]
    assert list(found) == levels(group.channels)
    wanted = Session(analysis.model, threads=1).run({"x": data.x})
    layers = {c.node.node.outputs[0].name: c for c in consumers(analysis, [group])}
    for removed, loss in found.items():
        gone = order.channels[:removed]
        plan = Plan("", {group.name: Removal(group.channels, tuple(sorted(gone.tolist())))})
        model = InsertMasks(plan, analysis)(analysis.model)
        for node in list(model.graph.nodes):
            if node.outputs[0].name not in layers:
                continue
            c = layers[node.outputs[0].name]
            [x] = Session(exposing(analysis.model, [c.tensor]), threads=1).run({"x": data.x})
            rows, old = c.node.rows(x).astype(np.float64), c.node.matrix()
            mean = rows.mean(1, keepdims=True) if c.node.intercept else np.zeros((len(rows), 1, rows.shape[2]))
            new = np.empty_like(old)
            for q in range(c.node.groups):
                blocks = c.blocks(q, group.components)
                layer = Layer(rows[q] - mean[q], old[q], blocks)
                new[q] = layer.fitted(np.concatenate([blocks[g] for g in gone]), RIDGE)[0]
            own = linear_node(node, frozenset(t.name for t in model.graph.outputs))
            assert own is not None
            shift = c.node.shift() + np.einsum("gk,gko->go", mean[:, 0], old - new).ravel()
            own.set_weights(new, shift if own.intercept else None)
        outputs = Session(model, threads=1).run({"x": data.x})
        if name in ("flatten", "matmul", "matmul and add"):
            assert loss == pytest.approx(divergence(outputs[0], wanted[0]), rel=1e-3, abs=1e-7)
        else:
            assert loss == pytest.approx(squares(outputs, wanted), rel=1e-3, abs=1e-7)


def test_scores_sum_to_what_the_outputs_lose() -> None:
    analysis = network()
    case = ScoringContext(analysis, analysis.groups, calibration())
    scores = score(analysis, "obs", calibration=calibration(), remaining=1).groups
    [portion] = list(consumer_statistics(case, [], Obs().rows, 0, StatisticLimits()))
    touched = 0
    for group, known in portion:
        order = removal_order(group, known, RIDGE)
        assert np.argsort(scores[group.name], kind="stable").tolist() == order.channels.tolist()
        losses = output_effects(case, [(group, ablations(group, known, order, RIDGE))], 8)[group.name]
        sums = np.cumsum(np.sort(scores[group.name]))
        worst = 0.0
        for removed, loss in losses.items():
            worst = max(worst, loss)
            assert sums[removed - 1] <= worst * (1 + 1e-6) + 1e-9  # the convex hull of the losses so far
            touched += bool(sums[removed - 1] == pytest.approx(worst, rel=1e-6))
    assert touched >= len(portion)


def test_errors_before_other_layers_cost_less() -> None:
    analysis = network()
    whole, less = (score(analysis, "obs", calibration=calibration(), remaining=r).groups for r in (1.0, 0.25))
    layers = {c.output for c in analysis.contractions}
    order = [o.name for n in analysis.model.graph.nodes for o in n.outputs if o.name in layers]
    first = {
        g.name: min(order.index(c.output) for c in analysis.contractions
                    if np.isin(analysis.component[c.labels], g.components).any())
        for g in analysis.groups
    }  # fmt: skip
    for name, scores in whole.items():
        share = 0.25 ** ((len(order) - 1 - first[name]) / len(order))
        np.testing.assert_allclose(less[name], scores * share, rtol=1e-6, atol=1e-12)
    assert len(set(first.values())) > 3
    compensation = Compensation(analysis, 0.25)
    assert compensation.at([order[-1]]) == 1.0
    assert compensation.at([order[-1], order[0]]) == compensation.at([order[0]]) < 0.3
    assert compensation.at([]) == compensation.at(["no tensor"]) == 1.0


@pytest.mark.parametrize("value", [0, -0.5, 1.5, True, float("nan"), "a", None])
def test_what_remains_is_a_share(value: Any) -> None:
    with pytest.raises(OnnxPruneError, match="remaining"):
        Obs(remaining=value)


def test_an_output_that_a_group_does_not_reach_counts_as_unchanged() -> None:
    body = "a = Conv (x, w) b = Relu (a) y = Conv (b, v) z = Relu (x)"
    both = parsed(body, {**W, "v": (4, 6, 3, 3)}, IMAGE + ", float[N,d,e,f] z")
    alone = parsed(body.replace(" z = Relu (x)", ""), {**W, "v": (4, 6, 3, 3)}, IMAGE)
    of_both, of_one = (
        score(a, "obs", rows=ALL, calibration=calibration()).groups["w"] for a in (both, alone)
    )  # fmt: skip
    np.testing.assert_allclose(of_both, of_one / 2, rtol=1e-5)


def test_outputs_of_no_known_size_need_no_measuring() -> None:
    body = "a = Conv (x, w) b = Relu (a) c = Conv (b, v) y = NonZero (c)"
    analysis = parsed(body, {**W, "v": (4, 6, 3, 3)}, "int64[4,M] y")
    with pytest.raises(OnnxPruneError, match="weigh=layer"):
        score(analysis, "obs", calibration=calibration())
    assert np.ptp(score(analysis, "obs", weigh="layer", calibration=calibration()).groups["w"]) > 0


def test_large_models_are_tried_on_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis = analysis_of("conv")
    seen = []
    subset = effects_module.subset
    monkeypatch.setattr(effects_module, "subset", lambda data, n: (seen.append(n), subset(data, n))[1])
    case = ScoringContext(analysis, analysis.groups, calibration())
    macs = 16 * 27 * 6 + 4 * 54 * 4
    for count in (1, 10**9, round(4e12 / macs / 100)):
        output_effects(case, [], count)
    assert seen[:2] == [256, 32]
    assert seen[2] == 100


# -------------------------------------------------------------------------------------------------------- wide layers


def wide_case(name: str, block: int = 2**22) -> tuple[Analysis, Group, ConsumerStatistics]:
    analysis = analysis_of(name)
    [group] = analysis.groups
    case = ScoringContext(analysis, analysis.groups, calibration())
    [[(_, [known])]] = list(consumer_statistics(case, [], ALL, 0, StatisticLimits(width=1, block=block)))
    assert isinstance(known.statistic, Contributions)
    return analysis, group, known


@pytest.mark.parametrize("name", ["conv", "grouped", "flatten", "matmul", "transposed"])
@pytest.mark.parametrize("block", [2**22, 300])
def test_wide_layers_give_a_factor_to_each_channel(name: str, block: int) -> None:
    analysis, group, known = wide_case(name, block)
    node = known.consumer.node
    [x] = Session(exposing(analysis.model, [known.consumer.tensor]), threads=1).run({"x": noise().x})
    rows, matrix = node.rows(x).astype(np.float64), node.matrix()
    added = np.concatenate(  # what each channel adds to each output, [rows, outputs, channels]
        [
            np.stack([r[:, b] @ w[b] for b in known.consumer.blocks(q, group.components)], axis=2)
            for q, (r, w) in enumerate(zip(rows, matrix, strict=True))
        ],
        axis=1,
    )
    for centred in (False, True):
        z = added - added.mean(0) if centred else added
        wanted = np.einsum("roc,rod->cd", z, z) / len(z)
        [(moments, ones, blocks)] = known.problems(group, centred=centred)
        np.testing.assert_allclose(moments, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())
        assert (ones == 1).all()
        assert [b.tolist() for b in blocks] == [[c] for c in range(group.channels)]
    z = added - added.mean(0) if node.intercept else added
    layer = Layer(z.reshape(-1, group.channels), np.ones((group.channels, 1)), list(np.arange(group.channels)[:, None]))
    energy = float(np.square(z.sum(2)).sum()) / z.shape[0] / z.shape[1]
    order, rises = greedy([(layer, energy)], group.channels, RIDGE)
    criterion = limited(StatisticLimits(width=1), weigh="layer", rows=ALL)
    found = score(analysis, criterion, calibration=calibration()).groups["w"]
    wanted = ordered_scores(RemovalOrder(np.array(order), np.array(rises)))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-9)


def test_wide_layers_keep_the_order_of_clear_cases() -> None:
    analysis = op.analyze(analysis_of("conv").source)
    for node in analysis.model.graph.nodes:
        if node.op == "Conv" and node.inputs[1].name == "v":
            node.inputs[1].values = node.inputs[1].values * np.array([3, 0.1, 10, 1, 0.01, 30])[:, None, None].astype(
                np.float32
            )
    narrow = score(analysis, "obs", calibration=calibration()).groups["w"]
    wide = score(analysis, limited(StatisticLimits(width=4, outputs=2)), calibration=calibration()).groups["w"]
    assert np.argsort(narrow).tolist() == np.argsort(wide).tolist() == [4, 1, 3, 0, 2, 5]
    assert np.isfinite(wide).all()


# ------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("criterion", ["obs", "apoz"])
def test_criteria_from_data_work_in_steps(criterion: str) -> None:
    analysis = network()
    made = plan_steps(
        analysis,
        criterion,
        op.Target(macs=0.5),
        steps=3,
        constraints=op.Constraints(round_to=1),
        calibration=calibration(),
    )
    done = op.compile_plan(analysis.source, made, analysis=analysis)
    assert abs(done.after.macs / done.before.macs - 0.5) <= 0.04  # a channel is as much
    assert made.criterion["steps"] == 3
    assert made.criterion.get("scope") == ("saving" if criterion == "obs" else None)


def test_command_line_prunes_by_costs_per_saving(tmp_path: Path) -> None:
    line = CommandLine(
        "plan", MODELS / "digits_cnn_folded.onnx", "-c", "obs", "-p", "rows=400", "--data", "digits:train",
        "--images", 10, "--threads", 1, "--round-to", 4,
    )  # fmt: skip
    line.ok("--target", "macs=0.5", "-o", tmp_path / "a")
    line.ok("--target", "macs=0.5", "--allocator", "global", "-o", tmp_path / "b")
    line.ok("--target", "macs=0.6", "--steps", 2, "-p", "weigh=layer", "-o", tmp_path / "c")
    a, b, c = (op.load_plan(tmp_path / name) for name in "abc")
    assert [p.criterion.get("scope") for p in (a, b, c)] == ["saving", None, "saving"]
    assert a.groups != b.groups
    assert (c.criterion["weigh"], c.criterion["steps"]) == ("layer", 2)


def test_fewer_samples_than_it_takes_are_refused() -> None:
    with pytest.raises(OnnxPruneError, match="8") as err:
        score(analysis_of("conv"), "obs", calibration=calibration(noise(7)))
    assert "obs" in str(err.value)
    score(analysis_of("conv"), "obs", calibration=calibration(noise(8)))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weigh": "output"}, "outputs, layer"),
        ({"ridge": 0}, "from 1e-8 to 1"),
        ({"ridge": 2.0}, "from 1e-8 to 1"),
        ({"ridge": True}, "from 1e-8 to 1"),
        ({"ridge": float("nan")}, "from 1e-8 to 1"),
        ({"rows": 0}, "number of positions"),
        ({"rows": 2.5}, "number of positions"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        Obs(**params)


def test_progress_goes_through_the_trials() -> None:
    seen: list[tuple[int, int]] = []
    score(
        analysis_of("conv"), "obs", calibration=calibration(), progress=lambda done, total: seen.append((done, total))
    )
    assert (40, 40) in seen  # samples
    assert seen[-1] == (4, 4)  # trials
    assert module.WEIGHINGS == ("outputs", "layer")


@pytest.mark.parametrize("value", [1.0, 0.25, 0.03])
def test_scores_with_another_value_are_those_of_a_new_scoring(value: float) -> None:
    analysis = network()
    found = score(analysis, "obs", calibration=calibration())
    assert module.is_open(found)
    other, new = module.with_remaining(found, value), score(analysis, "obs", calibration=calibration(), remaining=value)
    assert other.criterion == new.criterion
    assert not module.is_open(other)
    assert other.groups.keys() == new.groups.keys()
    for name, scores in new.groups.items():
        np.testing.assert_allclose(other.groups[name], scores, rtol=1e-9, atol=1e-15)
    again = module.with_remaining(other, 0.25)
    for name, scores in found.groups.items():
        np.testing.assert_allclose(again.groups[name], scores, rtol=1e-9, atol=1e-15)


def test_losses_of_blocks_follow_the_value_in_their_order() -> None:
    found = score(network(), "obs", calibration=calibration())
    blocks = [b.name for b in network().blocks]
    assert blocks
    other = module.with_remaining(replace(found, blocks=dict.fromkeys(blocks, 2.0)), 1.0)
    compensation = Compensation(network(), 0.25)
    assert list(other.blocks) == blocks
    for name in blocks:
        assert other.blocks[name] == pytest.approx(2.0 / compensation.at([network().block(name).output]))


@pytest.mark.parametrize(
    ("criterion", "params"), [("obs", {"weigh": "layer"}), ("obs", {"remaining": 0.25}), ("l2", {})]
)
def test_other_scores_leave_nothing_open(criterion: str, params: dict[str, Any]) -> None:
    assert not module.is_open(score(network(), criterion, calibration=calibration(), **params))
