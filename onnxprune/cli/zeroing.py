"""Commands that set weights to zero: sparsify, sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune import __version__
from onnxprune.cli.options import (
    DATA_HELP,
    device_option,
    json_option,
    model_argument,
    output_option,
    samples_options,
    sparsifying_options,
    threads_option,
)
from onnxprune.cli.stages import load_model, numbers_of, preprocess_of, size_of
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.model import Model


@click.command()
@model_argument
@output_option
@click.option("--sparsity", type=float, help="Share that becomes zero, in [0, 1).")
@click.option("--pattern", metavar="N:M", help="Instead: of every M inputs of a unit the N largest weights stay (2:4).")
@click.option(
    "--what", type=click.Choice(["weight", "unit"]), default="weight", show_default=True,
    help="Single weights, or whole filters and neurons of smallest norm.",
)  # fmt: skip
@sparsifying_options
@click.option("--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it.")
@json_option
def sparsify(**o: Any) -> None:
    """Set the smallest weights to zero; shapes stay.

    \b
    onnxprune sparsify m.onnx -o s.onnx --sparsity 0.9
    onnxprune sparsify m.onnx -o s.onnx --pattern 2:4

    The file is as large as before until it is compressed, and no faster on a runtime without sparse kernels.
    """
    from onnxprune import show
    from onnxprune.compression import compressed_size, nonzero_parameters
    from onnxprune.files import check_output
    from onnxprune.model import save
    from onnxprune.passes import SparsifyWeights
    from onnxprune.passes.sparsify_weights import zeros_table
    from onnxprune.pipeline import sparsify as run

    if (o["sparsity"] is None) == (o["pattern"] is None):
        raise click.UsageError("give either --sparsity or --pattern (for example --sparsity 0.9)")
    if o["pattern"] is not None and o["scope"] is not None:
        raise click.UsageError("--pattern holds in every weight: --scope does not go with it")
    rule = SparsifyWeights(
        o["sparsity"] or 0.0, o["what"], o["scope"] or "layer", o["pattern"] or "", o["exclude"], o["include_last"]
    )
    check_output(o["output"], o["model"])
    model = load_model(o["model"])
    sparse = run(model, rule)
    weights = zeros_table(sparse, rule)
    save(sparse, o["output"], external=o["external"])
    pruned = [w for w in weights if w.pruned]
    share = sum(w.zeros for w in pruned) / sum(w.elements for w in pruned)
    sizes = [compressed_size(m) for m in (model, sparse)]
    left = [nonzero_parameters(m) for m in (model, sparse)]
    if o["as_json"]:
        show.emit_json(
            {
                "output": str(o["output"]), "sparsity": share, "weights": [vars(w) for w in weights],
                "parameters": {"before": left[0], "after": left[1]},
                "compressed_bytes": {"before": sizes[0], "after": sizes[1]},
            }
        )  # fmt: skip
        return
    show.table(
        f"{o['model'].name} -> {o['output']}",
        ["weight", "shape", "zeros", ""],
        [
            [w.name, "x".join(map(str, w.shape)), str(w.zeros),
             show.percent(w.zeros / w.elements) + ("" if w.pruned else " (whole)")]
            for w in weights
        ],
    )  # fmt: skip
    click.echo(f"{show.percent(share)} of the pruned weights are zero")
    click.echo(f"parameters that are not zero: {show.count(left[0])} -> {show.count(left[1])}")
    click.echo(f"compressed (zlib): {show.size(sizes[0])} -> {show.size(sizes[1])}")


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
    from onnxprune import show
    from onnxprune.data import load_data
    from onnxprune.files import check_output, write_text
    from onnxprune.model import save
    from onnxprune.weight_unit import SparsityPoint, study

    folder: Path | None = None if o["output"].suffix == ".csv" else o["output"]
    table = o["output"] if folder is None else folder / "sweep.csv"
    if folder is not None and not folder.is_dir():
        check_output(folder, o["model"])
        if folder.exists():
            raise OnnxPruneError(f"{str(folder)!r} is neither a .csv file nor a folder", fix="name another output")
    else:
        check_output(table, o["model"])
    if o["plot"]:
        from onnxprune.pictures import check_plot

        check_plot(o["plot"])
        check_output(o["plot"], o["model"])
    points = numbers_of(o["points"], "--points")
    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    model = load_model(o["model"])

    def keep(point: SparsityPoint, pruned: Model) -> None:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            save(pruned, folder / f"{point.what}-{point.sparsity!r}.onnx")

    with show.progress("measuring", quiet=o["as_json"]) as tick:
        found = study(
            model, data, what=[w.strip() for w in o["what"].split(",") if w.strip()], points=points, end=o["end"],
            scope=o["scope"] or "layer", exclude=o["exclude"], include_last=o["include_last"],
            preprocess=preprocess_of(o), batch=o["batch"], threads=o["threads"], device=o["device"], tool=__version__,
            keep=keep, progress=tick,
        )  # fmt: skip
    write_text(table, found.to_csv())
    if o["plot"]:
        from onnxprune.pictures import plot_study

        plot_study(found, o["plot"], name=o["model"].name)
    if o["as_json"]:
        show.emit_json(found.as_dict())
        return
    ends = "units removed" if o["end"] == "strip" else "zeros"
    show.table(
        f"{o['model'].name} on {found.data}, {found.images} samples, {ends}",
        ["", "sparsity", "reached", "top-1", "+-", "loss", "parameters", "compressed"],
        [
            [p.what, show.percent(p.sparsity), show.percent(p.reached),
             show.percent(p.top1), show.percent(p.top1_error), f"{p.loss:.4f}", show.count(p.parameters),
             show.size(p.compressed_bytes)]
            for p in found.points
        ],
    )  # fmt: skip
    click.echo(f"written: {table}")
