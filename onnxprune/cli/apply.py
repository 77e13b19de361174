"""The command `onnxprune apply`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import json_option, model_argument, output_option, writing_options
from onnxprune.cli._stages import compiled, finish, load_model


@click.command()
@model_argument
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@output_option
@writing_options
@json_option
def apply(**o: Any) -> None:
    """Remove what a plan names, prove the result, write it."""
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.plans import load_plan

    check_output(o["output"], o["model"])
    made = load_plan(o["plan_file"])
    model = load_model(o["model"])
    finish(compiled(model, made, None, o), o)
