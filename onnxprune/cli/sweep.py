"""The command `onnxprune sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune import __version__
from onnxprune.cli._options import (
    DATA_HELP,
    device_option,
    json_option,
    model_argument,
    samples_options,
    sparsifying_options,
    threads_option,
)
from onnxprune.cli._stages import load_model, numbers_of, preprocess_of, size_of
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.ir.model import Model


@click.command()
@model_argument
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--what", default="weight,unit", show_default=True, help="weight, unit or both.")
@click.option(
    "--points", default="0,0.25,0.5,0.6,0.7,0.8,0.9,0.95,0.97,0.99", show_default=True, help="Sparsities, in [0, 1)."
)
@click.option(
    "--end", type=click.Choice(["zeros", "strip"]), default="zeros", show_default=True,
    help="Units are set to zero, or removed and the result verified.",
)  # fmt: skip
@sparsifying_options
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="A .csv file for the table; or a folder for sweep.csv and every pruned model.",
)  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy and size to this .png or .svg file.")
@samples_options
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Samples per run.")
@threads_option
@device_option
@json_option
def sweep(**o: Any) -> None:
    """Accuracy and compressed size against sparsity: single weights beside whole units.

    \b
    onnxprune sweep m.onnx --data digits -o sweep.csv --plot sweep.png
    onnxprune sweep m.onnx --data digits -o runs --what unit --end strip
    """
    from onnxprune._utils import formatting
    from onnxprune._utils.atomic_files import check_output, write_text
    from onnxprune.cli import _display
    from onnxprune.execution.data import load_data
    from onnxprune.ir.model import save
    from onnxprune.studies.sparsity_study import SparsityPoint, study

    folder: Path | None = None if o["output"].suffix == ".csv" else o["output"]
    table = o["output"] if folder is None else folder / "sweep.csv"
    if folder is not None and not folder.is_dir():
        check_output(folder, o["model"])
        if folder.exists():
            raise OnnxPruneError(f"{str(folder)!r} is neither a .csv file nor a folder", fix="name another output")
    else:
        check_output(table, o["model"])
    if o["plot"]:
        from onnxprune.studies.plots import check_plot

        check_plot(o["plot"])
        check_output(o["plot"], o["model"])
    points = numbers_of(o["points"], "--points")
    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    model = load_model(o["model"])

    def keep(point: SparsityPoint, pruned: Model) -> None:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            save(pruned, folder / f"{point.what}-{point.sparsity!r}.onnx")

    with _display.progress("measuring", quiet=o["as_json"]) as tick:
        found = study(
            model, data, what=[w.strip() for w in o["what"].split(",") if w.strip()], points=points, end=o["end"],
            scope=o["scope"] or "layer", exclude=o["exclude"], include_last=o["include_last"],
            preprocess=preprocess_of(o), batch=o["batch"], threads=o["threads"], device=o["device"], tool=__version__,
            keep=keep, progress=tick,
        )  # fmt: skip
    write_text(table, found.to_csv())
    if o["plot"]:
        from onnxprune.studies.plots import plot_study

        plot_study(found, o["plot"], name=o["model"].name)
    if o["as_json"]:
        _display.emit_json(found.as_dict())
        return
    ends = "units removed" if o["end"] == "strip" else "zeros"
    _display.table(
        f"{o['model'].name} on {found.data}, {found.images} samples, {ends}",
        ["", "sparsity", "reached", "top-1", "+-", "loss", "parameters", "compressed"],
        [
            [p.what, formatting.percent(p.sparsity), formatting.percent(p.reached),
             formatting.percent(p.top1), formatting.percent(p.top1_error), f"{p.loss:.4f}",
             formatting.count(p.parameters),
             formatting.size(p.compressed_bytes)]
            for p in found.points
        ],
    )  # fmt: skip
    click.echo(f"written: {table}")
