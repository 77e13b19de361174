"""Samples of generators and other streams, written to temporary files as they come: random access in little memory."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from array import array
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune._utils.files.input_files import opened
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._preprocess import Preprocess
from onnxprune.execution.data._sources import Arrays, Indices, Source
from onnxprune.execution.data._targets import Target
from onnxprune.ir.model import Array

_Form = tuple[tuple[int, ...], np.dtype[Any]]
MAX_SPOOL_BYTES = 256 * 2**30


class Spool:
    """Arrays of any shapes in one temporary file, by number. The file is removed with the object.

    A copy in another process reads the same file and does not remove it.
    """

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="onnxprune-", suffix=".samples")
        self.path = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._starts, self._forms = array("q"), array("l")
        self._known: dict[_Form, int] = {}
        self._listed: list[_Form] = []
        self._end = 0
        self._remove = weakref.finalize(self, _remove, self.path, self._file)

    def __len__(self) -> int:
        return len(self._starts)

    def __getstate__(self) -> dict[str, Any]:
        if (file := getattr(self, "_file", None)) is not None and not file.closed:
            file.flush()
        names = ("path", "_starts", "_forms", "_known", "_listed", "_end")
        return {name: getattr(self, name) for name in names}

    def add(self, values: Array) -> None:
        """Append an array.

        Raises:
            OnnxPruneError: The disk is full, or the stream does not end.
        """
        data = np.ascontiguousarray(values)
        if self._end + data.nbytes > MAX_SPOOL_BYTES:
            raise OnnxPruneError(
                f"the data has not ended after {MAX_SPOOL_BYTES >> 30} GiB", fix="use only some samples (--images)"
            )
        try:
            self._file.write(data.reshape(-1).view(np.uint8).data)
        except OSError as err:
            raise _unwritable(err) from err
        form = np.shape(values), data.dtype
        if form not in self._known:
            self._known[form] = len(self._listed)
            self._listed.append(form)
        self._starts.append(self._end)
        self._forms.append(self._known[form])
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
        return self._form(index)[0]

    def dtype(self, index: int) -> np.dtype[Any]:
        """Return the element type of an array."""
        return self._form(index)[1]

    @property
    def shapes(self) -> set[tuple[int, ...]]:
        """Shapes of all arrays."""
        return {shape for shape, _ in self._known}

    def _form(self, index: int) -> _Form:
        return self._listed[self._forms[index]]

    def __getitem__(self, index: int) -> Array:
        start, (shape, dtype) = self._starts[index], self._form(index)
        with opened(self.path) as file:
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


class SpooledTargets(Sequence[Target]):
    """Masks and other large targets in a temporary file."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def __len__(self) -> int:
        return len(self.spool)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.spool[i] for i in range(*index.indices(len(self)))]
        return self.spool[range(len(self))[index]]


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
        if all(len(spool.shapes) == 1 for spool in self.spools.values()):
            return None
        return [tuple(spool.shape(i) for spool in self.spools.values()) for i in range(len(self))]

    def update(self, digest: Any) -> None:
        for name, spool in self.spools.items():
            shapes = sorted(spool.shapes)
            digest.update(f"{name} {len(spool)} {shapes} {spool.dtype(0)}".encode())
            for i in np.linspace(0, len(spool) - 1, min(len(spool), 64)).astype(int).tolist():
                digest.update(spool[i].tobytes())

    def shown(self) -> str:
        parts = []
        for name, spool in self.spools.items():
            form = str(list(spool.shape(0))) if len(spool.shapes) == 1 else f"{len(spool.shapes)} shapes"
            parts.append(f"{name + ' ' if name else ''}{form} {spool.dtype(0)}")
        return ", ".join(parts)
