"""Operator record: one entry per operator with several interpretations.

A record defines how labels pass through an operator (`couple`), how the attributes and constants that state a size are
updated when channels are removed (`patch`), its cost (`macs`), and its value in shape arithmetic (`evaluate`).
`register(OpSpec(...))` in one file adds an operator. Third parties use the entry-point group `onnxprune.ops`: each
object is called once without arguments, and its name is the domain of the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune._utils.registry import Registry
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.branches import FLAT
from onnxprune.ops.label_table import Array, CouplingOptions, LabelTable

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
Mask = npt.NDArray[np.bool_]


class Patcher(Protocol):
    """Interface of the stripping pass for a `patch`. Labels and shapes are those before stripping."""

    opset: int
    choices: CouplingOptions

    def keep(self, t: gs.Tensor, axis: int) -> Mask | None:
        """Return the mask of kept indices, [size of the axis]; None when all are kept."""

    def shape(self, t: gs.Tensor) -> Shape:
        """Return the witness shape before stripping."""

    def constant(self, node: gs.Node, index: int) -> Array | None:
        """Return the value of an input that is a constant of the graph, else None."""

    def replace(self, node: gs.Node, index: int, value: Array) -> None:
        """Replace an input of one node by a new constant."""


Couple = Callable[[gs.Node, LabelTable], None]
Patch = Callable[[gs.Node, Patcher], None]
Macs = Callable[[gs.Node, Sequence[Shape], Sequence[Shape]], int]
Evaluate = Callable[[gs.Node, Sequence[Any]], Any]
StandIn = Callable[[gs.Node], "list[onnx.NodeProto]"]


@dataclass(frozen=True)
class OpSpec:
    """Record of one operator.

    Attributes:
        op: Operator type.
        couple: Pass labels from inputs to outputs; tie, free and lock them.
        patch: Update attributes and constants that state a size; None if there are none.
        macs: Multiply-accumulate operations from input and output shapes (absent inputs: ()); None counts 0.
        evaluate: Compute the (first) output from input values with numpy; None uses onnx.reference.
        domain: Operator domain, "" for the standard one.
        stand_in: Standard nodes that compute tensors of the same names, shapes and types, for operators unknown to
            ONNX shape inference; the values may differ. None for known operators.
        locked_reason: Reason why every operand is locked; the rule then needs no shapes.
    """

    op: str
    couple: Couple
    patch: Patch | None = None
    macs: Macs | None = None
    evaluate: Evaluate | None = None
    domain: str = ""
    stand_in: StandIn | None = None
    locked_reason: str = ""


def _label(key: tuple[str, str]) -> str:
    return f"{key[0]}::{key[1]}" if key[0] else key[1]


OPERATORS: Registry[tuple[str, str], OpSpec] = Registry(
    "operator", key=lambda spec: (spec.domain, spec.op), label=_label, plugins="onnxprune.ops",
    accept=lambda function: function(), plugin=lambda key: key[0],
)  # fmt: skip
"""Records by (domain, operator). Third-party ones are registered by functions, each under an entry point named after
its domain."""


def register(spec: OpSpec) -> OpSpec:
    """Add a record.

    Raises:
        OnnxPruneError: `spec` is not a valid record, or the operator has one already.
    """
    if not isinstance(spec, OpSpec) or not isinstance(spec.op, str) or not spec.op or not isinstance(spec.domain, str):
        raise OnnxPruneError(f"{spec!r} is not a record: pass an OpSpec with an operator name")
    for rule in ("couple", "patch", "macs", "evaluate"):
        value = getattr(spec, rule)
        if not callable(value) and (value is not None or rule == "couple"):
            raise OnnxPruneError(f"the record of {spec.op!r} has {value!r} for {rule}, which is not a function")
    return OPERATORS.register(spec)


def register_locked(reason: str, *ops: str, domain: str = "", why: str = "") -> None:
    """Register operators that lock all their operands.

    Args:
        reason: Reason as `inspect` prints it after "it": "draws random numbers".
        why: Sentence for `onnxprune ops`; derived from `reason` by default.
    """

    def couple(node: gs.Node, table: LabelTable) -> None:
        table.lock_inputs(reason)

    couple.__doc__ = why or f"Lock every input: the operator {reason}."
    for op in ops:
        register(OpSpec(op, couple, domain=domain, locked_reason=reason))


def find(node: gs.Node) -> OpSpec | None:
    """Return the record of a node's operator, or None; third-party records are loaded for unknown operators only.

    Raises:
        OnnxPruneError: There is no record, and the plug-in named after the operator's domain failed to load.
    """
    key = ("" if node.domain in (None, "ai.onnx") or node.op == "If" else node.domain, node.op)
    spec = OPERATORS.find(key)
    if spec is None and (err := OPERATORS.broken(key, f"{node.op} {node.name or node.outputs[0].name!r}")) is not None:
        raise err
    return spec


def is_foreign(spec: OpSpec) -> bool:
    """Return whether a record belongs to another package."""
    return OPERATORS.origin((spec.domain, spec.op)) is not None


class GuardedRule:
    """Context that names the package at fault when a third-party rule raises inside it.

    Args:
        spec: Record of the rule. The context is True for a third-party record.
        node: Node that the rule is applied to.

    Raises:
        OnnxPruneError: The rule failed; the fix names its package.
    """

    __slots__ = ("_node", "_spec", "_whose")

    def __init__(self, spec: OpSpec, node: gs.Node) -> None:
        self._spec, self._node = spec, node
        self._whose = OPERATORS.origin((spec.domain, spec.op))

    def __enter__(self) -> bool:
        return self._whose is not None

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if self._whose is None or not isinstance(err, Exception) or isinstance(err, OnnxPruneError):
            return
        spec, node = self._spec, self._node
        raise OnnxPruneError(
            f"the record of {spec.domain or 'ai.onnx'}::{spec.op} failed: {type(err).__name__}: {err}",
            where=f"{node.op} {node.name or node.outputs[0].name!r}",
            fix=f"update or uninstall {self._whose}",
        ) from err


def all_ops() -> dict[tuple[str, str], OpSpec]:
    """Return every record by (domain, operator), third-party ones included."""
    return {key: spec for key, spec in sorted(OPERATORS.items()) if key[0] != FLAT}


def normal_axis(axis: int, rank: int) -> int:
    """Return a possibly negative axis as a non-negative one."""
    return axis + rank if axis < 0 else axis


def ints(value: Any) -> list[int]:
    """Return an attribute or an array of integers as a list."""
    return [int(v) for v in np.asarray(value).reshape(-1)]


def remaining(patcher: Patcher, t: gs.Tensor, axis: int) -> int:
    """Return the number of remaining indices of an axis."""
    keep = patcher.keep(t, axis)
    return patcher.shape(t)[axis] if keep is None else int(keep.sum())


def follows(operand: gs.Tensor, index: int, rank: int) -> bool:
    """Return whether one element of a shape operand can follow its axis when channels are removed.

    It can if the operand is a constant (to be patched), or a Concat of one input per element (as written by the pass
    fold_shapes) whose element is 1 ("as the data") or read from the data's own shape at run time.
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
