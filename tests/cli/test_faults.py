"""Every write of every command fails once, and processes are killed at each: old file or new file, never a third.

Afterwards the same command ends with the files of an undisturbed run. `make test` tries a few of the calls of each
command, `make test-slow` the first and the last call of every site: line of the package, kind of the call and file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import CommandLine
from damage import faults as injected
from damage.attack_targets import network, samples
from damage.faults import ERRORS, Faults, faulty

RECIPE = """
name = "small"
model = "m.onnx"
data = "x.npz"
seed = 1
[bench]
runs = 0
[[step]]
do = "sensitivity"
criterion = "l2"
on = "data"
ratios = [0.5]
[[step]]
do = "prune"
ratio = 0.5
[[step]]
do = "evaluate"
on = "data"
"""
TRAINING = ("--data", "x.npz", "--epochs", "2", "--batch", "16", "--keep", "last", "--threads", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "prune": ("prune", "m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "out.onnx", "--plan", "plan2.json"),
    "prune-external": ("prune", "m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "out.onnx", "--external-data"),
    "apply": ("apply", "m.onnx", "p.json", "-o", "out.onnx"),
    "sensitivity": ("sensitivity", "m.onnx", "--data", "x.npz", "-c", "l2", "-o", "out.json", "--csv", "out.csv"),
    "recover": ("recover", "m.onnx", "n.onnx", "p.json", "--data", "x.npz", "-o", "out.onnx"),
    "retrain": ("retrain", "m.onnx", *TRAINING, "-o", "out.onnx"),
    "run": ("run", "r.toml", "-o", "out"),
    "frontier": ("frontier", "m.onnx", "--data", "x.npz", "-o", "out", "--points", "1", "--criteria", "l2"),
    "report": ("report", "c.json", "p.json", "-o", "out.html"),
}
TIMES = re.compile(
    rb'"(seconds|latency)": [0-9.e-]+|"float_latency": \{[^}]*\}|"resumed": \w+'
    rb"|\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?( UTC)?"
)


@dataclass
class Place:
    """A folder with the inputs of all commands."""

    folder: Path

    def clear(self) -> None:
        import shutil

        for path in self.folder.glob("*"):
            if path.name.startswith(("out", "plan2", ".")):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in self.folder.glob(".*"):
            path.unlink()

    def results(self) -> dict[str, bytes]:
        """Return the files that a command has made, without times and logs."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            logs = ("csv", "tensorboard", "log.txt", "table", "run.journal", "training.json")
            if path.is_file() and name.startswith(("out", "plan2", ".")) and not any(w in name for w in logs):
                found[name] = TIMES.sub(b"", path.read_bytes())
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("faults")
    before = os.getcwd()
    os.chdir(folder)
    try:
        Path("m.onnx").write_bytes(network())
        Path("x.npz").write_bytes(samples())
        Path("r.toml").write_text(RECIPE)
        CommandLine("plan", "m.onnx", "--ratio", "0.5", "-c", "l2", "-o", "p.json").ok()
        CommandLine("apply", "m.onnx", "p.json", "-o", "n.onnx").ok()
        CommandLine("sensitivity", "m.onnx", "--data", "x.npz", "-c", "l2", "-o", "c.json").ok()
    finally:
        os.chdir(before)
    return Place(folder)


def undisturbed(place: Place, words: tuple[str, ...]) -> tuple[dict[str, bytes], Faults]:
    """Return the files of an undisturbed run, and the calls that make them."""
    place.clear()
    counter = Faults(place.folder, 0, None)
    with faulty(counter):
        CommandLine(*words).ok()
    assert counter.calls, "the command writes nothing"
    return place.results(), counter


def chosen(calls: Faults, most: int | None) -> list[int]:
    """Return numbers of calls: the first and the last one of every site, or at most so many, evenly spread."""
    if most is None:
        first = {site: i for i, site in reversed(list(enumerate(calls.sites, 1)))}
        last = {site: i for i, site in enumerate(calls.sites, 1)}
        return sorted({*first.values(), *last.values()})
    step = max(1, -(-calls.calls // most))
    return sorted({*range(1, calls.calls + 1, step), calls.calls})


def check_failures(place: Place, name: str, most: int | None) -> None:
    words = COMMANDS[name]
    wanted, calls = undisturbed(place, words)
    for number in chosen(calls, most):
        place.clear()
        fault = Faults(place.folder, number, ERRORS[number % len(ERRORS)])
        with faulty(fault):
            result = CommandLine(*words).run()
        what = f"{name}, call {number}: {fault.names[number - 1]}"
        assert "Traceback" not in result.output, what
        if result.exit_code:
            assert result.exit_code == 1, f"{what}: {result.output}"
            assert result.stderr.count("error: ") == 1, f"{what}: {result.stderr}"
            message = result.stderr[result.stderr.index("error: ") :]
            assert len(message.splitlines()) <= 3, f"{what}: {message}"
        finished = place.results()
        for output in ("out.onnx", "out.json", "out.html", "plan2.json"):
            assert finished.get(output) in (None, wanted.get(output)), f"{what}: {output} is a third file"
        CommandLine(*words).ok()
        assert place.results() == wanted, what


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("retrain", "frontier", "run")])
def test_a_write_that_fails_leaves_the_old_file_and_the_same_command_goes_on(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    check_failures(place, name, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_write_fails_once(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    check_failures(place, name, None)


def started(place: Place, number: int, words: tuple[str, ...]) -> tuple[int, str]:
    """Run a command in a process that is killed at a call; return exit status and output."""
    command = [sys.executable, injected.__file__, str(place.folder), str(number), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=place.folder)
    return done.returncode, done.stdout + done.stderr


def forked(place: Place, number: int, words: tuple[str, ...]) -> int:
    """Do the same without a new interpreter, whose imports would take most of the time; return the exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of libraries, which are idle here
        process = os.fork()
    if not process:
        try:
            with faulty(Faults(place.folder, number, None)):
                CommandLine(*words).run()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def check_kills(place: Place, name: str, most: int | None) -> None:
    words = COMMANDS[name]
    wanted, calls = undisturbed(place, words)
    for number in chosen(calls, most):
        place.clear()
        if most is None and hasattr(os, "fork"):
            code, said = forked(place, number, words), ""
        else:
            code, said = started(place, number, words)
        what = f"{name}, killed at call {number} of {calls.calls}: {calls.names[number - 1]}"
        assert code == 137, f"{what}: {said}"
        finished = place.results()
        for output in ("out.onnx", "out.json", "out.html", "plan2.json"):
            assert finished.get(output) in (None, wanted.get(output)), f"{what}: {output} is a third file"
        CommandLine(*words).ok()
        assert place.results() == wanted, what


@pytest.mark.parametrize("name", ["prune-external"])
def test_a_killed_process_leaves_the_old_file_and_the_same_command_goes_on(
    place: Place, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.folder)
    check_kills(place, name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_is_killed_at_every_write(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)
    check_kills(place, name, None)
