"""The sweep: every point, the same file whatever happened on the way, and one error for what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from onnxprune._utils.processes import parallel
from onnxprune.criteria.model_runs import masked_evaluation as trials_module
from onnxprune.criteria.scoring import Scores
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data import Data, load_data
from onnxprune.execution.tasks.evaluation import evaluate
from onnxprune.execution.tasks.metrics import MetricValue
from onnxprune.ir.reader import load
from onnxprune.pipeline import analyze, apply, score
from onnxprune.planning import _sweep_workers
from onnxprune.planning import sensitivity_sweep as module
from onnxprune.planning.curves import Curves, load_curves, save_curves
from onnxprune.planning.sensitivity_sweep import RATIOS, removed_at, sensitivity
from onnxprune.plans import Plan, Removal

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"
COARSE = (0.3, 0.6, 0.9)


@pytest.fixture(scope="module")
def scores() -> Scores:
    model = load(DIGITS)
    return score(analyze(model), "dscore")


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits:test", images=200)


@pytest.fixture(scope="module")
def whole(scores: Scores, data: Data) -> Curves:
    return sensitivity(scores, data, threads=1)


def text(curves: Curves) -> str:
    return curves.to_json()


def test_every_group_at_every_ratio(whole: Curves, scores: Scores) -> None:
    assert list(whole.groups) == [g.name for g in scores.analysis.groups]
    for g in scores.analysis.groups:
        points = whole.groups[g.name].points
        assert [p.ratio for p in points] == list(RATIOS)
        assert [p.removed for p in points] == [removed_at(g.channels, r) for r in RATIOS]


def test_points_are_what_the_plain_loop_measures(whole: Curves, scores: Scores, data: Data) -> None:
    """Strip, a new session, evaluate everything."""
    analysis = scores.analysis
    assert whole.baseline.value == evaluate(analysis.source, data).top1
    for g in analysis.groups:
        order = np.argsort(scores.groups[g.name], kind="stable")
        for p in whole.groups[g.name].points[4::7]:
            plan = Plan("", {g.name: Removal(g.channels, tuple(sorted(order[: p.removed].tolist())))})
            accuracy = evaluate(apply(analysis.source, plan, analysis=analysis, verify=False), data)
            assert p.value == accuracy.top1, (g.name, p)
            assert p.error == pytest.approx(accuracy.top1_error)


def test_curves_come_back_from_their_file(whole: Curves, tmp_path: Path) -> None:
    save_curves(whole, tmp_path / "c.json")
    again = load_curves(tmp_path / "c.json")
    assert again == whole
    assert text(again) == text(whole)


def test_ratio_that_removes_nothing_is_the_baseline(scores: Scores, data: Data) -> None:
    curves = sensitivity(scores, data, ratios=(0.01, 0.5), include=["stem*"])
    first = curves.groups["stem.conv"].points[0]
    assert (first.removed, first.value) == (0, curves.baseline.value)


@pytest.mark.parametrize("options", [{"jobs": 2}, {"threads": 2}, {"cache_memory": 100_000}])
def test_the_file_does_not_depend_on_how_it_was_run(
    whole: Curves, scores: Scores, data: Data, options: dict[str, Any]
) -> None:
    assert text(sensitivity(scores, data, **options)) == text(whole)


def test_loss_is_the_same_to_the_last_bit_on_two_workers(scores: Scores, data: Data) -> None:
    one = sensitivity(scores, data, metric="loss", ratios=COARSE, threads=1)
    two = sensitivity(scores, data, metric="loss", ratios=COARSE, jobs=2)
    assert text(one) == text(two)
    assert not one.higher_is_better


def test_without_labels_outputs_are_compared_with_the_originals(scores: Scores, data: Data) -> None:
    curves = sensitivity(scores, Data(data.x, None, "plain"), ratios=COARSE, include=["stem*", "dense*"])
    assert curves.metric == "kl"
    assert curves.baseline.value == 0
    for curve in curves.groups.values():
        values = [p.value for p in curve.points]
        assert values == sorted(values)
        assert values[-1] > 0


def test_a_users_metric_sees_everything_at_once(
    scores: Scores, data: Data, whole: Curves, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = ModuleType("user_metric_of_sweep")
    monkeypatch.setitem(sys.modules, "user_metric_of_sweep", user)
    user.top = lambda outputs, labels: float((outputs.argmax(1) == labels).mean())  # type: ignore[attr-defined]
    curves = sensitivity(scores, data, metric="user_metric_of_sweep:top", include=["stem*"])
    assert [p.value for p in curves.groups["stem.conv"].points] == [p.value for p in whole.groups["stem.conv"].points]
    assert curves.groups["stem.conv"].points[0].error is None


def test_bisection_finds_the_crossing_with_fewer_points(whole: Curves, scores: Scores, data: Data) -> None:
    found = sensitivity(scores, data, threshold=0.9)
    assert found.bisected == 0.9
    for name, curve in whole.groups.items():
        measured = {p.removed: p.value for p in found.groups[name].points}
        assert len(measured) <= 5 < len({p.removed for p in curve.points})
        assert measured.items() <= {p.removed: p.value for p in curve.points}.items()
        values = [p.value for p in curve.points]
        if values == sorted(values, reverse=True):  # where a curve only falls, bisection cannot miss
            assert found.largest(name, 0.9) == whole.largest(name, 0.9)


def test_bisection_is_the_same_on_two_workers(scores: Scores, data: Data) -> None:
    assert text(sensitivity(scores, data, threshold=0.9)) == text(sensitivity(scores, data, threshold=0.9, jobs=2))


def test_a_loss_is_bisected_from_the_other_side(scores: Scores, data: Data) -> None:
    found = sensitivity(scores, data, metric="loss", threshold=0.5, include=["stem*"])
    grid = sensitivity(scores, data, metric="loss", include=["stem*"])
    assert found.largest("stem.conv", 0.5) == grid.largest("stem.conv", 0.5) > 0


def test_a_curve_ends_at_chance(whole: Curves, scores: Scores, data: Data) -> None:
    found = sensitivity(scores, data, stop_at_chance=True)
    level = 0.1 + np.sqrt(0.1 * 0.9 / len(data))
    shorter = 0
    for name, curve in found.groups.items():
        full = whole.groups[name].points
        assert curve.points == full[: len(curve.points)]
        assert all(p.value > level for p in curve.points[:-1])
        shorter += len(curve.points) < len(full)
        if len(curve.points) < len(full):
            assert curve.points[-1].value <= level
    assert shorter


def test_progress_counts_work_up_to_all_of_it(scores: Scores, data: Data) -> None:
    for options in ({}, {"threshold": 0.9}, {"stop_at_chance": True}, {"jobs": 2}):
        seen: list[tuple[int, int]] = []
        sensitivity(scores, data, ratios=COARSE, progress=lambda d, t, s=seen: s.append((d, t)), **options)  # type: ignore[arg-type, misc]
        done = [d for d, _ in seen]
        assert done == sorted(done)
        assert done[-1] == seen[-1][1] > 0


# ---------------------------------------------------------------------------------------------------- nothing is lost


class Stop(Exception):
    """Ends a run in the middle."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every trial and baseline that is run."""
    ran: list[int] = []
    original = trials_module.MaskedEvaluator.joined

    def joined(self: Any, collected: Any) -> MetricValue:
        ran.append(1)
        return original(self, collected)

    monkeypatch.setattr(trials_module.MaskedEvaluator, "joined", joined)
    return ran


