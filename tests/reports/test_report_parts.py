"""Parts of the report: the card of the accuracy, layers, the picture of the groups, certificates, downloads."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
from frontiers import digits_frontier
from structures import FOLDER, analysed
from test_report import DIGITS, HOSTILE, QUICK, files, text_of  # noqa: F401  (a fixture)

import onnxprune as op
from onnxprune.execution import machine
from onnxprune.execution.machine import measured_on, processor
from onnxprune.reports import MeasurementSettings, collect, write_report
from onnxprune.reports._flow_picture import MOST, flow_picture
from onnxprune.reports._layers import SHOWN, layer_section, to_csv
from onnxprune.reports._report_data import GroupChannels, ModelSnapshot, ReportData
from onnxprune.reports.html_page import cards, render


def rows_of(link: str) -> list[list[str]]:
    """Cells of a CSV file that is in an address."""
    kind, _, data = link.partition(";base64,")
    assert kind == "data:text/csv"
    return list(csv.reader(io.StringIO(base64.b64decode(data).decode())))


# -------------------------------------------------------------------------------------------------------------- cards


def test_the_first_card_says_that_accuracy_was_not_measured() -> None:
    first = cards([ModelSnapshot("a", macs=4), ModelSnapshot("b", macs=2)])[0]
    assert (first["label"], first["after"], first["single"]) == ("Accuracy", "not measured", True)
    assert "--data" in first["note"]


def test_the_first_card_has_the_standard_error() -> None:
    before, after = ModelSnapshot("a", top1=0.9, top1_error=0.01), ModelSnapshot("b", top1=0.875, top1_error=0.02)
    first = cards([before, after])[0]
    assert (first["label"], first["before"], first["after"]) == ("Accuracy (top1)", "90.0 %", "87.5 %")
    assert first["note"] == "-2.5 points, standard error 2.0 points"


def test_other_tasks_have_their_metric_on_the_card() -> None:
    before = ModelSnapshot("a", value=0.5, error=0.01, metric="map")
    first = cards([before, ModelSnapshot("b", value=0.4, metric="map")])[0]
    assert first["label"].lower() != "accuracy"
    assert first["note"].startswith("-0.1000, standard error 0.0100")


def test_an_evaluation_of_another_task_is_on_the_card(files: Path, tmp_path: Path) -> None:  # noqa: F811
    document = {"model": "small.onnx", "task": "regress", "metric": "mse", "mse": 0.25, "mse_error": 0.01,
                "samples": 9, "provider": "CPUExecutionProvider"}  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(document), encoding="utf-8")
    report = collect([files / "model.onnx", files / "small.onnx", tmp_path / "e.json"], measuring=QUICK)
    assert report.stages[-1].value == 0.25
    assert "not measured" not in cards(report.stages)[0]["after"]


@pytest.mark.parametrize("name", ["small\0.onnx", "loop/small.onnx", "s" * 5000])
def test_a_name_that_is_no_path_is_of_no_model(files: Path, tmp_path: Path, name: str) -> None:  # noqa: F811
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    document = {"model": str(tmp_path / name), "task": "regress", "metric": "mse", "mse": 0.25,
                "samples": 9, "provider": "CPUExecutionProvider"}  # fmt: skip
    (tmp_path / "e.json").write_text(json.dumps(document), encoding="utf-8")
    report = collect([files / "model.onnx", tmp_path / "e.json"], measuring=QUICK)
    assert report.stages[-1].value is None


def test_the_page_says_it_before_anything_else(files: Path, tmp_path: Path) -> None:  # noqa: F811
    write_report([files / "model.onnx", files / "small.onnx"], tmp_path / "r.html", measuring=QUICK)
    text = text_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert text.index("Accuracy not measured") < text.index("2.77 M")


# ------------------------------------------------------------------------------------------------------------- layers


def test_layers_before_and_after_with_times_and_csv(files: Path, tmp_path: Path) -> None:  # noqa: F811
    sources = [files / n for n in ("model.onnx", "small.onnx", "plan.json")]
    report = write_report(sources, tmp_path / "r.html", measuring=MeasurementSettings(runs=2))
    section = report.layers
    assert section is not None
    assert sum(r.macs[0] for r in section.rows) == report.stages[0].macs
    assert sum(r.macs[1] for r in section.rows) == report.stages[1].macs
    assert all(len(r.seconds) == 2 and min(r.seconds) > 0 for r in section.rows)
    assert section.how == report.measured_on
    table = rows_of(section.csv)
    assert table[0][-2:] == ["seconds_before", "seconds_after"]
    assert len(table) == len(section.rows) + 1
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert section.csv in page
    assert text_of(page).count("onnxruntime ") >= 2  # beside the layers and beside the headline
    assert processor() in text_of(page)


def test_without_latency_layers_have_macs_only(files: Path, tmp_path: Path) -> None:  # noqa: F811
    report = collect([files / "model.onnx", files / "small.onnx", files / "plan.json"], measuring=QUICK)
    assert report.layers is not None
    assert report.layers.how == ""
    assert rows_of(report.layers.csv)[0][-1] == "macs_after"


def test_a_plan_alone_shows_the_layers_that_it_makes(files: Path) -> None:  # noqa: F811
    report = collect([files / "model.onnx", files / "plan.json"], measuring=QUICK)
    assert report.layers is not None
    assert report.stages[-1].macs == sum(r.macs[1] for r in report.layers.rows)


def test_only_the_largest_layers_are_drawn_and_the_file_has_all() -> None:
    analysis = analysed(FOLDER / "densenet121.ts.onnx.xz")
    plan = op.plan(op.score(analysis, "l2"), op.Target(macs=0.7))
    section = layer_section(analysis, plan)
    assert len(section.rows) == SHOWN
    assert section.hidden > 0
    assert len(rows_of(section.csv)) == SHOWN + section.hidden + 1
    assert max(r.macs[0] for r in section.rows) == section.most_macs


def test_cells_that_look_like_formulas_stay_text() -> None:
    assert to_csv(["a"], [["=1+1"], ["@x"], ["x"], [-3]]) == "a\n'=1+1\n'@x\nx\n-3\n"


# ------------------------------------------------------------------------------------------------------------ picture


def test_the_picture_shows_every_group_once_and_its_share() -> None:
    analysis = op.analyze(DIGITS)
    group = analysis.groups[1]
    picture = flow_picture(analysis, {group.name: group.channels // 4})
    root = ElementTree.fromstring(picture.svg)
    texts = ["".join(t.itertext()) for t in root.iter("text")]
    assert len(texts) == picture.rows == len(analysis.groups) + len(analysis.locked)
    assert sum(f"{group.channels - group.channels // 4} of {group.channels} removed" in t for t in texts) == 1
    filled = [float(c.get("r", "0")) for c in root.iter("circle") if c.get("fill")]
    assert sorted(filled)[0] == pytest.approx(7 * 0.25**0.5)
    assert sorted(filled)[1] == 7


def test_names_in_the_picture_are_text() -> None:
    from dataclasses import replace

    analysis = op.analyze(DIGITS)
    groups = (replace(analysis.groups[0], name=HOSTILE), *analysis.groups[1:])
    svg = flow_picture(replace(analysis, groups=groups), {}).svg
    assert "<script" not in svg
    ElementTree.fromstring(svg)


def test_a_picture_of_a_huge_model_is_bounded() -> None:
    analysis = op.analyze(DIGITS)
    picture = flow_picture(analysis, {}, most=3)
    assert picture.rows == 3
    assert picture.hidden == len(analysis.groups) + len(analysis.locked) - 3
    assert picture.svg.count("<text") == 3
    assert MOST > 100


# ----------------------------------------------------------------------------------------------- everything else


def test_the_certificate_is_on_the_page(files: Path, tmp_path: Path) -> None:  # noqa: F811
    sources = [files / n for n in ("model.onnx", "small.onnx", "plan.json")]
    report = write_report(sources, tmp_path / "r.html", measuring=QUICK)
    facts = dict(report.proofs[0].certificate)
    assert facts["weights"] == "identical"
    assert int(facts["nodes checked"]) > 10
    assert "output logits, whole runs" in facts
    text = text_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "Certificate reference masked original nodes checked" in text


def test_removed_channels_are_counted_as_removed(files: Path, tmp_path: Path) -> None:  # noqa: F811
    report = ReportData("t", groups=[GroupChannels("a", 200, (130,)), GroupChannels("b", 88, (62,))], cuts=["x"])
    text = text_of(render(report))
    assert "96 of 288 channels in 2 groups are removed (33.3 %)" in text
    assert "a 200 70 65.0 %" in text


def test_a_frontier_is_shown_beside_files(files: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = digits_frontier(tmp_path / "frontier")
    report = write_report([files / "model.onnx", files / "plan.json", folder], tmp_path / "r.html", measuring=QUICK)
    assert report.frontier is not None
    assert report.layers is not None
    assert 'id="frontier"' in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_run_has_layers_picture_and_downloads(files: Path, tmp_path: Path) -> None:  # noqa: F811
    from test_report import RECIPE

    from onnxprune.recipes import load_recipe, run_recipe

    (tmp_path / "short.toml").write_text(RECIPE, encoding="utf-8")
    run_recipe(load_recipe(tmp_path / "short.toml"), tmp_path / "run")
    report = write_report([tmp_path / "run"], tmp_path / "r.html")
    assert report.layers is not None
    assert report.picture is not None
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for name in ("steps.csv", "layers.csv", "channels.csv"):
        assert f'download="{name}"' in page


def test_plain_headings(files: Path, tmp_path: Path) -> None:  # noqa: F811
    sources = [files / n for n in ("model.onnx", "small.onnx", "plan.json", "curves.json")]
    write_report(sources, tmp_path / "r.html", measuring=QUICK)
    text = text_of((tmp_path / "r.html").read_text(encoding="utf-8"))
    for odd in ("what it says", "live or die", "has been cut", " went ", "To repeat it", "made by"):
        assert odd not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n", "Some CPU @ 2 GHz"),
        ("processor: 0\nModel\t: Board 4\n", "Board 4"),
    ],
)
def test_the_processor_is_named(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_text", lambda path, **kwargs: text)
    assert processor() == expected


def test_where_no_file_names_it_the_architecture_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, **kwargs: str) -> str:
        raise OSError

    monkeypatch.setattr(machine, "read_text", refuse)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert processor() == "riscv64"


def test_the_line_has_runtime_batch_and_threads() -> None:
    line = measured_on("onnxruntime 1.2, cpu", batch=4, threads=0)
    assert line.endswith("onnxruntime 1.2, cpu, batch 4, all threads")
    assert f"{os.cpu_count()} cores" in line
