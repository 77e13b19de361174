"""Stages shared by several commands, from typed options to results: one function for each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.errors import OnnxPruneError
from onnxprune.options import (
    AnalysisOptions,
    AttentionOptions,
    Constraints,
    InputShapes,
    Machine,
    Measuring,
    ModelOutput,
    Planning,
    Preprocessing,
    Resuming,
    RuntimeChoice,
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
    from onnxprune.execution.data import Fitted, Preprocess
    from onnxprune.ir.model import Array, Model
    from onnxprune.latency.runtimes import Runtime
    from onnxprune.latency.speedup import Speedup
    from onnxprune.pipeline import Compiled
    from onnxprune.planning.curves import Curves
    from onnxprune.planning.targets import LatencyPredictor, Target
    from onnxprune.plans import Plan
    from onnxprune.recovery.recover import Recovered

SYNTHETIC = 512  # synthetic samples for `--data none`


def check_resume(resuming: Resuming) -> None:
    """Note that `--resume` is not needed any more.

    Raises:
        click.UsageError: `--restart` as well.
    """
    if resuming.resume and resuming.restart:
        raise click.UsageError("--resume and --restart exclude each other: use only one of them")
    if resuming.resume:
        click.echo("--resume is the default now; --restart discards an interrupted run", err=True)


def load_model(path: Path, shapes: InputShapes | None = None) -> Model:
    """Read a model, with the sizes of its inputs as far as they are given."""
    from onnxprune.ir.reader import load

    return load(path, shapes=shapes.shapes if shapes is not None else None)


def load_models(paths: Sequence[Path], shapes: InputShapes) -> list[Model]:
    """Read models that may have different inputs: sizes are those of the inputs that a model has."""
    from onnxprune.ir.input_sizes import with_shapes_of_each
    from onnxprune.ir.reader import load

    return with_shapes_of_each([load(path) for path in paths], shapes.shapes)


def analyzed(model: Model, options: AttentionOptions) -> Analysis:
    """Analyze a model."""
    from onnxprune.pipeline import analyze

    inexact = isinstance(options, AnalysisOptions) and options.include_inexact
    return analyze(model, attention=options.attention, include_inexact=inexact)


def runtime_of(choice: RuntimeChoice, device: str = "cpu") -> Runtime:
    """Return the runtime that latency counts in."""
    from onnxprune.latency.runtimes import make_runtime

    return make_runtime(choice.runtime, choice.runtime_options, device=device)


def constraints_on(choice: RuntimeChoice, device: str, constraints: Constraints) -> Constraints:
    """Return the constraints with `round_to` resolved for a runtime other than onnxruntime on the CPU."""
    if constraints.round_to != "auto" or (choice.is_default and device == "cpu"):
        return constraints
    from onnxprune.latency.runtimes import block_of

    return replace(constraints, round_to=block_of(runtime_of(choice, device)))


def target_of(planning: Planning, curves: Path | None, scores: Path | None = None) -> Target | None:
    """Return the target of a plan; None without `--target`.

    Raises:
        click.UsageError: options that exclude each other, or none that sets a budget.
    """
    thresholds = planning.min_group_accuracy is not None or planning.max_loss is not None
    if thresholds and curves is None:
        raise click.UsageError("--min-group-accuracy and --max-loss need --curves")
    if curves is not None and planning.ratio is not None:
        raise click.UsageError("--ratio and --curves exclude each other: --ratio removes the same share of every group")
    if curves is not None and not thresholds and planning.target is None:
        raise click.UsageError("--curves need --min-group-accuracy (or --max-loss), or a --target")
    if curves is None and (planning.target is None) == (planning.ratio is None):
        raise click.UsageError("use either --ratio or --target (for example --target macs=0.5)")
    if planning.steps is not None and (curves is not None or scores is not None):
        raise click.UsageError("--steps computes new scores between steps: leave out --curves and --scores")
    return read_target(planning.target) if planning.target is not None else None


def read_target(text: str) -> Target:
    """Return the target of a text; an assumed measure is noted on stderr."""
    from onnxprune.cli._support import display
    from onnxprune.planning.targets import Target

    target = Target.parse(text)
    if not Target.names_measure(text):
        display.note(f"--target {text.strip()} is read as {target.measure}={target.share:g}")
    return target


# -------------------------------------------------------------------------------------------------------------- data


def preprocess_of(options: Preprocessing) -> Preprocess:
    """Return the conversion of samples into the model's input."""
    from onnxprune.execution.data import preprocess_of as read

    return read(options)


