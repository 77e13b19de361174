"""Measures SeNPIS by masked sessions with prefix reuse against one full forward pass per filter.

    python tools/bench_senpis.py MODEL.onnx DATA.npz --mean M --std S [--samples 10] [--filters 12] [--threads 0]

DATA holds x (uint8 NHWC) and y. In one run, on the same samples and the same number of threads:

- *senpis*: the criterion with its defaults, similarities included.
- *plain loop*: for a filter, a copy of the model in which nothing reads it, a session, all samples, the mean
  cross-entropy of each class. With the tool's own functions.
- *one session*: the same without building anything: one session of the whole model takes the mask as an input. What
  is left is one full forward pass.

Both loops are measured on --filters channels, spread evenly over all of them; the channels that sequential scoring
removed before are gone in them, too, so their changes of loss must be those of senpis. A loop over the network's
layers takes a pass for every filter. Filters that can only go together (of a residual stream) are one channel: the
columns "channels" count a pass for each of these, which only a loop that knows them could do. CPU seconds are the fair
figure on a machine with other work; on one thread nothing but the work saved counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import rich
from rich.table import Table

import onnxprune as op
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.base import ScoringContext
from onnxprune.criteria.loss_change import class_means
from onnxprune.criteria.senpis import Senpis, SenpisResult, class_samples
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.execution.sessions import Session
from onnxprune.execution.tasks.metrics import cross_entropy
from onnxprune.ir.model import Array
from onnxprune.passes import InsertMasks
from onnxprune.passes.insert_masks import MASK_INPUT


def class_loss(session: Session, feeds: Feeds, mask: Array | None, classes: int) -> Array:
    """Mean cross-entropy of each class, [classes]."""
    more = {} if mask is None else {MASK_INPUT: mask}
    y = feeds.data.y
    assert y is not None
    runs = [(session.run({**feed, **more})[0], labels) for feed, labels in (feeds[i] for i in range(len(feeds)))]
    return class_means(np.concatenate([cross_entropy(out, labels) for out, labels in runs]), y, classes)


def spread(layers: Sequence[SenpisResult], count: int) -> list[tuple[int, int]]:
    """(layer, channel) of some channels, evenly over all."""
    every = [(i, c) for i, layer in enumerate(layers) for c in range(len(layer.im_global))]
    return [every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int)]


def naive(
    analysis: Analysis,
    layers: Sequence[SenpisResult],
    chosen: Sequence[tuple[int, int]],
    feeds: Feeds,
    *,
    build: bool,
    threads: int,
) -> tuple[float, float, float]:
    """Wall and CPU seconds per filter of a loop, and how far its changes of loss are from those of senpis."""
    whole = InsertMasks(analysis=analysis, as_input=True)
    session = None if build else Session(whole(analysis.model), threads=threads)
    wall = cpu = worst = 0.0
    for i, c in chosen:
        gone = {layer.group: layer.removed.tolist() for layer in layers[:i]}
        gone[layers[i].group] = [c]
        plan = op.Plan("", {n: op.Removal(analysis[n].channels, tuple(r)) for n, r in gone.items() if r})
        start = time.perf_counter(), time.process_time()
        if session is None:
            masked = Session(InsertMasks(plan, analysis)(analysis.model), threads=threads)
            loss = class_loss(masked, feeds, None, len(layers[i].class_loss))
        else:
            loss = class_loss(session, feeds, analysis.kept(plan).astype(np.float32), len(layers[i].class_loss))
        wall += time.perf_counter() - start[0]
        cpu += time.process_time() - start[1]
        worst = max(worst, float(np.abs(np.abs(loss - layers[i].class_loss) - layers[i].im_local[:, c]).max()))
    return wall / len(chosen), cpu / len(chosen), worst


def filters_of(analysis: Analysis) -> int:
    """Return the filters of all weights that produce channels of a group."""
    sites = {(site.tensor.name, site.axis): site for site in analysis.filter_sites}
    return sum(int((analysis.component[site.labels] > 0).sum()) for site in sites.values())


def floats(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--mean", default="", help="Per channel.")
@click.option("--std", default="", help="Per channel.")
@click.option("--samples", default=10, show_default=True, help="Of each class.")
@click.option("--filters", default=12, show_default=True, help="How many the loops are measured on.")
@click.option("--threads", default=0, show_default="all cores", help="Of the CPU, for all three.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    model: Path, data: Path, mean: str, std: str, samples: int, filters: int, threads: int, output: Path | None
) -> None:  # fmt: skip
    """Run everything and print the table."""
    analysis = op.analyze(op.load(model))
    source, how, rule = op.load_data(str(data)), Preprocess(floats(mean), floats(std)), Senpis(samples=samples)
    assert source.y is not None
    case = ScoringContext(analysis, analysis.groups, Calibration(source, how, threads=threads))
    start = time.perf_counter(), time.process_time()
    layers = list(rule.layers(case))
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    classes = len(layers[0].class_loss)
    chosen = class_samples(source.y, classes, samples, rule.seed)
    feeds = Feeds(analysis.model, Data(source.x[chosen], source.y[chosen], source.name), how)
    total, filters_in_all = sum(len(layer.im_global) for layer in layers), filters_of(analysis)
    figures: dict[str, Any] = {
        "channels": total, "filters": filters_in_all, "samples": len(chosen), "threads": threads,
        "senpis": {"wall": wall, "cpu": cpu},
    }  # fmt: skip
    table = Table("", "wall s", "x filters", "x channels", "CPU s", "x filters", "x channels", "largest difference")
    table.add_row("senpis", f"{wall:.1f}", "", "", f"{cpu:.1f}", "", "", "")
    for name, build in (("plain loop", True), ("one session", False)):
        some = spread(layers, filters)
        each = dict(
            zip(
                ("wall", "cpu", "difference"),
                naive(analysis, layers, some, feeds, build=build, threads=threads),
                strict=True,
            )
        )
        figures[name] = each
        cells = []
        for what, ours in (("wall", wall), ("cpu", cpu)):
            for unit, count in (("filters", filters_in_all), ("channels", total)):
                each[f"{what}_x_{unit}"] = each[what] * count / ours
            cells += [
                f"{each[what]:.3f} a pass",
                f"{each[f'{what}_x_filters']:.2f}",
                f"{each[f'{what}_x_channels']:.2f}",
            ]
        table.add_row(name, *cells, f"{each['difference']:.1e}")
    rich.print(f"{model.stem}: {filters_in_all} filters, {total} channels, {len(layers)} groups, {len(chosen)} samples")
    rich.print(table)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
