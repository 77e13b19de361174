"""The command `onnxprune evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, model_argument, takes_options
from onnxprune.cli._stages import load_model, preprocess_of, read_data
from onnxprune.options import Execution, RequiredData


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def evaluate(model: Path, data: RequiredData, execution: Execution, as_json: bool) -> None:
    """Measure the accuracy of a classifier on labelled data."""
    from onnxprune._utils import formatting
    from onnxprune.cli import _display
    from onnxprune.execution.tasks.evaluation import evaluate as run

    samples = read_data(data.data, data)
    loaded = load_model(model)
    with _display.progress("evaluating", quiet=as_json) as tick:
        result = run(
            loaded, samples, preprocess=preprocess_of(data), batch=execution.batch, threads=execution.threads,
            device=execution.device, progress=tick,
        )  # fmt: skip
    if result.warning:
        _display.note(f"Warning: {result.warning}")
    if as_json:
        _display.emit_json({"model": str(model), "data": samples.name, **vars(result)})
        return
    _display.table(
        f"{model.name} on {samples.name}, {result.images} samples, {result.provider}",
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
