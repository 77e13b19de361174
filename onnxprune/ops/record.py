"""The record of an operator: one entry, several interpretations side by side.

A record says how labels pass through an operator (`couple`), which attributes and constants state a size that has to
follow when channels go (`patch`), what it costs (`macs`), and how shape arithmetic is computed (`evaluate`).
Adding an operator is one `register(OpSpec(...))` in one file; third parties add theirs through the entry-point group
`onnxprune.ops`, whose objects are called once without arguments and are named like the domain of the operators.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.ops.labels import Array, CouplingOptions, LabelTable
from onnxprune.plugins import PluginRegistry

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Mask = npt.NDArray[np.bool_]


class Patcher(Protocol):
    """What a `patch` may ask and do while a node is being stripped. Labels and shapes are those before stripping."""

    opset: int
    choices: CouplingOptions

    def keep(self, t: gs.Tensor, axis: int) -> Mask | None:
        """Which indices stay; None when all do."""

    def shape(self, t: gs.Tensor) -> Shape:
        """Witness shape before stripping."""

    def constant(self, node: gs.Node, index: int) -> Array | None:
        """Value of an input if it is a constant of the graph, else None."""

    def replace(self, node: gs.Node, index: int, value: Array) -> None:
        """Gives one node a new constant at an input."""


Couple = Callable[[gs.Node, LabelTable], None]
Patch = Callable[[gs.Node, Patcher], None]
Macs = Callable[[gs.Node, Sequence[Shape], Sequence[Shape]], int]
Evaluate = Callable[[gs.Node, Sequence[Any]], Any]
StandIn = Callable[[gs.Node], "list[onnx.NodeProto]"]


@dataclass(frozen=True)
class OpSpec:
    """What onnxprune knows about one operator.

    Attributes:
        op: operator type.
        couple: passes labels from inputs to outputs; ties, frees and locks them.
        patch: adjusts attributes and constants that state a size; None if there are none.
        macs: multiply-accumulate operations from the shapes of inputs and outputs (absent inputs: ()); None counts 0.
        evaluate: computes the (first) output from input values with numpy; None leaves it to onnx.reference.
        domain: operator domain, "" for the standard one.
        stand_in: standard nodes that compute tensors of the same names, shapes and types, for operators that ONNX's
            own shape inference does not know; their values do not matter. None where it knows.
        locked_reason: the reason for which everything the operator reads stays whole; it then needs no shapes.
    """

    op: str
    couple: Couple
    patch: Patch | None = None
    macs: Macs | None = None
    evaluate: Evaluate | None = None
    domain: str = ""
    stand_in: StandIn | None = None
    locked_reason: str = ""


_registry: dict[tuple[str, str], OpSpec] = {}
_origins: dict[tuple[str, str], str] = {}  # of records of other packages: whose they are


def register(spec: OpSpec) -> OpSpec:
    """Adds a record. A second one for the same operator is an error: two rules would hide each other.

    Raises:
        OnnxPruneError: it is no record, or the operator has one.
    """
    if not isinstance(spec, OpSpec) or not isinstance(spec.op, str) or not spec.op or not isinstance(spec.domain, str):
        raise OnnxPruneError(f"{spec!r} is no record: it must be an OpSpec with an operator's name")
    for rule in ("couple", "patch", "macs", "evaluate"):
        value = getattr(spec, rule)
        if not callable(value) and (value is not None or rule == "couple"):
            raise OnnxPruneError(f"the record of {spec.op!r} has {value!r} for {rule}, which is no function")
    key = (spec.domain, spec.op)
    if key in _registry:
        raise OnnxPruneError(f"operator {spec.op!r} (domain {spec.domain!r}) is registered twice")
    _registry[key] = spec
    return spec


def register_locked(reason: str, *ops: str, domain: str = "", why: str = "") -> None:
    """Registers operators whose operands all stay whole.

    Args:
        reason: as `inspect` words it after "it": "draws random numbers".
        why: one sentence for `onnxprune ops`; default: from the reason.
    """

    def couple(node: gs.Node, table: LabelTable) -> None:
        table.lock_inputs(reason)

    couple.__doc__ = why or f"Everything it reads stays whole: it {reason}."
    for op in ops:
        register(OpSpec(op, couple, domain=domain, locked_reason=reason))


def find(node: gs.Node) -> OpSpec | None:
    """The record of a node's operator, or None; other packages are looked at only for operators not built in.

    Raises:
        OnnxPruneError: there is none, and the plug-in that is named like the operator's domain could not be loaded.
    """
    domain = "" if node.domain in (None, "ai.onnx") else node.domain
    spec = _registry.get((domain, node.op))
    if spec is None:
        plugins.load()
        spec = _registry.get((domain, node.op))
        if spec is None and domain in plugins.broken:
            raise plugins.broken[domain].error(
                f"no record of {domain}::{node.op}", where=f"{node.op} {node.name or node.outputs[0].name!r}"
            )
    return spec


def is_foreign(spec: OpSpec) -> bool:
    """Return whether a record is another package's."""
    return (spec.domain, spec.op) in _origins