def read_data(
    source: str,
    options: SampleOptions,
    model: Model,
    *,
    labels: bool = False,
    device: str = "cpu",
    images: int | None = None,
) -> Fitted:
    """Read samples, match them with the model and run the first ones; lines about them go to stderr.

    Args:
        source: Source of the samples.
        options: Preprocessing and number of samples.
        model: Model that the samples are for.
        labels: Whether labels of classes are needed.
        device: Device of the run.
        images: Number of samples if the options set none.
    """
    from onnxprune.cli._support import display
    from onnxprune.execution.data import fit, load_data

    data = load_data(
        source, images=options.images or images, model=model, class_map=options.class_map,
        images_dir=options.images_dir, data_timeout=options.data_timeout,
    )  # fmt: skip
    found = fit(model, data, preprocess_of(options), labels=labels, device=device)
    for line in found.data.warnings:
        display.note(f"Warning: {line}")
    return found


def calibration_of(source: str | None, options: SampleOptions, model: Model, device: str) -> Calibration | None:
    """Read or synthesize the calibration data; None without a source."""
    from onnxprune.execution.calibration import Calibration

    if not source:
        return None
    if source == NO_DATA:
        from onnxprune.execution.synthetic_data import synthetic_data

        return Calibration(synthetic_data(model, options.images or SYNTHETIC), device=device)
    found = read_data(source, options, model, device=device)
    return Calibration(found.data, found.preprocess, device=device)


def evaluation_split(
    source: str, val_source: str | None, options: SampleOptions, model: Model, device: str
) -> tuple[Calibration, Calibration]:
    """Return (calibration, evaluation) samples; without a source of its own the evaluation gets every 4th sample.

    Raises:
        OnnxPruneError: Synthetic samples, too few samples, or a source that cannot be read.
    """
    from onnxprune.pipeline import held_out

    if NO_DATA in (source, val_source):
        raise OnnxPruneError("a metric needs real samples, not synthetic ones", fix="--data images/, labels not needed")
    samples = calibration_of(source, options, model, device)
    assert samples is not None
    if val_source is not None:
        evaluation = calibration_of(val_source, replace(options, images=None), model, device)
        assert evaluation is not None
        return samples, evaluation
    fit, rest = held_out(samples.data)
    return replace(samples, data=fit), replace(samples, data=rest)


def proof_feeds(source: str | None, samples: Calibration | None, model: Model) -> Sequence[dict[str, Array]] | None:
    """Return the first samples for a proof; None for synthetic ones, which prove no more than random inputs."""
    return samples.first(model) if samples is not None and source != NO_DATA else None


# ------------------------------------------------------------------------------------------------- scores and plans


def scored(
    analysis: Analysis, scoring: Scoring, samples: Calibration | None, *, quiet: bool,
    constraints: Constraints | None = None, target: Target | None = None,
) -> Scores:  # fmt: skip
    """Score all channels, and the blocks that a plan under these constraints may remove."""
    from onnxprune.cli._support.display import progress
    from onnxprune.planning.depth import scores_for, target_met

    note_synonym(scoring.name)
    limits = constraints or Constraints()
    enough = target_met(analysis, target) if limits.asks_for_blocks else None
    with progress(f"scoring with {scoring.name}", quiet=quiet) as tick:
        return scores_for(
            analysis, scoring.name, limits, enough=enough, reduce=scoring.reduce, calibration=samples, progress=tick,
            **scoring.params,
        )  # fmt: skip


def note_synonym(criterion: str) -> None:
    """Note on stderr which criterion another name stands for."""
    from onnxprune.cli._support import display
    from onnxprune.criteria import get_class

    name = get_class(criterion).name
    if name != criterion:
        display.note(f"the criterion {criterion} is {name}: {get_class(name).title}")


def scoring_of(curves: Curves | None, scoring: Scoring) -> Scoring:
    """Return the options of scoring; without `--criterion` those that the curves were measured with."""
    if curves is None or scoring.criterion is not None:
        return scoring
    name, reduce = curves.criterion.get("name"), curves.criterion.get("reduce")
    if not isinstance(name, str):
        raise OnnxPruneError("the curves do not name the criterion they were measured with", fix="add it with -c")
    params = {k: v for k, v in curves.criterion.items() if k not in ("name", "reduce", "normalize")}
    own = scoring.reduce or (reduce if isinstance(reduce, str) else None)
    return Scoring(criterion=name, params={**params, **scoring.params}, reduce=own)


