"""Sizes of a model's dynamic inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from onnxprune.options._declare import MODEL, OptionError, Options, option
from onnxprune.options._text import Text

OPEN = "?"
"""Leaves a dimension to the analysis."""
Shape = str | Sequence[int | str | None]
"""Sizes of an input: "1x3x48x320", or (1, 3, 48, 320); "?" or None leaves a dimension open."""
_MOST = 2**31 - 1


def shape_of(given: Shape) -> tuple[int | None, ...]:
    """Return a shape as numbers, None where it is open.

    Raises:
        ValueError: A size that is no whole number from 1 on.
    """
    parts = given.split("x") if isinstance(given, str) else given
    if not isinstance(parts, list | tuple):
        raise ValueError(given)
    return tuple(_size_of(part) for part in parts)


def _size_of(part: Any) -> int | None:
    if part is None or (isinstance(part, str) and part.strip() == OPEN):
        return None
    if isinstance(part, str) and part.strip().isascii() and part.strip().isdecimal():
        part = int(part)
    if isinstance(part, bool) or not isinstance(part, Integral) or not 1 <= int(part) <= _MOST:
        raise ValueError(part)
    return int(part)


def _shapes(texts: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    out: dict[str, tuple[int | None, ...]] = {}
    for text in texts:
        name, equals, shape = text.rpartition("=")
        try:
            found = shape_of(shape)
        except ValueError as err:
            raise ValueError(text) from err
        if not equals or not name or name in out:
            raise ValueError(text)
        out[name] = found
    return out


SHAPES = Text(_shapes, "INPUT=SIZExSIZE..., each input once, such as x=1x3x48x320 or x=?x3x48x?", multiple=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class InputShapes(Options):
    """Sizes that a model is analysed and run at where its inputs leave them open."""

    shapes: Mapping[str, Any] = option(
        {}, flag="--shape", heading=MODEL, advanced=True, metavar="INPUT=SIZES", text=SHAPES, title="shape",
        help="Size of a dynamic input for analysis and made-up inputs: x=1x3x48x320, ? for any (repeatable). The "
        "result takes every size that the original takes.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        found = {}
        for name, given in self.shapes.items():
            try:
                found[name] = shape_of(given)
            except ValueError as err:
                says = f"of {name!r} must be whole numbers from 1 on, ? for any, such as 1x3x48x?; got {given!r}"
                raise OptionError("shapes", says, title="shape") from err
        object.__setattr__(self, "shapes", found)
