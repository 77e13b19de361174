"""Prune models to a measured latency in several runtimes, and record how well the target is met.

    python tools/bench_runtimes.py                                 # ResNet-50, MobileNetV2, EfficientNet-B0
    python tools/bench_runtimes.py yolov8n.onnx rec.onnx --shape x=1x3x48x320
    python tools/bench_runtimes.py --quick --threads 1 -o figures.json --page docs/runtimes.md

Models are files, or structures that ship without weights (models/structures): the time does not depend on the weights,
so random ones serve. Each is pruned with --target latency=SHARE, and the plan is measured again, independently of the
rounds that chose it. The prediction error is that of the corrected prediction in the last round.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import rich
from rich.table import Table
from structures import OUT, tests_module

import onnxprune as op
from onnxprune.ir.input_sizes import with_shapes_of_each
from onnxprune.latency._cache_files import machine
from onnxprune.latency._measuring import MeasuringEffort
from onnxprune.latency.bench import bench
from onnxprune.latency.prediction import latency_model
from onnxprune.latency.runtimes import Runtime, block_of, make_runtime
from onnxprune.latency.targeting import plan_for_latency
from onnxprune.options import shape_of
from onnxprune.planning.constraints import Constraints
from onnxprune.planning.targets import LatencyPredictor, Target

MODELS = ("resnet50.ts", "mobilenet_v2.ts", "efficientnet_b0.ts")
QUICK = MeasuringEffort(variants=14, least_variants=10, seconds=40, rounds=10, patience=1.0)
_AGAIN = 3  # measurements of the chosen plan; the median counts
MARK = ("<!-- figures: tools/bench_runtimes.py -->", "<!-- end of figures -->")


@dataclass(frozen=True)
class Settings:
    """Settings of the runs."""

    share: float
    runs: int
    quick: bool


def model_of(name: str) -> op.Model:
    """Return a model from a file or a structure."""
    path = OUT / f"{name}.onnx.xz"
    return tests_module().filled(path) if path.exists() else op.load(name)


def measured(model: op.Model, name: str, runtime: Runtime, threads: int, how: Settings) -> dict[str, Any]:
    """Prune one model for one runtime; return the figures."""
    start = time.monotonic()
    analysis = op.analyze(model)
    block = block_of(runtime)
    predictor = latency_model(
        analysis, threads=threads, runtime=runtime, cache=False, effort=QUICK if how.quick else None
    )
    fitted = time.monotonic()
    scores = op.score(analysis, "l2")

    def make(latency: LatencyPredictor, target: Target) -> op.Plan:
        return op.plan(scores, target, latency=latency, constraints=Constraints(round_to=block))

    found = plan_for_latency(analysis, Target(latency=how.share), make, predictor, runtime=runtime, runs=how.runs)
    done = op.compile_plan(model, found.plan, analysis=analysis, check=False)
    again = sorted(
        (bench([model, done.model], threads=threads, runs=how.runs, runtime=runtime) for _ in range(_AGAIN)),
        key=lambda pair: pair[1].latency.median / pair[0].latency.median,
    )
    before, after = again[_AGAIN // 2]
    rounds = found.speedup.rounds
    chosen = min(rounds, key=lambda r: abs(r.measured - how.share))
    return {
        "model": name, "runtime": str(runtime.describe()), "threads": threads, "block": block,
        "before": before.latency.median, "after": after.latency.median,
        "share": after.latency.median / before.latency.median, "macs": done.after.ratio(done.before, "macs"),
        "rounds": [r.as_dict() for r in rounds], "chosen": chosen.measured,
        "error": abs(chosen.predicted - chosen.measured) / chosen.measured, "note": found.speedup.note,
        "seconds": {"model": fitted - start, "all": time.monotonic() - start},
    }  # fmt: skip


def table_of(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the page's table."""
    return [
        [
            r["model"].removesuffix(".ts"), r["runtime"], str(r["threads"]), str(r["block"]),
            f"{1e3 * r['before']:.2f} ms",
            f"{r['chosen']:.3f}", f"{r['share']:.3f}", str(len(r["rounds"])), f"{100 * r['error']:.1f} %",
            f"{r['macs']:.2f}", f"{r['seconds']['all']:.0f} s", r["note"],
        ]
        for r in rows
    ]  # fmt: skip


COLUMNS = (
    "model", "runtime", "threads", "block", "original", "chosen", "again", "plans", "error", "MACs", "took", "note",
)  # fmt: skip


def write_page(page: Path, rows: list[dict[str, Any]], how: Settings) -> None:
    """Write the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(MARK[0])
    tail = rest.split(MARK[1])[1]
    quick = ", with --quick" if how.quick else ""
    lines = [
        f"`latency={how.share:g}`, batch 1, on {machine()}, Python {platform.python_version()}{quick}.", "",
        "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cells) + " |" for cells in table_of(rows)),
    ]  # fmt: skip
    page.write_text(head + MARK[0] + "\n\n" + "\n".join(lines) + "\n\n" + MARK[1] + tail, encoding="utf-8")


@click.command(help=__doc__)
@click.argument("models", nargs=-1)
@click.option("--runtime", "runtimes", multiple=True, default=("onnxruntime", "openvino"), show_default=True)
@click.option("--threads", multiple=True, type=int, default=(1, 2), show_default=True)
@click.option("--share", default=0.5, show_default=True, help="Share of the latency to keep.")
@click.option("--runs", default=30, show_default=True, help="Timed runs of every model.")
@click.option("--shape", "shapes", multiple=True, help="Sizes of a dynamic input, NAME=1x3x48x320.")
@click.option("--quick", is_flag=True, help="Fewer variants for the latency model.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON; a file with "
              "some is continued.")  # fmt: skip
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), help="Page to write the table into.")
def main(
    models: tuple[str, ...], runtimes: tuple[str, ...], threads: tuple[int, ...], share: float, runs: int,
    shapes: tuple[str, ...], quick: bool, output: Path | None, page: Path | None,
) -> None:  # fmt: skip
    """Prune and measure."""
    how = Settings(share, runs, quick)
    sizes = {name: shape_of(size) for name, _, size in (s.partition("=") for s in shapes)}
    rows: list[dict[str, Any]] = json.loads(output.read_text()) if output is not None and output.exists() else []
    done = {(r["model"], r["asked"], r["threads"]) for r in rows}
    for name in models or MODELS:
        model = model_of(name)
        own = {k: v for k, v in sizes.items() if k in {t.name for t in model.graph.inputs}}
        if own:
            [model] = with_shapes_of_each([model], own)
        for asked in runtimes:
            for count in threads:
                if (Path(name).name, asked, count) in done:
                    continue
                row = measured(model, Path(name).name, make_runtime(asked), count, how)
                rows.append({**row, "asked": asked})
                rich.print(dict(zip(COLUMNS, table_of([row])[0], strict=True)))
                if output is not None:
                    output.write_text(json.dumps(rows, indent=1) + "\n")
    table = Table(*COLUMNS, title=f"latency={share:g}, {machine()}")
    for cells in table_of(rows):
        table.add_row(*cells)
    rich.print(table)
    if page is not None:
        write_page(page, rows, how)


if __name__ == "__main__":
    main()
