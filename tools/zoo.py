"""Build, prune, verify and time a zoo of models or your own folders, and write the coverage page.

    python tools/zoo.py FOLDER_OR_FILE ...                   # NAME.onnx, NAME/model.onnx and NAME.onnx.xz of a folder
    python tools/zoo.py --build '*.ts' 'hf_*' --pack         # makes the models itself: tools/zoo_parts/zoo_catalogue.py
    python tools/zoo.py --page docs/coverage.md --json tools/zoo_parts/coverage.json    # only writes the pages anew

Every model is built in one process and measured in another (tools/zoo_parts/zoo_measure.py), both with a limit of
memory and of time. Results are appended to `--lines` as they come; a second run does only what is new, changed, failed
or `--again`. A built model is deleted once it is measured; `--pack` keeps its weight-less structure.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from structures import pack, tests_module
from zoo_parts import zoo_page
from zoo_parts.zoo_catalogue import Entry, chosen

Row = dict[str, Any]
PARTS = Path(__file__).resolve().parent / "zoo_parts"


def collect(places: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Return (name, file) of every model named or found."""
    for place in places:
        if place.is_file():
            yield _name(place), place
            continue
        for path in sorted(place.iterdir()):
            model = path if path.name.endswith((".onnx", ".onnx.xz")) else path / "model.onnx"
            if model.is_file():
                yield _name(model), model


def _name(path: Path) -> str:
    return path.parent.name if path.name == "model.onnx" else path.name.removesuffix(".xz").removesuffix(".onnx")


def stamp(path: Path) -> list[int]:
    """Return a stamp by which a changed file is detected."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def measured(path: Path, timeout: float, proofs: bool) -> Row:
    """Return the row of one model, from a process of its own; a failure is a row too."""
    command = [sys.executable, str(PARTS / "zoo_measure.py"), str(path), *([] if proofs else ["--no-proofs"])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:g} s"}
    try:
        row: Row = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        row = {"error": last[-1][:300]}
    if "error" in row:
        row["error"] = row["error"].replace(str(path), path.name)
    return row


def built(entry: Entry, folder: Path, timeout: float, memory: float, python: str | None) -> Row:
    """Build a model in a folder by a process of its own; `error` is the reason of a failure.

    A fork of this process, so that torch is imported once for all of them, or another interpreter: Keras wants its own.
    """
    if python:
        command = [python, str(PARTS / "zoo_build.py"), entry.name, "--out", str(folder.parent)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        except subprocess.TimeoutExpired:
            return {"error": f"exporter: not done after {timeout:g} s"}
        if done.returncode < 0:  # killed by a signal: its last output is unrelated
            return {"error": f"exporter: ended with {done.returncode}, out of memory perhaps"}
        if done.returncode:
            return {"error": "exporter: " + _last_line(done.stderr)}
        return dict(json.loads(done.stdout.splitlines()[-1]))
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "build.json"
    child = multiprocessing.get_context("fork").Process(target=_build, args=(entry, folder, note, memory))
    child.start()
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
        return {"error": f"exporter: not done after {timeout:g} s"}
    if not note.is_file():
        return {"error": f"exporter: ended with {child.exitcode}, out of memory perhaps"}
    return dict(json.loads(note.read_text(encoding="utf-8")))


def _build(entry: Entry, folder: Path, note: Path, memory: float) -> None:
    from zoo_parts.zoo_build import build

    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30), int(memory * 2**30)))
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT)  # exporters print a lot, from C++ too
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        row = build(entry, folder)
    except BaseException as err:  # whatever an exporter raises
        row = {"error": f"exporter: {type(err).__name__}: {_last_line(str(err))}"}
    note.write_text(json.dumps(row), encoding="utf-8")


def _last_line(text: str) -> str:
    """Return the most informative line of an error: exporters' messages are long, with the cause first or last."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)  # torch.export writes in colours
    lines = [" ".join(line.split()) for line in plain.strip().splitlines() if line.strip()]
    causes = [line for line in lines if "Error" in line or "nsupported" in line or "not supported" in line]
    return ((causes or lines or ["no message"])[-1 if causes else 0])[:250]


