"""Scenes in Ultralytics' form, detections that are drawn, and the table."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import onnxprune as op
from onnxprune.execution.data.digit_scenes import SIZE, digit_scene

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("bench_detect")


def test_scenes_are_written_as_ultralytics_reads_them(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "TRAIN_SCENES", 3)
    monkeypatch.setattr(bench, "VAL_SCENES", 2)
    described = bench.write_scenes(tmp_path)
    assert "names: {0: '0'" in described.read_text()
    assert sorted(p.name for p in (tmp_path / "images" / "train").iterdir()) == [f"{i:05d}.png" for i in range(3)]
    pixels, boxes, classes = digit_scene("test", 1)
    with Image.open(tmp_path / "images" / "test" / "00001.png") as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)
    rows = np.loadtxt(tmp_path / "labels" / "test" / "00001.txt", ndmin=2)
    np.testing.assert_array_equal(rows[:, 0], classes)
    corners = np.concatenate([rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2], 1) * SIZE
    np.testing.assert_allclose(corners, boxes, atol=1e-3)


def test_detections_of_the_detector_that_ships_are_the_digits(bench: Any, tmp_path: Path) -> None:
    model, right, total = op.load(bench.SHIPPED), 0, 0
    for i in range(12):
        pixels, boxes, classes = digit_scene("test", i)
        found = bench.detections(model, pixels)
        total += len(classes)
        for box, label in zip(boxes, classes, strict=True):
            right += any(k == label and np.abs(np.array(b) - box).max() < 6 for b, k, _ in found)
    assert right > 0.75 * total
    bench.picture([("original", bench.SHIPPED)], tmp_path / "p.png", scenes=2)
    with Image.open(tmp_path / "p.png") as image:
        assert image.size == (2 * (2 * SIZE + 4), 2 * SIZE + 22)


def test_the_table_has_a_row_for_every_model(bench: Any) -> None:
    rows = [
        {"name": "m", "macs": 1.0, "map": 70.0, "map50": 90.0, "ms": 1.5},
        {"name": "0.6 recovered", "macs": 0.6, "map": 69.5, "map50": 89.0, "seconds": 12.0},
    ]
    lines = bench.table(rows).splitlines()
    assert lines[2] == "| m | 1.000 | 70.00 | 90.00 | 1.50 | - |"
    assert lines[3] == "| 0.6 recovered | 0.600 | 69.50 | 89.00 | - | 12 |"
