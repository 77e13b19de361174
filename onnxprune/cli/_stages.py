"""Stages that several commands share, from typed options to results: one function for each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.errors import OnnxPruneError
from onnxprune.options import (
    AnalysisOptions,
    AttentionOptions,
    Constraints,
    Machine,
    ModelOutput,
    Planning,
    Preprocessing,
    SampleOptions,
    Scoring,
    Timing,
    Verifying,
)
from onnxprune.options.data import NO_DATA

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.criteria.scoring import Scores
    from onnxprune.execution.calibration import Calibration
    from onnxprune.execution.data import Data, Preprocess
    from onnxprune.ir.model import Array, Model
    from onnxprune.latency.speedup import Speedup
    from onnxprune.pipeline import Compiled
    from onnxprune.planning.curves import Curves
    from onnxprune.planning.targets import LatencyPredictor, Target
    from onnxprune.plans import Plan
    from onnxprune.recovery.recover import Recovered

SYNTHETIC = 512  # made-up samples for `--data none`


def load_model(path: Path) -> Model:
    """Read a model."""
    from onnxprune.ir.reader import load

    return load(path)


def analyzed(model: Model, options: AttentionOptions) -> Analysis:
    """Analyze a model."""
    from onnxprune.pipeline import analyze

    inexact = isinstance(options, AnalysisOptions) and options.include_inexact
    return analyze(model, attention=options.attention, include_inexact=inexact)


def constraints_on(device: str, constraints: Constraints) -> Constraints:
    """The constraints with `round_to` resolved for a device other than the CPU."""
    from onnxprune.execution.sessions import kernel_block

    if constraints.round_to == "auto" and device == "cuda":
        return replace(constraints, round_to=kernel_block("cuda"))
    return constraints


def target_of(planning: Planning, curves: Path | None, scores: Path | None = None) -> Target | None:
    """The target of a plan.

    Raises:
        click.UsageError: options that exclude each other, or none that says how much is removed.
    """
    from onnxprune.planning.targets import Target

    thresholds = planning.min_group_accuracy is not None or planning.max_loss is not None
    if thresholds and curves is None:
        raise click.UsageError("--min-group-accuracy and --max-loss need --curves")
    if curves is not None and planning.ratio is not None:
        raise click.UsageError("--ratio removes the same share from every group, --curves do not: give one of them")
    if curves is not None and not thresholds and planning.target is None:
        raise click.UsageError("--curves need --min-group-accuracy (or --max-loss), or a --target")
    if curves is None and (planning.target is None) == (planning.ratio is None):
        raise click.UsageError("give either --ratio or --target (for example --target macs=0.5)")
    if planning.steps is not None and (curves is not None or scores is not None):
        raise click.UsageError("--steps score anew between steps, so --curves and --scores do not go with them")
    return Target.parse(planning.target) if planning.target is not None else None


# -------------------------------------------------------------------------------------------------------------- data


def preprocess_of(options: Preprocessing) -> Preprocess:
    """How samples become the model's input."""
    from onnxprune.execution.data import Preprocess

    # Lists: digests of data that curves and journals hold are of the preprocessing's text.
    return Preprocess(list(options.mean), list(options.std), options.layout)


def image_size(options: Preprocessing) -> tuple[int, int] | None:
    """Height and width that image files are resized to."""
    return (options.size[0], options.size[1]) if options.size else None


def read_data(source: str, options: SampleOptions) -> Data:
    """Read samples."""
    from onnxprune.execution.data import load_data

    return load_data(source, images=options.images, size=image_size(options))


def calibration_of(source: str | None, options: SampleOptions, model: Model, device: str) -> Calibration | None:
    """Read or make up the samples for criteria and recovery; None without a source."""
    from onnxprune.execution.calibration import Calibration

    if not source:
        return None
    if source == NO_DATA:
        from onnxprune.execution.synthetic_data import synthetic_data

        return Calibration(synthetic_data(model, options.images or SYNTHETIC), device=device)
    return Calibration(read_data(source, options), preprocess_of(options), device=device)


def proof_feeds(source: str | None, samples: Calibration | None, model: Model) -> Sequence[dict[str, Array]] | None:
    """The first samples, for a proof on real inputs; made-up ones prove no more than random inputs."""
    return samples.first(model) if samples is not None and source != NO_DATA else None


# ------------------------------------------------------------------------------------------------- scores and plans


def scored(analysis: Analysis, scoring: Scoring, samples: Calibration | None, *, quiet: bool) -> Scores:
    """Score all channels."""
    from onnxprune.cli._display import progress
    from onnxprune.criteria.scoring import score

    with progress(f"scoring with {scoring.name}", quiet=quiet) as tick:
        return score(
            analysis, scoring.name, reduce=scoring.reduce, calibration=samples, progress=tick, **scoring.params
        )


def scoring_of(curves: Curves | None, scoring: Scoring) -> Scoring:
    """The options of scoring; without a criterion of their own they are those that the curves were made with."""
    if curves is None or scoring.criterion is not None:
        return scoring
    name, reduce = curves.criterion.get("name"), curves.criterion.get("reduce")
    if not isinstance(name, str):
        raise OnnxPruneError("the curves do not name the criterion they were made with", fix="name it with -c")
    params = {k: v for k, v in curves.criterion.items() if k not in ("name", "reduce", "normalize")}
    own = scoring.reduce or (reduce if isinstance(reduce, str) else None)
    return Scoring(criterion=name, params={**params, **scoring.params}, reduce=own)


