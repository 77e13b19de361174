"""Prunes whole folders of models and tabulates what came out: the coverage page, and a test on your own models.

    python tools/zoo.py FOLDER_OR_FILE ... [--lines .zoo/zoo.jsonl] [--page coverage.md]

A folder gives its NAME.onnx and NAME/model.onnx. Every model runs in a process of its own: load, analyze, prune a
random half of every group and to half of the MACs by l2, verify both at batch 1 and 5. Results are appended to
`--lines` as they come; a second run does only what is new, changed or `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import onnxprune as op

Row = dict[str, Any]
VERSIONS = ("onnxprune", "onnx", "onnxruntime", "numpy")


def collect(places: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(name, file) of every model named or found."""
    for place in places:
        if place.is_file():
            yield _name(place), place
            continue
        for path in sorted(place.iterdir()):
            model = path if path.suffix == ".onnx" else path / "model.onnx"
            if model.is_file():
                yield _name(model), model


def _name(path: Path) -> str:
    return path.parent.name if path.name == "model.onnx" else path.stem


def stamp(path: Path) -> list[int]:
    """What tells a changed file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def measure(path: Path) -> Row:
    """Everything about one model; in its own process, so that the peak memory is its own."""
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    model = op.load(path)
    row: Row = {"load_s": lap()}
    analysis = op.analyze(model)
    row["analyze_s"] = lap()
    row["groups"] = len(analysis)
    row["channels"] = sum(g.channels for g in analysis)
    row["locked"] = [[lock.name, lock.channels, lock.op, lock.reason] for lock in analysis.locked]
    if not analysis.groups:
        return row
    rng = np.random.default_rng(0)
    gone = {g.name: rng.choice(g.channels, g.channels // 2, replace=False) for g in analysis}
    removals = {g.name: op.Removal(g.channels, tuple(sorted(gone[g.name].tolist()))) for g in analysis}
    plans = {"random": op.Plan(model.fingerprint, removals)}
    lap()
    plans["target"] = op.plan(op.score(model, analysis, "l2"), op.Target(macs=0.5))
    row["plan_s"] = lap()
    for kind, plan in plans.items():
        result = op.compile_plan(model, plan, analysis=analysis, check=False)
        row[f"{kind}_strip_s"] = lap()
        proof = op.verify(analysis, plan, result.model)
        row[f"{kind}_verify_s"] = lap()
        row[kind] = {
            **{what: result.after.ratio(result.before, what) for what in ("macs", "params")},
            "max_relative": proof.max_relative,
            "effect": proof.effect,
            "batches": list(proof.batches),
        }
        row["macs"], row["params"] = result.before.macs, result.before.params
    row["total_s"] = clock[-1] - clock[0]
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return row


def run_one(name: str, path: Path, timeout: float) -> Row:
    """`measure` in a subprocess; a failure is a row too."""
    command = [sys.executable, __file__, "--one", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "stamp": stamp(path), "error": f"not done after {timeout:g} s"}
    if done.returncode == 0:
        return {"name": name, "stamp": stamp(path), **json.loads(done.stdout.splitlines()[-1])}
    error = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
    return {"name": name, "stamp": stamp(path), "error": error[-1][:300].replace(str(path), path.name)}


def read_lines(path: Path) -> dict[str, Row]:
    """Earlier results by name, the last of each; a line that was cut off is dropped."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["name"]] = row
    return rows


HEAD = """# Coverage

Every model below was read as its exporter wrote it, analysed, and pruned twice: a random half of the channels of
every group, and to half of the MACs by `l2` with default limits. Both results were run in onnxruntime at batch 1 and
5 against the masked original; *difference* is the larger of the two, relative to the largest output. `.ts`: PyTorch's
TorchScript exporter, `.bn`: the same with BatchNormalization kept, `.dyn`: its dynamo exporter, `keras_...`: Keras
through tf2onnx (weights random); `..._cifar10_...`, `..._jpeg_...` and `digits_...`: trained models. *Locked* names
the operators that hold channels back, with the number of groups; `output` is the model's own output, which no pruning
may change.

To repeat this, or to try your own models:

```
python tools/zoo.py FOLDER_OR_FILE ... --page coverage.md
```

"""
COLUMNS = (
    "model", "groups", "free channels", "params kept, random half", "MACs kept, random half", "MACs kept, target 50 %",
    "locked", "difference", "analyse (s)", "plan and strip (s)", "whole, with proofs (s)", "peak (MB)",
)  # fmt: skip


def page(rows: Sequence[Row]) -> str:
    """The coverage page."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        if "random" not in row:
            why = row.get("error", "no free group").replace("|", "/")
            lines.append("| " + " | ".join([row["name"], str(row.get("groups", "")), why]) + " |" * (len(COLUMNS) - 2))
            continue
        half, target = row["random"], row["target"]
        cells = [
            row["name"],
            str(row["groups"]),
            f"{row['channels']:,}",
            f"{half['params']:.1%}",
            f"{half['macs']:.1%}",
            f"{target['macs']:.1%}",
            ", ".join(f"{name} {n}" for name, n in sorted(Counter(lock[2] for lock in row["locked"]).items())),
            f"{max(half['max_relative'], target['max_relative']):.1e}",
            f"{row['analyze_s']:.2f}",
            f"{row['plan_s'] + row['target_strip_s']:.2f}",
            f"{row['total_s']:.1f}",
            f"{row['peak_mb']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    good = [r for r in rows if "random" in r]
    worst = max((max(r["random"]["max_relative"], r["target"]["max_relative"]) for r in good), default=0.0)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in VERSIONS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    tail = (
        f"\n{len(good)} of {len(rows)} models pruned and proved; largest relative difference {worst:.1e} "
        f"(allowed: 1e-04). Measured on {cores} core(s), "
        f"{platform.machine()}, Python {platform.python_version()}, {versions}.\n"
    )
    return HEAD + "\n".join(lines) + "\n" + tail


def write(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", type=Path, nargs="*", help="files and folders")
    parser.add_argument("--lines", type=Path, default=Path(".zoo/zoo.jsonl"), help="results as they come")
    parser.add_argument("--page", type=Path, default=Path(".zoo/coverage.md"), help="the table")
    parser.add_argument("--json", type=Path, default=Path(".zoo/coverage.json"), help="the table's numbers")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one model")
    parser.add_argument("--again", action="store_true", help="also what earlier runs have done")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one)))
        return 0
    models = list(collect(args.places))
    if not models:
        parser.error("no model found; name .onnx files or folders that hold some")
    done = {} if args.again else read_lines(args.lines)
    args.lines.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (name, path) in enumerate(models):
        row = done.get(name)
        if row is None or row["stamp"] != stamp(path) or "error" in row:
            row = run_one(name, path, args.timeout)
            with args.lines.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        rows.append(row)
        state = row.get("error") or f"{row['groups']} groups, {row.get('total_s', 0):.1f} s"
        print(f"{i + 1}/{len(models)} {name}: {state}", file=sys.stderr, flush=True)
    write(args.page, page(rows))
    public = [{k: v for k, v in row.items() if k != "stamp"} for row in rows]
    write(args.json, json.dumps(public, indent=1) + "\n")
    return int(any("error" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
