"""Protobuf wire format of ONNX files, as far as weights need it.

Weights are most of a model file, and parsing or writing it as one protobuf message copies each of them two or three
times. Here the file is memory-mapped: large `raw_data` fields of initializers become read-only arrays over the
mapping, and only the rest is parsed by protobuf. Writing streams the arrays after their headers. The resulting bytes
are a standard ONNX file.

Field numbers: onnx.proto3 of the ONNX specification; encoding: the Protocol Buffers encoding guide.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import onnx

from onnxprune._utils.files import input_files
from onnxprune.ir._reading.text_check import check_text

MODEL_GRAPH = 7  # ModelProto.graph
GRAPH_INITIALIZER = 5  # GraphProto.initializer
TENSOR_RAW_DATA = 9  # TensorProto.raw_data
TWO_GIB = 2**31 - 1  # protobuf's limit for one message
KEEP_INLINE = 256  # bytes; smaller tensors are not worth a mapping


class WireError(ValueError):
    """The bytes are not a protobuf message of the expected kind."""


@dataclass(frozen=True)
class RawData:
    """Position of one initializer's raw data in the file: byte offset and length."""

    offset: int
    length: int


def _varint(buf: mmap.mmap, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if pos >= end or shift > 63:
            raise WireError("truncated or malformed varint")
        byte = buf[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7


def _fields(buf: mmap.mmap, pos: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (field number, wire type, start of the field, start of its payload, end) of each field of a message."""
    while pos < end:
        start = pos
        tag, pos = _varint(buf, pos, end)
        number, wire = tag >> 3, tag & 7
        if wire == 2:
            length, pos = _varint(buf, pos, end)
            stop = pos + length
        elif wire == 0:
            stop = _varint(buf, pos, end)[1]
        elif wire == 1:
            stop = pos + 8
        elif wire == 5:
            stop = pos + 4
        else:
            raise WireError(f"wire type {wire} is not used by ONNX")
        if number == 0 or stop > end:
            raise WireError("truncated message")
        yield number, wire, start, pos, stop
        pos = stop


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _delimited(number: int, length: int) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(length)


def mapped(path: Path) -> mmap.mmap:
    """Return the memory-mapped bytes of a file.

    Raises:
        WireError: The file is empty.
        OSError: The file cannot be read.
    """
    try:
        return input_files.mapped(path)
    except ValueError as err:  # an empty file cannot be mapped
        raise WireError("the file is empty") from err


def read(path: Path) -> tuple[onnx.ModelProto, dict[int, RawData], mmap.mmap]:
    """Parse a model file without its large weights.

    Returns:
        The ModelProto, whose large initializers have no `raw_data`; the position of their data, by index in
        `graph.initializer`; and the mapping of the file, which must outlive the arrays.

    Raises:
        WireError: The file is not a protobuf message, or is truncated.
        OnnxPruneError: A text is not UTF-8.
        OSError: The file cannot be read.
    """
    buf = mapped(path)
    raw: dict[int, RawData] = {}
    skeleton: list[bytes] = []
    index = 0
    for number, wire, start, payload, stop in _fields(buf, 0, len(buf)):
        if number != MODEL_GRAPH or wire != 2:
            skeleton.append(buf[start:stop])
            continue
        parts: list[bytes] = []
        kept = payload  # first byte of the graph not yet in parts
        for num, inner_wire, inner_start, tensor, tensor_end in _fields(buf, payload, stop):
            if num != GRAPH_INITIALIZER or inner_wire != 2:
                continue
            if tensor_end - tensor > KEEP_INLINE:
                pieces, found = _without_raw_data(buf, tensor, tensor_end)
                if found is not None:
                    raw[index] = found
                    parts += [buf[kept:inner_start], _delimited(GRAPH_INITIALIZER, sum(map(len, pieces))), *pieces]
                    kept = tensor_end
            index += 1
        parts.append(buf[kept:stop])
        skeleton += [_delimited(MODEL_GRAPH, sum(map(len, parts))), *parts]
    proto = onnx.ModelProto()
    data = b"".join(skeleton)
    try:
        proto.ParseFromString(data)
    except Exception as err:  # DecodeError of protobuf has no stable import path
        raise WireError(str(err)) from err
    check_text(proto, data)
    release(np.frombuffer(buf, np.uint8))
    return proto, raw, buf


def _without_raw_data(buf: mmap.mmap, pos: int, end: int) -> tuple[list[bytes], RawData | None]:
    pieces: list[bytes] = []
    found: RawData | None = None
    kept = pos
    for number, wire, start, payload, stop in _fields(buf, pos, end):
        if number == TENSOR_RAW_DATA and wire == 2 and stop - payload >= KEEP_INLINE:
            pieces.append(buf[kept:start])
            found = RawData(payload, stop - payload)  # the last field counts, as in protobuf
            kept = stop
    pieces.append(buf[kept:end])
    return pieces, found


def size(proto: onnx.ModelProto, arrays: Mapping[str, npt.NDArray[np.generic]]) -> int:
    """Return an upper bound of the bytes that `write` produces."""
    return int(proto.ByteSize() + sum(a.nbytes + 32 for a in arrays.values()))


def write(file: BinaryIO, proto: onnx.ModelProto, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Write a model whose large initializers are in `arrays`.

    Args:
        file: File opened for binary writing.
        proto: Model; `graph.initializer` holds every tensor, those named in `arrays` without data.
        arrays: Name -> values, little-endian, C order.
    """
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    del shell.graph.initializer[:]
    body = shell.graph.SerializeToString()
    shell.ClearField("graph")
    heads: list[tuple[bytes, npt.NDArray[np.generic] | None]] = []
    total = len(body)
    for tensor in proto.graph.initializer:
        head = tensor.SerializeToString()
        data = arrays.get(tensor.name)
        if data is not None:
            head += _delimited(TENSOR_RAW_DATA, data.nbytes)
        length = len(head) + (0 if data is None else data.nbytes)
        heads.append((_delimited(GRAPH_INITIALIZER, length) + head, data))
        total += len(heads[-1][0]) + (0 if data is None else data.nbytes)
    file.write(shell.SerializeToString())
    file.write(_delimited(MODEL_GRAPH, total))
    file.write(body)
    for head, data in heads:
        file.write(head)
        if data is not None:
            write_array(file, data)


def write_array(file: BinaryIO, data: npt.NDArray[np.generic]) -> None:
    """Write the bytes of an array and release its file pages."""
    file.write(payload(data))
    release(data)


def payload(data: npt.NDArray[np.generic]) -> memoryview:
    """Return the bytes of an array, not copied if C-contiguous; bfloat16 has no buffer interface of its own."""
    return np.ascontiguousarray(data).reshape(-1).view(np.uint8).data


# ------------------------------------------------------------------------------------------------------ mapped arrays


def release(array: npt.NDArray[np.generic]) -> None:
    """Release the memory pages of the mapped file behind an array; they are read again on access.

    Otherwise every weight that was accessed counts as memory of this process. The whole mapping is released, because
    the system maps pages around an access as well. Arrays that are not mapped are unchanged.
    """
    _advise(array, "MADV_DONTNEED")


@contextlib.contextmanager
def scattered(array: npt.NDArray[np.generic]) -> Iterator[None]:
    """Return a context for random access to a mapped array: no read-ahead, pages released at the end."""
    _advise(array, "MADV_RANDOM")
    try:
        yield
    finally:
        _advise(array, "MADV_NORMAL")
        release(array)


def _advise(array: npt.NDArray[np.generic], advice: str) -> None:
    option = getattr(mmap, advice, None)  # missing on some systems
    base: object = array
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    if option is not None and base is not None:
        base.madvise(option)
