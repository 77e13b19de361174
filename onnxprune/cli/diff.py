"""The command `onnxprune diff`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.cli._support.stages import load_models
from onnxprune.options import InputShapes, Options, option


@dataclass(frozen=True, kw_only=True, repr=False)
class Rows(Options):
    """Output of `diff`."""

    all_rows: bool = option(
        False, help="Every difference: nodes, shapes, weights, renames.", heading="Output", flag="--all"
    )
    html: Path | None = option(None, help="Write all differences as a page as well.", heading="Output")


@click.command(cls=Command)
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@takes_options
@json_option
def diff(one: Path, other: Path, rows: Rows, shapes: InputShapes, as_json: bool) -> None:
    """Compare two models layer by layer: channels, MACs, weights.

    \b
    onnxprune diff model.onnx small.onnx
    onnxprune diff model.onnx retrained.onnx --html diff.html

    Nodes are matched by name, then by their outputs, then by the order of their operators. For weights of the same
    shape: norm of the difference relative to A's values.
    """
    from onnxprune._utils.files.atomic_files import check_output, write_text
    from onnxprune.cli._support import display
    from onnxprune.cli._support.display_diff import differences_tables
    from onnxprune.studies.diff_page import diff_page
    from onnxprune.studies.model_diff import differences

    if rows.html is not None:
        for model in (one, other):
            check_output(rows.html, model)
    found = differences(*load_models([one, other], shapes))
    title = f"{one.name} -> {other.name}"
    if rows.html is not None:
        write_text(rows.html, diff_page(found, title))
    if as_json:
        display.emit_json({"one": str(one), "other": str(other), **found.as_dict()})
    else:
        differences_tables(found, title, every=rows.all_rows)
        if rows.html is not None:
            click.echo(f"written: {rows.html}")
