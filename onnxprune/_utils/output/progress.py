"""Progress of long work: functions report counts, and their callers decide how these are shown.

A function that takes long has a parameter `progress: Progress | None = None` and calls it with (done, total), where
`done` never falls. The unit is the function's own: nodes, samples, runs, steps. The command line shows a bar on stderr,
or lines where stderr is no terminal, see `onnxprune.cli._support.display.progress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from onnxprune._utils.output.formatting import seconds

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

StartProgress = Callable[[str], AbstractContextManager[Progress]]
"""Starts the display of a task by its title; the display ends with the context."""


@contextmanager
def no_progress(title: str) -> Iterator[Progress]:
    """Show nothing for a task."""
    yield lambda done, total: None


QUIET = 5.0
"""Seconds of a task before its first line: short tasks have none."""
SILENCE = 30.0
"""Seconds without a line after which one is due."""
STEP = 10
"""Percent of a task after which a line is due."""


class ProgressLines:
    """Progress of a task as lines of text, for logs: one for each tenth of the task, and one every 30 s.

    Args:
        title: Name of the task.
        write: Called with each line, without a newline.
        clock: Returns seconds.
    """

    def __init__(self, title: str, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._write = write
        self._clock = clock
        self._start = self._last = clock()
        self._shown = 0  # percent

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        percent = 100 * done // total if total > 0 else 0
        due = percent // STEP > self._shown // STEP or now - self._last >= SILENCE
        if not due or now - self._start < QUIET:
            return
        self._shown, self._last = percent, now
        took = now - self._start
        left = f", about {seconds(took * (total - done) / done)} left" if 0 < done < total else ""
        share = f"{percent} % ({done} of {total})" if total > 0 else f"{done} done"
        self._write(f"{self._title}: {share}, {seconds(took)}{left}")
