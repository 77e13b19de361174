"""The command `onnxprune verify`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.cli._support.stages import read_data
from onnxprune.options import Device, InputShapes, Tolerance, VerificationData


@click.command(cls=Command)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@takes_options
@json_option
def verify(
    original: Path,
    pruned: Path,
    plan_file: Path,
    tolerance: Tolerance,
    data: VerificationData,
    device: Device,
    shapes: InputShapes,
    as_json: bool,
) -> None:
    """Prove a pruned model against its masked original."""
    from onnxprune.cli._support import display
    from onnxprune.cli._support.inputs import named_origin, read_models, read_plan
    from onnxprune.execution.calibration import Calibration
    from onnxprune.execution.data import model_batches
    from onnxprune.pipeline import analyze_for
    from onnxprune.verification import verify as check

    plan = read_plan(plan_file)
    whole, small = read_models(original, pruned, plan, shapes)
    analysis = analyze_for(whole, plan)
    feeds = read = None
    if data.data:
        found = read_data(data.data, data, whole, device=device.device, images=64)
        feeds = [feed for feed, _ in model_batches(whole, found.data, found.preprocess)]
        read = Calibration(found.data, found.preprocess).as_dict()
    with named_origin(whole, small, plan, pruned):
        proof = check(analysis, plan, small, feeds=feeds, tolerance=tolerance.tolerance, device=device.device)
    if as_json:
        display.emit_json({**proof.as_dict(), **plan.removed_counts(), "data": read})
    else:
        click.echo(display.proof_line(proof))