def latency_predictor(analysis: Analysis, machine: Machine, *, quiet: bool) -> LatencyPredictor:
    """Return a latency model, measured or from the cache."""
    from onnxprune.cli._support.display import progress
    from onnxprune.latency.prediction import latency_model

    with progress("measuring latency", quiet=quiet) as tick:
        where = None if machine.is_default else runtime_of(machine, machine.device)
        return latency_model(
            analysis, batch=machine.batch, threads=machine.threads, device=machine.device, runtime=where, progress=tick
        )


def needs_latency(planning: Planning, target: Target | None) -> bool:
    """Return True if a plan needs a latency model."""
    return planning.allocator == "latency" or (target is not None and target.measure == "latency")


@dataclass(frozen=True)
class Planned:
    """Plan with the values it was computed from.

    Attributes:
        plan: Channels to remove.
        scores: Scores; None if they were computed in every step.
        curves: Sensitivity curves, if given.
        latency: Latency model, if needed or requested.
        data: Name, number and preprocessing of the samples that the scores are from; empty without any.
        speedup: Measurement of the plan, if it was made for a latency target.
    """

    plan: Plan
    scores: Scores | None
    curves: Curves | None
    latency: LatencyPredictor | None
    data: Mapping[str, Any]
    speedup: Speedup | None = None


@dataclass(frozen=True)
class PlanInputs:
    """Inputs of a plan, besides the model.

    Attributes:
        planning: Budget and allocator.
        scoring: Criterion.
        constraints: Bounds of the plan.
        target: Target parsed from the budget.
        measuring: Runs that latency is predicted and measured for.
        predict: Predict latency even if the plan does not need it.
        source, data: Source of the calibration data, and its options.
        samples: Calibration data that was already read.
        scores_file, curves_file: Files with scores and sensitivity curves.
        scores: Scores that were computed before.
        recovering: Whether the weights are recovered afterwards.
        quiet: Show no progress bars.
    """

    planning: Planning
    scoring: Scoring
    constraints: Constraints
    target: Target | None
    measuring: Measuring
    predict: bool
    data: SampleOptions
    source: str | None
    samples: Calibration | None = None
    scores_file: Path | None = None
    curves_file: Path | None = None
    scores: Scores | None = None
    recovering: bool = False
    quiet: bool = False

    def calibration(self, model: Model) -> Calibration | None:
        """Return the calibration data; None without a source."""
        if self.samples is not None:
            return self.samples
        return calibration_of(self.source, self.data, model, self.measuring.device)


def planned(analysis: Analysis, inputs: PlanInputs) -> Planned:
    """Compute a plan."""
    from onnxprune.cli._support.display import note, progress
    from onnxprune.criteria.obs import REMAINING
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.pipeline import plan
    from onnxprune.pipeline.compensation_choice import with_chosen_remaining
    from onnxprune.planning.curves import load_curves
    from onnxprune.planning.depth import included
    from onnxprune.planning.iterative import plan_steps

    planning, scoring, target = inputs.planning, inputs.scoring, inputs.target
    if remark := included(analysis, inputs.constraints):
        note(remark)
    curves = load_curves(inputs.curves_file) if inputs.curves_file is not None else None
    scored_here = planning.steps is not None or (inputs.scores_file is None and inputs.scores is None)
    samples = inputs.calibration(analysis.source) if scored_here else None  # before latency, which takes long
    wanted = inputs.predict or needs_latency(planning, target)
    latency = latency_predictor(analysis, inputs.measuring, quiet=inputs.quiet) if wanted else None
    scores = inputs.scores
    data: Mapping[str, Any] = samples.as_dict() if samples is not None else {}
    if scores is None and inputs.scores_file is not None:
        scores = load_scores(inputs.scores_file, analysis)
    elif scores is None and planning.steps is None:
        own = scoring_of(curves, scoring)
        scores = scored(
            analysis, own, samples, quiet=inputs.quiet, constraints=inputs.constraints, target=target
        )  # fmt: skip
    elif scores is None:
        note_synonym(scoring.name)
    if scores is not None:
        data = scores.data

    def planned_by(found: Scores, predictor: LatencyPredictor | None, aim: Target | None) -> Plan:
        return plan(
            found, aim, ratio=planning.ratio, curves=curves, min_group_accuracy=planning.min_group_accuracy,
            max_loss=planning.max_loss, latency=predictor, allocator=planning.allocator,
            normalize=planning.normalize, constraints=inputs.constraints,
        )  # fmt: skip

    settled = scores
    if scores is not None and inputs.samples is not None and inputs.recovering:
        with progress("comparing plans", quiet=inputs.quiet) as tick:
            settled = with_chosen_remaining(
                scores, partial(planned_by, predictor=latency, aim=target), inputs.samples, tick
            )  # fmt: skip
        chosen = settled.criterion.get("remaining")
        if settled is not scores and chosen != REMAINING:
            note(f"note: short recoveries suggest that obs counts {chosen:g} of early errors (-p remaining={chosen:g})")

    def make(predictor: LatencyPredictor | None, aim: Target | None) -> Plan:
        if settled is not None:
            return planned_by(settled, predictor, aim)
        assert planning.steps is not None
        with progress(f"scoring with {scoring.name}", quiet=inputs.quiet) as tick:
            return plan_steps(
                analysis, scoring.name, aim, steps=planning.steps, schedule=planning.schedule, ratio=planning.ratio,
                latency=predictor, allocator=planning.allocator, normalize=planning.normalize,
                constraints=inputs.constraints, reduce=scoring.reduce,
                calibration=samples, progress=tick, **scoring.params,
            )  # fmt: skip

    measuring = inputs.measuring
    if target is None or target.measure != "latency" or latency is None or not measuring.latency_rounds:
        return Planned(make(latency, target), scores, curves, latency, data)
    from onnxprune.latency.targeting import plan_for_latency

    with progress("measuring plans", quiet=inputs.quiet) as tick:
        found = plan_for_latency(
            analysis, target, make, latency, runtime=runtime_of(measuring, measuring.device), runs=measuring.runs,
            rounds=measuring.latency_rounds, progress=tick,
        )  # fmt: skip
    return Planned(found.plan, scores, curves, latency, data, found.speedup)


