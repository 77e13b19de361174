"""Data of many kinds, through the command line: what is read, and one error for what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from command_line import CommandLine
from image_models import pictures, saved, single_image_detector

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
    ok("prune", model, "-o", small, "--target", "macs=0.6", "--data", tmp_path / "x.npy")
    ok("prune", model, "-o", small, "--target", "macs=0.6", "--data", "none")
    assert "without a batch axis" in fails("retrain", small, "-o", tmp_path / "r.onnx", "--data", tmp_path / "x.npy",
                                           "--teacher", model)  # fmt: skip
