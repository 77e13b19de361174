"""The command line. Every command reads, calls one stage, and shows what came of it.

stdout holds the result (a table, or one JSON document with --json), stderr everything else. Exit status: 0 fine,
1 a known error, 2 wrong usage, 3 the verification failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune import __version__
from onnxprune.errors import OnnxPruneError, VerificationError

if TYPE_CHECKING:
    from onnxprune.calibration import Calibration
    from onnxprune.coupling import Analysis
    from onnxprune.curves import Curves
    from onnxprune.limits import Limits
    from onnxprune.model import Model
    from onnxprune.pipeline import Compiled
    from onnxprune.plans import Plan
    from onnxprune.recovery import Recovered
    from onnxprune.scoring import Scores
    from onnxprune.speedup import Speedup
    from onnxprune.targets import LatencyPredictor, Target

F = TypeVar("F", bound=Callable[..., Any])

# Modules that compute are imported inside the commands: `--help` must answer at once.


class _Group(click.Group):
    """Turns known errors into one message and their exit status; nothing else is caught."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except OnnxPruneError as err:
            click.echo(f"error: {err}", err=True)
            ctx.exit(err.exit_code)
        except MemoryError:
            click.echo("error: not enough memory\n  try: a smaller --batch, or a machine with more", err=True)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, prog_name="onnxprune")
def main() -> None:
    """Make an ONNX model smaller and faster by removing channels, and prove it.

    \b
    onnxprune inspect model.onnx
    onnxprune prune model.onnx -o small.onnx --target macs=0.5
    onnxprune bench model.onnx small.onnx

    Exit status: 0 fine, 1 a known error, 2 wrong usage, 3 verification failed.
    """


# ------------------------------------------------------------------------------------------------ shared options


