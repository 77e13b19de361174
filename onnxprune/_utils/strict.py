"""The one reader of JSON and TOML: bytes to checked plain data, and on to a dataclass.

A document is refused for:

1. its size, which is checked before anything is read;
2. text that is not UTF-8, JSON or TOML;
3. a key that is given twice, anywhere;
4. more than `MAX_DEPTH` levels, a number of more than `MAX_DIGITS` digits, NaN and infinity;
5. another schema, an unknown key (with the nearest known one), a missing key, a value of another type or out of bounds.

An error names the file, the place in the document and a way out. msgspec and cattrs would replace about a hundred lines
of item 5 (`fields`), but neither reports a key that is given twice or suggests a near one, and both word their errors
for programmers: every one would be caught and worded again here.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from onnxprune._utils.fields import Keys, Reader, Refused, place, shown
from onnxprune._utils.files.input_files import TooLarge, read_bytes
from onnxprune.errors import OnnxPruneError

MAX_DEPTH = 64
MAX_DIGITS = 64

T = TypeVar("T")

# tomllib's memory grows with the square of a dotted key's length: 100,000 parts need more than 10 GB.
_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}\.[ \t]*+){{{MAX_DEPTH}}}")
_LARGEST = 10**MAX_DIGITS


@dataclass(frozen=True)
class Format:
    """Kind of document.

    Attributes:
        kind: Name in messages: "plan" gives "not a valid plan".
        max_bytes: Largest size that is read.
        schema: Required value of the key "schema"; None: the documents have no such key.
        fix: Way out that errors suggest where they have no better one.
        syntax: "json" or "toml".
        extra: Ignore unknown keys: the documents are written by other programs.
    """

    kind: str
    max_bytes: int
    schema: int | None = None
    fix: str | None = None
    syntax: Literal["json", "toml"] = "json"
    extra: bool = False

    def error(self, what: str, where: str, keys: Keys = (), fix: str | None = None) -> OnnxPruneError:
        """Return the error for a document that breaks a rule.

        Args:
            what: The broken rule, as a sentence without a full stop.
            where: File, or another name of the document.
            keys: Place in the document.
            fix: Way out, instead of the format's own.
        """
        article = "" if self.kind.endswith("s") else "a "
        return OnnxPruneError(f"not {article}valid {self.kind}: {what}", where=place(where, keys), fix=fix or self.fix)

    def load(self, path: Path) -> Any:
        """Read a file as plain data.

        Raises:
            OnnxPruneError: It cannot be read, or breaks one of the rules 1 to 4.
        """
        return self.parse(self.load_bytes(path), str(path))

    def load_bytes(self, path: Path) -> bytes:
        """Read a file that is not too large.

        Raises:
            OnnxPruneError: It cannot be read, or is too large.
        """
        try:
            return read_bytes(path, self.max_bytes)
        except TooLarge as err:
            raise self.error(str(err.strerror), str(path)) from err
        except OSError as err:
            raise OnnxPruneError(f"cannot read the {self.kind} {str(path)!r}: {err.strerror or err}") from err

    def load_text(self, path: Path) -> str:
        """Read a file as text with newlines of one character.

        Raises:
            OnnxPruneError: It cannot be read, is too large, or is not UTF-8.
        """
        try:
            text = _decoded(self.load_bytes(path))
        except Refused as err:
            raise self.error(err.what, str(path)) from err.__cause__
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def parse(self, text: str | bytes, where: str) -> Any:
        """Return a text as plain data: dict, list, str, int, float, bool and None (TOML: dates and times as well).

        Args:
            text: The document; bytes are UTF-8.
            where: File, or another name of the document.

        Raises:
            OnnxPruneError: It breaks one of the rules 2 to 4.
        """
        try:
            return _parsed(text, self.syntax)
        except Refused as err:
            raise self.error(err.what, where, err.keys, err.fix) from err.__cause__

    def read(self, cls: type[T], path: Path) -> T:
        """Read a file that holds every field of a dataclass, and its schema.

        Raises:
            OnnxPruneError: It cannot be read, or breaks a rule.
        """
        return self.fields(cls, self.load(path), str(path))

    def fields(self, cls: type[T], data: Any, where: str, keys: Keys = (), *, complete: bool = True) -> T:
        """Return plain data as a dataclass.

        Args:
            cls: Dataclass; a field whose type is a dataclass is a table of its own.
            data: Plain data, with its schema where it is the whole document.
            where: File, or another name of the document.
            keys: Place of the data in the document.
            complete: Whether fields with a default must be there as well.

        Raises:
            OnnxPruneError: The data breaks a rule.
        """
        try:
            if self.schema is not None and not keys:
                data = self._without_schema(data)
            table = "an object" if self.syntax == "json" else "a table"
            return Reader(complete=complete, table=table, extra=self.extra).read(cls, data, keys)
        except Refused as err:
            raise self.error(err.what, where, err.keys, err.fix) from err.__cause__

    def _without_schema(self, data: Any) -> Any:
        if type(data) is not dict:
            return data
        found = data.get("schema")
        if type(found) is not int or found != self.schema:
            raise Refused(f"schema {shown(found)}; this version reads {self.schema}")
        return {key: value for key, value in data.items() if key != "schema"}


class _Marker:
    """A value that the parser must let pass, and that the check refuses with its place."""

    def __init__(self, what: str) -> None:
        self.what = what


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise Refused(f"not UTF-8 text (byte {err.start})") from err


def _parsed(text: str | bytes, syntax: str) -> Any:
    if isinstance(text, bytes):
        text = _decoded(text)
    name = "not JSON" if syntax == "json" else "not valid TOML"
    try:
        if syntax == "json":
            data = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        elif found := _DEEP_KEY.search(text):
            raise Refused(f"line {text.count(chr(10), 0, found.start()) + 1}: a key of more than {MAX_DEPTH} parts")
        else:
            data = tomllib.loads(text, parse_float=_float)
    except RecursionError as err:
        raise Refused(f"{name} (nested deeper than {MAX_DEPTH} levels)") from err
    except ValueError as err:  # both parsers' errors, and whole numbers of thousands of digits
        raise Refused(f"{name} ({err})") from err
    _check(data, ())
    return data


def _object(pairs: list[tuple[str, Any]]) -> Any:
    table = dict(pairs)
    if len(table) == len(pairs):
        return table
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            break
        seen.add(key)
    return _Marker(f"the key {shown(key)} is given twice")


def _constant(name: str) -> Any:
    return _Marker(f"{name} is not JSON")


def _float(text: str) -> Any:
    if len(text) > MAX_DIGITS:
        return _Marker(f"a number of more than {MAX_DIGITS} digits")
    value = float(text)
    return value if abs(value) < float("inf") else _Marker(f"{text} is not a finite number")


def _check(value: Any, keys: Keys) -> None:
    """Refuse what the parsers let pass: markers, deep nesting, long whole numbers.

    Escaped lone surrogates are allowed: Python uses them for file names that are not UTF-8.
    """
    kind = type(value)
    if kind is int:
        if not -_LARGEST < value < _LARGEST:
            raise Refused(f"a number of more than {MAX_DIGITS} digits", keys)
    elif kind is _Marker:
        raise Refused(value.what, keys)
    elif kind is dict or kind is list:
        if len(keys) >= MAX_DEPTH:
            raise Refused(f"nested deeper than {MAX_DEPTH} levels", keys[:3])
        for key, item in value.items() if kind is dict else enumerate(value):
            number = type(item)
            if number is not float and not (number is int and -_LARGEST < item < _LARGEST):
                _check(item, (*keys, key))
