"""The command `onnxprune score`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import analyzed, calibration_of, load_model, scored
from onnxprune.options import (
    AnalysisOptions,
    CalibrationData,
    Constraints,
    Device,
    Events,
    InputShapes,
    Options,
    Scoring,
    option,
)

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.criteria.scoring import Scores
    from onnxprune.execution.calibration import Calibration


@dataclass(frozen=True, kw_only=True, repr=False)
class ScoreOutput(Options):
    """Files of `score`, and its comparison of criteria."""

    compare: str | None = option(
        None, heading="Selection", metavar="C1,C2,...",
        help="Instead: agreement of these criteria; parameters follow colons: fpgm:mix_norm=0.1.",
    )  # fmt: skip
    ratio: float | None = option(
        None, help="With --compare: share that each would remove of every group.", heading="Selection", ge=0, lt=1,
        shown="0.5",
    )  # fmt: skip
    plot: Path | None = option(None, help="With --compare: draw a layer (.png, .svg).", heading="Output")
    blocks: bool = option(
        False, heading="Selection", flag="--blocks",
        help="Instead: losses of the residual blocks, in order of removal; for `plan --scores --only blocks`.",
    )  # fmt: skip
    layer: str | None = option(
        None, help="With --plot: layer to draw.", heading="Output", metavar="GLOB", shown="the widest group"
    )
    output: Path | None = option(
        None, heading="Output", flag=("-o", "--output"),
        help="Write the scores to this JSON file; with --compare the comparison, as JSON or .csv.",
    )  # fmt: skip
    per_class: Path | None = option(
        None, heading="Output",
        help="Write the importance for each class as a table, .csv or .json (senpis, loss_change).",
    )  # fmt: skip


@click.command(cls=Command)
@model_argument
@takes_options
@json_option
def score(
    model: Path,
    output: ScoreOutput,
    scoring: Scoring,
    data: CalibrationData,
    device: Device,
    analysis: AnalysisOptions,
    shapes: InputShapes,
    events: Events,
    as_json: bool,
) -> None:
    """Score every channel; channels with higher scores are kept.

    \b
    onnxprune score m.onnx -c dscore -o scores.json
    onnxprune score m.onnx --compare l1,fpgm,dscore --plot layer.svg
    """
    from onnxprune._utils.files.atomic_files import check_output
    from onnxprune.cli._support import display
    from onnxprune.criteria.per_class import check_class_table, save_class_table
    from onnxprune.criteria.scoring import save_scores

    for path in filter(None, (output.output, output.plot, output.per_class)):
        check_output(path, model)
    if output.compare is not None and output.per_class is not None:
        raise click.UsageError("--per-class needs a single criterion: leave out --compare")
    if output.blocks and (output.compare is not None or output.per_class is not None):
        raise click.UsageError("--blocks scores whole blocks: leave out --compare and --per-class")
    if output.compare is not None:
        _compared(model, output, output.compare, scoring, data, device, analysis, shapes, as_json)
        return
    if output.ratio is not None or output.plot is not None or output.layer:
        raise click.UsageError("--ratio, --plot and --layer need --compare")
    if output.per_class is not None:
        check_class_table(output.per_class, scoring.name)
    found = analyzed(load_model(model, shapes), analysis)
    samples = calibration_of(data.data, data, found.source, device.device)
    scores = _blocks_scored(found, scoring, samples, as_json) if output.blocks else scored(
        found, scoring, samples, quiet=as_json
    )  # fmt: skip
    if output.output is not None:
        save_scores(scores, output.output)
    if output.per_class is not None:
        save_class_table(scores, output.per_class)
    if display.finished(as_json, lambda: json.loads(scores.to_json())):
        return
    if output.blocks:
        display.block_scores_table(scores, scoring.name)
        return
    rows = [
        [name, str(len(s)), f"{s.min():.4g}", f"{float(sorted(s)[len(s) // 2]):.4g}", f"{s.max():.4g}"]
        for name, s in scores.groups.items()
    ]
    display.table(f"scores by {scoring.name}", ["group", "channels", "lowest", "median", "highest"], rows)


def _blocks_scored(analysis: Analysis, scoring: Scoring, samples: Calibration | None, quiet: bool) -> Scores:
    """Return scores with a loss for every block, for `score --blocks`."""
    from onnxprune.planning.depth import block_scores

    found = scored(analysis, scoring, samples, quiet=quiet, constraints=Constraints(only=("blocks",)))
    return replace(found, blocks=block_scores(found))


def _compared(
    model: Path,
    output: ScoreOutput,
    criteria: str,
    scoring: Scoring,
    data: CalibrationData,
    device: Device,
    analysis: AnalysisOptions,
    shapes: InputShapes,
    as_json: bool,
) -> None:
    """Compare criteria, for `score --compare`."""
    from onnxprune.cli._support import display
    from onnxprune.studies.criteria_comparison import compare_criteria, save_comparison

    if scoring.criterion is not None or scoring.params:
        raise click.UsageError("--compare names criteria and parameters itself: leave out -c and -p")
    if output.layer and output.plot is None:
        raise click.UsageError("--layer needs --plot")
    if output.plot is not None:
        from onnxprune.studies.plots import check_plot

        check_plot(output.plot)
    found = analyzed(load_model(model, shapes), analysis)
    samples = calibration_of(data.data, data, found.source, device.device)
    names = [name.strip() for name in criteria.split(",") if name.strip()]
    with display.progress("scoring", quiet=as_json) as tick:
        compared = compare_criteria(
            found,
            names,
            ratio=0.5 if output.ratio is None else output.ratio,
            reduce=scoring.reduce,
            calibration=samples,
            progress=tick,
        )
    layer = compared.layer(output.layer) if output.plot is not None else None
    if output.output is not None:
        save_comparison(compared, output.output)
    if layer is not None and output.plot is not None:
        from onnxprune.studies.plots import plot_criteria

        plot_criteria(layer, output.plot, name=model.name)
    if as_json:
        display.emit_json({**compared.as_dict(), **({"data": samples.as_dict()} if samples is not None else {})})
    else:
        display.criteria_table(compared, model.name)
