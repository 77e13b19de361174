"""The command `onnxprune verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import DATA_HELP, device_option, json_option, samples_options
from onnxprune.cli._stages import load_model, preprocess_of, size_of


@click.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--tolerance", type=float, help="Largest relative difference allowed; default by element type.")
@click.option("--data", help=f"Whole runs on real inputs, beside random ones: {DATA_HELP}")
@samples_options
@device_option
@json_option
def verify(**o: Any) -> None:
    """Check a pruned file against its masked original."""
    from onnxprune.cli import _display
    from onnxprune.execution.data import load_data, model_batches
    from onnxprune.pipeline import analyze_for
    from onnxprune.plans import load_plan
    from onnxprune.verification import verify as check

    made = load_plan(o["plan_file"])
    original = load_model(o["original"])
    analysis = analyze_for(original, made)
    feeds = None
    if o["data"]:
        data = load_data(o["data"], images=o["images"] or 64, size=size_of(o["size"]))
        feeds = [feed for feed, _ in model_batches(original, data, preprocess_of(o))]
    proof = check(analysis, made, load_model(o["pruned"]), feeds=feeds, tolerance=o["tolerance"], device=o["device"])
    if o["as_json"]:
        _display.emit_json(proof.as_dict())
    else:
        click.echo(_display.proof_line(proof))