def _options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    def wrap(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return wrap


_model = click.argument("model", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")
_device = click.option("--device", default="cpu", show_default=True, help="auto, cpu or cuda: where onnxruntime runs.")
_threads = click.option("--threads", default=0, show_default="all cores", type=click.IntRange(0), help="CPU threads.")
_attention = click.option(
    "--attention",
    type=click.Choice(["heads", "head_dim"]),
    default="heads",
    show_default=True,
    help="What is removed from multi-head attention.",
)
_output = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="File to write.")

_scoring = _options(
    click.option("-c", "--criterion", default="l2", show_default=True, help="How channels are scored (`criteria`)."),
    click.option("-p", "--param", multiple=True, metavar="NAME=VALUE", help="A parameter of the criterion."),
    click.option("--reduce", help="How a group's weights are joined: mean, sum, max, first."),
)
_limiting = _options(
    click.option(
        "--round-to", default="auto", show_default=True, help="Keep multiples of this; auto: what the CPU likes."
    ),
    click.option(
        "--min-channels", default=1, show_default=True, type=click.IntRange(1), help="Each group keeps these."
    ),
    click.option("--max-ratio", default=0.9, show_default=True, type=float, help="No group loses more than this."),
    click.option("--include", multiple=True, metavar="GLOB", help="Prune only these groups (repeatable)."),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these groups whole (repeatable)."),
    click.option("--protect", multiple=True, help="Preset left whole: first, residual, attention (repeatable)."),
    click.option("--overrides", type=click.Path(path_type=Path), help="TOML or JSON: group glob = ratio or table."),
)
_planning = _options(
    click.option("--ratio", type=float, help="Share of channels removed from every group, in [0, 1)."),
    click.option(
        "--target",
        metavar="WHAT=SHARE",
        help="Share kept of macs, params, bytes (weights), memory (activations alive at once), channels (of all that "
        "can go) or latency (predicted), e.g. macs=0.5.",
    ),
    click.option("--curves", "curves_file", type=click.Path(path_type=Path), help="Decide by these (`sensitivity`)."),
    click.option("--min-accuracy", type=float, help="With --curves: no group's curve falls below this."),
    click.option("--max-loss", type=float, help="The same for metrics of which less is better."),
    click.option(
        "--scope",
        show_default="sensitivity with --curves, latency for a latency target, else saving for obs, global for others",
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
    _limiting,
)
_timing = _options(
    click.option("--latency", "timed", is_flag=True, help="Predict and measure latency, whatever the target is."),
    click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="For latency: samples per run."),
    click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores."),
    click.option("--runs", default=30, show_default=True, type=click.IntRange(1), help="Timed runs of each model."),
    click.option("--device", default="cpu", show_default=True, help="Where latency counts: auto, cpu or cuda."),
)
_writing = _options(
    click.option("--verify/--no-verify", "check", default=True, help="Prove the result (default) or not."),
    click.option("--tolerance", type=float, help="Largest relative difference allowed; default by element type."),
    click.option(
        "--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it."
    ),
)
_training = _options(
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
_distilling = _options(
    click.option("--teacher", type=click.Path(path_type=Path), help="The original: learn from its outputs, too."),
    click.option("--temperature", default=4.0, show_default=True, type=float, help="Of distillation."),
    click.option("--alpha", default=0.9, show_default=True, type=float, help="Share of distillation in the loss."),
    click.option(
        "--features", default=0.0, show_default=True, type=float, help="Weight of the distance to its residual outputs."
    ),
    click.option("--unlabelled", is_flag=True, help="Learn from the teacher alone."),
)
_SYNTHETIC = 512  # samples made up where --data is none
_DATA_HELP = ".npz with x and y, folder of class folders, digits, or module:function."
_samples = _options(
    click.option("--images", type=click.IntRange(1), help="Use only this many, evenly from the classes."),
    click.option("--mean", default="", help="Per channel, of pixels in [0, 1]: 0.485,0.456,0.406"),
    click.option("--std", default="", help="Likewise: 0.229,0.224,0.225"),
    click.option("--layout", default="auto", show_default=True, help="Of the data: auto, nchw, nhwc."),
    click.option("--size", help="Resize image files to HEIGHTxWIDTH."),
)
_sparsifying = _options(
    click.option("--scope", type=click.Choice(["layer", "global"]), help="The same share of each, or one threshold.",
                 show_default="layer"),
    click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these weights whole (repeatable)."),
    click.option("--include-last", is_flag=True, help="Prune the last layer as well."),
)  # fmt: skip
_calibrating = _options(
    click.option("--data", help=f"Samples to look at: {_DATA_HELP} none: made up (noise like natural images)."),
    _samples,
)


def _load(path: Path) -> Model:
    from onnxprune.model import load

    return load(path)


def _analysis(model: Model, attention: str) -> Analysis:
    from onnxprune.pipeline import analyze

    return analyze(model, attention=attention)


def _params(pairs: tuple[str, ...]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--param takes NAME=VALUE, not {pair!r}")
        out[name] = value
        for kind in (int, float):
            with suppress(ValueError):
                out[name] = kind(value)
                break
    return out


def _limits(o: dict[str, Any]) -> Limits:
    from onnxprune.limits import Limits, load_overrides
    from onnxprune.runtime import kernel_block

    round_to: int | str = o["round_to"]
    if round_to == "auto" and o["device"] == "cuda":
        round_to = kernel_block("cuda")
    if round_to != "auto" and not isinstance(round_to, int):
        try:
            round_to = int(round_to)
        except ValueError as err:
            raise click.UsageError(f"--round-to takes a number or auto, not {round_to!r}") from err
    if not 0 <= o["max_ratio"] < 1:
        raise OnnxPruneError(f"--max-ratio is a share removed, in [0, 1); got {o['max_ratio']:g}")
    overrides = load_overrides(o["overrides"]) if o["overrides"] else {}
    return Limits(round_to, o["min_channels"], o["max_ratio"], o["include"], o["exclude"], o["protect"], overrides)


def _target(o: dict[str, Any]) -> Target | None:
    from onnxprune.limits import check_ratio
    from onnxprune.targets import Target

    curves, thresholds = o["curves_file"] is not None, [o["min_accuracy"], o["max_loss"]].count(None) < 2
    if thresholds and not curves:
        raise click.UsageError("--min-accuracy and --max-loss need --curves")
    if curves and o["ratio"] is not None:
        raise click.UsageError("--ratio takes the same from every group, --curves do not: give one of them")
    if curves and not thresholds and o["target"] is None:
        raise click.UsageError("--curves need --min-accuracy (or --max-loss), or a --target")
    if not curves and (o["target"] is None) == (o["ratio"] is None):
        raise click.UsageError("give either --ratio or --target (for example --target macs=0.5)")
    if o["steps"] is not None and (curves or o.get("scores_file")):
        raise click.UsageError("--steps score anew between steps, so --curves and --scores do not go with them")
    if o["ratio"] is not None:
        check_ratio(o["ratio"])
    return Target.parse(o["target"]) if o["target"] is not None else None


def _scored(analysis: Analysis, o: dict[str, Any]) -> Scores:
    from onnxprune.scoring import score
    from onnxprune.show import progress

    samples = _calibration(o, analysis.source)
    with progress(f"scoring with {o['criterion']}", quiet=o.get("as_json", False)) as tick:
        params = o["params"] if "params" in o else _params(o["param"])
        return score(analysis, o["criterion"], reduce=o["reduce"], calibration=samples, progress=tick, **params)


def _calibration(o: dict[str, Any], model: Model) -> Calibration | None:
    """The samples for criteria that look at data, and for recovery; read once."""
    if o.get("samples") is not None or not o.get("data"):
        return o.get("samples")
    from onnxprune.calibration import Calibration
    from onnxprune.data import load_data

    if o["data"] == "none":
        from onnxprune.synthetic import synthetic_data

        data = synthetic_data(model, o["images"] or _SYNTHETIC)
        return Calibration(data, device=o["device"])
    data = load_data(o["data"], images=o["images"], size=_size(o["size"]))
    return Calibration(data, _preprocess(o), device=o["device"])


def _by_curves(o: dict[str, Any], curves: Curves | None) -> dict[str, Any]:
    """The options of scoring; what is not given is what the curves were made with."""
    if curves is None:
        return o
    given = click.get_current_context().get_parameter_source("criterion")
    if given is not click.core.ParameterSource.DEFAULT:
        return o
    name, reduce = curves.criterion.get("name"), curves.criterion.get("reduce")
    if not isinstance(name, str):
        raise OnnxPruneError("the curves do not say by which criterion they were made", fix="name it with -c")
    params = {k: v for k, v in curves.criterion.items() if k not in ("name", "reduce", "normalize")}
    own = _params(o["param"])
    return {**o, "criterion": name, "reduce": o["reduce"] or reduce, "params": {**params, **own}}


def _predictor(analysis: Analysis, target: Target | None, o: dict[str, Any]) -> LatencyPredictor | None:
    """A latency model, measured or found in the cache, where one is asked for."""
    if not (o["timed"] or o["scope"] == "latency" or (target is not None and target.measure == "latency")):
        return None
    from onnxprune.latency_prediction import latency_model
    from onnxprune.show import progress

    with progress("measuring latency", quiet=o["as_json"]) as tick:
        return latency_model(analysis, batch=o["batch"], threads=o["threads"], device=o["device"], progress=tick)


def _planned(
    analysis: Analysis, target: Target | None, o: dict[str, Any]
) -> tuple[Plan, Scores | None, Curves | None, LatencyPredictor | None]:
    """The plan, and what it was made from (scores: None where they were made anew step by step)."""
    from onnxprune.curves import load_curves
    from onnxprune.iterative import plan_steps
    from onnxprune.pipeline import plan
    from onnxprune.scoring import load_scores
    from onnxprune.show import progress

    limits = _limits(o)
    curves = load_curves(o["curves_file"]) if o["curves_file"] else None
    latency = _predictor(analysis, target, o)
    common = {"ratio": o["ratio"], "scope": o["scope"], "normalize": o["normalize"], "limits": limits}
    if o["steps"] is not None:
        with progress(f"scoring with {o['criterion']}", quiet=o["as_json"]) as tick:
            made = plan_steps(
                analysis, o["criterion"], target, steps=o["steps"], schedule=o["schedule"], latency=latency,
                reduce=o["reduce"], calibration=_calibration(o, analysis.source), progress=tick, **common,
                **_params(o["param"]),
            )  # fmt: skip
        return made, None, None, latency
    if o.get("scores_file"):
        scores = load_scores(o["scores_file"], analysis)
    else:
        scores = _scored(analysis, _by_curves(o, curves))
    made = plan(
        scores, target, curves=curves, min_accuracy=o["min_accuracy"], max_loss=o["max_loss"], latency=latency, **common
    )
    return made, scores, curves, latency


def _speedup(
    analysis: Analysis, plan: Plan, pruned: Model | None, latency: LatencyPredictor | None, o: dict[str, Any]
) -> Speedup | None:
    """Predicted and measured latency, where there is a latency model."""
    if latency is None:
        return None
    from onnxprune.pipeline import compile_plan
    from onnxprune.show import progress
    from onnxprune.speedup import measure_speedup

    small = pruned or compile_plan(analysis.source, plan, analysis=analysis, check=False).model
    with progress("measuring", quiet=o["as_json"]) as tick:
        return measure_speedup(analysis, plan, small, latency, device=o["device"], runs=o["runs"], progress=tick)


def _compile(model: Model, plan: Plan, analysis: Analysis | None, o: dict[str, Any]) -> Compiled:
    from onnxprune.pipeline import compile_plan
    from onnxprune.show import progress

    options = {"tolerance": o["tolerance"]} if o["check"] else {}
    with progress("stripping and verifying", quiet=o["as_json"]):
        return compile_plan(model, plan, analysis=analysis, check=o["check"], **options)


def _finish(
    done: Compiled, o: dict[str, Any], speedup: Speedup | None = None, recovered: Recovered | None = None
) -> None:
    from onnxprune import show
    from onnxprune.model import save

    save(done.model, o["output"], external=o["external"])
    if o["as_json"]:
        document = show.compiled_document(done, str(o["output"]), speedup)
        show.emit_json(document if recovered is None else {**document, "recovery": recovered.as_dict()})
        return
    show.compiled_table(done, f"{o['model'].name} -> {o['output']}", speedup)
    if recovered is not None:
        show.recovered_table(recovered, "without training")


# --------------------------------------------------------------------------------------------------- the commands


@main.command()
@_model
@_attention
@_json
def inspect(model: Path, attention: str, as_json: bool) -> None:
    """What can be removed, what is locked and by which operator."""
    from onnxprune import show

    analysis = _analysis(_load(model), attention)
    if as_json:
        show.emit_json(show.inspect_document(analysis, str(model)))
    else:
        show.inspect_tables(analysis, model.name)


@main.command()
@_model
@_scoring
@_calibrating
@_device
@_attention
@click.option(
    "--compare", metavar="C1,C2,...",
    help="Instead: how far these criteria agree, group by group. Parameters behind colons: fpgm:mix_norm=0.1.",
)  # fmt: skip
@click.option("--ratio", type=float, help="With --compare: share each would remove of every group (0.5).")
@click.option("--plot", type=click.Path(path_type=Path), help="With --compare: draw a layer (.png, .svg).")
@click.option("--layer", metavar="GLOB", help="With --plot: which one.", show_default="the widest group")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Write the scores to this JSON file; with --compare the comparison, as JSON or .csv.",
)  # fmt: skip
@click.option(
    "--per-class", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the importance for each class as a table, .csv or .json (senpis, loss_change).",
)  # fmt: skip
@_json
def score(**o: Any) -> None:
    """Score every channel; higher means keep.

    \b
    onnxprune score m.onnx -c dscore -o scores.json
    onnxprune score m.onnx --compare l1,fpgm,dscore --plot layer.svg
    """
    from onnxprune import show
    from onnxprune.class_tables import check_class_table, save_class_table
    from onnxprune.files import check_output
    from onnxprune.scoring import save_scores

    for path in filter(None, (o["output"], o["plot"], o["per_class"])):
        check_output(path, o["model"])
    if o["compare"] is not None and o["per_class"]:
        raise click.UsageError("--per-class is of one criterion: leave out --compare")
    if o["compare"] is not None:
        _compared(o)
        return
    if o["ratio"] is not None or o["plot"] or o["layer"]:
        raise click.UsageError("--ratio, --plot and --layer go with --compare")
    if o["per_class"]:
        check_class_table(o["per_class"], o["criterion"])
    scores = _scored(_analysis(_load(o["model"]), o["attention"]), o)
    if o["output"]:
        save_scores(scores, o["output"])
    if o["per_class"]:
        save_class_table(scores, o["per_class"])
    if o["as_json"]:
        import json

        show.emit_json(json.loads(scores.to_json()))
        return
    rows = [
        [name, str(len(s)), f"{s.min():.4g}", f"{float(sorted(s)[len(s) // 2]):.4g}", f"{s.max():.4g}"]
        for name, s in scores.groups.items()
    ]
    show.table(f"scores by {o['criterion']}", ["group", "channels", "lowest", "median", "highest"], rows)


def _compared(o: dict[str, Any]) -> None:
    """`score --compare`."""
    from onnxprune import show
    from onnxprune.criteria_comparison import compare_criteria, save_comparison

    sources = map(click.get_current_context().get_parameter_source, ("criterion", "param"))
    if any(s is not click.core.ParameterSource.DEFAULT for s in sources):
        raise click.UsageError("--compare names the criteria and their parameters itself, without -c and -p")
    if o["layer"] and not o["plot"]:
        raise click.UsageError("--layer says what to draw: give --plot")
    if o["plot"]:
        from onnxprune.pictures import check_picture

        check_picture(o["plot"])
    analysis = _analysis(_load(o["model"]), o["attention"])
    names = [name.strip() for name in o["compare"].split(",") if name.strip()]
    ratio = 0.5 if o["ratio"] is None else o["ratio"]
    with show.progress("scoring", quiet=o["as_json"]) as tick:
        found = compare_criteria(
            analysis,
            names,
            ratio=ratio,
            reduce=o["reduce"],
            calibration=_calibration(o, analysis.source),
            progress=tick,
        )
    layer = found.layer(o["layer"]) if o["plot"] else None
    if o["output"]:
        save_comparison(found, o["output"])
    if layer is not None:
        from onnxprune.pictures import plot_criteria

        plot_criteria(layer, o["plot"], name=o["model"].name)
    if o["as_json"]:
        show.emit_json(found.as_dict())
    else:
        show.criteria_table(found, o["model"].name)


@main.command()
@_model
@click.option("--data", required=True, help=_DATA_HELP)
@_scoring
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="Use these scores instead (`score -o`).")
@_output
@click.option("--metric", help="top1, top5, loss; without labels kl, cosine, mse; or package.module:function.")
@click.option("--ratios", default="0.05:0.95:0.05", show_default=True, help="FROM:TO:STEP, or a list 0.1,0.3,0.5.")
@click.option("--include", multiple=True, metavar="GLOB", help="Sweep only these groups (repeatable).")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these groups out (repeatable).")
@click.option("--min-accuracy", type=float, help="Only search where each curve falls below this (bisection).")
@click.option("--max-loss", type=float, help="The same for metrics of which less is better.")
@click.option("--stop-at-chance", is_flag=True, help="End a curve once it is no better than guessing.")
@_samples
@click.option("--partial-classes", is_flag=True, help="Accept data in which a class is empty.")
@click.option(
    "--batch", type=click.IntRange(1), help="Samples per run.", show_default="8 to 64, activations within the cache"
)
@click.option("--threads", type=click.IntRange(0), help="CPU threads of a job.", show_default="cores / jobs")
@_device
@click.option("--cache-memory", default="2GB", show_default=True, help="For activations that are computed once.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(0), help="Workers; 0: one for every core.")
@click.option("--backend", default="loky", show_default=True, help="loky (this machine), dask or ray (a cluster).")
@click.option("--address", help="Of the dask or ray cluster; its machines share this folder.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curves to this .png or .svg file.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the curves as a table, too.")
@_attention
@_json
def sensitivity(**o: Any) -> None:
    """Measure what accuracy does as channels leave, group by group.

    Every finished point goes to OUTPUT.journal; a run that was killed continues with the same command, and ends with
    the same file. `plan --curves` decides from the result.
    """
    import json

    from onnxprune import show
    from onnxprune.curves import save_curves
    from onnxprune.data import load_data
    from onnxprune.files import check_output, write_text
    from onnxprune.scoring import load_scores
    from onnxprune.sweep import sensitivity as run

    for path in filter(None, (o["output"], o["plot"], o["csv_file"])):
        check_output(path, o["model"])
    if o["plot"]:
        from onnxprune.pictures import check_picture

        check_picture(o["plot"])
    threshold = _threshold(o)
    data = load_data(o["data"], images=o["images"], size=_size(o["size"]))
    analysis = _analysis(_load(o["model"]), o["attention"])
    scores = load_scores(o["scores_file"], analysis) if o["scores_file"] else _scored(analysis, o)
    journal = o["output"].with_name(o["output"].name + ".journal")
    with show.progress("measuring", quiet=o["as_json"]) as tick:
        curves = run(
            scores, data, metric=o["metric"], ratios=_ratios(o["ratios"]), include=o["include"], exclude=o["exclude"],
            threshold=threshold, stop_at_chance=o["stop_at_chance"], preprocess=_preprocess(o), batch=o["batch"] or 0,
            threads=o["threads"], device=o["device"], cache_memory=_bytes(o["cache_memory"]), jobs=o["jobs"],
            backend=o["backend"], address=o["address"], journal=journal, restart=o["restart"],
            partial_classes=o["partial_classes"], tool=__version__, progress=tick, notice=show.note,
        )  # fmt: skip
    save_curves(curves, o["output"])
    if o["csv_file"]:
        write_text(o["csv_file"], curves.to_csv())
    if o["plot"]:
        from onnxprune.pictures import plot_curves

        plot_curves(curves, o["plot"], name=o["model"].name)
    journal.unlink(missing_ok=True)  # only now is nothing left to lose
    if o["as_json"]:
        show.emit_json(json.loads(curves.to_json()))
    else:
        show.curves_table(curves, str(o["output"]))


def _threshold(o: dict[str, Any]) -> float | None:
    """The value that curves may not fall below (or, for losses, rise above)."""
    from onnxprune.metrics import get_metric

    given = [n for n in ("min_accuracy", "max_loss") if o[n] is not None]
    if not given:
        return None
    if len(given) == 2:
        raise click.UsageError("give either --min-accuracy or --max-loss")
    metric = get_metric(o["metric"] or "top1")
    if metric.higher_is_better != (given[0] == "min_accuracy"):
        right = "--min-accuracy" if metric.higher_is_better else "--max-loss"
        raise click.UsageError(f"of {metric.name}, {'more' if metric.higher_is_better else 'less'} is better: {right}")
    value = float(o[given[0]])
    if metric.name in ("top1", "top5") and not 0 <= value <= 1:
        raise click.UsageError(f"--min-accuracy is a share in [0, 1], not {value:g}")
    return value


def _ratios(text: str) -> list[float]:
    """FROM:TO:STEP or a list."""
    parts = text.split(":")
    try:
        if len(parts) == 1:
            return [float(p) for p in text.split(",") if p.strip()]
        start, stop, step = map(float, parts)
        count = int((stop - start) / step + 1e-9) + 1
        if not 0 < count <= 10_000:
            raise ValueError
        return [round(start + i * step, 10) for i in range(count)]
    except (ValueError, ZeroDivisionError, OverflowError) as err:
        raise click.UsageError(f"--ratios takes FROM:TO:STEP or numbers separated by commas, not {text!r}") from err


def _bytes(text: str) -> int:
    """A size such as 500MB or 2GB."""
    units = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
    number = text.strip().rstrip("BKMGTbkmgt")
    unit = text.strip()[len(number) :].upper()
    with suppress(ValueError, KeyError, OverflowError):
        value = int(float(number) * units[unit])
        if value >= 0:
            return value
    raise click.UsageError(f"--cache-memory takes a size such as 500MB or 2GB, not {text!r}")


@main.command()
@_model
@_scoring
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="Use these scores instead (`score -o`).")
@_calibrating
@_planning
@_attention
@_timing
@click.option("--compare", is_flag=True, help="Show what every allocator would keep at the same target.")
@click.option("--plot", type=click.Path(path_type=Path), help="With --curves: draw them and the plan (.png, .svg).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; optional with --compare.")
@_json
def plan(**o: Any) -> None:
    """Decide which channels go, and write plan.json."""
    from onnxprune import show
    from onnxprune.files import check_output
    from onnxprune.plans import save_plan

    target = _target(o)
    if o["output"] is None and not o["compare"]:
        raise click.UsageError("Missing option '-o' / '--output' (only --compare works without)")
    if o["compare"] and o["steps"] is not None:
        raise click.UsageError("--compare shows plans made in one go, --steps makes another kind")
    if o["plot"] is not None and o["curves_file"] is None:
        raise click.UsageError("--plot draws curves: give --curves")
    for path in filter(None, (o["output"], o["plot"])):
        check_output(path, o["model"])
    if o["plot"]:
        from onnxprune.pictures import check_picture

        check_picture(o["plot"])
    analysis = _analysis(_load(o["model"]), o["attention"])
    made, scores, curves, latency = _planned(analysis, target, o)
    rows = None
    if o["compare"] and scores is not None:
        from onnxprune.comparison import compare, same_target

        goal = same_target(scores, target, made)
        rows = compare(
            scores, goal, made, _scope_of(o, target, curves, scores), curves=curves, latency=latency,
            normalize=o["normalize"], limits=_limits(o),
        )  # fmt: skip
    speedup = _speedup(analysis, made, None, latency, o)
    if o["output"]:
        save_plan(made, o["output"])
    if o["plot"]:
        from onnxprune.pictures import plot_curves

        assert curves is not None
        plot_curves(curves, o["plot"], plan=made)
    output = str(o["output"]) if o["output"] else None
    if o["as_json"]:
        show.emit_json(show.plan_document(analysis, made, output, curves, speedup, rows))
        return
    if rows is not None:
        name = f"{goal.measure}={goal.share:.3g}"
        show.comparison_table(f"{o['model'].name}: allocators at {name}", rows, curves.metric if curves else None)
    if output:
        show.plan_table(analysis, made, f"plan {output}", curves)
    if speedup is not None:
        click.echo(show.speedup_line(speedup))


def _scope_of(o: dict[str, Any], target: Target | None, curves: Curves | None, scores: Scores) -> str:
    """In which row of a comparison a plan stands."""
    from onnxprune.planner import meant_scope

    return "uniform" if o["ratio"] is not None else meant_scope(o["scope"], target, curves, scores.scope)


@main.command()
@_model
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@_output
@_writing
@_json
def apply(**o: Any) -> None:
    """Remove what a plan names, prove the result, write it."""
    from onnxprune.files import check_output
    from onnxprune.plans import load_plan

    check_output(o["output"], o["model"])
    made = load_plan(o["plan_file"])
    model = _load(o["model"])
    _finish(_compile(model, made, None, o), o)


@main.command()
@_model
@_output
@_scoring
@_calibrating
@_planning
@_attention
@_timing
@_writing
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Write the plan to this file as well.")
@click.option(
    "--recover/--no-recover", default=None, show_default="with --data",
    help="Solve for the weights that are left, so that outputs come back to the original's.",
)  # fmt: skip
@_json
def prune(**o: Any) -> None:
    """Score, plan, remove, prove: the whole job in one go.

    With --data channels are chosen by `obs` (unless -c says otherwise) and the weights that are left are solved for
    (`recover`); no labels are needed. What each step does to accuracy is shown on samples held out of it.

    \b
    onnxprune prune m.onnx -o s.onnx --target macs=0.5 --data images/
    onnxprune prune m.onnx -o s.onnx --target latency=0.6
    onnxprune prune m.onnx -o s.onnx --curves c.json --min-accuracy 0.9
    onnxprune prune m.onnx -o s.onnx --target macs=0.4 --steps 5
    """
    from onnxprune.files import check_output
    from onnxprune.plans import save_plan

    target = _target(o)
    if o["recover"] and not o["data"]:
        raise click.UsageError("--recover needs samples: give --data")
    given = click.get_current_context().get_parameter_source("criterion")
    if o["data"] and given is click.core.ParameterSource.DEFAULT and not o["curves_file"]:
        o["criterion"] = "obs"
    check_output(o["output"], o["model"])
    if o["plan_file"]:
        check_output(o["plan_file"], o["model"])
    model = _load(o["model"])
    o["samples"] = _calibration(o, model)
    recovering = o["samples"] is not None and o["recover"] is not False
    if recovering:
        from onnxprune.recovery import check_samples

        check_samples(o["samples"].data)
    analysis = _analysis(model, o["attention"])
    made, _, _, latency = _planned(analysis, target, o)
    done = _compile(model, made, analysis, o)
    recovered = None
    if recovering:
        from onnxprune.recovery import recover as run
        from onnxprune.show import progress

        with progress("recovering", quiet=o["as_json"]) as tick:
            recovered = run(model, done.model, made, o["samples"], analysis=analysis, progress=tick)
        done = replace(done, model=recovered.model)
    speedup = _speedup(analysis, made, done.model, latency, o)
    if o["plan_file"]:
        save_plan(made, o["plan_file"])
    _finish(done, o, speedup, recovered)


@main.command()
@_model
@_output
@click.option("--sparsity", type=float, help="Share that becomes zero, in [0, 1).")
@click.option("--pattern", metavar="N:M", help="Instead: of every M inputs of a unit the N largest weights stay (2:4).")
@click.option(
    "--what", type=click.Choice(["weight", "unit"]), default="weight", show_default=True,
    help="Single weights, or whole filters and neurons of smallest norm.",
)  # fmt: skip
@_sparsifying
@click.option("--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it.")
@_json
def sparsify(**o: Any) -> None:
    """Set the smallest weights to zero; shapes stay.

    \b
    onnxprune sparsify m.onnx -o s.onnx --sparsity 0.9
    onnxprune sparsify m.onnx -o s.onnx --pattern 2:4

    The file is as large as before until it is compressed, and no faster on a runtime without sparse kernels.
    """
    from onnxprune import show
    from onnxprune.compression import compressed_size, nonzero_parameters
    from onnxprune.files import check_output
    from onnxprune.model import PROVENANCE, save
    from onnxprune.passes import SparsifyWeights
    from onnxprune.passes.sparsify_weights import zeros_table

    if (o["sparsity"] is None) == (o["pattern"] is None):
        raise click.UsageError("give either --sparsity or --pattern (for example --sparsity 0.9)")
    if o["pattern"] is not None and o["scope"] is not None:
        raise click.UsageError("--pattern holds in every weight: --scope does not go with it")
    rule = SparsifyWeights(
        o["sparsity"] or 0.0, o["what"], o["scope"] or "layer", o["pattern"] or "", o["exclude"], o["include_last"]
    )
    check_output(o["output"], o["model"])
    model = _load(o["model"])
    sparse = rule(model).with_metadata(
        {f"{PROVENANCE}.version": __version__, f"{PROVENANCE}.{rule.name}": rule.summary,
         f"{PROVENANCE}.source": model.fingerprint}
    )  # fmt: skip
    weights = zeros_table(sparse, rule)
    save(sparse, o["output"], external=o["external"])
    pruned = [w for w in weights if w.pruned]
    share = sum(w.zeros for w in pruned) / sum(w.elements for w in pruned)
    sizes = [compressed_size(m) for m in (model, sparse)]
    left = [nonzero_parameters(m) for m in (model, sparse)]
    if o["as_json"]:
        show.emit_json(
            {
                "output": str(o["output"]), "sparsity": share, "weights": [vars(w) for w in weights],
                "parameters": {"before": left[0], "after": left[1]},
                "compressed_bytes": {"before": sizes[0], "after": sizes[1]},
            }
        )  # fmt: skip
        return
    show.table(
        f"{o['model'].name} -> {o['output']}",
        ["weight", "shape", "zeros", ""],
        [
            [w.name, "x".join(map(str, w.shape)), str(w.zeros),
             show.percent(w.zeros / w.elements) + ("" if w.pruned else " (whole)")]
            for w in weights
        ],
    )  # fmt: skip
    click.echo(f"{show.percent(share)} of the pruned weights are zero")
    click.echo(f"parameters that are not zero: {show.count(left[0])} -> {show.count(left[1])}")
    click.echo(f"compressed (zlib): {show.size(sizes[0])} -> {show.size(sizes[1])}")


@main.command()
@_model
@click.option("--data", required=True, help=_DATA_HELP)
@click.option("--what", default="weight,unit", show_default=True, help="weight, unit or both.")
@click.option(
    "--points", default="0,0.25,0.5,0.6,0.7,0.8,0.9,0.95,0.97,0.99", show_default=True, help="Sparsities, in [0, 1)."
)
@click.option(
    "--end", type=click.Choice(["zeros", "strip"]), default="zeros", show_default=True,
    help="Units are set to zero, or removed and the result verified.",
)  # fmt: skip
@_sparsifying
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path),
    help="A .csv file for the table; or a folder for sweep.csv and every pruned model.",
)  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path), help="Draw accuracy and size to this .png or .svg file.")
@_samples
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Samples per run.")
@_threads
@_device
@_json
def sweep(**o: Any) -> None:
    """Accuracy and compressed size against sparsity: single weights beside whole units.

    \b
    onnxprune sweep m.onnx --data digits -o sweep.csv --plot sweep.png
    onnxprune sweep m.onnx --data digits -o runs --what unit --end strip
    """
    from onnxprune import show
    from onnxprune.data import load_data
    from onnxprune.files import check_output, write_text
    from onnxprune.model import save
    from onnxprune.weight_unit import Point, study

    folder: Path | None = None if o["output"].suffix == ".csv" else o["output"]
    table = o["output"] if folder is None else folder / "sweep.csv"
    if folder is not None and not folder.is_dir():
        check_output(folder, o["model"])
        if folder.exists():
            raise OnnxPruneError(f"{str(folder)!r} is neither a .csv file nor a folder", fix="name another output")
    else:
        check_output(table, o["model"])
    if o["plot"]:
        from onnxprune.pictures import check_picture

        check_picture(o["plot"])
        check_output(o["plot"], o["model"])
    points = _numbers(o["points"], "--points")
    data = load_data(o["data"], images=o["images"], size=_size(o["size"]))
    model = _load(o["model"])

    def keep(point: Point, pruned: Model) -> None:
        if folder is not None:
            folder.mkdir(exist_ok=True)
            save(pruned, folder / f"{point.what}-{point.sparsity!r}.onnx")

    with show.progress("measuring", quiet=o["as_json"]) as tick:
        found = study(
            model, data, what=[w.strip() for w in o["what"].split(",") if w.strip()], points=points, end=o["end"],
            scope=o["scope"] or "layer", exclude=o["exclude"], include_last=o["include_last"],
            preprocess=_preprocess(o), batch=o["batch"], threads=o["threads"], device=o["device"], tool=__version__,
            keep=keep, progress=tick,
        )  # fmt: skip
    write_text(table, found.to_csv())
    if o["plot"]:
        from onnxprune.pictures import plot_study

        plot_study(found, o["plot"], name=o["model"].name)
    if o["as_json"]:
        show.emit_json(found.as_dict())
        return
    ends = "units removed" if o["end"] == "strip" else "zeros"
    show.table(
        f"{o['model'].name} on {found.data}, {found.images} samples, {ends}",
        ["", "sparsity", "reached", "top-1", "+-", "loss", "parameters", "compressed"],
        [
            [p.what, show.percent(p.sparsity), show.percent(p.reached),
             show.percent(p.top1), show.percent(p.top1_error), f"{p.loss:.4f}", show.count(p.parameters),
             show.size(p.compressed_bytes)]
            for p in found.points
        ],
    )  # fmt: skip
    click.echo(f"written: {table}")


