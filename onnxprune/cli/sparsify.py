"""The command `onnxprune sparsify`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import load_model
from onnxprune.options import ModelOutput, Sparsifying


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def sparsify(model: Path, output: ModelOutput, sparsifying: Sparsifying, as_json: bool) -> None:
    """Set the smallest weights to zero; shapes do not change.

    \b
    onnxprune sparsify m.onnx -o s.onnx --sparsity 0.9
    onnxprune sparsify m.onnx -o s.onnx --pattern 2:4

    The file is smaller only if it is compressed, and faster only on a runtime with sparse kernels.
    """
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune._utils.output import formatting
    from onnxprune.cli._support import display
    from onnxprune.ir.compressed_size import compressed_size, nonzero_parameters
    from onnxprune.ir.writer import save
    from onnxprune.passes import SparsifyWeights
    from onnxprune.passes.sparsify_weights import zeros_table
    from onnxprune.pipeline import sparsify as run

    if (sparsifying.sparsity is None) == (sparsifying.pattern is None):
        raise click.UsageError("use either --sparsity or --pattern (for example --sparsity 0.9)")
    if sparsifying.pattern is not None and sparsifying.scope is not None:
        raise click.UsageError("--pattern applies to every weight: leave out --scope")
    rule = SparsifyWeights(
        sparsifying.sparsity or 0.0, sparsifying.what, sparsifying.scope or "layer", sparsifying.pattern or "",
        sparsifying.exclude, sparsifying.include_last,
    )  # fmt: skip
    check_output(output.output, model)
    original = load_model(model)
    sparse = run(original, rule)
    weights = zeros_table(sparse, rule)
    save(sparse, output.output, external=output.external)
    pruned = [w for w in weights if w.pruned]
    share = sum(w.zeros for w in pruned) / sum(w.elements for w in pruned)
    sizes = [compressed_size(m) for m in (original, sparse)]
    left = [nonzero_parameters(m) for m in (original, sparse)]
    if as_json:
        display.emit_json(
            {
                "output": str(output.output), "sparsity": share, "weights": [vars(w) for w in weights],
                "params": {"before": left[0], "after": left[1]},
                "compressed_bytes": {"before": sizes[0], "after": sizes[1]},
            }
        )  # fmt: skip
        return
    display.table(
        f"{model.name} -> {output.output}",
        ["weight", "shape", "zeros", ""],
        [
            [w.name, "x".join(map(str, w.shape)), str(w.zeros),
             formatting.percent(w.zeros / w.elements) + ("" if w.pruned else " (whole)")]
            for w in weights
        ],
    )  # fmt: skip
    click.echo(f"{formatting.percent(share)} of the pruned weights are zero")
    click.echo(f"params that are not zero: {formatting.count(left[0])} -> {formatting.count(left[1])}")
    click.echo(f"compressed (zlib): {formatting.size(sizes[0])} -> {formatting.size(sizes[1])}")
