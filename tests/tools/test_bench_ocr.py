"""Rendered lines keep calibration and test apart; texts, boxes and tables are counted as their names say."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
FONTS = Path("/usr/share/fonts/truetype")
LICENCES = Path("/usr/share/common-licenses")
needs_debian = pytest.mark.skipif(
    not LICENCES.is_dir() or not (FONTS / "dejavu").is_dir() or not (FONTS / "liberation").is_dir(),
    reason="the fonts and texts of Debian are missing",
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a tool by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module


@needs_debian
def test_no_word_or_line_of_the_test_is_in_the_calibration(tool: Any) -> None:
    text = tool("model_makers.rendered_text")
    words = [set(text.words(part)) for part in text.PARTS]
    assert not words[0] & words[1]
    assert min(map(len, words)) > 500
    lines = [text.texts(part, 300) for part in text.PARTS]
    assert not set(lines[0]) & set(lines[1])
    assert all(len(set(own)) == 300 for own in lines)
    for own, part in zip(lines, text.PARTS, strict=True):
        read = [w.lower() for line in own if line.replace(" ", "").isalpha() for w in line.split()]
        assert set(read) <= set(text.words(part))
        assert len(read) > 100


@needs_debian
def test_lines_have_one_height_many_widths_and_the_same_pixels_again(tool: Any) -> None:
    text = tool("model_makers.rendered_text")
    lines, again = text.lines("test", 20), text.lines("test", 20)
    assert {line.pixels.shape[0] for line in lines} == {48}
    assert len({line.pixels.shape[1] for line in lines}) > 8
    for a, b in zip(lines, again, strict=True):
        assert a.text == b.text
        np.testing.assert_array_equal(a.pixels, b.pixels)


@needs_debian
def test_pages_mark_their_lines(tool: Any) -> None:
    text, bench = tool("model_makers.rendered_text"), tool("bench_ocr")
    for page in text.pages("calibration", 3, ((320, 320), (256, 416))):
        assert page.pixels.shape[:2] == page.mask.shape
        assert 0.02 < page.mask.mean() < 0.6
        assert len(bench.boxes_of(page.mask)) >= 1


def test_repetitions_and_blanks_are_no_characters(tool: Any) -> None:
    read = tool("bench_ocr").read
    characters = ["", "a", "b", " "]
    frames = np.eye(4, dtype=np.float32)[[0, 1, 1, 0, 1, 2, 2, 3, 3, 0]]
    assert read(frames, characters) == "aab"


@pytest.mark.parametrize(
    ("a", "b", "wanted"), [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)]
)
def test_distance_counts_edits(tool: Any, a: str, b: str, wanted: int) -> None:
    distance = tool("bench_ocr").distance
    assert distance(a, b) == distance(b, a) == wanted


def test_f1_counts_each_box_once(tool: Any) -> None:
    f1 = tool("bench_ocr").box_f1
    two = np.array([[0, 0, 10, 10], [20, 0, 30, 10]])
    assert f1([two], [two]) == 1.0
    assert f1([two[:1]], [two]) == pytest.approx(2 / 3)
    assert f1([np.concatenate([two[:1], two[:1]])], [two[:1]]) == pytest.approx(2 / 3)
    assert f1([two[:0]], [two]) == 0.0
    assert f1([two + 6], [two]) == 0.0


def test_the_table_has_a_row_for_every_model(tool: Any) -> None:
    rows = [
        {"name": "original", "macs": 1.0, "words": 98.5, "characters": 99.5, "ms": 7.0},
        {
            "name": "rec-0.5", "macs": 0.5, "words": 97.0, "characters": 99.0, "ms": 4.0, "seconds": 61.0,
            "cpu_seconds": 99.0,
        },
    ]  # fmt: skip
    lines = tool("bench_ocr").table("rec", rows).splitlines()
    assert lines[2] == "| original | 1.000 | 98.50 % | 99.50 % | 7.00 | - |"
    assert lines[3] == "| rec-0.5 | 0.500 | 97.00 % | 99.00 % | 4.00 | 61 s (99 s CPU) |"
