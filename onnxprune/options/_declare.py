"""Declaration and check of one option: its type, default, bounds, help text and spelling, in one dataclass field."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from math import isfinite
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from onnxprune._utils.output.formatting import short_repr
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.options._text import Text

MODEL, SELECTION, BUDGET, DATA = "Model", "Selection", "Budget", "Data"
TRAINING, TEACHER, LATENCY, RUNTIME, OUTPUT = "Training", "Teacher", "Latency", "Runtime", "Output"
HEADINGS = (MODEL, SELECTION, BUDGET, DATA, TRAINING, TEACHER, LATENCY, RUNTIME, OUTPUT)
"""Headings of the help, in order. Advanced options follow under a heading of their own."""

_KEY = "onnxprune.option"
_KINDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", Mapping: "a table",
    tuple: "a tuple", Sequence: "a tuple",
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """Declaration of an option besides its type and default.

    Attributes:
        help: One or two sentences for the command line.
        heading: One of `HEADINGS`.
        advanced: List the option under "Advanced" in the help.
        flags: Spellings on the command line, with a boolean's "--on/--off"; default: the field's name.
        old: Earlier spellings, accepted with a note.
        metavar: Name of the value in the help.
        shown: Default in the help, where the value itself is not readable.
        text: Reader of the command line's text, for values other than a plain number, name or path.
        choices: Allowed names.
        ge, gt, le, lt: Bounds of a number, or of every number of a tuple.
        usage: Treat a value out of bounds on the command line as wrong usage (exit status 2), not as an error (1).
        title: Name in messages; default: the field's name with spaces.
    """

    help: str
    heading: str
    advanced: bool = False
    flags: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    metavar: str | None = None
    shown: str | None = None
    text: Text | None = None
    choices: tuple[str, ...] = ()
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    usage: bool = False
    title: str = ""

    @property
    def bounds(self) -> str:
        """Bounds in words: "in [0, 1)", "at least 1", "above 0"; "" for none."""
        low = self.ge if self.ge is not None else self.gt
        high = self.le if self.le is not None else self.lt
        if low is not None and high is not None:
            left, right = "(" if self.ge is None else "[", ")" if self.le is None else "]"
            return f"in {left}{low:g}, {high:g}{right}"
        if low is not None:
            return f"at least {low:g}" if self.ge is not None else f"above {low:g}"
        if high is not None:
            return f"at most {high:g}" if self.le is not None else f"below {high:g}"
        return ""

    @property
    def share(self) -> bool:
        """True for a number between 0 and 1."""
        low, high = (self.ge if self.ge is not None else self.gt), (self.le if self.le is not None else self.lt)
        return low == 0 and high == 1

    def within(self, value: float) -> bool:
        """Return True if a number is finite and within the bounds."""
        return (
            isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


class OptionError(OnnxPruneError):
    """Value that an option does not accept.

    Args:
        option: Name of the field.
        says: Rest of the sentence after the option's name ("must be in [0, 1); got 2").
        title: Name of the option in the sentence.
        fix: Advice for the user.
    """

    def __init__(self, option: str, says: str, *, title: str = "", fix: str | None = None) -> None:
        super().__init__(f"{title or option.replace('_', ' ')} {says}", fix=fix)
        self.option = option
        self.says = says

    def labelled(self, label: str) -> OnnxPruneError:
        """Return the same error under another name of the option, such as its flag."""
        return OnnxPruneError(f"{label} {self.says}", fix=self.fix)


class ChoiceError(OptionError):
    """Name that is not among an option's choices; the message has the nearest ones."""

    def __init__(self, option: str, value: Any, choices: Sequence[str], *, title: str = "") -> None:
        err = unknown(title or option.replace("_", " "), str(value), choices)
        super().__init__(option, err.what, fix=err.fix)
        self.what = err.what
        self.args = (err.what,)

    def labelled(self, label: str) -> OnnxPruneError:
        return OnnxPruneError(self.what, where=label, fix=self.fix)


