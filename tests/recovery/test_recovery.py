"""Recovery as a whole: its stages, who judges them, what is refused, and going on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from random_graphs.graphs import SIDE, Spec, build
from recovering import constants, cut, cut_at_random, digits, noise, outputs, parsed, raw, samples

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.execution.tasks.metrics import get_metric
from onnxprune.ir.model import Model
from onnxprune.ir.reader import load
from onnxprune.ir.writer import to_proto
from onnxprune.passes import Pass, Pipeline, StripChannels
from onnxprune.plans import Plan, Removal
from onnxprune.recovery import recover as module
from onnxprune.recovery._holdout_evaluator import HoldoutEvaluator
from onnxprune.recovery._lockstep import PairedCursor
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.recovery.reconstruct_weights import ReconstructWeights
from onnxprune.recovery.recover import (
    LEAST,
    STAGES,
    OriginalActivations,
    Recovered,
    RecoveryStage,
    check_belongs,
    recover,
    split,
)

Array = NDArray[Any]
Case = tuple[Analysis, Plan, Model, Data]


@pytest.fixture(scope="module")
def case() -> Case:
    """A small network for classes, half of its channels gone, and labels that it mostly meets."""
    analysis = op.analyze(load(build(Spec(("residual", "projection"), seed=1, head="flatten"))))
    plan, pruned = cut_at_random(analysis, 1, 0.4)
    x = noise(120).x
    y = outputs(analysis.source, x).argmax(1)
    y[::9] = (y[::9] + 1) % 5
    return analysis, plan, pruned, Data(x, y, "made up")


def run(case: Case, data: Data | None = None, **options: Any) -> Recovered:
    analysis, plan, pruned, own = case
    options = {"rows": 800, "analysis": analysis, **options}
    return recover(analysis.source, pruned, plan, samples(data or own), **options)


@pytest.fixture(scope="module")
def straight(case: Case) -> Recovered:
    """A run of all stages in one go."""
    return run(case)


def test_stages_bring_outputs_back_step_by_step(case: Case, straight: Recovered) -> None:
    analysis, _, pruned, data = case
    assert [s.name for s in straight.stages] == ["as cut", *STAGES]
    distances = [s.distance for s in straight.stages]
    assert distances[2] < 0.1 * distances[1] < 0.06 * distances[0]
    assert all(s.kept for s in straight.stages)
    assert straight.stages[2].note == "6 of 6 layers"
    assert straight.samples == (105, 15)
    _, judging = split(data)
    for model, top1 in ((pruned, straight.stages[0].top1), (straight.model, straight.stages[2].top1),
                        (analysis.source, straight.original)):  # fmt: skip
        assert evaluate(model, judging, threads=1).top1 == top1
    # The distance is the divergence from the original's probabilities, on the samples that are held out.
    kl = get_metric("kl").samples
    assert kl is not None
    wanted = kl([outputs(straight.model, judging.x)], None, [outputs(analysis.source, judging.x)]).mean()
    assert distances[2] == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert {p.key: p.value for p in to_proto(straight.model).metadata_props}["onnxprune.recovered"] == " ".join(STAGES)
    document = straight.as_dict()
    assert (document["samples"], document["held_out"], document["original_top1"]) == (105, 15, straight.original)
    assert [s["name"] for s in document["stages"]] == ["as cut", *STAGES]


def test_the_stages_are_the_passes_on_the_samples_that_do_not_judge(case: Case, straight: Recovered) -> None:
    analysis, plan, pruned, data = case
    solving, _ = split(data)
    inside = samples(solving)
    by_hand = RecalibrateBatchnorm(plan, analysis, inside)(pruned)
    by_hand = ReconstructWeights(plan, analysis, inside, rows=800)(by_hand)
    assert {n: v.tobytes() for n, v in constants(by_hand).items()} == {
        n: v.tobytes() for n, v in constants(straight.model).items()
    }


def test_what_is_held_out_changes_no_weight(case: Case, straight: Recovered) -> None:
    data = case[3]
    x = data.x.copy()
    held = np.arange(7, len(x), 8)
    x[held] += np.random.default_rng(0).normal(0, 0.1, x[held].shape).astype(np.float32)
    other = run(case, Data(x, data.y, data.name))
    assert raw(other.model) == raw(straight.model)
    assert other.stages[0].distance != straight.stages[0].distance


def test_split() -> None:
    data = Data(np.arange(20.0)[:, None], np.arange(20), "twenty")
    solving, judging = split(data)
    assert judging.x[:, 0].tolist() == [7, 15]
    assert judging.y is not None
    assert judging.y.tolist() == [7, 15]
    assert sorted([*solving.x[:, 0], *judging.x[:, 0]]) == list(range(20))
    solving, judging = split(Data(np.zeros((8000, 1)), None, "many"))
    assert (len(solving), len(judging)) == (8000 - 512, 512)


def test_without_labels_accuracy_is_not_known(case: Case, straight: Recovered) -> None:
    data = case[3]
    bare = run(case, Data(data.x, None, "bare"))
    assert raw(bare.model) == raw(straight.model)
    assert [s.distance for s in bare.stages] == [s.distance for s in straight.stages]
    assert bare.original is None
    assert all(s.top1 is None for s in bare.stages)


def test_a_model_that_ships_comes_back() -> None:
    analysis, plan, pruned, data = digits("digits_cnn_folded", 0.15, 200)
    found = run((analysis, plan, pruned, data))
    assert found.stages[0].top1 is not None
    assert found.stages[2].top1 is not None
    assert found.stages[2].top1 > 0.9 > 0.5 > found.stages[0].top1


class Worse(Pass):
    """Spoils a layer."""

    name = "recalibrate_batchnorm"  # type: ignore[misc]
    factor = np.float32(-1)

    def __init__(
        self, plan: Plan, analysis: Analysis, calibration: Calibration, originals: OriginalActivations | None
    ) -> None:
        pass

    def rewrite(self, model: Model) -> Model:
        gemm = next(n for n in model.graph.nodes if n.op == "Gemm")
        gemm.inputs[1].values = np.asarray(gemm.inputs[1].values) * self.factor
        return model


@pytest.mark.parametrize("factor", [-1.0, np.inf, np.nan, 1.0])
def test_a_stage_that_does_not_help_is_undone(
    case: Case, straight: Recovered, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worse, "factor", np.float32(factor))
    monkeypatch.setattr(module, "RecalibrateBatchnorm", Worse)
    found = run(case)
    assert [s.kept for s in found.stages] == [True, False, True]
    assert found.stages[1].distance == (np.inf if not np.isfinite(factor) else pytest.approx(found.stages[1].distance))
    assert found.stages[1].distance >= found.stages[0].distance
    without = run(case, stages=["reconstruct_weights"])
    assert raw(found.model) == raw(without.model)
    assert {p.key: p.value for p in to_proto(found.model).metadata_props}["onnxprune.recovered"] == STAGES[1]


def test_where_nothing_helps_the_cut_stays(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RecalibrateBatchnorm", Worse)
    found = run(case, stages=["recalibrate_batchnorm"])
    assert raw(found.model) == raw(case[2])
    assert len(found.stages) == 2


@pytest.mark.parametrize(
    ("stages", "expected"),
    [(STAGES, [40]), (["recalibrate_batchnorm"], [105]), (["reconstruct_weights", "recalibrate_batchnorm"], [105])],
)
def test_statistics_need_few_samples_where_the_weights_are_solved_afterwards(
    case: Case, monkeypatch: pytest.MonkeyPatch, stages: list[str], expected: list[int]
) -> None:
    seen: list[Array] = []

    def watched(plan: Plan, analysis: Analysis, calibration: Calibration, originals: object) -> Pass:
        seen.append(calibration.data.x)
        return RecalibrateBatchnorm(plan, analysis, calibration)

    monkeypatch.setattr(module, "STATISTICS", 40)
    monkeypatch.setattr(module, "RecalibrateBatchnorm", watched)
    run(case, stages=stages)
    assert [len(x) for x in seen] == expected
    fit, _ = split(case[3])
    np.testing.assert_array_equal(seen[0][[0, -1]], fit.x[[0, -1]])  # from one end of the samples to the other


def test_a_stage_may_come_twice(case: Case, tmp_path: Path) -> None:
    twice = run(case, stages=["reconstruct_weights"] * 2, folder=tmp_path / "r")
    once = run(case, stages=["reconstruct_weights"])
    assert twice.stages[1].distance == once.stages[1].distance
    # Solved anew, not looked up.
    assert (twice.stages[2].distance, twice.stages[2].note) != (once.stages[1].distance, once.stages[1].note)


# --------------------------------------------------------------------------------------------------- what is refused


def test_too_few_samples(case: Case) -> None:
    data = case[3]
    with pytest.raises(OnnxPruneError, match=f"at least {LEAST} samples; there are 15"):
        run(case, Data(data.x[:15], data.y, data.name))
    assert run(case, Data(data.x[:16], None, data.name)).samples == (14, 2)


def test_unknown_stage(case: Case) -> None:
    with pytest.raises(OnnxPruneError, match="did you mean 'reconstruct_weights'"):
        run(case, stages=["reconstruct_weight"])


def test_a_model_that_another_plan_made_is_refused(case: Case) -> None:
    analysis, plan, pruned, data = case
    name, removal = next((n, r) for n, r in plan.groups.items() if len(r.removed) > 1)
    less = Plan(plan.model, {**plan.groups, name: Removal(removal.channels, removal.removed[1:])})
    with pytest.raises(OnnxPruneError, match="the plan keeps"):
        run((analysis, less, pruned, data))
    with pytest.raises(OnnxPruneError, match="the plan keeps"):
        check_belongs(analysis, plan, analysis.model)
    check_belongs(analysis, plan, pruned)


def test_a_model_of_other_nodes_is_refused(case: Case) -> None:
    analysis, plan, pruned, data = case
    proto = to_proto(pruned)
    node = next(n for n in proto.graph.node if n.op_type == "Relu")
    node.op_type = "Sigmoid"
    with pytest.raises(OnnxPruneError, match="its nodes differ") as err:
        run((analysis, plan, load(proto), data))
    assert err.value.where == f"Sigmoid {node.output[0]!r}"


def test_a_plan_for_another_model_is_refused(case: Case) -> None:
    analysis, plan, pruned, data = case
    other = replace(plan, model="0" * 64)
    with pytest.raises(OnnxPruneError, match="another model"):
        run((analysis, other, pruned, data), analysis=None)


def test_the_plan_may_leave_out_its_model(case: Case, straight: Recovered) -> None:
    analysis, plan, pruned, data = case
    found = run((analysis, replace(plan, model=""), pruned, data), analysis=None)
    assert raw(found.model) == raw(straight.model)


def test_a_model_without_scores_is_refused() -> None:
    analysis = parsed("a = Conv (x, w) b = Relu (a) c = Conv (b, v) g = GlobalAveragePool (c) f = Flatten (g) "
                      "y = ArgMax (f)", {"w": (6, 3, 3, 3), "v": (4, 6, 2, 2)}, "int64[N,k] y")  # fmt: skip
    plan, pruned = cut(analysis, {"w": (0,)})
    with pytest.raises(OnnxPruneError, match="no output of floats"):
        run((analysis, plan, pruned, noise(20)))


def test_several_inputs_are_refused() -> None:
    proto = build(Spec(("conv",)))
    proto.graph.input.append(helper.make_tensor_value_info("z", 1, ["N", 5]))
    proto.graph.node.append(helper.make_node("Add", ["y", "z"], ["s"]))
    proto.graph.output[0].name = "s"
    analysis = op.analyze(load(proto))
    plan, pruned = cut_at_random(analysis, 1)
    with pytest.raises(OnnxPruneError, match="2 inputs"):
        run((analysis, plan, pruned, noise(20)))


@pytest.mark.parametrize("place", [3, 7])  # in what is solved with, and in what judges
def test_samples_that_are_no_numbers_give_one_error(case: Case, place: int, tmp_path: Path) -> None:
    data = case[3]
    x = data.x.copy()
    x[place] = np.nan
    with pytest.raises(OnnxPruneError, match="not finite on this data"):
        run(case, Data(x, data.y, data.name), folder=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- other kinds of models


def test_outputs_that_are_no_classes_count_by_their_squared_error() -> None:
    analysis = op.analyze(load(build(Spec(("residual", "conv"), seed=2, head="conv"))))
    plan, pruned = cut_at_random(analysis, 1, 0.3)
    data = Data(noise(64).x, np.zeros(64, np.int64), "dense")
    found = run((analysis, plan, pruned, data))
    assert found.original is None
    _, judging = split(data)
    wanted = outputs(analysis.source, judging.x).astype(np.float64)
    gap = outputs(found.model, judging.x) - wanted
    share = np.square(gap).sum() / len(judging) / wanted.var(0).sum()
    assert found.stages[-1].distance == pytest.approx(share, rel=1e-3)
    assert share < 0.5 * found.stages[0].distance


@pytest.mark.parametrize("spec", [Spec(("conv",), dynamic=False), Spec(("attention", "conv"), seed=2, dynamic=False)])
def test_a_fixed_batch(spec: Spec) -> None:
    fixed = op.analyze(load(build(spec)))
    free = op.analyze(load(build(replace(spec, dynamic=True))))
    data = noise(33)  # the last batch of two is filled up with a copy
    results = []
    for analysis in (fixed, free):
        plan, pruned = cut_at_random(analysis, 1)
        results.append(run((analysis, plan, pruned, data)))
    for one, other in zip(*(r.stages for r in results), strict=True):
        assert (one.name, one.kept, one.note) == (other.name, other.kept, other.note)
        assert one.distance == pytest.approx(other.distance, rel=1e-2, abs=1e-6)
    assert results[0].stages[-1].distance < 0.2 * results[0].stages[0].distance


def test_memory_for_outputs_is_bounded() -> None:
    analysis = op.analyze(load(build(Spec(("conv",), head="conv"))))
    plan, pruned = cut_at_random(analysis, 1)
    assert run((analysis, plan, pruned, noise(160)), memory=5 * 2 * SIDE * SIDE * 8).samples == (140, 5)


def test_external_data_is_recovered_as_well(case: Case, straight: Recovered, tmp_path: Path) -> None:
    analysis, plan, pruned, data = case
    op.save(pruned, tmp_path / "p.onnx", external=True)
    found = run((analysis, plan, op.load(tmp_path / "p.onnx"), data))
    assert {n: v.tobytes() for n, v in constants(found.model).items()} == {
        n: v.tobytes() for n, v in constants(straight.model).items()
    }
    onnx.checker.check_model(to_proto(found.model))


def test_a_model_stripped_in_this_process_is_the_same_as_its_file(case: Case, straight: Recovered) -> None:
    analysis, plan, _, data = case
    fresh = Pipeline([StripChannels(plan, analysis)])(analysis.model)
    before = raw(fresh)
    assert raw(run((analysis, plan, fresh, data)).model) == raw(straight.model)
    assert raw(fresh) == before


# --------------------------------------------------------------------------------------------------- interrupted runs


class Stop(Exception):
    pass


def interrupted(case: Case, folder: Path, layers: int, **options: Any) -> None:
    def progress(done: int, total: int) -> None:
        if done == layers:
            raise Stop

    with pytest.raises(Stop):
        run(case, folder=folder, progress=progress, **options)


@pytest.mark.parametrize("layers", [1, 4, 6])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    case: Case, straight: Recovered, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "r"
    interrupted(case, folder, layers)
    assert len(list(folder.glob("*.npz"))) == layers
    solved = []
    plain = PairedCursor.rows
    monkeypatch.setattr(
        PairedCursor,
        "rows",
        lambda self, step, *args, **named: solved.append(step) or plain(self, step, *args, **named),
    )
    counts: list[tuple[int, int]] = []
    found = run(case, folder=folder, progress=lambda *c: counts.append(c))
    assert len(solved) == 6 - layers
    assert counts == [(i + 1, 6) for i in range(6)]
    assert raw(found.model) == raw(straight.model)
    assert [(s.distance, s.note) for s in found.stages] == [(s.distance, s.note) for s in straight.stages]
    # The folder stays: whoever asked for it removes it once the model is written.
    assert len(list(folder.glob("*.npz"))) == 6


def test_a_run_cut_off_within_a_layer_solves_it_again(case: Case, straight: Recovered, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    interrupted(case, folder, 3)
    journal = folder / "journal"
    journal.write_bytes(journal.read_bytes()[:-20])  # killed while the third line was written
    (folder / "0002.npz").write_bytes(b"half of an archive")  # and its arrays may be anything
    assert raw(run(case, folder=folder).model) == raw(straight.model)


@pytest.mark.parametrize(
    ("changed", "says"),
    [({"rows": 700}, "rows"), ({"rounds": 1}, "rounds"), ({"stages": ["reconstruct_weights"]}, "stages")],
)
def test_layers_of_other_settings_are_refused(case: Case, changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    interrupted(case, tmp_path / "r", 2)
    with pytest.raises(OnnxPruneError, match=rf"other settings \({says}\)"):
        run(case, folder=tmp_path / "r", **changed)
    assert len(list((tmp_path / "r").glob("*.npz"))) == 2


def test_layers_of_other_data_are_refused(case: Case, tmp_path: Path) -> None:
    interrupted(case, tmp_path / "r", 2)
    data = case[3]
    with pytest.raises(OnnxPruneError, match=r"other settings \(data\)"):
        run(case, Data(data.x[:100], None, data.name), folder=tmp_path / "r")


def test_restart_throws_them_away(case: Case, tmp_path: Path) -> None:
    interrupted(case, tmp_path / "r", 4, rows=900)
    counts = []
    found = run(case, folder=tmp_path / "r", restart=True, progress=lambda *c: counts.append(c))
    assert len(counts) == 6
    assert found.stages[-1].kept


def test_a_damaged_layer_is_named(case: Case, tmp_path: Path) -> None:
    interrupted(case, tmp_path / "r", 2)
    (tmp_path / "r" / "0001.npz").write_bytes(b"no archive")
    with pytest.raises(OnnxPruneError, match="interrupted run") as err:
        run(case, folder=tmp_path / "r")
    assert err.value.where == str(tmp_path / "r" / "0001.npz")
    assert err.value.fix is not None
    assert "--restart" in err.value.fix


def test_a_folder_that_cannot_be_made(case: Case, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "no" / "r"):
        with pytest.raises(OnnxPruneError, match="cannot create the folder"):
            run(case, folder=folder)


def test_two_runs_in_one_folder_are_refused(case: Case, tmp_path: Path) -> None:
    def progress(done: int, total: int) -> None:
        with pytest.raises(OnnxPruneError, match="another run"):
            run(case, folder=tmp_path / "r")
        raise Stop

    with pytest.raises(Stop):
        run(case, folder=tmp_path / "r", progress=progress)


def test_nothing_worth_keeping_leaves_no_folder(case: Case, tmp_path: Path) -> None:
    run(case, stages=["recalibrate_batchnorm"], folder=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metric", "value", "nearer", "kept"),
    [
        ("top1", 0.78, True, True),  # within the standard error of 0.04: the distance decides
        ("top1", 0.82, False, False),
        ("top1", 0.70, True, False),
        ("top1", 0.90, False, True),
        ("loss", 0.79, True, False),  # not a share: every change counts
        ("", 0.70, True, True),
    ],
)
def test_metric_and_distance_decide_about_a_stage(metric: str, value: float, nearer: bool, kept: bool) -> None:
    evaluator = SimpleNamespace(metric=metric, decides=bool(metric), higher=True, calibration=range(100))
    best = RecoveryStage("as cut", 1.0, None, 0.0, True, value=0.8)
    new = RecoveryStage("reconstruct_weights", 0.5 if nearer else 2.0, None, 0.0, True, value=value)
    assert HoldoutEvaluator.improves(evaluator, new, best) is kept  # type: ignore[arg-type]
