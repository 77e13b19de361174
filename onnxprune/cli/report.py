"""Commands that show what was done: report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import DATA_HELP, device_option, json_option, samples_options
from onnxprune.cli._stages import preprocess_of, size_of


@click.command()
@click.argument("sources", metavar="RUN | FILES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", default="report.html", show_default=True, type=click.Path(path_type=Path), help="File to write."
)
@click.option("--title", default="", help="Of the page.", show_default="the recipe's name, or the models'")
@click.option("--data", help=f"Measure the accuracy of the models given on this: {DATA_HELP}")
@samples_options
@click.option("--latency/--no-latency", default=True, help="Measure latency where no file tells it (default) or not.")
@click.option("--verify/--no-verify", default=True, help="Prove the cut again (default) or not.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Samples per timed run.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores.")
@click.option("--runs", default=30, show_default=True, type=click.IntRange(1), help="Timed runs of each model.")
@device_option
@json_option
def report(**o: Any) -> None:
    """One HTML file: what was cut, why, what it cost, how it was proved.

    \b
    onnxprune report run -o report.html
    onnxprune report model.onnx small.onnx plan.json -o report.html

    Of the folder of a run, or of files in which the original comes first: models, a plan, curves, scores, and what
    prune, bench, evaluate, verify, recover or retrain wrote with --json. The page needs no network. What is missing or
    damaged is said in it. See docs/report.md.
    """
    from onnxprune._utils import formatting
    from onnxprune.cli import _display
    from onnxprune.execution.data import load_data
    from onnxprune.reports import MeasurementSettings, write_report
    from onnxprune.reports.html_page import check_extra

    check_extra()
    data = load_data(o["data"], images=o["images"], size=size_of(o["size"])) if o["data"] else None
    measuring = MeasurementSettings(
        latency=o["latency"], batch=o["batch"], threads=o["threads"], runs=o["runs"], device=o["device"],
        verify=o["verify"], data=data, preprocess=preprocess_of(o),
    )  # fmt: skip
    with _display.progress("measuring", quiet=o["as_json"]) as tick:
        written = write_report(o["sources"], o["output"], measuring=measuring, title=o["title"], progress=tick)
    if o["as_json"]:
        size = o["output"].stat().st_size
        _display.emit_json({"output": str(o["output"]), "bytes": size, "problems": written.problems})
        return
    for problem in written.problems:
        _display.note(f"note: {problem}")
    click.echo(f"written: {o['output']} ({formatting.size(o['output'].stat().st_size)})")