@main.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--tolerance", type=float, help="Largest relative difference allowed; default by element type.")
@click.option("--data", help=f"Compare on real inputs instead of random ones: {_DATA_HELP}")
@_samples
@_device
@_json
def verify(**o: Any) -> None:
    """Check a pruned file against its masked original."""
    from onnxprune import show
    from onnxprune.data import load_data, model_batches
    from onnxprune.pipeline import analyze_for
    from onnxprune.plans import load_plan
    from onnxprune.verification import verify as check

    made = load_plan(o["plan_file"])
    original = _load(o["original"])
    analysis = analyze_for(original, made)
    feeds = None
    if o["data"]:
        data = load_data(o["data"], images=o["images"] or 64, size=_size(o["size"]))
        feeds = [feed for feed, _ in model_batches(original, data, _preprocess(o))]
    proof = check(analysis, made, _load(o["pruned"]), feeds=feeds, tolerance=o["tolerance"], device=o["device"])
    if o["as_json"]:
        show.emit_json(proof.as_dict())
    else:
        click.echo(show.proof_line(proof))


@main.command()
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("pruned", type=click.Path(path_type=Path))
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--data", required=True, help=f"Samples, labels not needed: {_DATA_HELP} none: made up (noise like natural images)."
)
@_samples
@_output
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
@_threads
@_device
@_json
def recover(**o: Any) -> None:
    """Win accuracy back without training: solve for the weights that are left.

    \b
    onnxprune recover m.onnx s.onnx plan.json --data images/ -o r.onnx
    onnxprune recover m.onnx s.onnx plan.json --data none -o r.onnx

    Layer after layer is fitted by least squares to what the original computes. A stage that does not bring the outputs
    nearer to the original's on held-out samples is undone. Solved layers are kept in OUTPUT.recovery until the end.
    """
    import shutil

    from onnxprune import show
    from onnxprune.files import check_output
    from onnxprune.model import save
    from onnxprune.pipeline import analyze_for
    from onnxprune.plans import load_plan
    from onnxprune.recovery import check_belongs
    from onnxprune.recovery import recover as run
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
    plan, original, pruned = load_plan(o["plan_file"]), _load(o["original"]), _load(o["pruned"])
    samples = _calibration(o, original)
    assert samples is not None
    analysis = analyze_for(original, plan)
    check_belongs(analysis, plan, pruned)
    if o["check"]:
        try:
            prove(analysis, plan, pruned, device=o["device"])
        except VerificationError as err:
            fix = "give the model that this plan made; one that was trained since: --no-verify"
            raise VerificationError(err.what, where=err.where, fix=fix) from err
    with show.progress("recovering", quiet=o["as_json"]) as tick:
        done = run(
            original, pruned, plan, replace(samples, batch=o["batch"], threads=o["threads"]), analysis=analysis,
            stages=stages, rows=o["rows"], rounds=o["rounds"], folder=folder, restart=o["restart"], progress=tick,
        )  # fmt: skip
    save(done.model, o["output"], external=o["external"])
    shutil.rmtree(folder, ignore_errors=True)  # only now is nothing left to lose
    if o["as_json"]:
        show.emit_json({"output": str(o["output"]), **done.as_dict()})
    else:
        show.recovered_table(done, f"{o['pruned'].name} -> {o['output']}")


