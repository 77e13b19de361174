"""Measure recovery without training: pruned, after `recalibrate_batchnorm`, after `reconstruct_weights`.

    python tools/bench_recover.py resnet56.onnx train.npz test.npz --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225

Channels are selected by `obs` on the calibration samples; accuracy is measured on separate test samples.
`--profile` prints the share of each part of the CPU time, and the ratio to the time that the arithmetic takes at this
machine's measured rate of matrix products (see `Arithmetic`); run it with one thread (`OMP_NUM_THREADS=1`).
"""

from __future__ import annotations

import cProfile
import json
import os
import platform
import pstats
import resource
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np

import onnxprune as op
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.model_runs.consumer_errors import ROWS
from onnxprune.criteria.model_runs.masked_segments import MaskedSegmenter
from onnxprune.criteria.model_runs.output_effects import ablation_images
from onnxprune.criteria.obs import LEVELS, levels
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.data import Preprocess, subset
from onnxprune.execution.gram import consumers
from onnxprune.execution.synthetic_data import synthetic_data
from onnxprune.ir.model import Model
from onnxprune.pipeline.compensation_choice import with_chosen_remaining
from onnxprune.recovery._lockstep import PairedCursor
from onnxprune.recovery.recalibrate_batchnorm import RecalibrateBatchnorm
from onnxprune.recovery.reconstruct_weights import RIDGES, ReconstructWeights
from onnxprune.recovery.recover import STAGES, recover

ORT, GRAM, WEIGHTS = "onnxruntime_inference_collection.py", "gram.py", "reconstruct_weights.py"
PARTS = {
    "forward passes": [(ORT, "run"), (ORT, "run_with_ort_values")],
    "sessions": [(ORT, "_create_inference_session"), ("graph_segments.py", "segment")],
    "rows of layers": [("linear_layers.py", "rows"), ("linear_layers.py", "picked")],
    "Gram matrices": [(GRAM, "add_rows"), (WEIGHTS, "_sums"), (WEIGHTS, "_product")],
    "solves": [(GRAM, name) for name in ("__init__", "__call__", "dense", "remove", "error_increases")],
    "files": [("array_files.py", "save_array"), ("array_files.py", "load_array")],
}
"""Part of the time -> (file, function) whose cumulative time it is; the functions do not call each other."""


