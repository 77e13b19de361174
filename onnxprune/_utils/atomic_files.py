"""Atomically written files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError


def check_output(path: Path, source: Path | None = None) -> None:
    """Raise if an output is the input file, or its folder does not accept it.

    Raises:
        OnnxPruneError: Says what to do.
    """
    if source is not None and os.path.realpath(path) == os.path.realpath(source):
        raise OnnxPruneError("the output is the input file", where=str(path), fix="name another output file")
    if path.is_dir():
        raise OnnxPruneError(f"{str(path)!r} is a folder", fix="name a file in it")
    if not path.parent.is_dir():
        raise OnnxPruneError(f"the folder {str(path.parent)!r} does not exist", fix="create it first")
    if not os.access(path.parent, os.W_OK):
        raise OnnxPruneError(f"the folder {str(path.parent)!r} is not writable", fix="name a file in another folder")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Any]:
    """Return a context for a binary file that replaces `path` only if the block ends without an exception."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
