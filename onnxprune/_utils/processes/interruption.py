"""Signals that end a command, and what remains of its work."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_work: dict[object, Callable[[], str]] = {}


class Stopped(BaseException):
    """The process was told to end; files in writing are removed on the way out.

    Attributes:
        signal: Number of the signal.
        kept: What the same command continues from; "" for nothing.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.kept = kept_work()

    @property
    def exit_code(self) -> int:
        """Exit status, as shells report it."""
        return 128 + self.signal

    def __str__(self) -> str:
        text = f"stopped by {self.args[0]}"
        return f"{text}; the same command continues: {self.kept}" if self.kept else f"{text}; nothing is left to resume"


def keeps(owner: object, describe: Callable[[], str]) -> None:
    """Register work on disk that the same command continues from, until `keeps_no_more`."""
    _work[id(owner)] = describe


def keeps_no_more(owner: object) -> None:
    """Forget the work of `owner`."""
    _work.pop(id(owner), None)


def kept_work() -> str:
    """Return what the same command would continue from; "" for nothing."""
    for describe in _work.values():
        with contextlib.suppress(Exception):
            if text := describe():
                return text
    return ""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` on the first SIGINT, SIGTERM or SIGHUP; a second one ends the process at once.

    A signal that is ignored (nohup) remains ignored; other threads than the main one have no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            before[number] = signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Stopped(number)
