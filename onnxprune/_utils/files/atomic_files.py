"""The one writer of files: a file is the old one or the new one, never a part of one.

The new content is written to `.NAME.0.tmp` beside the file and renamed at the end. The temporary file is locked while
its process lives, so that the next write of the same file removes those of killed processes and leaves those of others.
What is not a regular file is never renamed over: pipes and character devices are written to, the rest is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from onnxprune._utils.files.input_files import kind_of
from onnxprune._utils.files.locks import SAFELY, is_named, locked
from onnxprune.errors import OnnxPruneError

_LONGEST = 200  # bytes of a file name that leave room for the rest of the temporary one
_SLOTS = 1000


def check_output(path: Path, source: Path | None = None, *, regular: bool = False) -> None:
    """Raise if an output is the input file, is not a place for a file, or its folder does not accept it.

    Args:
        path: Output.
        source: Input.
        regular: Refuse pipes and devices as well: files are written beside the output.

    Raises:
        OnnxPruneError: Says what to do.
    """
    if source is not None and same_file(path, source):
        raise OnnxPruneError("the output is the input file", where=str(path), fix="name another output file")
    if path.is_dir():
        raise OnnxPruneError(f"{str(path)!r} is a folder", fix="name a file in it")
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        mode = 0
    if mode and not stat.S_ISREG(mode) and (regular or not _streams(mode)):
        raise OnnxPruneError(
            f"{str(path)!r} is {kind_of(mode)}, not a regular file", fix="name a file, new or existing"
        )
    if mode and _streams(mode):
        return
    if not path.parent.is_dir():
        raise OnnxPruneError(f"the folder {str(path.parent)!r} does not exist", fix="create it first")
    if not os.access(path.parent, os.W_OK):
        raise OnnxPruneError(f"the folder {str(path.parent)!r} is not writable", fix="name a file in another folder")


def check_outputs(outputs: Iterable[tuple[str, Path]], inputs: Iterable[Path]) -> None:
    """Raise if two outputs are one file, or an output is an input, also through links.

    Args:
        outputs: Option and path of each output.
        inputs: Files that are read.

    Raises:
        OnnxPruneError: Names the file.
    """
    outputs, inputs = list(outputs), list(inputs)
    for i, (name, path) in enumerate(outputs):
        if any(same_file(path, source) for source in inputs):
            raise OnnxPruneError("the output is the input file", where=f"{name} {path}", fix="name another output file")
        for other, second in outputs[:i]:
            if same_file(path, second) and not is_stream(path):
                raise OnnxPruneError(
                    f"{other} and {name} write the same file", where=str(path), fix="name two different files"
                )


def same_file(one: Path, other: Path) -> bool:
    """Return whether two paths are one file, or would be once written."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.samefile(one, other):
            return True
    with contextlib.suppress(OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)
    return False


def is_stream(path: Path) -> bool:
    """Return whether a path is a pipe or a character device, which takes a stream of bytes."""
    try:
        return _streams(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def _streams(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """Return a context for a binary file that replaces `path` only if the block ends without an exception.

    A pipe or a character device is written to as the block proceeds.

    Raises:
        OnnxPruneError: The path is a folder, a socket or a block device.
        OSError: It cannot be written.
    """
    if path.exists() and not path.is_file():
        check_output(path)
        with open(path, "wb") as file:
            yield file
        return
    handle, temporary = _temporary(path)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if os.name != "nt":
                os.replace(temporary, path)  # while it is locked
        if os.name == "nt":  # an open file cannot be renamed there
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        OnnxPruneError: The file cannot be written.
    """
    check_output(path)
    try:
        with atomic(path) as file:
            file.write(text.encode())
    except OSError as err:
        raise OnnxPruneError(f"cannot write {str(path)!r}: {err.strerror or err}") from err


def appending(path: Path) -> TextIO:
    """Open a text file, a pipe or a device to append to; the caller closes it.

    Raises:
        OSError: It cannot be opened.
    """
    return open(path, "a", encoding="utf-8", errors="backslashreplace")


def append_text(path: Path, text: str) -> None:
    """Append to a text file.

    Raises:
        OSError: It cannot be written.
    """
    check_output(path, regular=True)
    with open(path, "ab") as file:
        file.write(text.encode(errors="backslashreplace"))


def remove_dead(path: Path) -> None:
    """Remove temporary files that killed processes left beside a file; those of live processes remain."""
    pattern = re.compile(rf"{re.escape(_stem(path))}[0-9a-z_]+\.tmp")
    with contextlib.suppress(OSError):
        for entry in os.scandir(path.parent):
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                _remove_if_dead(Path(entry.path))


def remove_all_dead(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder."""
    for path in folder.glob(".*.tmp"):
        if path.is_file() and not path.is_symlink():
            _remove_if_dead(path)


def _remove_if_dead(path: Path) -> None:
    with contextlib.suppress(OSError):  # another process was faster, or the file is someone else's
        handle = os.open(path, os.O_RDWR | SAFELY)
        try:
            if locked(handle) and is_named(handle, path):
                os.unlink(path)
        finally:
            os.close(handle)


def _stem(path: Path) -> str:
    name = os.fsencode(path.name)
    if len(name) <= _LONGEST:
        return f".{path.name}."
    return f".{hashlib.sha256(name).hexdigest()}."


def _temporary(path: Path) -> tuple[int, Path]:
    """Return a new, locked file beside `path`."""
    remove_dead(path)
    for number in range(_SLOTS):
        temporary = path.with_name(f"{_stem(path)}{number}.tmp")
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFELY, 0o666)
        except FileExistsError:
            continue
        # Between the two calls another process may have taken it for a dead one.
        if locked(handle) is not False and is_named(handle, temporary):
            return handle, temporary
        os.close(handle)
    raise OSError(f"{_SLOTS} temporary files are in the way")