@main.command()
@_model
@click.option("--data", required=True, help=_DATA_HELP)
@click.option("--val-data", help="Data to validate on, likewise.")
@_output
@_training
@_distilling
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
@_limiting
@_samples
@click.option(
    "--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it."
)  # fmt: skip
@_json
def retrain(**o: Any) -> None:
    """Train a pruned model's weights; graph, names and metadata stay.

    \b
    onnxprune retrain s.onnx --data digits:train -o r.onnx --epochs 3
    onnxprune retrain s.onnx --data imgs/ -o r.onnx --teacher m.onnx
    onnxprune retrain s.onnx --data x.npz -o r.onnx --teacher m.onnx --unlabelled

    Checkpoints go to OUTPUT.training after every epoch, and logs with them. OUTPUT is written when the best epoch is
    better on the validation data than MODEL, and than what OUTPUT was before; --keep last always writes.

    With --method the trained model is still whole: `onnxprune apply OUTPUT PLAN` removes the channels.
    """
    from onnxprune import show
    from onnxprune.data import load_data
    from onnxprune.files import check_output
    from onnxprune.model import save
    from onnxprune.plans import save_plan

    settings = _training_settings(o)
    aim = _method_target(o)
    for source in filter(None, (o["model"], o["teacher"])):
        check_output(o["output"], source)
    if o["plan_file"]:
        check_output(o["plan_file"], o["model"])
    model = _load(o["model"])
    data = load_data(o["data"], images=o["images"], size=_size(o["size"]))
    val = load_data(o["val_data"], size=_size(o["size"])) if o["val_data"] else None
    teacher = _load(o["teacher"]) if o["teacher"] else None
    always = settings.keep == "last" or o["method"] is not None
    replaces = _load(o["output"]) if o["output"].exists() and not always else None

    from onnxprune.training import get_method, process_rank, remove_checkpoints
    from onnxprune.training import retrain as run

    method = get_method(o["method"], **_params(o["param"])) if o["method"] else None
    folder = o["output"].with_name(o["output"].name + ".training")
    with show.progress("training", quiet=o["as_json"] or process_rank() > 0) as tick:
        done = run(
            model, data, val=val, preprocess=_preprocess(o), settings=settings, teacher=teacher, method=method,
            replaces=replaces, folder=folder, resume=o["resume"], restart=o["restart"], progress=tick,
            notice=show.note,
        )  # fmt: skip
    if done.rank > 0:  # another process of the same training: the first one writes and speaks
        return
    if not done.improved and not always:
        raise OnnxPruneError(
            f"not written: {show.retrained_figures(done)}",
            where=str(o["output"]),
            fix="other settings (--lr, --epochs) with --restart, or write the last epoch anyway: --keep last --resume",
        )
    made = method.plan(done.model, aim, o["ratio"], _limits(o)) if method is not None else None
    save(done.model, o["output"], external=o["external"])
    if made is not None:
        save_plan(made, o["plan_file"])
    remove_checkpoints(folder)  # only now is nothing left to lose
    if o["as_json"]:
        show.emit_json(show.retrained_document(done, str(o["output"]), str(o["plan_file"]) if made else None))
    else:
        show.retrained_table(done, f"{o['model'].name} -> {o['output']}")


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
    from onnxprune.limits import check_ratio
    from onnxprune.targets import Target

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


