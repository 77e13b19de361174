"""The command `onnxprune plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli._options import (
    attention_option,
    calibrating_options,
    inexact_option,
    json_option,
    model_argument,
    planning_options,
    scoring_options,
    timing_options,
)
from onnxprune.cli._stages import analysis_of, constraints_of, load_model, planned, speedup_of, target_of

if TYPE_CHECKING:
    from onnxprune.criteria.scoring import Scores
    from onnxprune.planning.curves import Curves
    from onnxprune.planning.targets import Target


@click.command()
@model_argument
@scoring_options
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="Use these scores instead (`score -o`).")
@calibrating_options
@planning_options
@attention_option
@inexact_option
@timing_options
@click.option("--compare", is_flag=True, help="Show what every allocator would keep at the same target.")
@click.option("--plot", type=click.Path(path_type=Path), help="With --curves: draw them and the plan (.png, .svg).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; optional with --compare.")
@json_option
def plan(**o: Any) -> None:
    """Decide which channels go, and write plan.json."""
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.plans import save_plan

    target = target_of(o)
    if o["output"] is None and not o["compare"]:
        raise click.UsageError("Missing option '-o' / '--output' (only --compare works without)")
    if o["compare"] and o["steps"] is not None:
        raise click.UsageError("--compare shows plans made in one go, --steps makes another kind")
    if o["plot"] is not None and o["curves_file"] is None:
        raise click.UsageError("--plot draws curves: give --curves")
    for path in filter(None, (o["output"], o["plot"])):
        check_output(path, o["model"])
    if o["plot"]:
        from onnxprune.studies.plots import check_plot

        check_plot(o["plot"])
    analysis = analysis_of(load_model(o["model"]), o)
    made, scores, curves, latency = planned(analysis, target, o)
    rows = None
    if o["compare"] and scores is not None:
        from onnxprune.planning.allocator_comparison import compare, same_target

        goal = same_target(scores, target, made)
        rows = compare(
            scores, goal, made, _allocator_of(o, target, curves, scores), curves=curves, latency=latency,
            normalize=o["normalize"], constraints=constraints_of(o),
        )  # fmt: skip
    speedup = speedup_of(analysis, made, None, latency, o)
    if o["output"]:
        save_plan(made, o["output"])
    if o["plot"]:
        from onnxprune.studies.plots import plot_curves

        assert curves is not None
        plot_curves(curves, o["plot"], plan=made)
    output = str(o["output"]) if o["output"] else None
    if o["as_json"]:
        _display.emit_json(_display.plan_document(analysis, made, output, curves, speedup, rows))
        return
    if rows is not None:
        name = f"{goal.measure}={goal.share:.3g}"
        _display.comparison_table(f"{o['model'].name}: allocators at {name}", rows, curves.metric if curves else None)
    if output:
        _display.plan_table(analysis, made, f"plan {output}", curves)
    if speedup is not None:
        click.echo(_display.speedup_line(speedup))


def _allocator_of(o: dict[str, Any], target: Target | None, curves: Curves | None, scores: Scores) -> str:
    """In which row of a comparison a plan stands."""
    from onnxprune.planning.planner import resolve_allocator

    return (
        "uniform"
        if o["ratio"] is not None
        else resolve_allocator(o["allocator"], target, curves, scores.default_allocator)
    )
