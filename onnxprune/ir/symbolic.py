"""Integer expressions of dynamic dimensions: polynomials over dimensions and functions of them.

A constant is a plain `int`; everything else is an `Expr` in canonical form, so that equal polynomials compare equal.
Functions (floor division, modulo, minimum, comparison ...) are atoms, simplified only where that holds for every value
of the dimensions. A quantity without an expression is `opaque`: equal only to itself.

    >>> n, h = symbol("N"), symbol("H")
    >>> floor_divide(n * 6, 6) == n, modulo(n * 6, 3), maximum(n, 1) == n
    (True, 0, True)
    >>> floor_divide(h + 4, 2) == floor_divide(h, 2) + 2
    True
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any
from weakref import WeakValueDictionary

_MOST = 64  # terms of an expression; larger ones become opaque
_serial = itertools.count()
_atoms: WeakValueDictionary[tuple[object, ...], Atom] = WeakValueDictionary()


class Atom:
    """Unknown of a polynomial: a dimension, a function of expressions, or an opaque quantity. Instances are unique."""

    __slots__ = ("__weakref__", "args", "high", "kind", "low", "serial")

    def __init__(self, kind: str, args: tuple[Any, ...], low: int | None, high: int | None) -> None:
        self.kind, self.args, self.low, self.high = kind, args, low, high
        self.serial = next(_serial)


Monomial = tuple[Atom, ...]  # sorted by serial number, repeated for powers


class Expr:
    """Non-constant polynomial with integer coefficients.

    Attributes:
        terms: Product of atoms -> coefficient.
        low: Lower bound, None if unknown.
        high: Upper bound, None if unknown.
    """

    __slots__ = ("_hash", "high", "low", "terms")

    def __init__(self, terms: dict[Monomial, int]) -> None:
        self.terms = terms
        self._hash = hash(frozenset(terms.items()))
        self.low, self.high = _bounds(terms)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms)

    def __add__(self, other: Size) -> Size:
        if not isinstance(other, Expr):
            other = int(other)
        if other == 0:
            return self
        terms = dict(self.terms)
        for mono, n in _terms(other).items():
            terms[mono] = terms.get(mono, 0) + n
        return _make(terms)

    def __mul__(self, other: Size) -> Size:
        if not isinstance(other, Expr):
            k = int(other)
            return self if k == 1 else _make({mono: n * k for mono, n in self.terms.items()})
        terms: dict[Monomial, int] = {}
        for one, n in self.terms.items():
            for two, m in other.terms.items():
                mono = tuple(sorted(one + two, key=_by_serial)) if one and two else one or two
                terms[mono] = terms.get(mono, 0) + n * m
        return _make(terms)

    def __neg__(self) -> Size:
        return self * -1

    def __sub__(self, other: Size) -> Size:
        return self + -other

    def __rsub__(self, other: int) -> Size:
        return -self + other

    __radd__ = __add__
    __rmul__ = __mul__

    def __repr__(self) -> str:
        return " + ".join("*".join([str(n), *(_name(a) for a in mono)]) for mono, n in self.terms.items())


Size = int | Expr


def symbol(key: object, low: int = 1) -> Expr:
    """Return the dimension with this key, at least `low`."""
    return _of(_atom("symbol", (key,), low, None))


def opaque(low: int | None = None) -> Expr:
    """Return a new unknown, equal only to itself."""
    return _of(Atom("opaque", (), low, None))


def apply(name: str, *args: Size, low: int | None = None, high: int | None = None) -> Expr:
    """Return an uninterpreted function: equal to itself with equal arguments."""
    return _of(_atom(name, args, low, high))


def floor_divide(a: Size, b: Size) -> Size:
    """Return a / b, rounded down."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b else opaque()
    if never_zero(b):
        found = quotient(a, b)
        if found is not None:
            return found
    if isinstance(a, Expr) and isinstance(b, int) and b > 0:
        whole = {mono: n // b for mono, n in a.terms.items() if n // b}
        rest = _make({mono: n % b for mono, n in a.terms.items()})
        if whole:
            return _make(whole) + floor_divide(rest, b)
        low, high = bounds(rest)
        if low is not None and high is not None and low // b == high // b:
            return low // b
        inner = _only_atom(rest)
        if inner is not None and inner.kind == "floor" and isinstance(inner.args[1], int) and inner.args[1] > 0:
            return floor_divide(inner.args[0], inner.args[1] * b)
    low, high = bounds(a)
    least = low // b if low is not None and isinstance(b, int) and b > 0 else None
    if least is None and low is not None and low >= 0 and (bounds(b)[0] or 0) > 0:
        least = 0
    most = high // b if high is not None and isinstance(b, int) and b > 0 else None
    return apply("floor", a, b, low=least, high=most)


def divide(a: Size, b: Size) -> Size:
    """Return a / b, rounded towards zero, the integer division of ONNX."""
    if (bounds(a)[0] or 0) >= 0 and bounds(a)[0] is not None and (bounds(b)[0] or 0) > 0:
        return floor_divide(a, b)
    if isinstance(a, int) and isinstance(b, int):
        return (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1) if b else opaque()
    found = quotient(a, b) if never_zero(b) else None
    return apply("truncate", a, b) if found is None else found


def modulo(a: Size, b: Size) -> Size:
    """Return the remainder of `floor_divide`, with the sign of b."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b if b else opaque()
    if never_zero(b) and quotient(a, b) is not None:
        return 0
    if isinstance(b, int) and b > 0:
        rest = _make({mono: n % b for mono, n in _terms(a).items()})
        low, high = bounds(rest)
        if low is not None and high is not None and low >= 0 and high < b:
            return rest
        return apply("modulo", rest, b, low=0, high=b - 1)
    return apply("modulo", a, b, low=0 if (bounds(b)[0] or 0) > 0 else None)


def minimum(a: Size, b: Size) -> Size:
    """Return the smaller expression."""
    low, high = bounds(a - b)
    if (high is not None and high <= 0) or (low is not None and low >= 0):
        return a if high is not None and high <= 0 else b
    for one, other in ((a, b), (b, a)):
        atom = _only_atom(one)
        if atom is not None and atom.kind == "min" and other in atom.args:
            return one
    lows, highs = [bounds(x)[0] for x in (a, b)], [h for x in (a, b) if (h := bounds(x)[1]) is not None]
    least = None if None in lows else min(x for x in lows if x is not None)
    return apply("min", *_ordered(a, b), low=least, high=min(highs, default=None))


def maximum(a: Size, b: Size) -> Size:
    """Return the larger expression."""
    return -minimum(-a, -b)


def less(a: Size, b: Size) -> Size:
    """Return 1 if a < b, else 0."""
    low, high = bounds(b - a)
    if (low is not None and low > 0) or (high is not None and high <= 0):
        return int(low is not None and low > 0)
    return apply("positive", b - a, low=0, high=1)


def equal(a: Size, b: Size) -> Size:
    """Return 1 if a == b, else 0."""
    gap = a - b
    if isinstance(gap, int) or never_zero(gap):
        return int(gap == 0)
    return apply("zero", gap if _ordered(gap, -gap)[0] == gap else -gap, low=0, high=1)


def select(condition: Size, a: Size, b: Size) -> Size:
    """Return a if the condition is non-zero, else b."""
    if isinstance(condition, int) or a == b:
        return a if condition else b
    (low, high), (least, most) = bounds(a), bounds(b)
    low = None if low is None or least is None else min(low, least)
    return apply("select", condition, a, b, low=low, high=None if high is None or most is None else max(high, most))


def product(sizes: Iterable[Size | None]) -> Size | None:
    """Return the product of sizes; None if one is unknown."""
    out: Size = 1
    for n in sizes:
        if n is None:
            return None
        out = out * n
    return out


def quotient(a: Size, b: Size) -> Size | None:
    """Return q with a = q * b for all values of the unknowns, by polynomial division; None if there is none."""
    divisor = _terms(b)
    if not divisor:
        return None
    lead = max(divisor, key=_order)
    rest, out = dict(_terms(a)), dict[Monomial, int]()
    for _ in range(_MOST):
        if not rest:
            return _make(out)
        top = max(rest, key=_order)
        mono = _without(top, lead)
        if mono is None or rest[top] % divisor[lead]:
            return None
        out[mono] = n = rest[top] // divisor[lead]
        for other, m in divisor.items():
            key = tuple(sorted(other + mono, key=_by_serial))
            rest[key] = rest.get(key, 0) - n * m
            if not rest[key]:
                del rest[key]
    return None


def bounds(a: Size) -> tuple[int | None, int | None]:
    """Return the lower and the upper bound of an expression; None where unknown."""
    return (a.low, a.high) if isinstance(a, Expr) else (a, a)


def never_zero(a: Size) -> bool:
    """Return whether an expression is non-zero for all values of its unknowns."""
    low, high = bounds(a)
    return (low is not None and low > 0) or (high is not None and high < 0)


def evaluate(a: Size, known: dict[Atom, int | None]) -> int | None:
    """Return the value of an expression; None if one of its unknowns has no value.

    Args:
        a: Expression.
        known: Values of symbols and opaque atoms; values of functions are added.
    """
    if isinstance(a, int):
        return a
    total = 0
    for mono, n in a.terms.items():
        for atom in mono:
            value = _number(atom, known)
            if value is None:
                return None
            n *= value
        total += n
    return total


def atom_of(a: Expr) -> Atom:
    """Return the atom of a `symbol` or `opaque` expression."""
    ((atom,),) = a.terms
    return atom


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "floor": lambda a, b: a // b, "truncate": divide, "modulo": lambda a, b: a % b, "min": min,
    "broadcast": max, "positive": lambda a: int(a > 0), "zero": lambda a: int(a == 0),
    "select": lambda c, a, b: a if c else b,
}  # fmt: skip


def _number(atom: Atom, known: dict[Atom, int | None]) -> int | None:
    if atom not in known:
        function = _FUNCTIONS.get(atom.kind)
        args = [evaluate(a, known) for a in atom.args] if function is not None else [None]
        try:
            known[atom] = None if function is None or None in args else function(*args)
        except ZeroDivisionError:
            known[atom] = None
    return known[atom]


def _make(terms: dict[Monomial, int]) -> Size:
    terms = {mono: n for mono, n in terms.items() if n}
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Expr(terms) if len(terms) <= _MOST else opaque()


def _terms(a: Size) -> dict[Monomial, int]:
    return a.terms if isinstance(a, Expr) else {(): int(a)} if a else {}


def _atom(kind: str, args: tuple[Any, ...], low: int | None, high: int | None) -> Atom:
    key = (kind, low, high, *args)
    found = _atoms.get(key)
    return _atoms.setdefault(key, Atom(kind, args, low, high)) if found is None else found


def _of(atom: Atom) -> Expr:
    return Expr({(atom,): 1})


def _only_atom(a: Size) -> Atom | None:
    if isinstance(a, Expr) and len(a.terms) == 1:
        ((mono, n),) = a.terms.items()
        return mono[0] if n == 1 and len(mono) == 1 else None
    return None


def _bounds(terms: dict[Monomial, int]) -> tuple[int | None, int | None]:
    low: int | None = 0
    high: int | None = 0
    for mono, n in terms.items():
        least: int | None = prod(a.low or 0 for a in mono)
        most = prod(a.high or 0 for a in mono) if all(a.high is not None for a in mono) else None
        if any(a.low is None or a.low < 0 for a in mono):
            least, most = (mono[0].low, mono[0].high) if len(mono) == 1 else (None, None)
        if n < 0:
            least, most = most, least
        low = None if low is None or least is None else low + n * least
        high = None if high is None or most is None else high + n * most
    return low, high


def _by_serial(atom: Atom) -> int:
    return atom.serial


def _order(mono: Monomial) -> tuple[int, ...]:
    return (len(mono), *(-a.serial for a in mono))


def _ordered(a: Size, b: Size) -> tuple[Size, Size]:
    """Return both, ordered independently of the argument order."""
    return (a, b) if _rank(a) <= _rank(b) else (b, a)


def _rank(a: Size) -> list[tuple[tuple[int, ...], int]]:
    return sorted((_order(mono), n) for mono, n in _terms(a).items())


def _without(mono: Monomial, divisor: Monomial) -> Monomial | None:
    rest = list(mono)
    for atom in divisor:
        if atom not in rest:
            return None
        rest.remove(atom)
    return tuple(rest)


def _name(atom: Atom) -> str:
    if atom.kind == "symbol":
        return str(atom.args[0])
    return f"{atom.kind}({', '.join(map(str, atom.args))})" if atom.args else f"?{atom.serial}"
