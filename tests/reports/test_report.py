"""The report: what it tells of runs and of files, and that it survives whatever these hold."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import plotly.graph_objects
import pytest
from command_line import CommandLine
from onnx import numpy_helper
from planning import made_curves

import onnxprune as op
from onnxprune.criteria.scoring import save_scores
from onnxprune.errors import OnnxPruneError
from onnxprune.planning.curves import save_curves
from onnxprune.plans import Plan, Removal, save_plan
from onnxprune.recipes import load_recipe, run_recipe
from onnxprune.reports import MeasurementSettings, _figures, collect, write_report
from onnxprune.reports._documents import recognise
from onnxprune.reports._report_data import ReportData
from onnxprune.reports.html_page import render

ROOT = Path(__file__).parent.parent.parent
DIGITS = ROOT / "models" / "digits_cnn.onnx"
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"
QUICK = MeasurementSettings(latency=False)
line = CommandLine("report")

RECIPE = """
name = "short"
about = "two cuts"
model = "onnxprune:digits_cnn.onnx"
data = "digits:train"
test_data = "digits:test"
threads = 1
[bench]
runs = 0

[[step]]
do = "sensitivity"
criterion = "l2"
ratios = [0.5, 0.75]
images = 60
on = "test_data"

[[step]]
do = "plan"
min_group_accuracy = 0.5
target = "channels=0.8"

[[step]]
do = "apply"

[[step]]
do = "prune"
criterion = "l1"
target = "channels=0.8"
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "short.toml").write_text(RECIPE)
    run_recipe(load_recipe(folder / "short.toml", changes=["seed=3"]), folder / "run")
    return folder / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A run that may be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(DIGITS, folder / "model.onnx")
    analysis = op.analyze(op.load(folder / "model.onnx"))
    scores = op.score(analysis, "l2")
    plan = op.plan(scores, op.Target(macs=0.5), constraints=op.Constraints(round_to=16))
    save_plan(plan, folder / "plan.json")
    save_scores(scores, folder / "scores.json")
    op.save(op.apply(analysis.source, plan), folder / "small.onnx")
    save_curves(made_curves(scores, {g.name: [0.9, 0.8, 0.5] for g in analysis.groups}), folder / "curves.json")
    return folder


def text_of(page: str) -> str:
    """Return the visible text of a page, without scripts, styles and tags."""
    page = re.sub(r"(?s)<(script|style)\b.*?</\1>", " ", page)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


# ------------------------------------------------------------------------------------------------------ a whole run


def test_a_run_is_told_whole(run: Path, tmp_path: Path) -> None:
    report = write_report([run], tmp_path / "r.html")
    assert report.problems == []
    table = json.loads((run / "table.json").read_text())
    assert [s.name for s in report.stages] == [r["step"] for r in table["steps"]]
    assert [s.top1 for s in report.stages] == [r["top1"] for r in table["steps"]]
    assert [s.macs for s in report.stages] == [r["macs"] for r in table["steps"]]
    assert [p.title for p in report.proofs] == ["03-apply", "04-prune"]
    assert all(p.passed for p in report.proofs)
    assert {k.name for k in report.locked} == {"fc"}
    groups = {g.name: g.channels for g in op.analyze(op.load(DIGITS)).groups}
    last = {g.name: g.channels for g in op.analyze(op.load(run / "04-prune" / "model.onnx")).groups}
    assert {b.name: b.channels for b in report.groups} == groups
    assert {b.name: b.kept[-1] for b in report.groups} == last
    (curves,) = report.curves
    plan = op.load_plan(run / "02-plan" / "plan.json")
    assert curves.chosen == {n: len(plan.groups[n].removed) if n in plan.groups else 0 for n in groups}
    text = text_of((tmp_path / "r.html").read_text())
    for part in ("short", "two cuts", "Sensitivity", "is an output of the model", "--set seed=3", plan.digest):
        assert part in text


