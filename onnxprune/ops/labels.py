"""Channels as labels: the table that operator rules read and write while the graph is walked once.

Every axis of every tensor is an array of integer labels, one per index, or None where nothing can be removed (batch,
space, a graph input's channels). Label 0 inside an array marks single fixed indices. Rules hand labels on, make fresh
ones, tie arrays element by element, or lock them with a reason. Connected components of the ties are the channels
that live or die together (see `onnxprune.coupling`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.symbolic import Size

Labels = npt.NDArray[np.int64]
Axes = list[Labels | None]
Array = npt.NDArray[Any]

_INTEGERS = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))

STATISTIC = "takes a statistic over these channels: removing one is not masking it"


@dataclass(frozen=True)
class Lock:
    """Labels that may not be removed, and the node that says so.

    `inexact` locks can be lifted on request: the removal is possible but is not what masking would compute.
    """

    labels: Labels
    node: str
    op: str
    reason: str
    inexact: bool = False


@dataclass(frozen=True)
class Contraction:
    """A node input that is summed over a labelled axis: where a mask stands for a removed channel."""

    output: str  # first output of the node: its identity in the caller's graph as well
    input_index: int
    axis: int
    rank: int
    labels: Labels
    steps: tuple[int, int] | None = None  # of integers: the node's inputs that hold scale and zero point; -1: none


@dataclass(frozen=True)
class Quantization:
    """How integers stand for numbers: `(values - zero) * scale`, along an axis if there are several scales."""

    scale: gs.Tensor | None  # None: nobody says, 1
    zero: gs.Tensor | None
    axis: int


@dataclass(frozen=True)
class AxisStatistic:
    """A node that computes a statistic over a labelled axis: without a channel it runs on those that are left.

    Attributes:
        output: first output of the node: its identity in the caller's graph as well.
        axis: of the node's first input, the data.
        labels: of that axis.
        params: (input index, axis) pairs that go along with the data's axis (scale and shift).
        outputs: (output index, axis) pairs that still have it; empty after a reduction.
        counted: the node sums, and a constant behind it divides by how many there were.
    """

    output: str
    axis: int
    labels: Labels
    params: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[int, int], ...]
    counted: bool = False


@dataclass(frozen=True)
class FilterSite:
    """A weight whose filters produce channels.

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
    """A BatchNormalization scale vector and the channels it multiplies."""

    tensor: gs.Tensor
    labels: Labels


@dataclass(frozen=True)
class CouplingOptions:
    """Which of several possible channels a rule frees.

    Attributes:
        attention: what is removed from multi-head attention, "heads" or "head_dim".
        inexact: channels that only statistics (LayerNorm, ...) forbid are free as well.
    """

    attention: str = "heads"
    inexact: bool = False

    def options(self) -> dict[str, Any]:
        """For plans and curves: what has to be known to find the same groups again."""
        return {"attention": self.attention, **({"inexact": True} if self.inexact else {})}


