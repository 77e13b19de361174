"""Times in the output of a user's command: a JSON line, a pattern, or a number with its unit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxprune._utils.strict import Format
from onnxprune.errors import OnnxPruneError

UNITS = {
    "ms": 1e-3, "msec": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3,
    "us": 1e-6, "usec": 1e-6, "\N{MICRO SIGN}s": 1e-6, "\N{GREEK SMALL LETTER MU}s": 1e-6, "microsecond": 1e-6,
    "microseconds": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9,
    "s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0,
}  # fmt: skip
LARGEST = 1e5  # seconds
_UNIT = "|".join(sorted(map(re.escape, UNITS), key=len, reverse=True))
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TIMED = rf"({_NUMBER})\s*\(?({_UNIT})\b"
_LEADING = ("median", "latency", "mean", "average", "avg", "time")
_FIX = (
    'print one JSON line per model, such as {"ms": 1.25}, or give --runtime-option pattern=REGEX with one group, '
    "and --runtime-option unit=ms if no unit follows the number"
)


def check_pattern(pattern: str) -> re.Pattern[str]:
    """Return a compiled pattern.

    Raises:
        OnnxPruneError: It is no regular expression, or has no group for the number.
    """
    try:
        compiled = re.compile(pattern, re.M)
    except re.error as err:
        raise OnnxPruneError(f"the pattern {pattern!r} is no regular expression: {err}") from err
    if not compiled.groups:
        raise OnnxPruneError(f"the pattern {pattern!r} has no group for the number", fix=r"for example time: ([\d.]+)")
    return compiled


def check_unit(unit: str) -> str:
    """Return a unit of time.

    Raises:
        OnnxPruneError: It is none.
    """
    if unit not in UNITS:
        raise OnnxPruneError(f"unknown unit of time {unit!r}", fix="ms, us, ns or s")
    return unit


def read_times(
    text: str, models: Sequence[Path], pattern: re.Pattern[str] | None = None, unit: str | None = None
) -> list[list[float]]:
    """Return the seconds of each model; several numbers of one model are several runs.

    Args:
        text: Output of the command.
        models: Files of the models that the command was called with.
        pattern: Pattern of the numbers.
        unit: Unit of numbers without one.

    Raises:
        OnnxPruneError: There are no times, too many, or times that are none.
    """
    if not text.strip():
        raise OnnxPruneError("the command printed nothing", fix=_FIX)
    if pattern is not None:
        values = [_matched(m, text, unit) for m in pattern.finditer(text)]
        if not values:
            raise OnnxPruneError(f"the pattern {pattern.pattern!r} matches nothing in {_tail(text)}", fix=_FIX)
        return _shared([[v] for v in values], models)
    documents = list(_documents(text))
    if documents:
        return _from_documents(documents, models, unit)
    return _shared([[v] for v in _from_text(text)], models)


def _shared(values: list[list[float]], models: Sequence[Path]) -> list[list[float]]:
    """Return the values of each model: all are of the only one, or there is one for each."""
    if len(models) == 1:
        return [[v for some in values for v in some]]
    if len(values) != len(models):
        raise OnnxPruneError(
            f"the command printed {len(values)} times for {len(models)} models",
            fix='one time for each model, in their order, or JSON lines with the model: {"model": "FILE", "ms": 1.25}',
        )
    return values


def _seconds(number: object, unit: str | None, where: str) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise OnnxPruneError(f"{number!r} is no time", where=where, fix=_FIX)
    if unit is None:
        raise OnnxPruneError(f"the number {str(number)[:30]} has no unit", where=where, fix=_FIX)
    try:
        value = float(number) * UNITS[unit]
    except OverflowError:  # an integer of hundreds of digits
        value = math.inf
    if not math.isfinite(value) or not 0 < value <= LARGEST:
        raise OnnxPruneError(f"{str(number)[:30]} {unit} is no latency", where=where, fix="print positive times")
    return value


def _matched(match: re.Match[str], text: str, unit: str | None) -> float:
    named = match.re.groupindex
    place = "value" if "value" in named else next((i for i in range(1, match.re.groups + 1) if match[i]), 1)
    try:
        number = float(match[place])
    except (TypeError, ValueError):
        raise OnnxPruneError(f"the pattern matched {match[place]!r}, which is no number", fix=_FIX) from None
    found = match["unit"] if "unit" in named else None
    if found is not None and found not in UNITS:
        raise OnnxPruneError(f"the pattern matched the unit {found!r}", fix="ms, us, ns or s")
    if found is None and unit is None:
        behind = re.match(rf"\s*\(?({_UNIT})\b", text[match.end(place) :])
        found = behind[1] if behind else None
    return _seconds(number, found or unit, f"output {match[0].strip()!r}")


# --------------------------------------------------------------------------------------------------------- JSON lines


_LINE = Format("line of output", 2**20)


def _documents(text: str) -> Iterator[dict[str, Any]]:
    """Yield the lines that are JSON objects with a time in them; other lines may say anything."""
    for line in text.splitlines():
        if line.lstrip().startswith("{"):
            try:
                value = _LINE.parse(line, "output")
            except OnnxPruneError:  # a line of a log that resembles JSON
                continue
            if isinstance(value, dict) and _key(value) is not None:
                yield value


def _key(document: Mapping[str, Any]) -> str | None:
    """Return the key of the time in a document."""
    timed = [k for k in document if k in UNITS or k.rpartition("_")[2] in UNITS or k in _LEADING]
    ranked = sorted(timed, key=lambda k: (k not in UNITS, _rank(k)))
    return ranked[0] if ranked else None


def _rank(key: str) -> int:
    return next((i for i, word in enumerate(_LEADING) if word in key), len(_LEADING))


def _from_documents(documents: list[dict[str, Any]], models: Sequence[Path], unit: str | None) -> list[list[float]]:
    times: list[tuple[Any, list[float]]] = []
    for document in documents:
        key = _key(document)
        assert key is not None
        own = key if key in UNITS else key.rpartition("_")[2]
        entry = document[key]
        where = f"output {json.dumps(document)[:120]}"
        numbers = entry if isinstance(entry, list) else [entry]
        if not numbers:
            raise OnnxPruneError("a list of times is empty", where=where, fix=_FIX)
        times.append((document.get("model"), [_seconds(n, own if own in UNITS else unit, where) for n in numbers]))
    if all(isinstance(name, str) for name, _ in times):
        return _by_model([(str(name), values) for name, values in times], models)
    return _shared([values for _, values in times], models)


def _by_model(times: Iterable[tuple[str, list[float]]], models: Sequence[Path]) -> list[list[float]]:
    found: dict[str, list[float]] = {}
    for name, values in times:
        found.setdefault(Path(name).name, []).extend(values)
    missing = [m.name for m in models if m.name not in found]
    if missing and not (len(models) == 1 and len(found) == 1):
        raise OnnxPruneError(
            f"the command printed no time of {missing[0]}", fix='{"model": "FILE", "ms": 1.25} names the file it got'
        )
    return [found.get(m.name) or next(iter(found.values())) for m in models]


# --------------------------------------------------------------------------------------------------------- plain text


def _from_text(text: str) -> list[float]:
    """Return the times that plain text states: medians first, then means, then a single number with a unit."""
    for lines in (_lines(text, "GPU Compute Time"), _lines(text, r"^\W*(\[\w\]\W*)?Latency"), text):
        for word in ("median", "mean|average|avg"):
            found = re.findall(rf"\b(?:{word})\b[^\d\n+.-]*{_TIMED}", lines, re.I)
            if found:
                return [_seconds(float(n), u, f"output {n} {u}") for n, u in found]
    every = re.findall(rf"(?<![\w.]){_TIMED}", text)
    if len(every) == 1 or (every and len({*every}) == 1):
        return [_seconds(float(every[0][0]), every[0][1], f"output {every[0][0]} {every[0][1]}")]
    if every:
        shown = ", ".join(f"{n} {u}" for n, u in every[:4])
        raise OnnxPruneError(f"the command printed several times ({shown} ...)", fix=_FIX)
    bare = re.findall(_NUMBER, text)
    problem = f"a number without a unit, {bare[-1]}" if bare else "no time"
    raise OnnxPruneError(f"the command printed {problem}: {_tail(text)}", fix=_FIX)


def _lines(text: str, pattern: str) -> str:
    return "\n".join(line for line in text.splitlines() if re.search(pattern, line))


def _tail(text: str) -> str:
    """Return the end of an output as a readable literal."""
    lines = [line for line in text.splitlines() if line.strip()]
    end = lines[-1].strip() if lines else text
    return repr(end if len(end) <= 120 else f"{end[:120]} ...")
