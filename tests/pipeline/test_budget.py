"""Search for a budget: which points are tried, what counts as within, and what is kept on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.small_digits import small_digits

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.tasks.metrics import Metric, MetricValue, UndefinedMetric
from onnxprune.latency.speedup import LatencyPair
from onnxprune.options.tasks import TaskOptions
from onnxprune.pipeline.budget.judge import EVERY, Judge, Judgement, held_out
from onnxprune.pipeline.budget.max_drop import (
    FACTOR,
    LEAST,
    RESOLUTION,
    BudgetPoint,
    BudgetSearch,
    prune_to_budget,
    smallest_within,
)
from onnxprune.pipeline.budget.path import PathPoint, PrunePath
from onnxprune.pipeline.budget.point_store import RECORD, point_store
from onnxprune.pipeline.budget.quantize import quantize_int8

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
DETECTOR = DIGITS.with_name("digits_detector.onnx")


def search(
    drop: Any, budget: float, *, floor: float = 0.0, error: float | None = None, block: float = 0.0
) -> tuple[BudgetSearch, list[tuple[float, float | None]]]:
    """Search with points whose drop is a function of the share kept; return the calls as well."""
    calls: list[tuple[float, float | None]] = []

    def make(share: float, since: Any) -> Any:
        if share < floor:
            raise OnnxPruneError("the target cannot be reached")
        calls.append((share, None if since is None else since.kept))
        kept = share if not block else max(block, block * round(share / block))
        return SimpleNamespace(kept=kept, model=kept)

    judge = SimpleNamespace(
        read=lambda kept: Judgement(1 - drop(kept) / 100, error, drop(kept), error), unit="points",
        metric=SimpleNamespace(name="top1"), original=Judgement(1.0, 0.0, 0.0, 0.0), calibration=range(100),
    )  # fmt: skip
    path = SimpleNamespace(measure="macs", point=make)
    return smallest_within(path, judge, budget), calls  # type: ignore[arg-type]


@given(st.floats(0.06, 0.97))
def test_the_smallest_point_is_close_to_the_border(border: float) -> None:
    found, calls = search(lambda kept: 0.0 if kept >= border else 5.0, 1.0)
    assert found.best.kept >= border
    assert found.smaller is None or found.best.kept <= border / (1 - RESOLUTION)
    assert len(calls) <= 22
    kept = [p.kept for p in found.points]
    assert kept == sorted(kept, reverse=True)


def undefined_below(border: float) -> Any:
    """Return a drop of 0 that raises for models that keep less than `border`."""

    def drop(kept: float) -> float:
        if kept < border:
            raise UndefinedMetric("the metric 'top1' is nan for the smaller model")
        return 0.0

    return drop


def test_a_point_whose_metric_is_not_finite_is_beyond_the_budget() -> None:
    found, _ = search(undefined_below(0.5), 1.0)
    assert 0.5 <= found.best.kept <= 0.5 / (1 - RESOLUTION)
    assert found.smaller is not None
    assert not found.smaller.within
    assert found.smaller.as_dict()["value"] is None
    assert found.smaller.as_dict()["drop"] is None
    json.dumps(found.as_dict(), allow_nan=False)


def test_a_metric_that_no_smaller_model_has_is_said() -> None:
    with pytest.raises(OnnxPruneError, match="'top1' is not finite"):
        search(undefined_below(1.0), 1.0)


@given(st.floats(0.06, 0.9))
def test_every_point_starts_from_the_smallest_one_within(border: float) -> None:
    _, calls = search(lambda kept: 0.0 if kept >= border else 5.0, 1.0)
    within: list[float] = []
    for share, since in calls:
        assert since == (min(within) if within else None)
        assert since is None or share < since
        if share >= border:
            within.append(share)


def test_shares_shrink_by_a_factor_until_one_exceeds_the_budget() -> None:
    _, calls = search(lambda kept: 0.0, 1.0)
    shares = [share for share, _ in calls]
    np.testing.assert_allclose(shares, [FACTOR**i for i in range(1, len(shares) + 1)])
    assert shares[-1] * FACTOR < LEAST


def test_one_point_beyond_the_budget_does_not_end_the_search() -> None:
    found, _ = search(lambda kept: 5.0 if 0.5 < kept < 0.6 or kept < 0.3 else 0.0, 1.0)
    assert 0.3 <= found.best.kept <= 0.3 / (1 - RESOLUTION)


@pytest.mark.parametrize("floor", [0.3, 0.45])
def test_the_border_is_found_where_constraints_allow_little_less(floor: float) -> None:
    found, _ = search(lambda kept: 0.0 if kept >= 0.55 else 5.0, 1.0, floor=floor)
    assert 0.55 <= found.best.kept <= 0.55 / (1 - RESOLUTION)


def test_no_point_within_names_the_best_one() -> None:
    with pytest.raises(OnnxPruneError, match=r"no smaller model is within a drop of 1 points: the best one keeps 9"):
        search(lambda kept: 5.0 + (1 - kept), 1.0)


def test_constraints_that_allow_no_less_end_the_search() -> None:
    found, _ = search(lambda kept: 0.0, 1.0, floor=0.5)
    assert found.best.kept == pytest.approx(FACTOR**3)
    assert found.smaller is None
    with pytest.raises(OnnxPruneError, match="cannot be reached"):
        search(lambda kept: 0.0, 1.0, floor=0.9)


def test_blocks_that_give_the_same_model_end_the_search() -> None:
    found, calls = search(lambda kept: 0.0 if kept > 0.45 else 9.0, 1.0, block=0.25)
    assert found.best.kept == 0.5
    assert len(calls) < 8


def test_the_standard_error_is_added_where_the_samples_allow_it() -> None:
    found, _ = search(lambda kept: 2 * (1 - kept), 1.0, error=0.4)
    assert found.best.reading.drop + 0.4 <= 1.0
    assert not found.warning
    found, _ = search(lambda kept: 2 * (1 - kept), 1.0, error=0.6)
    assert 0.4 < found.best.reading.drop <= 0.5
    assert "cannot support a drop of 1 points" in found.warning


def test_drops_alone_decide_where_samples_support_no_claim() -> None:
    found, _ = search(lambda kept: 0.7 + 2 * (1 - kept), 1.0, error=0.8)
    assert 0.7 + 2 * (1 - found.best.kept) <= 1.0
    assert found.smaller is not None
    assert found.smaller.kept >= found.best.kept * (1 - RESOLUTION)  # as near to the border as with enough samples
    assert "cannot support a drop of 1 points" in found.warning


def test_errors_of_points_beyond_the_budget_are_no_warning() -> None:
    readings = {True: Judgement(1.0, 0.0, 0.0, 0.1), False: Judgement(0.9, 0.0, 9.0, 2.0)}
    judge = SimpleNamespace(
        read=lambda kept: readings[kept >= 0.5], unit="points", metric=SimpleNamespace(name="top1"),
        original=Judgement(1.0, 0.0, 0.0, 0.0), calibration=range(100),
    )  # fmt: skip
    path = SimpleNamespace(measure="macs", point=lambda share, since: SimpleNamespace(kept=share, model=share))
    assert smallest_within(path, judge, 1.0).warning == ""  # type: ignore[arg-type]


def test_a_measured_candidate_that_is_clearly_faster_precedes() -> None:
    found, _ = search(lambda kept: 0.0 if kept >= 0.5 else 5.0, 1.0)
    best = found.best
    assert found.larger is not None
    for share, chosen in ((0.40, found.larger), (0.495, best)):  # 0.495: within the noise of measuring
        pairs = {found.larger.kept: LatencyPair(1.0, share), best.kept: LatencyPair(1.0, 0.5)}
        timed = replace(found, measured=pairs)
        assert timed.best is chosen
        assert f"{100 * pairs[chosen.kept].share:.1f} % measured" in timed.summary
        assert timed.best.within


@pytest.mark.parametrize("budget", [-1.0, float("nan"), float("inf")])
def test_budgets_that_are_no_drop_are_refused(budget: float) -> None:
    with pytest.raises(OnnxPruneError, match="budget"):
        search(lambda kept: 0.0, budget)


# ------------------------------------------------------------------------------------------------ the held-out samples


@given(st.lists(st.integers(0, 4), min_size=40, max_size=90))
def test_samples_are_held_out_of_every_class(labels: list[int]) -> None:
    y = np.array(labels, np.int64)
    fit, out = held_out(Data(np.arange(len(y), dtype=np.float32)[:, None], y, "made"))
    both = np.concatenate([fit.x, out.x]).ravel()
    assert sorted(both.tolist()) == list(range(len(y)))
    for label in np.unique(y):
        assert abs(int((out.y == label).sum()) - int((y == label).sum()) / EVERY) < 1


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(OnnxPruneError, match="at least 32 samples"):
        held_out(Data(np.zeros((31, 1), np.float32), None, "made"))


def digits(count: int = 120, *, labels: bool = True) -> Data:
    data = op.load_data("digits:train", images=count)
    return data if labels else Data(data.x, None, data.name)


def test_drops_are_in_points_and_their_error_is_of_pairs() -> None:
    model = op.load(DIGITS)
    judge = Judge(model, Calibration(digits()))
    assert (judge.metric.name, judge.unit) == ("top1", "points")
    same = judge.read(model)
    assert (same.drop, same.drop_error) == (0.0, 0.0)
    worse = judge.read(_damaged(model))
    assert worse.drop == pytest.approx(100 * (judge.original.value - worse.value))
    assert worse.drop > 0
    share = 1 - worse.value
    assert worse.drop_error == pytest.approx(100 * np.sqrt(share * (1 - share) / 120), rel=1e-6)


def test_drops_of_metrics_over_all_samples_have_an_error_from_blocks() -> None:
    model = op.load(DETECTOR)
    judge = Judge(model, Calibration(op.load_data("digit-scenes:test", images=40)))
    assert judge.metric.name == "map"
    same = judge.read(model)
    assert (same.drop, same.drop_error) == (0.0, 0.0)
    worse = judge.read(_damaged(model))
    assert worse.drop > 0
    assert worse.drop_error is not None
    assert 0 < worse.drop_error < 20


def test_blocks_left_out_give_the_error_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    theirs, ours = rng.standard_normal((2, 2000))
    mean = Metric("mean", True, "labels", combine=lambda r: MetricValue(float(np.mean(r)), None))
    without = [mean.without_blocks(list(r)) for r in (theirs, ours)]
    assert len(without[0]) == 10
    error = np.sqrt(9 * np.var(without[0] - without[1]))
    assert error == pytest.approx(np.std(theirs - ours) / np.sqrt(2000), rel=0.6)  # of 10 blocks
    every = [mean.without_blocks(list(r[:20])) for r in (theirs, ours)]
    exact = np.std((theirs - ours)[:20], ddof=1) / np.sqrt(20)
    assert np.sqrt(19 * np.var(every[0] - every[1])) == pytest.approx(exact)


def test_metrics_that_need_all_blocks_have_no_error() -> None:
    def combine(records: Any) -> MetricValue:
        if 3 not in records:
            raise OnnxPruneError("no boxes")
        return MetricValue(float(len(records)), None)

    assert not len(Metric("some", True, "labels", combine=combine).without_blocks(range(10)))


def test_without_labels_agreement_with_the_original_counts() -> None:
    model = op.load(DIGITS)
    judge = Judge(model, Calibration(digits(labels=False)))
    assert judge.metric.name == "agreement"
    assert judge.original.value == 1.0
    assert judge.read(_damaged(model)).drop > 0


def test_metrics_where_less_is_better_drop_by_what_they_rise() -> None:
    model = op.load(DIGITS)
    judge = Judge(model, Calibration(digits()), TaskOptions(metric="loss"))
    reading = judge.read(_damaged(model))
    assert judge.unit == "loss"
    assert reading.drop == pytest.approx(reading.value - judge.original.value)
    assert reading.drop > 0


@pytest.mark.parametrize("which", ["original", "smaller model"])
def test_metrics_that_are_not_finite_are_named(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, values = op.load(DIGITS), iter([float("nan")] if which == "original" else [1.0, float("nan")])
    monkeypatch.setattr(Metric, "joined", lambda self, parts: MetricValue(next(values), None))
    with pytest.raises(OnnxPruneError, match=f"the metric 'top1' is nan for the {which}") as err:
        Judge(model, Calibration(digits())).read(model)
    assert "--metric" in err.value.fix


def _damaged(model: op.Model) -> op.Model:
    """Return the model with half of the first weights set to zero."""
    copy = model.copy()
    weight = next(n for n in copy.graph.nodes if n.op == "Conv").inputs[1]
    values = np.array(weight.values)
    values[::2] = 0
    weight.values = values
    return copy


# ------------------------------------------------------------------------------------------------------------- points


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> PrunePath:
    model = op.load(small_digits(tmp_path_factory.mktemp("digits")))
    fit = Calibration(digits(64, labels=False), threads=1)
    return PrunePath(op.analyze(model), fit, constraints=op.Constraints(round_to=2))


def test_later_points_remove_more_of_the_original(path: PrunePath) -> None:
    first = path.point(0.6)
    second = path.point(0.4, first)
    assert first.kept == pytest.approx(0.6, abs=0.05)
    assert second.kept == pytest.approx(0.4, abs=0.05)
    for name, removal in first.plan.groups.items():
        assert set(removal.removed) <= set(second.plan.groups[name].removed)
    assert op.verify(path.analysis.source, second.model, second.plan).weights == "not compared"
    assert second.certificate["weights"] == "identical"  # as stripped, before the recovery


def test_scores_are_computed_anew_only_after_a_step(path: PrunePath) -> None:
    first = path.point(0.9)
    near, far = path.point(0.75, first), path.point(0.4, first)
    assert (first.scored, near.scored) == (1.0, 1.0)
    assert near.scores is first.scores
    assert far.scored == first.kept
    assert path.point(0.4, near).scored == near.kept
    known = path.point(0.9, first=first.scores)
    assert known.plan.digest == first.plan.digest
    always = replace(path, rescore=1.0)
    assert always.point(0.75, first).scored == first.kept
    assert always.identity != path.identity


def test_points_are_read_back_as_they_were_written(path: PrunePath, tmp_path: Path) -> None:
    point = path.point(0.5)
    with point_store(tmp_path / "points", {"kind": "test"}) as store:
        assert store.read("a/b", path.analysis) is None
        again = store.write("a/b", point, path.analysis)
        assert again.plan.digest == point.plan.digest
        assert (again.kept, again.before, again.after) == (point.kept, point.before, point.after)
        scored = replace(point, scored=0.75)
        assert store.write("c", scored, path.analysis).scored == 0.75
        for name, scores in point.scores.groups.items():
            np.testing.assert_array_equal(again.scores.groups[name], scores)
        assert store.add_figures("a/b", {"x": 1.0}).figures == {"x": 1.0}
        with pytest.raises(OnnxPruneError, match="another run"), point_store(tmp_path / "points", {"kind": "test"}):
            pass
    with pytest.raises(OnnxPruneError, match="other settings"), point_store(tmp_path / "points", {"kind": "other"}):
        pass
    with point_store(tmp_path / "points", {"kind": "other"}, restart=True) as store:
        assert store.record("a/b") is None


def test_a_point_without_its_record_is_made_again(path: PrunePath, tmp_path: Path) -> None:
    with point_store(tmp_path / "points", {}) as store:
        store.write("a", path.point(0.5), path.analysis)
        (tmp_path / "points" / "a" / RECORD).unlink()
        assert store.read("a", path.analysis) is None


def test_an_interrupted_search_continues_and_other_data_is_refused(
    path: PrunePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coarse = replace(path, criterion="l2", constraints=op.Constraints(round_to=4))
    evaluation, folder = Calibration(digits(), threads=1), tmp_path / "points"
    made: list[float] = []
    point = PrunePath.point

    def counted(self: PrunePath, share: float, *rest: Any, **more: Any) -> PathPoint:
        made.append(share)
        return point(self, share, *rest, **more)

    def interrupt(_: BudgetPoint) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(PrunePath, "point", counted)
    whole = prune_to_budget(coarse, evaluation, 30.0, folder=tmp_path / "whole")
    every = len(made)
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        prune_to_budget(coarse, evaluation, 30.0, folder=folder, notice=interrupt)
    found = prune_to_budget(coarse, evaluation, 30.0, folder=folder)
    assert len(made) == every
    assert found.best.point.plan.digest == whole.best.point.plan.digest
    assert [p.reading for p in found.points] == [p.reading for p in whole.points]
    other = replace(coarse, calibration=Calibration(digits(80, labels=False), threads=1))
    with pytest.raises(OnnxPruneError, match=r"other settings \(data\)"):
        prune_to_budget(other, evaluation, 30.0, folder=folder)


def test_folders_with_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OnnxPruneError, match="other files"), point_store(tmp_path, {}):
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------- int8


@pytest.mark.parametrize("name", ["digits_cnn", "digits_cnn_folded"])
def test_quantized_models_keep_their_answers(name: str) -> None:
    model = op.load(DIGITS.with_name(f"{name}.onnx"))
    quantized = quantize_int8(model, Calibration(digits(64, labels=False), threads=1))
    assert sum(n.op == "QuantizeLinear" for n in quantized.graph.nodes) > 5
    assert [t.name for t in quantized.graph.outputs] == [t.name for t in model.graph.outputs]
    reading = Judge(model, Calibration(digits(labels=False))).read(quantized)
    assert reading.drop < 5
    assert quantized.metadata["onnxprune.quantized"] == "int8"


def test_samples_that_do_not_fit_are_named_before_quantization() -> None:
    data = Data(np.zeros((40, 3, 5), np.float32), None, "made")
    with pytest.raises(OnnxPruneError, match="'made'"):
        quantize_int8(op.load(DIGITS), Calibration(data))


def test_identity_of_a_path_holds_its_settings(path: PrunePath) -> None:
    assert replace(path, measure="bytes").identity != path.identity
    assert replace(path, constraints=op.Constraints(round_to=8)).identity != path.identity
    assert replace(path).identity == path.identity
