"""The command `onnxprune demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, takes_options
from onnxprune.options import Options, option


@dataclass(frozen=True, kw_only=True, repr=False)
class DemoOutput(Options):
    """The model that the demo writes."""

    output: Path = option(
        Path("digits_cnn-small.onnx"), help="Pruned model to write.", heading="Output", flag=("-o", "--output")
    )


@click.command(cls=Command)
@takes_options
@json_option
def demo(output: DemoOutput, as_json: bool) -> None:
    """The whole story on a model and data that ship."""
    from onnxprune.cli._demo import run

    run(output.output, as_json)
