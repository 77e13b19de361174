"""Readers of texts of the command line: lists of numbers, sizes, ranges, NAME=VALUE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


@dataclass(frozen=True)
class Text:
    """Reader of an option's text.

    Attributes:
        read: Function from the text to the value; raises ValueError for an invalid text.
        takes: Accepted texts in words, for messages.
        show: Function from a default to its text.
        multiple: The option is repeatable; `read` receives all its texts.
    """

    read: Callable[[Any], Any]
    takes: str
    show: Callable[[Any], str] = str
    multiple: bool = False


def _number_or(word: str, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda text: word if text == word else kind(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",")) if text else ()


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _size(text: str) -> tuple[int, ...]:
    if not text:
        return ()
    height, cross, width = text.partition("x")
    return int(height), int(width if cross else height)


def _ratios(text: str) -> tuple[float, ...]:
    parts = text.split(":")
    if len(parts) == 1:
        return tuple(float(p) for p in text.split(",") if p.strip())
    start, stop, step = map(float, parts)
    try:
        count = int((stop - start) / step + 1e-9) + 1
    except (ZeroDivisionError, OverflowError) as err:
        raise ValueError("an endless range") from err
    if not 0 < count <= 10_000:
        raise ValueError("an empty or endless range")
    return tuple(round(start + i * step, 10) for i in range(count))


def _shown_ratios(values: Sequence[float]) -> str:
    if len(values) > 2:
        text = f"{values[0]:g}:{values[-1]:g}:{round(values[1] - values[0], 10):g}"
        if _ratios(text) == tuple(values):
            return text
    return _listed(values)


def _bytes(text: str) -> int:
    number = text.strip().rstrip("BKMGTbkmgt")
    unit = text.strip()[len(number) :].upper()
    if unit not in _UNITS:
        raise ValueError("an unknown unit")
    try:
        value = int(float(number) * _UNITS[unit])
    except OverflowError as err:
        raise ValueError("not a size") from err
    if value < 0:
        raise ValueError("a negative size")
    return value


def _shown_bytes(value: int) -> str:
    unit = next(u for u in ("TB", "GB", "MB", "KB", "B") if value % _UNITS[u] == 0)
    return f"{value // _UNITS[unit]}{unit}"


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(text)
        out[name] = value
        for kind in (int, float):
            with suppress(ValueError):
                out[name] = kind(value)
                break
    return out


def _texts(texts: Sequence[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(text)
        out[name.strip()] = value
    return out


def _listed(values: Sequence[object]) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


WHOLE_OR_AUTO = Text(_number_or("auto", int), "a number or auto")
NUMBER_OR_AUTO = Text(_number_or("auto", float), "a number or auto")
NUMBERS = Text(_numbers, "numbers separated by commas", _listed)
NAMES = Text(_names, "names separated by commas", _listed)
SIZE = Text(_size, "HEIGHTxWIDTH", lambda size: "x".join(map(str, size)))
RATIO_RANGE = Text(_ratios, "FROM:TO:STEP or numbers separated by commas", _shown_ratios)
BYTES = Text(_bytes, "a size such as 500MB or 2GB", _shown_bytes)
PAIRS = Text(_pairs, "NAME=VALUE", multiple=True)
TEXTS = Text(_texts, "NAME=VALUE", multiple=True)
