"""Samples of generators and other streams, written to temporary files as they come: random access in little memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.execution.data._sources import Arrays, Indices, Source
from onnxprune.execution.data._targets import Target
from onnxprune.ir.model import Array

MAX_SPOOL_BYTES = 256 * 2**30


class Spool:
    """Arrays of any shapes in one temporary file, by number. The file is removed with the object.

    A copy in another process reads the same file and does not remove it.
    """

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="onnxprune-", suffix=".samples")
        self.path = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._entries: list[tuple[int, tuple[int, ...], np.dtype[Any]]] = []
        self._end = 0
        self._remove = weakref.finalize(self, _remove, self.path, self._file)

    def __len__(self) -> int:
        return len(self._entries)

    def __getstate__(self) -> dict[str, Any]:
        if not self._file.closed:
            self._file.flush()
        return {"path": self.path, "_entries": self._entries, "_end": self._end}

    def add(self, array: Array) -> None:
        """Append an array.

        Raises:
            OnnxPruneError: The disk is full, or the stream does not end.
        """
        data = np.ascontiguousarray(array)
        if self._end + data.nbytes > MAX_SPOOL_BYTES:
            raise OnnxPruneError(
                f"the data has not ended after {MAX_SPOOL_BYTES >> 30} GiB", fix="use only some samples (--images)"
            )
        try:
            self._file.write(data.reshape(-1).view(np.uint8).data)
        except OSError as err:
            raise _unwritable(err) from err
        self._entries.append((self._end, np.shape(array), data.dtype))
        self._end += data.nbytes

    def finish(self) -> None:
        """Write what is buffered; nothing is added afterwards.

        Raises:
            OnnxPruneError: The disk is full.
        """
        try:
            self._file.close()
        except OSError as err:
            raise _unwritable(err) from err

    def shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of an array."""
        return self._entries[index][1]

    def dtype(self, index: int) -> np.dtype[Any]:
        """Return the element type of an array."""
        return self._entries[index][2]

    def __getitem__(self, index: int) -> Array:
        start, shape, dtype = self._entries[index]
        with self.path.open("rb") as file:
            file.seek(start)
            data = file.read(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return np.frombuffer(bytearray(data), dtype).reshape(shape)


def _remove(path: Path, file: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        file.close()
        path.unlink()


def _unwritable(err: OSError) -> OnnxPruneError:
    return OnnxPruneError(
        f"cannot write samples to a temporary file: {err.strerror or err}",
        fix="free disk space, set TMPDIR to a folder with more, or use only some samples (--images)",
    )


class SpooledSource(Source):
    """Samples that were written to temporary files, possibly of different shapes."""

    def __init__(self, spools: Mapping[str, Spool], *, whole: bool = False) -> None:
        self.spools, self.whole = dict(spools), whole

    def __len__(self) -> int:
        return len(next(iter(self.spools.values())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.spools)

    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        at = [int(i) for i in indices]
        if self.whole:
            return {name: spool[at[0]] for name, spool in self.spools.items()}, None
        return {name: np.stack([spool[i] for i in at]) for name, spool in self.spools.items()}, None

    def sizes(self, how: Preprocess) -> Sequence[Hashable] | None:
        keys = [tuple(spool.shape(i) for spool in self.spools.values()) for i in range(len(self))]
        return None if len(set(keys)) == 1 else keys

    def update(self, digest: Any) -> None:
        for name, spool in self.spools.items():
            shapes = sorted({spool.shape(i) for i in range(len(self))})
            digest.update(f"{name} {len(spool)} {shapes} {spool.dtype(0)}".encode())
            for i in np.linspace(0, len(spool) - 1, min(len(spool), 64)).astype(int).tolist():
                digest.update(spool[i].tobytes())

    def shown(self) -> str:
        parts = []
        for name, spool in self.spools.items():
            shapes = {spool.shape(i) for i in range(len(spool))}
            form = str(list(spool.shape(0))) if len(shapes) == 1 else f"{len(shapes)} shapes"
            parts.append(f"{name + ' ' if name else ''}{form} {spool.dtype(0)}")
        return ", ".join(parts)
