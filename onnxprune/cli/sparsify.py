"""The command `onnxprune sparsify`."""

from __future__ import annotations

from typing import Any

import click

from onnxprune.cli._options import json_option, model_argument, output_option, sparsifying_options
from onnxprune.cli._stages import load_model


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
    from onnxprune._utils import formatting
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
    from onnxprune.ir.model import save
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
        _display.emit_json(
            {
                "output": str(o["output"]), "sparsity": share, "weights": [vars(w) for w in weights],
                "parameters": {"before": left[0], "after": left[1]},
                "compressed_bytes": {"before": sizes[0], "after": sizes[1]},
            }
        )  # fmt: skip
        return
    _display.table(
        f"{o['model'].name} -> {o['output']}",
        ["weight", "shape", "zeros", ""],
        [
            [w.name, "x".join(map(str, w.shape)), str(w.zeros),
             formatting.percent(w.zeros / w.elements) + ("" if w.pruned else " (whole)")]
            for w in weights
        ],
    )  # fmt: skip
    click.echo(f"{formatting.percent(share)} of the pruned weights are zero")
    click.echo(f"parameters that are not zero: {formatting.count(left[0])} -> {formatting.count(left[1])}")
    click.echo(f"compressed (zlib): {formatting.size(sizes[0])} -> {formatting.size(sizes[1])}")