@pytest.mark.parametrize("options", [{}, {"threshold": 0.9}, {"stop_at_chance": True}])
def test_an_interrupted_run_goes_on_where_it_stopped(
    scores: Scores, data: Data, tmp_path: Path, counted: list[int], options: dict[str, Any]
) -> None:
    wanted = text(sensitivity(scores, data, **options))
    needed = len(counted)
    for stop in (1, 7, 20):
        path = tmp_path / f"{stop}.journal"
        counted.clear()

        def tick(done: int, total: int, stop: int = stop) -> None:
            if len(counted) > stop:
                raise Stop

        with pytest.raises(Stop):
            sensitivity(scores, data, journal=path, progress=tick, **options)
        first = len(counted)
        assert path.exists()
        counted.clear()
        assert text(sensitivity(scores, data, journal=path, **options)) == wanted
        assert len(counted) <= needed - first + 2  # the baselines of both runs, and the point at hand


def command(output: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "onnxprune", "sensitivity", str(DIGITS), "--data", "digits:test", "-c", "dscore",
            "-o", str(output), *more]  # fmt: skip


def points_in(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") - 1 if journal.exists() else 0


SLOW_VARIANTS = (("--jobs", "2"), ("--min-group-accuracy", "0.9"), ("--jobs", "2", "--stop-at-chance"))


@pytest.mark.parametrize("more", [(), *(pytest.param(v, marks=pytest.mark.slow) for v in SLOW_VARIANTS)])
def test_kill_nine_and_the_same_command_ends_with_the_same_bytes(tmp_path: Path, more: tuple[str, ...]) -> None:
    subprocess.run(command(tmp_path / "whole.json", *more), check=True, capture_output=True)
    output, journal = tmp_path / "cut.json", tmp_path / "cut.json.journal"
    work = tmp_path / "cut.json.journal.work"
    for lines in (2, 9):
        run = subprocess.Popen(command(output, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and sum(map(points_in, [journal, *work.glob("*.journal")])) < lines:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        if run.returncode == 0:  # it was faster than we
            break
        assert not output.exists()
        assert journal.exists()
    subprocess.run(command(output, *more), check=True, capture_output=True)
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.json", "whole.json"]


def test_points_that_workers_journaled_are_not_measured_again(
    scores: Scores, data: Data, tmp_path: Path, counted: list[int]
) -> None:
    """As kill -9 leaves them: a journal with its header only, and what the workers wrote beside it."""
    path = tmp_path / "j"
    wanted = text(sensitivity(scores, data, ratios=COARSE, journal=path))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0])
    work = tmp_path / "j.work"
    work.mkdir()
    (work / "a-1.journal").write_bytes(b"".join(lines[:5]))
    (work / "a-2.journal").write_bytes(b"".join([lines[0], *lines[5:9]]) + lines[9][:7])  # torn
    (work / "a-3.journal").write_bytes(b'{"journal": 1}\n' + lines[10])  # of other settings
    counted.clear()
    assert text(sensitivity(scores, data, ratios=COARSE, journal=path)) == wanted
    assert len(counted) == 1 + len(lines) - 1 - 8
    assert not work.exists()


def _dies_once(task: Any) -> Any:
    """A worker that is killed by the first task it gets, once."""
    flag = task[0].data.parent / "died"
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return _sweep_workers.measure_task(task)


def test_points_of_a_lost_worker_are_done_again(
    scores: Scores, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = text(sensitivity(scores, data, ratios=COARSE))
    real = parallel.spread
    monkeypatch.setattr(module, "spread", lambda f, tasks, **o: real(_dies_once, tasks, **o))
    assert text(sensitivity(scores, data, ratios=COARSE, jobs=2, journal=tmp_path / "j")) == wanted
    assert (tmp_path / "died").exists()


def _waits(task: Path) -> None:
    """A worker that says who it is and goes on for long."""
    (task / str(os.getpid())).touch()
    time.sleep(600)


def test_workers_of_a_killed_run_go_as_well(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from test_sensitivity_sweep import _waits; "
        "from onnxprune._utils.processes.parallel import spread\n"
        f"list(spread(_waits, [Path({str(tmp_path)!r})] * 2, jobs=2))"
    )
    run = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    while len(pids := [int(p.name) for p in tmp_path.iterdir()]) < 2:
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    for pid in pids:  # they notice within a second; a test that hangs here has found one that does not
        while alive(pid):
            time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "LokyProcess" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def _dies(task: Any) -> Any:
    raise RuntimeError("out of luck")


def test_workers_that_always_fail_are_one_error() -> None:
    with pytest.raises(OnnxPruneError, match=r"failed repeatedly \(RuntimeError: out of luck"):
        list(parallel.spread(_dies, [1, 2, 3], jobs=2))


def _refuses(task: Any) -> Any:
    raise OnnxPruneError("no", where="there", fix="that")


def test_an_error_in_a_worker_arrives_whole() -> None:
    with pytest.raises(OnnxPruneError) as err:
        list(parallel.spread(_refuses, [1], jobs=2))
    assert str(err.value) == "no\n  at: there\n  try: that"


def test_journal_of_another_model_or_other_settings_is_refused(scores: Scores, data: Data, tmp_path: Path) -> None:
    path = tmp_path / "j"

    def run(s: Scores = scores, d: Data = data, **options: Any) -> Curves:
        return sensitivity(s, d, ratios=(0.5,), include=["*stem*", "*conv*"], journal=path, **options)

    run()
    before = path.read_bytes()
    other = load(DIGITS.with_name("digits_cnn_folded.onnx"))
    groups = analyze(other)
    for what, call in {
        "model": lambda: run(score(groups, "dscore")),
        "criterion": lambda: run(score(scores.analysis, "l1")),
        "metric": lambda: run(metric="loss"),
        "batch": lambda: run(batch=7),
        "data": lambda: run(d=load_data("digits:test", images=100)),
    }.items():
        with pytest.raises(OnnxPruneError, match=rf"other settings \(.*{what}"):
            call()
        assert path.read_bytes() == before
    run(batch=7, restart=True)
    assert path.read_bytes() != before


def test_more_ratios_reuse_what_is_journaled(scores: Scores, data: Data, tmp_path: Path, counted: list[int]) -> None:
    sensitivity(scores, data, ratios=(0.3, 0.6), journal=tmp_path / "j")
    counted.clear()
    sensitivity(scores, data, ratios=COARSE, journal=tmp_path / "j")
    assert len(counted) == len(scores.analysis.groups) + 1


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: Data(d.x[:, :, :4], d.y, "d"), "do not fit the model's input"),
        (lambda d: Data(np.repeat(d.x, 3, 1), d.y, "d"), "do not fit the model's input"),
        (lambda d: Data(d.x, d.y % 9 + 1, "d"), "class 0 is empty"),
        (lambda d: Data(d.x, np.append(d.y[:-1], 10), "d"), "label 10, the model 10 classes"),
        (lambda d: Data(d.x[d.y != 3], d.y[d.y != 3], "d"), "class 3 is empty"),
        (lambda d: Data(np.full_like(d.x, np.nan), d.y, "d"), "not finite"),
    ],
)
def test_data_that_does_not_fit_is_one_error(scores: Scores, data: Data, change: Any, message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        sensitivity(scores, change(data), ratios=(0.5,))


def test_partial_classes_are_accepted_on_request(scores: Scores, data: Data) -> None:
    assert data.y is not None
    some = Data(data.x[data.y != 3], data.y[data.y != 3], "some")
    assert sensitivity(scores, some, ratios=(0.5,), include=["stem*"], partial_classes=True).baseline.value > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "top9"}, "unknown metric"),
        ({"ratios": (0.5, 1.0)}, r"in \(0, 1\); got 1"),
        ({"ratios": ()}, "no ratios"),
        ({"include": ["nothing*"]}, "unknown group 'nothing"),
        ({"exclude": ["*"]}, "no group remains"),
        ({"metric": "loss", "stop_at_chance": True}, "no chance level"),
        ({"device": "tpu"}, "unknown device"),
        ({"jobs": 2, "backend": "threads"}, "unknown backend"),
        ({"jobs": 2, "address": "there:1"}, "--address"),
    ],
)
def test_nonsense_is_one_error(scores: Scores, data: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnnxPruneError, match=message):
        sensitivity(scores, data, **{"ratios": (0.5,), **options})


