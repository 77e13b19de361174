"""Defaults of options from onnxprune.toml and pyproject.toml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from command_line import CommandLine

from onnxprune.cli import main
from onnxprune.cli._support.config import ALTERNATIVES, SHARED

DIGITS = Path(__file__).parents[3] / "models" / "digits_cnn.onnx"
line = CommandLine()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DIGITS, tmp_path / "m.onnx")
    return tmp_path


def written(name: str, text: str) -> None:
    Path(name).write_text(text)


def plan(*args: object) -> tuple[Result, dict[str, float]]:
    result = line.ok("plan", "m.onnx", "-o", "p.json", "--json", *args)
    document = json.loads(result.stdout)
    return result, {k: document["after"][k] / document["before"][k] for k in ("macs", "params")}


def test_values_are_those_of_the_command_line() -> None:
    plan("--target", "macs=0.6", "--round-to", "4", "-c", "l1", "--protect", "first", "--min-channels", "3")
    expected = Path("p.json").read_bytes()
    written(
        "onnxprune.toml",
        'round_to = 4\nprotect = ["first"]\nmin_channels = 3\n'
        '[plan]\ntarget = "60%"\ncriterion = "l1"\n[bench]\nruns = 3\n',
    )
    result, _ = plan()
    assert Path("p.json").read_bytes() == expected
    assert "defaults of onnxprune.toml: round_to, protect, min_channels, target, criterion" in result.stderr


def test_the_command_line_wins() -> None:
    written("onnxprune.toml", '[plan]\ntarget = "macs=0.2"\nround_to = 8\n')
    result, kept = plan("--target", "macs=0.9", "--round-to", "1")
    assert kept["macs"] == pytest.approx(0.9, abs=0.01)
    assert "defaults of" not in result.stderr


def test_an_option_replaces_its_alternatives_of_the_file() -> None:
    written("onnxprune.toml", '[plan]\ntarget = "macs=0.2"\n')
    plan("--ratio", "0.25", "--round-to", "1")
    expected = Path("p.json").read_bytes()
    Path("onnxprune.toml").unlink()
    plan("--ratio", "0.25", "--round-to", "1")
    assert Path("p.json").read_bytes() == expected


def test_pyproject_has_a_table_of_its_own() -> None:
    written("pyproject.toml", '[project]\nname = "onnxprune-user"\n')
    assert "defaults" not in line.run("plan", "m.onnx", "-o", "p.json").stderr
    written("pyproject.toml", '[tool.onnxprune]\nround_to = 1\n[tool.onnxprune.plan]\ntarget = "0.7"\n')
    result, kept = plan()
    assert kept["macs"] == pytest.approx(0.7, abs=0.01)
    assert "defaults of pyproject.toml: round_to, target" in result.stderr
    written("onnxprune.toml", '[plan]\ntarget = "0.5"\n')
    result, kept = plan()
    assert "defaults of onnxprune.toml: target" in result.stderr
    assert kept["macs"] == pytest.approx(0.5, abs=0.05)


def test_required_options_texts_paths_and_files() -> None:
    written(
        "onnxprune.toml",
        '[prune]\noutput = "small.onnx"\nratio = 0.5\nplan_file = "plan.json"\n'
        '[sensitivity]\noutput = "c.json"\ndata = "digits:test"\nratios = "0.5"\ncache_memory = "64MB"\nimages = 20\n',
    )
    line.ok("prune", "m.onnx")
    assert Path("small.onnx").is_file()
    assert Path("plan.json").is_file()
    line.ok("sensitivity", "m.onnx")
    assert {len(g["points"]) for g in json.loads(Path("c.json").read_text())["groups"].values()} == {1}
    Path("onnxprune.toml").unlink()
    assert "Missing option '-o' / '--output'" in line.fails("prune", "m.onnx", code=2)


def test_overrides_are_a_table_or_a_file() -> None:
    written("groups.toml", '"*" = 0.25\n')
    plans = []
    for text in ('overrides = "groups.toml"', '[plan.overrides]\n"*" = 0.25'):
        written("onnxprune.toml", f"[plan]\nratio = 0.5\nround_to = 1\n{text}\n")
        plan()
        plans.append(Path("p.json").read_bytes())
    Path("onnxprune.toml").unlink()
    plan("--ratio", "0.5", "--round-to", "1", "--overrides", "groups.toml")
    assert plans == [Path("p.json").read_bytes()] * 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("round_too = 4", "unknown key 'round_too'\n  at: onnxprune.toml\n  try: did you mean 'round_to'"),
        ("[plam]\nratio = 0.5", "unknown key 'plam'\n  at: onnxprune.toml\n  try: did you mean 'plan'"),
        ("[plan]\nratoi = 0.5", "unknown key 'ratoi'\n  at: onnxprune.toml: plan\n  try: did you mean 'ratio'"),
        ("[bench]\nrunz = 1", "unknown key 'runz'\n  at: onnxprune.toml: bench\n  try: did you mean 'runs'"),
        (
            'target = "0.5"',
            "'target' is not an option of all commands\n  at: onnxprune.toml\n  try: put it into the table",
        ),
        ("[plan]\nratio = 1.5", "ratio must be in [0, 1); got 1.5\n  at: onnxprune.toml: plan.ratio"),
        ('[plan]\nratio = "half"', "'ratio' takes a number, not 'half'\n  at: onnxprune.toml: plan"),
        ("min_channels = 0.5", "'min_channels' takes a whole number, not 0.5\n  at: onnxprune.toml"),
        ('protect = ["frist"]', "unknown preset 'frist'\n  at: onnxprune.toml: protect\n  try: did you mean 'first'"),
        ('size = "big"', "'size' takes HEIGHTxWIDTH, not 'big'\n  at: onnxprune.toml"),
        ("plan = 1", "not a valid configuration: not a table\n  at: onnxprune.toml: plan\n  try: [plan]"),
        ("[plan", "not a valid configuration: not valid TOML"),
        ("[plan]\nratio = 0.1\nratio = 0.2", "not a valid configuration: not valid TOML"),
    ],
)
def test_a_mistake_is_one_error(text: str, says: str) -> None:
    written("onnxprune.toml", text)
    message = line.fails("plan", "m.onnx", "-o", "p.json", "--data", "digits", "--images", 2)
    assert says in message


def test_a_table_of_the_project_that_is_none_is_refused() -> None:
    written("pyproject.toml", "[tool]\nonnxprune = 1\n")
    assert "pyproject.toml: tool.onnxprune\n  try: [tool.onnxprune]" in line.fails("plan", "m.onnx", "-o", "p.json")


def test_names_are_those_of_options() -> None:
    names = {n for c in main.commands.values() for n in getattr(c.callback, "declared_names", list)()}
    assert names >= SHARED
    assert all(names >= group for group in ALTERNATIVES)
    assert not names & set(main.commands) & SHARED
