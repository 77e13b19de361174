"""Commands that measure: evaluate, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.options import DATA_HELP, device_option, json_option, model_argument, samples_options, threads_option
from onnxprune.cli.stages import load_model, preprocess_of, size_of


@click.command()
@model_argument
@click.option("--data", required=True, help=DATA_HELP)
@samples_options
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Samples per run.")
@threads_option
@device_option
@json_option
def evaluate(**o: Any) -> None:
    """Accuracy of a classifier on labelled data."""
    from onnxprune import show
    from onnxprune.data import load_data
    from onnxprune.evaluation import evaluate as run

    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    model = load_model(o["model"])
    with show.progress("evaluating", quiet=o["as_json"]) as tick:
        result = run(
            model, data, preprocess=preprocess_of(o), batch=o["batch"], threads=o["threads"], device=o["device"],
            progress=tick,
        )  # fmt: skip
    if result.warning:
        show.note(f"Warning: {result.warning}")
    if o["as_json"]:
        show.emit_json({"model": str(o["model"]), "data": data.name, **vars(result)})
        return
    show.table(
        f"{o['model'].name} on {data.name}, {result.images} samples, {result.provider}",
        ["top-1", "+-", "top-5", "loss"],
        [[show.percent(result.top1), show.percent(result.top1_error), show.percent(result.top5), f"{result.loss:.4f}"]],
    )


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
    from onnxprune import show
    from onnxprune.bench import bench as run

    loaded = [load_model(path) for path in models]
    with show.progress("measuring", quiet=as_json) as tick:
        rows = run(loaded, progress=tick, **o)
    if as_json:
        show.emit_json([{"model": str(p), **r.as_dict()} for p, r in zip(models, rows, strict=True)])
        return
    show.table(
        f"batch {o['batch']}, {o['threads'] or 'all'} thread(s), {rows[0].provider}, median of {o['runs']}",
        ["model", "latency", "spread", "MACs", "params", "weights", "speed-up", "effic."],
        [
            [
                p.name, show.seconds(r.latency.median),
                f"+-{50 * (r.latency.high - r.latency.low) / r.latency.median:.0f} %", show.count(r.cost.macs),
                show.count(r.cost.params), show.size(r.cost.bytes), f"{r.speedup:.2f}", f"{r.efficiency:.2f}",
            ]
            for p, r in zip(models, rows, strict=True)
        ],
    )  # fmt: skip
