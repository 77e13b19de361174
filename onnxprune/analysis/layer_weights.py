"""Weights of layers: the constants that Conv, ConvTranspose, Gemm and MatMul multiply by, and their memory layout.

The graph is the caller's, not normalized: a weight may be an initializer or a Constant node, behind Identity, Cast or
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
# Operators with weights of their own: a layer before them is not a last layer.
_OTHERS = frozenset(
    ("LSTM", "GRU", "RNN", "ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DeformConv")
)  # fmt: skip
_PRODUCTS = frozenset(("Gemm", "MatMul", "Einsum"))
_SIZES = frozenset(("Shape", "Size"))  # read no values
_STANDARD = (None, "", "ai.onnx")


@dataclass(frozen=True, eq=False)
class LayerUse:
    """Layer that multiplies by a weight.

    Attributes:
        node: Node of the layer.
        unit_axis: Axis of the stored weight that holds the units; for a grouped ConvTranspose, the units of one group.
        input_axis: Axis of the stored weight that a unit sums over.
        from_end: Axis of the layer's output that holds the units, counted from the end: -1 is the last.
        groups: Groups of a ConvTranspose, whose weight is [in, units of a group, ...]; 1 for all other layers.
    """

    node: gs.Node
    unit_axis: int
    input_axis: int
    from_end: int
    groups: int = 1


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """Constant that layers multiply by.

    Attributes:
        name: Name of the initializer, or of the Constant node's output.
        uses: Layers in graph order; the first defines the axes of units and inputs.
        last: Whether a graph output is reached from one of them without passing another layer.
    """

    name: str
    uses: tuple[LayerUse, ...]
    last: bool
    _holder: gs.Constant | gs.Node = field(repr=False)

    @property
    def values(self) -> Array:
        """Values as stored, [...] of a floating-point type (float16 and bfloat16 included); read-only."""
        return np.asarray(_value(self._holder))

    def replace(self, values: Array) -> None:
        """Set other values of the same shape and type."""
        if isinstance(self._holder, gs.Constant):
            self._holder.values = values
        else:
            self._holder.attrs["value"] = gs.Constant(self.name, values)

    @property
    def units(self) -> int:
        """Number of outputs of the layer."""
        use = self.uses[0]
        return int(self.values.shape[use.unit_axis]) * use.groups

    def rows(self, stored: Array) -> Array:
        """Return an array of the weight's shape as [units, inputs of a unit, positions].

        Positions are those of the kernel, or the heads of a batched product, in stored order.
        """
        moved = self._moved(stored)
        return moved.reshape(*moved.shape[:2], prod(moved.shape[2:]))

    def stored(self, rows: Array) -> Array:
        """Return the inverse of `rows`: an array in the weight's stored shape."""
        use = self.uses[0]
        shape = self._moved(np.empty(self.values.shape, np.bool_)).shape
        moved = rows.reshape(shape)
        if use.groups > 1:  # [groups * units, in, ...] -> [groups * in, units, ...]
            split = moved.reshape(use.groups, -1, *shape[1:]).swapaxes(1, 2)
            moved = split.reshape(-1, *split.shape[2:]).swapaxes(0, 1)
        return np.moveaxis(moved, (0, 1), (use.unit_axis, use.input_axis))

    def _moved(self, stored: Array) -> Array:
        """Return an array of the weight's shape as [units, inputs of a unit, ...]."""
        use = self.uses[0]
        moved = np.moveaxis(stored, (use.unit_axis, use.input_axis), (0, 1))
        if use.groups > 1:  # [units of a group, groups * in, ...]
            split = moved.swapaxes(0, 1).reshape(use.groups, -1, len(moved), *moved.shape[2:]).swapaxes(1, 2)
            moved = split.reshape(-1, *split.shape[2:])
        return moved


def layer_weights(graph: gs.Graph) -> list[LayerWeight]:
    """Return the floating-point weights of a graph's layers, in the order of first use; shared weights once.

    Excluded are one-dimensional, integer (quantized) and sparse weights, weights inside bodies of Loop and Scan, and
    products of two constants.
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
    """Return the value of a constant tensor, also behind Identity, Cast and Transpose; None if it is not constant."""
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
    """Return the use of a weight by a layer; axis i of the operand is stored axis `perm[i]`."""
    rank = len(perm)
    if node.op == "Conv":
        return LayerUse(node, perm[0], perm[1], 1 - rank)
    if node.op == "ConvTranspose":
        return LayerUse(node, perm[1], perm[0], 1 - rank, int(node.attrs.get("group", 1)))
    left = index == 0
    unit = rank - 2 if left else rank - 1
    if node.op == "Gemm" and node.attrs.get("transA" if left else "transB", 0):
        unit = rank - 1 if left else rank - 2
    total = 2 * rank - 3 - unit  # the other of the last two axes
    return LayerUse(node, perm[unit], perm[total], -2 if left else -1)


def _operand(node: gs.Node) -> int | None:
    """Return the index of the input that is a layer's weight; None if there is none."""
    if node.op not in LAYERS or node.domain not in _STANDARD:
        return None
    constant = [_root(t) is not None for t in node.inputs[:2]]
    if len(constant) < 2 or all(constant):
        return None
    if constant[1]:
        return 1
    return 0 if constant[0] and node.op not in _CONVOLUTIONS else None


def _root(t: gs.Tensor) -> tuple[gs.Constant | gs.Node, str, list[list[int] | None]] | None:
    """Return the constant behind a tensor, its name, and the permutations between, nearest to the tensor first."""
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
    """Return the dense values of a constant."""
    tensor = holder if isinstance(holder, gs.Constant) else holder.attrs.get("value")
    if not isinstance(tensor, gs.Constant) or isinstance(tensor._values, SparseValues):
        return None
    return np.asarray(tensor.values)


def _floating(values: Array) -> bool:
    # Types of ml_dtypes (bfloat16, float8_*) have kind "V" and are recognized by name.
    return values.dtype.kind == "f" or values.dtype.name.startswith(("bfloat", "float"))


def _last_layers(graph: gs.Graph) -> set[int]:
    """Return ids of the layers from which a graph output is reached without passing another layer."""
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
    """Return whether a node has weights of any type."""
    if node.op in _CONVOLUTIONS or node.op in _OTHERS:
        return True
    return node.op in _PRODUCTS and any(_root(t) is not None or _dequantized(t) for t in node.inputs[:2])


def _dequantized(t: gs.Tensor) -> bool:
    """Return whether a tensor is a quantized constant."""
    node = t.inputs[0] if t.inputs else None
    while node is not None and node.op in ("Transpose", "Identity", "Cast"):
        node = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    return bool(node is not None and node.op == "DequantizeLinear" and _root(node.inputs[0]) is not None)
