"""The command `onnxprune inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import analyzed, latency_predictor, load_model
from onnxprune.options import AnalysisOptions, InputShapes, Prediction


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def inspect(
    model: Path, analysis: AnalysisOptions, shapes: InputShapes, prediction: Prediction, as_json: bool
) -> None:  # fmt: skip
    """List removable groups and residual blocks, and locked ones with the reason."""
    from onnxprune.cli._support import display
    from onnxprune.cli._support.display_inspect import inspect_document, inspect_tables

    found = analyzed(load_model(model, shapes), analysis)
    latency = latency_predictor(found, prediction, quiet=as_json) if prediction.latency else None
    if as_json:
        display.emit_json(inspect_document(found, str(model), latency))
    else:
        inspect_tables(found, model.name, latency)
