"""Values of a frontier: Pareto-optimal points, the point within a drop, files."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from html import escape
from pathlib import Path

import onnxruntime
import pytest

import onnxprune as op
from onnxprune._utils.processes.interruption import kept_work
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.machine import processor
from onnxprune.pipeline import Frontier, FrontierPoint, load_frontier
from onnxprune.pipeline.budget.point_store import point_store
from onnxprune.reports import write_report

DIGITS = Path(__file__).parent.parent.parent / "models" / "digits_cnn.onnx"


def loss_frontier() -> Frontier:
    """Two curves of a loss: less is better, a drop is what it rises by."""
    rows = [("l2", 0.8, 0.50, 0.9), ("l2", 0.5, 0.80, 0.4), ("obs", 0.8, 0.45, 0.8), ("obs", 0.5, 0.90, 0.6)]
    points = tuple(
        FrontierPoint(c, m, {"macs": m, "bytes": b}, value, None, value - 0.4, None, f"{c}/{m:.4f}/model.onnx")
        for c, m, value, b in rows
    )
    return Frontier("m.onnx", "macs", "loss", "loss", False, 0.4, 100, points)


def test_less_is_better_where_the_metric_says_so() -> None:
    found = loss_frontier()
    assert [(p.curve, p.target) for p in found.pareto()] == [("l2", 0.5), ("obs", 0.8)]
    assert [(p.curve, p.target) for p in found.pareto("bytes")] == [("l2", 0.5), ("obs", 0.8)]
    best = found.best(0.07)
    assert best is not None
    assert (best.curve, best.target) == ("obs", 0.8)
    assert found.best(0.01) is None
    assert [row[-1] for row in found.rows()] == ["", "*", "*", ""]


def test_costs_that_were_not_measured_are_named() -> None:
    with pytest.raises(OnnxPruneError, match="no point has the cost 'latency'"):
        loss_frontier().pareto("latency")


def test_the_table_and_the_file_hold_every_point(tmp_path: Path) -> None:
    found = loss_frontier()
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert [r["pareto"] for r in rows] == ["0", "1", "1", "0"]
    assert all(r["latency"] == "" and r["drop_error"] == "" for r in rows)
    (tmp_path / "frontier.json").write_text(json.dumps(found.as_dict()))
    assert load_frontier(tmp_path) == replace(found, folder=tmp_path)


def test_a_point_whose_metric_is_not_finite_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rounded_top1.py").write_text(
        "def top1(outputs, targets):\n"
        "    share = float((outputs.argmax(-1) == targets).mean())\n"
        "    return share if share > 0.9 else float('nan')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = op.frontier(
        DIGITS, data="digits:train", images=200, points=2, least=0.02, criteria=["l2"], metric="rounded_top1:top1",
        folder=tmp_path / "frontier", latency=False,
    )  # fmt: skip
    assert len(found.points) == 1
    assert any("not finite at 2.0" in note for note in found.notes), found.notes


def test_latency_is_recorded_with_the_machine_and_the_runtime(tmp_path: Path) -> None:
    found = op.frontier(
        DIGITS, data="digits:train", images=200, points=1, least=0.3, criteria=["l2"], folder=tmp_path / "f", runs=3
    )
    assert processor() in found.machine
    assert f"onnxruntime {onnxruntime.__version__}" in found.machine
    assert load_frontier(tmp_path / "f").machine == found.machine
    write_report([tmp_path / "f"], tmp_path / "f.html")
    assert f"Latency is measured on {escape(found.machine)}" in (tmp_path / "f.html").read_text("utf-8")


def test_finished_points_are_what_a_stopped_run_continues_from(tmp_path: Path) -> None:
    with point_store(tmp_path / "f", {"settings": 1}):
        assert kept_work() == ""
        (tmp_path / "f" / "obs" / "0.5000").mkdir(parents=True)
        (tmp_path / "f" / "obs" / "0.5000" / "point.json").write_text("{}")
        assert kept_work() == f"1 finished point in {str(tmp_path / 'f')!r}"
    assert kept_work() == ""


READING = {"value": 0.9, "error": None, "drop": 1.0, "drop_error": 0.1}


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"float": READING, "int8": None, "float_latency": {"seconds": 0.1, "share": 0.5}}, ""),
        ({"float": {**READING, "value": "0.9"}}, "'value' takes a number"),
        ({"float": [1]}, "figures.float"),
        ({"int8": {"value": 0.9}}, "the key 'error' is missing"),
        ({"float": READING, "float_latency": {"seconds": 0.1}}, "the key 'share' is missing"),
        ({"float": READING, "float_latency": None}, "figures.float_latency"),
        ({"float": READING, "float_latency": {"seconds": 0.1, "share": 0.5, "machine": 3}}, "machine"),
    ],
)
def test_damaged_figures_of_a_point_are_one_error(tmp_path: Path, figures: dict[str, object], said: str) -> None:
    cost = dict.fromkeys(("macs", "params", "bytes", "memory", "channels"), 1)
    record = {
        "target": 0.5, "kept": 0.5, "scored": 1.0, "before": cost, "after": cost, "certificate": {}, "recovery": {},
        "figures": figures,
    }  # fmt: skip
    with point_store(tmp_path / "f", {"settings": 1}) as store:
        (tmp_path / "f" / "p").mkdir()
        (tmp_path / "f" / "p" / "point.json").write_text(json.dumps(record))
        if not said:
            assert store.record("p") is not None
            return
        with pytest.raises(OnnxPruneError) as found:
            store.record("p")
    assert said in str(found.value)
