"""The command `onnxprune bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.cli._support.stages import load_models, runtime_of
from onnxprune.options import Benchmark, Events, InputShapes, Profiling

if TYPE_CHECKING:
    from onnxprune.latency.bench import BenchResults


@click.command(cls=Command)
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@takes_options
@json_option
def bench(
    models: tuple[Path, ...], timing: Benchmark, profiling: Profiling, shapes: InputShapes, events: Events,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure latency beside MACs, params and bytes.

    Models run in turn, A B A B ..., so that a drift of the machine affects all of them, and disturbed rounds are
    repeated. Speed-up and efficiency (speed-up x share of MACs kept; 1: latency falls as much as the MACs) are relative
    to the first model.

    \b
    onnxprune bench m.onnx small.onnx
    onnxprune bench m.onnx small.onnx --runtime openvino --profile
    onnxprune bench m.onnx small.onnx --runtime "command:./on_jetson.sh {model}"
    """
    from onnxprune.cli._support import display
    from onnxprune.execution.machine import measured_on
    from onnxprune.latency.bench import BenchStopped
    from onnxprune.latency.bench import bench as run

    loaded = load_models(models, shapes)
    where = runtime_of(timing, timing.device)
    try:
        with display.progress("measuring", quiet=as_json) as tick:
            rows = run(
                loaded, batch=timing.batch, threads=timing.threads, runs=timing.runs, warmup=timing.warmup,
                runtime=where, progress=tick,
            )  # fmt: skip
    except BenchStopped as err:
        if err.results:
            some = [models[i] for i in err.measured]
            err.partial = _entries(some, err.results)
            if not as_json:
                _show(some, err.results, timing)
        raise
    found = None
    if profiling.profile:
        from onnxprune.latency.layers import profile_layers

        with display.progress("profiling", quiet=as_json):
            found = profile_layers(loaded[0], loaded[-1], where, batch=timing.batch, threads=timing.threads)
    machine = measured_on(str(where.describe()), batch=timing.batch, threads=timing.threads)
    entries = [{**entry, "machine": machine} for entry in _entries(models, rows)]
    if display.finished(
        as_json, lambda: entries if found is None else {"models": entries, "layers": found.as_dict()}
    ):  # fmt: skip
        return
    _show(models, rows, timing)
    if found is not None:
        title = f"layers of {models[0].name}" + (f" and {models[-1].name}" if len(models) > 1 else "")
        display.table(f"{title}, {found.runtime}", list(found.COLUMNS), found.rows(most=_LAYERS))
        for line in found.summary():
            click.echo(line)


_LAYERS = 40


def _entries(models: Sequence[Path], rows: BenchResults) -> list[dict[str, Any]]:
    """Return the results as JSON objects."""
    return [{"model": str(p), **r.as_dict()} for p, r in zip(models, rows, strict=True)]


def _show(models: Sequence[Path], rows: BenchResults, timing: Benchmark) -> None:
    """Show the table of results."""
    from onnxprune._utils.output import formatting
    from onnxprune.cli._support import display

    runs = max(r.latency.runs for r in rows)
    display.table(
        f"batch {timing.batch}, {timing.threads or 'all'} thread(s), {rows[0].provider}, median of {runs}",
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
