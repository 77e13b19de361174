"""The detector that ships finds digits, and still does when 40 % of its MACs are gone, without training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CommandLine

import onnxprune as op
from onnxprune.execution.data.digit_scenes import NAMES, digit_scene
from onnxprune.execution.sessions import Session

MODEL = Path(__file__).parent.parent.parent / "models" / "digits_detector.onnx"
DATA = ("--data", "digit-scenes:train", "--images", 100)
SIZES = ((96, 96), (64, 128), (160, 96))
line = CommandLine()


@dataclass(frozen=True)
class Pruned:
    path: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Pruned:
    """Model with 60 % of the MACs, recovered; kept counts are multiples of 8 on every processor."""
    pytest.importorskip("faster_coco_eval")  # recovery reports the metric of the task
    out = tmp_path_factory.mktemp("detector") / "small.onnx"
    options = ("--target", "macs=0.6", "--round-to", 8, "--threads", 1, "--json")
    return Pruned(out, json.loads(line.out("prune", MODEL, "-o", out, *DATA, *options)))


def test_the_file_is_small_and_says_what_it_detects() -> None:
    assert MODEL.stat().st_size < 2**20
    model = op.load(MODEL)
    assert model.metadata["task"] == "detect"
    assert json.loads(model.metadata["imgsz"]) == [96, 96]
    assert model.metadata["stride"] == "16"
    assert model.graph.outputs[0].shape[1] == 4 + len(NAMES)
    assert all(not isinstance(model.graph.inputs[0].shape[axis], int) for axis in (0, 2, 3))


def test_evaluate_finds_the_digits() -> None:
    pytest.importorskip("faster_coco_eval")
    found = json.loads(line.out("evaluate", MODEL, "--data", "digit-scenes:test", "--images", 100, "--json"))
    assert found["task"] == "detect"
    assert found["map"] > 0.6
    assert found["map50"] > 0.85
    assert not found["warnings"]


def test_recovery_brings_the_boxes_back(pruned: Pruned) -> None:
    assert pruned.report["after"]["macs"] <= 0.61 * pruned.report["before"]["macs"]
    stages = pruned.report["recovery"]["stages"]
    assert stages[-1]["kept"]
    assert stages[-1]["distance"] < 0.7 * stages[0]["distance"]
    assert stages[-1]["distance"] < 0.1
    assert pruned.report["recovery"]["metric"] == "map"  # the scenes have boxes
    assert stages[-1]["value"] > pruned.report["recovery"]["original"] - 0.05


def test_the_pruned_detector_is_as_precise(pruned: Pruned) -> None:
    pytest.importorskip("faster_coco_eval")
    test = op.load_data("digit-scenes:test", images=100)
    before, after = (op.evaluate(op.load(path), test).value for path in (MODEL, pruned.path))
    assert after > before - 0.02


def test_the_pruned_detector_takes_every_size_and_batch(pruned: Pruned) -> None:
    sessions = [Session(op.load(path), threads=1) for path in (MODEL, pruned.path)]
    for size in SIZES:
        pixels = np.stack([digit_scene("test", i, size=size)[0] for i in range(3)])
        feed = {"images": pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255}
        original, found = (s.run(feed)[0] for s in sessions)
        assert found.shape == original.shape
        sure = original[:, 4:] > 0.5
        assert sure.any()
        assert np.abs(found[:, 4:][sure] - original[:, 4:][sure]).mean() < 0.2
