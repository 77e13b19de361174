"""The command that opens a page: explore."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import (
    attention_option,
    calibrating_options,
    inexact_option,
    json_option,
    limiting_options,
    model_argument,
    scoring_options,
)
from onnxprune.cli._stages import analysis_of, by_curves, constraints_of, load_model, predictor_of, scored


@click.command()
@model_argument
@scoring_options
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="Use these scores instead (`score -o`).")
@calibrating_options
@click.option("--curves", "curves_file", type=click.Path(path_type=Path), help="Estimate by these (`sensitivity`).")
@click.option("--latency", "timed", is_flag=True, help="Predict latency, too; measures this machine first.")
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="For latency: samples per run.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores.")
@click.option("--device", default="cpu", show_default=True, help="Where latency counts: auto, cpu or cuda.")
@click.option("--normalize", help="How groups are compared: none, mean, max, sum, gaussian, lamp.")
@limiting_options
@attention_option
@inexact_option
@click.option("--port", default=0, show_default="a free one", type=click.IntRange(0, 65535), help="Of 127.0.0.1.")
@click.option("--no-browser", is_flag=True, help="Only print the page's address.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The plan that Save writes.",
    show_default="MODEL-plan.json beside the model, if there is none yet",
)  # fmt: skip
@json_option
def explore(**o: Any) -> None:
    """Drag ratios on a local page, see what they cost, save a plan.

    The page is served to this machine only; its address, on stderr, holds a secret. It ends with Done or Ctrl-C.

    \b
    onnxprune explore model.onnx --curves curves.json -o plan.json
    onnxprune apply model.onnx plan.json -o small.onnx
    """
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.explorer import Explorer, Server
    from onnxprune.planning.curves import load_curves

    model = o["model"]
    output = o["output"] or model.with_name(f"{model.stem}-plan.json")
    check_output(output, model)
    analysis = analysis_of(load_model(model), o)
    curves = load_curves(o["curves_file"]) if o["curves_file"] else None
    scores = load_scores(o["scores_file"], analysis) if o["scores_file"] else scored(analysis, by_curves(o, curves))
    explorer = Explorer(
        scores, output, name=model.name, curves=curves, latency=predictor_of(analysis, None, {**o, "allocator": None}),
        constraints=constraints_of(o), normalize=o["normalize"], overwrite=o["output"] is not None,
    )  # fmt: skip
    server = Server(explorer, o["port"])
    _display.note(f"exploring {model.name} at {server.url}\nend with Done on the page, or with Ctrl-C")
    if not o["no_browser"]:
        _open(server.url)
    with suppress(KeyboardInterrupt):
        server.serve()
    made = explorer.saved
    if o["as_json"]:
        nothing = {"output": None, "digest": None, "removed_channels": 0}
        _display.emit_json(
            nothing if made is None else _display.plan_document(analysis, made, str(output), curves, None, None)
        )
    elif made is None:
        _display.note("no plan was saved")
    else:
        _display.plan_table(analysis, made, f"plan {output}", curves)


def _open(url: str) -> None:
    """Asks the desktop for a browser, without waiting for it: a browser in the terminal would not return."""
    import threading
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