@dataclass(frozen=True)
class Declared:
    """Option of a dataclass.

    Attributes:
        name: Name of the field.
        hint: Type of the field.
        default: Default value; `dataclasses.MISSING` for a required option.
        spec: Rest of the declaration.
    """

    name: str
    hint: Any
    default: Any
    spec: Spec

    @property
    def required(self) -> bool:
        """True if there is no default."""
        return self.default is MISSING

    @property
    def flags(self) -> tuple[str, ...]:
        """Spellings on the command line."""
        return self.spec.flags or (f"--{self.name.replace('_', '-')}",)

    @property
    def shown(self) -> str:
        """Default as shown in the help; "" for none."""
        if self.spec.shown is not None:
            return self.spec.shown
        if self.required or self.default is None or isinstance(self.default, bool):
            return ""
        if self.default in ("", (), {}):
            return ""
        if self.spec.text is not None:
            return self.spec.text.show(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def option(
    default: Any = MISSING,
    *,
    help: str,
    heading: str,
    advanced: bool = False,
    flag: str | Sequence[str] = (),
    old: Sequence[str] = (),
    metavar: str | None = None,
    shown: str | None = None,
    text: Text | None = None,
    choices: Sequence[str] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    usage: bool = False,
    title: str = "",
) -> Any:
    """Declare an option as a dataclass field; see `Spec` for the arguments.

    Args:
        default: Default value; an empty mapping is created anew for each instance. The option is required without it.
    """
    spec = Spec(
        help, heading, advanced, (flag,) if isinstance(flag, str) else tuple(flag), tuple(old), metavar, shown, text,
        tuple(choices), ge, gt, le, lt, usage, title,
    )  # fmt: skip
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={_KEY: spec})
    return field(default=default, metadata={_KEY: spec})


class Options:
    """Base of the option dataclasses; values are checked on creation.

    Raises:
        OptionError: a value of another type, out of bounds, or none of the choices.
    """

    def __post_init__(self) -> None:
        check(self)

    def __repr__(self) -> str:
        values: Any = self  # subclasses are dataclasses
        return short_repr(values)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def declared(cls: type[Any]) -> Iterator[Declared]:
    """Yield the options of a dataclass, in order."""
    key: Any = cls
    for f in fields(cls):
        if _KEY in f.metadata:
            yield Declared(f.name, _hints(key)[f.name], _default(f), f.metadata[_KEY])


def check(options: Any) -> None:
    """Check all values of an options dataclass; convert numpy numbers to Python's.

    Raises:
        OptionError: a value of another type, out of bounds, or none of the choices.
    """
    cls: Any = type(options)
    for d in declared(cls):
        value = getattr(options, d.name)
        _check(d, value)
        plain = _plain(value)
        if plain is not value:
            object.__setattr__(options, d.name, plain)


def _check(d: Declared, value: Any) -> None:
    spec = d.spec
    fits = _fits(d.hint, value)
    if spec.choices and value is not None:
        names = value if isinstance(value, list | tuple) else (value,)
        for name in names:
            if name not in spec.choices:
                raise ChoiceError(d.name, name, spec.choices, title=spec.title)
    numbers = [v for v in (value if isinstance(value, list | tuple) else (value,)) if _is_number(v)]
    if fits and all(spec.within(v) for v in numbers if spec.bounds):
        return
    near = f"did you mean {value / 100:g}?" if _is_percentage(spec, value) else None
    raise OptionError(d.name, f"must be {_expected(d)}; got {value!r}", title=spec.title, fix=near)


def _is_percentage(spec: Spec, value: Any) -> bool:
    """Return True if a number is too large for a share, and would be one as a percentage."""
    return spec.share and _is_number(value) and 5 <= value <= 100 and spec.within(value / 100)


def _expected(d: Declared) -> str:
    """Return the values that an option accepts, in words."""
    kinds = _kinds(d.hint)
    if d.spec.bounds and kinds == ["a number"]:
        return d.spec.bounds
    takes = d.spec.text.takes if d.spec.text is not None and "a tuple" not in kinds else " or ".join(kinds)
    return f"{takes}, {d.spec.bounds}" if d.spec.bounds else takes


def _kinds(hint: Any) -> list[str]:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return [kind for h in inner if h is not type(None) for kind in _kinds(h)]
    return [_KINDS.get(origin or hint, "a path")]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _fits(hint: Any, value: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(h, value) for h in inner)
    if origin in (tuple, Sequence):
        return isinstance(value, list | tuple) and all(_fits(inner[0], v) for v in value)
    if origin is Callable:
        return callable(value)
    if hint is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if hint is float:
        return _is_number(value)
    return isinstance(value, origin or hint)


def _plain(value: Any) -> Any:
    """Return a numpy number as Python's, because options are written as JSON."""
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
