"""The boundary between a command and its caller: streams, signals, errors and exit statuses.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | known error |
| 2 | wrong usage |
| 3 | verification failed |
| 4 | internal error; ONNXPRUNE_DEBUG=1 shows the traceback |
| 129, 130, 143 | stopped by SIGHUP, SIGINT (Ctrl-C), SIGTERM |
| 141 | the reader of stdout has ended, as `head` does |
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from onnxprune._utils.output.terminal import CleanStream
from onnxprune._utils.processes.interruption import Stopped, kept_work, stoppable
from onnxprune.errors import OnnxPruneError

DEBUG = "ONNXPRUNE_DEBUG"
INTERNAL, BROKEN_PIPE = 4, 141
_PATIENCE = 5.0  # seconds for threads to end after a signal
_PACKAGE = str(Path(__file__).parents[1])


def guarded(command: Callable[[], Any], *, as_json: bool) -> int:
    """Run a command and return its exit status; whatever it raises becomes one message on stderr.

    Args:
        command: The command; click's exceptions pass.
        as_json: Write errors to stdout as one JSON document as well.
    """
    with _clean_streams() as (out, err):
        try:
            with stoppable():
                code = _code(command())
        except BaseException as problem:
            if os.environ.get(DEBUG) and _unexpected(problem):
                raise
            code = _reported(problem, err, as_json=as_json) if out.failed is None else 1
        with contextlib.suppress(OSError):
            out.flush()
        if out.failed is None:
            return code
        out.discard()
        if out.failed.errno == errno.EPIPE:
            return BROKEN_PIPE
        with contextlib.suppress(OSError):
            err.write(f"error: cannot write the result: {out.failed.strerror or out.failed}\n")
        return code or 1


def program(main: Callable[[], Any]) -> None:
    """Run the command line as a program that ends soon after a signal."""
    try:
        main()
    except SystemExit as err:
        if isinstance(err.code, int) and err.code > 128:
            timer = threading.Timer(_PATIENCE, os._exit, (err.code,))
            timer.daemon = True
            timer.start()
        raise


@contextlib.contextmanager
def _clean_streams() -> Iterator[tuple[CleanStream, CleanStream]]:
    before = sys.stdout, sys.stderr
    out, err = CleanStream(sys.stdout), CleanStream(sys.stderr)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
        with contextlib.suppress(OSError):
            err.flush()
        if err.failed is not None:
            err.discard()


def _code(result: Any) -> int:
    """Return the exit status of what click returned: a number if the command ended early."""
    return result if isinstance(result, int) else 0


def _unexpected(problem: BaseException) -> bool:
    known = (
        OnnxPruneError,
        click.ClickException,
        click.Abort,
        Stopped,
        KeyboardInterrupt,
        SystemExit,
        OSError,
        MemoryError,
    )
    return not isinstance(problem, known)


def _reported(problem: BaseException, err: CleanStream, *, as_json: bool) -> int:
    """Show an exception, and return the exit status."""
    with contextlib.suppress(OSError):
        if isinstance(problem, Stopped):
            err.write(f"{problem}\n")
            return problem.exit_code
        if isinstance(problem, KeyboardInterrupt | click.Abort):
            kept = kept_work()
            err.write(f"stopped{f'; the same command continues: {kept}' if kept else ''}\n")
            return 128 + signal.SIGINT
        if isinstance(problem, click.ClickException):
            problem.show()
            if as_json:
                _document({"what": problem.format_message(), "where": None, "fix": None}, problem.exit_code)
            return problem.exit_code
        found, code = _known(problem)
        err.write(f"error: {found}\n")
        if as_json:
            _document({"what": found.what, "where": found.where, "fix": found.fix}, code, found.partial)
        return code
    return 1


def _document(error: dict[str, str | None], code: int, partial: Any = None) -> None:
    before = {} if partial is None else {"partial": partial}
    sys.stdout.write(json.dumps({"error": {**error, "exit": code}, **before}, indent=1) + "\n")


def _known(problem: BaseException) -> tuple[OnnxPruneError, int]:
    """Return an exception as a known error, and its exit status."""
    if isinstance(problem, OnnxPruneError):
        return problem, problem.exit_code
    if isinstance(problem, MemoryError):
        return OnnxPruneError("not enough memory", fix="a smaller --batch, or a machine with more memory"), 1
    if isinstance(problem, RecursionError):
        return OnnxPruneError("the input is nested too deeply", where=_place(problem), fix=_report(problem)), 1
    if isinstance(problem, OSError) and problem.errno is not None:
        what = problem.strerror or str(problem)
        return OnnxPruneError(what, where=str(problem.filename) if problem.filename is not None else None), 1
    if isinstance(problem, SystemExit):
        return OnnxPruneError(
            f"a function or plug-in ended the program (SystemExit: {problem.code})", fix="return, or raise an exception"
        ), 1  # fmt: skip
    what = f"internal error: {type(problem).__name__}: {problem}"
    return OnnxPruneError(what, where=_place(problem), fix=_report(problem)), INTERNAL


def _report(problem: BaseException) -> str:
    return f"report it, with the input and the output of the same command under {DEBUG}=1"


def _place(problem: BaseException) -> str | None:
    """Return file and line of the innermost call in this package."""
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename.startswith(_PACKAGE)]
    if not frames:
        return None
    return f"{Path(frames[-1].filename).relative_to(Path(_PACKAGE).parent).as_posix()}, line {frames[-1].lineno}"
