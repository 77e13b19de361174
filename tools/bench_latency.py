"""Measure the speed-up of pruning beside the share of MACs kept, one thread, batch 1.

    python tools/bench_latency.py FOLDER [-m NAME ...] [-o out.json]

FOLDER holds NAME.ts.onnx. Every model is pruned to half of its MACs with the defaults (widths rounded to the blocks of
the CPU's kernels) and with round_to=1; original and pruned run interleaved, and medians count. The efficiency is the
speed-up times the share of MACs kept: 1 means that the time fell by as much as the MACs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import rich
from rich.table import Table

import onnxprune as op
from onnxprune.execution.sessions import Session
from onnxprune.execution.timing import measure
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.targets import Target

REQUIRED = {"resnet50": 0.9, "vgg16_bn": 0.9, "mobilenet_v2": 0.8, "efficientnet_b0": 0.0}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "round_to=1": {"constraints": Constraints(round_to=1)},
}
ALTERNATIVES: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"allocator": "uniform"},
    "normalize=max": {"normalize": "max"},
    "max_ratio=0.5": {"constraints": Constraints(max_ratio=0.5)},
    "max_ratio=0.7": {"constraints": Constraints(max_ratio=0.7)},
    "round_to=8": {"constraints": Constraints(round_to=8)},
    "round_to=32": {"constraints": Constraints(round_to=32)},
    "uniform, round_to=1": {"allocator": "uniform", "constraints": Constraints(round_to=1)},
    "protect=residual": {"constraints": Constraints(protect=("residual",))},
}


def bench(path: Path, variants: Mapping[str, Mapping[str, Any]], keep: float, runs: int) -> list[dict[str, Any]]:
    """Prune one model in several ways and time all of them in turn."""
    model = op.load(path)
    analysis = op.analyze(model)
    scores = op.score(analysis)
    feeds = random_feeds(analysis, 1)
    original, rows = Session(model, threads=1), []
    for name, options in variants.items():
        try:
            plan = op.plan(scores, Target(macs=keep), **options)
        except op.OnnxPruneError as err:
            rich.print(f"[yellow]{path.name} {name}: {err}")
            continue
        done = op.compile_plan(model, plan, analysis=analysis, check=False)
        # In pairs: many models in turn would evict each other's caches.
        before, after = measure([original, Session(done.model, threads=1)], [feeds, feeds], runs=runs).latencies
        kept, speed_up = done.after.ratio(done.before, "macs"), before.median / after.median
        row = {"variant": name, "macs": kept, "speed_up": speed_up, "efficiency": speed_up * kept}
        rows.append(row | {"original": asdict(before), "pruned": asdict(after)})
    return rows


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-m", "--model", "models", multiple=True, help="Only these models (default: the four with a requirement)."
)
@click.option("--keep", default=0.5, show_default=True, help="Share of MACs kept.")
@click.option("--runs", default=30, show_default=True, help="Timed runs of every model.")
@click.option("--all", "alternatives", is_flag=True, help="Other allocators, normalisations and constraints as well.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    folder: Path, models: tuple[str, ...], keep: float, runs: int, alternatives: bool, output: Path | None
) -> None:
    """Time the models and print the table."""
    table = Table("model", "variant", "ms before", "ms after", "speed-up", "MACs kept", "efficiency", "required")
    figures = {}
    for name in models or REQUIRED:
        variants = {**VARIANTS, **(ALTERNATIVES if alternatives else {})}
        figures[name] = bench(folder / f"{name}.ts.onnx", variants, keep, runs)
        for row in figures[name]:
            needed = REQUIRED.get(name, 0.0) if row["variant"] == "default" else 0.0
            missed = row["efficiency"] < needed
            table.add_row(
                name,
                row["variant"],
                f"{row['original']['median'] * 1e3:.1f}",
                f"{row['pruned']['median'] * 1e3:.1f}",
                f"{row['speed_up']:.2f}",
                f"{row['macs']:.3f}",
                f"[{'red' if missed else 'green'}]{row['efficiency']:.2f}",
                f">= {needed}" if needed else "",
            )
    rich.print(table)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
