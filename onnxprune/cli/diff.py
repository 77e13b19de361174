"""The command `onnxprune diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, takes_options
from onnxprune.cli._stages import load_models
from onnxprune.options import InputShapes, Options, option


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
def diff(one: Path, other: Path, rows: Rows, shapes: InputShapes, as_json: bool) -> None:
    """Compare two models: nodes, shapes, weights, sizes.

    Nodes are matched by name, then by their outputs, then by the order of their operators. For weights of the same
    shape: share of elements that differ, norm of the difference relative to A's values, largest difference.
    """
    from onnxprune.cli import _display
    from onnxprune.studies.model_diff import differences

    found = differences(*load_models([one, other], shapes))
    if as_json:
        _display.emit_json({"one": str(one), "other": str(other), **found.as_dict()})
    else:
        _display.differences_tables(found, f"{one.name} -> {other.name}", None if rows.all_rows else 20)
