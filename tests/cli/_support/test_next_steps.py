"""Last lines of commands that wrote a model."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from command_line import CommandLine

from onnxprune.cli import main
from onnxprune.cli._support.next_steps import next_steps

DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
line = CommandLine()


def suggested(text: str) -> list[list[str]]:
    """Commands after `next:`."""
    return [shlex.split(t) for t in text.split("\nnext:\n")[1].splitlines() if t.startswith("  ")]


def test_without_data_accuracy_is_not_measured_and_the_next_commands_run(tmp_path: Path) -> None:
    small, plan = tmp_path / "a b.onnx", tmp_path / "p.json"
    out = line.out("prune", DIGITS, "-o", small, "--target", "0.5", "--plan", plan)
    assert "\naccuracy: not measured (no real samples were given)\n" in out
    commands = suggested(out)
    assert [c[1] for c in commands] == ["evaluate", "recover", "bench"]
    assert {c[0] for c in commands} == {"onnxprune"}
    for command in commands:
        short = {"recover": ["--images", "40", "--rows", "300"], "bench": ["--runs", "2"], "evaluate": []}[command[1]]
        line.ok(*(word if word != "DATA" else "digits:test" for word in command[1:]), *short)
    assert (tmp_path / "a b-recovered.onnx").is_file()
    assert line.out("apply", DIGITS, plan, "-o", small).endswith(out.split("\naccuracy:")[1])
    document = json.loads(line.out("apply", DIGITS, plan, "-o", small, "--json"))
    assert document["accuracy"] is None


@pytest.mark.parametrize(("measured", "recovered"), [(True, True), (False, True), (False, False)])
def test_lines_are_of_what_was_done(measured: bool, recovered: bool) -> None:
    text = next_steps(Path("m.onnx"), Path("s.onnx"), None, measured=measured, recovered=recovered)
    assert ("not measured" in text) != measured
    assert ("with --data" in text) != recovered
    assert all(command[1] in main.commands for command in suggested(f"\n{text}"))
    assert max(map(len, text.splitlines())) <= 80
