"""The command `onnxprune recover`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from onnxprune.cli._options import DATA_HELP, device_option, json_option, output_option, samples_options, threads_option
from onnxprune.cli._stages import calibration_of, load_model
from onnxprune.errors import OnnxPruneError, VerificationError


@click.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, help=f"Samples, labels not needed: {DATA_HELP} none: made up (noise like natural images)."
)
@samples_options
@output_option
@click.option(
    "--stages", default="recalibrate_batchnorm,reconstruct_weights", show_default=True, help="Which passes, in order."
)
@click.option(
    "--rows", default=40_000, show_default=True, type=click.IntRange(1), help="Positions a layer is fitted on."
)
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(0), help="Of the fit around Relu and Clip.")
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Samples per run.")
@click.option("--verify/--no-verify", "check", default=True, help="Prove the cut first (default) or not.")
@click.option("--resume", is_flag=True, help="Go on where an interrupted run stopped.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left.")
@click.option("--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it.")
@threads_option
@device_option
@json_option
def recover(**o: Any) -> None:
    """Win accuracy back without training: solve for the weights that are left.

    \b
    onnxprune recover m.onnx s.onnx plan.json --data images/ -o r.onnx
    onnxprune recover m.onnx s.onnx plan.json --data none -o r.onnx

    Layer after layer is fitted by least squares to what the original computes. A stage that does not bring the outputs
    nearer to the original's on held-out samples is undone. Solved layers are kept in OUTPUT.recovery until the end.
    """
    import shutil

    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.ir.model import save
    from onnxprune.pipeline import analyze_for
    from onnxprune.plans import load_plan
    from onnxprune.recovery.recover import check_belongs
    from onnxprune.recovery.recover import recover as run
    from onnxprune.verification import verify as prove

    if o["resume"] and o["restart"]:
        raise click.UsageError("--resume goes on, --restart begins anew: give one of them")
    stages = tuple(name.strip() for name in o["stages"].split(",") if name.strip())
    if not stages:
        raise click.UsageError("--stages names none: leave it out for all")
    for source in (o["original"], o["pruned"], o["plan_file"]):
        check_output(o["output"], source)
    folder = o["output"].with_name(o["output"].name + ".recovery")
    if folder.exists() and not (o["resume"] or o["restart"]):
        raise OnnxPruneError(
            "an interrupted run has left its layers", where=str(folder), fix="go on with --resume, or --restart"
        )
    plan, original, pruned = load_plan(o["plan_file"]), load_model(o["original"]), load_model(o["pruned"])
    samples = calibration_of(o, original)
    assert samples is not None
    analysis = analyze_for(original, plan)
    check_belongs(analysis, plan, pruned)
    if o["check"]:
        try:
            feeds = samples.first(original) if o["data"] != "none" else None
            prove(analysis, plan, pruned, feeds=feeds, device=o["device"])
        except VerificationError as err:
            fix = "give the model that this plan made; one that was trained since: --no-verify"
            raise VerificationError(err.what, where=err.where, fix=fix) from err
    with _display.progress("recovering", quiet=o["as_json"]) as tick:
        done = run(
            original, pruned, plan, replace(samples, batch=o["batch"], threads=o["threads"]), analysis=analysis,
            stages=stages, rows=o["rows"], rounds=o["rounds"], folder=folder, restart=o["restart"], progress=tick,
        )  # fmt: skip
    save(done.model, o["output"], external=o["external"])
    shutil.rmtree(folder, ignore_errors=True)  # only now is nothing left to lose
    if o["as_json"]:
        _display.emit_json({"output": str(o["output"]), **done.as_dict()})
    else:
        _display.recovered_table(done, f"{o['pruned'].name} -> {o['output']}")
