"""The command `onnxprune inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, model_argument, takes_options
from onnxprune.cli._stages import analyzed, load_model
from onnxprune.options import AnalysisOptions, InputShapes


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def inspect(model: Path, analysis: AnalysisOptions, shapes: InputShapes, as_json: bool) -> None:
    """List removable groups, and locked ones with the reason."""
    from onnxprune.cli import _display
    from onnxprune.cli._display_inspect import inspect_document, inspect_tables

    found = analyzed(load_model(model, shapes), analysis)
    if as_json:
        _display.emit_json(inspect_document(found, str(model)))
    else:
        inspect_tables(found, model.name)
