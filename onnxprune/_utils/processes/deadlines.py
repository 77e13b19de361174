"""Calls that may block forever: they run in a thread of their own, which is abandoned when the time is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")
Wait = Callable[[threading.Event, float], bool]
_SLICE = 0.2  # seconds


def wait_in_slices(event: threading.Event, seconds: float) -> bool:
    """Return whether an event was set in so many seconds.

    A signal that arrives just before a thread waits does not wake it: Python calls its handler after the wait.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        if event.wait(min(_SLICE, left)):
            return True
    return event.is_set()


class Late(Exception):
    """A call did not end in time."""


class Deadline:
    """Runs calls one after the other in one thread, each for a limited time; a context, which ends the thread.

    Python cannot stop a thread: one whose call is late remains until the process ends, and does not keep it alive.

    Args:
        seconds: Time for each call; 0: no limit, and no thread.
        wait: Waits for an event, and returns whether it was set in so many seconds.
    """

    def __init__(self, seconds: float, wait: Wait = wait_in_slices) -> None:
        self.seconds, self._wait = seconds, wait
        self._calls: SimpleQueue[_TimedCall | None] | None = None

    def __enter__(self) -> Deadline:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Return the result of a call, or raise its exception.

        Raises:
            Late: It did not end in time.
        """
        if not self.seconds:
            return function(*args)
        if self._calls is None:
            self._calls = SimpleQueue()
            threading.Thread(target=_work, args=(self._calls,), daemon=True).start()
        call = _TimedCall(lambda: function(*args))
        self._calls.put(call)
        if not self._wait(call.done, self.seconds):
            self._end()
            raise Late
        if call.problem is not None:
            raise call.problem
        return call.result  # type: ignore[no-any-return]

    def _end(self) -> None:
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


class _TimedCall:
    def __init__(self, function: Callable[[], Any]) -> None:
        self.function, self.done = function, threading.Event()
        self.result: Any = None
        self.problem: BaseException | None = None


def _work(calls: SimpleQueue[_TimedCall | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call.result = call.function()
        except BaseException as err:
            call.problem = err
        call.done.set()
        del call  # while it waits, the thread holds no result
