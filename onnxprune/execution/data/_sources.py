"""Sources of samples: random access to samples that are read in batches, never all in memory.

Samples are arrays by input name; the name "" is that of the only input, whatever the model calls it. Image files have
no fixed size: a source of images is read with the preprocessing that says how they are resized.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxprune.execution.data._targets import Target
from onnxprune.ir.model import Array

if TYPE_CHECKING:
    from onnxprune.execution.data._preprocess import Preprocess

Indices = npt.NDArray[np.int64]
Arrays = dict[str, Array]


class Source(ABC):
    """Samples with random access.

    Attributes:
        images: Whether samples are images, resized by the preprocessing.
        whole: Whether every item is a complete feed of the model, passed on as it is.
        targets: Kind of the targets that `read` returns, one of `KINDS`; "" for none.
    """

    images: bool = False
    whole: bool = False
    targets: str = ""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Names of the inputs; ("",) for the only one."""

    @abstractmethod
    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        """Return samples of equal shape, each array `[n, ...]`, and their targets."""

    @abstractmethod
    def sizes(self, how: Preprocess) -> Sequence[Hashable] | None:
        """Return a key per sample that is equal for samples of equal shape; None if all shapes are equal."""

    @abstractmethod
    def update(self, digest: Any) -> None:
        """Add what identifies the samples to a digest, without reading them all."""

    @abstractmethod
    def shown(self) -> str:
        """Return shape and type of the samples for messages."""

    def check(self) -> None:  # noqa: B027  # most sources have nothing to check
        """Check what can be checked without reading all samples.

        Raises:
            OnnxPruneError: A file is not what it should be.
        """

    def within(self, seconds: float) -> Source:
        """Return the source with a limit for the time that one sample takes to decode; 0: no limit."""
        return self

    def take(self, indices: Indices) -> Source:
        """Return the source of some of the samples."""
        return TakenSource(self, np.asarray(indices, np.int64))


class TakenSource(Source):
    """Some samples of another source."""

    def __init__(self, source: Source, indices: Indices) -> None:
        self.source, self.indices = source, indices
        self.images, self.whole, self.targets = source.images, source.whole, source.targets

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def names(self) -> tuple[str, ...]:
        return self.source.names

    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        return self.source.read(self.indices[np.asarray(indices, np.int64)], how)

    def sizes(self, how: Preprocess) -> Sequence[Hashable] | None:
        found = self.source.sizes(how)
        return None if found is None else [found[i] for i in self.indices.tolist()]

    def update(self, digest: Any) -> None:
        self.source.update(digest)
        digest.update(self.indices.tobytes())

    def shown(self) -> str:
        return self.source.shown()

    def check(self) -> None:
        self.source.check()

    def within(self, seconds: float) -> Source:
        return TakenSource(self.source.within(seconds), self.indices)

    def take(self, indices: Indices) -> Source:
        return TakenSource(self.source, self.indices[indices])


class ArraySource(Source):
    """Arrays in memory or memory-mapped files, all `[n, ...]`."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.arrays)

    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        part = _as_slice(indices)
        return {name: a[part] for name, a in self.arrays.items()}, None

    def sizes(self, how: Preprocess) -> Sequence[Hashable] | None:
        return None

    def update(self, digest: Any) -> None:
        for name, a in self.arrays.items():
            digest.update(f"{name} {a.shape} {a.dtype}".encode())
            rows = a[np.linspace(0, len(a) - 1, min(len(a), 64)).astype(np.int64)].reshape(-1)
            digest.update(np.ascontiguousarray(rows[:: max(1, rows.size // 2**18)]).tobytes())

    def shown(self) -> str:
        return ", ".join(f"{n + ' ' if n else ''}{_form(a.shape[1:], a.dtype)}" for n, a in self.arrays.items())


class WholeArrays(ArraySource):
    """Complete feeds as arrays, each `[n, ...]` with the shape of the model's input behind the first axis."""

    whole = True

    def read(self, indices: Sequence[int] | Indices, how: Preprocess) -> tuple[Arrays, list[Target] | None]:
        first = int(indices[0])
        return {name: a[first] for name, a in self.arrays.items()}, None


def _as_slice(indices: Sequence[int] | Indices) -> slice | Indices:
    """Return consecutive indices as a slice, which copies nothing."""
    at = np.asarray(indices, np.int64)
    if len(at) and int(at[-1]) - int(at[0]) == len(at) - 1 and bool((np.diff(at) == 1).all()):
        return slice(int(at[0]), int(at[-1]) + 1)
    return at


def _form(shape: Sequence[int], dtype: Any) -> str:
    return f"[{', '.join(map(str, shape))}] {dtype}"


def digest_of(source: Source) -> bytes:
    """Return a digest of what identifies the samples of a source."""
    digest = hashlib.sha256()
    source.update(digest)
    return digest.digest()
