"""Events of long work as JSON lines: begin, stages with their progress, notes, result, end.

Every line is an object with `time` (UTC, ISO 8601) and `event`; docs/integrations.md lists the fields of each.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from onnxprune._utils.files.atomic_files import appending
from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of training in several processes: the first one logs
_STEPS = 100  # events of a stage at most: one for each per cent


class EventLog:
    """File of events, one JSON object a line, appended to and flushed after every line.

    It is a callback of `prune` and other jobs as well: `onnxprune.prune(..., progress=log)`.

    Args:
        path: File; its folder must exist.

    Raises:
        OnnxPruneError: The file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._file: TextIO | None = appending(self.path)
        except OSError as err:
            raise OnnxPruneError(
                f"cannot write events: {err.strerror or err}", where=str(self.path), fix="name a file in a folder "
                "that exists and can be written to",
            ) from err  # fmt: skip
        self._stage = ""
        self._shown = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, event: str, **fields: Any) -> None:
        """Append an event. A full disk ends the log with a warning, not the work that it follows."""
        if self._file is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        try:
            self._file.write(json.dumps(_finite(line), default=str, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as err:
            self._file = None
            warnings.warn(f"no more events in {self.path}: {err.strerror or err}", stacklevel=2)

    def result(self, document: Any) -> None:
        """Append the result: the document of `--json`, and its numbers under dotted names."""
        self.write("result", metrics=metrics_of(document), document=document)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Append the progress of a stage, at most one event for each per cent."""
        if stage != self._stage:
            self._stage, self._shown = stage, -1
        step = _STEPS if total <= 0 else min(_STEPS, done * _STEPS // total)
        if step > self._shown:
            self._shown = step
            self.write("progress", stage=stage, done=done, total=total)

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        """Append begin and end of a stage; the result appends its progress."""
        self.write("stage_begin", stage=title)
        start = time.perf_counter()
        try:
            yield lambda done, total: self(title, done, total)
        finally:
            self.write("stage_end", stage=title, seconds=round(time.perf_counter() - start, 3))
            self._stage = ""


_OPEN: ContextVar[EventLog | None] = ContextVar("onnxprune_events", default=None)


def current() -> EventLog | None:
    """Return the log of the running command; None without one."""
    return _OPEN.get()


@contextmanager
def logged(path: Path | None, command: str, version: str) -> Iterator[None]:
    """Log what runs in the context, from its begin to its end; without a path do nothing."""
    if path is None or any(os.environ.get(name, "0") != "0" for name in _RANKS):
        yield
        return
    with EventLog(path) as log:
        token = _OPEN.set(log)
        start = time.perf_counter()
        status, error = "failed", ""
        log.write("begin", command=command, version=version)
        try:
            yield
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except BaseException as err:
            error = str(err) or type(err).__name__
            raise
        finally:
            _OPEN.reset(token)
            fields = {"error": error} if error else {}
            log.write("end", status=status, seconds=round(time.perf_counter() - start, 3), **fields)


def metrics_of(document: Any, name: str = "") -> dict[str, float]:
    """Return the numbers of a document by dotted name: {"after": {"macs": 3}} is {"after.macs": 3}."""
    if isinstance(document, bool) or document is None:
        return {}
    if isinstance(document, int | float):
        return {name: document} if math.isfinite(document) else {}
    items: Any = ()
    if isinstance(document, Mapping):
        items = document.items()
    elif isinstance(document, list | tuple):
        items = enumerate(document)
    out: dict[str, float] = {}
    for key, value in items:
        out |= metrics_of(value, f"{name}.{key}" if name else str(key))
    return out


def _finite(value: Any) -> Any:
    """Return the value with numbers that JSON has no spelling for as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value
