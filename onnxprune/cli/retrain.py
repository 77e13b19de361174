"""The command `onnxprune retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli._options import (
    DATA_HELP,
    distilling_options,
    json_option,
    limiting_options,
    model_argument,
    output_option,
    samples_options,
    training_options,
)
from onnxprune.cli._stages import constraints_of, load_model, params_of, preprocess_of, size_of
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.planning.targets import Target


@click.command()
@model_argument
@click.option("--data", required=True, help=DATA_HELP)
@click.option("--val-data", help="Data to validate on, likewise.")
@output_option
@training_options
@distilling_options
@click.option(
    "--insert-batchnorm/--no-insert-batchnorm", default=True, show_default=True,
    help="Train with new BatchNorm where it was folded, and fold it again.",
)  # fmt: skip
@click.option("--freeze", multiple=True, metavar="GLOB", help="Weights that do not train, by name (repeatable).")
@click.option("--keep", default="best", show_default=True, help="best on the validation data, or last.")
@click.option("--resume", is_flag=True, help="Go on from the last epoch of an interrupted run.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left.")
@click.option("--log-dir", help="For CSV and TensorBoard logs.", show_default="OUTPUT.training")
@click.option("--method", help="Prune while training: slimming, polarization, group_lasso, soft_filter.")
@click.option("-p", "--param", multiple=True, metavar="NAME=VALUE", help="A parameter of the method.")
@click.option("--ratio", type=float, help="With --method: share of channels removed, in [0, 1).")
@click.option("--target", metavar="WHAT=SHARE", help="With --method: share kept, e.g. macs=0.5.")
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="With --method: where the plan goes.")
@limiting_options
@samples_options
@click.option(
    "--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it."
)  # fmt: skip
@json_option
def retrain(**o: Any) -> None:
    """Train a pruned model's weights; graph, names and metadata stay.

    \b
    onnxprune retrain s.onnx --data digits:train -o r.onnx --epochs 3
    onnxprune retrain s.onnx --data imgs/ -o r.onnx --teacher m.onnx
    onnxprune retrain s.onnx --data x.npz -o r.onnx --teacher m.onnx --unlabelled
    onnxprune retrain s.onnx --data x.npz -o r.onnx --teacher m.onnx \\
        --teacher-plan plan.json --features 40

    Checkpoints go to OUTPUT.training after every epoch, and logs with them. OUTPUT is written when the best epoch is
    better on the validation data than MODEL, and than what OUTPUT was before; --keep last always writes.

    With --method the trained model is still whole: `onnxprune apply OUTPUT PLAN` removes the channels.
    """
    from onnxprune._utils.atomic_files import check_output
    from onnxprune.cli import _display
    from onnxprune.execution.data import load_data
    from onnxprune.ir.model import save
    from onnxprune.plans import load_plan, save_plan

    settings = _training_settings(o)
    aim = _method_target(o)
    for source in filter(None, (o["model"], o["teacher"], o["teacher_plan"])):
        check_output(o["output"], source)
    if o["plan_file"]:
        check_output(o["plan_file"], o["model"])
    model = load_model(o["model"])
    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    val = load_data(o["val_data"], size=size_of(o["size"])) if o["val_data"] else None
    teacher = load_model(o["teacher"]) if o["teacher"] else None
    cut_by = load_plan(o["teacher_plan"]) if o["teacher_plan"] else None
    always = settings.keep == "last" or o["method"] is not None
    replaces = load_model(o["output"]) if o["output"].exists() and not always else None

    from onnxprune.training import get_method, process_rank, remove_checkpoints
    from onnxprune.training import retrain as run

    method = get_method(o["method"], **params_of(o["param"])) if o["method"] else None
    folder = o["output"].with_name(o["output"].name + ".training")
    with _display.progress("training", quiet=o["as_json"] or process_rank() > 0) as tick:
        done = run(
            model, data, val=val, preprocess=preprocess_of(o), settings=settings, teacher=teacher, plan=cut_by,
            method=method, replaces=replaces, folder=folder, resume=o["resume"], restart=o["restart"], progress=tick,
            notice=_display.note,
        )  # fmt: skip
    if done.rank > 0:  # another process of the same training: the first one writes and speaks
        return
    if not done.improved and not always:
        raise OnnxPruneError(
            f"not written: {_display.retrained_figures(done)}",
            where=str(o["output"]),
            fix="other settings (--lr, --epochs) with --restart, or write the last epoch anyway: --keep last --resume",
        )
    made = method.plan(done.model, aim, o["ratio"], constraints_of(o)) if method is not None else None
    save(done.model, o["output"], external=o["external"])
    if made is not None:
        save_plan(made, o["plan_file"])
    remove_checkpoints(folder)  # only now is nothing left to lose
    if o["as_json"]:
        _display.emit_json(_display.retrained_document(done, str(o["output"]), str(o["plan_file"]) if made else None))
    else:
        _display.retrained_table(done, f"{o['model'].name} -> {o['output']}")


def _training_settings(o: dict[str, Any]) -> Any:
    from onnxprune.training import Settings

    lr: float | str | None = o["lr"]
    if isinstance(lr, str) and lr != "auto":
        try:
            lr = float(lr)
        except ValueError as err:
            raise click.UsageError(f"--lr takes a number or auto, not {lr!r}") from err
    names = (
        "epochs", "batch", "optimizer", "momentum", "nesterov", "weight_decay", "schedule", "warmup",
        "label_smoothing", "mixup", "augment", "precision", "clip", "patience", "ema", "seed", "device", "threads",
        "devices", "num_nodes", "workers", "val_share", "temperature", "alpha", "features", "unlabelled",
        "insert_batchnorm", "freeze", "keep", "log_dir",
    )  # fmt: skip
    return Settings(lr=lr, **{name: o[name] for name in names})


def _method_target(o: dict[str, Any]) -> Target | None:
    """What the plan of a training-time method aims at."""
    from onnxprune.planning.constraints import check_ratio
    from onnxprune.planning.targets import Target

    if o["method"] is None:
        if o["plan_file"] or o["param"] or o["ratio"] is not None or o["target"]:
            raise click.UsageError("--plan, --param, --ratio and --target go with --method")
        return None
    if o["plan_file"] is None:
        raise click.UsageError("--method ends in a plan: say where it goes with --plan")
    if o["target"] is not None and o["ratio"] is not None:
        raise click.UsageError("give either --ratio or --target (for example --target macs=0.5)")
    if o["ratio"] is not None:
        check_ratio(o["ratio"])
    return Target.parse(o["target"]) if o["target"] is not None else None
