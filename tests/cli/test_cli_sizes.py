"""`--shape` and models with dynamic sizes, through the command line, the API and a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from networks.image_models import pictures, saved
from networks.sized import CLASSIFIER, DETECTOR, RECOGNIZER, proto_of

import onnxprune as op
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import Session
from onnxprune.execution.synthetic_data import synthetic_data
from onnxprune.latency.random_inputs import random_feeds

line = CommandLine()
ok, fails = line.out, line.fails
SIDES = {"detector": [(20, 28), (12, 16), (32, 20)], "recognizer": [(9, 40), (12, 31), (16, 52)]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, source in (("classifier", CLASSIFIER), ("detector", DETECTOR), ("recognizer", RECOGNIZER)):
        saved(proto_of(source), root / f"{name}.onnx")
    return root


@pytest.mark.parametrize("name", SIDES)
def test_prune_fits_to_images_of_mixed_sizes_and_keeps_all_sizes(models: Path, tmp_path: Path, name: str) -> None:
    data, small = tmp_path / "images", tmp_path / "small.onnx"
    pictures(data, [SIDES[name][i % 3] for i in range(24)])
    found = json.loads(
        ok("prune", models / f"{name}.onnx", "-o", small, "--target", "macs=0.6", "--data", data, "--json")
    )
    stages = [s["distance"] for s in found["recovery"]["stages"] if s["kept"]]
    assert stages[-1] < stages[0]
    shape = [d.dim_param for d in onnx.load(small).graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["N", "", "H", "W"]
    sessions = [Session(models / f"{name}.onnx"), Session(small)]
    for height, width in [*SIDES[name], (12, 64), (16, 96)]:
        x = np.random.default_rng(0).standard_normal((2, 3, height, width)).astype(np.float32)
        one, two = (s.run({"x": x})[0] for s in sessions)
        assert one.shape == two.shape


@pytest.mark.parametrize("metric", ["mse", "top1"])
def test_sensitivity_and_recovery_run_on_mixed_sizes(models: Path, tmp_path: Path, metric: str) -> None:
    model, data, small = models / "classifier.onnx", tmp_path / "images", tmp_path / "s.onnx"
    for k in range(5):
        pictures(data / str(k), [[(20, 28), (12, 17)][i % 2] for i in range(6)])
    curves = ok("sensitivity", model, "-o", tmp_path / "c.json", "--data", data, "--metric", metric, "--json")
    assert set(json.loads(curves)["groups"]) == {"w1", "w3"}
    ok("prune", model, "-o", small, "--target", "macs=0.5", "--plan", tmp_path / "p.json")
    done = ok("recover", model, small, tmp_path / "p.json", "-o", tmp_path / "r.onnx", "--data", data, "--json")
    assert json.loads(done)["stages"][-1]["kept"]


def test_the_cost_is_that_of_the_given_size(models: Path) -> None:
    def macs(*args: object) -> int:
        return int(json.loads(ok("inspect", models / "detector.onnx", *args, "--json"))["macs"])

    assert macs("--shape", "x=?x3x64x64") * 4 == macs("--shape", "x=1x3x128x128")
    assert macs() == macs("--shape", "x=?x3x?x?")
    assert "MACs per sample (x 3x64x64)" in ok("inspect", models / "detector.onnx", "--shape", "x=?x3x64x64")


def test_every_step_takes_the_size(models: Path, tmp_path: Path) -> None:
    model, plan, small = models / "recognizer.onnx", tmp_path / "plan.json", tmp_path / "small.onnx"
    size = ("--shape", "x=1x3x10x33")
    ok("score", model, *size)
    ok("score", model, "-c", "apoz", "--data", "none", "--images", "4", *size)
    ok("plan", model, "-o", plan, "--target", "macs=0.6", *size)
    applied = json.loads(ok("apply", model, plan, "-o", small, *size, "--json"))
    assert "x [1, 3, 10, 33]" in applied["verification"]["sizes"]
    proof = json.loads(ok("verify", model, small, plan, *size, "--json"))
    assert "x [1, 3, 10, 33]" in proof["sizes"]
    rows = json.loads(ok("bench", model, small, *size, "--runs", "1", "--warmup", "0", "--json"))
    assert rows[0]["cost"]["macs"] > rows[1]["cost"]["macs"]
    ok("diff", model, small, *size)
    shape = onnx.load(small).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param for d in shape] == ["N", "", "H", "W"]


def test_a_plan_records_the_sizes_and_later_steps_use_them(models: Path, tmp_path: Path) -> None:
    model, plan, small = models / "recognizer.onnx", tmp_path / "plan.json", tmp_path / "small.onnx"
    ok("plan", model, "-o", plan, "--target", "macs=0.6", "--shape", "x=?x3x10x33")
    assert json.loads(plan.read_text())["options"]["shapes"] == {"x": [None, 3, 10, 33]}
    applied = json.loads(ok("apply", model, plan, "-o", small, "--json"))
    assert any("10, 33]" in size for size in applied["verification"]["sizes"])
    other = json.loads(ok("verify", model, small, plan, "--shape", "x=?x3x12x40", "--json"))
    assert any("12, 40]" in size for size in other["sizes"])
    assert not any("10, 33]" in size for size in other["sizes"])
    damaged = json.loads(plan.read_text())
    damaged["options"]["shapes"] = {"x": [None, 0]}
    plan.write_text(json.dumps(damaged))
    assert "at least 1" in fails("apply", model, plan, "-o", small)


def test_report_and_evaluate_take_the_size(models: Path, tmp_path: Path) -> None:
    model, plan, small = models / "classifier.onnx", tmp_path / "plan.json", tmp_path / "small.onnx"
    size = ("--shape", "x=?x3x20x28")
    ok("prune", model, "-o", small, "--target", "macs=0.6", "--plan", plan)
    for k in range(5):
        pictures(tmp_path / "images" / str(k), [(20, 28)] * 2)
    data = ("--data", tmp_path / "images")
    assert "top1" in json.loads(ok("evaluate", small, *data, "--reference", model, *size, "--json"))
    page = tmp_path / "report.html"
    ok("report", model, small, plan, "-o", page, "--no-latency", "--no-verify", *size)
    one = page.read_text()
    ok("report", model, small, plan, "-o", page, "--no-latency", "--no-verify", "--shape", "x=?x3x80x112")
    assert one != page.read_text()
    for command in (("evaluate", small, *data), ("report", model, small, plan, "-o", page)):
        assert "unknown input 'z'" in fails(*command, "--shape", "z=1x3x8x8")


def test_results_record_the_preprocessing_of_the_data_that_they_read(models: Path, tmp_path: Path) -> None:
    model, plan, small = models / "classifier.onnx", tmp_path / "plan.json", tmp_path / "small.onnx"
    pictures(tmp_path / "images", [(20, 28)] * 6)
    data = ("--data", tmp_path / "images", "--mean", "0.5", "--std", "0.25", "--size", "16")
    score = ("-c", "apoz", *data)
    scores = json.loads(ok("score", model, *score, "-o", tmp_path / "s.json", "--json"))
    planned = json.loads(ok("plan", model, *score, "-o", plan, "--target", "macs=0.6", "--json"))
    ok("apply", model, plan, "-o", small)
    proof = json.loads(ok("verify", model, small, plan, *data, "--json"))
    compared = json.loads(ok("score", model, "--compare", "l1,apoz", *data, "--json"))
    for found in (scores, planned, proof, compared):
        assert (found["data"]["samples"], found["data"]["preprocess"]["mean"]) == (6, [0.5])
    again = ok("plan", model, "--scores", tmp_path / "s.json", "-o", plan, "--target", "macs=0.6", "--json")
    assert json.loads(again)["data"] == scores["data"]
    assert json.loads(ok("plan", model, "-o", plan, "--target", "macs=0.6", "--json"))["data"] is None


@pytest.mark.parametrize(
    ("given", "what", "status"),
    [
        ("y=1x3x10x33", "unknown input 'y'", 1),
        ("x=3x10x33", "has 4 dimensions, not 3", 1),
        ("x=1x4x10x33", "is fixed to 3 in the model", 1),
        ("x=1x3x40x33", "the model cannot run at the given size", 1),
        ("x=1x3x0x33", "--shape takes INPUT=SIZE", 2),
        ("10x33", "--shape takes INPUT=SIZE", 2),
    ],
)
def test_a_shape_that_does_not_fit_is_one_error(models: Path, given: str, what: str, status: int) -> None:
    found = line.run("inspect", models / "recognizer.onnx", "--shape", given)
    assert found.exit_code == status
    assert what in found.output
    assert "Traceback" not in found.output


def test_the_size_holds_in_the_api(models: Path) -> None:
    model = models / "detector.onnx"
    done = op.prune(model, target="macs=0.6", shapes={"x": (1, 3, 64, 96)})
    assert done.analysis.witness.shapes["x"] == (11, 3, 64, 96)
    assert done.verification is not None
    assert "x [1, 3, 64, 96]" in done.verification.sizes
    assert op.analyze(op.load(model, shapes={"x": "?x3x64x96"})).witness.shapes["x"] == (11, 3, 64, 96)
    assert random_feeds(op.analyze(model, shapes={"x": (None, 3, 64, 96)}), 2)["x"].shape == (2, 3, 64, 96)
    assert synthetic_data(op.load(model), 2).x.shape == (2, 3, 224, 224)
    assert synthetic_data(op.load(model, shapes={"x": (None, 3, 64, 96)}), 2).x.shape == (2, 3, 64, 96)
    assert 9 <= synthetic_data(op.load(models / "recognizer.onnx"), 2).x.shape[2] <= 20
    with pytest.raises(OnnxPruneError, match="cannot run at the given size"):
        op.bench([model], shapes={"x": (1, 3, 62, 96)}, runs=1)
    with pytest.raises(OnnxPruneError, match="unknown input"):
        op.retrain(model, data=np.zeros((2, 3, 8, 8), np.float32), shapes={"z": (1,)})  # type: ignore[arg-type]


def test_a_recipe_has_sizes(models: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        f'name = "r"\nmodel = "{models / "detector.onnx"}"\n'
        '[shapes]\nx = "1x3x64x96"\n[bench]\nruns = 0\n[[step]]\ndo = "prune"\ntarget = "macs=0.6"\ncriterion = "l1"\n'
    )
    ok("run", recipe, "--output", tmp_path / "run")
    assert any('"shapes"' in f.read_text() for f in (tmp_path / "run").glob("*journal*"))
    assert "has 4 dimensions" in fails("run", recipe, "--output", tmp_path / "other", "--set", "shapes.x=1x3x64")
    assert "must be whole numbers" in fails("run", recipe, "--output", tmp_path / "other", "--set", "shapes.x=1x3xa")
