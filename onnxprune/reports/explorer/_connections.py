"""Connections of the server: they wait for a complete request without a thread, and a few threads answer.

A thread per connection would let idle or half-open connections hold any number of threads. Here one thread watches
all connections, and hands over those whose request head has arrived; its bytes stay in the socket for the handler.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

WORKERS = 32
MOST = 1024
PATIENCE = 30.0
_HEAD = 2**16  # bytes; longer heads are refused by the handler
_AGAIN = 0.02  # seconds until a connection with a part of a head is read again


@dataclass(eq=False)
class _Waiting:
    """A connection without a complete request."""

    socket: socket.socket
    address: Any
    until: float


class Connections:
    """Waiting connections and the threads that answer them.

    Args:
        answer: Called in a thread with a connection and its address; it closes the connection.
        most: Number of waiting connections; beyond that the oldest is closed.
        patience: Seconds for a request head to arrive.
    """

    def __init__(
        self, answer: Callable[[socket.socket, Any], None], *, most: int = MOST, patience: float = PATIENCE
    ) -> None:
        self._answer, self._most, self._patience = answer, most, patience
        self._new: SimpleQueue[_Waiting] = SimpleQueue()
        self._ready: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._selector = selectors.DefaultSelector()
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._waiting: dict[_Waiting, None] = {}
        self._partial: list[_Waiting] = []
        self._closed = False
        threads = [threading.Thread(target=self._watch, name="explorer-watch", daemon=True)]
        threads += [threading.Thread(target=self._work, name="explorer", daemon=True) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()

    def add(self, connection: socket.socket, address: Any) -> None:
        """Take a new connection."""
        self._new.put(_Waiting(connection, address, time.monotonic() + self._patience))
        self._ring()

    def close(self) -> None:
        """Close all waiting connections, and let the threads end."""
        self._closed = True
        self._ring()
        for _ in range(WORKERS):
            self._ready.put(None)

    def _ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already
            self._button.send(b"x")

    def _work(self) -> None:
        while (task := self._ready.get()) is not None:
            self._answer(task.socket, task.address)

    def _watch(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select(_AGAIN if self._partial else 1.0):
                if key.data is None:
                    with contextlib.suppress(OSError):
                        self._bell.recv(4096)
                else:
                    self._selector.unregister(key.fileobj)
                    self._look(key.data)
            again, self._partial = self._partial, []
            for task in again:
                self._look(task)
            while not self._new.empty():
                self._admit(self._new.get())
            now = time.monotonic()
            for task in [t for t in self._waiting if t.until < now]:
                self._drop(task)
        for task in list(self._waiting):
            self._drop(task)
        self._selector.close()
        self._bell.close()
        self._button.close()

    def _admit(self, task: _Waiting) -> None:
        if len(self._waiting) >= self._most:
            self._drop(next(iter(self._waiting)))
        self._waiting[task] = None
        self._selector.register(task.socket, selectors.EVENT_READ, task)

    def _look(self, task: _Waiting) -> None:
        """Hand a connection over if its request head is complete."""
        if task not in self._waiting:
            return
        try:
            task.socket.setblocking(False)
            head = task.socket.recv(_HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            self._selector.register(task.socket, selectors.EVENT_READ, task)
            return
        except OSError:
            head = b""
        if not head:
            self._drop(task)
        elif b"\r\n\r\n" in head or b"\n\n" in head or len(head) >= _HEAD:
            del self._waiting[task]
            task.socket.setblocking(True)
            self._ready.put(task)
        else:
            self._partial.append(task)

    def _drop(self, task: _Waiting) -> None:
        self._waiting.pop(task, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(task.socket)
        with contextlib.suppress(OSError):
            task.socket.close()
