"""Attacks on the command line: files that a command reads are damaged, and its answer is judged.

A command must end with exit status 0, or with 1 to 3 and one message of at most three lines; without control
characters, without a warning of Python or a message of a library, in bounded time and memory, and without files left.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from damage import mutations
from onnxprune.cli import main

SECONDS = 30  # of CPU time: other work on the machine does not count
WAITING = 300  # seconds of any kind: a command that blocks uses no CPU
MEMORY = 2**30
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Target:
    """A command and its files, one of which is attacked.

    Attributes:
        name: Name of the target.
        files: Path in the folder -> content.
        attacked: The file to damage.
        words: Words of the command line; "{}" stands for the folder.
        kinds: Ways of damaging the file.
        outputs: Names that may be new in the folder after success, and what a later run resumes from after failure.
        kept: Names that may remain after a failure.
        weight: Relative number of cases.
    """

    name: str
    files: Mapping[str, bytes] = field(repr=False)
    attacked: str
    words: Sequence[str]
    kinds: Sequence[mutations.Mutation] = field(repr=False)
    outputs: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    weight: float = 1.0


@dataclass(frozen=True)
class Case:
    """A damaged file of a target."""

    target: Target
    seed: int
    changes: int

    def data(self) -> bytes:
        """Return the damaged content."""
        rng = random.Random(f"{self.target.name} {self.seed}")
        found = self.target.files[self.target.attacked]
        for _ in range(self.changes):
            found = rng.choice(self.target.kinds)(found, rng)
        return found


@dataclass(frozen=True)
class Verdict:
    """Result of a case.

    Attributes:
        code: Exit status.
        wrong: What is wrong with it, "" for nothing.
        output: Its output.
        seconds: CPU time.
        memory: Peak of the memory above that before the case and the size of the file, in bytes.
    """

    code: int
    wrong: str
    output: str
    seconds: float = 0.0
    memory: int = 0


def case(targets: Sequence[Target], number: int, seed: int) -> Case:
    """Return the case of a number."""
    rng = random.Random(f"{seed} {number}")
    target = rng.choices(targets, [t.weight for t in targets])[0]
    return Case(target, seed * 10**9 + number, rng.choice((1, 1, 1, 2, 3, 5)))


class _Late(BaseException):
    """The command did not end."""


def _late(number: int, frame: Any) -> None:
    raise _Late


def judged(target: Target, data: bytes) -> Verdict:
    """Run a command on damaged data in this process."""
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    temporary = Path(tempfile.mkdtemp(prefix="attack-tmp-"))
    before = tempfile.tempdir, os.getcwd()
    try:
        for name, content in {**target.files, target.attacked: data}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        inside = set(_names(folder))
        tempfile.tempdir = str(temporary)
        os.chdir(folder)
        _reset_peak()
        began = time.process_time()
        code, out, err, native = _called([w.replace("{}", str(folder)) for w in target.words])
        wrong = _wrong(code, out, err, native) or _left(target, code, set(_names(folder)) - inside, temporary)
        seconds, memory = time.process_time() - began, max(0, _peak() - _BASE - len(data))
        if not wrong and memory > MEMORY:
            wrong = f"memory: {memory >> 20} MB"
        return Verdict(code, wrong, err + out[-2000:], seconds, memory)
    finally:
        tempfile.tempdir = before[0]
        os.chdir(before[1])
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(temporary, ignore_errors=True)


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        yield path.relative_to(folder).as_posix()


def _called(words: Sequence[str]) -> tuple[int, str, str, str]:
    """Return exit status, stdout, stderr, and what libraries wrote to the terminal beside it."""
    out, err = io.StringIO(), io.StringIO()
    code = -1
    noted: list[warnings.WarningMessage] | None = []
    handlers = {number: signal.signal(number, _late) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with _descriptor() as native, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                # In every case anew, as in a process of its own. Recorded, because pytest would take them.
                with warnings.catch_warnings(record=True) as noted:
                    warnings.simplefilter("always")
                    for category in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning, ImportWarning):
                        warnings.simplefilter("ignore", category)
                    main.main(list(words), prog_name="onnxprune")
            except SystemExit as found:
                code = found.code if isinstance(found.code, int) else 1
            except _Late:
                code = -2
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    shown = "".join(warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in noted or ())
    return code, out.getvalue(), err.getvalue() + shown, native()


@contextlib.contextmanager
def _descriptor() -> Iterator[Callable[[], str]]:
    """Redirect descriptor 2, which libraries write to."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        found: list[str] = []
        try:
            yield lambda: "".join(found)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found.append(file.read().decode(errors="replace"))


def _wrong(code: int, out: str, err: str, native: str) -> str:
    if code == -2:
        return f"not ended after {SECONDS} s of CPU time, or {WAITING} s"
    if "internal error" in err or "Traceback" in err or code not in (0, 1, 2, 3):
        place = re.search(r"internal error: (\w+).*\n(  at: [^\n]*)?", err)
        return f"internal error {place[1]} {place[2] or ''}".strip() if place else f"exit {code}: {err[-300:]}"
    if CONTROL.search(out + err):
        return "control characters"
    if "Warning:" in err and re.search(r"\.py:\d+: \w*Warning", err):
        return "a warning of Python: " + " ".join(err.split())[:200]
    if native.strip():
        return f"a library wrote: {' '.join(native.split())[:200]}"
    if code:
        begins = [i for i, line in enumerate(err.splitlines()) if line.startswith(("error:", "Error:"))]
        if len(begins) != 1:
            return f"{len(begins)} messages: {err[:300]}"
        if len(err.splitlines()) - begins[0] > 3:
            return f"a message of {len(err.splitlines()) - begins[0]} lines: {err[:300]}"
    return ""


def _left(target: Target, code: int, new: set[str], temporary: Path) -> str:
    allowed = target.kept if code else target.outputs | target.kept
    wrong = sorted(n for n in new if not any(n == a or n.startswith(f"{a}/") for a in allowed))
    if wrong:
        return f"files left: {', '.join(wrong)}"
    # onnxruntime and memory-mapped arrays of the last command are closed with their objects
    return ""


def _peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.search(r"VmHWM:\s*(\d+)", status)[1]) * 1024  # type: ignore[index]


def _reset_peak() -> None:
    global _BASE
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    _BASE = _peak()


_BASE = 0
