"""Journal of finished work: one line per piece, on disk before the next one starts.

After any interruption (an error, a full disk, kill -9), the next run with the same settings continues from the last
complete line. An incomplete line is dropped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxprune._utils.atomic_files import check_output
from onnxprune.errors import OnnxPruneError

SCHEMA = 1
_MAX_BYTES = 2**30


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
        check_output(path)
        head = {"journal": SCHEMA, **settings}
        try:
            self._file = open(path, "a+b")  # noqa: SIM115  (kept open; closed by `close`)
            self._lock()
            if restart:
                self._file.truncate(0)
            self._read(head)
        except OSError as err:
            self.close()
            raise self._failed(err) from err
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OnnxPruneError(
                    "another run is writing this journal", where=str(self.path), fix="wait for it, or use another -o"
                ) from None

    def _read(self, head: dict[str, Any]) -> None:
        if self._file.seek(0, os.SEEK_END) > _MAX_BYTES:
            raise self._damaged("it is too large")
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()  # text after the last newline
        if torn:
            self._file.truncate(self._file.seek(0, os.SEEK_END) - len(torn))
        if not lines:
            self._append(head)
            return
        found = [self._parsed(line, i + 1) for i, line in enumerate(lines)]
        wrong = sorted(k for k in head.keys() | found[0].keys() if head.get(k) != found[0].get(k))
        if "journal" in wrong:
            raise self._damaged("line 1 is not a header")
        if wrong:
            raise OnnxPruneError(
                f"the journal was written with other settings ({', '.join(wrong)})",
                where=str(self.path),
                fix="repeat the command that created it, use another -o, or discard it with --restart",
            )
        for i, entry in enumerate(found[1:]):
            if set(entry) != {"key", "value"} or not isinstance(entry["key"], str):
                raise self._damaged(f"line {i + 2} is not an entry")
            self.entries[entry["key"]] = entry["value"]

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        def no_constant(name: str) -> Any:
            raise ValueError(f"{name} is not JSON")

        try:
            value = json.loads(line.decode(), parse_constant=no_constant)
        except (ValueError, RecursionError) as err:
            raise self._damaged(f"line {number}: {err}") from err
        if not isinstance(value, dict):
            raise self._damaged(f"line {number} is not an object")
        return value

    def _damaged(self, what: str) -> OnnxPruneError:
        return OnnxPruneError(
            f"not a journal: {what}", where=str(self.path), fix="remove the file, or start again with --restart"
        )

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

    def close(self) -> None:
        """Close the file; it remains for the next run."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None

    def finish(self) -> None:
        """Remove the file, after the result was written."""
        self.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)
