"""Progress as lines of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import CommandLine

from onnxprune._utils.output import progress
from onnxprune._utils.output.progress import ProgressLines


def shown(calls: Sequence[tuple[float, int, int]]) -> list[str]:
    """Lines of a task that reports (seconds, done, total)."""
    now = 0.0
    lines: list[str] = []
    tick = ProgressLines("scoring", lines.append, clock=lambda: now)
    for now, done, total in calls:  # noqa: B007  # the clock reads it
        tick(done, total)
    return lines


def test_a_line_for_each_tenth() -> None:
    lines = shown([(10.0 + i / 100, i, 200) for i in range(1, 201)])
    assert len(lines) == 10
    assert lines[0] == "scoring: 10 % (20 of 200), 10.2 s, about 91.8 s left"
    assert lines[-1] == "scoring: 100 % (200 of 200), 12 s"


def test_a_line_every_thirty_seconds_of_slow_work() -> None:
    lines = shown([(10.0 * i, i, 1000) for i in range(1, 10)])
    assert [line.split(",")[0] for line in lines] == [
        "scoring: 0 % (3 of 1000)", "scoring: 0 % (6 of 1000)", "scoring: 0 % (9 of 1000)"
    ]  # fmt: skip


def test_a_short_task_shows_nothing() -> None:
    assert shown([(0.01 * i, i, 100) for i in range(101)]) == []


def test_a_command_writes_lines_where_stderr_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET", 0.0)
    model = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
    words = ["sensitivity", model, "--data", "digits", "--images", 20, "--ratios", "0.5", "-o", tmp_path / "c.json"]
    assert re.search(r"^measuring: \d+ % \(\d+ of \d+\), ", CommandLine().ok(*words).stderr, re.M)
    assert "% (" not in CommandLine().ok(*words, "--restart", "--json").stderr


def test_a_task_of_unknown_size_shows_that_it_lives() -> None:
    assert shown([(31.0, 0, 0), (40.0, 0, 0), (62.0, 5, 0)]) == [
        "scoring: 0 done, 31 s", "scoring: 5 done, 62 s"
    ]  # fmt: skip
