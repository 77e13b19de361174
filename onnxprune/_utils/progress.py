"""Progress of long work. The functions that do the work report counts; whoever calls them decides how they are shown.

A function that takes long has a parameter `progress: Progress = no_progress` and calls it with (done, total), where
`done` never falls and ends at `total`. The unit is the function's own: nodes, samples, runs, steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

StartProgress = Callable[[str], AbstractContextManager[Progress]]
"""Starts the display of one task by its title; it ends with the context."""


def no_progress(done: int, total: int) -> None:
    """Show nothing."""


@contextmanager
def silent(title: str) -> Iterator[Progress]:
    """Show nothing for a task."""
    yield no_progress
