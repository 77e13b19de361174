"""Numbers as text: counts, sizes, seconds and shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def count(value: float) -> str:
    """Return a number as text: 1.81 G, 25.6 M, 64."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def size(value: float) -> str:
    """Return bytes as text: 97.8 MB (10^6)."""
    return count(value) + "B" if value >= 1000 else f"{value:g} B"


def seconds(value: float) -> str:
    """Return a duration as text: 1.23 ms."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def percent(value: float) -> str:
    """Return a share as text: 50.0 %."""
    return f"{100 * value:.1f} %"


def decimal(value: float) -> str:
    """Return a number with four decimals, or with three digits if those would show nothing or too much."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3g}"


def short_repr(value: DataclassInstance) -> str:
    """A dataclass by the fields that differ from their defaults: `Target(macs=0.5)`."""
    shown = []
    for f in dataclasses.fields(value):
        now = getattr(value, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if f.repr and (default is dataclasses.MISSING or now != default):
            shown.append(f"{f.name}={shortened(repr(now), 200)}")
    return f"{type(value).__name__}({', '.join(shown)})"


def shortened(text: str, most: int) -> str:
    """Text of at most so many characters; what is left out is marked."""
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names, separated by commas, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(n, 60) for n in names[:most]) + more


def counted(number: int, what: str) -> str:
    """A count with its noun: 1 group, 2 groups."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