@contextlib.contextmanager
def guarded(spec: OpSpec, node: gs.Node) -> Iterator[bool]:
    """While a rule runs: what one of another package raises is that package's fault, and said so.

    Yields:
        whether the record is another package's.

    Raises:
        OnnxPruneError: the rule failed, with the package's name.
    """
    whose = _origins.get((spec.domain, spec.op))
    try:
        yield whose is not None
    except OnnxPruneError:
        raise
    except Exception as err:
        if whose is None:
            raise
        raise OnnxPruneError(
            f"the record of {spec.domain or 'ai.onnx'}::{spec.op} failed: {type(err).__name__}: {err}",
            where=f"{node.op} {node.name or node.outputs[0].name!r}",
            fix=f"update or uninstall {whose}",
        ) from err


def all_ops() -> dict[tuple[str, str], OpSpec]:
    """Every record by (domain, operator), third-party ones included."""
    plugins.load()
    return dict(sorted(_registry.items()))


def _accept(function: Any, distribution: str) -> None:
    """Calls what a plug-in offers; it registers all of its records, or none."""
    before = dict(_registry)
    try:
        function()
    except BaseException:
        _registry.clear()
        _registry.update(before)
        raise
    _origins.update(dict.fromkeys(_registry.keys() - before.keys(), distribution))


plugins = PluginRegistry("onnxprune.ops", _accept)
"""Records of other packages: functions that register them, each under an entry point named like its domain."""


def normal_axis(axis: int, rank: int) -> int:
    """A possibly negative axis as a non-negative one."""
    return axis + rank if axis < 0 else axis


def ints(value: Any) -> list[int]:
    """An attribute or an array of integers as a list."""
    return [int(v) for v in np.asarray(value).reshape(-1)]


def remaining(patcher: Patcher, t: gs.Tensor, axis: int) -> int:
    """How many indices of an axis stay."""
    keep = patcher.keep(t, axis)
    return patcher.shape(t)[axis] if keep is None else int(keep.sum())


def follows(operand: gs.Tensor, index: int, rank: int) -> bool:
    """Whether one element of a shape operand can follow its axis when channels go.

    It can if the operand is a constant (to be patched), or joined from one input per element (as the pass fold_shapes
    writes it) of which this one is 1 ("as the data") or read from the data's own shape at run time.
    """
    if isinstance(operand, gs.Constant):
        return True
    producer = operand.inputs[0] if operand.inputs else None
    if producer is None or producer.op != "Concat" or len(producer.inputs) != rank:
        return False
    piece = producer.inputs[index]
    if isinstance(piece, gs.Constant):
        return np.array_equal(piece.values, [1])
    source = piece.inputs[0] if piece.inputs else None
    return source is not None and source.op == "Gather" and source.inputs[0].inputs[0].op == "Shape"
