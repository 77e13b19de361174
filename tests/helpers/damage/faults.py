"""Faults of the disk: the N-th call that changes a folder fails, or ends the process as `kill -9` does.

python faults.py FOLDER NUMBER WORDS...      end the process at a call; print the calls if there are fewer
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxprune
import onnxprune.passes

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS)
_WRITES = os.O_WRONLY | os.O_RDWR
_PACKAGES = tuple(str(Path(p.__file__).parent) + os.sep for p in (onnxprune, onnxprune.passes))

Site = tuple[str, str, tuple[tuple[str, int], ...]]
"""Kind of a call, name of the file without digits, and lines of the package."""


class Faults:
    """Counter of the calls that change a folder.

    Args:
        folder: The folder.
        at: Number of the call that fails, from 1; 0: none.
        error: Error number; None ends the process.
    """

    def __init__(self, folder: Path, at: int, error: int | None) -> None:
        self.folder, self.at, self.error = os.path.realpath(folder), at, error
        self.calls = 0
        self.names: list[str] = []
        self.sites: list[Site] = []

    def inside(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.path.realpath(path).startswith(self.folder + os.sep)

    def happen(self, name: str, path: Any) -> None:
        """Count a call, and let it fail if it is its turn."""
        self.calls += 1
        self.names.append(f"{name} {Path(os.fspath(path)).name}")
        self.sites.append((name, re.sub(r"\d+", "N", Path(os.fspath(path)).name), _lines()))
        if self.calls == self.at:
            if self.error is None:
                os._exit(137)
            raise OSError(self.error, os.strerror(self.error), os.fspath(path))


def _lines() -> tuple[tuple[str, int], ...]:
    """Return the lines of this package that the present call comes from."""
    found = []
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_PACKAGES):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


class _File(io.RawIOBase):
    """File whose writes are counted."""

    def __init__(self, file: Any, faults: Faults, path: Any) -> None:
        self._file, self._faults, self._path = file, faults, path

    def write(self, data: Any) -> int:
        self._faults.happen("write", self._path)
        return int(self._file.write(data))

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()

    def read(self, size: int = -1) -> Any:
        return self._file.read(size)

    def seek(self, *args: int) -> int:
        return int(self._file.seek(*args))

    def tell(self) -> int:
        return int(self._file.tell())

    def truncate(self, size: int | None = None) -> int:
        self._faults.happen("truncate", self._path)
        return int(self._file.truncate(size))

    def fileno(self) -> int:
        return int(self._file.fileno())

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return bool(self._file.readable())

    def seekable(self) -> bool:
        return True


@contextlib.contextmanager
def faulty(faults: Faults) -> Iterator[None]:
    """Let the calls of the block pass through a counter."""
    paths: dict[int, Any] = {}
    plain_open, plain_os_open, plain_fdopen, plain_fsync = builtins.open, os.open, os.fdopen, os.fsync

    def fake_os_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
        watched = flags & _WRITES and faults.inside(path)
        if watched:
            faults.happen("open", path)
        number = plain_os_open(path, flags, *more, **named)
        paths.pop(number, None)
        if watched:
            paths[number] = path
        return number

    def fake_fsync(number: int) -> None:
        if number in paths:
            faults.happen("fsync", paths[number])
        plain_fsync(number)

    def fake_open(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if not any(c in mode for c in "wax+") or not faults.inside(file):
            return plain_open(file, mode, *more, **named)
        faults.happen("open", file)
        opened = plain_open(file, mode, *more, **named)
        paths[opened.fileno()] = file
        return _File(opened, faults, file)

    def fake_fdopen(number: int, *more: Any, **named: Any) -> Any:
        file = plain_fdopen(number, *more, **named)
        path = paths.get(number)
        return file if path is None else _File(file, faults, path)

    def counted(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *more: Any, **named: Any) -> Any:
            if faults.inside(path):
                faults.happen(name, path)
            return plain(path, *more, **named)

        return call

    fakes: dict[str, Callable[..., Any]] = {"open": fake_os_open, "fdopen": fake_fdopen, "fsync": fake_fsync}
    fakes |= {name: counted(name, getattr(os, name)) for name in ("replace", "mkdir")}
    before = {name: getattr(os, name) for name in fakes}
    builtins.open = fake_open
    for name, fake in fakes.items():
        setattr(os, name, fake)
    try:
        yield
    finally:
        builtins.open = plain_open
        for name, plain in before.items():
            setattr(os, name, plain)


def main() -> None:
    """Run a command that is killed at a call."""
    folder, number, *words = sys.argv[1:]
    from onnxprune.cli import main as command

    faults = Faults(Path(folder), int(number), None)
    code = 0
    with faulty(faults):
        try:
            command.main(words, prog_name="onnxprune")
        except SystemExit as err:
            code = err.code if isinstance(err.code, int) else 1
    sys.stdout.write(f"calls {faults.calls}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
