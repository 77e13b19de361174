"""The command line. Every command reads, calls one stage, and shows what came of it.

stdout holds the result (a table, or one JSON document with --json), stderr everything else. Exit status: 0 fine,
1 a known error, 2 wrong usage, 3 the verification failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune import __version__
from onnxprune.errors import OnnxPruneError

if TYPE_CHECKING:
    from onnxprune.coupling import Analysis
    from onnxprune.model import Model
    from onnxprune.pipeline import Compiled
    from onnxprune.planner import Limits, Target
    from onnxprune.plans import Plan
    from onnxprune.scoring import Scores

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
_planning = _options(
    click.option("--ratio", type=float, help="Share of channels removed from every group, in [0, 1)."),
    click.option("--target", metavar="WHAT=SHARE", help="Share kept of macs, params or bytes, e.g. macs=0.5."),
    click.option(
        "--scope",
        default="global",
        show_default=True,
        help="With --target: rank all channels together (global) or take the same share everywhere (uniform).",
    ),
    click.option("--normalize", help="How groups are compared: none, mean, max, sum, gaussian, lamp."),
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
_writing = _options(
    click.option("--verify/--no-verify", "check", default=True, help="Prove the result (default) or not."),
    click.option("--tolerance", type=float, help="Largest relative difference allowed; default by element type."),
    click.option(
        "--external-data/--single-file", "external", default=None, help="Weights beside the model, or inside it."
    ),
)
_DATA_HELP = ".npz with x and y, folder of class folders, digits, or module:function."
_samples = _options(
    click.option("--images", type=click.IntRange(1), help="Use only this many, evenly from the classes."),
    click.option("--mean", default="", help="Per channel, of pixels in [0, 1]: 0.485,0.456,0.406"),
    click.option("--std", default="", help="Likewise: 0.229,0.224,0.225"),
    click.option("--layout", default="auto", show_default=True, help="Of the data: auto, nchw, nhwc."),
    click.option("--size", help="Resize image files to HEIGHTxWIDTH."),
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
    from onnxprune.planner import Limits, load_overrides

    round_to: int | str = o["round_to"]
    if round_to != "auto":
        try:
            round_to = int(round_to)
        except ValueError as err:
            raise click.UsageError(f"--round-to takes a number or auto, not {round_to!r}") from err
    if not 0 <= o["max_ratio"] < 1:
        raise OnnxPruneError(f"--max-ratio is a share removed, in [0, 1); got {o['max_ratio']:g}")
    overrides = load_overrides(o["overrides"]) if o["overrides"] else {}
    return Limits(round_to, o["min_channels"], o["max_ratio"], o["include"], o["exclude"], o["protect"], overrides)


def _target(o: dict[str, Any]) -> Target | None:
    from onnxprune.planner import Target, check_ratio

    if (o["target"] is None) == (o["ratio"] is None):
        raise click.UsageError("give either --ratio or --target (for example --target macs=0.5)")
    if o["ratio"] is not None:
        check_ratio(o["ratio"])
    return Target.parse(o["target"]) if o["target"] else None


def _scored(analysis: Analysis, o: dict[str, Any]) -> Scores:
    from onnxprune.scoring import score
    from onnxprune.show import progress

    with progress(f"scoring with {o['criterion']}", quiet=o.get("as_json", False)) as tick:
        return score(analysis, o["criterion"], reduce=o["reduce"], progress=tick, **_params(o["param"]))


def _planned(scores: Scores, target: Target | None, o: dict[str, Any]) -> Plan:
    from onnxprune.pipeline import plan

    return plan(scores, target, ratio=o["ratio"], scope=o["scope"], normalize=o["normalize"], limits=_limits(o))


def _compile(model: Model, plan: Plan, analysis: Analysis | None, o: dict[str, Any]) -> Compiled:
    from onnxprune.pipeline import compile_plan
    from onnxprune.show import progress

    options = {"tolerance": o["tolerance"]} if o["check"] else {}
    with progress("stripping and verifying", quiet=o["as_json"]):
        return compile_plan(model, plan, analysis=analysis, check=o["check"], **options)


def _finish(done: Compiled, o: dict[str, Any]) -> None:
    from onnxprune import show
    from onnxprune.model import save

    save(done.model, o["output"], external=o["external"])
    if o["as_json"]:
        show.emit_json(show.compiled_document(done, str(o["output"])))
    else:
        show.compiled_table(done, f"{o['model'].name} -> {o['output']}")


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
@_attention
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the scores to this JSON file.")
@_json
def score(**o: Any) -> None:
    """Score every channel; higher means keep."""
    from onnxprune import show
    from onnxprune.files import check_output
    from onnxprune.scoring import save_scores

    if o["output"]:
        check_output(o["output"], o["model"])
    scores = _scored(_analysis(_load(o["model"]), o["attention"]), o)
    if o["output"]:
        save_scores(scores, o["output"])
    if o["as_json"]:
        import json

        show.emit_json(json.loads(scores.to_json()))
        return
    rows = [
        [name, str(len(s)), f"{s.min():.4g}", f"{float(sorted(s)[len(s) // 2]):.4g}", f"{s.max():.4g}"]
        for name, s in scores.groups.items()
    ]
    show.table(f"scores by {o['criterion']}", ["group", "channels", "lowest", "median", "highest"], rows)


@main.command()
@_model
@_scoring
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="Use these scores instead (`score -o`).")
@_planning
@_attention
@_output
@_json
def plan(**o: Any) -> None:
    """Decide which channels go, and write plan.json."""
    from onnxprune import show
    from onnxprune.cost import CostModel
    from onnxprune.files import check_output
    from onnxprune.plans import save_plan
    from onnxprune.scoring import load_scores

    target = _target(o)
    check_output(o["output"], o["model"])
    analysis = _analysis(_load(o["model"]), o["attention"])
    scores = load_scores(o["scores_file"], analysis) if o["scores_file"] else _scored(analysis, o)
    made = _planned(scores, target, o)
    save_plan(made, o["output"])
    cost = CostModel(analysis)
    after = cost.cost(analysis.kept(made))
    if o["as_json"]:
        show.emit_json({"output": str(o["output"]), "digest": made.digest, "removed_channels": made.removed,
                        "before": vars(cost.whole), "after": vars(after)})  # fmt: skip
        return
    rows = []
    for g in analysis.groups:
        gone = len(made.groups[g.name].removed) if g.name in made.groups else 0
        rows.append([g.name, str(g.channels), str(g.channels - gone), show.percent(1 - gone / g.channels)])
    show.table(f"plan {o['output']}", ["group", "channels", "kept", ""], rows)
    kept = ", ".join(f"{what} {show.percent(after.ratio(cost.whole, what))}" for what in ("macs", "params", "bytes"))
    click.echo(f"kept: {kept}")


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
@_planning
@_attention
@_writing
@click.option("--plan", "plan_file", type=click.Path(path_type=Path), help="Write the plan to this file as well.")
@_json
def prune(**o: Any) -> None:
    """Score, plan, remove, prove: the whole job in one go."""
    from onnxprune.files import check_output
    from onnxprune.plans import save_plan

    target = _target(o)
    check_output(o["output"], o["model"])
    if o["plan_file"]:
        check_output(o["plan_file"], o["model"])
    model = _load(o["model"])
    analysis = _analysis(model, o["attention"])
    made = _planned(_scored(analysis, o), target, o)
    done = _compile(model, made, analysis, o)
    if o["plan_file"]:
        save_plan(made, o["plan_file"])
    _finish(done, o)


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
