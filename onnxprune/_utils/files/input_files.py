"""The one opener of files that are read: regular files only, of a bounded size.

A pipe, a socket or a device has no end that a reader can rely on: reading one blocks forever or fills the memory. They
are refused by their kind before they are opened, and again once they are open, because a name may be exchanged in
between. Errors are `OSError`s, as those of `open`, and their text says what the file is.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from importlib.resources.abc import Traversable
from io import BufferedReader

_KINDS = (
    (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
MIB, GIB = 2**20, 2**30
MAX_TEXT = 256 * MIB
"""Largest list, label file or log."""
MAX_IMAGE = GIB
"""Largest image file."""


class TooLarge(OSError):
    """File above the bound of its format."""


def kind_of(mode: int) -> str | None:
    """Return the kind of a file that is neither regular nor a folder, such as "a named pipe"; None for those."""
    return next((name for test, name in _KINDS if test(mode)), None)


def opened(path: str | os.PathLike[str], max_bytes: int | None = None) -> BufferedReader:
    """Open a regular file for reading.

    Args:
        path: Path of the file; symbolic links are followed.
        max_bytes: Largest size.

    Raises:
        OSError: It cannot be opened, is a folder, a pipe or a device, or too large.
    """
    _check(_status(path), path, max_bytes)
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  (the caller closes it)
    try:
        _check(os.fstat(file.fileno()), path, max_bytes)
    except BaseException:
        file.close()
        raise
    return file


def _status(path: str | os.PathLike[str]) -> os.stat_result:
    """Return the status of a file; a name that no file can have is an `OSError` as well."""
    try:
        return os.stat(path)
    except ValueError as err:  # a null character, or a surrogate that stands for no byte
        raise OSError(errno.EINVAL, "no file has such a name", os.fspath(path)) from err


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; if a pipe has replaced it, return nevertheless."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: See `opened`.
    """
    with opened(path, max_bytes) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)  # not `max_bytes`: so much memory would be taken
        while len(data) <= max_bytes and (more := file.read(MIB)):  # files of the system state a size of 0
            data += more
    if len(data) > max_bytes:
        raise _too_large(path, max_bytes)
    return data


def read_text(path: str | os.PathLike[str], max_bytes: int = MAX_TEXT, *, errors: str = "strict") -> str:
    """Return the content of a text file in UTF-8, without a byte order mark, with newlines of one character.

    Raises:
        OSError: See `opened`; or it is not UTF-8.
    """
    try:
        text = read_bytes(path, max_bytes).decode("utf-8-sig", errors)
    except UnicodeDecodeError as err:
        raise OSError(errno.EILSEQ, f"not UTF-8 text (byte {err.start})", os.fspath(path)) from err
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_resource(file: Traversable) -> bytes:
    """Return the content of a file of this package."""
    return file.read_bytes()


def mapped(path: str | os.PathLike[str]) -> mmap.mmap:
    """Return the memory-mapped bytes of a regular file.

    Raises:
        OSError: See `opened`.
        ValueError: The file is empty.
    """
    with opened(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _check(found: os.stat_result, path: str | os.PathLike[str], max_bytes: int | None) -> None:
    kind = kind_of(found.st_mode)
    if kind is not None:
        raise OSError(errno.EINVAL, f"it is {kind}, and only regular files are read", os.fspath(path))
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if max_bytes is not None and found.st_size > max_bytes:
        raise _too_large(path, max_bytes)


def _too_large(path: str | os.PathLike[str], max_bytes: int) -> TooLarge:
    return TooLarge(errno.EFBIG, f"too large (more than {max_bytes} bytes)", os.fspath(path))
