"""The command `onnxprune plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import (
    PlanInputs,
    analyzed,
    constraints_on,
    load_model,
    planned,
    speedup_of,
    target_of,
)
from onnxprune.options import (
    AnalysisOptions,
    CalibrationData,
    Constraints,
    CurvesInput,
    InputShapes,
    Measuring,
    Options,
    Planning,
    ScoresInput,
    Scoring,
    option,
)

if TYPE_CHECKING:
    from onnxprune.criteria.scoring import Scores
    from onnxprune.planning.curves import Curves
    from onnxprune.planning.targets import Target


@dataclass(frozen=True, kw_only=True, repr=False)
class PlanOutput(Options):
    """Files and tables of `plan`."""

    output: Path | None = option(
        None, help="File to write; optional with --compare.", heading="Output", flag=("-o", "--output")
    )
    compare: bool = option(
        False, help="Show the kept channels of every allocator at the same target.", heading="Output"
    )
    plot: Path | None = option(None, help="With --curves: draw them and the plan (.png, .svg).", heading="Output")


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def plan(
    model: Path,
    output: PlanOutput,
    scoring: Scoring,
    scores: ScoresInput,
    data: CalibrationData,
    planning: Planning,
    curves: CurvesInput,
    constraints: Constraints,
    analysis: AnalysisOptions,
    shapes: InputShapes,
    measuring: Measuring,
    as_json: bool,
) -> None:
    """Choose the channels to remove, and write plan.json."""
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.plans import save_plan

    target = target_of(planning, curves.curves_file, scores.scores_file)
    if output.output is None and not output.compare:
        raise click.UsageError("Missing option '-o' / '--output' (optional with --compare)")
    if output.compare and planning.steps is not None:
        raise click.UsageError("--compare plans in one step: leave out --steps")
    if output.plot is not None and curves.curves_file is None:
        raise click.UsageError("--plot needs --curves")
    for path in filter(None, (output.output, output.plot)):
        check_output(path, model)
    if output.plot is not None:
        from onnxprune.studies.plots import check_plot

        check_plot(output.plot)
    found = analyzed(load_model(model, shapes), analysis)
    limits = constraints_on(measuring, measuring.device, constraints)
    inputs = PlanInputs(
        planning, scoring, limits, target, measuring, measuring.latency, data, data.data,
        scores_file=scores.scores_file, curves_file=curves.curves_file, quiet=as_json,
    )  # fmt: skip
    made = planned(found, inputs)
    rows = None
    if output.compare and made.scores is not None:
        from onnxprune.planning.allocator_comparison import compare, same_target

        goal = same_target(made.scores, target, made.plan)
        rows = compare(
            made.scores, goal, made.plan, _allocator_of(planning, target, made.curves, made.scores),
            curves=made.curves, latency=made.latency, normalize=planning.normalize, constraints=limits,
        )  # fmt: skip
    speedup = speedup_of(found, made, None, measuring, quiet=as_json)
    if output.output is not None:
        save_plan(made.plan, output.output)
    if output.plot is not None:
        from onnxprune.studies.plots import plot_curves

        assert made.curves is not None
        plot_curves(made.curves, output.plot, plan=made.plan)
    written = str(output.output) if output.output is not None else None
    if as_json:
        display.emit_json(display.plan_document(found, made.plan, written, made.curves, speedup, rows, made.data))
        return
    if rows is not None:
        name = f"{goal.measure}={goal.share:.3g}"
        metric = made.curves.metric if made.curves else None
        display.comparison_table(f"{model.name}: allocators at {name}", rows, metric)
    if written:
        display.plan_table(found, made.plan, f"plan {written}", made.curves)
    if speedup is not None:
        click.echo(display.speedup_line(speedup))


def _allocator_of(planning: Planning, target: Target | None, curves: Curves | None, scores: Scores) -> str:
    """Return the row of a comparison that a plan belongs to."""
    from onnxprune.planning.planner import resolve_allocator

    if planning.ratio is not None:
        return "uniform"
    return resolve_allocator(planning.allocator, target, curves, scores.default_allocator)
