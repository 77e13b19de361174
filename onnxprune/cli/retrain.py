"""The command `onnxprune retrain`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import check_resume, constraints_on, load_model, read_data, read_target
from onnxprune.errors import OnnxPruneError
from onnxprune.options import (
    Constraints,
    Events,
    InputShapes,
    ModelOutput,
    Options,
    RequiredData,
    Resuming,
    RuntimeChoice,
    TaskOptions,
    Training,
    TrainingMethod,
    option,
)

if TYPE_CHECKING:
    from onnxprune.planning.targets import Target


@dataclass(frozen=True, kw_only=True, repr=False)
class ValidationData(Options):
    """Data that epochs are compared on."""

    val_data: str | None = option(None, help="Validation data, likewise.", heading="Data")


@dataclass(frozen=True, kw_only=True, repr=False)
class TeacherFiles(Options):
    """Original model, and the plan by which the model was pruned."""

    teacher: Path | None = option(None, help="Original model: train on its outputs as well.", heading="Teacher")
    teacher_plan: Path | None = option(
        None, heading="Teacher",
        help="Plan by which MODEL was pruned: --features then also match pruned channels, and inside blocks.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class MethodPlan(Options):
    """Plan of a method that prunes while training."""

    plan_file: Path | None = option(None, help="With --method: plan to write.", heading="Output", flag="--plan")


@click.command(
    cls=Command,
    advanced=(
        "exclude", "protect", "method", "ratio", "target", "plan_file", "features", "teacher_plan", "optimizer",
        "preset", "images",
    ),
)  # fmt: skip
@model_argument
@takes_options
@json_option
def retrain(
    model: Path,
    output: ModelOutput,
    data: RequiredData,
    validation: ValidationData,
    tasks: TaskOptions,
    training: Training,
    taught: TeacherFiles,
    pruning: TrainingMethod,
    method_plan: MethodPlan,
    constraints: Constraints,
    shapes: InputShapes,
    resuming: Resuming,
    events: Events,
    as_json: bool,
) -> None:
    """Train a pruned model's weights; its graph does not change.

    \b
    onnxprune retrain s.onnx --data imgs/ -o r.onnx --teacher m.onnx
    onnxprune retrain s.onnx --data x.npz -o r.onnx --teacher m.onnx --unlabelled

    OUTPUT is written if the best epoch is better on the validation data than MODEL and than an existing OUTPUT.
    Checkpoints and logs are in OUTPUT.training; the same command continues an interrupted run.
    """
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.ir.writer import save
    from onnxprune.plans import load_plan, save_plan

    check_resume(resuming)
    aim = _method_target(pruning, method_plan.plan_file)
    for source in filter(None, (model, taught.teacher, taught.teacher_plan)):
        check_output(output.output, source)
    if method_plan.plan_file is not None:
        check_output(method_plan.plan_file, model)
    pruned = load_model(model, shapes)
    found = read_data(data.data, data, pruned, labels=not training.unlabelled, device=training.device)
    val = None
    if validation.val_data:
        every = replace(data, images=None)
        val = read_data(validation.val_data, every, pruned, labels=not training.unlabelled).data
    teacher = load_model(taught.teacher, shapes) if taught.teacher is not None else None
    pruned_by = load_plan(taught.teacher_plan) if taught.teacher_plan is not None else None
    always = training.keep == "last" or pruning.method is not None
    replaces = load_model(output.output) if output.output.exists() and not always else None

    from onnxprune.training import get_method, process_rank, remove_checkpoints
    from onnxprune.training import retrain as run

    method = get_method(pruning.method, **pruning.params) if pruning.method is not None else None
    folder = output.output.with_name(output.output.name + ".training")
    with display.progress("training", quiet=as_json or process_rank() > 0) as tick:
        done = run(
            pruned, found.data, val=val, preprocess=found.preprocess, task=tasks, settings=training, teacher=teacher,
            plan=pruned_by, method=method, replaces=replaces, folder=folder,
            restart=resuming.restart, progress=tick, notice=display.note,
        )  # fmt: skip
    if done.rank > 0:  # another process of the same training: the first one writes and reports
        return
    if not done.improved and not always:
        raise OnnxPruneError(
            f"not written: {display.retrained_figures(done)}",
            where=str(output.output),
            fix="other settings (--lr, --epochs) with --restart, or --keep last to write the last epoch",
        )
    limits = constraints_on(RuntimeChoice(), training.device, constraints)
    made = method.plan(done.model, aim, pruning.ratio, limits) if method is not None else None
    save(done.model, output.output, external=output.external)
    written = None
    if made is not None and method_plan.plan_file is not None:
        save_plan(made, method_plan.plan_file)
        written = str(method_plan.plan_file)
    remove_checkpoints(folder)  # the result is on disk
    document = display.retrained_document(done, str(output.output), written)
    document |= {"preprocess": found.preprocess.as_dict(), "warnings": found.data.warnings}
    document |= made.removed_counts() if made is not None else {}
    if not display.finished(as_json, lambda: document):
        display.retrained_table(done, f"{model.name} -> {output.output}")


def _method_target(pruning: TrainingMethod, plan_file: Path | None) -> Target | None:
    """Return the target of a method's plan.

    Raises:
        click.UsageError: options of a method without `--method`, or a method without a plan.
    """
    if pruning.method is None:
        if plan_file is not None or pruning != TrainingMethod():
            raise click.UsageError("--plan, --param, --ratio and --target need --method")
        return None
    if plan_file is None:
        raise click.UsageError("--method needs --plan, the file of its plan")
    if pruning.target is not None and pruning.ratio is not None:
        raise click.UsageError("use either --ratio or --target (for example --target macs=0.5)")
    return read_target(pruning.target) if pruning.target is not None else None
