"""The command `onnxprune bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import device_option, json_option
from onnxprune.cli._stages import load_model


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores.")
@click.option("--runs", default=30, show_default=True, type=click.IntRange(1), help="Timed runs of each model.")
@click.option("--warmup", default=5, show_default=True, type=click.IntRange(0), help="Runs before, not counted.")
@device_option
@json_option
def bench(models: tuple[Path, ...], as_json: bool, **o: Any) -> None:
    """Measured latency of one or more models, MACs, parameters, bytes.

    The models are run in turn, A B A B ..., so that a drifting machine does not decide. Speed-up and efficiency
    (speed-up x share of MACs kept: 1 means that fewer MACs are fully fewer milliseconds) are over the first model.
    """
    from onnxprune._utils import formatting
    from onnxprune.cli import _display
    from onnxprune.latency.bench import bench as run

    loaded = [load_model(path) for path in models]
    with _display.progress("measuring", quiet=as_json) as tick:
        rows = run(loaded, progress=tick, **o)
    if as_json:
        _display.emit_json([{"model": str(p), **r.as_dict()} for p, r in zip(models, rows, strict=True)])
        return
    _display.table(
        f"batch {o['batch']}, {o['threads'] or 'all'} thread(s), {rows[0].provider}, median of {o['runs']}",
        ["model", "latency", "spread", "MACs", "params", "weights", "speed-up", "effic."],
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
