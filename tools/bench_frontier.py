"""Measure the cost of a frontier in points: CPU seconds of many points over those of one.

    python tools/bench_frontier.py models/digits_cnn.onnx --data digits:train --points 10

Each frontier runs in a process of its own with one thread, start of Python included. CPU seconds are counted, so that
other work on the machine matters little. The drop of every point is printed as well.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command(help=__doc__)
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data", default="digits:train", show_default=True)
@click.option("--images", default=1000, show_default=True)
@click.option("--points", default=10, show_default=True)
@click.option("--least", default=0.2, show_default=True, help="Share of the MACs that the last point keeps.")
@click.option("--criteria", default="obs", show_default=True)
def main(models: tuple[Path, ...], data: str, images: int, points: int, least: float, criteria: str) -> None:
    """Measure one point and all points of every model."""
    for model in models:
        seconds = []
        with tempfile.TemporaryDirectory() as name:
            for count in (1, points):
                folder = Path(name) / str(count)
                seconds.append(cpu_seconds([
                    sys.executable, "-m", "onnxprune", "frontier", str(model), "--data", data, "--images", str(images),
                    "--points", str(count), "--least", str(least), "--criteria", criteria, "-o", str(folder), "--json",
                ]))  # fmt: skip
            found = json.loads((folder / "frontier.json").read_text())
        curve = " ".join(f"{p['costs']['macs']:.2f}:{p['drop']:.2f}" for p in found["points"])
        click.echo(f"{model.name}: 1 point {seconds[0]:.1f} s, {points} points {seconds[1]:.1f} s, "
                   f"{seconds[1] / seconds[0]:.2f} times; drop by share of the MACs {curve}")  # fmt: skip


if __name__ == "__main__":
    main()
