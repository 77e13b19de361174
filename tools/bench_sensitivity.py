"""Measures the sensitivity sweep against the plain loop, against itself on two jobs, and against Torch-Pruning.

    python tools/bench_sensitivity.py DATA.npz MODEL.onnx [MODEL.onnx ...] --mean M --std S [-o out.json]
        [--peer-python PYTHON] [--peer-ratios 0.25,0.5,0.75]

DATA holds x (uint8 NHWC) and y. In one run, for every model:

- *naive*: for every group and ratio strip, make a new session, evaluate all images; with the tool's own functions and
  their defaults, on all cores.
- *grid*: `sensitivity` with its defaults, on all cores; every point is compared with the naive one.
- *bisected*: `sensitivity` that only searches where each curve crosses the baseline less --drop.
- *jobs*: the grid of the first model on one thread, with one job and with two.
- *peer*: tools/torch_pruning_sweep.py in another Python (--peer-python, one that has torch and torch-pruning), at a few
  ratios; the time for all ratios is taken from the mean of these points. It covers fewer groups than the grid, so ours
  is timed on the same groups once more.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import rich
from rich.table import Table

import onnxprune as op
from onnxprune.criteria.scoring import Scores
from onnxprune.execution.data import Data, Feeds, Preprocess
from onnxprune.planning.curves import Curves
from onnxprune.planning.sensitivity_sweep import RATIOS, removed_at, sensitivity

PEER = Path(__file__).with_name("torch_pruning_sweep.py")


def naive(scores: Scores, data: Data, how: Preprocess, ratios: Sequence[float]) -> dict[str, list[float]]:
    """Top-1 of every group at every ratio, the plain way."""
    analysis = scores.analysis
    out: dict[str, list[float]] = {}
    for g in analysis.groups:
        order = np.argsort(scores.groups[g.name], kind="stable")
        for ratio in ratios:
            gone = tuple(sorted(order[: removed_at(g.channels, ratio)].tolist()))
            plan = op.Plan("", {g.name: op.Removal(g.channels, gone)} if gone else {})
            pruned = op.apply(analysis.source, plan, analysis=analysis, verify=False)
            out.setdefault(g.name, []).append(op.evaluate(pruned, data, preprocess=how).top1)
    return out


def timed(scores: Scores, data: Data, how: Preprocess, **options: Any) -> tuple[float, Curves]:
    """Wall seconds of a sweep, and what it found."""
    start = time.perf_counter()
    curves = sensitivity(scores, data, preprocess=how, **options)
    return time.perf_counter() - start, curves


def peer(python: str, path: Path, data: Data, how: Preprocess, ratios: str) -> dict[str, Any]:
    """Return seconds per point of Torch-Pruning's sweep on all cores, and for the grid of the groups it covers."""
    feeds = Feeds(op.load(path), data, how, len(data))
    with tempfile.TemporaryDirectory() as folder:
        x, y = feeds[0]
        np.savez(Path(folder) / "data.npz", x=next(iter(x.values())), y=y)
        out = Path(folder) / "out.json"
        command = [python, str(PEER), str(path), str(Path(folder) / "data.npz"), "--ratios", ratios]
        command += ["--threads", str(os.cpu_count())]
        subprocess.run([*command, "-o", str(out)], check=True)
        points = json.loads(out.read_text())["points"]
    groups = list(dict.fromkeys(p["group"] for p in points))
    mean = float(np.mean([p["seconds"] for p in points]))
    return {"seconds_per_point": mean, "points": len(points), "groups": groups,
            "grid": mean * len(groups) * len(RATIOS)}  # fmt: skip


def bench(path: Path, data: Data, how: Preprocess, drop: float, criterion: str) -> dict[str, Any]:
    """Naive loop, grid and bisection on one model."""
    model = op.load(path)
    scores = op.score(op.analyze(model), criterion)
    grid, curves = timed(scores, data, how)
    threshold = curves.baseline.value - drop
    bisected, crossings = timed(scores, data, how, threshold=threshold)
    start = time.perf_counter()
    plain = naive(scores, data, how, RATIOS)
    slow = time.perf_counter() - start
    differing = [
        (name, p.ratio, p.value, wanted)
        for name, curve in curves.groups.items()
        for p, wanted in zip(curve.points, plain[name], strict=True)
        if p.value != wanted
    ]
    same = sum(curves.largest(n, threshold) == crossings.largest(n, threshold) for n in curves.groups)
    return {
        "groups": len(curves.groups), "points": sum(map(len, plain.values())), "images": len(data),
        "baseline": curves.baseline.value, "naive": slow, "grid": grid, "bisected": bisected,
        "points_that_differ": differing, "bisected_like_grid": same,
    }  # fmt: skip


def floats(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--mean", default="", help="Per channel.")
@click.option("--std", default="", help="Per channel.")
@click.option("-c", "--criterion", default="l1", show_default=True)
@click.option("--drop", default=0.05, show_default=True, help="Accuracy lost at the threshold of the bisected sweep.")
@click.option("--peer-python", help="A Python with torch and torch-pruning.")
@click.option("--peer-ratios", default="0.25,0.5,0.75", show_default=True)
@click.option("--jobs/--no-jobs", default=True, help="Whether two jobs are timed against one.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    data: Path, models: tuple[Path, ...], mean: str, std: str, criterion: str, drop: float, peer_python: str | None,
    peer_ratios: str, jobs: bool, output: Path | None,
) -> None:  # fmt: skip
    """Run everything and print the tables."""
    samples, how = op.load_data(str(data)), Preprocess(floats(mean), floats(std))
    figures: dict[str, Any] = {}
    table = Table(
        "model", "points", "naive s", "grid s", "x", "bisected s", "x", "differ", "peer s/point", "same groups x"
    )
    for i, path in enumerate(models):
        f = figures[path.stem] = bench(path, samples, how, drop, criterion)
        if peer_python:
            f["peer"] = peer(peer_python, path, samples, how, peer_ratios)
            model = op.load(path)
            scores = op.score(op.analyze(model), criterion)
            f["grid_of_peer"], _ = timed(scores, samples, how, include=f["peer"]["groups"])
        if jobs and i == 0:
            model = op.load(path)
            scores = op.score(op.analyze(model), criterion)
            f["one_job"], one = timed(scores, samples, how, threads=1)
            f["two_jobs"], two = timed(scores, samples, how, threads=1, jobs=2)
            f["jobs_agree"] = one.to_json() == two.to_json()
            rich.print(f"{path.stem}: one job {f['one_job']:.1f} s, two jobs {f['two_jobs']:.1f} s, "
                       f"{f['one_job'] / f['two_jobs']:.2f}x, same file: {f['jobs_agree']}")  # fmt: skip
        table.add_row(
            path.stem, str(f["points"]), f"{f['naive']:.1f}", f"{f['grid']:.1f}", f"{f['naive'] / f['grid']:.2f}",
            f"{f['bisected']:.1f}", f"{f['naive'] / f['bisected']:.2f}", str(len(f["points_that_differ"])),
            f"{f['peer']['seconds_per_point']:.2f}" if peer_python else "",
            f"{f['peer']['grid'] / f['grid_of_peer']:.2f}" if peer_python else "",
        )  # fmt: skip
        if output is not None:
            output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    rich.print(table)


if __name__ == "__main__":
    main()
