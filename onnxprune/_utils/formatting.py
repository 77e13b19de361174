"""Numbers as text: counts, sizes, seconds and shares."""

from __future__ import annotations


def count(value: float) -> str:
    """1.81 G, 25.6 M, 64."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def size(value: float) -> str:
    """Bytes as 97.8 MB (10^6)."""
    return count(value) + "B" if value >= 1000 else f"{value:g} B"


def seconds(value: float) -> str:
    """A duration as 1.23 ms."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def percent(value: float) -> str:
    """A share as 50.0 %."""
    return f"{100 * value:.1f} %"
