"""What a pass is, and what the framework checks of every one.

A pass takes a model and returns a new one. Its graph's inputs and outputs keep their names, and the graph is
well-formed before and after: checked here, so that no pass has to remember.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.model import Model
from onnxprune.plugins import PluginRegistry
from onnxprune.wellformed import check, violation


class Pass(ABC):
    """A graph-to-graph rewrite. Subclasses are frozen dataclasses whose fields are the parameters.

    Attributes:
        name: the file's name, and what the CLI calls it; a verb first.
        keeps_shapes: whether every tensor that it leaves has the shape it had before.
    """

    name: ClassVar[str]
    keeps_shapes: ClassVar[bool] = False

    def copied(self, model: Model) -> Model:
        """What it is given to rewrite if it is the first; a pass that takes much away need not copy that."""
        return model.copy()

    @abstractmethod
    def rewrite(self, model: Model) -> Model:
        """Rewrites `model.graph` in place (it is this pass's own copy) or returns another model."""

    def __call__(self, model: Model) -> Model:
        """Applies the pass to a copy and checks the promises.

        Raises:
            OnnxPruneError: the rewritten graph is not well-formed, or its interface changed.
        """
        return Pipeline([self])(model)


@dataclass(frozen=True)
class Pipeline:
    """Passes in sequence; the model is copied once, and checked when all are through."""

    passes: Sequence[Pass]

    def __call__(self, model: Model) -> Model:
        """Applies every pass in order to a copy of the model.

        Raises:
            OnnxPruneError: a graph is not well-formed after a pass, which is named, or its interface changed.
        """
        try:
            out = self._applied(model)
        except OnnxPruneError:
            raise
        except Exception:
            self._applied(model, careful=True)  # a pass may have stumbled over what one before it broke
            raise
        if violation(out.graph) is not None:
            self._applied(model, careful=True)
            check(out.graph, "all passes")  # one that does not do the same twice
        return out

    def _applied(self, model: Model, careful: bool = False) -> Model:
        """The passes' result; a `careful` run looks after every pass, which takes as long as some of them."""
        out = self.passes[0].copied(model) if self.passes else model.copy()
        for step in self.passes:
            interface = _interface(out.graph)
            if not step.keeps_shapes:
                out._shapes = None
            out = step.rewrite(out)
            out._fingerprint = None
            if not set(interface) <= set(_interface(out.graph)):
                raise OnnxPruneError(
                    f"the pass {step.name!r} changed the model's inputs or outputs (a bug in the pass)"
                )
            if careful:
                check(out.graph, step.name)
        return out


def _interface(graph: gs.Graph) -> list[tuple[str, str]]:
    return [("input", t.name) for t in graph.inputs] + [("output", t.name) for t in graph.outputs]


_registry: dict[str, type[Pass]] = {}


def register(cls: type[Pass]) -> type[Pass]:
    """Class decorator: makes a pass known by its name.

    Raises:
        OnnxPruneError: it is no frozen dataclass derived from Pass, has no name, or its name is taken.
    """
    problem = _problem(cls)
    if problem:
        raise OnnxPruneError(f"{cls!r} is not a pass: {problem}")
    if cls.name in _registry:
        raise OnnxPruneError(f"the pass {cls.name!r} is registered twice, first in {_registry[cls.name].__module__}")
    _registry[cls.name] = cls
    return cls


def _problem(cls: Any) -> str | None:
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        return "it does not derive from onnxprune.passes.Pass"
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        return "it is not a frozen dataclass"
    if cls.__abstractmethods__:
        return f"{', '.join(sorted(cls.__abstractmethods__))} is missing"
    return None if isinstance(getattr(cls, "name", None), str) and cls.name else "`name` is missing"


def all_passes() -> dict[str, type[Pass]]:
    """Every pass by name, third-party ones included."""
    plugins.load()
    return dict(sorted(_registry.items()))


def get(name: str) -> type[Pass]:
    """A pass class by name; other packages are looked at only for names that are not built in.

    Raises:
        OnnxPruneError: there is none (with the nearest names), or its plug-in could not be loaded.
    """
    if name not in _registry:
        plugins.load()
    if name in _registry:
        return _registry[name]
    if name in plugins.broken:
        raise plugins.broken[name].error(f"no pass {name!r}")
    raise unknown("pass", name, _registry)


def make(name: str, **params: object) -> Pass:
    """A pass by name with the user's parameters: `make("unshare_constants", largest=64)`.

    Raises:
        OnnxPruneError: as `get`; it has no such parameter, or refuses a value.
    """
    cls = get(name)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]  # register checked that it is a dataclass
    wrong = [p for p in params if p not in known]
    if wrong:
        raise OnnxPruneError(
            f"the pass {name!r} has no parameter {', '.join(map(repr, wrong))}",
            fix=f"its parameters are: {', '.join(known)}" if known else "it takes none",
        )
    return cls(**params)


plugins = PluginRegistry("onnxprune.passes", lambda cls, distribution: register(cls))
"""Passes of other packages: classes, each under an entry point of its name."""
