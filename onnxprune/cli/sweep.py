"""The command `onnxprune sweep`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune import __version__
from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import load_model, read_data
from onnxprune.errors import OnnxPruneError
from onnxprune.options import Events, Execution, InputShapes, Options, RequiredData, SparsitySweep, option

if TYPE_CHECKING:
    from onnxprune.ir.model import Model


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepOutput(Options):
    """Files of `sweep`."""

    output: Path = option(
        heading="Output", flag=("-o", "--output"),
        help="A .csv file for the table; or a folder for sweep.csv and every pruned model.",
    )  # fmt: skip
    plot: Path | None = option(None, help="Draw accuracy and size to this .png or .svg file.", heading="Output")


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def sweep(
    model: Path,
    output: SweepOutput,
    data: RequiredData,
    study: SparsitySweep,
    execution: Execution,
    shapes: InputShapes,
    events: Events,
    as_json: bool,
) -> None:
    """Measure accuracy and compressed size over sparsity.

    Single weights and whole units (filters, neurons) are compared.

    \b
    onnxprune sweep m.onnx --data digits -o sweep.csv --plot sweep.png
    onnxprune sweep m.onnx --data digits -o runs --what unit --end strip
    """
    from onnxprune._utils.files.atomic_files import check_output, write_text
    from onnxprune._utils.output import formatting
    from onnxprune.cli._support import display
    from onnxprune.ir.writer import save
    from onnxprune.studies.sparsity_study import SparsityPoint
    from onnxprune.studies.sparsity_study import study as run

    folder: Path | None = None if output.output.suffix == ".csv" else output.output
    table = output.output if folder is None else folder / "sweep.csv"
    if folder is not None and not folder.is_dir():
        check_output(folder, model)
        if folder.exists():
            raise OnnxPruneError(f"{str(folder)!r} is neither a .csv file nor a folder", fix="name another output")
    else:
        check_output(table, model)
    if output.plot is not None:
        from onnxprune.studies.plots import check_plot

        check_plot(output.plot)
        check_output(output.plot, model)
    original = load_model(model, shapes)
    samples = read_data(data.data, data, original, labels=True, device=execution.device)

    def keep(point: SparsityPoint, pruned: Model) -> None:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            save(pruned, folder / f"{point.what}-{point.sparsity!r}.onnx")

    with display.progress("measuring", quiet=as_json) as tick:
        found = run(
            original, samples.data, what=study.what, points=study.points, end=study.end, scope=study.scope or "layer",
            exclude=study.exclude, include_last=study.include_last, preprocess=samples.preprocess,
            batch=execution.batch, threads=execution.threads, device=execution.device, tool=__version__, keep=keep,
            progress=tick,
        )  # fmt: skip
    write_text(table, found.to_csv())
    if output.plot is not None:
        from onnxprune.studies.plots import plot_study

        plot_study(found, output.plot, name=model.name)
    if display.finished(as_json, lambda: {**found.as_dict(), "preprocess": samples.preprocess.as_dict()}):
        return
    ends = "units removed" if study.end == "strip" else "zeros"
    display.table(
        f"{model.name} on {found.data}, {found.images} samples, {ends}",
        ["", "sparsity", "reached", "top1", "+-", "loss", "params", "compressed"],
        [
            [p.what, formatting.percent(p.sparsity), formatting.percent(p.reached),
             formatting.percent(p.top1), formatting.percent(p.top1_error), f"{p.loss:.4f}",
             formatting.count(p.parameters),
             formatting.size(p.compressed_bytes)]
            for p in found.points
        ],
    )  # fmt: skip
    click.echo(f"written: {table}")
