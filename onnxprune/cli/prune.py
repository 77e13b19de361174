"""The command `onnxprune prune`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.budget import check_usage, prune_within
from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import (
    PlanInputs,
    Planned,
    analyzed,
    calibration_of,
    compiled,
    constraints_on,
    finish,
    load_model,
    planned,
    proof_feeds,
    speedup_of,
    target_of,
)
from onnxprune.options import (
    AfterPruning,
    AnalysisOptions,
    Budget,
    CalibrationData,
    Constraints,
    CurvesInput,
    Events,
    InputShapes,
    Measuring,
    ModelOutput,
    Options,
    Planning,
    ReportedMetric,
    Scoring,
    Verifying,
    option,
)

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.pipeline import Compiled
    from onnxprune.recovery.recover import Recovered


@dataclass(frozen=True, kw_only=True, repr=False)
class PlanFile(Options):
    """Plan file that `prune` writes beside the model."""

    plan_file: Path | None = option(
        None, help="Write the plan to this file as well.", heading="Output", advanced=True, flag="--plan"
    )


@click.command(cls=Command, advanced=("exclude", "protect"))
@model_argument
@takes_options
@json_option
def prune(
    model: Path,
    output: ModelOutput,
    scoring: Scoring,
    data: CalibrationData,
    tasks: ReportedMetric,
    budget: Budget,
    planning: Planning,
    curves: CurvesInput,
    constraints: Constraints,
    analysis: AnalysisOptions,
    shapes: InputShapes,
    measuring: Measuring,
    verifying: Verifying,
    second: PlanFile,
    after: AfterPruning,
    events: Events,
    as_json: bool,
) -> None:
    """Write a smaller, proved model: score, plan, remove, prove.

    With --data (no labels needed) channels are chosen by `obs`, and the remaining weights re-solved (`recover`).

    \b
    onnxprune prune m.onnx -o s.onnx --target macs=0.5 --data images/
    onnxprune prune m.onnx -o s.onnx --max-drop 1.0 --data images/
    onnxprune prune m.onnx -o s.onnx --target latency=0.6
    """
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.plans import save_plan

    if budget.max_drop is not None:
        check_usage(budget, planning, curves, data, after.recover, verifying)
        check_output(output.output, model)
        if second.plan_file is not None:
            check_output(second.plan_file, model)
        prune_within(
            load_model(model, shapes), model, output, second.plan_file, budget, scoring, data, tasks, planning,
            constraints, analysis, measuring, verifying, after.stages, as_json=as_json,
        )  # fmt: skip
        return
    target = target_of(planning, curves.curves_file)
    if after.recover and not data.data:
        raise click.UsageError("--recover needs --data")
    if after.reconstruct_blocks and (not data.data or after.recover is False):
        raise click.UsageError("--reconstruct-blocks is a stage of recovery: it needs --data, without --no-recover")
    if data.data and scoring.criterion is None and curves.curves_file is None:
        scoring = replace(scoring, criterion="obs")
    check_output(output.output, model)
    if second.plan_file is not None:
        check_output(second.plan_file, model)
    original = load_model(model, shapes)
    samples = calibration_of(data.data, data, original, measuring.device)
    recovering = samples is not None and after.recover is not False
    if recovering and samples is not None:
        from onnxprune.recovery.recover import check_samples

        check_samples(samples.data)
    found = analyzed(original, analysis)
    inputs = PlanInputs(
        planning, scoring, constraints_on(measuring, measuring.device, constraints), target, measuring,
        measuring.latency, data, data.data, samples, curves_file=curves.curves_file, recovering=recovering,
        quiet=as_json,
    )  # fmt: skip
    feeds = proof_feeds(data.data, samples, original) if verifying.verify else None

    def run(made: Planned) -> _Result:
        done = compiled(original, made.plan, verifying, analysis=found, feeds=feeds, quiet=as_json)
        if not recovering or samples is None:
            return _Result(made, done, None)
        from onnxprune.cli._support.display import progress
        from onnxprune.recovery.recover import recover

        with progress("recovering", quiet=as_json) as tick:
            recovered = recover(
                original, done.model, made.plan, samples, analysis=found, stages=after.stages, task=tasks, progress=tick
            )
        return _Result(made, replace(done, model=recovered.model), recovered)

    result = _result(found, inputs, run)
    done, recovered = result.done, result.recovered
    speedup = speedup_of(found, result.made, done.model, measuring, quiet=as_json)
    if second.plan_file is not None:
        save_plan(done.plan, second.plan_file)
    finish(done, model, output, speedup, recovered, samples, plan_file=second.plan_file, as_json=as_json)


@dataclass(frozen=True)
class _Result:
    """Plan, pruned model and recovery of one run."""

    made: Planned
    done: Compiled
    recovered: Recovered | None


def _result(analysis: Analysis, inputs: PlanInputs, run: Callable[[Planned], _Result]) -> _Result:
    """Return the result of the plan; beside blocks that of channels alone, if it is nearer to the original."""
    from onnxprune.cli._support.display import note
    from onnxprune.pipeline.depth_choice import nearer_to_original, removes_both
    from onnxprune.planning.depth import channels_only

    first = run(planned(analysis, inputs))
    scores = first.made.scores
    if scores is None or not removes_both(analysis, inputs.constraints, first.made.plan):
        return first
    alone = replace(inputs, constraints=channels_only(inputs.constraints), scores=scores)
    found, remark = nearer_to_original(first, lambda: planned(analysis, alone), run, lambda r: r.recovered)
    if remark:
        note(remark)
    return found
