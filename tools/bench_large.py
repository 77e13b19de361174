"""Measure time and memory of pruning models of gigabytes, beside a copy by onnx.load and onnx.save.

    python tools/bench_large.py vit_h_14.onnx --synthetic 4 -o large.json

Every measurement is a process of its own, in turn: the interpreter with onnxprune imported, the copy, `inspect`,
`prune --target macs=0.5 --no-verify` and, with --verify, `prune` with its proof, most of which is onnxruntime's work.
Times are wall seconds, the least of the runs. Two peaks are given: of the resident set as the kernel counts it
(ru_maxrss: pages of mapped files included), and of anonymous memory (RssAnon of /proc/PID/status, looked at a hundred
times a second). A synthetic model of that many GiB, layers of 4096 x 16384 and back, is streamed to disk and deleted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import rich
from onnx import TensorProto, helper
from rich.table import Table

COPY = """
import sys, onnx
model = onnx.load(sys.argv[1])
onnx.save(model, sys.argv[2], save_as_external_data=True, location=sys.argv[3])
"""
MIB = 2**20
WIDE, NARROW = 16_384, 4_096


@dataclass
class Run:
    """Figures of one process: wall and CPU seconds, peaks in MiB."""

    wall: float
    cpu: float
    resident: float
    anonymous: float


def run(arguments: list[str]) -> Run:
    """Run Python with these arguments and sample its memory.

    Raises:
        CalledProcessError: it failed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            try:
                text = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            except OSError:
                return
            peak.extend(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return Run(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, max(peak) / 1024)


def synthetic(folder: Path, gib: float) -> Path:
    """Residual perceptrons with seeded random weights, written one by one."""
    pairs = max(1, round(gib * 2**30 / (2 * WIDE * NARROW * 4)))
    rng = np.random.default_rng(0)
    nodes, weights, x, position = [], [], "x", 0
    with (folder / "synthetic.onnx.data").open("wb") as file:
        for i in range(pairs):
            for name, shape in ((f"up{i}", (NARROW, WIDE)), (f"down{i}", (WIDE, NARROW))):
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
                tensor.data_location = TensorProto.EXTERNAL
                size = 4 * shape[0] * shape[1]
                for key, value in (("location", "synthetic.onnx.data"), ("offset", position), ("length", size)):
                    tensor.external_data.add(key=key, value=str(value))
                for _ in range(16):
                    file.write(rng.standard_normal((shape[0] // 16, shape[1]), np.float32) * np.float32(0.01))
                position += size
                weights.append(tensor)
            nodes += [
                helper.make_node("MatMul", [x, f"up{i}"], [f"u{i}"], name=f"MatMul_up{i}"),
                helper.make_node("Relu", [f"u{i}"], [f"r{i}"], name=f"Relu{i}"),
                helper.make_node("MatMul", [f"r{i}", f"down{i}"], [f"d{i}"], name=f"MatMul_down{i}"),
                helper.make_node("Add", [x, f"d{i}"], [f"y{i}"], name=f"Add{i}"),
            ]
            x = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "synthetic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", NARROW])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", NARROW])],
        weights,
    )
    path = folder / "synthetic.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


def size_of(path: Path) -> int:
    """Return the bytes of a model with its external data."""
    places = {
        e.value for t in onnx.load(path, load_external_data=False).graph.initializer for e in t.external_data
        if e.key == "location"
    }  # fmt: skip
    return path.stat().st_size + sum((path.parent / p).stat().st_size for p in places)


def best(runs: list[Run]) -> Run:
    """Return the least times and largest peaks."""
    return Run(
        min(r.wall for r in runs), min(r.cpu for r in runs), max(r.resident for r in runs),
        max(r.anonymous for r in runs),
    )  # fmt: skip


def measure(path: Path, repeats: int, verify: bool, scratch: Path) -> dict[str, Any]:
    """Run all processes for one model in turn."""
    out = scratch / "out.onnx"
    prune = ["-m", "onnxprune", "prune", str(path), "-o", str(out), "--target", "macs=0.5"]
    commands = {
        "imports": ["-c", "import onnxprune.pipeline, onnxprune.cli"],
        "copy": ["-c", COPY, str(path), str(out), "out.onnx.data"],
        "inspect": ["-m", "onnxprune", "inspect", str(path), "--json"],
        "prune": [*prune, "--no-verify"],
        **({"prune and verify": prune} if verify else {}),
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for i in range(repeats):
        for name, arguments in commands.items():
            if i and name == "prune and verify":
                continue
            runs[name].append(run(arguments))
            for file in scratch.glob("out.onnx*"):
                file.unlink()
    found = {name: best(r) for name, r in runs.items()}
    size = size_of(path) / MIB
    base = found["imports"]
    return {
        "MiB": size,
        "runs": {name: asdict(r) for name, r in found.items()},
        "time over copy": found["prune"].wall / found["copy"].wall,
        "resident over file": (found["prune"].resident - base.resident) / size,
        "anonymous over file": (found["prune"].anonymous - base.anonymous) / size,
    }


@click.command(help=__doc__)
@click.argument("models", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--synthetic", "gib", type=float, help="GiB of a synthetic model.")
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="For temporary files.")
@click.option("--repeats", default=2, show_default=True)
@click.option("--verify", is_flag=True, help="Measure the proof as well, once.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Figures as JSON.")
def main(
    models: tuple[Path, ...], gib: float | None, folder: Path | None, repeats: int, verify: bool, output: Path | None
) -> None:
    """Measure one model after the other."""
    results = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for path in models:
            results[path.stem] = measure(path, repeats, verify, Path(scratch))
        if gib:
            results["synthetic"] = measure(synthetic(Path(scratch), gib), repeats, verify, Path(scratch))
    for name, figures in results.items():
        table = Table("process", "wall s", "CPU s", "peak resident MiB", "peak anonymous MiB")
        table.title = f"{name}, {figures['MiB']:,.0f} MiB"
        for what, r in figures["runs"].items():
            table.add_row(
                what, f"{r['wall']:.1f}", f"{r['cpu']:.1f}", f"{r['resident']:,.0f}", f"{r['anonymous']:,.0f}"
            )
        rich.print(table)
        for key in ("time over copy", "resident over file", "anonymous over file"):
            rich.print(f"{key}: {figures[key]:.2f}")
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
