"""The command `onnxprune verify`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, takes_options
from onnxprune.cli._stages import image_size, load_model, preprocess_of
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
    from onnxprune.cli import _display
    from onnxprune.execution.data import load_data, model_batches
    from onnxprune.pipeline import analyze_for
    from onnxprune.plans import load_plan
    from onnxprune.verification import verify as check

    plan = load_plan(plan_file)
    whole = load_model(original, shapes)
    analysis = analyze_for(whole, plan)
    feeds = None
    if data.data:
        samples = load_data(data.data, images=data.images or 64, size=image_size(data))
        feeds = [feed for feed, _ in model_batches(whole, samples, preprocess_of(data))]
    proof = check(analysis, plan, load_model(pruned), feeds=feeds, tolerance=tolerance.tolerance, device=device.device)
    if as_json:
        _display.emit_json(proof.as_dict())
    else:
        click.echo(_display.proof_line(proof))
