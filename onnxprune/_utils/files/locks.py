"""Locks on files, released by the system when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from onnxprune.errors import OnnxPruneError

_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}

SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags of a file with a predictable name: neither a link nor a pipe that someone else put there."""


def locked(file: int) -> bool | None:
    """Lock an open file for this process, without waiting.

    Returns:
        True: this process holds the lock; False: another one does; None: the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as err:
        if err.errno in _NO_LOCKS:
            return None
        raise
    return True


def is_named(file: int, path: Path) -> bool:
    """Return whether a path still names an open file: another process may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextlib.contextmanager
def only_run(path: Path, what: str, fix: str) -> Iterator[None]:
    """Hold the lock file `path`, which is removed afterwards; without write access nothing is locked.

    Args:
        path: Lock file; that of a dead process is reused.
        what: Error if another process holds it.
        fix: Way out.

    Raises:
        OnnxPruneError: Another process holds the lock.
    """
    file = None
    for _ in range(10):  # the holder may remove the file between the two calls
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | SAFELY, 0o666)
        except OSError:  # the write of the output says why
            break
        if locked(file) is False:
            os.close(file)
            raise OnnxPruneError(what, where=str(path), fix=fix)
        if is_named(file, path):
            break
        os.close(file)
        file = None
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
            os.close(file)
