"""The command `onnxprune frontier`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import constraints_on, evaluation_split, load_model
from onnxprune.options import (
    AnalysisOptions,
    Constraints,
    Events,
    FrontierOptions,
    FrontierOutput,
    InputShapes,
    RequiredData,
    Restarting,
    TaskOptions,
)


@click.command(cls=Command, advanced=("exclude", "protect", "allocators", "runtime"))
@model_argument
@takes_options
@json_option
def frontier(
    model: Path,
    output: FrontierOutput,
    shapes: InputShapes,
    data: RequiredData,
    tasks: TaskOptions,
    options: FrontierOptions,
    constraints: Constraints,
    analysis: AnalysisOptions,
    restarting: Restarting,
    events: Events,
    as_json: bool,
) -> None:
    """Measure accuracy over cost: a model at every point of whole curves.

    \b
    onnxprune frontier m.onnx --data images/ -o frontier/
    onnxprune frontier m.onnx --data images/ -o frontier/ --criteria obs,l2

    Every point is a folder with its model, proved, recovered and evaluated on held-out samples; `report FOLDER` draws
    the curves. The same command continues an interrupted run.
    """
    from onnxprune.cli._support import display
    from onnxprune.pipeline import FrontierSettings
    from onnxprune.pipeline import measure_frontier as run

    original = load_model(model, shapes)
    fit, evaluation = evaluation_split(data.data, options.val_data, data, original, options.device)
    settings = FrontierSettings(
        measure=options.minimize, points=options.points, least=options.least, criteria=options.criteria,
        allocators=options.allocators or (None,), constraints=constraints_on(options, options.device, constraints),
        attention=analysis.attention, include_inexact=analysis.include_inexact, quantize=options.quantize or "",
        reconstruct_blocks=options.reconstruct_blocks, series=options.series or ("",),
        task=tasks, latency=options.latency, threads=options.threads, runs=options.runs, runtime=options.runtime,
        runtime_options=options.runtime_options,
    )  # fmt: skip
    with display.progress("measuring points", quiet=as_json) as tick:
        found = run(
            original, fit, evaluation, output.output, settings, jobs=options.jobs, backend=options.backend,
            address=options.address, restart=restarting.restart, progress=tick,
        )  # fmt: skip
    if display.finished(as_json, lambda: {"output": str(output.output), **found.as_dict()}):
        return
    columns = ["curve", f"{found.measure} kept", found.metric, "drop", "Pareto"]
    display.table(f"{model.name} -> {output.output}", columns, found.rows())
    for note in found.notes:
        display.note(f"note: {note}")
    click.echo(f"written: {output.output / 'frontier.json'}; draw it with: onnxprune report {output.output}")
