"""Commands that read a model and change nothing: inspect, score, verify, diff."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.options import (
    DATA_HELP,
    attention_option,
    calibrating_options,
    device_option,
    inexact_option,
    json_option,
    model_argument,
    samples_options,
    scoring_options,
)
from onnxprune.cli.stages import analysis_of, calibration_of, load_model, preprocess_of, scored, size_of


@click.command()
@model_argument
@attention_option
@inexact_option
@json_option
def inspect(**o: Any) -> None:
    """What can be removed, what is locked and by which operator."""
    from onnxprune import show

    analysis = analysis_of(load_model(o["model"]), o)
    if o["as_json"]:
        show.emit_json(show.inspect_document(analysis, str(o["model"])))
    else:
        show.inspect_tables(analysis, o["model"].name)


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
    from onnxprune import show
    from onnxprune.class_tables import check_class_table, save_class_table
    from onnxprune.files import check_output
    from onnxprune.scoring import save_scores

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

        show.emit_json(json.loads(scores.to_json()))
        return
    rows = [
        [name, str(len(s)), f"{s.min():.4g}", f"{float(sorted(s)[len(s) // 2]):.4g}", f"{s.max():.4g}"]
        for name, s in scores.groups.items()
    ]
    show.table(f"scores by {o['criterion']}", ["group", "channels", "lowest", "median", "highest"], rows)


def _compared(o: dict[str, Any]) -> None:
    """`score --compare`."""
    from onnxprune import show
    from onnxprune.criteria_comparison import compare_criteria, save_comparison

    sources = map(click.get_current_context().get_parameter_source, ("criterion", "param"))
    if any(s is not click.core.ParameterSource.DEFAULT for s in sources):
        raise click.UsageError("--compare names the criteria and their parameters itself, without -c and -p")
    if o["layer"] and not o["plot"]:
        raise click.UsageError("--layer says what to draw: give --plot")
    if o["plot"]:
        from onnxprune.pictures import check_plot

        check_plot(o["plot"])
    analysis = analysis_of(load_model(o["model"]), o)
    names = [name.strip() for name in o["compare"].split(",") if name.strip()]
    ratio = 0.5 if o["ratio"] is None else o["ratio"]
    with show.progress("scoring", quiet=o["as_json"]) as tick:
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
        from onnxprune.pictures import plot_criteria

        plot_criteria(layer, o["plot"], name=o["model"].name)
    if o["as_json"]:
        show.emit_json(found.as_dict())
    else:
        show.criteria_table(found, o["model"].name)


@click.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--tolerance", type=float, help="Largest relative difference allowed; default by element type.")
@click.option("--data", help=f"Whole runs on real inputs, beside random ones: {DATA_HELP}")
@samples_options
@device_option
@json_option
def verify(**o: Any) -> None:
    """Check a pruned file against its masked original."""
    from onnxprune import show
    from onnxprune.data import load_data, model_batches
    from onnxprune.pipeline import analyze_for
    from onnxprune.plans import load_plan
    from onnxprune.verification import verify as check

    made = load_plan(o["plan_file"])
    original = load_model(o["original"])
    analysis = analyze_for(original, made)
    feeds = None
    if o["data"]:
        data = load_data(o["data"], images=o["images"] or 64, size=size_of(o["size"]))
        feeds = [feed for feed, _ in model_batches(original, data, preprocess_of(o))]
    proof = check(analysis, made, load_model(o["pruned"]), feeds=feeds, tolerance=o["tolerance"], device=o["device"])
    if o["as_json"]:
        show.emit_json(proof.as_dict())
    else:
        click.echo(show.proof_line(proof))


@click.command()
@click.argument("one", metavar="A", type=click.Path(path_type=Path))
@click.argument("other", metavar="B", type=click.Path(path_type=Path))
@click.option("--all", "whole", is_flag=True, help="Every row, not only the first 20 of each kind.")
@json_option
def diff(one: Path, other: Path, whole: bool, as_json: bool) -> None:
    """What is not the same in two models: nodes, shapes, weights, sizes.

    Nodes are matched by name, then by what they put out, then by the order of their operators. Of weights of the same
    shape it says how many elements differ, the norm of the difference over that of A's values, and the largest.
    """
    from onnxprune import show
    from onnxprune.differences import differences

    found = differences(load_model(one), load_model(other))
    if as_json:
        show.emit_json({"one": str(one), "other": str(other), **found.as_dict()})
    else:
        show.differences_tables(found, f"{one.name} -> {other.name}", None if whole else 20)
