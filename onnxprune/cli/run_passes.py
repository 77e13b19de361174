"""The command `onnxprune run-passes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, read_pairs, takes_options
from onnxprune.cli._support.stages import load_model
from onnxprune.errors import OnnxPruneError
from onnxprune.options import InputShapes, ModelOutput

if TYPE_CHECKING:
    from onnxprune.passes import Pass


@click.command("run-passes", cls=Command)
@model_argument
@click.argument("passes", nargs=-1, required=True, metavar="PASS...")
@takes_options
@json_option
def run_passes(model: Path, passes: tuple[str, ...], output: ModelOutput, shapes: InputShapes, as_json: bool) -> None:
    """Apply passes by name, in order (`passes` lists them).

    Parameters follow colons. The rewritten graph is checked; its outputs are not compared.

    \b
    onnxprune run-passes m.onnx fold_shapes fuse_batchnorm -o folded.onnx
    onnxprune run-passes m.onnx unshare_constants:largest=64 -o u.onnx
    """
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.ir.writer import save
    from onnxprune.passes import Pipeline

    check_output(output.output, model)
    steps = [_made(text) for text in passes]
    original = load_model(model, shapes)
    after = Pipeline(steps)(original)
    save(after, output.output, external=output.external)
    counts = [len(m.graph.nodes) for m in (original, after)]
    if as_json:
        display.emit_json({"output": str(output.output), "passes": [s.name for s in steps], "nodes": counts})
    else:
        click.echo(f"{output.output}: {counts[1]} nodes, {counts[0]} before")


def _made(text: str) -> Pass:
    from onnxprune.passes import make

    name, *pairs = text.split(":")
    try:
        made = make(name, **read_pairs(pairs))
    except (TypeError, ValueError) as err:  # passes check their own parameters
        raise OnnxPruneError(f"invalid parameters of the pass {name!r}: {err}") from err
    if hasattr(made, "plan"):
        raise OnnxPruneError(f"the pass {name!r} needs a plan", fix="use onnxprune apply, or recover")
    return made
