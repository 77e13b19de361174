"""The command `onnxprune report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.cli._support.stages import preprocess_of
from onnxprune.options import AccuracyData, InputShapes, Options, ReportMeasurements, option

if TYPE_CHECKING:
    from onnxprune.execution.data import Data


@dataclass(frozen=True, kw_only=True, repr=False)
class ReportOutput(Options):
    """Page that `report` writes."""

    output: Path = option(Path("report.html"), help="File to write.", heading="Output", flag=("-o", "--output"))
    title: str = option("", help="Title of the page.", heading="Output", shown="the recipe's name, or the models'")


@click.command(cls=Command)
@click.argument("sources", metavar="RUN | FILES...", nargs=-1, required=True, type=click.Path(path_type=Path))
@takes_options
@json_option
def report(
    sources: tuple[Path, ...],
    page: ReportOutput,
    data: AccuracyData,
    measurements: ReportMeasurements,
    shapes: InputShapes,
    as_json: bool,
) -> None:
    """Write an HTML report: channels removed, why, cost, proof.

    \b
    onnxprune report run -o report.html
    onnxprune report model.onnx small.onnx plan.json -o report.html

    Sources: the folder of a run; or files, the original first: models, a plan, curves, scores, and --json output of
    prune, bench, evaluate, verify, recover or retrain. The page needs no network, and names missing or damaged files.
    See docs/report.md.
    """
    from onnxprune._utils.output import formatting
    from onnxprune.cli._support import display
    from onnxprune.reports import MeasurementSettings, write_report
    from onnxprune.reports.html_page import check_extra

    check_extra()
    measuring = MeasurementSettings(
        latency=measurements.latency, batch=measurements.batch, threads=measurements.threads, runs=measurements.runs,
        device=measurements.device, runtime=measurements.runtime, runtime_options=measurements.runtime_options,
        verify=measurements.verify,
        data=_accuracy_data(data.data, data) if data.data else None, preprocess=preprocess_of(data),
        shapes=shapes.shapes,
    )  # fmt: skip
    with display.progress("measuring", quiet=as_json) as tick:
        written = write_report(sources, page.output, measuring=measuring, title=page.title, progress=tick)
    size = page.output.stat().st_size
    if as_json:
        display.emit_json({"output": str(page.output), "bytes": size, "problems": written.problems})
        return
    for problem in written.problems:
        display.note(f"note: {problem}")
    click.echo(f"written: {page.output} ({formatting.size(size)})")


def _accuracy_data(source: str, options: AccuracyData) -> Data:
    """Read samples; the report matches them with its first model."""
    from onnxprune.execution.data import load_data

    return load_data(
        source, images=options.images, class_map=options.class_map, images_dir=options.images_dir,
        data_timeout=options.data_timeout,
    )  # fmt: skip
