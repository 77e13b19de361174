"""What a pass is, and what the framework checks of every one.

A pass takes a model and returns a new one. Its graph's inputs and outputs keep their names, and the graph is
well-formed before and after: checked here, so that no pass has to remember.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar

import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.model import Model
from onnxprune.wellformed import check


class Pass(ABC):
    """A graph-to-graph rewrite. Subclasses are frozen dataclasses whose fields are the parameters.

    Attributes:
        name: the file's name, and what the CLI calls it; a verb first.
    """

    name: ClassVar[str]

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
    """Passes in sequence; the model is copied once."""

    passes: Sequence[Pass]

    def __call__(self, model: Model) -> Model:
        """Applies every pass in order to a copy of the model."""
        out = model.copy()
        for step in self.passes:
            interface = _interface(out.graph)
            out = step.rewrite(out)
            out._fingerprint = None
            if not set(interface) <= set(_interface(out.graph)):
                raise OnnxPruneError(
                    f"the pass {step.name!r} changed the model's inputs or outputs (a bug in the pass)"
                )
            check(out.graph, step.name)
        return out


def _interface(graph: gs.Graph) -> list[tuple[str, str]]:
    return [("input", t.name) for t in graph.inputs] + [("output", t.name) for t in graph.outputs]


_registry: dict[str, type[Pass]] = {}
_loaded_plugins = False


def register(cls: type[Pass]) -> type[Pass]:
    """Class decorator: makes a pass known by its name.

    Raises:
        OnnxPruneError: the name is taken.
    """
    if cls.name in _registry:
        raise OnnxPruneError(f"the pass {cls.name!r} is registered twice")
    _registry[cls.name] = cls
    return cls


def all_passes() -> dict[str, type[Pass]]:
    """Every pass by name, third-party ones (entry-point group `onnxprune.passes`) included."""
    global _loaded_plugins
    if not _loaded_plugins:
        _loaded_plugins = True
        for entry in metadata.entry_points(group="onnxprune.passes"):
            register(entry.load())
    return dict(sorted(_registry.items()))


def get(name: str) -> type[Pass]:
    """A pass class by name.

    Raises:
        OnnxPruneError: there is none; with the nearest names.
    """
    if name in _registry:
        return _registry[name]
    known = all_passes()
    if name not in known:
        raise unknown("pass", name, known)
    return known[name]
