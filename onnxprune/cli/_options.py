"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def together(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def wrap(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


model_argument = click.argument("model", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")
device_option = click.option(
    "--device", default="cpu", show_default=True, help="auto, cpu or cuda: where onnxruntime runs."
)
threads_option = click.option(
    "--threads", default=0, show_default="all cores", type=click.IntRange(0), help="CPU threads."
)
attention_option = click.option(
    "--attention",
    type=click.Choice(["heads", "head_dim"]),
    default="heads",
    show_default=True,
    help="What is removed from multi-head attention.",
)
inexact_option = click.option(
    "--include-inexact", is_flag=True,
    help="Free also channels that LayerNorm, GroupNorm, Softmax or a mean runs over (a transformer's residual stream): "
    "the statistic changes with them.",
)  # fmt: skip
output_option = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write.")

scoring_options = together(
    click.option("-c", "--criterion", default="l2", show_default=True, help="How channels are scored (`criteria`)."),
    click.option("-p", "--param", multiple=True, metavar="NAME=VALUE", help="A parameter of the criterion."),
    click.option("--reduce", help="How a group's weights are joined: mean, sum, max, first."),
)
limiting_options = together(
    click.option(
        "--round-to", default="auto", show_default=True, help="Keep multiples of this; auto: what the CPU likes."
    ),
    click.option(
        "--min-channels", default=1, show_default=True, type=click.IntRange(1), help="Each group keeps these."
    ),
    click.option("--max-ratio", default=0.9, show_default=True, type=float, help="No group loses more than this."),
    click.option("--include", multiple=True, metavar="GLOB", help="Prune only these groups (repeatable)."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these groups whole (repeatable)."),
    click.option(
        "--protect", multiple=True, metavar="WHAT",
        help="Leave whole: first, residual, attention, or a kind that `inspect` shows (repeatable).",
    ),
    click.option(
        "--only", multiple=True, metavar="KIND",
        help="Prune only this kind: heads, head_dim, attention (both), mlp, stream, conv, embedding (repeatable).",
    ),
    click.option("--overrides", type=click.Path(path_type=Path), help="TOML or JSON: group glob = ratio or table."),
)  # fmt: skip
planning_options = together(
    click.option("--ratio", type=float, help="Share of channels removed from every group, in [0, 1)."),
    click.option(
        "--target",
        metavar="WHAT=SHARE",
        help="Share kept of macs, params, bytes (weights), memory (activations alive at once), channels (of all that "
        "can go) or latency (predicted), e.g. macs=0.5.",
    ),
    click.option("--curves", "curves_file", type=click.Path(path_type=Path), help="Decide by these (`sensitivity`)."),
    click.option("--min-group-accuracy", type=float, help="With --curves: no group's curve falls below this."),
    click.option("--max-loss", type=float, help="The same for metrics of which less is better."),
    click.option(
        "--allocator",
        show_default="sensitivity with --curves, latency for a latency target, else the criterion's own (`criteria`)",
        help="How --target is shared: rank all channels together (global), the same share everywhere (uniform), all "
        "curves down to the same value (sensitivity), least importance per unit of the target saved (saving) or per "
        "predicted second saved (latency).",
    ),
    click.option(
        "--steps",
        type=click.IntRange(1),
        help="Get there in so many steps, with new scores between them. Removing 10 % of the remaining filters eight "
        "times, as PLS pruning does: --target channels=0.43 --steps 8 --schedule geometric.",
    ),
    click.option(
        "--schedule",
        type=click.Choice(["linear", "geometric"]),
        default="linear",
        show_default=True,
        help="With --steps: each takes the same share of the original, or of what is left.",
    ),
    click.option("--normalize", help="How groups are compared: none, mean, max, sum, gaussian, lamp."),
    limiting_options,
)
timing_options = together(
    click.option("--latency", "timed", is_flag=True, help="Predict and measure latency, whatever the target is."),
    click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="For latency: samples per run."),
    click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores."),
    click.option("--runs", default=30, show_default=True, type=click.IntRange(1), help="Timed runs of each model."),
    click.option("--device", default="cpu", show_default=True, help="Where latency counts: auto, cpu or cuda."),
)
writing_options = together(
    click.option("--verify/--no-verify", "check", default=True, help="Prove the result (default) or not."),
    click.option("--tolerance", type=float, help="Largest relative difference allowed; default by element type."),
    click.option(
        "--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it."
    ),
)
training_options = together(
    click.option("--epochs", default=10, show_default=True, type=int, help="Times every sample is seen."),
    click.option("--batch", default=64, show_default=True, type=int, help="Samples per step and device."),
    click.option(
        "--lr", show_default="0.01 for sgd, 0.001 for adamw", help="Learning rate; auto: found by a range test."
    ),
    click.option("--optimizer", default="sgd", show_default=True, help="sgd or adamw."),
    click.option("--momentum", default=0.9, show_default=True, type=float, help="Of SGD."),
    click.option("--nesterov/--no-nesterov", default=True, show_default=True, help="SGD looks ahead."),
    click.option(
        "--weight-decay", type=float, show_default="5e-4 for sgd, 0.01 for adamw",
        help="Spares norms, biases and per-channel scales.",
    ),
    click.option("--schedule", default="cosine", show_default=True, help="cosine, onecycle, step or constant."),
    click.option(
        "--warmup", default=0.0, type=float, show_default=True, help="Below 1 a share of all steps, else epochs."
    ),
    click.option("--label-smoothing", default=0.0, type=float, show_default=True, help="In [0, 1)."),
    click.option("--mixup", default=0.0, type=float, show_default=True, help="Alpha of its Beta distribution; 0: off."),
    click.option(
        "--augment", multiple=True, metavar="NAME", help="crop, crop=PIXELS, flip, or package.module:function of a CHW "
        "tensor (repeatable).",
    ),
    click.option("--precision", default="32", show_default=True, help="32, bf16 or 16 (mixed; 16 on CUDA only)."),
    click.option("--clip", type=float, help="Largest norm of the gradient."),
    click.option("--patience", type=int, help="Stop after so many epochs without a better validation."),
    click.option("--ema", type=float, metavar="DECAY", help="Validate and keep a moving average, e.g. of decay 0.999."),
    click.option("--seed", default=0, show_default=True, type=int, help="Of everything that is random."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    click.option(
        "--threads", default=0, type=int, show_default="all cores", help="CPU threads; small networks like one."
    ),
    click.option("--devices", default=1, show_default=True, type=int, help="Processes on this machine, one per GPU."),
    click.option("--num-nodes", default=1, show_default=True, type=int, help="Machines; run the command on each."),
    click.option("--workers", default=0, show_default=True, type=int, help="Processes that prepare batches."),
    click.option(
        "--val-share", default=0.1, show_default=True, type=float, help="Kept for validation without --val-data."
    ),
)  # fmt: skip
distilling_options = together(
    click.option("--teacher", type=click.Path(path_type=Path), help="The original: learn from its outputs, too."),
    click.option("--temperature", default=4.0, show_default=True, type=float, help="Of distillation."),
    click.option("--alpha", default=0.9, show_default=True, type=float, help="Share of distillation in the loss."),
    click.option(
        "--features", default=0.0, show_default=True, type=float, help="Weight of the distance to its residual outputs."
    ),
    click.option(
        "--teacher-plan",
        type=click.Path(path_type=Path),
        help="By which MODEL was cut from the teacher: --features then match pruned channels, too, and inside blocks.",
    ),
    click.option("--unlabelled", is_flag=True, help="Learn from the teacher alone."),
)
SYNTHETIC = 512  # samples made up where --data is none
DATA_HELP = ".npz with x and y, folder of class folders, digits, or module:function."
samples_options = together(
    click.option("--images", type=click.IntRange(1), help="Use only this many, evenly from the classes."),
    click.option("--mean", default="", help="Per channel, of pixels in [0, 1]: 0.485,0.456,0.406"),
    click.option("--std", default="", help="Likewise: 0.229,0.224,0.225"),
    click.option(
        "--layout",
        default="auto",
        show_default=True,
        help="Of the data: nchw, nhwc, or auto (pictures of bytes nhwc, "
        "all else as in the model). Transposed where the model has another.",
    ),
    click.option("--size", help="Resize image files to HEIGHTxWIDTH."),
)
sparsifying_options = together(
    click.option("--scope", type=click.Choice(["layer", "global"]), help="The same share of each, or one threshold.",
                 show_default="layer"),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these weights whole (repeatable)."),
    click.option("--include-last", is_flag=True, help="Prune the last layer as well."),
)  # fmt: skip
calibrating_options = together(
    click.option("--data", help=f"Samples to look at: {DATA_HELP} none: made up (noise like natural images)."),
    samples_options,
)
