"""The command `onnxprune recover`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from onnxprune.cli._support.options import Command, json_option, takes_options
from onnxprune.cli._support.stages import calibration_of, check_resume, has_float_layers, proof_feeds
from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.options import (
    Events,
    Execution,
    InputShapes,
    ModelOutput,
    Options,
    Recovery,
    RecoveryData,
    ReportedMetric,
    Resuming,
    option,
)


@dataclass(frozen=True, kw_only=True, repr=False)
class ProofBefore(Options):
    """Proof before recovery."""

    verify: bool = option(
        True, help="Prove the pruned model first (default) or not.", heading="Output", advanced=True,
        flag="--verify/--no-verify",
    )  # fmt: skip


@click.command(cls=Command)
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@takes_options
@json_option
def recover(
    original: Path,
    pruned: Path,
    plan_file: Path,
    output: ModelOutput,
    data: RecoveryData,
    tasks: ReportedMetric,
    recovery: Recovery,
    proof: ProofBefore,
    resuming: Resuming,
    execution: Execution,
    shapes: InputShapes,
    events: Events,
    as_json: bool,
) -> None:
    """Recover accuracy without training: re-solve the weights.

    \b
    onnxprune recover m.onnx s.onnx plan.json --data images/ -o r.onnx
    onnxprune recover m.onnx s.onnx plan.json --data none -o r.onnx

    The remaining weights of each layer are fitted by least squares to the original's outputs. A stage that does not
    improve the metric on held-out samples (with labels or --metric), or bring the outputs closer to the original's
    (without), is undone. Solved layers are stored in OUTPUT.recovery until the end; the same command continues an
    interrupted run.
    """
    import shutil

    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.cli._support.inputs import read_models, read_plan
    from onnxprune.ir.writer import save
    from onnxprune.pipeline import analyze_for
    from onnxprune.recovery.recover import check_belongs
    from onnxprune.recovery.recover import recover as run
    from onnxprune.verification import verify as prove

    check_resume(resuming)
    if not recovery.stages:
        raise click.UsageError("--stages is empty: name a stage, or leave the option out to run all")
    for source in (original, pruned, plan_file):
        check_output(output.output, source)
    folder = output.output.with_name(output.output.name + ".recovery")
    plan = read_plan(plan_file)
    whole, small = read_models(original, pruned, plan, shapes)
    samples = calibration_of(data.data, data, whole, execution.device)
    assert samples is not None
    analysis = analyze_for(whole, plan)
    if not has_float_layers(analysis):
        raise OnnxPruneError(
            "the weights of this model are quantized, so they cannot be re-solved", where=str(original),
            fix="prune and recover the model before it is quantized, see docs/howto/quantized.md",
        )  # fmt: skip
    check_belongs(analysis, plan, small)
    if proof.verify:
        try:
            prove(analysis, plan, small, feeds=proof_feeds(data.data, samples, whole), device=execution.device)
        except VerificationError as err:
            fix = "use the model that this plan made; --no-verify if it was trained since"
            raise VerificationError(err.what, where=err.where, fix=fix) from err
    with display.progress("recovering", quiet=as_json) as tick:
        done = run(
            whole, small, plan, replace(samples, batch=execution.batch, threads=execution.threads), analysis=analysis,
            stages=recovery.stages, rows=recovery.rows, rounds=recovery.rounds, epochs=recovery.epochs, folder=folder,
            restart=resuming.restart, task=tasks, progress=tick,
        )  # fmt: skip
    save(done.model, output.output, external=output.external)
    shutil.rmtree(folder, ignore_errors=True)  # the result is on disk
    document = {"output": str(output.output), "data": samples.as_dict(), **plan.removed_counts(), **done.as_dict()}
    if not display.finished(as_json, lambda: document):
        display.recovered_table(done, f"{pruned.name} -> {output.output}")
