"""Base class of passes, pipelines with their checks, and the registry of passes.

A pass maps a model to a new one. The framework checks that the graph's inputs and outputs keep their names and that
the graph is well-formed before and after.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_graphsurgeon as gs

from onnxprune._utils.registry import Registry
from onnxprune._utils.registry import make as make_with_parameters
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.checker import check
from onnxprune.ir.model import Model

if TYPE_CHECKING:
    from onnxprune.analysis.shapes.shape_inference import Witness


@dataclass(frozen=True)
class Rewritten:
    """Result of passes.

    Attributes:
        model: Rewritten model.
        shapes: Shapes and values of its tensors, if the last pass that may have changed them inferred them.
    """

    model: Model
    shapes: Witness | None


class Pass(ABC):
    """Graph-to-graph rewrite. Subclasses are frozen dataclasses whose fields are the parameters.

    Attributes:
        name: Name of the file and on the command line; a verb first.
        keeps_shapes: Every tensor that remains has the same shape as before.
    """

    name: ClassVar[str]
    keeps_shapes: ClassVar[bool] = False

    def copied(self, model: Model) -> Model:
        """Return the copy to rewrite, if the pass is the first; a pass that removes much can copy less."""
        return model.copy()

    @abstractmethod
    def rewrite(self, model: Model) -> Model:
        """Rewrite `model.graph` in place (a private copy) or return another model."""

    def rewrite_with_shapes(self, model: Model, known: Witness | None) -> Rewritten:
        """Rewrite, given the shapes that are known before; return the model and the shapes that are known after."""
        return Rewritten(self.rewrite(model), known if self.keeps_shapes else None)

    def __call__(self, model: Model) -> Model:
        """Apply the pass to a copy and check the result.

        Raises:
            OnnxPruneError: The rewritten graph is not well-formed, or its interface changed.
        """
        return Pipeline([self])(model)


@dataclass(frozen=True)
class Pipeline:
    """Passes in sequence; the model is copied once, and checked after every pass."""

    passes: Sequence[Pass]

    def __call__(self, model: Model) -> Model:
        """Apply every pass in order to a copy of the model; see `run`."""
        return self.run(model).model

    def run(self, model: Model) -> Rewritten:
        """Apply every pass in order to a copy of the model, and return the shapes that are known of the result, too.

        Raises:
            OnnxPruneError: A graph is not well-formed after a pass, which is named, or its interface changed.
        """
        out = Rewritten(self.passes[0].copied(model) if self.passes else model.copy(), None)
        for step in self.passes:
            interface = _interface(out.model.graph)
            out = step.rewrite_with_shapes(out.model, out.shapes)
            out.model._fingerprint = None
            if not set(interface) <= set(_interface(out.model.graph)):
                raise OnnxPruneError(
                    f"the pass {step.name!r} changed the model's inputs or outputs (a bug in the pass)"
                )
            check(out.model.graph, step.name)
        return out


def _interface(graph: gs.Graph) -> list[tuple[str, str]]:
    return [("input", t.name) for t in graph.inputs] + [("output", t.name) for t in graph.outputs]


def _problem(cls: Any) -> str | None:
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        return "it does not derive from onnxprune.passes.Pass"
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen:
        return "it is not a frozen dataclass"
    if cls.__abstractmethods__:
        return f"{', '.join(sorted(cls.__abstractmethods__))} is missing"
    return None if isinstance(getattr(cls, "name", None), str) and cls.name else "`name` is missing"


# Passes that need data lie above this package, in `recovery`; like plug-ins, they are loaded by name.
_PROCEDURES = ("onnxprune.recovery.recalibrate_batchnorm", "onnxprune.recovery.reconstruct_weights")

PASSES: Registry[str, type[Pass]] = Registry(
    "pass", problem=_problem, modules=_PROCEDURES, plugins="onnxprune.passes"
)  # fmt: skip
"""Passes by name. Third-party ones are classes, each under an entry point of its name."""

register = PASSES.register
"""Register a pass by its name; a class decorator."""


def all_passes() -> dict[str, type[Pass]]:
    """Return every pass by name, third-party ones included."""
    return dict(sorted(PASSES.items()))


def get(name: str) -> type[Pass]:
    """Return a pass class by name; third-party passes are loaded for unknown names only.

    Raises:
        OnnxPruneError: There is none (with the nearest names), or its plug-in failed to load.
    """
    return PASSES[name]


def make(name: str, **params: object) -> Pass:
    """Return a pass by name with the user's parameters: `make("unshare_constants", largest=64)`.

    Raises:
        OnnxPruneError: As `get`; or the pass has no such parameter, or rejects a value.
    """
    return make_with_parameters(PASSES.kind, name, PASSES[name], params)
