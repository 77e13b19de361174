"""Progress of long work: functions report counts, and their callers decide how these are shown.

A function that takes long has a parameter `progress: Progress | None = None` and calls it with (done, total), where
`done` never falls. The unit is the function's own: nodes, samples, runs, steps. The command line shows a bar on stderr,
see `onnxprune.cli._display.progress`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

StartProgress = Callable[[str], AbstractContextManager[Progress]]
"""Starts the display of a task by its title; the display ends with the context."""


@contextmanager
def no_progress(title: str) -> Iterator[Progress]:
    """Show nothing for a task."""
    yield lambda done, total: None
