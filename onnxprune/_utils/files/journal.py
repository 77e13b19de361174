"""Journal of finished work: one line per piece, on disk before the next one starts.

After any interruption (an error, a full disk, kill -9), the next run with the same settings continues from the last
complete line. An incomplete line is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune._utils.files.atomic_files import check_output
from onnxprune._utils.files.locks import locked
from onnxprune._utils.output.formatting import counted
from onnxprune._utils.processes.interruption import keeps, keeps_no_more
from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError

SCHEMA = 1
FORMAT = Format("journal", 2**30, fix="remove the file, or start again with --restart")


@dataclass(frozen=True)
class _Entry:
    """A line after the header."""

    key: str
    value: Any


def read_entry(line: bytes, where: str) -> tuple[str, Any]:
    """Return key and value of a line after the header.

    Raises:
        OnnxPruneError: The line is damaged.
    """
    entry = FORMAT.fields(_Entry, FORMAT.parse(line, where), where)
    return entry.key, entry.value


class Journal:
    """Entries by key, appended to a file.

    Args:
        path: Path of the file; None keeps the entries in memory only.
        settings: Settings that the entries depend on; a file with other settings is rejected. Workers write journals
            of their own, see `adopt`.
        restart: Discard existing entries.

    Attributes:
        entries: Key -> value, entries of earlier runs included.

    Raises:
        OnnxPruneError: The file has other settings, is not a journal, is in use, or cannot be written.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self.settings = dict(settings)
        self.entries: dict[str, Any] = {}
        self._file: Any = None
        if path is None:
            return
        check_output(path, regular=True)
        head = {"journal": SCHEMA, **settings}
        try:
            self._file = open(path, "a+b")  # noqa: SIM115  (kept open; closed by `close`)
            self._lock()
            if restart:
                self._file.truncate(0)
            self._read(head)
            keeps(self, self._kept)
        except OSError as err:
            self.close()
            raise self._failed(err) from err
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        if locked(self._file.fileno()) is False:
            raise OnnxPruneError(
                "another run is writing this journal", where=str(self.path), fix="wait for it, or use another -o"
            )

    def _read(self, head: dict[str, Any]) -> None:
        if self._file.seek(0, os.SEEK_END) > FORMAT.max_bytes:
            raise FORMAT.error("too large", str(self.path))
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()  # text after the last newline
        if torn:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - len(torn))
        if not lines:
            self._append(head)
            return
        found = FORMAT.parse(lines[0], self._line(1))
        if not isinstance(found, dict):
            raise FORMAT.error("not an object", self._line(1))
        wrong = sorted(k for k in head.keys() | found.keys() if head.get(k) != found.get(k))
        if "journal" in wrong:
            raise FORMAT.error("line 1 is not a header", str(self.path))
        if wrong:
            raise OnnxPruneError(
                f"the journal was written with other settings ({', '.join(wrong)})",
                where=str(self.path),
                fix="repeat the command that created it, use another -o, or discard it with --restart",
            )
        for i, line in enumerate(lines[1:]):
            key, value = read_entry(line, self._line(i + 2))
            self.entries[key] = value

    def _line(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def _failed(self, err: OSError) -> OnnxPruneError:
        return OnnxPruneError(
            f"cannot write the journal {str(self.path)!r}: {err.strerror or err}",
            fix="the points written so far are safe: free disk space and run the same command again",
        )

    def _append(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(json.dumps(entry, sort_keys=True, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as err:
            raise self._failed(err) from err

    def add(self, key: str, value: Any) -> None:
        """Append an entry; on return it is on disk.

        Raises:
            OnnxPruneError: The entry cannot be written.
        """
        self.entries[key] = value
        if self._file is not None:
            self._append({"key": key, "value": value})

    def adopt(self, folder: Path) -> None:
        """Adopt the entries of the journals that workers wrote into a folder; journals with other settings are ignored.

        Raises:
            OnnxPruneError: The entries cannot be written.
        """
        for path in sorted(folder.glob("*.journal")):
            try:
                other = Journal(path, self.settings)
            except OnnxPruneError:  # other settings or damaged: its points are computed again
                continue
            other.close()
            for key, value in other.entries.items():
                if key not in self.entries:
                    self.add(key, value)

    def _kept(self) -> str:
        return f"{counted(len(self.entries), 'finished part')} in {str(self.path)!r}" if self.entries else ""

    def close(self) -> None:
        """Close the file; it remains for the next run."""
        keeps_no_more(self)
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def finish(self) -> None:
        """Remove the file, after the result was written."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
