"""The command `onnxprune diff`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._options import json_option
from onnxprune.cli._stages import load_model


@click.command()
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@click.option("--all", "whole", is_flag=True, help="Every row, not only the first 20 of each kind.")
@json_option
def diff(one: Path, other: Path, whole: bool, as_json: bool) -> None:
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
        _display.differences_tables(found, f"{one.name} -> {other.name}", None if whole else 20)