class LabelTable:
    """Labels of all tensors, and the ties and locks found so far.

    Args:
        shapes: witness shape of every tensor.
        values: values of constants and of shape arithmetic, where known, by tensor name.
        opset: version of the standard operator set; some rules changed with it.
        choices: how ambiguous splits are resolved.
        sizes: shapes in symbols of the tensors that have a dynamic dimension.
        formulas: elements in symbols of the values that depend on one; None where they are not known.
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
        self.kinds: list[tuple[Labels, str]] = []  # what channels are, where the operator that reads them knows
        self.quantized: dict[str, Quantization] = {}  # integer weights that no DequantizeLinear stands behind
        self.node: gs.Node | None = None
        self.outputs: frozenset[str] = frozenset()  # names of the graph's outputs
        self._sealed: set[str] = set()
        self._following: list[tuple[gs.Node | None, gs.Tensor, int, gs.Tensor, int, int]] = []
        self._partial = False  # whether any array holds a 0

    # ------------------------------------------------------------------------------------------- what is known

    def shape(self, t: gs.Tensor) -> tuple[int, ...]:
        """Witness shape of a tensor."""
        if isinstance(t, gs.Constant):
            return tuple(t.shape)
        return self.shapes[t.name]

    def size(self, t: gs.Tensor) -> Sequence[Size | None]:
        """Shape of a tensor in symbols: integers where a dimension is a constant."""
        return self.sizes.get(t.name) or self.shape(t)

    def value(self, t: gs.Tensor) -> Array | None:
        """Value of a constant or of constant shape arithmetic; None if it depends on the data or on a size."""
        if isinstance(t, gs.Constant):
            return np.asarray(t.values)
        return None if t.name in self.formulas else self.values.get(t.name)

    def elements(self, t: gs.Tensor) -> Array | None:
        """Like `value`, with integers for the elements that are constants and something else for those that are not."""
        return self.formulas.get(t.name) if t.name in self.formulas else self.value(t)

    def optional_input(self, index: int) -> gs.Tensor | None:
        """An input of the current node, if it is there."""
        assert self.node is not None
        inputs = self.node.inputs
        return inputs[index] if 0 <= index < len(inputs) and inputs[index].name else None

    def lock_inputs(self, reason: str) -> None:
        """Forbids removal along every axis of everything the current node reads, and gives its outputs no labels."""
        assert self.node is not None
        for t in self.node.inputs:
            if t.name and (isinstance(t, gs.Constant) or t.name in self.shapes):
                self.lock_tensor(t, reason)
        for t in self.node.outputs:
            if t.name in self.shapes:
                self.put(t, [None] * len(self.shapes[t.name]))

    def is_const(self, t: gs.Tensor) -> bool:
        """Whether the tensor is a weight: a constant, or one seen through Transpose, Cast or Identity."""
        return isinstance(t, gs.Constant) or t.name in self.views

    def get(self, t: gs.Tensor) -> Axes:
        """Labels per axis as they stand; unset axes of constants are None."""
        if self.is_const(t):
            root, perm = self._root(t)
            axes = self.constants.get(root.name)
            return [None] * len(perm) if axes is None else [axes[p] for p in perm]
        axes = self.variables.get(t.name)
        return [None] * len(self.shape(t)) if axes is None else axes

    def operand(self, t: gs.Tensor) -> Axes:
        """Like `get`, but a constant offers its untouched axes as fresh channels (a weight used as data)."""
        if not self.is_const(t):
            return self.get(t)
        return [self.produce(t, i) for i in range(len(self.shape(t)))]

    # ------------------------------------------------------------------------------------------ what rules write

    def fresh(self, n: int) -> Labels | None:
        """n new labels; None for a single index, which can never be removed."""
        if n < 2:
            return None
        out = np.arange(self.count, self.count + n, dtype=np.int64)
        self.count += n
        return out

    def put(self, t: gs.Tensor, axes: Sequence[Labels | None]) -> None:
        """Sets the labels of a node's output."""
        for labels in axes:
            if labels is not None and len(labels) == 1 and labels[0]:
                # Picked out of its group, it could go while the others stay, and leave an axis of nothing.
                self.lock(labels, "leaves it alone on an axis")
        if t.name:
            self.variables[t.name] = [None if a is None or len(a) < 2 else a for a in axes]

    def produce(self, t: gs.Tensor, axis: int) -> Labels | None:
        """The labels of a weight's output axis: fresh on first use, those it has on later ones."""
        root, perm = self._root(t)
        axes = self.constants.setdefault(root.name, [None] * len(perm))
        place = perm[axis]
        # Integer constants are shapes, indices and masks, not weights that could offer channels.
        if axes[place] is None and root.name not in self._sealed and root.dtype not in _INTEGERS:
            axes[place] = self.fresh(self.shape(t)[axis])
        return axes[place]

    def bind(self, t: gs.Tensor, axis: int, labels: Labels | None) -> None:
        """Says that an axis carries these labels: sets it on a fresh constant, ties it otherwise."""
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
            axes[place] = labels

    def bind_broadcast(self, t: gs.Tensor, axes: Sequence[Labels | None]) -> None:
        """Binds a tensor that broadcasts against `axes`, aligned at the last one; its axes of size 1 stay free."""
        shape = self.shape(t)
        for i, n in enumerate(shape):
            if n > 1:
                self.bind(t, i, axes[len(axes) - len(shape) + i])

    def tie(self, a: Labels | None, b: Labels | None) -> None:
        """Equates two arrays index by index; against None the other one is locked."""
        if a is b:
            return
        if a is None or b is None:
            self.lock(a if b is None else b, "meets an axis that is fixed")
            return
        if self._partial:
            zero = (a == 0) | (b == 0)
            if zero.any():
                self.lock(np.concatenate([a[zero], b[zero]]), "meets indices that are fixed")
                a, b = a[~zero], b[~zero]
        self.ties.append((a, b))

    def tie_within(self, labels: Labels, axis: int) -> Labels:
        """Ties an array along one axis and returns the first entry along it."""
        first: Labels = np.take(labels, 0, axis)
        rest = np.moveaxis(labels, axis, 0)[1:]
        if rest.size and not (rest == first).all():
            self.tie(np.broadcast_to(first, rest.shape).ravel(), rest.ravel())
        return first

    def concat(self, parts: Sequence[Labels | None], sizes: Sequence[int]) -> Labels | None:
        """Joins arrays along one axis; parts without labels become fixed indices."""
        if all(p is None for p in parts):
            return None
        if any(p is None for p in parts):
            self._partial = True
        return np.concatenate([np.zeros(n, np.int64) if p is None else p for p, n in zip(parts, sizes, strict=True)])

    def lock(self, labels: Labels | None, reason: str, *, inexact: bool = False) -> None:
        """Forbids removal, in the name of the current node."""
        if labels is not None and labels.size:
            name, op = (self.node.name or self.node.outputs[0].name, self.node.op) if self.node else ("", "")
            self.locks.append(Lock(labels, name, op, reason, inexact))

    def lock_tensor(self, t: gs.Tensor, reason: str) -> None:
        """Forbids removal along every axis of a tensor."""
        for labels in self.get(t):
            self.lock(labels, reason)

    def contract(self, index: int, axis: int, steps: tuple[int, int] | None = None) -> None:
        """Notes that the current node sums over an axis of one of its inputs.

        Args:
            index: of the input; a weight the node contracts with its own state may be one as well.
            axis: of that input.
            steps: for integers, the inputs that hold their scale and zero point; -1 where there is none.
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
        """Notes that the current node computes a statistic over an axis of its first input, an inexact lock.

        Args:
            axis: of the data.
            params: (input index, axis) pairs of scale and shift that lie along it.
            outputs: those that have the same axis.
            counted: the node sums, and a constant behind it divides by the count.
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
        """Notes what channels are ("heads", "head_dim"); the first word on each counts."""
        if labels is not None:
            self.kinds.append((labels, kind))

    def filters(self, t: gs.Tensor, axis: int, labels: Labels | None, groups: int = 1) -> None:
        """Notes that a weight's indices along an axis are filters producing these channels."""
        if labels is not None:
            assert self.node is not None
            self.filter_sites.append(FilterSite(t, axis, labels, groups, self.node.name, self.node.op))

    def scale(self, t: gs.Tensor, labels: Labels | None) -> None:
        """Notes a BatchNormalization scale."""
        if labels is not None:
            self.scale_sites.append(ScaleSite(t, labels))

    def view(self, out: gs.Tensor, source: gs.Tensor, perm: Sequence[int] | None = None) -> None:
        """Notes that an output is a constant seen through a transposition or a cast."""
        root, inner = self._root(source)
        self.views[out.name] = (root, tuple(inner[p] for p in perm) if perm is not None else inner)

    def follow(self, t: gs.Tensor, axis: int, weight: gs.Tensor, weight_axis: int, block: int = 1) -> None:
        """Says that an axis of a constant has the labels that an axis of a weight will have in the end.

        Args:
            block: how many neighbours on the weight's axis share one index; they then stay or go together.
        """
        self._following.append((self.node, t, axis, weight, weight_axis, block))

    def finish(self) -> None:
        """After the walk: what follows a weight gets its labels."""
        for node, t, axis, weight, weight_axis, block in self._following:
            self.node = node
            labels = self.get(weight)[weight_axis]
            if labels is not None and block > 1:
                if len(labels) % block:
                    self.lock(labels, "is quantized in blocks that do not divide it")
                    continue
                labels = self.tie_within(labels.reshape(-1, block), 1)
            self.bind(t, axis, labels)
            self.seal(t)
        self.node = None

    def seal(self, t: gs.Tensor) -> None:
        """After a node has used a constant: what its rule did not free stays fixed for good."""
        if self.is_const(t):
            root, perm = self._root(t)
            self.constants.setdefault(root.name, [None] * len(perm))
            self._sealed.add(root.name)

    def _root(self, t: gs.Tensor) -> tuple[gs.Constant, tuple[int, ...]]:
        if t.name in self.views:
            return self.views[t.name]
        return t, tuple(range(len(t.shape)))