@main.command()
@_model
@click.option("--data", required=True, help=_DATA_HELP)
@_samples
@click.option("--batch", default=64, show_default=True, type=click.IntRange(1), help="Samples per run.")
@_threads
@_device
@_json
def evaluate(**o: Any) -> None:
    """Accuracy of a classifier on labelled data."""
    from onnxprune import show
    from onnxprune.data import load_data
    from onnxprune.evaluation import evaluate as run

    data = load_data(o["data"], images=o["images"], size=_size(o["size"]))
    model = _load(o["model"])
    with show.progress("evaluating", quiet=o["as_json"]) as tick:
        result = run(
            model, data, preprocess=_preprocess(o), batch=o["batch"], threads=o["threads"], device=o["device"],
            progress=tick,
        )  # fmt: skip
    if o["as_json"]:
        show.emit_json(vars(result))
        return
    show.table(
        f"{o['model'].name} on {data.name}, {result.images} samples, {result.provider}",
        ["top-1", "+-", "top-5", "loss"],
        [[show.percent(result.top1), show.percent(result.top1_error), show.percent(result.top5), f"{result.loss:.4f}"]],
    )


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError as err:
        raise click.UsageError(f"{option} takes numbers separated by commas, not {text!r}") from err


def _preprocess(o: dict[str, Any]) -> Any:
    from onnxprune.data import Preprocess

    return Preprocess(_numbers(o["mean"], "--mean"), _numbers(o["std"], "--std"), o["layout"])


