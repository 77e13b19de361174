"""The command `onnxprune sensitivity`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from onnxprune import __version__
from onnxprune.cli._options import (
    DATA_HELP,
    attention_option,
    device_option,
    json_option,
    model_argument,
    output_option,
    samples_options,
    scoring_options,
)
from onnxprune.cli._stages import analysis_of, load_model, preprocess_of, scored, size_of


@click.command()
@model_argument
@click.option("--data", required=True, help=DATA_HELP)
@scoring_options
@click.option("--scores", "scores_file", type=click.Path(path_type=Path), help="Use these scores instead (`score -o`).")
@output_option
@click.option("--metric", help="top1, top5, loss; without labels kl, cosine, mse; or package.module:function.")
@click.option("--ratios", default="0.05:0.95:0.05", show_default=True, help="FROM:TO:STEP, or a list 0.1,0.3,0.5.")
@click.option("--include", multiple=True, metavar="GLOB", help="Sweep only these groups (repeatable).")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these groups out (repeatable).")
@click.option("--min-group-accuracy", type=float, help="Only search where each curve falls below this (bisection).")
@click.option("--max-loss", type=float, help="The same for metrics of which less is better.")
@click.option("--stop-at-chance", is_flag=True, help="End a curve once it is no better than guessing.")
@samples_options
@click.option("--partial-classes", is_flag=True, help="Accept data in which a class is empty.")
@click.option(
    "--batch", type=click.IntRange(1), help="Samples per run.", show_default="8 to 64, activations within the cache"
)
@click.option("--threads", type=click.IntRange(0), help="CPU threads of a job.", show_default="cores / jobs")
@device_option
@click.option("--cache-memory", default="2GB", show_default=True, help="For activations that are computed once.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(0), help="Workers; 0: one for every core.")
@click.option("--backend", default="loky", show_default=True, help="loky (this machine), dask or ray (a cluster).")
@click.option("--address", help="Of the dask or ray cluster; its machines share this folder.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has left.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curves to this .png or .svg file.")
@click.option("--csv", "csv_file", type=click.Path(path_type=Path), help="Write the curves as a table, too.")
@attention_option
@json_option
def sensitivity(**o: Any) -> None:
    """Measure what accuracy does as channels leave, group by group.

    Every finished point goes to OUTPUT.journal; a run that was killed continues with the same command, and ends with
    the same file. `plan --curves` decides from the result.
    """
    import json

    from onnxprune._utils.atomic_files import check_output, write_text
    from onnxprune.cli import _display
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.execution.data import load_data
    from onnxprune.execution.evaluation import saturation_warning
    from onnxprune.planning.curves import save_curves
    from onnxprune.planning.sensitivity_sweep import sensitivity as run

    for path in filter(None, (o["output"], o["plot"], o["csv_file"])):
        check_output(path, o["model"])
    if o["plot"]:
        from onnxprune.studies.plots import check_plot

        check_plot(o["plot"])
    threshold = _threshold(o)
    data = load_data(o["data"], images=o["images"], size=size_of(o["size"]))
    analysis = analysis_of(load_model(o["model"]), o)
    scores = load_scores(o["scores_file"], analysis) if o["scores_file"] else scored(analysis, o)
    journal = o["output"].with_name(o["output"].name + ".journal")
    with _display.progress("measuring", quiet=o["as_json"]) as tick:
        curves = run(
            scores, data, metric=o["metric"], ratios=_ratios(o["ratios"]), include=o["include"], exclude=o["exclude"],
            threshold=threshold, stop_at_chance=o["stop_at_chance"], preprocess=preprocess_of(o), batch=o["batch"] or 0,
            threads=o["threads"], device=o["device"], cache_memory=_bytes(o["cache_memory"]), jobs=o["jobs"],
            backend=o["backend"], address=o["address"], journal=journal, restart=o["restart"],
            partial_classes=o["partial_classes"], tool=__version__, progress=tick, notice=_display.note,
        )  # fmt: skip
    if warning := saturation_warning(analysis.source):
        _display.note(f"Warning: {warning}")
    save_curves(curves, o["output"])
    if o["csv_file"]:
        write_text(o["csv_file"], curves.to_csv())
    if o["plot"]:
        from onnxprune.studies.plots import plot_curves

        plot_curves(curves, o["plot"], name=o["model"].name)
    journal.unlink(missing_ok=True)  # only now is nothing left to lose
    if o["as_json"]:
        _display.emit_json(json.loads(curves.to_json()))
    else:
        _display.curves_table(curves, str(o["output"]))


def _threshold(o: dict[str, Any]) -> float | None:
    """The value that curves may not fall below (or, for losses, rise above)."""
    from onnxprune.execution.metrics import get_metric

    given = [n for n in ("min_group_accuracy", "max_loss") if o[n] is not None]
    if not given:
        return None
    if len(given) == 2:
        raise click.UsageError("give either --min-group-accuracy or --max-loss")
    metric = get_metric(o["metric"] or "top1")
    if metric.higher_is_better != (given[0] == "min_group_accuracy"):
        right = "--min-group-accuracy" if metric.higher_is_better else "--max-loss"
        raise click.UsageError(f"of {metric.name}, {'more' if metric.higher_is_better else 'less'} is better: {right}")
    value = float(o[given[0]])
    if metric.name in ("top1", "top5") and not 0 <= value <= 1:
        raise click.UsageError(f"--min-group-accuracy is a share in [0, 1], not {value:g}")
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
