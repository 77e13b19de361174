"""Measure plans of channels, of residual blocks, and of both at equal cost: accuracy after recovery, and latency.

    python tools/bench_depth.py resnet20.onnx train.npz test.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

Channels and blocks are scored on the calibration samples; accuracy is measured on separate test samples.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import click

import onnxprune as op
from onnxprune.criteria.scoring import Scores, load_scores, save_scores
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Preprocess, subset
from onnxprune.latency.bench import bench
from onnxprune.latency.prediction import latency_model
from onnxprune.options.recovery import stages_of
from onnxprune.recovery.recover import recover

SERIES = {"channels": (), "blocks": ("blocks",), "both": ("blocks", "channels")}


def numbers(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


def scored(
    analysis: op.Analysis, criterion: str, limits: op.Constraints, samples: Calibration, folder: Path | None, file: str
) -> Scores:
    """Return scores, those of a file in the folder if there is one; they are written there."""
    if folder is None:
        return op.score(analysis, criterion, constraints=limits, data=samples)
    if not (folder / file).exists():
        folder.mkdir(parents=True, exist_ok=True)
        save_scores(op.score(analysis, criterion, constraints=limits, data=samples), folder / file)
    return load_scores(folder / file, analysis)


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("train")
@click.argument("test")
@click.option("--mean", default="")
@click.option("--std", default="")
@click.option("--targets", default="macs=0.7,macs=0.5", show_default=True)
@click.option("--series", default="channels,both,blocks", show_default=True)
@click.option("-c", "--criterion", default="obs", show_default=True)
@click.option("--images", default=1000, show_default=True, help="Calibration samples.")
@click.option("--max-blocks", default=0, help="Most blocks that a plan removes; 0: any number.")
@click.option("--reconstruct-blocks", is_flag=True, help="As of `recover`.")
@click.option("--runs", default=200, show_default=True, help="Timed runs.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
@click.option(
    "--folder", type=click.Path(file_okay=False, path_type=Path),
    help="Scores and models are written here; scores of an earlier run are used again.",
)  # fmt: skip
def main(
    model: Path, train: str, test: str, mean: str, std: str, targets: str, series: str, criterion: str, images: int,
    max_blocks: int, reconstruct_blocks: bool, runs: int, output: Path | None, folder: Path | None,
) -> None:  # fmt: skip
    """Prune and recover at every target."""
    original, held_out = op.load(model), op.load_data(test)
    how = Preprocess(numbers(mean), numbers(std))
    samples = Calibration(subset(op.load_data(train), images), how)
    analysis = op.analyze(original)
    predictor = latency_model(analysis, threads=1) if "latency" in targets else None
    rows: list[dict[str, Any]] = []
    baseline = op.evaluate(original, held_out, preprocess=how).top1
    click.echo(f"{model.name}: baseline {100 * baseline:.2f} % of {len(held_out)}")
    scores: Scores | None = None
    for name in sorted(series.split(","), key=lambda n: n == "blocks"):  # the others share their scores
        limits = op.Constraints(only=SERIES[name], max_blocks=max_blocks if "blocks" in SERIES[name] else 0)
        began = time.perf_counter()
        if name == "blocks" or scores is None:
            own = limits if name == "blocks" else replace(limits, only=SERIES["both"], max_blocks=max_blocks)
            kind = "blocks" if name == "blocks" else "both"
            scores = scored(analysis, criterion, own, samples, folder, f"{kind}-{criterion}-{images}.json")
        scoring = time.perf_counter() - began
        for target in targets.split(","):
            began = time.perf_counter()
            try:
                plan = op.plan(scores, target, constraints=limits, latency=predictor)
            except op.OnnxPruneError as err:
                click.echo(f"{name:9} {target:12} {err.what}")
                continue
            cut = op.compile_plan(original, plan, analysis=analysis)
            done = recover(
                original, cut.model, plan, samples, analysis=analysis, stages=stages_of(reconstruct_blocks)
            )  # fmt: skip
            first, second = bench([original, done.model], threads=1, runs=runs)
            top1 = op.evaluate(done.model, held_out, preprocess=how).top1
            rows.append(
                {
                    "series": name, "target": target, "blocks": list(plan.blocks), "channels": plan.removed,
                    "macs": cut.after.ratio(cut.before, "macs"), "top1": top1,
                    "error": sqrt(top1 * (1 - top1) / len(held_out)), "cut": op.evaluate(
                        cut.model, held_out, preprocess=how
                    ).top1,
                    "latency": second.latency.median / first.latency.median, "scoring": scoring,
                    "seconds": time.perf_counter() - began,
                }
            )  # fmt: skip
            if folder is not None:
                op.save(done.model, folder / f"{name}-{target}.onnx")
            row = rows[-1]
            click.echo(
                f"{name:9} {target:12} {len(plan.blocks):2} blocks, {plan.removed:4} channels: macs {row['macs']:.3f}, "
                f"latency {row['latency']:.3f}, as cut {100 * row['cut']:.2f}, recovered {100 * top1:.2f} "
                f"+- {100 * row['error']:.2f}, {row['seconds']:.0f} s (scored in {scoring:.0f} s)"
            )
            if output is not None:
                output.write_text(
                    json.dumps({"model": model.name, "baseline": baseline, "rows": rows}, indent=1) + "\n"
                )


if __name__ == "__main__":
    main()
