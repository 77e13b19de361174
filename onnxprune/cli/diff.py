"""The command `onnxprune diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, takes_options
from onnxprune.cli._stages import load_model
from onnxprune.options import Options, option


@dataclass(frozen=True, kw_only=True, repr=False)
class Rows(Options):
    """Length of the tables of `diff`."""

    all_rows: bool = option(
        False, help="Every row, not only the first 20 of each kind.", heading="Output", flag="--all"
    )


@click.command(cls=Command)
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@takes_options
@json_option
def diff(one: Path, other: Path, rows: Rows, as_json: bool) -> None:
    """What is not the same in two models: nodes, shapes, weights, sizes.

    Nodes are matched by name, then by what they put out, then by the order of their operators. Of weights of the same
    shape it says how many elements differ, the norm of the difference over that of A's values, and the largest.
    """
    from onnxprune.cli import _display
    from onnxprune.studies.model_diff import differences

    found = differences(load_model(one), load_model(other))
    if as_json:
        _display.emit_json({"one": str(one), "other": str(other), **found.as_dict()})
    else:
        _display.differences_tables(found, f"{one.name} -> {other.name}", None if rows.all_rows else 20)
