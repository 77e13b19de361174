"""ThiNet against the paper's loop: each time the channel that leaves the least of the next layer's output missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.reading_layers import ALL, BODIES, analysis_of, calibration, noise
from numpy.typing import NDArray
from random_graphs.graphs import PROPERTY

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.criteria.model_runs.consumer_errors import RemovalOrder, StatisticLimits, ordered_scores
from onnxprune.criteria.scoring import score
from onnxprune.criteria.thinet import ThiNet, contribution_moments, greedy_order
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import exposing
from onnxprune.execution.gram import consumers
from onnxprune.execution.sessions import Session

Array = NDArray[Any]


def paper(added: list[Array]) -> tuple[list[int], list[float]]:
    """Algorithm 1 of Luo et al.: T grows by the channel that keeps `sum (sum_{c in T} x_c)^2` least.

    Args:
        added: what each channel adds to the outputs of each layer, [numbers, channels], divided by the square root of
            what the layer's errors are a share of.
    """
    channels = added[0].shape[1]
    removed: list[int] = []
    values = [0.0]
    while len(removed) < channels:
        value, best = min(
            (sum(float(np.square(x[:, [*removed, c]].sum(1)).sum()) for x in added), c)
            for c in range(channels)
            if c not in removed
        )
        removed.append(best)
        values.append(value)
    return removed, np.diff(values).tolist()


@PROPERTY(max_examples=60)
@given(st.integers(0, 2**16), st.integers(1, 8), st.integers(2, 30))
def test_greedy_order_is_that_of_the_paper_s_loop(seed: int, channels: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    added = rng.standard_normal((rows, channels)) @ rng.standard_normal((channels, channels))
    found = greedy_order(added.T @ added)
    order, rises = paper([added])
    assert found.channels.tolist() == order
    np.testing.assert_allclose(found.error_increases, rises, rtol=1e-9, atol=1e-9 * np.square(added).sum())


def test_channels_that_cancel_go_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    added = rng.standard_normal((100, 4)) * [1, 5, 4, 20]
    added[:, 3] = -added[:, 1]
    found = greedy_order(added.T @ added)
    # Alone both cost more than 2; once one of them is gone, the other costs less than nothing.
    assert found.channels.tolist()[:2] == [0, 2]
    assert found.error_increases[3] < 0
    assert found.error_increases.sum() == pytest.approx(float(np.square(added[:, [0, 2]].sum(1)).sum()))


def test_ties_go_to_the_lower_index() -> None:
    assert greedy_order(np.eye(4)).channels.tolist() == [0, 1, 2, 3]
    assert greedy_order(np.zeros((3, 3))).channels.tolist() == [0, 1, 2]


@PROPERTY(max_examples=30)
@given(st.integers(0, 2**16), st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any))
def test_contributions_are_products_of_what_channels_add(seed: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    n = sum(sizes) + 2  # two inputs belong to no channel
    x, weight = rng.standard_normal((20, n)), rng.standard_normal((n, 3))
    stops = np.cumsum(sizes)
    index = rng.permutation(n)
    blocks = [index[stop - size : stop] for stop, size in zip(stops, sizes, strict=True)]
    added = np.stack([x[:, b] @ weight[b] for b in blocks])
    wanted = np.einsum("cro,dro->cd", added, added) / len(x)
    np.testing.assert_allclose(contribution_moments(x.T @ x / len(x), weight, blocks), wanted, atol=1e-12)


def added_of(analysis: Analysis, group: Group) -> list[Array]:
    """Return the contribution of each channel to the outputs of each consumer, in units of its output spread."""
    found = []
    for c in consumers(analysis, [group]):
        [x] = Session(exposing(analysis.model, [c.tensor]), threads=1).run({"x": noise().x})
        rows, matrix = c.node.rows(x).astype(np.float64), c.node.matrix()
        each = [
            np.stack([r[:, b] @ w[b] for b in c.blocks(q, group.components)], axis=2)
            for q, (r, w) in enumerate(zip(rows, matrix, strict=True))
        ]
        outputs = np.concatenate([r @ w for r, w in zip(rows, matrix, strict=True)], axis=1)
        spread = outputs.var(0).sum() * len(outputs)
        found.append(np.concatenate(each, axis=1).reshape(-1, group.channels) / np.sqrt(spread))
    return found


@pytest.mark.parametrize("name", BODIES)
def test_scores_are_those_of_the_paper_s_loop(name: str) -> None:
    analysis = analysis_of(name)
    scores = score(analysis, "thinet", rows=ALL, calibration=calibration())
    for group in analysis.groups:
        order, rises = paper(added_of(analysis, group))
        found = scores.groups[group.name]
        assert np.argsort(found, kind="stable").tolist() == order
        wanted = ordered_scores(RemovalOrder(np.array(order), np.array(rises)))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())


def limited(limits_: StatisticLimits) -> ThiNet:
    class Limited(ThiNet):
        limits = limits_

    return Limited(rows=ALL)


def test_wide_layers_are_looked_at_through_some_outputs() -> None:
    analysis = analysis_of("conv")
    whole = score(analysis, "thinet", rows=ALL, calibration=calibration()).groups["w"]
    every = score(analysis, limited(StatisticLimits(width=1)), calibration=calibration()).groups["w"]
    assert np.argsort(every).tolist() == np.argsort(whole).tolist()
    some = score(analysis, limited(StatisticLimits(width=1, outputs=1)), calibration=calibration()).groups["w"]
    assert np.isfinite(some).all()
    assert np.ptp(some) > 0
    assert np.abs(some - every).max() > 1e-3


def test_groups_of_one_portion_at_a_time_score_the_same() -> None:
    analysis = analysis_of("concat")
    whole = score(analysis, "thinet", rows=ALL, calibration=calibration()).groups
    apart = score(analysis, limited(StatisticLimits(memory=1)), calibration=calibration()).groups
    assert len(whole) == 2
    for name, values in whole.items():
        np.testing.assert_allclose(apart[name], values, rtol=1e-9)


@pytest.mark.parametrize("rows", [0, -1, 1.5, True])
def test_rows_that_make_no_sense_are_refused(rows: Any) -> None:
    with pytest.raises(OnnxPruneError, match="thinet: rows must be a number"):
        ThiNet(rows=rows)
