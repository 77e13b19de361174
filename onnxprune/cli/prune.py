"""The command `onnxprune prune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import (
    attention_option,
    calibrating_options,
    inexact_option,
    json_option,
    model_argument,
    output_option,
    planning_options,
    scoring_options,
    timing_options,
    writing_options,
)
from onnxprune.cli._stages import (
    analysis_of,
    calibration_of,
    compiled,
    finish,
    load_model,
    planned,
    speedup_of,
    target_of,
)


@click.command()
@model_argument
@output_option
@scoring_options
@calibrating_options
@planning_options
@attention_option
@inexact_option
@timing_options
@writing_options
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Write the plan to this file as well.")
@click.option(
    "--recover/--no-recover", default=None, show_default="with --data",
    help="Solve for the weights that are left, so that outputs come back to the original's.",
)  # fmt: skip
@json_option
def prune(**o: Any) -> None:
    """Score, plan, remove, prove: the whole job in one go.

    With --data channels are chosen by `obs` (unless -c says otherwise) and the weights that are left are solved for
    (`recover`); no labels are needed. What each step does to accuracy is shown on samples held out of it.

    \b
    onnxprune prune m.onnx -o s.onnx --target macs=0.5 --data images/
    onnxprune prune m.onnx -o s.onnx --target latency=0.6
    onnxprune prune m.onnx -o s.onnx --curves c.json --min-group-accuracy 0.9
    onnxprune prune m.onnx -o s.onnx --target macs=0.4 --steps 5
    """
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.plans import save_plan

    target = target_of(o)
    if o["recover"] and not o["data"]:
        raise click.UsageError("--recover needs samples: give --data")
    given = click.get_current_context().get_parameter_source("criterion")
    if o["data"] and given is click.core.ParameterSource.DEFAULT and not o["curves_file"]:
        o["criterion"] = "obs"
    check_output(o["output"], o["model"])
    if o["plan_file"]:
        check_output(o["plan_file"], o["model"])
    model = load_model(o["model"])
    o["samples"] = calibration_of(o, model)
    recovering = o["samples"] is not None and o["recover"] is not False
    if recovering:
        from onnxprune.recovery.recover import check_samples

        check_samples(o["samples"].data)
    analysis = analysis_of(model, o)
    made, _, _, latency = planned(analysis, target, o)
    done = compiled(model, made, analysis, o)
    recovered = None
    if recovering:
        from onnxprune.cli._display import progress
        from onnxprune.recovery.recover import recover as run

        with progress("recovering", quiet=o["as_json"]) as tick:
            recovered = run(model, done.model, made, o["samples"], analysis=analysis, progress=tick)
        done = replace(done, model=recovered.model)
    speedup = speedup_of(analysis, made, done.model, latency, o)
    if o["plan_file"]:
        save_plan(made, o["plan_file"])
    finish(done, o, speedup, recovered)