def test_the_command_of_a_run_repeats_it(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = collect([run]).commands[0].split()
    monkeypatch.chdir(run.parent)
    shutil.copy(run / "recipe.toml", "recipe.toml")
    again = CommandLine().ok(*command[1:-1], tmp_path / "again")
    assert "last model" in again.stdout
    model = Path("04-prune", "model.onnx")
    assert (tmp_path / "again" / model).read_bytes() == (run / model).read_bytes()


def test_the_same_run_gives_the_same_page(run: Path) -> None:
    assert render(collect([run])) == render(collect([run]))


# ---------------------------------------------------------------------------------------------- missing and damaged


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table.json", "table.json"), ("run.journal", "run.journal"), ("recipe.toml", "recipe.toml"),
        ("log.txt", "log.txt"), ("02-plan/plan.json", "02-plan/plan.json: the file is missing"),
        ("01-sensitivity/curves.json", "01-sensitivity/curves.json"), ("03-apply/model.onnx", "03-apply/model.onnx"),
        ("03-apply/verification.json", "03-apply/verification.json"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(run: Path, name: str, said: str) -> None:
    (run / name).unlink()
    report = collect([run])
    assert any(said in p for p in report.problems)
    assert len(report.stages) == 5
    assert said in text_of(render(report))


@pytest.mark.parametrize("damage", ["half", "nothing", "list", "nan", "binary", "deep"])
@pytest.mark.parametrize(
    "name", ["table.json", "run.journal", "02-plan/plan.json", "01-sensitivity/curves.json",
             "01-sensitivity/scores.json", "03-apply/verification.json", "recipe.toml"]
)  # fmt: skip
def test_what_is_damaged_is_said(run: Path, name: str, damage: str) -> None:
    path = run / name
    whole = path.read_bytes()
    path.write_bytes({
        "half": whole[: len(whole) // 2], "nothing": b"", "list": b"[1, 2]", "nan": b'{"schema": NaN}',
        "binary": b"\xff\xfe\x00", "deep": b"[" * 100_000,
    }[damage])  # fmt: skip
    report = collect([run])
    assert any(name in p for p in report.problems)
    assert "Missing or damaged" in text_of(render(report))


def test_without_table_the_journal_tells(run: Path, whole: Path) -> None:
    expected = collect([whole]).stages
    (run / "table.json").unlink()
    found = collect([run]).stages
    assert [(s.name, s.top1, s.macs) for s in found] == [(s.name, s.top1, s.macs) for s in expected]


def test_numbers_of_another_type_are_said(run: Path) -> None:
    table = json.loads((run / "table.json").read_text())
    table["steps"][0]["macs"] = "many"
    (run / "table.json").write_text(json.dumps(table))
    report = collect([run])
    assert any("'macs' is not a number" in p for p in report.problems)


def test_another_original_is_not_taken_for_it(run: Path, tmp_path: Path) -> None:
    table = json.loads((run / "table.json").read_text())
    table["steps"][0]["model"] = str(ROOT / "models" / "digits_keras.onnx")
    (run / "table.json").write_text(json.dumps(table))
    (run / "recipe.toml").write_text(RECIPE.replace("onnxprune:digits_cnn.onnx", "gone.onnx"))
    report = collect([run])
    assert any("the original model has changed" in p for p in report.problems)
    assert not report.locked_known
    assert report.groups
    assert collect([run, DIGITS]).locked_known


def test_a_journal_cannot_point_outside(run: Path) -> None:
    lines = (run / "run.journal").read_text().splitlines()
    lines = [line.replace("02-plan/plan.json", "../../../etc/passwd") for line in lines]
    (run / "run.journal").write_text("\n".join(lines) + "\n")
    assert any("outside of the run's folder" in p for p in collect([run]).problems)


# ------------------------------------------------------------------------------------------------------------ files


def test_two_models_and_a_plan(files: Path, tmp_path: Path) -> None:
    sources = [files / n for n in ("model.onnx", "small.onnx", "plan.json")]
    report = write_report(sources, tmp_path / "r.html", measuring=MeasurementSettings(runs=2))
    assert report.problems == []
    before, after = report.stages
    assert before.latency is not None
    assert after.latency is not None
    assert after.macs is not None
    assert after.macs <= 0.5 * (before.macs or 0)
    (proof,) = report.proofs
    assert proof.passed
    assert "equals this result, to the last bit" in proof.note
    assert [b.kept[0] for b in report.groups] == [g.channels for g in op.analyze(op.load(files / "small.onnx")).groups]
    assert sum(b.lost is not None for b in report.groups) == len(op.load_plan(files / "plan.json").groups)


def test_scores_say_what_went(files: Path) -> None:
    report = collect([files / "model.onnx", files / "plan.json", files / "scores.json"], measuring=QUICK)
    values = json.loads((files / "scores.json").read_text())["groups"]
    plan = op.load_plan(files / "plan.json")
    for bar in report.groups:
        if bar.name in plan.groups:
            v = np.array(values[bar.name])
            assert bar.lost == pytest.approx(v[list(plan.groups[bar.name].removed)].sum() / v.sum())
    assert "plans it" in report.stages[-1].name


def test_a_model_trained_since_is_told_from_its_cut(files: Path, tmp_path: Path) -> None:
    model = op.load(files / "small.onnx").copy()
    weight = model.graph.tensors()["fc.bias"]
    weight.values = np.asarray(weight.values) + np.float32(0.25)
    op.save(model, tmp_path / "trained.onnx")
    sources = [files / "model.onnx", tmp_path / "trained.onnx", files / "plan.json"]
    (proof,) = collect(sources, measuring=QUICK).proofs
    assert proof.passed
    assert "other values in 1 of" in proof.note
    report = collect([files / "model.onnx", files / "model.onnx", files / "plan.json"], measuring=QUICK)
    assert any("differs from the result of this plan" in p for p in report.problems)


def test_what_commands_wrote_is_recognised(files: Path, tmp_path: Path) -> None:
    model, small, plan = (files / n for n in ("model.onnx", "small.onnx", "plan.json"))
    commands = {
        "bench": ("bench", model, small, "--runs", 2), "accuracy": ("evaluate", small, "--data", "digits:test"),
        "verification": ("verify", model, small, plan), "inspection": ("inspect", model),
        "compiled": ("apply", model, plan, "-o", tmp_path / "x.onnx"),
        "recovery": ("recover", model, small, plan, "--data", "digits:test", "--images", 40, "-o", tmp_path / "y.onnx"),
    }  # fmt: skip
    for kind, words in commands.items():
        path = tmp_path / f"{kind}.data"  # content tells, not the name
        path.write_text(CommandLine().out(*words, "--json"))
        assert recognise(path).kind == kind
    report = collect([model, small, *(tmp_path / f"{k}.data" for k in commands)], measuring=QUICK)
    assert report.problems == []
    assert report.stages[1].top1 is not None
    assert report.stages[0].top1 is None
    assert all(s.latency is not None for s in report.stages)
    assert len(report.proofs) == 2
    assert [x.title for x in report.tables] == ["Recovery: recovery.data"]
    alone = collect([tmp_path / "compiled.data"])
    assert alone.stages[0].macs == report.stages[0].macs
    assert [k.name for k in collect([tmp_path / "inspection.data"]).locked] == ["fc"]


def test_plan_of_another_model(files: Path, tmp_path: Path) -> None:
    save_plan(replace(op.load_plan(files / "plan.json"), model="0" * 64), tmp_path / "foreign.json")
    report = collect([files / "model.onnx", tmp_path / "foreign.json"], measuring=QUICK)
    assert any("made for another model" in p for p in report.problems)
    assert not report.cuts


def test_a_plan_alone_shows_its_groups(files: Path) -> None:
    report = collect([files / "plan.json"])
    assert [b.name for b in report.groups] == list(op.load_plan(files / "plan.json").groups)
    assert any("the model is not given" in p for p in report.problems)
    assert not report.locked_known
    assert "Locked" not in text_of(render(report))


def test_truncated_json_beside_a_model(files: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text((files / "curves.json").read_text()[:200])
    text = line.ok(files / "model.onnx", tmp_path / "cut.json", "-o", tmp_path / "r.html", "--no-latency").stderr
    assert "cut.json: not a valid document: not JSON" in text
    assert "cut.json: not a valid document: not JSON" in text_of((tmp_path / "r.html").read_text())


@pytest.mark.parametrize(
    ("sources", "message"),
    [(["none.onnx"], "no such file"), (["."], "holds no run"), (["broken.json"], "nothing to report"),
     (["broken.onnx"], "nothing to report")],
)  # fmt: skip
def test_nothing_to_tell_is_an_error(
    sources: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    Path("broken.onnx").write_bytes(b"no model")
    assert message in line.fails(*sources, "-o", "r.html")
    assert not Path("r.html").exists()


def test_the_output_is_never_a_source(files: Path) -> None:
    before = (files / "plan.json").read_bytes()
    assert "is the input" in line.fails(files / "plan.json", "-o", files / "plan.json")
    assert (files / "plan.json").read_bytes() == before


def test_json_says_what_was_written(files: Path, tmp_path: Path) -> None:
    document = json.loads(line.out(files / "plan.json", "-o", tmp_path / "r.html", "--json"))
    assert document["bytes"] == (tmp_path / "r.html").stat().st_size
    assert len(document["problems"]) == 1


@pytest.mark.parametrize("module", ["jinja2", "plotly"])
def test_a_missing_extra_is_named(module: str, files: Path, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nfrom onnxprune.cli import main\nmain()"
    words = [sys.executable, "-c", code, "report", str(files / "plan.json"), "-o", str(tmp_path / "r.html")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, "onnxprune[report]" in done.stderr) == (1, True), done.stderr


# ------------------------------------------------------------------------------------------------- hostile contents


def hostile_model() -> op.Model:
    """A network whose weights and nodes bear names that are markup."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[batch, 3] x) => (float[batch, 4] y) <float[3, 8] w, float[8, 4] v> {
      h = MatMul (x, w)
      a = Relu (h)
      y = MatMul (a, v)
    }"""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    names = {"w": HOSTILE, "v": f"last{HOSTILE}"}
    for value in proto.graph.value_info:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        weight = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, names[value.name]))
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        node.input[:] = [names.get(i, i) for i in node.input]
        node.name = f"{HOSTILE}{node.output[0]}"
    proto.metadata_props.add(key=f"onnxprune.{HOSTILE}", value=HOSTILE)
    return op.load(proto)


@pytest.fixture
def hostile(tmp_path: Path) -> list[Path]:
    """Files with names that are markup in every place that a report shows."""
    model = hostile_model()
    path = tmp_path / "model<b>.onnx"
    op.save(model, path)
    analysis = op.analyze(op.load(path))
    scores = op.score(analysis, "l2")
    plan = op.plan(scores, ratio=0.5, constraints=op.Constraints(round_to=1))
    save_plan(replace(plan, criterion={"name": HOSTILE, HOSTILE: HOSTILE}, tool=HOSTILE), tmp_path / "plan.json")
    (group,) = analysis.groups
    curves = made_curves(scores, {group.name: [0.9, 0.5]})
    save_curves(
        replace(curves, metric=HOSTILE, data={"name": HOSTILE, HOSTILE: 1}, tool="\ud800"), tmp_path / "curves.json"
    )
    return [path, tmp_path / "plan.json", tmp_path / "curves.json"]


def test_names_that_are_markup_stay_text(hostile: list[Path], tmp_path: Path) -> None:
    report = write_report(hostile, tmp_path / "r.html", measuring=QUICK)
    assert report.problems == []
    page = (tmp_path / "r.html").read_text()
    # All scripts of the page are its own three.
    assert re.findall(r"<script[^>]*>", page).count("<script>") == 2 + page.count("<script>alert") == 2
    text = text_of(page)
    assert text.count(HOSTILE) >= 8
    assert "49" not in re.findall(r"&{{7\*7}}|&49", text)
    spec = json.loads(re.search(r'(?s)id="figures">(.*?)</script>', page).group(1))  # type: ignore[union-attr]
    assert "<script" not in json.dumps(spec)


def test_plotly_takes_the_figures(files: Path) -> None:
    (found,) = collect([files / "curves.json", files / "plan.json"]).curves
    figure = _figures.sensitivity_figure(found)
    plotly.graph_objects.Figure(figure)  # refuses what it does not know
    groups = len(found.curves.groups)
    assert len(figure["data"]) == 2 * groups
    for trace, (name, curve) in zip(figure["data"], found.curves.groups.items(), strict=False):
        assert trace["name"] == name
        assert len(trace["x"]) == 1 + len(curve.points)
        assert trace["y"][1:] == [pytest.approx(100 * p.value) for p in curve.points]
    assert "chosen" in figure["data"][-1]["meta"]
    steps = _figures.steps_figure(collect([files / "model.onnx"] * 1, measuring=QUICK).stages * 3)
    plotly.graph_objects.Figure(steps)


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_summaries_name_the_extremes(metric: str, files: Path) -> None:
    analysis = op.analyze(op.load(files / "model.onnx"))
    scores = op.score(analysis, "l2")
    low, high = (g.name for g in analysis.groups[:2])
    curves = made_curves(scores, {low: [0.1], high: [0.8]}, metric=metric, higher_is_better=metric == "top1")
    from onnxprune.reports._sections import sensitivity

    text = _figures.sensitivity_summary(sensitivity("x", curves, []))
    worst, best = (low, high) if metric == "top1" else (high, low)
    assert f"{worst} has lost most" in text
    assert f"{best} least" in text


def test_a_story_of_nothing_is_a_page() -> None:
    assert "Provenance" in text_of(render(ReportData("empty")))


def test_chained_plans_that_do_not_fit_are_said(files: Path, tmp_path: Path) -> None:
    fingerprint = op.load(files / "model.onnx").fingerprint
    save_plan(Plan(fingerprint, {"no.such": Removal(8, (1,))}), tmp_path / "p.json")
    report = collect([files / "model.onnx", tmp_path / "p.json"], measuring=QUICK)
    assert any("no.such" in p for p in report.problems)


def test_a_failed_proof_does_not_pass(files: Path) -> None:
    document = {"max_relative": 0.5, "tolerance": 1e-4, "outputs": {}, "batches": [1], "inputs": "random", "effect": 1}
    path = files / "failed.json"
    path.write_text(json.dumps(document))
    report = collect([path])
    assert not report.proofs[0].passed
    assert "Not passed." in text_of(render(report))
    path.write_text('{"a": 1}')
    with pytest.raises(OnnxPruneError, match="not a document"):
        recognise(path)
