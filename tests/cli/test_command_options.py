"""Every option of every command comes from an option dataclass, and is refused by name where it is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from command_line import CommandLine

from onnxprune.cli import main
from onnxprune.cli._support.options import Option, option_classes
from onnxprune.options import Declared, declared

OTHER = {"-h", "--help", "--json"}  # of all commands
REQUIRED = {"output": ["-o", "out"], "data": ["--data", "digits"]}
line = CommandLine()


def options_of(name: str) -> list[Declared]:
    """The declared options of a command."""
    callback: Any = main.commands[name].callback
    return [d for cls in option_classes(callback.__wrapped__).values() for d in declared(cls)]


def arguments(name: str, besides: str = "") -> list[str]:
    """The least that a command is called with, without one of its options."""
    words = [name, *("x.onnx" for p in main.commands[name].params if isinstance(p, click.Argument))]
    for d in options_of(name):
        if d.required and d.name != besides:
            words += REQUIRED[d.name]
    return words


def commands() -> list[str]:
    """Commands with options besides --json."""
    return [name for name, c in main.commands.items() if hasattr(c.callback, "__wrapped__")]


def wrong() -> Iterator[Any]:
    """Values out of bounds, by command and option."""
    for name in commands():
        for d in options_of(name):
            low = d.spec.ge if d.spec.ge is not None else d.spec.gt
            high = d.spec.le if d.spec.le is not None else d.spec.lt
            bad = [f"{v:g}" for v in (None if low is None else low - 1, None if high is None else high + 1)
                   if v is not None]  # fmt: skip
            if d.spec.choices:
                bad.append("no-such-name")
            for value in bad:
                yield pytest.param(name, d, value, id=f"{name} {d.flags[-1]} {value}")


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_flag_is_declared_once(name: str) -> None:
    flags: list[str] = []
    for param in main.commands[name].get_params(click.Context(main.commands[name])):
        if isinstance(param, click.Option) and not param.hidden:
            flags += [*param.opts, *param.secondary_opts]
    known = [part for d in (options_of(name) if name in commands() else []) for f in d.flags for part in f.split("/")]
    assert sorted(set(flags) - OTHER) == sorted(known)
    assert len(known) == len(set(known))


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help_shows_the_declared_defaults(name: str) -> None:
    text = re.sub(r"\s+", " ", line.out(name, "--help"))
    for d in options_of(name) if name in commands() else []:
        if d.shown:
            assert f"[default: {d.shown}" in text, d.name


def test_prune_shows_few_options_before_the_advanced_ones() -> None:
    shown = [p for p in main.commands["prune"].params if isinstance(p, Option) and p.heading != "Advanced options"]
    assert len([p for p in shown if not p.hidden]) <= 15
    head, _ = line.out("prune", "--help").split("\nAdvanced options:\n")
    assert "--target" in head
    assert "--tolerance" not in head


@pytest.mark.parametrize(("name", "d", "value"), list(wrong()))
def test_a_value_out_of_bounds_is_one_error_with_the_name(name: str, d: Declared, value: str, tmp_path: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    result = line.run(*arguments(name, besides=d.name), f"{d.flags[-1]}={value}")
    assert result.exit_code == (2 if d.spec.usage else 1), result.output
    assert d.flags[-1] in result.stderr
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", main.commands)
def test_help_fits_a_screen_before_the_advanced_options(name: str) -> None:
    head = line.out(name, "--help").split("\nAdvanced options:\n")[0]
    assert len(head.splitlines()) <= 40
    assert max(map(len, head.splitlines())) <= 80
