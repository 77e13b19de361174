"""Label table: the channels of every tensor as integer labels, read and written by operator rules.

Every axis of every tensor is an array of labels, one per index, or None where nothing can be removed (batch, space, a
graph input's channels). Label 0 inside an array marks a single fixed index. The graph is traversed once; rules pass
labels on, create fresh ones, tie arrays element by element, or lock them with a reason. The connected components of
the ties are the channels that are removed together (see `onnxprune.analysis.coupling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.symbolic import Size

Labels = npt.NDArray[np.int64]
Axes = list[Labels | None]
Array = npt.NDArray[Any]

_INTEGERS = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))

FIXED = "meets an axis that is fixed"
STATISTIC = "takes a statistic over these channels: removing one is not masking it"


@dataclass(frozen=True)
class Lock:
    """Labels that cannot be removed, and the node that locks them.

    `inexact` locks can be lifted on request: the removal is possible but differs from masking.
    """

    labels: Labels
    node: str
    op: str
    reason: str
    inexact: bool = False


@dataclass(frozen=True)
class Contraction:
    """Node input that is summed over a labelled axis: masking it there is equivalent to removal."""

    output: str  # first output of the node: its identity in the caller's graph as well
    input_index: int
    axis: int
    rank: int
    labels: Labels
    steps: tuple[int, int] | None = None  # integers: input indices of scale and zero point; -1: none


@dataclass(frozen=True)
class Quantization:
    """Quantization parameters: integers stand for `(values - zero) * scale`; several scales vary along an axis."""

    scale: gs.Tensor | None  # None: unknown, read as 1
    zero: gs.Tensor | None
    axis: int


@dataclass(frozen=True)
class AxisStatistic:
    """Node that computes a statistic over a labelled axis; after a removal it covers the remaining channels.

    Attributes:
        output: First output of the node: its identity in the caller's graph as well.
        axis: Axis of the node's first input, the data.
        labels: Labels of that axis.
        params: (input index, axis) pairs that share the data's axis (scale and shift).
        outputs: (output index, axis) pairs that keep the axis; empty after a reduction.
        counted: The node sums, and a consumer divides by a constant that is the count.
    """

    output: str
    axis: int
    labels: Labels
    params: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    counted: bool = False


@dataclass(frozen=True)
class FilterSite:
    """Weight whose filters produce channels.

    `tensor[..., axis, ...]` are the filters, `labels` their channels. With `groups` > 1 (grouped ConvTranspose,
    whose weight is [in, out/groups, ...]) the filters are numbered group by group.
    """

    tensor: gs.Tensor
    axis: int
    labels: Labels
    groups: int
    node: str
    op: str


@dataclass(frozen=True)
class ScaleSite:
    """BatchNormalization scale vector and the channels it multiplies."""

    tensor: gs.Tensor
    labels: Labels


@dataclass(frozen=True)
class CouplingOptions:
    """Options that select the channels a rule frees.

    Attributes:
        attention: Channels removed from multi-head attention, "heads" or "head_dim".
        inexact: Also free channels that are locked only by statistics (LayerNorm, ...).
    """

    attention: str = "heads"
    inexact: bool = False

    def options(self) -> dict[str, Any]:
        """Return the options that plans and curves store to find the same groups again."""
        return {"attention": self.attention, **({"inexact": True} if self.inexact else {})}


class LabelTable:
    """Labels of all tensors, with the ties and locks found so far.

    Args:
        shapes: Witness shape of every tensor.
        values: Known values of constants and of shape arithmetic, by tensor name.
        opset: Version of the standard operator set; some rules depend on it.
        choices: Options that resolve ambiguous splits.
        sizes: Symbolic shapes of the tensors that have a dynamic dimension.
        formulas: Symbolic elements of the values that depend on one; None if unknown.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, Array],
        opset: int,
        choices: CouplingOptions | None = None,
        sizes: Mapping[str, Sequence[Size | None]] = MappingProxyType({}),
        formulas: Mapping[str, Array | None] = MappingProxyType({}),
    ) -> None:
        self.shapes = shapes
        self.values = values
        self.opset = opset
        self.choices = choices or CouplingOptions()
        self.sizes = sizes
        self.formulas = formulas
        self.impossible: Mapping[str, str] = {}  # output of an If -> result that the nodes after the If reject
        self.count = 1
        self.variables: dict[str, Axes] = {}
        self.constants: dict[str, Axes] = {}
        self.views: dict[str, tuple[gs.Constant, tuple[int, ...]]] = {}
        self.ties: list[tuple[Labels, Labels]] = []
        self.locks: list[Lock] = []
        self.contractions: list[Contraction] = []
        self.statistics: list[AxisStatistic] = []
        self.filter_sites: list[FilterSite] = []
        self.scale_sites: list[ScaleSite] = []
        self.sums: list[Labels] = []  # channels that an addition of two activations joins: residual streams
        self.kinds: list[tuple[Labels, str]] = []  # "heads" or "head_dim", where the consumer determines it
        self.quantized: dict[str, Quantization] = {}  # integer weights without a DequantizeLinear consumer
        self.node: gs.Node | None = None
        self.outputs: frozenset[str] = frozenset()  # names of the graph's outputs
        self._sealed: set[str] = set()
        self._following: list[tuple[gs.Node | None, gs.Tensor, int, gs.Tensor, int, int]] = []
        self._partial = False  # whether any array holds a 0

    # ------------------------------------------------------------------------------------------- known values

    @property
    def integer_weights(self) -> bool:
        """True if weights are integers, whose scales belong to their values."""
        return bool(self.quantized) or any(root.dtype.kind in "iu" for root, _ in self.views.values())

    def shape(self, t: gs.Tensor) -> tuple[int, ...]:
        """Return the witness shape of a tensor."""
        if isinstance(t, gs.Constant):
            return tuple(t.shape)
        return self.shapes[t.name]

    def size(self, t: gs.Tensor) -> Sequence[Size | None]:
        """Return the symbolic shape of a tensor: integers where a dimension is constant."""
        return self.sizes.get(t.name) or self.shape(t)

    def value(self, t: gs.Tensor) -> Array | None:
        """Return the value of a constant or of constant shape arithmetic; None if it depends on data or on a size."""
        if isinstance(t, gs.Constant):
            return np.asarray(t.values)
        return None if t.name in self.formulas else self.values.get(t.name)

    def elements(self, t: gs.Tensor) -> Array | None:
        """Return the value as `value` does, with symbols for the elements that are not constant integers."""
        return self.formulas.get(t.name) if t.name in self.formulas else self.value(t)

    def optional_input(self, index: int) -> gs.Tensor | None:
        """Return an input of the current node, or None if it is absent."""
        assert self.node is not None
        inputs = self.node.inputs
        return inputs[index] if 0 <= index < len(inputs) and inputs[index].name else None

    def lock_inputs(self, reason: str) -> None:
        """Lock every axis of every input of the current node, and set outputs without labels."""
        assert self.node is not None
        for t in self.node.inputs:
            if t.name and (isinstance(t, gs.Constant) or t.name in self.shapes):
                self.lock_tensor(t, reason)
        for t in self.node.outputs:
            if t.name in self.shapes:
                self.put(t, [None] * len(self.shapes[t.name]))

    def is_const(self, t: gs.Tensor) -> bool:
        """Return whether the tensor is a weight: a constant, or a view of one through Transpose, Cast or Identity."""
        return isinstance(t, gs.Constant) or t.name in self.views

    def get(self, t: gs.Tensor) -> Axes:
        """Return the current labels per axis; unset axes of constants are None."""
        if self.is_const(t):
            root, perm = self._root(t)
            axes = self.constants.get(root.name)
            return [None] * len(perm) if axes is None else [axes[p] for p in perm]
        axes = self.variables.get(t.name)
        return [None] * len(self.shape(t)) if axes is None else axes

    def operand(self, t: gs.Tensor) -> Axes:
        """Return labels as `get` does; unset axes of a constant (a weight used as data) become fresh channels."""
        if not self.is_const(t):
            return self.get(t)
        return [self.produce(t, i) for i in range(len(self.shape(t)))]

    # ------------------------------------------------------------------------------------------ written by rules

    def fresh(self, n: int) -> Labels | None:
        """Return n new labels; None for a single index, which can never be removed."""
        if n < 2:
            return None
        out = np.arange(self.count, self.count + n, dtype=np.int64)
        self.count += n
        return out

    def put(self, t: gs.Tensor, axes: Sequence[Labels | None]) -> None:
        """Set the labels of a node's output."""
        for labels in axes:
            if labels is not None and len(labels) == 1 and labels[0]:
                # A single index selected from its group could be removed alone, and leave an empty axis.
                self.lock(labels, "leaves it alone on an axis")
        if t.name:
            self.variables[t.name] = [None if a is None or len(a) < 2 else a for a in axes]

    def produce(self, t: gs.Tensor, axis: int) -> Labels | None:
        """Return the labels of a weight's output axis: fresh on first use, the existing ones later."""
        root, perm = self._root(t)
        axes = self.constants.setdefault(root.name, [None] * len(perm))
        place = perm[axis]
        # Integer constants are shapes, indices and masks, not weights that could offer channels.
        if axes[place] is None and root.name not in self._sealed and root.dtype not in _INTEGERS:
            axes[place] = self.fresh(self.shape(t)[axis])
        return axes[place]

    def bind(self, t: gs.Tensor, axis: int, labels: Labels | None) -> None:
        """Bind an axis to labels: set them on a fresh constant, tie them otherwise."""
        if not self.is_const(t):
            self.tie(self.get(t)[axis], labels)
            return
        root, perm = self._root(t)
        axes = self.constants.setdefault(root.name, [None] * len(perm))
        place = perm[axis]
        if axes[place] is not None:
            self.tie(axes[place], labels)
        elif root.name in self._sealed:
            self.lock(labels, f"shares the constant {root.name!r} with a use that needs it whole")
        else:
            if labels is not None and len(labels) != self.shape(t)[axis]:
                raise self._misfit(f"axis {axis} of {t.name!r} has size {self.shape(t)[axis]}", len(labels))
            axes[place] = labels

    def _misfit(self, what: str, met: int) -> OnnxPruneError:
        """Return the error of a node whose operands differ in size, which the ONNX checker lets pass."""
        node = self.node
        name = "" if node is None else node.name or next((t.name for t in node.outputs), "")
        return OnnxPruneError(
            f"sizes do not fit: {what} and meets {met} channels",
            where=None if node is None else f"{node.op} {name!r}",
            fix="export the model again; if it runs as it is, report this",
        )

    def bind_broadcast(self, t: gs.Tensor, axes: Sequence[Labels | None]) -> None:
        """Bind a tensor that broadcasts against `axes`, aligned at the last one; axes of size 1 stay free."""
        shape = self.shape(t)
        for i, n in enumerate(shape):
            labels = axes[len(axes) - len(shape) + i]
            if n > 1:
                self.bind(t, i, labels)
            else:
                self.lock_unless_one(t, i, labels)

    def lock_unless_one(self, t: gs.Tensor, axis: int, labels: Labels | None) -> None:
        """Lock labels that broadcast against an axis of size 1, unless it has that size at all input sizes."""
        if t.name in self.sizes and not isinstance(self.size(t)[axis], int):
            self.lock(labels, "meets an axis that has size 1 at some input sizes only")

    def tie(self, a: Labels | None, b: Labels | None) -> None:
        """Tie two arrays index by index; a tie with None locks the other array."""
        if a is b:
            return
        if a is None or b is None:
            self.lock(a if b is None else b, FIXED)
            return
        if a.size != b.size:
            raise self._misfit(f"an operand has {a.size}", b.size)
        if self._partial:
            zero = (a == 0) | (b == 0)
            if zero.any():
                self.lock(np.concatenate([a[zero], b[zero]]), "meets indices that are fixed")
                a, b = a[~zero], b[~zero]
        self.ties.append((a, b))

    def tie_within(self, labels: Labels, axis: int) -> Labels:
        """Tie an array along one axis and return the first entry along it."""
        first: Labels = np.take(labels, 0, axis)
        rest = np.moveaxis(labels, axis, 0)[1:]
        if rest.size and not (rest == first).all():
            self.tie(np.broadcast_to(first, rest.shape).ravel(), rest.ravel())
        return first

    def concat(self, parts: Sequence[Labels | None], sizes: Sequence[int]) -> Labels | None:
        """Join arrays along one axis; parts without labels become fixed indices."""
        if all(p is None for p in parts):
            return None
        if any(p is None for p in parts):
            self._partial = True
        return np.concatenate([np.zeros(n, np.int64) if p is None else p for p, n in zip(parts, sizes, strict=True)])

    def lock(self, labels: Labels | None, reason: str, *, inexact: bool = False) -> None:
        """Lock labels in the name of the current node."""
        if labels is not None and labels.size:
            name, op = (self.node.name or self.node.outputs[0].name, self.node.op) if self.node else ("", "")
            self.locks.append(Lock(labels, name, op, reason, inexact))

    def lock_tensor(self, t: gs.Tensor, reason: str) -> None:
        """Lock every axis of a tensor."""
        for labels in self.get(t):
            self.lock(labels, reason)

    def contract(self, index: int, axis: int, steps: tuple[int, int] | None = None) -> None:
        """Record that the current node sums over an axis of one of its inputs.

        Args:
            index: Input index; a weight that the node contracts with its own state counts as well.
            axis: Axis of that input.
            steps: Integers: input indices of their scale and zero point; -1 for none.
        """
        assert self.node is not None
        axes = self.get(self.node.inputs[index])
        labels = axes[axis]
        if labels is not None:
            output = next(o.name for o in self.node.outputs if o.name)
            self.contractions.append(Contraction(output, index, axis % len(axes), len(axes), labels, steps))

    def statistic(
        self, axis: int, *, params: Sequence[tuple[int, int]] = (), outputs: Sequence[int] = (0,), counted: bool = False
    ) -> None:
        """Record that the current node computes a statistic over an axis of its first input, and lock it as inexact.

        Args:
            axis: Axis of the data.
            params: (input index, axis) pairs of scale and shift along it.
            outputs: Indices of the outputs that keep the axis.
            counted: The node sums, and a consumer divides by a constant that is the count.
        """
        assert self.node is not None
        labels = self.get(self.node.inputs[0])[axis]
        if labels is None:
            return
        self.lock(labels, STATISTIC, inexact=True)
        output = next(o.name for o in self.node.outputs if o.name)
        places = tuple((i, axis) for i in outputs)
        self.statistics.append(AxisStatistic(output, axis, labels, tuple(params), places, counted))

    def mark(self, labels: Labels | None, kind: str) -> None:
        """Record the kind of channels ("heads", "head_dim"); the first record of each channel counts."""
        if labels is not None:
            self.kinds.append((labels, kind))

    def filters(self, t: gs.Tensor, axis: int, labels: Labels | None, groups: int = 1) -> None:
        """Record that a weight's indices along an axis are the filters that produce these channels."""
        if labels is not None:
            assert self.node is not None
            self.filter_sites.append(FilterSite(t, axis, labels, groups, self.node.name, self.node.op))

    def scale(self, t: gs.Tensor, labels: Labels | None) -> None:
        """Record a BatchNormalization scale."""
        if labels is not None:
            self.scale_sites.append(ScaleSite(t, labels))

    def view(self, out: gs.Tensor, source: gs.Tensor, perm: Sequence[int] | None = None) -> None:
        """Record that an output is a view of a constant through a transposition or a cast."""
        root, inner = self._root(source)
        self.views[out.name] = (root, tuple(inner[p] for p in perm) if perm is not None else inner)

    def follow(self, t: gs.Tensor, axis: int, weight: gs.Tensor, weight_axis: int, block: int = 1) -> None:
        """Bind an axis of a constant to the final labels of a weight's axis, when the traversal ends.

        Args:
            block: Number of neighbours on the weight's axis that share one index; they are removed together.
        """
        self._following.append((self.node, t, axis, weight, weight_axis, block))

    def finish(self) -> None:
        """Bind the axes recorded by `follow`; call after the traversal."""
        for node, t, axis, weight, weight_axis, block in self._following:
            self.node = node
            axes = self.get(weight)
            if not -len(axes) <= weight_axis < len(axes):
                raise OnnxPruneError(
                    f"the constant {weight.name!r} is quantized along axis {weight_axis}, and has {len(axes)} axes"
                )
            labels = axes[weight_axis]
            if labels is not None and block > 1:
                if len(labels) % block:
                    self.lock(labels, "is quantized in blocks that do not divide it")
                    continue
                labels = self.tie_within(labels.reshape(-1, block), 1)
            self.bind(t, axis, labels)
            self.seal(t)
        self.node = None

    def seal(self, t: gs.Tensor) -> None:
        """Fix the axes of a constant that the rule of the current node did not bind; call after each rule."""
        if self.is_const(t):
            root, perm = self._root(t)
            self.constants.setdefault(root.name, [None] * len(perm))
            self._sealed.add(root.name)

    def _root(self, t: gs.Tensor) -> tuple[gs.Constant, tuple[int, ...]]:
        if t.name in self.views:
            return self.views[t.name]
        return t, tuple(range(len(t.shape)))
