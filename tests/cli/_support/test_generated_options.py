"""Click options and help that are generated from option dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.errors import OnnxPruneError
from onnxprune.options import Options, option
from onnxprune.options._text import NUMBERS, PAIRS


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget(Options):
    """A budget."""

    share: float | None = option(None, help="A share.", heading="Budget", ge=0, lt=1)
    steps: int = option(1, help="Steps.", heading="Budget", ge=1, usage=True, advanced=True)
    kind: str = option("one", help="A kind.", heading="Budget", choices=("one", "other"), old=("--sort",))
    params: dict[str, Any] = option({}, help="Parameters.", heading="Selection", flag=("-p", "--param"), text=PAIRS)
    points: tuple[float, ...] = option((0.5, 1), help="Points.", heading="Selection", text=NUMBERS)
    names: tuple[str, ...] = option((), help="Names.", heading="Selection")


@dataclass(frozen=True, kw_only=True, repr=False)
class File(Options):
    """A file."""

    output: Path = option(help="File to write.", heading="Output", flag=("-o", "--output"))
    keep: bool | None = option(None, help="Keep it.", heading="Output", flag="--keep/--no-keep")
    fast: bool = option(False, help="Quickly.", heading="Output")


@click.command(cls=Command)
@click.argument("model")
@json_option
@takes_options
def command(model: str, file: File, budget: Budget, as_json: bool) -> None:
    """A command."""
    click.echo(repr((model, file, budget, as_json)))


def run(*args: str) -> Result:
    return CliRunner().invoke(command, args)


def given(*args: str) -> Any:
    result = run("m", "-o", "x", *args)
    assert result.exit_code == 0, result.output
    return eval(result.stdout, {"File": File, "Budget": Budget, "PosixPath": Path, "WindowsPath": Path})


def test_defaults_are_those_of_the_dataclass() -> None:
    assert given() == ("m", File(output=Path("x")), Budget(), False)


def test_every_kind_of_value_arrives() -> None:
    args = [
        "--share", "0.5", "--steps", "2", "--kind", "other", "-p", "a=1", "--param", "b=x", "--points", "1,2",
        "--names", "a", "--names", "b", "--no-keep", "--fast", "--json",
    ]  # fmt: skip
    budget = Budget(
        share=0.5, steps=2, kind="other", params={"a": 1, "b": "x"}, points=(1.0, 2.0), names=("a", "b")
    )  # fmt: skip
    assert given(*args) == ("m", File(output=Path("x"), keep=False, fast=True), budget, True)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "Missing option '-o' / '--output'"),
        (["-o", "x", "--steps", "0"], "--steps must be a whole number, at least 1; got 0"),
        (["-o", "x", "--steps", "x"], "'--steps'"),
        (["-o", "x", "--points", "a"], "--points takes numbers separated by commas, not 'a'"),
        (["-o", "x", "-p", "a=1", "-p", "b"], "--param takes NAME=VALUE, not 'b'"),
        (["-o", "x", "--kind", "one", "--sort", "one"], "--sort is the old name of --kind"),
    ],
)
def test_wrong_usage(args: list[str], says: str) -> None:
    result = run("m", *args)
    assert result.exit_code == 2
    assert says in result.output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--share", "1"], "--share must be in [0, 1); got 1.0"),
        (["--share", "nan"], "--share must be in [0, 1); got nan"),
        (["--share", "30"], "--share must be in [0, 1); got 30.0\n  try: did you mean 0.3?"),
        (["--share", "130%"], "--share must be in [0, 1); got 1.3"),
        (["--kind", "othr"], "unknown kind 'othr'\n  at: --kind\n  try: did you mean 'other'?"),
    ],
)
def test_a_value_that_makes_no_sense_is_a_known_error(args: list[str], says: str) -> None:
    result = run("m", "-o", "x", *args)
    assert isinstance(result.exception, OnnxPruneError)
    assert str(result.exception) == says


def test_a_share_is_a_number_or_a_percentage() -> None:
    assert given("--share", "25%")[2] == given("--share", " 25 %")[2] == given("--share", "0.25")[2]
    assert given("--share", "25%")[2] == Budget(share=0.25)
    assert run("m", "-o", "x", "--share", "x%").exit_code == 2


def test_an_old_spelling_works_with_a_note() -> None:
    result = run("m", "-o", "x", "--sort", "other")
    assert "kind='other'" in result.stdout
    assert result.stderr == "--sort is now --kind\n"
    assert "--sort" not in run("--help").output


def test_help_has_headings_and_advanced_options_last() -> None:
    text = run("--help").output
    places = [text.index(f"\n{heading}:\n") for heading in ("Selection", "Budget", "Output", "Advanced options")]
    assert places == sorted(places)
    assert places[-1] < text.index("--steps")
    assert "Steps.  [default: 1]" in text
    assert "[default: 0.5,1]" in text
    assert "\nData:" not in text
    assert text.index("--fast") < text.index("--json") < places[-1] < text.index("--help")


def test_options_declared_twice_are_refused() -> None:
    def twice(one: Budget, other: Budget) -> None: ...

    twice.__annotations__ = {"one": Budget, "other": Budget}
    with pytest.raises(TypeError, match=r"declares .*--share.* twice"):
        click.command(cls=Command)(takes_options(twice)).params  # noqa: B018