def _size(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    height, cross, width = text.partition("x")
    try:
        return int(height), int(width if cross else height)
    except ValueError as err:
        raise click.UsageError(f"--size takes HEIGHTxWIDTH, not {text!r}") from err


@main.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1), help="Samples per run.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(0), help="CPU threads; 0: all cores.")
@click.option("--runs", default=30, show_default=True, type=click.IntRange(1), help="Timed runs of each model.")
@click.option("--warmup", default=5, show_default=True, type=click.IntRange(0), help="Runs before, not counted.")
@_device
@_json
def bench(models: tuple[Path, ...], as_json: bool, **o: Any) -> None:
    """Measured latency of one or more models, MACs, parameters, bytes.

    The models are run in turn, A B A B ..., so that a drifting machine does not decide. Speed-up and efficiency
    (speed-up x share of MACs kept: 1 means that fewer MACs are fully fewer milliseconds) are over the first model.
    """
    from onnxprune import show
    from onnxprune.bench import bench as run

    loaded = [_load(path) for path in models]
    with show.progress("measuring", quiet=as_json) as tick:
        rows = run(loaded, progress=tick, **o)
    if as_json:
        show.emit_json([{"model": str(p), **r.as_dict()} for p, r in zip(models, rows, strict=True)])
        return
    show.table(
        f"batch {o['batch']}, {o['threads'] or 'all'} thread(s), {rows[0].provider}, median of {o['runs']}",
        ["model", "latency", "spread", "MACs", "params", "weights", "speed-up", "effic."],
        [
            [
                p.name, show.seconds(r.latency.median),
                f"+-{50 * (r.latency.high - r.latency.low) / r.latency.median:.0f} %", show.count(r.cost.macs),
                show.count(r.cost.params), show.size(r.cost.bytes), f"{r.speedup:.2f}", f"{r.efficiency:.2f}",
            ]
            for p, r in zip(models, rows, strict=True)
        ],
    )  # fmt: skip


