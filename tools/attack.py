"""Damage the files that commands read, and judge how they take it.

    python tools/attack.py -n 20000

Files of every format are truncated, flipped and changed field by field; a command must answer with a result or with
one message (see tests/helpers/damage/attacks.py). Cases run in worker processes that are replaced when they die; a case
that killed one is a failure, too. Workers are forked from a process that has imported everything and run nothing.
Failures with the fewest changes are stored in tests/regressions/attacks/, where `make test` replays them. Exit status 1
if anything failed.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import pickle
import re
import resource
import sys
import tempfile
import time
import zlib
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from damage.attacks import WAITING, Case, Target, Verdict, case, judged  # noqa: E402

FOLDER = ROOT / "tests" / "regressions" / "attacks"
WARM = ("onnxruntime", "PIL.Image", "onnxprune.cli", "onnxprune.passes", "jinja2")
WARM_TRAINING = ("torch", "lightning.pytorch", "onnxprune.training")
FORK = multiprocessing.get_context("fork")
ADDRESSES = 6 * 2**30  # bytes of address space of a worker
REPLACED = 1500  # cases after which a worker is replaced: native libraries do not return all memory


@click.command(help=__doc__)
@click.option("-n", "--cases", default=1000, show_default=True, help="How many cases.")
@click.option("--first", default=0, help="Number of the first case, to go on with a seed.")
@click.option("--seed", type=int, help="Draw the same again; default: other cases every time.")
@click.option("--jobs", default=2, show_default=True, help="Worker processes.")
@click.option("--only", default="", help="Only targets whose name matches this pattern.")
@click.option("--training/--no-training", default=True, help="With targets that load PyTorch.")
@click.option("--store/--no-store", default=True, help="Write failures to a folder.")
@click.option("--folder", default=FOLDER, type=click.Path(path_type=Path), help="Of failures.")
def main(
    cases: int, first: int, seed: int | None, jobs: int, only: str, training: bool, store: bool, folder: Path
) -> None:
    """Run the cases, and print what happened to them."""
    number = int.from_bytes(os.urandom(3)) if seed is None else seed
    with tempfile.TemporaryDirectory() as name:
        listed = Path(name) / "targets"
        for module in (*WARM, *(WARM_TRAINING if training else ())):
            importlib.import_module(module)
        making = FORK.Process(target=_make, args=(listed, training, only))
        making.start()
        making.join()
        found: list[Target] = pickle.loads(listed.read_bytes())
        gc.freeze()  # forked processes share these pages
        click.echo(f"seed {number}, {len(found)} targets")
        failures = _attack(found, range(first, first + cases), number, jobs)
        for wrong, tried in failures.items():
            smallest = _smallest(found, tried, wrong)
            click.echo(f"\n{wrong}\n  {len(tried)} cases; {smallest.target.name} {smallest.seed} {smallest.changes}")
            if store:
                click.echo(f"  {_store(smallest, wrong, folder)}")
    raise SystemExit(bool(failures))


def _make(path: Path, training: bool, only: str) -> None:
    from damage.attack_targets import targets

    found = [t for t in targets(training=training) if re.search(only, t.name)]
    path.write_bytes(pickle.dumps(found))


class _Worker:
    """A process that runs cases one after the other, and what it is doing."""

    def __init__(self, targets: list[Target]) -> None:
        ours, theirs = FORK.Pipe()
        self.pipe: Connection = ours
        self.process = FORK.Process(target=_work, args=(theirs, targets), daemon=True)
        self.process.start()
        theirs.close()
        self.doing: Case | None = None
        self.since = time.monotonic()
        self.done = 0

    def give(self, task: Case) -> None:
        self.doing, self.since = task, time.monotonic()
        self.done += 1
        self.pipe.send((task.target.name, task.seed, task.changes))

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: Connection, listed: list[Target]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    targets: dict[str, Target] = {t.name: t for t in listed}
    parent = os.getppid()
    while True:
        while not pipe.poll(10):  # forked processes keep the pipe open, so that its end says nothing
            if os.getppid() != parent:
                return
        name, seed, changes = pipe.recv()
        task = Case(targets[name], seed, changes)
        pipe.send(judged(task.target, task.data()))


def _attack(targets: list[Target], numbers: range, seed: int, jobs: int) -> dict[str, list[Case]]:
    """Run all cases; return the failed ones by what was wrong."""
    tasks = (case(targets, n, seed) for n in numbers)
    workers: list[_Worker] = []
    codes: collections.Counter[str] = collections.Counter()
    failures: dict[str, list[Case]] = {}
    most: dict[str, tuple[float, Case]] = {}
    began = shown = time.monotonic()
    done = 0

    def finished(worker: _Worker, verdict: Verdict) -> None:
        nonlocal done
        assert worker.doing is not None
        done += 1
        codes[str(verdict.code) if not verdict.wrong else "failed"] += 1
        for what, value in (("s of CPU time", verdict.seconds), ("MB of memory", verdict.memory / 2**20)):
            most[what] = max(most.get(what, (-1.0, worker.doing)), (value, worker.doing), key=lambda pair: pair[0])
        if verdict.wrong:
            if (key := _key(verdict.wrong)) not in failures:
                click.echo(f"{worker.doing.target.name} {worker.doing.seed} {worker.doing.changes}: {verdict.wrong}")
            failures.setdefault(key, []).append(worker.doing)
        worker.doing = None

    left: Any = tasks
    while True:
        while len(workers) < jobs:
            workers.append(_Worker(targets))
        for worker in [w for w in workers if w.doing is None]:
            task = next(left, None)
            if task is not None:
                worker.give(task)
        busy = [w for w in workers if w.doing is not None]
        if not busy:
            break
        ready = wait([w.pipe for w in busy], timeout=1)
        for worker in busy:
            ended = None
            if worker.pipe in ready:
                try:
                    finished(worker, worker.pipe.recv())
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    ended = f"the process ended: {worker.process.exitcode}"
            elif time.monotonic() - worker.since > 2 * WAITING:
                ended = f"not ended after {2 * WAITING} s, in a library"
            if ended is not None:
                finished(worker, Verdict(-3, ended, ""))
            if ended is not None or (worker.done >= REPLACED and worker.doing is None):
                worker.end()
                workers.remove(worker)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            click.echo(f"{shown - began:.0f} s: {done} cases, {dict(sorted(codes.items()))}", err=True)
    for worker in workers:
        worker.end()
    click.echo(f"{time.monotonic() - began:.0f} s: {done} cases, {dict(sorted(codes.items()))}")
    for what, (value, at) in most.items():
        click.echo(f"most: {value:.1f} {what}, {at.target.name} {at.seed} {at.changes}")
    return failures


def _key(wrong: str) -> str:
    """Return a failure without what differs from case to case."""
    return re.sub(r"0x[0-9a-f]+|\d{2,}|attack-\w+|'[^']*'", "*", wrong)[:120] if "internal" not in wrong else wrong


def _smallest(targets: list[Target], tried: list[Case], wrong: str) -> Case:
    """Return the case with the fewest changes that fails in the same way."""
    first = min(tried, key=lambda c: (c.changes, len(c.target.files[c.target.attacked])))
    worker = _Worker(targets)
    try:
        for changes in range(1, first.changes):
            fewer = Case(first.target, first.seed, changes)
            worker.give(fewer)
            with contextlib.suppress(EOFError, ConnectionResetError):
                if worker.pipe.poll(2 * WAITING) and _key(worker.pipe.recv().wrong) == wrong:
                    return fewer
                continue
            return fewer if wrong.startswith("the process") else first
    finally:
        worker.end()
    return first


def _store(failed: Case, wrong: str, folder: Path) -> Path:
    """Write a failure as the test replays it: the command, and all its files."""
    folder.mkdir(parents=True, exist_ok=True)
    target = failed.target
    files = {**target.files, target.attacked: failed.data()}
    name = re.sub(r"[^a-z0-9]+", "_", f"{target.name}_{wrong}".lower()).strip("_")[:60]
    path = folder / f"{name}.json"
    notes = {
        "wrong": wrong, "words": list(target.words), "outputs": sorted(target.outputs), "kept": sorted(target.kept),
        "attacked": target.attacked,
        "files": {n: base64.b64encode(zlib.compress(v, 9)).decode() for n, v in files.items()},
    }  # fmt: skip
    path.write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
