"""The command `onnxprune sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune import __version__
from onnxprune.cli._support.options import Command, json_option, model_argument, takes_options
from onnxprune.cli._support.stages import analyzed, load_model, read_data, scored
from onnxprune.errors import OnnxPruneError
from onnxprune.options import (
    AttentionOptions,
    Distribution,
    Events,
    InputShapes,
    Options,
    Output,
    RequiredData,
    Restarting,
    ScoresInput,
    Scoring,
    SensitivitySweep,
    option,
)

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Analysis
    from onnxprune.execution.data import Fitted


@dataclass(frozen=True, kw_only=True, repr=False)
class CurveOutput(Output):
    """Files of `sensitivity`."""

    plot: Path | None = option(None, help="Draw the curves to this .png or .svg file.", heading="Output")
    csv: Path | None = option(None, help="Write the curves as a table as well.", heading="Output")
    blocks: bool = option(
        False, heading="Selection", flag="--blocks",
        help="Instead: the metric without each residual block, then without the best two, three ... of them.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepRuntime(Options):
    """Runtime of a sweep: it needs the outputs, not the time."""

    runtime: str = option(
        "onnxruntime", heading="Runtime", advanced=True, metavar="NAME[:PROVIDER]",
        help="Runtime that computes the outputs: onnxruntime, onnxruntime:cpu or onnxruntime:cuda.",
    )  # fmt: skip

    def device(self, device: str) -> str:
        """Return the device that the runtime names, else the one that is given.

        Raises:
            OnnxPruneError: A runtime that a sweep cannot use, or a device beside another one.
        """
        name, _, provider = self.runtime.partition(":")
        named = provider.lower().removesuffix("executionprovider") or device
        if name != "onnxruntime" or named not in ("auto", "cpu", "cuda"):
            raise OnnxPruneError(
                f"sensitivity needs the outputs of masked models, which {self.runtime} does not give",
                fix="onnxruntime, onnxruntime:cpu or onnxruntime:cuda; `plan --curves` and `prune` take any --runtime",
            )
        if device not in ("cpu", named):
            raise OnnxPruneError(f"--device {device} contradicts --runtime {self.runtime}", fix="leave out one of them")
        return named


@click.command(cls=Command, advanced=("include", "exclude"))
@model_argument
@takes_options
@json_option
def sensitivity(
    model: Path,
    output: CurveOutput,
    data: RequiredData,
    scoring: Scoring,
    scores: ScoresInput,
    sweep: SensitivitySweep,
    where: SweepRuntime,
    distribution: Distribution,
    analysis: AttentionOptions,
    shapes: InputShapes,
    restarting: Restarting,
    events: Events,
    as_json: bool,
) -> None:
    """Measure accuracy as channels are removed, group by group.

    `plan --curves` reads the result. The same command continues an interrupted run.
    """
    import json

    from onnxprune._utils.files.atomic_files import check_output, write_text
    from onnxprune.cli._support import display
    from onnxprune.criteria.scoring import load_scores
    from onnxprune.execution.calibration import Calibration
    from onnxprune.execution.tasks.saturation import saturation_warning
    from onnxprune.planning.curves import save_curves
    from onnxprune.planning.sensitivity_sweep import sensitivity as run

    for path in filter(None, (output.output, output.plot, output.csv)):
        check_output(path, model)
    if output.plot is not None:
        from onnxprune.studies.plots import check_plot

        check_plot(output.plot)
    threshold = _threshold(sweep)
    sweep = replace(sweep, device=where.device(sweep.device))
    if output.blocks and (threshold is not None or scores.scores_file is not None or scoring.criterion is not None):
        raise click.UsageError("--blocks removes whole blocks: leave out thresholds, --scores and -c")
    original = load_model(model, shapes)
    samples = read_data(data.data, data, original, device=sweep.device)
    found = analyzed(original, analysis)
    if output.blocks:
        _blocks(found, samples, model, output, sweep, as_json)
        return
    if scores.scores_file is not None:
        ranked = load_scores(scores.scores_file, found)
    else:
        calibration = Calibration(samples.data, samples.preprocess, device=sweep.device)
        ranked = scored(found, scoring, calibration, quiet=as_json)
    journal = output.output.with_name(output.output.name + ".journal")
    with display.progress("measuring", quiet=as_json) as tick:
        curves = run(
            ranked, samples.data, task=sweep, ratios=sweep.ratios, include=sweep.include,
            exclude=sweep.exclude, threshold=threshold, stop_at_chance=sweep.stop_at_chance,
            preprocess=samples.preprocess, batch=sweep.batch or 0, threads=sweep.threads, device=sweep.device,
            cache_memory=distribution.cache_memory, jobs=sweep.jobs, backend=distribution.backend,
            address=distribution.address, journal=journal, restart=restarting.restart,
            partial_classes=sweep.partial_classes, tool=__version__, progress=tick, notice=display.note,
        )  # fmt: skip
    if warning := saturation_warning(found.source):
        display.note(f"Warning: {warning}")
    save_curves(curves, output.output)
    if output.csv is not None:
        write_text(output.csv, curves.to_csv())
    if output.plot is not None:
        from onnxprune.studies.plots import plot_curves

        plot_curves(curves, output.plot, name=model.name)
    journal.unlink(missing_ok=True)  # the curves are on disk
    if not display.finished(as_json, lambda: json.loads(curves.to_json())):
        display.curves_table(curves, str(output.output))


def _blocks(
    analysis: Analysis, samples: Fitted, model: Path, output: CurveOutput, sweep: SensitivitySweep, as_json: bool
) -> None:
    """Measure residual blocks, for `sensitivity --blocks`."""
    import json

    from onnxprune._utils.files.atomic_files import write_text
    from onnxprune.cli._support import display
    from onnxprune.execution.calibration import Calibration
    from onnxprune.studies.block_sensitivity import block_sensitivity, plot_block_sensitivity

    data = Calibration(
        samples.data, samples.preprocess, batch=sweep.batch or 64, threads=sweep.threads or 0, device=sweep.device
    )
    with display.progress("measuring", quiet=as_json) as tick:
        found = block_sensitivity(
            analysis, data, task=sweep, include=sweep.include, exclude=sweep.exclude, progress=tick
        )  # fmt: skip
    write_text(output.output, found.to_json())
    if output.csv is not None:
        write_text(output.csv, found.to_csv())
    if output.plot is not None:
        plot_block_sensitivity(found, output.plot, name=model.name)
    if as_json:
        display.emit_json(json.loads(found.to_json()))
        return
    rows = [[row.blocks[0], f"{row.macs:.1%}", f"{row.value:.4g}"] for row in found.single]
    rows += [[f"the best {len(row.blocks)}", f"{row.macs:.1%}", f"{row.value:.4g}"] for row in found.together[1:]]
    title = f"{model.name}: {found.metric} {found.baseline:.4g} of {found.samples} samples"
    display.table(title, ["without", "MACs kept", found.metric], rows)


def _threshold(sweep: SensitivitySweep) -> float | None:
    """Return the value that curves are searched for; None: all ratios are measured.

    Raises:
        click.UsageError: both thresholds, the wrong one for the metric, or an accuracy out of range.
    """
    from onnxprune.execution.tasks.metrics import SHARES
    from onnxprune.execution.tasks.task import higher_is_better

    better = higher_is_better(sweep)
    if sweep.min_group_accuracy is None and sweep.max_loss is None:
        return None
    if sweep.min_group_accuracy is not None and sweep.max_loss is not None:
        raise click.UsageError("use either --min-group-accuracy or --max-loss")
    name = sweep.metric or "top1"
    if better != (sweep.min_group_accuracy is not None):
        right = "--min-group-accuracy" if better else "--max-loss"
        raise click.UsageError(f"{name} is {'higher' if better else 'lower'}-is-better; use {right}")
    value = sweep.max_loss if sweep.min_group_accuracy is None else sweep.min_group_accuracy
    assert value is not None
    if name in SHARES and not 0 <= value <= 1:
        raise click.UsageError(f"--min-group-accuracy is a share in [0, 1], not {value:g}")
    return float(value)
