"""Data of many kinds, through the command line: what is read, and one error for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CommandLine
from networks.image_models import classifier, pictures, saved, single_image_detector

line = CommandLine()
ok, fails = line.out, line.fails


def labelled(folder: Path, count: int, part: str = "") -> Path:
    """Write images and label files as Ultralytics does; return the folder of the images."""
    images, labels = folder / "images" / part, folder / "labels" / part
    pictures(images, [(32, 48)] * count)
    labels.mkdir(parents=True)
    for file in sorted(images.iterdir())[1:]:  # the first image has no objects
        labels.joinpath(f"{file.stem}.txt").write_text("0 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.3 0.1 0.3 0.4\n")
    return images


def test_a_detector_without_a_batch_axis_is_evaluated_and_pruned(tmp_path: Path) -> None:
    model, small = saved(single_image_detector(), tmp_path / "d.onnx"), tmp_path / "s.onnx"
    labelled(tmp_path / "set", 40)
    found = json.loads(ok("evaluate", model, "--data", tmp_path / "set", "--json"))
    assert (found["task"], found["samples"]) == ("detect", 40)
    done = json.loads(ok("prune", model, "-o", small, "--target", "macs=0.6", "--data", tmp_path / "set", "--json"))
    assert done["recovery"]["accepted_by"] == "map"
    assert [d.dim_value or d.dim_param for d in onnx.load(small).graph.input[0].type.tensor_type.shape.dim] == [
        3, "h", "w",
    ]  # fmt: skip
    ok(
        "sensitivity",
        model,
        "-o",
        tmp_path / "c.json",
        "--data",
        tmp_path / "set",
        "--metric",
        "mse",
        "--ratios",
        "0.5",
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((16, 3, 32, 32), np.float32))
    ok("prune", model, "-o", small, "-c", "l2", "--target", "macs=0.6", "--data", tmp_path / "x.npy")
    ok("prune", model, "-o", small, "-c", "l2", "--target", "macs=0.6", "--data", "none")
    assert "without a batch axis" in fails("retrain", small, "-o", tmp_path / "r.onnx", "--data", tmp_path / "x.npy",
                                           "--teacher", model)  # fmt: skip


FUNCTIONS = """
import numpy as np
x = np.random.default_rng(0).random((3, 8, 8), np.float32)

def early():
    for _ in range(20):
        yield x
    raise ValueError("the disk is gone")

class Short:
    def __len__(self):
        return 40
    def __iter__(self):
        return iter([x] * 20)

def short():
    return Short()

def shapes():
    for k in range(20):
        yield x if k < 19 else x[0]

def sizes():
    for k in range(20):
        yield x[:, :5]

def empty():
    return iter(())
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier of images, with data functions beside it."""
    (tmp_path / "bad_data.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return saved(classifier(), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("early", "failed after 20 samples: ValueError: the disk is gone"),
        ("short", "ended after 20 of the 40 items"),
        ("shapes", "has other axes than those before"),
        ("sizes", "do not fit the model's input"),
        ("empty", "has no samples"),
        ("missing", "missing"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "sensitivity"])
def test_a_bad_generator_is_one_error(model: Path, tmp_path: Path, command: str, name: str, says: str) -> None:
    args = ("--target", "macs=0.6") if command == "prune" else ("--metric", "mse")
    output = tmp_path / "out"
    assert says in fails(command, model, "-o", output, *args, "--data", f"bad_data:{name}")
    assert not output.exists()


def test_a_generator_with_fewer_samples_than_asked_for_is_said(model: Path, tmp_path: Path) -> None:
    args = ("-o", tmp_path / "s.onnx", "--target", "macs=0.6", "--images", 30)
    (tmp_path / "few_data.py").write_text("from bad_data import x\ndef few():\n    return (x for _ in range(20))\n")
    assert "ended after 20 samples, and 30" in line.ok("prune", model, *args, "--data", "few_data:few").stderr


def test_a_coco_file_that_names_missing_images_is_one_error(tmp_path: Path) -> None:
    model = saved(single_image_detector(), tmp_path / "d.onnx")
    pictures(tmp_path / "images", [(32, 48)])
    names = [next((tmp_path / "images").iterdir()).name, "gone.png"]
    document = {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
        "annotations": [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 4, 4]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "c.json").write_text(json.dumps(document))
    message = fails("evaluate", model, "--data", tmp_path / "c.json")
    assert "1 of 2 images do not exist: gone.png" in message
    assert "--images-dir" in message


def test_a_class_map_that_does_not_fit_is_one_error(model: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        pictures(tmp_path / "val" / name, [(8, 8)] * 2)
    args = ("evaluate", model, "--data", tmp_path / "val", "--class-map", tmp_path / "map.json")
    for text, says in (
        ('{"cat": 0}', "not in the class map: dog"),
        ('{"cat": 0, "dog": 9}', "has the label 9, the model 4 classes"),
        ('{"cat": -1, "dog": 1}', "none of the known forms"),
        ("{", "map.json"),
    ):
        (tmp_path / "map.json").write_text(text)
        assert says in fails(*args)
    (tmp_path / "map.json").unlink()
    assert "map.json" in fails(*args)


def test_silent_nonsense_is_said(model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 3, 8, 8)).astype(np.float32), np.arange(40) % 4
    np.savez(tmp_path / "bytes.npz", x=x, y=y)
    assert "reach 255" in line.ok("evaluate", model, "--data", "bytes.npz").stderr
    np.savez(tmp_path / "shares.npz", x=x / 255, y=y)
    means = ("--mean", "127", "--std", "128")
    assert "in units of bytes" in line.ok("evaluate", model, "--data", "shares.npz", *means).stderr
    np.savez(tmp_path / "off.npz", x=x / 255, y=y + 1)
    assert "subtract 1" in fails("evaluate", model, "--data", "off.npz")
    np.savez(tmp_path / "constant.npz", x=np.ones_like(x), y=y)
    assert "check the data" in line.ok("evaluate", model, "--data", "constant.npz").stderr
