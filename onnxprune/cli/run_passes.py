"""The command that applies passes by name: run-passes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli._options import json_option, model_argument, output_option
from onnxprune.cli._stages import load_model, params_of
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.passes import Pass


@click.command("run-passes")
@model_argument
@click.argument("passes", nargs=-1, required=True, metavar="PASS...")
@output_option
@click.option("--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it.")
@json_option
def run_passes(**o: Any) -> None:
    """Apply passes by name, in order (`passes` lists them).

    Parameters stand behind colons. The rewritten graph is checked, what it computes is not compared.

    \b
    onnxprune run-passes m.onnx fold_shapes fuse_batchnorm -o folded.onnx
    onnxprune run-passes m.onnx unshare_constants:largest=64 -o u.onnx
    """
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.ir.model import save
    from onnxprune.passes import Pipeline

    check_output(o["output"], o["model"])
    steps = [_made(text) for text in o["passes"]]
    model = load_model(o["model"])
    after = Pipeline(steps)(model)
    save(after, o["output"], external=o["external"])
    counts = [len(m.graph.nodes) for m in (model, after)]
    if o["as_json"]:
        _display.emit_json({"output": str(o["output"]), "passes": [s.name for s in steps], "nodes": counts})
    else:
        click.echo(f"{o['output']}: {counts[1]} nodes, {counts[0]} before")


def _made(text: str) -> Pass:
    from onnxprune.passes import make

    name, *pairs = text.split(":")
    try:
        made = make(name, **params_of(tuple(pairs)))
    except (TypeError, ValueError) as err:  # a pass refuses a value in its own way
        raise OnnxPruneError(f"the pass {name!r} refuses its parameters: {err}") from err
    if hasattr(made, "plan"):
        raise OnnxPruneError(f"the pass {name!r} works by a plan", fix="onnxprune apply, or recover")
    return made
