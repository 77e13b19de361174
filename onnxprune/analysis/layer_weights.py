"""The weights of layers: which constants Conv, ConvTranspose, Gemm and MatMul multiply by, and how they lie in memory.

A graph is read as the caller made it: a weight may be an initializer or a Constant node, behind Identity, Cast or
Transpose. A *unit* is an output of a layer: a filter, a neuron, a column of a matrix [in, out].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues

from onnxprune.ir.model import Array
from onnxprune.ops import find

LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))
_CONVOLUTIONS = frozenset(("Conv", "ConvTranspose"))
# They have weights of their own, so what comes before them is not a last layer.
_OTHERS = frozenset(
    ("LSTM", "GRU", "RNN", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv")
)  # fmt: skip
_PRODUCTS = frozenset(("Gemm", "MatMul", "Einsum"))
_SIZES = frozenset(("Shape", "Size"))  # read no values
_STANDARD = (None, "", "ai.onnx")


@dataclass(frozen=True, eq=False)
class LayerUse:
    """One layer that multiplies by a weight.

    Attributes:
        node: the layer.
        unit_axis: of the stored weight, along which the units lie; with groups of a ConvTranspose, those of a group.
        input_axis: of the stored weight, along which a unit sums.
        from_end: where the units lie in the layer's output: an axis counted from the end, -1 for the last.
        groups: of a ConvTranspose, whose weight is [in, units of a group, ...]; 1 for every other layer.
    """

    node: gs.Node
    unit_axis: int
    input_axis: int
    from_end: int
    groups: int = 1


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """A constant that layers multiply by.

    Attributes:
        name: of the initializer, or of a Constant node's output.
        uses: the layers, in graph order; the first one says where units and inputs are.
        last: whether an output of the graph is reached from one of them through no other layer.
    """

    name: str
    uses: tuple[LayerUse, ...]
    last: bool
    _holder: gs.Constant | gs.Node = field(repr=False)

    @property
    def values(self) -> Array:
        """As stored, [...] of a floating type (float16, bfloat16, ... too). Not to be written to."""
        return np.asarray(_value(self._holder))

    def replace(self, values: Array) -> None:
        """Gives the graph other values of the same shape and type."""
        if isinstance(self._holder, gs.Constant):
            self._holder.values = values
        else:
            self._holder.attrs["value"] = gs.Constant(self.name, values)

    @property
    def units(self) -> int:
        """How many outputs the layer has."""
        use = self.uses[0]
        return int(self.values.shape[use.unit_axis]) * use.groups

    def rows(self, stored: Array) -> Array:
        """An array of the weight's shape as [units, inputs of a unit, positions].

        Positions are the places of the kernel, or the heads of a batched product, in the stored order.
        """
        moved = self._moved(stored)
        return moved.reshape(*moved.shape[:2], prod(moved.shape[2:]))

    def stored(self, rows: Array) -> Array:
        """The inverse of `rows`."""
        use = self.uses[0]
        shape = self._moved(np.empty(self.values.shape, np.bool_)).shape
        moved = rows.reshape(shape)
        if use.groups > 1:  # [groups * units, in, ...] -> [groups * in, units, ...]
            split = moved.reshape(use.groups, -1, *shape[1:]).swapaxes(1, 2)
            moved = split.reshape(-1, *split.shape[2:]).swapaxes(0, 1)
        return np.moveaxis(moved, (0, 1), (use.unit_axis, use.input_axis))

    def _moved(self, stored: Array) -> Array:
        """[units, inputs of a unit, ...]."""
        use = self.uses[0]
        moved = np.moveaxis(stored, (use.unit_axis, use.input_axis), (0, 1))
        if use.groups > 1:  # [units of a group, groups * in, ...]
            split = moved.swapaxes(0, 1).reshape(use.groups, -1, len(moved), *moved.shape[2:]).swapaxes(1, 2)
            moved = split.reshape(-1, *split.shape[2:])
        return moved


def layer_weights(graph: gs.Graph) -> list[LayerWeight]:
    """The floating-point weights of a graph's layers, by their first use; a weight that several layers share once.

    Weights of one axis, of integers (quantized ones), sparse ones and those inside the bodies of If and Loop are left
    out, and a product of two constants is no layer.
    """
    last = _last_layers(graph)
    found: dict[int, tuple[gs.Constant | gs.Node, str, list[LayerUse]]] = {}
    for node in graph.nodes:
        seen = _operand(node)
        if seen is None:
            continue
        root = _root(node.inputs[seen])
        assert root is not None
        holder, name, transposes = root
        values = _value(holder)
        if values is None or values.ndim < 2 or not values.size or not _floating(values):
            continue
        perm = list(range(values.ndim))
        for transpose in reversed(transposes):
            perm = [perm[p] for p in (transpose or range(values.ndim)[::-1])]
        use = _use(node, seen, perm)
        if use is not None:
            found.setdefault(id(holder), (holder, name, []))[2].append(use)
    return [
        LayerWeight(name, tuple(uses), any(id(u.node) in last for u in uses), holder)
        for holder, name, uses in found.values()
    ]


def constant_value(t: gs.Tensor) -> Array | None:
    """What a node reads, if that is constant: through Identity, Cast and Transpose as well."""
    if isinstance(t, gs.Constant):
        return _value(t)
    node = t.inputs[0] if t.inputs else None
    if node is None or node.domain not in _STANDARD or node.op not in ("Constant", "Identity", "Cast", "Transpose"):
        return None
    if node.op == "Constant":
        return _value(node)
    source = constant_value(node.inputs[0])
    spec = find(node)
    if source is None or spec is None or spec.evaluate is None:
        return None
    return np.asarray(spec.evaluate(node, [source]))


def _use(node: gs.Node, index: int, perm: Sequence[int]) -> LayerUse | None:
    """How a layer reads its weight, in axes of the stored array; stored axis `perm[i]` is the i-th one it sees."""
    rank = len(perm)
    if node.op == "Conv":
        return LayerUse(node, perm[0], perm[1], 1 - rank)
    if node.op == "ConvTranspose":
        return LayerUse(node, perm[1], perm[0], 1 - rank, int(node.attrs.get("group", 1)))
    left = index == 0
    unit = rank - 2 if left else rank - 1
    if node.op == "Gemm" and node.attrs.get("transA" if left else "transB", 0):
        unit = rank - 1 if left else rank - 2
    total = 2 * rank - 3 - unit  # the other one of the last two
    return LayerUse(node, perm[unit], perm[total], -2 if left else -1)


def _operand(node: gs.Node) -> int | None:
    """Which input of a layer is its weight."""
    if node.op not in LAYERS or node.domain not in _STANDARD:
        return None
    constant = [_root(t) is not None for t in node.inputs[:2]]
    if len(constant) < 2 or all(constant):
        return None
    if constant[1]:
        return 1
    return 0 if constant[0] and node.op not in _CONVOLUTIONS else None


def _root(t: gs.Tensor) -> tuple[gs.Constant | gs.Node, str, list[list[int] | None]] | None:
    """The constant behind a tensor, its name, and the permutations between, the nearest to the tensor first."""
    transposes: list[list[int] | None] = []
    while not isinstance(t, gs.Constant):
        node = t.inputs[0] if t.inputs else None
        if node is None or node.domain not in _STANDARD:
            return None
        if node.op == "Constant":
            return node, t.name, transposes
        if node.op == "Transpose":
            perm = node.attrs.get("perm")
            transposes.append([int(p) for p in perm] if perm else None)
        elif node.op not in ("Identity", "Cast"):
            return None
        t = node.inputs[0]
    return t, t.name, transposes


def _value(holder: gs.Constant | gs.Node) -> Array | None:
    """A constant's dense values."""
    tensor = holder if isinstance(holder, gs.Constant) else holder.attrs.get("value")
    if not isinstance(tensor, gs.Constant) or isinstance(tensor._values, SparseValues):
        return None
    return np.asarray(tensor.values)


