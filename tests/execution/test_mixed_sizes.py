"""Models with a dynamic height and width run, cut anywhere, on batches of several sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks.image_models import pictures
from networks.sized import CLASSIFIER, DETECTOR, RECOGNIZER, proto_of
from random_graphs.graphs import PROPERTY

from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.model_runs.masked_evaluation import MaskedEvaluator
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.execution.calibration import Calibration, Probe, exposing
from onnxprune.execution.channel_moments import Moments
from onnxprune.execution.data import Data, Feeds, load_data
from onnxprune.execution.graph_segments import ActivationCursor, Segments
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import get_metric
from onnxprune.execution.tasks.output_distance import OutputDistance
from onnxprune.ir.model import Array, Model
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, compile_plan
from onnxprune.plans import Plan, Removal
from onnxprune.recovery.reconstruct_weights import ReconstructWeights
from onnxprune.recovery.recover import recover

SIDES = {
    "classifier": (CLASSIFIER, [(20, 28), (12, 16), (33, 20)]),
    "detector": (DETECTOR, [(20, 28), (12, 16), (32, 20)]),
    "recognizer": (RECOGNIZER, [(9, 40), (12, 31), (16, 52)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three sizes for every model, in turn."""
    root = tmp_path_factory.mktemp("images")
    for name, (_, sides) in SIDES.items():
        pictures(root / name, [sides[i % 3] for i in range(20)])
    return root


def analysis_of(name: str) -> Analysis:
    return analyze(load(proto_of(SIDES[name][0])))


def data_of(folder: Path, name: str) -> Data:
    return load_data(str(folder / name))


def runs(model: Model, feeds: Feeds, names: list[str]) -> list[dict[str, Array]]:
    """Tensors of a run of the whole model, batch by batch."""
    session = Session(exposing(model, names), threads=1)
    return [dict(zip(names, session.run(feeds[i][0]), strict=True)) for i in range(len(feeds))]


@pytest.mark.parametrize("name", SIDES)
def test_a_walk_gives_the_tensors_of_one_run(folder: Path, name: str) -> None:
    analysis = analysis_of(name)
    calibration = Calibration(data_of(folder, name), batch=4, threads=1)
    segments, feeds = Segments(analysis.model, analysis.witness), calibration.feeds(analysis.model)
    assert feeds.mixed
    floats = [n for n in segments.producer_index if n in analysis.witness.shapes]
    floats = [n for n in floats if analysis.witness.dtypes[n] == np.float32 and len(analysis.witness.shapes[n]) > 1]
    wanted = runs(analysis.model, feeds, floats)
    with ActivationCursor(segments, feeds, threads=1) as cursor:
        for node_index in range(0, len(segments.nodes), 2):
            cursor.advance(node_index)
            names = [n for n in floats if n in segments.live(node_index) or segments.producer_index[n] >= node_index]
            for i, found in enumerate(cursor.values(names)):
                for n in names:
                    np.testing.assert_allclose(found[n], wanted[i][n], rtol=1e-4, atol=1e-5, err_msg=n)
        covered = [k for i in range(len(feeds)) for k in cursor.samples(i)]
    assert covered == list(range(20))


def test_bytes_are_those_of_the_largest_batch(folder: Path) -> None:
    analysis = analysis_of("classifier")
    segments = Segments(analysis.model, analysis.witness)
    assert segments.bytes_of(["x"]) == 4 * 3 * 224 * 448
    segments.set_sizes(Calibration(data_of(folder, "classifier"), batch=1).feeds(analysis.model))
    assert segments.bytes_of(["x"]) == 4 * 3 * 33 * 20
    assert segments.shape("a") == (1, 16, 17, 10)
    assert segments.shape("y") == (1, 5)


