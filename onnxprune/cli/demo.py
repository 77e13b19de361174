"""The command `onnxprune demo`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.options import Options, option


@dataclass(frozen=True, kw_only=True, repr=False)
class DemoOutput(Options):
    """The model that the demo writes."""

    output: Path = option(
        Path("digits_cnn-small.onnx"), help="Pruned model to write.", heading="Output", flag=("-o", "--output")
    )
    full: bool = option(
        False, help="Also retrain, for a minute or two; needs PyTorch (the extra train).", heading="Output"
    )


@click.command(cls=Command)
@takes_options
@json_option
def demo(output: DemoOutput, as_json: bool) -> None:
    """Prune, prove, recover and measure a bundled model, in seconds."""
    # The matrices of this network are small: threads of BLAS would wait for each other longer than they compute.
    # numpy reads this when it is first imported, which is below.
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from onnxprune.cli._support.demo import run

    run(output.output, full=output.full, as_json=as_json)
