"""Time whole prunes with their proofs over models/structures, with this checkout and another one.

    python tools/bench_proof.py --against /path/to/other/.venv/bin/python [--only '*vit*'] [--every 5] [--json FILE]

A prune is load, analyze, score (l2), plan (macs=0.5), strip and prove, from a file with random weights. Each run is a
process of its own on one core with one thread; runs of both checkouts alternate, and medians of wall time count.
Peak memory is that of the process (VmHWM), beside the size of the model's file.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Row = dict[str, Any]


def one(path: Path, macs: float) -> Row:
    """Prune one model in this process; runs under the code of either checkout."""
    marks = [time.perf_counter()]  # imports count, because some of them are made at the first use
    cpu = time.process_time()
    import onnxprune as op

    row: Row = {"code": str(Path(op.__file__).parent)}
    try:
        model = op.load(path)
        analysis = op.analyze(model)
        plan = op.plan(scores(op, model, analysis), op.Target(macs=macs))
        marks.append(time.perf_counter())
        proof = op.compile_plan(model, plan, analysis=analysis).verification
        row |= {"result": "proved", "largest": getattr(proof, "max_relative", None)}
    except Exception as err:  # a rejection is a result too
        row |= {"result": type(err).__name__, "error": (str(err).splitlines() or [""])[0][:200]}
    end = time.perf_counter()
    row |= {"seconds": end - marks[0], "compile_seconds": end - marks[-1], "cpu_seconds": time.process_time() - cpu}
    status = Path("/proc/self/status").read_text(encoding="ascii")
    row["peak_mib"] = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")) / 1024
    return row


def scores(op: Any, model: Any, analysis: Any) -> Any:
    """Return the scores by l2; at c072562 `score` took the model, too."""
    known = "model" in inspect.signature(op.score).parameters
    return op.score(model, analysis, "l2") if known else op.score(analysis, "l2")


def measured(python: str, path: Path, macs: float, cpu: int, timeout: float) -> Row:
    """Return the row of one run, from a process of its own."""
    command = [python, str(Path(__file__).resolve()), "--one", str(path), "--macs", str(macs), "--cpu", str(cpu)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env=os.environ | ONE_THREAD,
            cwd=tempfile.gettempdir(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"result": "timeout", "seconds": timeout, "peak_mib": 0.0}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"result": "failed", "error": last[:200], "seconds": float("nan"), "peak_mib": 0.0}


def summary(runs: Sequence[Row]) -> Row:
    """Return medians of several runs."""
    row = {key: statistics.median(r[key] for r in runs) for key in ("seconds", "peak_mib")}
    for key in ("compile_seconds", "cpu_seconds"):
        if all(key in r for r in runs):
            row[key] = statistics.median(r[key] for r in runs)
    results = sorted({r["result"] for r in runs})
    return {**runs[0], **row, "result": "/".join(results), "all_seconds": [r["seconds"] for r in runs]}


def line(name: str, size: float, sides: Mapping[str, Row]) -> str:
    """One line of the table."""
    text = f"{name:44s} {size:8.1f}"
    for row in sides.values():
        note = "" if row["result"] == "proved" else f" {row['result']}"
        text += f"  {row['seconds']:8.2f} s {row['peak_mib']:7.0f} MiB ({row['peak_mib'] / size:4.1f} x){note}"
    return text + (f"  ratio {ratio(sides):.2f}" if len(sides) == 2 else "")


def ratio(sides: Mapping[str, Row]) -> float:
    """Time of this checkout over that of the other one."""
    return float(sides["this"]["seconds"] / sides["other"]["seconds"])


def files(places: Sequence[Path], only: Sequence[str], every: int, limit: int | None) -> list[Path]:
    """Return the models to run, by name."""
    found = sorted(places) or sorted((ROOT / "models" / "structures").glob("*.onnx.xz"))
    chosen = [p for p in found if not only or any(fnmatch.fnmatch(_name(p), pattern) for pattern in only)]
    return chosen[::every][:limit]


def _name(path: Path) -> str:
    return path.name.removesuffix(".xz").removesuffix(".onnx")


def _filled(path: Path, folder: Path) -> Path:
    """Return a structure with random weights as a file, other models unchanged."""
    if path.suffix != ".xz":
        return path.resolve()
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from networks.structures import fill, unpack

    target = folder / f"{_name(path)}.onnx"
    target.write_bytes(fill(unpack(path)).SerializeToString())
    return target


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--against", help="Interpreter of the other checkout.")
@click.option("--only", multiple=True, help="Only models that match this glob.")
@click.option("--every", default=1, show_default=True, help="Only every n-th model.")
@click.option("--limit", type=int, help="At most so many models.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each checkout; medians count.")
@click.option("--macs", default=0.5, show_default=True, help="Share of the MACs to keep.")
@click.option("--cpu", type=int, help="Core to run on; default: the last one.")
@click.option("--timeout", default=600.0, show_default=True, help="Seconds for one run.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
@click.option("--one", "single", hidden=True, type=click.Path(path_type=Path))
def main(
    models: tuple[Path, ...], against: str | None, only: tuple[str, ...], every: int, limit: int | None, rounds: int,
    macs: float, cpu: int | None, timeout: float, json_file: Path | None, single: Path | None,
) -> None:  # fmt: skip
    """Run all models and print one line each."""
    core = max(os.sched_getaffinity(0)) if cpu is None else cpu
    if single is not None:
        os.sched_setaffinity(0, {core})
        click.echo(json.dumps(one(single, macs)))
        return
    pythons = {"other": against, "this": sys.executable} if against else {"this": sys.executable}
    results: dict[str, Row] = {}
    click.echo(f"{'model':44s} {'file MiB':>8s}  " + "".join(f"{side:>34s}" for side in pythons))
    for path in files(models, only, every, limit):
        with tempfile.TemporaryDirectory() as folder:
            model = _filled(path, Path(folder))
            size = model.stat().st_size / 2**20
            runs: dict[str, list[Row]] = {side: [] for side in pythons}
            for _ in range(rounds):
                for side, python in pythons.items():
                    runs[side].append(measured(python, model, macs, core, timeout))
        sides = {side: summary(rows) for side, rows in runs.items()}
        results[_name(path)] = {"file_mib": size, **sides}
        click.echo(line(_name(path), size, sides))
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    done = {n: row for n, row in results.items() if all(math.isfinite(row[side]["seconds"]) for side in pythons)}
    if against and done:
        ratios = sorted((ratio(row), name) for name, row in done.items())
        middle = statistics.median(r for r, _ in ratios)
        totals = [sum(row[side]["seconds"] for row in done.values()) for side in ("this", "other")]
        click.echo(f"median ratio {middle:.2f}, largest {ratios[-1][0]:.2f} ({ratios[-1][1]}), of {len(ratios)} models")
        click.echo(f"all together: {totals[0]:.1f} s here, {totals[1]:.1f} s there")


if __name__ == "__main__":
    main()