def test_labels_that_a_metric_needs(scores: Scores, data: Data) -> None:
    with pytest.raises(OnnxPruneError, match="needs labels"):
        sensitivity(scores, Data(data.x, None, "d"), metric="top1")


@pytest.mark.parametrize(("backend", "package"), [("dask", "dask.distributed"), ("ray", "ray")])
def test_a_missing_backend_names_its_extra(monkeypatch: pytest.MonkeyPatch, backend: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OnnxPruneError, match=f"needs {backend}") as err:
        list(parallel.spread(_refuses, [1], jobs=2, backend=backend))
    assert f"onnxprune[{backend}]" in str(err.value)


def test_curves_files_are_read_strictly(whole: Curves, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    good = json.loads(text(whole))
    bad: dict[str, Any] = {
        "unknown key": {**good, "more": 1},
        "missing": {k: v for k, v in good.items() if k != "metric"},
        "schema": {**good, "schema": 2},
        "takes text in quotes, not 1": {**good, "metric": 1},
        "takes a number, not 'high'": {**good, "baseline": {**good["baseline"], "value": "high"}},
        "do not ascend": {**good, "groups": {"a": {"channels": 4, "points": [{"ratio": 0.5, "removed": 2, "value": 1,
                          "error": None}] * 2}}},
        "at least 1, not 0": {**good, "groups": {"a": {"channels": 0, "points": []}}},
        "the key 'points' is missing": {**good, "groups": {"a": {"channels": 4}}},
    }  # fmt: skip
    for message, document in bad.items():
        path.write_text(json.dumps(document))
        with pytest.raises(OnnxPruneError, match=message):
            load_curves(path)
    for content in ("[1]", "{", '{"schema": 1, "schema": 1}', '{"schema": NaN}'):
        path.write_text(content)
        with pytest.raises(OnnxPruneError, match="not valid curves"):
            load_curves(path)
    with pytest.raises(OnnxPruneError, match="cannot read"):
        load_curves(tmp_path / "none.json")
