"""The command `onnxprune demo`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._options import json_option


@click.command()
@click.option(
    "-o", "--output", default="digits_cnn-small.onnx", show_default=True, type=click.Path(path_type=Path),
    help="Where the pruned model goes.",
)  # fmt: skip
@json_option
def demo(output: Path, as_json: bool) -> None:
    """The whole story on a model and data that ship."""
    from onnxprune.cli._demo import run

    run(output, as_json)
