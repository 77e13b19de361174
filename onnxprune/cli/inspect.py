"""The command `onnxprune inspect`."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli._options import attention_option, inexact_option, json_option, model_argument
from onnxprune.cli._stages import analysis_of, load_model


@click.command()
@model_argument
@attention_option
@inexact_option
@json_option
def inspect(**o: Any) -> None:
    """What can be removed, what is locked and by which operator."""
    from onnxprune.cli import _display

    analysis = analysis_of(load_model(o["model"]), o)
    if o["as_json"]:
        _display.emit_json(_display.inspect_document(analysis, str(o["model"])))
    else:
        _display.inspect_tables(analysis, o["model"].name)
