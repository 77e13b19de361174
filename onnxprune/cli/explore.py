"""The command `onnxprune explore`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from onnxprune._utils.processes.interruption import Stopped
from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.cli._support.stages import (
    analyzed,
    calibration_of,
    constraints_on,
    latency_predictor,
    load_model,
    scored,
    scoring_of,
)
from onnxprune.options import (
    AnalysisOptions,
    CalibrationData,
    Constraints,
    CurvesInput,
    InputShapes,
    Normalizing,
    Options,
    Prediction,
    ScoresInput,
    Scoring,
    option,
)

if TYPE_CHECKING:
    from onnxprune.reports.explorer import Site


@dataclass(frozen=True, kw_only=True, repr=False)
class Page(Options):
    """Page of `explore`, and the plan that it writes."""

    output: Path | None = option(
        None, help="Plan to write on Save.", heading="Output", flag=("-o", "--output"),
        shown="MODEL-plan.json beside the model",
    )  # fmt: skip
    port: int = option(0, help="Port of 127.0.0.1.", heading="Output", ge=0, le=65535, usage=True, shown="a free one")
    no_browser: bool = option(False, help="Only print the address of the page.", heading="Output")


@click.command(cls=Command, advanced=("exclude", "protect", "port"))
@click.argument("model", metavar="MODEL | FRONTIER", type=click.Path(path_type=Path))
@takes_options
@json_option
def explore(
    model: Path,
    page: Page,
    scoring: Scoring,
    scores: ScoresInput,
    normalizing: Normalizing,
    data: CalibrationData,
    curves: CurvesInput,
    constraints: Constraints,
    analysis: AnalysisOptions,
    shapes: InputShapes,
    prediction: Prediction,
    as_json: bool,
) -> None:
    """Make a plan on a local page that shows the cost of ratios, or compare the models of a frontier.

    The page is served to this machine only; its address, on stderr, holds a secret. Done or Ctrl-C ends the command.

    \b
    onnxprune explore model.onnx --curves curves.json -o plan.json
    onnxprune apply model.onnx plan.json -o small.onnx
    onnxprune explore frontier/
    """
    if model.is_dir():
        _explore_frontier(model, page, as_json=as_json)
        return
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.planning.curves import load_curves
    from onnxprune.plans import NOTHING
    from onnxprune.reports.explorer import Explorer, plan_site

    output = page.output or model.with_name(f"{model.stem}-plan.json")
    check_output(output, model)
    found = analyzed(load_model(model, shapes), analysis)
    measured = load_curves(curves.curves_file) if curves.curves_file is not None else None
    if scores.scores_file is not None:
        ranked = load_scores(scores.scores_file, found)
    else:
        samples = calibration_of(data.data, data, found.source, prediction.device)
        ranked = scored(found, scoring_of(measured, scoring), samples, quiet=as_json, constraints=constraints)
    explorer = Explorer(
        ranked, output, name=model.name, curves=measured,
        latency=latency_predictor(found, prediction, quiet=as_json) if prediction.latency else None,
        constraints=constraints_on(prediction, prediction.device, constraints), normalize=normalizing.normalize,
        overwrite=page.output is not None,
    )  # fmt: skip
    _serve(plan_site(explorer), model, page)
    made = explorer.saved
    if as_json:
        nothing = {"output": None, "digest": None, **NOTHING.removed_counts()}
        display.emit_json(
            nothing if made is None else display.plan_document(found, made, str(output), measured, None, None, {})
        )
    elif made is None:
        display.note("no plan was saved")
    else:
        display.plan_table(found, made, f"plan {output}", measured)


def _explore_frontier(folder: Path, page: Page, *, as_json: bool) -> None:
    """Serve the page of a frontier's report, with the files of its points."""
    from onnxprune.cli._support import display
    from onnxprune.errors import OnnxPruneError
    from onnxprune.reports import frontier_page
    from onnxprune.reports.explorer import page_site

    context = click.get_current_context()
    given = [
        p.opts[-1] for p in context.command.params
        if isinstance(p, click.Option) and not {"--port", "--no-browser", "--json"} & set(p.opts)
        and context.get_parameter_source(p.name or "") == ParameterSource.COMMANDLINE
    ]  # fmt: skip
    if given:
        raise OnnxPruneError(
            f"{given[0]} is for a model, and this is a folder", where=str(folder), fix=f"onnxprune explore {folder}"
        )
    shown = frontier_page(folder)
    for problem in shown.problems:
        display.note(f"note: {problem}")
    _serve(page_site(shown.html, shown.files), folder, page)
    if as_json:
        display.emit_json({"frontier": str(folder), "points": shown.points, "problems": shown.problems})


def _serve(site: Site, source: Path, page: Page) -> None:
    """Serve a site until Done or Ctrl-C."""
    from onnxprune.cli._support import display
    from onnxprune.reports.explorer import Server

    server = Server(site, page.port)
    display.note(f"exploring {source.name or source} at {server.url}\nend with Done on the page, or with Ctrl-C")
    if not page.no_browser:
        _open(server.url)
    with suppress(KeyboardInterrupt, Stopped):
        server.serve()


def _open(url: str) -> None:
    """Open the desktop's browser in a thread: a browser in the terminal would not return."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
