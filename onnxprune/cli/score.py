"""The command `onnxprune score`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import (
    attention_option,
    calibrating_options,
    device_option,
    inexact_option,
    json_option,
    model_argument,
    scoring_options,
)
from onnxprune.cli._stages import analysis_of, calibration_of, load_model, scored


@click.command()
@model_argument
@scoring_options
@calibrating_options
@device_option
@attention_option
@inexact_option
@click.option(
    "--compare", metavar="C1,C2,...",
    help="Instead: how far these criteria agree, group by group. Parameters behind colons: fpgm:mix_norm=0.1.",
)  # fmt: skip
@click.option("--ratio", type=float, help="With --compare: share each would remove of every group (0.5).")
@click.option("--plot", type=click.Path(path_type=Path), help="With --compare: draw a layer (.png, .svg).")
@click.option("--layer", metavar="GLOB", help="With --plot: which one.", show_default="the widest group")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Write the scores to this JSON file; with --compare the comparison, as JSON or .csv.",
)  # fmt: skip
@click.option(
    "--per-class", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the importance for each class as a table, .csv or .json (senpis, loss_change).",
)  # fmt: skip
@json_option
def score(**o: Any) -> None:
    """Score every channel; higher means keep.

    \b
    onnxprune score m.onnx -c dscore -o scores.json
    onnxprune score m.onnx --compare l1,fpgm,dscore --plot layer.svg
    """
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.criteria.per_class import check_class_table, save_class_table
    from onnxprune.criteria.scoring import save_scores

    for path in filter(None, (o["output"], o["plot"], o["per_class"])):
        check_output(path, o["model"])
    if o["compare"] is not None and o["per_class"]:
        raise click.UsageError("--per-class is of one criterion: leave out --compare")
    if o["compare"] is not None:
        _compared(o)
        return
    if o["ratio"] is not None or o["plot"] or o["layer"]:
        raise click.UsageError("--ratio, --plot and --layer go with --compare")
    if o["per_class"]:
        check_class_table(o["per_class"], o["criterion"])
    scores = scored(analysis_of(load_model(o["model"]), o), o)
    if o["output"]:
        save_scores(scores, o["output"])
    if o["per_class"]:
        save_class_table(scores, o["per_class"])
    if o["as_json"]:
        import json

        _display.emit_json(json.loads(scores.to_json()))
        return
    rows = [
        [name, str(len(s)), f"{s.min():.4g}", f"{float(sorted(s)[len(s) // 2]):.4g}", f"{s.max():.4g}"]
        for name, s in scores.groups.items()
    ]
    _display.table(f"scores by {o['criterion']}", ["group", "channels", "lowest", "median", "highest"], rows)


def _compared(o: dict[str, Any]) -> None:
    """`score --compare`."""
    from onnxprune.cli import _display
    from onnxprune.studies.criteria_comparison import compare_criteria, save_comparison

    sources = map(click.get_current_context().get_parameter_source, ("criterion", "param"))
    if any(s is not click.core.ParameterSource.DEFAULT for s in sources):
        raise click.UsageError("--compare names the criteria and their parameters itself, without -c and -p")
    if o["layer"] and not o["plot"]:
        raise click.UsageError("--layer says what to draw: give --plot")
    if o["plot"]:
        from onnxprune.studies.plots import check_plot

        check_plot(o["plot"])
    analysis = analysis_of(load_model(o["model"]), o)
    names = [name.strip() for name in o["compare"].split(",") if name.strip()]
    ratio = 0.5 if o["ratio"] is None else o["ratio"]
    with _display.progress("scoring", quiet=o["as_json"]) as tick:
        found = compare_criteria(
            analysis,
            names,
            ratio=ratio,
            reduce=o["reduce"],
            calibration=calibration_of(o, analysis.source),
            progress=tick,
        )
    layer = found.layer(o["layer"]) if o["plot"] else None
    if o["output"]:
        save_comparison(found, o["output"])
    if layer is not None:
        from onnxprune.studies.plots import plot_criteria

        plot_criteria(layer, o["plot"], name=o["model"].name)
    if o["as_json"]:
        _display.emit_json(found.as_dict())
    else:
        _display.criteria_table(found, o["model"].name)
