"""Plain data of JSON and TOML to dataclasses, strictly: every key is a field, every value has the field's type.

Types: bool, int, float, str, Any, None, lists and tuples, mappings from text, Literal, unions, dataclasses, and numbers
with bounds: `Annotated[float, Bounds(at_least=0, below=1)]`.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxprune.errors import OnnxPruneError, unknown

T = TypeVar("T")
Keys = tuple[str | int, ...]
"""Keys and indices that lead from the root of a document to a value."""

_KINDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes",
    tuple: "a list", list: "a list", Sequence: "a list",
}  # fmt: skip
_SHOWN = 60  # characters of a foreign key or value in a message


class Refused(Exception):
    """Part of a document is refused; the caller knows the file, and how such a file is made anew."""

    def __init__(self, what: str, keys: Keys = (), fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.keys, self.fix = what, keys, fix


@dataclass(frozen=True)
class Bounds:
    """Allowed range of a number."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        names = (("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below))
        return " and ".join(f"{name} {value:g}" for name, value in names if value is not None)


Count = Annotated[int, Bounds(at_least=1)]
Index = Annotated[int, Bounds(at_least=0)]


def shown(value: Any) -> str:
    """Return a foreign value as a message shows it: short, whatever it is."""
    if isinstance(value, dict | list) and (len(value) > 4 or len(repr(value)) > _SHOWN):
        return f"{'a list' if isinstance(value, list) else 'a table'} of {len(value)}"
    if type(value) is int and value.bit_length() > 1024:  # Python refuses to write the longest ones
        return "a number of more than 300 digits"
    text = repr(shortened(value) if isinstance(value, str) else value)
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}..."


