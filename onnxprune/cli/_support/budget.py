"""`prune --max-drop`: search, files and table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.stages import analyzed, constraints_on, evaluation_split, latency_predictor, runtime_of
from onnxprune.options import (
    AnalysisOptions,
    Budget,
    CalibrationData,
    Constraints,
    CurvesInput,
    Measuring,
    ModelOutput,
    Planning,
    Scoring,
    TaskOptions,
    Verifying,
)

if TYPE_CHECKING:
    from onnxprune.ir.model import Model
    from onnxprune.pipeline import BudgetPoint, BudgetSearch, Judgement, Polished


def check_usage(
    budget: Budget, planning: Planning, curves: CurvesInput, data: CalibrationData, recover: bool | None,
    verifying: Verifying,
) -> None:  # fmt: skip
    """Raise if other options exclude a budget.

    Raises:
        click.UsageError: names them.
    """
    if not data.data:
        raise click.UsageError("--max-drop needs --data: samples, labels not needed")
    if planning.target is not None or planning.ratio is not None:
        raise click.UsageError("--max-drop finds the target itself: leave out --target and --ratio")
    if curves.curves_file is not None or planning.steps is not None:
        raise click.UsageError("--max-drop computes new scores at every point: leave out --curves and --steps")
    if recover is False or not verifying.verify:
        raise click.UsageError("--max-drop proves and recovers every point: leave out --no-recover and --no-verify")


def prune_within(
    original: Model,
    source: Path,
    output: ModelOutput,
    plan_file: Path | None,
    budget: Budget,
    scoring: Scoring,
    data: CalibrationData,
    tasks: TaskOptions,
    planning: Planning,
    constraints: Constraints,
    analysis: AnalysisOptions,
    measuring: Measuring,
    verifying: Verifying,
    stages: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Search for the cheapest model within the budget, write it and its neighbours, and show all points."""
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.ir.writer import save
    from onnxprune.pipeline import PrunePath, prune_to_budget
    from onnxprune.plans import save_plan

    assert budget.max_drop is not None
    assert data.data is not None
    target = output.output
    neighbours = {n: target.with_name(f"{target.stem}-{n}{target.suffix}") for n in ("larger", "smaller")}
    for neighbour in neighbours.values():
        check_output(neighbour, source)
    fit, evaluation = evaluation_split(data.data, budget.val_data, data, original, measuring.device)
    found = analyzed(original, analysis)
    latency = None
    if budget.minimize == "latency" or planning.allocator == "latency":
        latency = latency_predictor(found, measuring, quiet=as_json)
    path = PrunePath(
        found, fit, measure=budget.minimize, criterion=scoring.criterion or "obs", params=scoring.params,
        reduce=scoring.reduce, allocator=planning.allocator, normalize=planning.normalize,
        constraints=constraints_on(measuring, measuring.device, constraints), latency=latency,
        feeds=fit.first(original), tolerance=verifying.tolerance, stages=stages,
    )  # fmt: skip

    def show(point: BudgetPoint) -> None:
        if not as_json:
            verdict = "within" if point.within else "beyond"
            display.note(f"{point.kept:.1%} of the {budget.minimize}: drop {point.reading.drop:.2f}, {verdict}")

    folder = output.output.with_name(output.output.name + ".points")
    search = prune_to_budget(
        path, evaluation, budget.max_drop, task=tasks, folder=folder, restart=budget.restart, runs=measuring.runs,
        runtime=None if measuring.is_default else runtime_of(measuring, measuring.device),
        notice=show,
    )  # fmt: skip
    best = search.best
    result, polished = best.point.model, []
    for epochs, unlabelled in ((budget.polish, True), (budget.retrain, False)):
        if epochs:
            from onnxprune.pipeline import polish

            with display.progress("training", quiet=as_json) as tick:
                trained = polish(
                    result, original, fit, search.judge, epochs=epochs, unlabelled=unlabelled, progress=tick
                )
            result = trained.model
            polished.append(trained)
    quantized = None
    if budget.quantize:
        from onnxprune.pipeline import quantize_int8

        quantized = search.judge.read(result := quantize_int8(result, fit))
    save(result, output.output, external=output.external)
    if plan_file is not None:
        save_plan(best.point.plan, plan_file)
    written = {}
    for (name, file), point in zip(neighbours.items(), (search.larger, search.smaller), strict=True):
        if point is not None:
            save(point.point.model, file, external=output.external)
            written[name] = str(file)
    search.remove_points()
    document = {
        "output": str(output.output), **search.as_dict(), "neighbours": written,
        "before": vars(best.point.before), "after": vars(best.point.after),
        **best.point.plan.removed_counts(), "plan_digest": best.point.plan.digest,
        "verification": dict(best.point.certificate),
        "recovery": dict(best.point.recovery), "int8": None if quantized is None else vars(quantized),
        "polished": [p.as_dict() for p in polished],
    }  # fmt: skip
    if display.finished(as_json, lambda: document):
        return
    _show(search, source, output.output, plan_file, written, quantized, polished)


def _show(
    search: BudgetSearch, source: Path, target: Path, plan_file: Path | None, written: dict[str, str],
    quantized: Judgement | None, polished: list[Polished],
) -> None:  # fmt: skip
    from onnxprune.cli._support import display
    from onnxprune.cli._support.next_steps import next_steps

    title = f"{source.name} -> {target}"

    rows = []
    columns = ["latency, predicted", "measured"] if search.measured else [f"{search.measure} kept"]
    for p in search.points:
        r = p.reading
        error = "" if r.drop_error is None else f"{r.drop_error:.2f}"
        mark = "<- written" if p is search.best else "within" if p.within else "beyond"
        pair = search.measured.get(p.kept)
        timed = [] if not search.measured else [f"{pair.share:.1%}" if pair is not None else ""]
        rows.append([f"{p.kept:.1%}", *timed, f"{r.value:.4f}", f"{r.drop:.2f}", error, mark])
    display.table(
        f"{title}: {search.metric} of the original {search.original:.4f}, {search.samples} held-out samples",
        [*columns, search.metric, f"drop ({search.unit})", "+-", ""], rows,
    )  # fmt: skip
    for step in polished:
        a, b = step.before, step.after
        fate = "" if step.kept else " (undone)"
        click.echo(f"after {step.epochs} epochs: drop {a.drop:.2f} -> {b.drop:.2f} {search.unit}{fate}")
    if quantized is not None:
        click.echo(f"int8: {search.metric} {quantized.value:.4f}, drop {quantized.drop:.2f} {search.unit}")
    for name, path in written.items():
        click.echo(f"the next {name} one: {path}")
    click.echo(f"proved: {search.best.point.certificate['summary']}")
    click.echo(next_steps(source, target, plan_file, measured=True, recovered=True))
    if search.warning:
        display.note(f"Warning: {search.warning}")
