"""Arrays of numpy files, memory-mapped where the file allows it; nothing is unpickled."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.lib.format as npy

from onnxprune._utils.files.input_files import opened
from onnxprune._utils.output.formatting import listed
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.data._data import Data, as_array, checked_data
from onnxprune.execution.data._inputs import Expected
from onnxprune.execution.data._sources import WholeArrays
from onnxprune.ir.model import Array

MAX_ARRAY_BYTES = 64 * 2**30
TARGETS = ("y", "labels", "label", "targets", "target")
"""Names of arrays that hold targets, unless an input of the model has that name."""
_STREAMED = 16 * 2**20  # bytes of a compressed member above which it is written to a temporary file
_CHUNK = 2**20
ANYTHING = Expected()


def read_npy(path: Path) -> Data:
    """Read the samples of an .npy file, memory-mapped.

    Raises:
        OnnxPruneError: The file cannot be read, or is no array of numbers.
    """
    with _errors(path, ".npy"), opened(path) as file:
        shape, fortran, dtype = _header(file)
        _check_size(str(path), shape, dtype, os.fstat(file.fileno()).st_size - file.tell())
        x = np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C") if np.prod(shape) else None
    return checked_data(np.empty(shape, dtype) if x is None else x, None, str(path))


def read_npz(path: Path, expected: Expected = ANYTHING) -> Data:
    """Read an .npz file with x and y, with arrays by input name, or with one array.

    Args:
        path: File; uncompressed arrays are memory-mapped, large compressed ones are written to a temporary file.
        expected: Form of the samples that the model takes.

    Raises:
        OnnxPruneError: The file cannot be read, or it is not clear which arrays are samples.
    """
    inputs = tuple(expected.ranks)
    with _errors(path, ".npz"), opened(path) as file, zipfile.ZipFile(file) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
        if not names:
            raise OnnxPruneError(f"{str(path)!r} has no arrays", fix="save it with numpy.savez(file, x=samples)")
        targets = [n for n in TARGETS if n in names and n not in inputs]
        samples = [n for n in names if n not in TARGETS or n in inputs]
        if inputs and set(inputs) <= set(names):
            samples = list(inputs)
        elif "x" in names and "x" not in inputs:
            samples = ["x"]
        if not samples:
            raise OnnxPruneError(
                f"{str(path)!r} has no array x (it has: {listed(names, 8)})",
                fix="name the samples x, or as the model's inputs",
            )
        arrays = {n: _member(path, file, archive, n) for n in [*samples, *targets[:1]]}
    unnamed = samples == ["x"] or (len(samples) == 1 and samples[0] not in inputs)
    x = arrays[samples[0]] if unnamed else {n: arrays[n] for n in samples}
    return arrays_by_name(x, arrays[targets[0]] if targets else None, str(path), expected)


def arrays_by_name(x: Any, y: Any, name: str, expected: Expected) -> Data:
    """Return data from arrays; of a model whose first axes are not all samples the arrays are complete feeds.

    Args:
        x: Samples, or arrays by input name: of complete feeds with one more axis in front, or of a single one.
        y: Targets, or None.
        name: Name in messages.
        expected: Form of the samples that the model takes.

    Raises:
        OnnxPruneError: See `checked_data`; complete feeds that differ in the number of axes.
    """
    if not (expected.whole and isinstance(x, Mapping) and set(x) == set(expected.ranks)):
        return checked_data(x, y, name)
    arrays = {key: as_array(v) for key, v in x.items()}
    more = {a.ndim - expected.ranks[key] for key, a in arrays.items() if a.ndim}
    if more == {0}:
        arrays = {key: a[None] for key, a in arrays.items()}
    elif more != {1}:
        shapes = ", ".join(f"{key}: {list(a.shape)}" for key, a in arrays.items())
        raise OnnxPruneError(
            f"the arrays of {name!r} ({shapes}) are no complete feeds, which this model needs because the first axes "
            "of its inputs are not all samples",
            fix="put the samples on a new first axis of every array; a single number is that of all samples",
        )
    data = checked_data(arrays, y, name)
    return replace(data, x=WholeArrays(data.x))


def _member(path: Path, file: BinaryIO, archive: zipfile.ZipFile, name: str) -> Array:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member)
        _check_size(f"{name}.npy in {str(path)!r}", shape, dtype, info.file_size)
        start = member.tell()
        if not np.prod(shape):
            return np.empty(shape, dtype)
        order: Any = "F" if fortran else "C"
        if info.compress_type == zipfile.ZIP_STORED:
            return np.memmap(file, dtype, "r", _offset(file, info) + start, shape, order)
        if info.file_size > _STREAMED:
            return _unpacked(member, shape, dtype, order, name)
    with archive.open(info) as member:
        return npy.read_array(member, allow_pickle=False)


def _offset(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    """Return where the data of a stored member starts: behind its local header."""
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != b"PK\x03\x04" or len(header) < 30:
        raise zipfile.BadZipFile("a local header is damaged")
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _unpacked(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], order: Any, name: str) -> Array:
    """Return a compressed member as a memory-mapped temporary file, which is removed with the array."""
    file = tempfile.TemporaryFile(prefix="onnxprune-")  # noqa: SIM115  # the mapping keeps it
    try:
        shutil.copyfileobj(member, file, _CHUNK)
        file.flush()
    except OSError as err:
        file.close()
        raise OnnxPruneError(
            f"cannot unpack the array {name!r} to a temporary file: {err.strerror or err}",
            fix="free disk space, or set TMPDIR to a folder with more",
        ) from err
    mapped = np.memmap(file, dtype, "r", 0, shape, order)
    file.close()
    return mapped


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return tuple(map(int, shape)), bool(fortran), dtype


def _check_size(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], available: int) -> None:
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if dtype.hasobject or size > MAX_ARRAY_BYTES:
        raise OnnxPruneError(f"{name} holds objects or is too large ({size} bytes)")
    if size > available:
        raise OnnxPruneError(f"{name} is shorter than its header says")


class _errors:
    """Context that raises errors of a numpy file as ones that name it."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, err: BaseException | None, trace: Any) -> None:
        if isinstance(err, OSError) and err.strerror:
            raise OnnxPruneError(f"cannot read {str(self.path)!r}: {err.strerror}") from err
        # zipfile, zlib, tokenize and numpy raise exceptions of many kinds for damaged files.
        if isinstance(err, Exception) and not isinstance(err, OnnxPruneError | MemoryError):
            raise OnnxPruneError(f"{str(self.path)!r} is not a valid {self.kind} file: {err}") from err


def named(x: Mapping[str, Any], inputs: tuple[str, ...] = ()) -> tuple[dict[str, Any], Any]:
    """Return the samples and the targets of a mapping of arrays."""
    target = next((n for n in TARGETS if n in x and n not in inputs), None)
    return {k: v for k, v in x.items() if k != target}, None if target is None else x[target]
