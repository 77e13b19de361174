"""The command `onnxprune evaluate`."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli._options import (
    DATA_HELP,
    device_option,
    json_option,
    model_argument,
    samples_options,
    threads_option,
)
from onnxprune.cli._stages import load_model, preprocess_of, size_of


@click.command()
@model_argument
@click.option("--data", required=True, help=DATA_HELP)
@samples_options
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Samples per run.")
@threads_option
@device_option
@json_option
def evaluate(**o: Any) -> None:
    """Accuracy of a classifier on labelled data."""
    from onnxprune._utils import formatting
    from onnxprune.cli import _display
    from onnxprune.execution.data import load_data
    from onnxprune.execution.evaluation import evaluate as run

    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    model = load_model(o["model"])
    with _display.progress("evaluating", quiet=o["as_json"]) as tick:
        result = run(
            model, data, preprocess=preprocess_of(o), batch=o["batch"], threads=o["threads"], device=o["device"],
            progress=tick,
        )  # fmt: skip
    if result.warning:
        _display.note(f"Warning: {result.warning}")
    if o["as_json"]:
        _display.emit_json({"model": str(o["model"]), "data": data.name, **vars(result)})
        return
    _display.table(
        f"{o['model'].name} on {data.name}, {result.images} samples, {result.provider}",
        ["top-1", "+-", "top-5", "loss"],
        [
            [
                formatting.percent(result.top1),
                formatting.percent(result.top1_error),
                formatting.percent(result.top5),
                f"{result.loss:.4f}",
            ]
        ],
    )