def _floating(values: Array) -> bool:
    # The types of ml_dtypes (bfloat16, float8_*) have kind "V", so their names have to do.
    return values.dtype.kind == "f" or values.dtype.name.startswith(("bfloat", "float"))


def _last_layers(graph: gs.Graph) -> set[int]:
    """Ids of the layers from which an output of the graph is reached through no other layer."""
    made: Mapping[int, gs.Node] = {id(t): node for node in graph.nodes for t in node.outputs}
    front = [t for t in graph.outputs if not isinstance(t, gs.Constant)]
    seen = {id(t) for t in front}
    last: set[int] = set()
    while front:
        node = made.get(id(front.pop()))
        if node is None or node.op in _SIZES:
            continue
        if _is_layer(node):
            last.add(id(node))
            continue
        new = [t for t in node.inputs if not isinstance(t, gs.Constant) and id(t) not in seen]
        seen.update(map(id, new))
        front += new
    return last


def _is_layer(node: gs.Node) -> bool:
    """Whether a node has weights, of whatever type."""
    if node.op in _CONVOLUTIONS or node.op in _OTHERS:
        return True
    return node.op in _PRODUCTS and any(_root(t) is not None or _dequantized(t) for t in node.inputs[:2])


def _dequantized(t: gs.Tensor) -> bool:
    """Whether a tensor is a quantized constant."""
    node = t.inputs[0] if t.inputs else None
    while node is not None and node.op in ("Transpose", "Identity", "Cast"):
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    return bool(node is not None and node.op == "DequantizeLinear" and _root(node.inputs[0]) is not None)