def shortened(text: str) -> str:
    """Return at most 60 characters of a foreign text."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True)
class Reader:
    """Rules for turning plain data into dataclasses.

    Attributes:
        complete: Every field must be in the data; otherwise those with a default may be left out.
        flat: The fields of a dataclass inside a dataclass are in the same table, not in one of their own.
        table: Name of a mapping in messages: "an object" in JSON.
        extra: Ignore keys without a field, in documents that other programs write.
    """

    complete: bool = False
    flat: bool = False
    table: str = "a table"
    extra: bool = False

    def read(self, cls: type[T], data: Any, keys: Keys = (), defaults: Mapping[str, Any] | None = None) -> T:
        """Return plain data as a dataclass.

        Args:
            cls: Dataclass.
            data: Plain data.
            keys: Place of the data in its document.
            defaults: Values of fields that the data leaves out; those that the class does not have are ignored.

        Raises:
            Refused: An unknown or missing key, a value of another type or out of bounds, or a value that the dataclass
                itself refuses.
        """
        if type(data) is not dict:
            raise Refused(f"not {self.table}", keys)
        kind: type = cls
        known = _known(kind, self.flat)
        if self.extra:
            data = {key: data[key] for key in known if key in data}
        for key in data:
            if key not in known:
                err = unknown("key", shortened(key), known)
                raise Refused(err.what, keys, err.fix)
        for key in _required(kind, self.flat, self.complete):
            if key not in data:
                raise Refused(f"the key {key!r} is missing", keys)
        values = {key: self._value(known[key], value, (*keys, key)) for key, value in data.items()}
        for key, value in (defaults or {}).items():
            if key in known:
                values.setdefault(key, value)
        try:
            return self._built(cls, values)
        except OnnxPruneError as err:
            raise Refused(f"{err.what} ({err.where})" if err.where else err.what, keys, err.fix) from err

    def known(self, cls: type) -> dict[str, Any]:
        """Return the names of the keys a table may have, with their types."""
        return dict(_known(cls, self.flat))

    def required(self, cls: type) -> list[str]:
        """Return the names of the keys a table must have."""
        return list(_required(cls, self.flat, self.complete))

    def value(self, hint: Any, data: Any, keys: Keys) -> Any:
        """Return plain data as a value of a type.

        Args:
            hint: Type.
            data: Plain data.
            keys: Place of the data in its document; the last one names it in messages.

        Raises:
            Refused: Data of another type, or out of bounds.
        """
        return self._value(hint, data, keys)

    def _built(self, cls: type[T], values: Mapping[str, Any]) -> T:
        arguments: dict[str, Any] = {}
        kind: type = cls
        for f, hint in _fields(kind):
            if self.flat and _is_dataclass(hint):
                arguments[f.name] = self._built(hint, values)
            elif f.name in values:
                arguments[f.name] = values[f.name]
        return cls(**arguments)

    def _value(self, hint: Any, value: Any, keys: Keys) -> Any:
        """Return plain data as a value of a type: lists become tuples, whole numbers floats where floats are due."""
        origin, inner = get_origin(hint), get_args(hint)
        if hint is Any:
            return value
        if origin is Annotated:
            numbers = type(value) in (int, float)
            if not numbers or all(b.hold(value) for b in inner[1:] if isinstance(b, Bounds)):
                with contextlib.suppress(Refused):
                    return self._value(inner[0], value, keys)
            raise self._mismatch(hint, value, keys)
        if origin in (Union, types.UnionType):
            return self._one_of(hint, value, keys)
        if origin is Literal:
            if not any(type(value) is type(v) and value == v for v in inner):
                raise self._mismatch(hint, value, keys)
            return value
        if _is_dataclass(hint):
            return self.read(hint, value, keys)
        if (origin or hint) in (tuple, list, Sequence):
            return self._items(hint, value, keys)
        if (origin or hint) in (dict, Mapping):
            if type(value) is not dict:
                raise self._mismatch(hint, value, keys)
            item = inner[1] if inner else Any
            return value if item is Any else {k: self._value(item, v, (*keys, k)) for k, v in value.items()}
        if hint is float and type(value) is int:
            try:
                return float(value)
            except OverflowError:
                raise self._mismatch(hint, value, keys) from None
        if type(value) is not (type(None) if hint is None else hint):
            raise self._mismatch(hint, value, keys)
        return value

    def _items(self, hint: Any, value: Any, keys: Keys) -> Any:
        origin, inner = get_origin(hint) or hint, get_args(hint)
        made: Callable[[list[Any]], Any] = list if origin is list else tuple
        if type(value) is not list:
            raise self._mismatch(hint, value, keys)
        if origin is not tuple or not inner or inner[-1] is Ellipsis:
            kind = inner[0] if inner else Any
            if kind is Any or all(type(v) is kind for v in value):  # long lists of numbers
                return made(value)
            inner = (kind,) * len(value)
        elif len(value) != len(inner):
            raise self._mismatch(hint, value, keys)
        return made([self._value(kind, v, (*keys, i)) for i, (kind, v) in enumerate(zip(inner, value, strict=True))])

    def _one_of(self, hint: Any, value: Any, keys: Keys) -> Any:
        # An exact type comes first: 1 remains a whole number where both kinds of numbers are allowed.
        kinds = sorted((h for h in get_args(hint) if h is not type(None)), key=lambda h: h is not type(value))
        if value is None and len(kinds) < len(get_args(hint)):
            return None
        errors = []
        for kind in kinds:
            try:
                return self._value(kind, value, keys)
            except Refused as err:
                errors.append(err)
        if len(errors) == 1:
            raise errors[0]
        # The kind that is right at the top says most about the data.
        raise next((err for err in errors if len(err.keys) >= len(keys)), self._mismatch(hint, value, keys))

    def _mismatch(self, hint: Any, value: Any, keys: Keys) -> Refused:
        n = len(keys)
        while n and isinstance(keys[n - 1], int):
            n -= 1
        name = str(keys[n - 1]) if n else "document"
        text = [v for v in get_args(hint) if isinstance(v, str)] if get_origin(hint) is Literal else []
        if text and isinstance(value, str):
            err = unknown(name, shortened(value), text)
            return Refused(err.what, keys[: max(n - 1, 0)], err.fix)
        label = repr(shortened(name) + "".join(f"[{i}]" for i in keys[n:]))
        return Refused(f"{label} takes {self._described(hint)}, not {shown(value)}", keys[: max(n - 1, 0)])

    def _described(self, hint: Any) -> str:
        origin, inner = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return ", ".join([self._described(inner[0]), *(str(b) for b in inner[1:] if isinstance(b, Bounds))])
        if origin in (Union, types.UnionType):
            named = [h for h in inner if h is not type(None) and get_origin(h) is not Callable]
            return " or ".join(dict.fromkeys(map(self._described, named)))
        if origin is Literal:
            return "one of " + ", ".join(map(repr, inner))
        if origin is tuple and inner and inner[-1] is not Ellipsis:
            kinds = list(map(self._described, inner))
            each = f", each {kinds[0]}" if len(kinds) > 1 and len(set(kinds)) == 1 else f" ({', '.join(kinds)})"
            return f"a list of {len(inner)}{each}"
        if origin in (tuple, list, Sequence) and inner and inner[0] is not Any:
            return f"a list, each {self._described(inner[0])}"
        if _is_dataclass(hint) or (origin or hint) in (dict, Mapping):
            return self.table
        return _KINDS.get(origin or hint, "something else")


def options(cls: type) -> dict[str, Any]:
    """Return the names of all options of a dataclass, those of the dataclasses inside it included, with their types."""
    return Reader(flat=True).known(cls)


def required(cls: type) -> list[str]:
    """Return the names of the options that have no default."""
    return Reader(flat=True).required(cls)


def read_options(cls: type[T], table: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> T:
    """Return a flat table of options as a dataclass.

    A field whose type is a dataclass takes its own fields from the same table, so that a step of a recipe can have
    groups of options (`Settings` of a training, constraints of a plan) and the recipe stays flat.

    Args:
        cls: Dataclass.
        table: Plain data.
        where: Place of the table, for messages.
        defaults: Values of options that the table leaves out; those that the class does not have are ignored.

    Raises:
        OnnxPruneError: An unknown key (with the nearest known ones), a missing one, a value of another type or out of
            bounds, or a value that the dataclass itself refuses.
    """
    try:
        return Reader(flat=True).read(cls, table, (), defaults)
    except Refused as err:
        raise OnnxPruneError(err.what, where=place(where, err.keys, ", "), fix=err.fix) from err.__cause__


def place(where: str, keys: Keys, joint: str = ": ") -> str:
    """Return a place in a document: `plan.json: groups."layer1.conv".removed[2]`."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            short = shortened(key)
            bare = short.isascii() and short.replace("_", "").replace("-", "").isalnum()
            text += ("." if text else "") + (short if bare else f'"{short}"')
    return f"{where}{joint}{text}" if text else where


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


@cache
def _fields(cls: type) -> tuple[tuple[Field[Any], Any], ...]:
    """Return the fields that the constructor takes, and their types."""
    hints = _hints(cls)
    return tuple((f, hints[f.name]) for f in fields(cls) if f.init)


@cache
def _known(cls: type, flat: bool) -> Mapping[str, Any]:
    out: dict[str, Any] = {}
    for f, hint in _fields(cls):
        out |= _known(hint, flat) if flat and _is_dataclass(hint) else {f.name: hint}
    return out


@cache
def _required(cls: type, flat: bool, complete: bool) -> Sequence[str]:
    out: list[str] = []
    for f, hint in _fields(cls):
        if flat and _is_dataclass(hint):
            out += _required(hint, flat, complete)
        elif complete or (f.default is MISSING and f.default_factory is MISSING):
            out.append(f.name)
    return out


def _is_dataclass(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)
