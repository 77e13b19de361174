"""The command `onnxprune apply`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import compiled, finish, load_model
from onnxprune.options import InputShapes, ModelOutput, Verifying


@click.command(cls=Command)
@model_argument
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@takes_options
@json_option
def apply(
    model: Path, plan_file: Path, output: ModelOutput, verifying: Verifying, shapes: InputShapes, as_json: bool
) -> None:
    """Remove a plan's channels, prove the result and write it."""
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support.inputs import read_plan

    check_output(output.output, model)
    made = read_plan(plan_file)
    done = compiled(load_model(model, shapes), made, verifying, quiet=as_json)
    finish(done, model, output, plan_file=plan_file, as_json=as_json)