def read_lines(path: Path) -> dict[str, Row]:
    """Read earlier results by name, the last of each; an incomplete line is dropped."""
    rows: dict[str, Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows[row["name"]] = row
    return rows


class Zoo:
    """Rows in a file from which a later run resumes."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rows = read_lines(args.lines)
        self.failed = 0
        args.lines.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> None:
        """Add a row and print its outcome."""
        self.rows[row["name"]] = row
        self.failed += "error" in row
        with self.args.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        state = row.get("error") or f"{row['groups']} groups, {row['total_s']:.1f} s"
        print(f"{time.strftime('%H:%M:%S')} {row['name']}: {state}", file=sys.stderr, flush=True)

    def wanted(self, name: str, mark: object) -> bool:
        """Return True if a model remains to be measured."""
        row = self.rows.get(name)
        return self.args.again or row is None or row.get("stamp") != mark or "error" in row

    def file(self, name: str, path: Path) -> None:
        """Return the file of an existing model; a structure gets random weights first."""
        if not self.wanted(name, stamp(path)):
            return
        row = {**self.rows.get(name, {}), "name": name, "stamp": stamp(path), "weights": "as they are"}
        row.pop("error", None)
        source = path
        if path.suffix == ".xz":
            row["weights"], source = "structure", self.args.models / name / "model.onnx"
            source.parent.mkdir(parents=True, exist_ok=True)
            filler = tests_module()
            onnx.save(filler.fill(filler.unpack(path)), source)
        row |= measured(source, self.args.timeout, True)
        if source is not path and not self.args.keep:
            shutil.rmtree(source.parent, ignore_errors=True)
        self.add(row)

    def make(self, entry: Entry) -> None:
        """Build a model of the catalogue."""
        row = self.rows.get(entry.name, {})
        hopeless = not self.args.again and str(row.get("error", "")).startswith("exporter: ")
        if hopeless or not self.wanted(entry.name, "built"):
            return
        folder = self.args.models / entry.name
        shutil.rmtree(folder, ignore_errors=True)
        row = {"name": entry.name, "stamp": "built", "library": entry.library}
        row |= built(entry, folder, self.args.timeout, self.args.memory, self.args.python)
        path = folder / "model.onnx"
        if "error" not in row:
            row["bytes"] = sum(f.stat().st_size for f in folder.iterdir())
            if self.args.pack:
                row["packed"] = pack(path, self.args.pack / f"{entry.name}.onnx.xz")
            row |= measured(path, self.args.timeout, row["bytes"] <= self.args.largest * 2**20)
        self.add(row)
        if not self.args.keep:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", type=Path, nargs="*", help="files and folders")
    parser.add_argument("--build", nargs="+", default=[], metavar="PATTERN", help="models of the catalogue, by name")
    parser.add_argument("--lines", type=Path, default=Path(".zoo/zoo.jsonl"), help="results as they come")
    parser.add_argument("--page", type=Path, default=Path(".zoo/coverage.md"), help="the table")
    parser.add_argument("--json", type=Path, default=Path(".zoo/coverage.json"), help="the table's numbers")
    parser.add_argument("--models", type=Path, default=Path(".zoo/models"), help="where built models lie meanwhile")
    parser.add_argument("--pack", type=Path, nargs="?", const=Path(".zoo/structures"), help="keep structures here")
    parser.add_argument("--keep", action="store_true", help="do not delete built models")
    parser.add_argument("--python", help="the interpreter that builds (one with Keras, say)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for building and for measuring a model")
    parser.add_argument("--memory", type=float, default=12, help="GiB that building may take")
    parser.add_argument("--largest", type=float, default=1000, help="MiB: of larger models nothing is run")
    parser.add_argument("--again", action="store_true", help="also what earlier runs have done")
    args = parser.parse_args()
    try:
        entries = chosen(args.build)
    except ValueError as err:
        parser.error(str(err))
    zoo = Zoo(args)
    if entries and not args.python:
        _preload()
    for entry in entries:
        zoo.make(entry)
    for name, path in collect(args.places):
        zoo.file(name, path)
    rows = list(zoo.rows.values())
    if not rows:
        parser.error("no model found; name .onnx files, folders that hold some, or --build PATTERN")
    zoo_page.write(args.page, zoo_page.page(rows))
    zoo_page.write(args.json, zoo_page.compact(rows))
    return int(zoo.failed > 0)


def _preload() -> None:
    """Import once the modules that every fork needs."""
    import onnxscript  # noqa: F401
    import timm  # noqa: F401
    import torch.onnx
    import torchvision  # noqa: F401
    import transformers  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