@main.command("run")
@click.argument("recipe_file", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), help="Begin with this model instead of the recipe's.")
@click.option("--data", help=f"Instead of the recipe's: {_DATA_HELP}")
@click.option("--val-data", help="Likewise.")
@click.option("--test-data", help="Likewise: what the table's accuracy is of.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder of the run.",
    show_default="the recipe's name, here",
)  # fmt: skip
@click.option(
    "--set", "changes", multiple=True, metavar="STEP.KEY=VALUE",
    help="Change an option of all steps of a kind, or a key of the recipe: retrain.epochs=2, seed=1 (repeatable).",
)  # fmt: skip
@click.option("--restart", is_flag=True, help="Throw away what an earlier run has left in the folder.")
@_json
def run_recipe(**o: Any) -> None:
    """Run a whole method: a recipe of steps, resumable.

    \b
    onnxprune run examples/recipes/dscore-parallel.toml -o run
    onnxprune run dscore-parallel.toml --model m.onnx --data x.npz -o run

    The folder keeps every file that a step makes, and a log. A run that was killed goes on at the first step that is
    not finished with the same command, and ends with the same files. See docs/recipes.md.
    """
    from onnxprune import show
    from onnxprune.recipes import load_recipe
    from onnxprune.recipes import run_recipe as run

    sources = {key: o[key] for key in ("data", "val_data", "test_data") if o[key]}
    recipe = load_recipe(o["recipe_file"], changes=o["changes"], model=o["model"], sources=sources)
    folder = o["output"] or Path(recipe.name)
    done = run(
        recipe, folder, restart=o["restart"], notice=show.note,
        progress=lambda title: show.progress(title, quiet=o["as_json"]),
    )  # fmt: skip
    if o["as_json"]:
        show.emit_json(done.as_dict())
    else:
        show.run_table(done, str(folder))


