"""Search of input sizes that a model's nodes admit, from the conditions that a few witnesses violated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations, product

from onnxprune.analysis.shapes._size_constraints import BROADCAST, Condition, symbols_of
from onnxprune.ir.symbolic import Atom

Key = tuple[str, int]
"""Input name and axis."""

_GRID = 40  # candidates of each of two dimensions that are varied together
_NEAR = {
    "batch": (1, 2, 4, 8, 16),
    "length": (64, 128, 256, 512, 1024, 77, 197, 50, 2048, 4096, 8000, 16000, 32000, 1536, 48000),
    "side": (224, 448, 256, 512, 320, 640, 384, 48, 32, 64, 96, 128, 160, 192, 288, 416, 608, 672, 896, 1024, 299),
}
"""Usual sizes, tried first."""
_LARGEST = {"batch": 64, "length": 4096, "side": 1024}


def kind_of(axis: int, rank: int) -> str:
    """Return the kind of a dynamic dimension: "batch", "side" of an image, or "length"."""
    return "batch" if axis == 0 else "side" if rank > 3 else "length"


def search(
    conditions: Sequence[Condition], numbers: Mapping[Atom, int], kinds: Mapping[Atom, str], free: frozenset[Atom]
) -> dict[Atom, int] | None:
    """Return numbers near the present ones that meet all conditions; None if none were found.

    One dimension is varied, then each by the conditions on it alone, then all together, then two; batches last.

    Args:
        conditions: Conditions on the dimensions.
        numbers: Present number of every dimension.
        kinds: Kind of every dimension.
        free: Dimensions that may be varied; the others were given.
    """
    involved = {atom for c in conditions for side in (c.a, c.b) for atom in symbols_of(side)} & free
    varied = sorted(involved, key=lambda a: (kinds[a] == "batch", a.serial))
    # A size of 1 hides how an axis meets others, so sizes that broadcast should be equal.
    for strict in (True, False) if any(c.kind == BROADCAST for c in conditions) else (False,):
        changes = _changes(varied, kinds)
        for change in chain(_separate(conditions, varied, numbers, kinds, strict), changes):
            tried = {**numbers, **change}
            known: dict[Atom, int | None] = {**tried}
            if all(c.holds(known, strict=strict) is not False for c in conditions):
                return tried
    return None


def _separate(
    conditions: Sequence[Condition], varied: Sequence[Atom], numbers: Mapping[Atom, int], kinds: Mapping[Atom, str],
    strict: bool,
) -> Iterator[dict[Atom, int]]:  # fmt: skip
    """Yield a number for every dimension that has conditions of its own, met one dimension after the other."""
    change: dict[Atom, int] = {}
    for atom in varied:
        own = [c for c in conditions if (symbols_of(c.a) | symbols_of(c.b)) & set(varied) == {atom}]
        for n in _candidates(kinds[atom]) if own else ():
            known: dict[Atom, int | None] = {**numbers, atom: n}
            if all(c.holds(known, strict=strict) is not False for c in own):
                change[atom] = n
                break
    yield change


def _changes(varied: Sequence[Atom], kinds: Mapping[Atom, str]) -> Iterator[dict[Atom, int]]:
    for atom in varied:
        yield from ({atom: n} for n in _candidates(kinds[atom]))
    for kind in ("side", "length", "batch"):
        own = [a for a in varied if kinds[a] == kind]
        if len(own) > 1:
            yield from (dict.fromkeys(own, n) for n in _candidates(kind))
    for one, two in combinations(varied, 2):
        some = [list(_candidates(kinds[a]))[:_GRID] for a in (one, two)]
        yield from ({one: n, two: m} for n, m in product(*some))
    if len(varied) > 2:
        yield from (dict.fromkeys(varied, n) for n in _candidates("length"))


def _candidates(kind: str) -> Iterator[int]:
    yield from _NEAR[kind]
    yield from range(1, _LARGEST[kind] + 1)
