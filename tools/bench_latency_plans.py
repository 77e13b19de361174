"""Compare predicted with measured latency, for plans that the latency model was not fitted to.

    python tools/bench_latency_plans.py FOLDER [-m NAME ...] [-t THREADS ...] [-o out.json]

FOLDER holds NAME.ts.onnx. Original and pruned run interleaved, and medians count. Runs in which threads had to wait for
a processor are left out if there are others. A machine's speed drifts by more than the model's error, so the error is
that of the share: predicted over measured pruned/original. "ms drift" is the original's distance from its prediction.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import rich
from rich.table import Table

import onnxprune as op
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array
from onnxprune.latency._measuring import timed_run
from onnxprune.latency.prediction import LatencyModel, latency_model
from onnxprune.latency.random_inputs import random_feeds

MODELS = ("resnet50", "vgg16", "mobilenet_v2")
REQUIRED = 0.1
WARMUP = 3
DISTURBED = 0.01  # share of a run that its threads waited


def plans(scores: op.Scores, model: LatencyModel) -> dict[str, op.Plan]:
    """Return plans to half of the MACs or of the latency."""
    return {
        "global, macs=0.5": op.plan(scores, op.Target(macs=0.5)),
        "latency, macs=0.5": op.plan(scores, op.Target(macs=0.5), allocator="latency", latency=model),
        "latency, latency=0.5": op.plan(scores, op.Target(latency=0.5), latency=model),
    }


def interleaved(
    sessions: Sequence[Session], feeds: Mapping[str, Array], runs: int, patience: float
) -> tuple[list[float], int]:
    """Median seconds of sessions run in turn, and how many undisturbed rounds that is from; 0: from disturbed ones."""
    rounds, quiet = [], []
    start = time.monotonic()
    while len(rounds) < WARMUP + runs or (len(quiet) < runs and time.monotonic() - start < patience):
        timed = [timed_run(s, feeds) for s in sessions]
        rounds.append([seconds for seconds, _ in timed])
        if len(rounds) > WARMUP and all(waited <= DISTURBED * seconds for seconds, waited in timed):
            quiet.append(rounds[-1])
    enough = len(quiet) >= 5
    return np.median(quiet if enough else rounds[WARMUP:], axis=0).tolist(), len(quiet) if enough else 0


def bench(path: Path, threads: int, runs: int, patience: float, refresh: bool) -> dict[str, Any]:
    """Predict and measure one model with some threads."""
    model = op.load(path)
    analysis = op.analyze(model)
    start = time.monotonic()
    predictor = latency_model(analysis, threads=threads, refresh=refresh)
    spent = time.monotonic() - start
    scores, feeds, rows = op.score(analysis), random_feeds(analysis, 1), []
    original = Session(analysis.model, threads=threads)
    for name, plan in plans(scores, predictor).items():
        done = op.compile_plan(model, plan, analysis=analysis, check=False)
        pruned = Session(done.model, threads=threads)
        (before, after), quiet = interleaved([original, pruned], feeds, runs, patience)
        predicted = predictor.seconds(analysis.kept(plan))
        share = {"measured": after / before, "predicted": predicted / predictor.baseline}
        rows.append(
            {
                "plan": name,
                "macs": done.after.ratio(done.before, "macs"),
                "quiet_rounds": quiet,
                "original": before,
                "pruned": after,
                "predicted_original": predictor.baseline,
                "predicted_pruned": predicted,
                "share": share,
                "error": share["predicted"] / share["measured"] - 1,
            }
        )
    return {"measuring_seconds": spent, "plans": rows}


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-m", "--model", "models", multiple=True, default=MODELS, show_default=True, help="Only these models.")
@click.option("-t", "--threads", multiple=True, default=(1, 2), type=int, show_default=True, help="Intra-op threads.")
@click.option("--runs", default=20, show_default=True, help="Undisturbed runs of every model.")
@click.option("--patience", default=10.0, show_default=True, help="Seconds to wait for them, per plan.")
@click.option("--cached", is_flag=True, help="Take latency models from the cache if they are there.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    folder: Path,
    models: tuple[str, ...],
    threads: tuple[int, ...],
    runs: int,
    patience: float,
    cached: bool,
    output: Path | None,
) -> None:
    """Predict, measure and print the table."""
    table = Table("model", "threads", "plan", "MACs kept", "share pred.", "share meas.", "error", "ms before",
                  "ms after", "ms drift", "quiet", "measured in")  # fmt: skip
    figures: dict[str, dict[str, Any]] = {}
    for name in models:
        for count in threads:
            found = bench(folder / f"{name}.ts.onnx", count, runs, patience, not cached)
            figures.setdefault(name, {})[str(count)] = found
            for row in found["plans"]:
                table.add_row(
                    name,
                    str(count),
                    row["plan"],
                    f"{row['macs']:.3f}",
                    f"{row['share']['predicted']:.3f}",
                    f"{row['share']['measured']:.3f}",
                    f"[{'red' if abs(row['error']) > REQUIRED else 'green'}]{row['error']:+.1%}",
                    f"{row['original'] * 1e3:.2f}",
                    f"{row['pruned'] * 1e3:.2f}",
                    f"{row['original'] / row['predicted_original'] - 1:+.0%}",
                    str(row["quiet_rounds"]),
                    f"{found['measuring_seconds']:.0f} s",
                )
    rich.print(table)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
