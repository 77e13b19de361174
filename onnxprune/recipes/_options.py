"""Tables of TOML read into dataclasses, strictly: every key is a field, every value has the field's type.

A field whose type is a dataclass takes its own fields from the same table, so that a step can say which groups of
options it has (`Training`, `Constraints` of a plan) and a recipe stays flat.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.options import OptionError

T = TypeVar("T")

_KINDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes", Mapping: "a table",
    Sequence: "a list", tuple: "a list",
}  # fmt: skip


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _own(cls: type) -> Iterator[tuple[Field[Any], Any]]:
    """Fields that are set when an instance is made, and their types."""
    hints = _hints(cls)
    for f in fields(cls):
        if f.init:
            yield f, hints[f.name]


def _is_group(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and is_dataclass(hint)


def options(cls: type) -> dict[str, Any]:
    """Names of all options of a dataclass, those of the dataclasses inside it included, with their types."""
    out: dict[str, Any] = {}
    for f, hint in _own(cls):
        out |= options(hint) if _is_group(hint) else {f.name: hint}
    return out


def required(cls: type) -> list[str]:
    """Names of the options that have no default."""
    out = []
    for f, hint in _own(cls):
        if _is_group(hint):
            out += required(hint)
        elif f.default is MISSING and f.default_factory is MISSING:
            out.append(f.name)
    return out


def read(cls: type[T], table: Mapping[str, Any], where: str, defaults: Mapping[str, Any] | None = None) -> T:
    """Makes a dataclass from a table.

    Args:
        cls: the dataclass.
        table: as TOML has it.
        where: the place in the file, for messages.
        defaults: values of options that the table leaves out; those that the class does not have are passed over.

    Raises:
        OnnxPruneError: an unknown key (with the nearest known ones), a missing one, a value of another type, or what
            the dataclass itself says to its values.
    """
    known = options(cls)
    for key in table:
        if key not in known:
            err = unknown("key", key, known)
            raise OnnxPruneError(err.what, where=where, fix=err.fix)
    for key in required(cls):
        if key not in table:
            raise OnnxPruneError(f"the key {key!r} is missing", where=where)
    values = {key: typed(known[key], value, key, where) for key, value in table.items()}
    for key, value in (defaults or {}).items():
        if key in known:
            values.setdefault(key, value)
    try:
        return _build(cls, values)
    except OptionError as err:
        named = err.labelled(err.option)
        raise OnnxPruneError(named.what, where=where, fix=named.fix) from err
    except OnnxPruneError as err:
        raise OnnxPruneError(err.what, where=f"{where}, {err.where}" if err.where else where, fix=err.fix) from err


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    given: dict[str, Any] = {}
    for f, hint in _own(cls):
        if _is_group(hint):
            given[f.name] = _build(hint, values)
        elif f.name in values:
            given[f.name] = values[f.name]
    return cls(**given)


def typed(hint: Any, value: Any, key: str, where: str) -> Any:
    """A value of TOML as a type: lists become tuples, whole numbers become floats where a float is asked for.

    Raises:
        OnnxPruneError: it is of another type.
    """
    fits, out = _fitted(hint, value)
    if not fits:
        raise OnnxPruneError(f"{key!r} takes {_described(hint)}, not {value!r}", where=where)
    return out


def _fitted(hint: Any, value: Any) -> tuple[bool, Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True, value
    if origin in (Union, types.UnionType):
        # As it stands before as it could be read: 1 stays a whole number where both are allowed.
        exact = [h for h in inner if h is type(value)]
        found = [out for fits, out in (_fitted(h, value) for h in exact or inner) if fits]
        return bool(found), found[0] if found else None
    if origin in (tuple, Sequence):
        if not isinstance(value, list):
            return False, None
        parts = [_fitted(inner[0], v) for v in value]
        return all(fits for fits, _ in parts), tuple(out for _, out in parts)
    if origin is Mapping:
        return isinstance(value, dict), value
    if hint is float:
        return type(value) in (int, float), float(value) if type(value) in (int, float) else None
    return type(value) is hint, value


def _described(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = [_described(h) for h in inner if h is not type(None) and get_origin(h) is not Callable]
        return " or ".join(dict.fromkeys(kinds))
    if origin in (tuple, Sequence):
        return f"a list, each {_described(inner[0])}"
    return _KINDS.get(origin or hint, "something else")
