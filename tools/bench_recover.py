"""Measure recovery without training: pruned, after `recalibrate_batchnorm`, after `reconstruct_weights`.

    python tools/bench_recover.py resnet56.onnx train.npz test.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

Channels are selected by `obs` on the calibration samples; accuracy is measured on separate test samples.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

import onnxprune as op
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Preprocess, subset
from onnxprune.execution.synthetic_data import synthetic_data
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.recovery.recover import STAGES, recover


def numbers(text: str) -> list[float]:
    """Parse numbers separated by commas."""
    return [float(part) for part in text.split(",")] if text else []


@click.command(help=__doc__)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("train")
@click.argument("test")
@click.option("--mean", default="")
@click.option("--std", default="")
@click.option("--macs", "shares", default="0.5", show_default=True)
@click.option("-c", "--criterion", default="obs", show_default=True)
@click.option("--images", default=2000, show_default=True, help="Calibration samples; `none` as TRAIN makes them up.")
@click.option("--protect", multiple=True, help="As of `plan`.")
@click.option("--round-to", default=1, show_default=True)
@click.option("--stages", default=",".join(STAGES), show_default=True, help="As of `recover`.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    model: Path, train: str, test: str, mean: str, std: str, shares: str, criterion: str, images: int,
    protect: tuple[str, ...], round_to: int, stages: str, output: Path | None,
) -> None:  # fmt: skip
    """Prune and recover at every share."""
    original, held_out = op.load(model), op.load_data(test)
    how = Preprocess(numbers(mean), numbers(std))
    if train == "none":
        samples = Calibration(synthetic_data(original, images))
    else:
        samples = Calibration(subset(op.load_data(train), images), how)
    analysis = op.analyze(original)
    start = time.perf_counter()
    scores = op.score(analysis, criterion, data=samples)
    scoring = time.perf_counter() - start

    def top1(m: op.Model) -> float:
        return op.evaluate(m, held_out, preprocess=how).top1

    rows = []
    baseline = top1(original)
    click.echo(f"{model.name}: baseline {100 * baseline:.2f} %, {criterion} in {scoring:.0f} s")
    for share in numbers(shares):
        plan = op.plan(scores, op.Target(macs=share), constraints=op.Constraints(round_to=round_to, protect=protect))
        cut = op.compile_plan(original, plan, analysis=analysis, check=False)
        start = time.perf_counter()
        calibrated = RecalibrateBatchnorm(plan, analysis, samples)(cut.model)
        middle = time.perf_counter()
        done = recover(original, cut.model, plan, samples, analysis=analysis, stages=stages.split(","))
        seconds = time.perf_counter() - middle
        rows.append(
            {
                "macs": cut.after.macs / cut.before.macs, "params": cut.after.params / cut.before.params,
                "as_cut": top1(cut.model), "recalibrated": top1(calibrated), "recovered": top1(done.model),
                "seconds": {"recalibrate": middle - start, "recover": seconds},
                "removed": {name: len(r.removed) for name, r in plan.groups.items()},
                "stages": [s.__dict__ for s in done.stages],
            }
        )  # fmt: skip
        r = rows[-1]
        click.echo(
            f"macs {r['macs']:.3f}: {100 * r['as_cut']:.2f} % as cut, {100 * r['recalibrated']:.2f} % recalibrated, "
            f"{100 * r['recovered']:.2f} % recovered ({100 * (baseline - r['recovered']):+.2f} points lost) "
            f"in {seconds:.0f} s"
        )
    if output is not None:
        found = {
            "model": model.name, "baseline": baseline, "criterion": criterion, "samples": len(samples),
            "test": len(held_out), "scoring": scoring, "rows": rows, "protect": protect,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "cores": os.cpu_count(),
            "versions": {"python": platform.python_version(), "numpy": np.__version__,
                         "onnxruntime": version("onnxruntime")},
        }  # fmt: skip
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
