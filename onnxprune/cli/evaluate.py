"""The command `onnxprune evaluate`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import load_models, read_data
from onnxprune.options import Events, Execution, InputShapes, ReferenceModel, RequiredData, TaskOptions


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def evaluate(
    model: Path,
    data: RequiredData,
    tasks: TaskOptions,
    original: ReferenceModel,
    shapes: InputShapes,
    execution: Execution,
    events: Events,
    as_json: bool,
) -> None:
    """Measure a model on data: accuracy, mAP, mIoU, text, or agreement with the original.

    \b
    onnxprune evaluate m.onnx --data val/
    onnxprune evaluate s.onnx --data images/ --reference m.onnx
    onnxprune evaluate d.onnx --data coco.json --task detect

    The task is guessed from the model and the targets, and stated. Data without targets is compared with the outputs
    of --reference.
    """
    from onnxprune.cli._support import display
    from onnxprune.execution.tasks.evaluation import evaluate as run

    loaded, *others = load_models([model, *filter(None, [original.reference])], shapes)
    whole = others[0] if others else None
    labels = whole is None and tasks.task in (None, "classify")
    found = read_data(data.data, data, loaded, labels=labels, device=execution.device)
    samples = found.data
    with display.progress("evaluating", quiet=as_json) as tick:
        result = run(
            loaded, samples, preprocess=found.preprocess, task=tasks, reference=whole, batch=execution.batch,
            threads=execution.threads, device=execution.device, progress=tick,
        )  # fmt: skip
    for warning in result.warnings:
        display.note(f"Warning: {warning}")
    document = {"model": str(model), "data": samples.name, **result.as_dict()}
    document["preprocess"] = found.preprocess.as_dict()
    document["warnings"] = [*samples.warnings, *result.warnings]
    if display.finished(as_json, lambda: document):
        return
    display.note(result.reason)
    display.table(
        f"{model.name} on {samples.name}, {result.samples} samples, {result.provider}",
        [cell for title, _, error in result.rows() for cell in ((title, "+-") if error else (title,))],
        [[cell for _, value, error in result.rows() for cell in ((value, error) if error else (value,))]],
    )
