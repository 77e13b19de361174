"""Registry of criteria: the built-in ones and those of other packages."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from onnxprune._utils.entry_points import PluginRegistry
from onnxprune.criteria.base import AnyCriterion, Criterion, DataCriterion
from onnxprune.criteria.normalize import METHODS
from onnxprune.errors import OnnxPruneError, unknown

_criteria: dict[str, type[AnyCriterion]] = {}

C = TypeVar("C", bound=type[AnyCriterion])


def register(cls: C) -> C:
    """Register a criterion under `cls.name`; a class decorator.

    Raises:
        OnnxPruneError: The class is not a well-formed criterion, or its name is taken.
    """
    problem = _problem(cls)
    if problem:
        raise OnnxPruneError(f"{cls.__qualname__} is not a criterion: {problem}", where=cls.__module__)
    taken = _criteria.setdefault(cls.name, cls)
    if taken is not cls:
        raise OnnxPruneError(
            f"the criterion {cls.name!r} is already registered by {taken.__module__}",
            where=cls.__module__,
            fix="choose another name",
        )
    return cls


def get(name: str, **params: Any) -> AnyCriterion:
    """Return the criterion `name` with the user's parameters: `get("fpgm", mix_norm=0.1)`.

    Raises:
        OnnxPruneError: Unknown criterion (with the nearest names), or unknown parameter (with the valid ones).
    """
    cls = find(name)
    if cls is None and name in plugins.broken:
        raise plugins.broken[name].error(f"no criterion {name!r}")
    if cls is None:
        raise unknown("criterion", name, _criteria)
    valid = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]  # register checked it
    wrong = [p for p in params if p not in valid]
    if wrong:
        raise OnnxPruneError(
            f"criterion {name!r} has no parameter {', '.join(map(repr, wrong))}",
            fix=f"its parameters are: {', '.join(valid)}" if valid else "it has none",
        )
    return cls(**params)


def find(name: str) -> type[AnyCriterion] | None:
    """Return the criterion of that name, or None; third-party criteria are loaded for unknown names only."""
    if name not in _criteria:
        plugins.load()
    return _criteria.get(name)


def all_criteria() -> dict[str, type[AnyCriterion]]:
    """Return every criterion, sorted by name; a copy."""
    plugins.load()
    return dict(sorted(_criteria.items()))


plugins = PluginRegistry("onnxprune.criteria", lambda cls, distribution: register(cls))
"""Third-party criteria: classes, each under an entry point of its name."""


def _problem(cls: Any) -> str | None:
    """Return the reason why `cls` breaks the interface of `Criterion`, or None."""
    if not (isinstance(cls, type) and issubclass(cls, Criterion | DataCriterion)):
        return "it derives neither from onnxprune.criteria.Criterion nor from DataCriterion"
    # Read from the class itself: a plain subclass of a dataclass would inherit the mark but not the fields.
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        return "it is not a frozen dataclass"
    if cls.__abstractmethods__:
        return f"{', '.join(sorted(cls.__abstractmethods__))} is missing"
    for attribute in ("name", "title", "source", "needs", "default_normalize"):
        if not getattr(cls, attribute, ""):
            return f"`{attribute}` is missing"
    if cls.needs not in (("weights",) if issubclass(cls, Criterion) else ("data", "labels")):
        return f"`needs` is {cls.needs!r}"
    if issubclass(cls, Criterion) and cls.reads not in ("filters", "bn_scale"):
        return f"`reads` is {cls.reads!r}"
    if cls.default_reduce not in cls.reductions:
        return f"`default_reduce` {cls.default_reduce!r} is not among its `reductions`"
    if cls.default_normalize not in METHODS:
        return f"`default_normalize` is {cls.default_normalize!r}"
    return None
