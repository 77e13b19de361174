"""The command `onnxprune bench`."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli._options import Command, json_option, takes_options
from onnxprune.cli._stages import load_models
from onnxprune.options import Benchmark, Events, InputShapes


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@takes_options
@json_option
def bench(models: tuple[Path, ...], timing: Benchmark, shapes: InputShapes, events: Events, as_json: bool) -> None:
    """Measure latency beside MACs, parameters and bytes.

    Models run in turn, A B A B ..., so that a drift of the machine affects all of them. Speed-up and efficiency
    (speed-up x share of MACs kept; 1: latency falls as much as the MACs) are relative to the first model.
    """
    from onnxprune._utils import formatting
    from onnxprune.cli import _display
    from onnxprune.latency.bench import bench as run

    loaded = load_models(models, shapes)
    with _display.progress("measuring", quiet=as_json) as tick:
        rows = run(
            loaded, batch=timing.batch, threads=timing.threads, runs=timing.runs, warmup=timing.warmup,
            device=timing.device, progress=tick,
        )  # fmt: skip
    named = list(zip(models, rows, strict=True))
    if _display.finished(as_json, lambda: [{"model": str(p), **r.as_dict()} for p, r in named]):
        return
    _display.table(
        f"batch {timing.batch}, {timing.threads or 'all'} thread(s), {rows[0].provider}, median of {timing.runs}",
        ["model", "latency", "spread", "MACs", "params", "bytes", "speed-up", "effic."],
        [
            [
                p.name, formatting.seconds(r.latency.median),
                f"+-{50 * (r.latency.high - r.latency.low) / r.latency.median:.0f} %", formatting.count(r.cost.macs),
                formatting.count(r.cost.params), formatting.size(r.cost.bytes), f"{r.speedup:.2f}",
                f"{r.efficiency:.2f}",
            ]
            for p, r in zip(models, rows, strict=True)
        ],
    )  # fmt: skip