def test_statistics_count_every_position_once(folder: Path) -> None:
    analysis = analysis_of("detector")
    found = {}
    for batch in (1, 3, 8):
        moments = Moments("t")
        Calibration(data_of(folder, "detector"), batch=batch, threads=1).collect(analysis.model, [Probe("t", moments)])
        found[batch] = moments
    feeds = Calibration(data_of(folder, "detector"), batch=4).feeds(analysis.model)
    values = [r["t"].transpose(1, 0, 2, 3).reshape(16, -1) for r in runs(analysis.model, feeds, ["t"])]
    together = np.concatenate(values, 1).astype(np.float64)
    for moments in found.values():
        assert moments.count == together.shape[1]
        np.testing.assert_allclose(moments.mean, together.mean(1), rtol=1e-5)
        np.testing.assert_allclose(moments.variance, together.var(1), rtol=1e-4)


@pytest.mark.parametrize("name", SIDES)
def test_masked_metrics_are_the_mean_over_samples_of_all_sizes(folder: Path, name: str) -> None:
    analysis, data = analysis_of(name), data_of(folder, name)
    group = analysis.groups[0]
    order = {group.name: np.arange(group.channels)}

    def measured(data: Data, batch: int) -> float:
        evaluator = MaskedEvaluator(analysis, order, data, get_metric("mse"), batch=batch, threads=2)
        return next(evaluator.measure(group.name, [3]))[1].value

    whole = measured(data, 4)
    parts = [data.take(np.arange(k, 20, 3)) for k in range(3)]  # one size each
    assert whole == pytest.approx(sum(measured(p, 5) * len(p) for p in parts) / 20, rel=1e-5)
    assert whole == pytest.approx(measured(data, 20), rel=1e-5)


@pytest.mark.parametrize("name", SIDES)
def test_layers_are_solved_for_at_all_sizes(folder: Path, name: str) -> None:
    analysis = analysis_of(name)
    calibration = Calibration(data_of(folder, name), batch=4, threads=1)
    groups = {g.name: Removal(g.channels, tuple(range(0, g.channels, 3))) for g in analysis.groups}
    plan = Plan(analysis.source.fingerprint, groups)
    segmenter = MaskedSegmenter(analysis)
    assert segmenter.outputs == ["y"]
    pruned = compile_plan(analysis.source, plan, analysis=analysis, check=False).model
    done = recover(analysis.source, pruned, plan, calibration, analysis=analysis)
    assert done.best.distance < done.stages[0].distance
    solved = ReconstructWeights(plan, analysis, calibration)(pruned)
    feeds = calibration.feeds(analysis.source)
    wanted, before, after = (runs(m, feeds, ["y"]) for m in (analysis.source, pruned, solved))
    measure = OutputDistance(["y"], wanted)
    assert measure(after) < measure(before)
    for model in (done.model, solved):
        assert [t.shape for t in model.graph.inputs] == [["N", 3, "H", "W"]]
        for run, original in zip(runs(model, feeds, ["y"]), wanted, strict=True):
            assert run["y"].shape == original["y"].shape


@PROPERTY(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=4), st.integers(0, 2**16),
    st.booleans(),
)  # fmt: skip
def test_the_distance_has_the_unit_of_the_variance(sides: list[tuple[int, int]], seed: int, equal: bool) -> None:
    """Twice the deviation from the reference is four times the distance; of one size, it is the known formula."""
    rng = np.random.default_rng(seed)
    sides = [sides[0]] * len(sides) if equal else sides
    reference = [{"y": rng.standard_normal((3, 2, h, w))} for h, w in sides]
    gap = [rng.standard_normal(r["y"].shape) for r in reference]
    measure = OutputDistance(["y"], reference)
    one, two = (
        measure([{"y": r["y"] + factor * g} for r, g in zip(reference, gap, strict=True)]) for factor in (1.0, 2.0)
    )
    assert two == pytest.approx(4 * one)
    assert one > 0
    if equal:
        together = np.concatenate([r["y"].reshape(3, -1) for r in reference])
        spread = together.var(0).sum()
        expected = sum(float(np.square(g).sum()) for g in gap) / spread / (3 * len(sides))
        assert one == pytest.approx(expected)


def test_a_size_that_is_no_function_of_the_input_is_not_declared(folder: Path) -> None:
    analysis = analysis_of("classifier")
    segments = Segments(analysis.model, analysis.witness)
    assert segments.declared("a") == ["a_0", 16, "a_2", "a_3"]
    assert segments.declared("p") == ["p_0", 24, 1, 1]
    assert segments.declared("nothing") is None