def latency_predictor(analysis: Analysis, machine: Machine, *, quiet: bool) -> LatencyPredictor:
    """A latency model, measured or from the cache."""
    from onnxprune.cli._display import progress
    from onnxprune.latency.prediction import latency_model

    with progress("measuring latency", quiet=quiet) as tick:
        return latency_model(
            analysis, batch=machine.batch, threads=machine.threads, device=machine.device, progress=tick
        )


def needs_latency(planning: Planning, target: Target | None) -> bool:
    """Whether a plan needs a latency model."""
    return planning.allocator == "latency" or (target is not None and target.measure == "latency")


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from.

    Attributes:
        plan: the plan.
        scores: None if they were made anew in every step.
        curves: sensitivity curves, if given.
        latency: latency model, if asked for.
    """

    plan: Plan
    scores: Scores | None
    curves: Curves | None
    latency: LatencyPredictor | None


@dataclass(frozen=True)
class PlanInputs:
    """Everything that a plan is made from, besides the model.

    Attributes:
        planning: the budget.
        scoring: the criterion.
        constraints: bounds of the plan.
        target: parsed from the budget.
        machine: the runs that latency is predicted for.
        predict: predict latency even if the plan does not need it.
        scores_file, curves_file: files with scores and sensitivity curves.
        source, data: calibration data.
        samples: calibration data that was read already.
        quiet: without progress bars.
    """

    planning: Planning
    scoring: Scoring
    constraints: Constraints
    target: Target | None
    machine: Machine
    predict: bool
    data: SampleOptions
    source: str | None
    samples: Calibration | None = None
    scores_file: Path | None = None
    curves_file: Path | None = None
    quiet: bool = False

    def calibration(self, model: Model) -> Calibration | None:
        """The calibration data."""
        if self.samples is not None:
            return self.samples
        return calibration_of(self.source, self.data, model, self.machine.device)


def planned(analysis: Analysis, inputs: PlanInputs) -> Planned:
    """Make a plan."""
    from onnxprune.cli._display import progress
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.pipeline import plan
    from onnxprune.planning.curves import load_curves
    from onnxprune.planning.iterative import plan_steps

    planning, scoring, target = inputs.planning, inputs.scoring, inputs.target
    curves = load_curves(inputs.curves_file) if inputs.curves_file is not None else None
    wanted = inputs.predict or needs_latency(planning, target)
    latency = latency_predictor(analysis, inputs.machine, quiet=inputs.quiet) if wanted else None
    if planning.steps is not None:
        with progress(f"scoring with {scoring.name}", quiet=inputs.quiet) as tick:
            made = plan_steps(
                analysis, scoring.name, target, steps=planning.steps, schedule=planning.schedule, ratio=planning.ratio,
                latency=latency, allocator=planning.allocator, normalize=planning.normalize,
                constraints=inputs.constraints, reduce=scoring.reduce,
                calibration=inputs.calibration(analysis.source), progress=tick, **scoring.params,
            )  # fmt: skip
        return Planned(made, None, None, latency)
    if inputs.scores_file is not None:
        scores = load_scores(inputs.scores_file, analysis)
    else:
        own = scoring_of(curves, scoring)
        scores = scored(analysis, own, inputs.calibration(analysis.source), quiet=inputs.quiet)
    made = plan(
        scores, target, ratio=planning.ratio, curves=curves, min_group_accuracy=planning.min_group_accuracy,
        max_loss=planning.max_loss, latency=latency, allocator=planning.allocator, normalize=planning.normalize,
        constraints=inputs.constraints,
    )  # fmt: skip
    return Planned(made, scores, curves, latency)


def speedup_of(
    analysis: Analysis, made: Planned, pruned: Model | None, timing: Timing, *, quiet: bool
) -> Speedup | None:
    """Predicted and measured latency, if there is a latency model."""
    if made.latency is None:
        return None
    from onnxprune.cli._display import progress
    from onnxprune.latency.speedup import measure_speedup
    from onnxprune.pipeline import compile_plan

    small = pruned or compile_plan(analysis.source, made.plan, analysis=analysis, check=False).model
    with progress("measuring", quiet=quiet) as tick:
        return measure_speedup(
            analysis, made.plan, small, made.latency, device=timing.device, runs=timing.runs, progress=tick
        )


# ----------------------------------------------------------------------------------------------------- pruned models


def compiled(
    model: Model,
    plan: Plan,
    verifying: Verifying,
    *,
    analysis: Analysis | None = None,
    feeds: Sequence[dict[str, Array]] | None = None,
    quiet: bool,
) -> Compiled:
    """Apply a plan and prove the result."""
    from onnxprune.cli._display import progress
    from onnxprune.pipeline import compile_plan

    with progress("stripping and verifying", quiet=quiet):
        return compile_plan(
            model, plan, analysis=analysis, check=verifying.verify, feeds=feeds, tolerance=verifying.tolerance
        )


def finish(
    done: Compiled,
    source: Path,
    output: ModelOutput,
    speedup: Speedup | None = None,
    recovered: Recovered | None = None,
    *,
    as_json: bool,
) -> None:
    """Write a pruned model and show the result."""
    from onnxprune.cli import _display
    from onnxprune.ir.writer import save

    save(done.model, output.output, external=output.external)
    if as_json:
        document = _display.compiled_document(done, str(output.output), speedup)
        _display.emit_json(document if recovered is None else {**document, "recovery": recovered.as_dict()})
        return
    _display.compiled_table(done, f"{source.name} -> {output.output}", speedup)
    if recovered is not None:
        _display.recovered_table(recovered, "without training")
