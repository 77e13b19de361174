"""Detectors, recognizers and segmenters through the command line, from data to the retrained model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from networks.task_models import classifier, detector, recognizer, segmenter
from PIL import Image

import onnxprune as op

MODELS = Path(__file__).resolve().parents[2] / "models"
line = CommandLine()
RNG = np.random.default_rng(11)
N = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and data with and without targets for each of them."""
    path = tmp_path_factory.mktemp("tasks")
    for name, model in (("det", detector()), ("rec", recognizer()), ("seg", segmenter()), ("cls", classifier(10))):
        onnx.save(model, path / f"{name}.onnx")
    (path / "images").mkdir()
    (path / "words").mkdir()
    images, annotations, words = [], [], []
    for i in range(N):
        Image.fromarray(RNG.integers(0, 255, (32, 32, 3), np.uint8)).save(path / "images" / f"{i:02}.png")
        images.append({"id": i, "file_name": f"{i:02}.png", "width": 32, "height": 32})
        x, y = RNG.integers(0, 20, 2).tolist()
        annotations.append({"id": i, "image_id": i, "category_id": i % 3 + 1, "bbox": [x, y, 9, 9], "iscrowd": 0})
        Image.fromarray(RNG.integers(0, 255, (8, 32, 3), np.uint8)).save(path / "words" / f"{i:02}.png")
        words.append(f"{i:02}.png\t{'abcdefghij'[i % 10]}{'cde'[i % 3]}")
    categories = [{"id": i + 1, "name": f"class{i}"} for i in range(3)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (path / "coco.json").write_text(json.dumps(document))
    (path / "words" / "labels.txt").write_text("\n".join(words))
    x = RNG.standard_normal((N, 3, 32, 32)).astype(np.float32)
    np.savez(path / "masks.npz", x=x, y=RNG.integers(0, 5, (N, 32, 32)))
    np.savez(path / "plain.npz", x=x)
    return path


CASES = {
    "det": ("coco.json", "images", "detect", "map"),
    "rec": ("words/labels.txt", "words", "recognize", "word_accuracy"),
    "seg": ("masks.npz", "plain.npz", "segment", "miou"),
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest, folder: Path) -> tuple[Path, Path, Path, str, str]:
    labelled, plain, task, metric = CASES[request.param]
    return folder / f"{request.param}.onnx", folder / labelled, folder / plain, task, metric


def test_from_data_to_the_retrained_model(case: tuple[Path, Path, Path, str, str], tmp_path: Path) -> None:
    model, labelled, plain, task, metric = case
    small, plan, better = (tmp_path / n for n in ("s.onnx", "plan.json", "r.onnx"))

    result = line.ok("evaluate", model, "--data", labelled)
    assert f"task: {task} (" in result.stderr
    found = json.loads(line.out("evaluate", model, "--data", labelled, "--json"))
    assert (found["task"], found["metric"], found["samples"]) == (task, metric, N)
    assert 0 <= found[metric] <= 1

    document = json.loads(
        line.out("prune", model, "-o", small, "--plan", plan, "--target", "macs=0.7", "--data", plain, "--json")
    )
    unlabelled = task == "recognize"  # its folder has a file with the texts
    assert document["recovery"]["metric"] == ("word_accuracy" if unlabelled else "agreement")
    assert document["recovery"]["original"] is not None
    assert 0 <= document["recovery"]["stages"][-1]["value"] <= 1

    agreed = json.loads(line.out("evaluate", small, "--data", plain, "--reference", model, "--json"))
    assert 0 < agreed["agreement"] <= 1

    line.ok("apply", model, plan, "-o", small)  # without recovery
    args = ("--teacher", model, "--epochs", 2, "--batch", 8, "--keep", "last", "--threads", 1, "--optimizer", "adamw")
    trained = json.loads(line.out("retrain", small, "--data", plain, "-o", better, *args, "--json"))
    assert trained["metric"] == ("word_accuracy" if unlabelled else "agreement")
    assert trained["history"][2]["loss"] < trained["history"][0]["loss"]  # the distillation loss
    assert [t.shape for t in op.load(better).graph.outputs] == [t.shape for t in op.load(model).graph.outputs]
    assert "could" not in line.ok("recover", model, small, plan, "--data", plain, "-o", tmp_path / "v.onnx").stderr


def test_sensitivity_of_every_task(case: tuple[Path, Path, Path, str, str], tmp_path: Path) -> None:
    model, labelled, plain, _, metric = case
    one, two = tmp_path / "c.json", tmp_path / "d.json"
    line.ok("sensitivity", model, "--data", labelled, "-o", one, "--ratios", "0.5", "--batch", 8)
    assert json.loads(one.read_text())["metric"] == metric
    args = ("--metric", "agreement", "--ratios", "0.5", "--jobs", 2)
    line.ok("sensitivity", model, "--data", plain, "-o", two, *args)
    curves = op.load_curves(two)
    assert (curves.metric, curves.baseline.value) == ("agreement", 1)
    assert all(0 <= p.value <= 1 for c in curves.groups.values() for p in c.points)


def test_a_baseline_at_chance_is_named_before_the_sweep(folder: Path, tmp_path: Path) -> None:
    x = RNG.standard_normal((40, 3, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "chance.npz", x=x, y=np.arange(40) % 10)
    args = ("--data", tmp_path / "chance.npz", "-o", tmp_path / "c.json", "--ratios", "0.5")
    assert "no better than guessing among 10 classes" in line.ok("sensitivity", folder / "cls.onnx", *args).stderr


def test_a_metric_of_ones_own_everywhere(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef f(outputs, targets):\n    return float(np.abs(outputs).mean())\n"
        "f.higher_is_better = False\n"
        "def bad(outputs, targets):\n    return 'x'\ndef four(a, b, c, d):\n    return 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, data = folder / "seg.onnx", ("--data", folder / "plain.npz")
    own = ("--metric", "mine:f")
    found = json.loads(line.out("evaluate", model, *data, *own, "--json"))
    assert found["mine:f"] > 0
    smaller = ("-o", "s.onnx", "--plan", "p.json", "--target", "macs=0.7")
    pruned = json.loads(line.out("prune", model, *smaller, *data, *own, "--json"))
    assert pruned["recovery"]["metric"] == "mine:f"
    line.ok("recover", model, "s.onnx", "p.json", *data, *own, "-o", "r.onnx")
    line.ok("sensitivity", model, *data, *own, "-o", "c.json", "--ratios", "0.5")
    assert op.load_curves(Path("c.json")).higher_is_better is False
    args = ("--teacher", model, "--epochs", 1, "--batch", 8, "--keep", "last")
    trained = json.loads(line.out("retrain", "s.onnx", *data, *own, "-o", "t.onnx", *args, "--json"))
    assert trained["metric"] == "mine:f"
    assert "failed: ValueError" in line.fails("evaluate", model, *data, "--metric", "mine:bad")
    for command in (("evaluate", model), ("sensitivity", model, "-o", "d.json")):
        assert "takes 4 arguments" in line.fails(*command, *data, "--metric", "mine:four")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("evaluate", "det.onnx", "--data", "images"), "--reference"),
        (("evaluate", "det.onnx", "--data", "coco.json", "--task", "classify"), "the targets are boxes"),
        (
            ("evaluate", "seg.onnx", "--data", "plain.npz", "--task", "detect", "--reference", "seg.onnx"),
            "known detector",
        ),
        (("evaluate", "det.onnx", "--data", "coco.json", "--metric", "miou"), "unknown metric of the task detect"),
        (("evaluate", "rec.onnx", "--data", "words", "--alphabet", "missing.txt"), "cannot read the alphabet"),
        (("retrain", "det.onnx", "--data", "images", "-o", "t.onnx"), "--teacher"),
    ],
)
def test_what_does_not_fit_is_one_error(
    args: tuple[str, ...], says: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert says in line.fails(*args)


def test_an_unknown_task_comes_with_the_nearest(folder: Path) -> None:
    message = line.fails("evaluate", folder / "det.onnx", "--data", folder / "images", "--task", "detection")
    assert "unknown task 'detection'" in message
    assert "detect" in message


def test_classes_5_to_9_that_are_numbered_from_0_are_refused(tmp_path: Path) -> None:
    digits = op.load_data("digits:test")
    assert digits.y is not None
    kept = digits.y >= 5
    np.savez(tmp_path / "shifted.npz", x=np.asarray(digits.x)[kept], y=digits.y[kept] - 5)
    message = line.fails("evaluate", MODELS / "digits_cnn.onnx", "--data", tmp_path / "shifted.npz")
    assert "the labels are off by 5: top1 is 0.0 %" in message
    assert "if every label were 5 larger" in message


def test_a_recipe_of_a_detector(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        f"""name = "det"
model = "{folder / "det.onnx"}"
data = "{folder / "images"}"
test_data = "{folder / "images"}"
task = "detect"
images = 24

[bench]
runs = 0

[[step]]
do = "prune"
criterion = "l2"
target = "macs=0.7"
recover = true

[[step]]
do = "evaluate"
on = "test_data"
"""
    )
    document = json.loads(line.out("run", tmp_path / "r.toml", "-o", tmp_path / "run", "--json"))
    rows = document["steps"]
    assert next(r["metric"] for r in rows if r["value"] is not None) == "agreement"
    assert rows[0]["value"] == 1
    assert 0 < rows[1]["value"] < 1
    assert "agreement" in (tmp_path / "run" / "02-evaluate" / "accuracy.json").read_text()
    assert "agreement" in line.out("run", tmp_path / "r.toml", "-o", tmp_path / "again")
    line.ok("report", tmp_path / "run", "-o", tmp_path / "run.html")
    assert "agreement on the test data" in (tmp_path / "run.html").read_text()


def test_a_report_shows_the_metrics_of_a_task(folder: Path, tmp_path: Path) -> None:
    model, data = folder / "seg.onnx", ("--data", folder / "masks.npz")
    small = tmp_path / "s.onnx"
    line.ok("prune", model, "-o", small, "--plan", tmp_path / "p.json", "--target", "macs=0.7", *data, "--no-recover")
    (tmp_path / "e.json").write_text(line.out("evaluate", small, *data, "--json"))
    args = ("recover", model, small, tmp_path / "p.json", *data, "-o", tmp_path / "r.onnx", "--json")
    (tmp_path / "r.json").write_text(line.out(*args))
    line.ok("report", model, small, tmp_path / "e.json", tmp_path / "r.json", "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Evaluation of s.onnx" in page
    assert page.count("mIoU") >= 2