def matmul_rate(dtype: type, size: int = 1024) -> float:
    """Return the floating-point operations per CPU second of a matrix product."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    a @ a
    start = time.process_time()
    for _ in range(8):
        a @ a
    return 8 * 2 * size**3 / (time.process_time() - start)


@dataclass
class Arithmetic:
    """Operations that selection by `obs` and `reconstruct_weights` need, by part.

    - forward: all samples through the original (Gram matrices), some from every group on for each ablation, and all
      samples through the original and the pruned model for the recovery, two operations for each MAC;
    - Gram matrices: one half of the products of rows and inputs, because they are symmetric, and the products with the
      targets;
    - solves: factorizations (n^3 / 3), inverses, removals one by one, substitutions for every ridge.
    """

    forward: float = 0.0
    gram: float = 0.0
    solves: float = 0.0

    def add_selection(self, analysis: Analysis, rows: int, samples: int) -> None:
        """Add `obs`, with its ablations."""
        segmenter = MaskedSegmenter(analysis)
        batch = analysis.witness.shapes[analysis.model.graph.inputs[0].name][0]
        macs = CostModel(analysis).baseline.macs
        groups = {g.name: g for g in analysis.groups}
        count = sum(len(levels(g.channels)) for g in groups.values())
        images = min(ablation_images(macs, count), samples)
        work = sum(len(levels(g.channels)) * segmenter.work(segmenter.consumers[n].first) for n, g in groups.items())
        self.forward += 2 * (samples * macs + images * macs + images * work / batch)
        for reader in consumers(analysis, list(groups.values())):
            node = reader.node
            size, own = node.inputs * node.kernel, [g for g in groups.values() if reader.reads(g)]
            self.gram += node.groups * rows * size**2
            removals = 3 * size**3  # updates of two matrices of falling size, and the inverse
            tried = sum(
                (1 - level) ** 3 / 3 * size**3 + 2 * ((1 - level) * size) ** 2 * node.outputs for level in LEVELS
            )
            self.solves += node.groups * len(own) * (removals + tried)

    def add_recovery(self, analysis: Analysis, pruned: Model, plan: op.Plan, samples: Calibration) -> None:
        """Add `reconstruct_weights`."""
        for found in (analysis, op.analyze(pruned)):
            self.forward += 2 * len(samples) * CostModel(found).baseline.macs
        stage = ReconstructWeights()
        with PairedCursor(analysis, plan, pruned, samples) as cursor:
            layers = [step.linear for step in cursor.steps()]
        for node in layers:
            size, outputs = node.inputs * node.kernel, node.outputs // node.groups
            rows = stage.most_rows(node)
            fits = len(RIDGES) + stage.rounds + 1
            self.gram += node.groups * rows * size * (size + 2 * (stage.rounds + 1) * outputs)
            self.solves += node.groups * fits * (size**3 / 3 + 2 * size**2 * outputs)

    def seconds(self) -> float:
        """Return the seconds at the measured rates: float32 for forward passes, float64 for the rest."""
        return self.forward / matmul_rate(np.float32) + (self.gram + self.solves) / matmul_rate(np.float64)


def parts_of(profile: cProfile.Profile) -> dict[str, float]:
    """Return the CPU seconds of each part, and of the rest."""
    found = dict.fromkeys(PARTS, 0.0)
    stats = pstats.Stats(profile)
    known = {(Path(file).name, name): times for (file, _, name), times in stats.stats.items()}  # type: ignore[attr-defined]
    for part, functions in PARTS.items():
        found[part] = sum(known[f][3] for f in functions if f in known)
    found["the rest"] = stats.total_tt - sum(found.values())  # type: ignore[attr-defined]
    return found


def profile_once(model: op.Model, samples: Calibration, target: op.Target, output: Path | None) -> None:
    """Select by `obs` and recover once under a profiler of CPU time; print the shares of the parts."""
    analysis = op.analyze(model)
    clock = cProfile.Profile(time.process_time)
    scores = clock.runcall(op.score, analysis, "obs", data=samples)
    plan = op.plan(scores, target)
    cut = op.compile_plan(model, plan, analysis=analysis, check=False).model
    done = clock.runcall(recover, model, cut, plan, samples, analysis=analysis)
    arithmetic = Arithmetic()
    arithmetic.add_selection(analysis, ROWS, len(samples))
    arithmetic.add_recovery(analysis, cut, plan, samples)
    found = show_profile(clock, arithmetic)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    first, last = done.stages[0].distance, done.stages[-1].distance
    click.echo(f"  peak memory {peak:.2f} GiB; distance {first:.4g} pruned, {last:.4g} recovered")
    if output is not None:
        output.write_text(json.dumps({**found, "peak_gib": peak}, indent=1) + "\n", encoding="utf-8")


def show_profile(profile: cProfile.Profile, arithmetic: Arithmetic) -> dict[str, float]:
    """Print the shares of the parts and the ratio to the bound; return them."""
    parts = parts_of(profile)
    total, bound = sum(parts.values()), arithmetic.seconds()
    for part, seconds in parts.items():
        click.echo(f"  {part:16} {seconds:8.1f} s {100 * seconds / total:5.1f} %")
    click.echo(
        f"  {total:.1f} s of CPU, {total / bound:.2f} times the {bound:.1f} s that the arithmetic takes "
        f"({arithmetic.forward:.3g} forward, {arithmetic.gram:.3g} Gram, {arithmetic.solves:.3g} solves)"
    )
    return {**parts, "total": total, "bound": bound, "ratio": total / bound}


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
@click.option("--profile", is_flag=True, help="Print where the CPU time goes; TEST is not read.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    model: Path, train: str, test: str, mean: str, std: str, shares: str, criterion: str, images: int,
    protect: tuple[str, ...], round_to: int, stages: str, profile: bool, output: Path | None,
) -> None:  # fmt: skip
    """Prune and recover at every share."""
    original = op.load(model)
    how = Preprocess(numbers(mean), numbers(std))
    if train == "none":
        samples = Calibration(synthetic_data(original, images))
    else:
        samples = Calibration(subset(op.load_data(train), images), how)
    if profile:
        profile_once(original, samples, op.Target(macs=numbers(shares)[0]), output)
        return
    held_out = op.load_data(test)
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
        limits = op.Constraints(round_to=round_to, protect=protect)
        planned = partial(op.plan, target=op.Target(macs=share), constraints=limits)
        plan = planned(with_chosen_remaining(scores, planned, samples))
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