@main.command()
@_json
def ops(as_json: bool) -> None:
    """Operators that have a record, from the registry itself."""
    from onnxprune import show
    from onnxprune.ops import all_ops

    records: list[dict[str, Any]] = [
        {
            "domain": domain or "ai.onnx",
            "op": op,
            "rule": (spec.couple.__doc__ or "").strip().split("\n")[0],
            "patch": spec.patch is not None,
            "macs": spec.macs is not None,
        }
        for (domain, op), spec in all_ops().items()
    ]
    if as_json:
        show.emit_json(records)
    else:
        show.table(
            f"{len(records)} operators; any other locks what it touches",
            ["operator", "how channels pass"],
            [[(r["op"] if r["domain"] == "ai.onnx" else f"{r['domain']}::{r['op']}"), r["rule"]] for r in records],
            prose=True,
        )


@main.command()
@_json
def criteria(as_json: bool) -> None:
    """Criteria that score channels."""
    from onnxprune import show
    from onnxprune.criteria import all_criteria

    found = [
        {"name": n, "title": c.title, "source": c.source, "reduce": c.default_reduce, "normalize": c.default_normalize}
        for n, c in all_criteria().items()
    ]
    if as_json:
        show.emit_json(found)
    else:
        rows = [[c["name"], f"{c['title']} ({c['source']})"] for c in found]
        show.table(f"{len(found)} criteria", ["name", "what it is"], rows, prose=True)


@main.command()
@_json
def passes(as_json: bool) -> None:
    """Graph-to-graph rewrites."""
    from onnxprune import show
    from onnxprune.passes import all_passes

    found = [{"name": n, "title": (c.__doc__ or "").strip().split("\n")[0]} for n, c in all_passes().items()]
    if as_json:
        show.emit_json(found)
    else:
        show.table(
            f"{len(found)} passes", ["name", "what it does"], [[p["name"], p["title"]] for p in found], prose=True
        )


@main.command()
@click.option(
    "-o", "--output", default="digits_cnn-small.onnx", show_default=True, type=click.Path(path_type=Path),
    help="Where the pruned model goes.",
)  # fmt: skip
@_json
def demo(output: Path, as_json: bool) -> None:
    """The whole story on a model and data that ship."""
    from onnxprune.demo import run

    run(output, as_json)


if __name__ == "__main__":  # pragma: no cover
    sys.exit(main())