def speedup_of(
    analysis: Analysis, made: Planned, pruned: Model | None, timing: Timing, *, quiet: bool
) -> Speedup | None:
    """Return predicted and measured latency; None without a latency model."""
    if made.latency is None or made.speedup is not None:
        return made.speedup
    from onnxprune.cli._support.display import progress
    from onnxprune.latency.speedup import measure_speedup
    from onnxprune.pipeline import compile_plan

    small = pruned or compile_plan(analysis.source, made.plan, analysis=analysis, check=False).model
    with progress("measuring", quiet=quiet) as tick:
        return measure_speedup(
            analysis, made.plan, small, made.latency, runtime=runtime_of(timing, timing.device), runs=timing.runs,
            progress=tick,
        )  # fmt: skip


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
    from onnxprune.cli._support.display import progress
    from onnxprune.pipeline import compile_plan

    with progress("stripping and verifying", quiet=quiet):
        return compile_plan(
            model, plan, analysis=analysis, check=verifying.verify, feeds=feeds, tolerance=verifying.tolerance
        )


def has_float_layers(analysis: Analysis) -> bool:
    """Return False if a model has quantized weights alone, so that recovery can re-solve none."""
    from onnxprune.analysis.linear_layers import linear_node

    if not analysis.table.integer_weights:
        return True
    return any(linear_node(node) is not None for node in analysis.model.graph.nodes)


def finish(
    done: Compiled,
    source: Path,
    output: ModelOutput,
    speedup: Speedup | None = None,
    recovered: Recovered | None = None,
    samples: Calibration | None = None,
    *,
    plan_file: Path | None = None,
    as_json: bool,
) -> None:
    """Write a pruned model and show the result, and what to run next."""
    from onnxprune.cli._support import display
    from onnxprune.cli._support.next_steps import next_steps
    from onnxprune.ir.writer import save

    save(done.model, output.output, external=output.external)
    document = display.compiled_document(done, str(output.output), speedup)
    if samples is not None:
        document["data"] = samples.as_dict()
    if recovered is not None:
        document["recovery"] = recovered.as_dict()
    if display.finished(as_json, lambda: document):
        return
    display.compiled_table(done, f"{source.name} -> {output.output}", speedup)
    if not done.plan.removed and not done.plan.blocks:
        click.echo("nothing was removed: the plan keeps every channel")
    if recovered is not None:
        display.recovered_table(recovered, "without training")
    real = recovered is not None and samples is not None and samples.data.name != NO_DATA
    click.echo(
        next_steps(
            source,
            output.output,
            plan_file,
            measured=real,
            recovered=recovered is not None or not has_float_layers(done.analysis),
        )
    )
