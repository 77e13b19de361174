"""Seeded damage to files: bytes, protobuf messages, JSON, TOML, npz archives and checkpoints."""

from __future__ import annotations

import io
import json
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor

Mutation = Callable[[bytes, random.Random], bytes]
NUMBERS: tuple[int, ...] = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-45, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "\x1b[2J\x07",
    "a" * 5000,
    "../../x",
    "/dev/zero",
    "/etc/passwd",
    "x\ny",
    "\u202ex",
    ".",
    "\\",
    "é",
    "0",
    "{",
)
WEIRD: tuple[str, ...] = (
    "null", "[]", "{}", "true", "false", "0", "-1", "1", "1.5", "-0.0", "1e999", "NaN", "-Infinity", "1" * 5000,
    "-" + "9" * 400, "0." + "3" * 400, "1e308", '""', '"\\u0000"', '"\\ud800"', '"\\u001b[2J"', '"../x"', "[[[[]]]]",
    "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[1,2,3]", '["a"]', '{"a": 1, "a": 2}', '"x" ' * 2, "",
    "9223372036854775808", "[" + "0," * 4000 + "0]",
)  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- bytes


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flipped(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def replaced(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return b"\0"
    at = rng.randrange(len(data))
    size = rng.choice((1, 1, 2, 4, 8, 100))
    new = rng.choice((b"\0", b"\xff", b"\x80", b"\x1b", b"\x7f", rng.randbytes(1))) * rng.choice((1, size, 10 * size))
    return data[:at] + new + data[at + rng.choice((0, size)) :]


def spliced(data: bytes, rng: random.Random) -> bytes:
    one, two = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[one:two][:100_000] + data[at:]


BYTES: tuple[Mutation, ...] = (truncated, flipped, flipped, replaced, spliced)


# ----------------------------------------------------------------------------------------------------------- protobuf


def _messages(message: Any, depth: int = 0) -> list[Any]:
    found = [message]
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE and depth < 12:
            for item in value if field.is_repeated else (value,):
                found += _messages(item, depth + 1)
    return found


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.type
    if kind in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return rng.choice(FLOATS)
    if kind == FieldDescriptor.TYPE_STRING:
        return rng.choice(TEXTS)
    if kind == FieldDescriptor.TYPE_BYTES:
        return rng.choice((b"", b"\xff\xfe", b"x", rng.randbytes(rng.choice((1, 8, 400)))))
    if kind == FieldDescriptor.TYPE_ENUM:
        return rng.randrange(-1, 30)
    number = rng.choice((*NUMBERS, rng.randrange(-4, 40)))
    if kind in (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32):
        number = max(-(2**31), min(number, 2**31 - 1))
    return abs(number) if kind in (FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_UINT32) else number


def _repeated(message: Any, field: FieldDescriptor, rng: random.Random) -> None:
    values = getattr(message, field.name)
    at = rng.randrange(len(values)) if len(values) else 0
    how = rng.randrange(6)
    nested = field.type == FieldDescriptor.TYPE_MESSAGE
    if how == 0 and len(values):
        del values[at]
    elif how == 1:
        del values[:]
    elif how == 2 and len(values):
        values.append(values[at])
    elif how == 3 and len(values) > 1:
        other = rng.randrange(len(values))
        items = list(values)
        items[at], items[other] = items[other], items[at]
        copies = [type(v).FromString(v.SerializeToString()) for v in items] if nested else items
        del values[:]
        values.extend(copies)
    elif nested:
        values.add()
    elif how == 4 and len(values):
        values[at] = _scalar(field, rng)
    else:
        values.extend([_scalar(field, rng) for _ in range(rng.choice((1, 2, 9)))])


def message_field(data: bytes, rng: random.Random) -> bytes:
    """Change one field somewhere in a model."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        return flipped(data, rng)
    message = rng.choice(_messages(proto))
    fields = [f for f, _ in message.ListFields()] if rng.random() < 0.8 else list(message.DESCRIPTOR.fields)
    if not fields:
        return flipped(data, rng)
    field = rng.choice(fields)
    try:
        if field.is_repeated:
            _repeated(message, field, rng)
        elif rng.random() < 0.2:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            getattr(message, field.name).SetInParent()
        else:
            setattr(message, field.name, _scalar(field, rng))
        return proto.SerializeToString()
    except (ValueError, TypeError):
        return flipped(data, rng)


def attribute(data: bytes, rng: random.Random) -> bytes:
    """Change a number of an attribute, a dimension or an initializer."""
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        return flipped(data, rng)
    found = [m for m in _messages(proto) if m.DESCRIPTOR.name in ("AttributeProto", "Dimension", "TensorProto")]
    if not found:
        return flipped(data, rng)
    message = rng.choice(found)
    number = rng.choice((*NUMBERS, rng.randrange(-4, 40)))
    if message.DESCRIPTOR.name == "Dimension":
        message.dim_value = number
    elif message.DESCRIPTOR.name == "TensorProto":
        if message.data_type == 7 and message.raw_data:
            values = np.frombuffer(message.raw_data, np.int64).copy() if len(message.raw_data) % 8 == 0 else np.zeros(1)
            values[rng.randrange(len(values))] = number
            message.raw_data = values.tobytes()
        elif len(message.dims):
            message.dims[rng.randrange(len(message.dims))] = number
    elif len(message.ints):
        message.ints[rng.randrange(len(message.ints))] = number
    elif message.HasField("f"):
        message.f = rng.choice(FLOATS)
    elif message.HasField("s"):
        message.s = rng.choice(TEXTS).encode() if rng.random() < 0.7 else b"\xff\xfe"
    else:
        message.i = number
    return proto.SerializeToString()


def not_utf8(data: bytes, rng: random.Random) -> bytes:
    """Put bytes that are not UTF-8 in the place of a name, everywhere it occurs or once."""
    names = re.findall(rb"[A-Za-z_][A-Za-z0-9_.]{2,20}", data)
    if not names:
        return flipped(data, rng)
    name = rng.choice(names)
    new = rng.choice((b"\xff", b"\xc3", b"\x1b", b"\0")) + name[1:]
    return data.replace(name, new, rng.choice((1, -1)))


def wire(data: bytes, rng: random.Random) -> bytes:
    """Change the tag of a field: another number or wire type."""
    if len(data) < 2:
        return data
    out, at = bytearray(data), rng.randrange(min(len(data), 4000))
    out[at] = (out[at] & ~7) | rng.choice((0, 1, 2, 3, 4, 5, 6, 7)) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(out)


MODEL: tuple[Mutation, ...] = (message_field,) * 4 + (attribute,) * 5 + (not_utf8, wire, *BYTES)


# --------------------------------------------------------------------------------------------------------------- text


def json_value(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or rename a value of a JSON document, or of one line of a journal."""
    lines = data.split(b"\n") if data.count(b"\n{") and not data.startswith(b"{\n") else [data]
    at = rng.randrange(len(lines))
    try:
        document = json.loads(lines[at])
    except (ValueError, RecursionError):
        return flipped(data, rng)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value if isinstance(value, dict) else range(len(value)))[:200]:
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    if isinstance(document, dict | list):
        walk(document)
    if not places:
        lines[at] = rng.choice(WEIRD).encode()
        return b"\n".join(lines)
    parent, key = rng.choice(places)
    mark = "\u2603mark\u2603"
    how = rng.random()
    if how < 0.15:
        del parent[key]
    elif how < 0.25 and isinstance(parent, dict):
        parent[rng.choice((*TEXTS, key + "x"))] = parent.pop(key)
    elif how < 0.35 and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = mark
    text = json.dumps(document).replace(json.dumps(mark), rng.choice(WEIRD))
    lines[at] = text.encode(errors="surrogatepass")
    return b"\n".join(lines)


def toml_value(data: bytes, rng: random.Random) -> bytes:
    """Replace a value or a key of a TOML document."""
    more = ("a." * 200 + "b", "1979-05-27", "inf", "'x'", '"digits"', "nan")
    return _keyed(data, rng, r"(?m)^([\w.-]+) *= *(.+)$", more)


def yaml_value(data: bytes, rng: random.Random) -> bytes:
    """Replace a value or a key of a YAML document."""
    more = (
        "&a [*a]",
        "!!python/object:os.system x",
        "!!binary x",
        "? a",
        "1979-05-27",
        ".inf",
        "~",
        "<<: {a: 1}",
        "0x",
    )
    return _keyed(data, rng, r"(?m)^ *([\w.-]+|-) *:? +(.+)$", more)


def _keyed(data: bytes, rng: random.Random, pattern: str, more: tuple[str, ...]) -> bytes:
    text = data.decode(errors="replace")
    places = [m.span(rng.choice((1, 2))) for m in re.finditer(pattern, text)]
    if not places:
        return flipped(data, rng)
    start, stop = rng.choice(places)
    return (text[:start] + rng.choice((*WEIRD, *TEXTS, *more)) + text[stop:]).encode(errors="surrogatepass")


JSON: tuple[Mutation, ...] = (json_value,) * 6 + BYTES
TOML: tuple[Mutation, ...] = (toml_value,) * 6 + BYTES
YAML: tuple[Mutation, ...] = (yaml_value,) * 6 + BYTES


# ------------------------------------------------------------------------------------------------------------- arrays


def npz_member(data: bytes, rng: random.Random) -> bytes:
    """Change the header of an array, its name or its form in an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:
        return flipped(data, rng)
    if not members:
        return flipped(data, rng)
    name = rng.choice(list(members))
    body = members.pop(name)
    how = rng.randrange(4)
    if how == 0:
        body = npy_header(body, rng)
    elif how == 1:
        name = rng.choice((*TEXTS, "y.npy", "x", "x.npy", "y")) or "x"
    elif how == 2:
        array = rng.choice((
            np.zeros((0, 3)), np.array(1.0), np.array(["a"]), np.zeros((2, 3), complex), np.full((4, 1, 8, 8), np.nan),
            np.zeros((3, 1, 8, 8), "M8[s]"), np.zeros((4, 1, 8, 8), [("a", "f4")]), np.zeros((1,) * 30),
            np.arange(5) - 2**62,
        ))  # fmt: skip
        out = io.BytesIO()
        np.save(out, array)
        body = out.getvalue()
    else:
        body = rng.choice(BYTES)(body, rng)
    members[name] = body
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for key, value in members.items():
            archive.writestr(zipfile.ZipInfo(key.replace("\0", "_")), value)
    return out.getvalue()


def npy_header(data: bytes, rng: random.Random) -> bytes:
    """Change the shape, the type or the order in the header of an array."""
    shape = rng.choice((b"(4611686018427387904,)", b"(-1,)", b"()", b"(0,)", b"(9,9)", b"x", b"(" * 200, b"(1e9,)"))
    kind = rng.choice((b"'|O'", b"'<U9'", b"'<f99'", b"[('a','<f4')]", b"'|V0'"))
    order = rng.choice((b"True", b"None", b"2"))
    old, new = rng.choice((
        (rb"\([^)]*\)", shape), (rb"'descr': '[^']*'", b"'descr': " + kind), (rb"False|True", order),
    ))  # fmt: skip
    head, _, rest = data.partition(b"}")
    return re.sub(old, new.replace(b"\\", b""), head + b"}", count=1) + rest


ARRAYS: tuple[Mutation, ...] = (npz_member,) * 5 + BYTES
NPY: tuple[Mutation, ...] = (npy_header,) * 2 + BYTES


def checkpoint_value(data: bytes, rng: random.Random) -> bytes:
    """Replace a value in the dictionary of a checkpoint."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:
        return flipped(data, rng)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in list(value if isinstance(value, dict) else range(len(value)))[:100]:
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(state)
    parent, key = rng.choice(places)
    if rng.random() < 0.3:
        del parent[key]
    else:
        new = (None, 0, -1, 2**62, 10**400, 1e300, float("nan"), "", "x\x1b", [], {}, [None], {"a": 1}, True)
        parent[key] = rng.choice((*new, torch.zeros(0)))
    out = io.BytesIO()
    torch.save(state, out)
    return out.getvalue()


CHECKPOINT: tuple[Mutation, ...] = (checkpoint_value,) * 8 + BYTES
