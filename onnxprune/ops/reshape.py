"""Records of Reshape and Flatten: labels pass through the common factors of the two shapes.

Input and output dimensions are split into common factors, (N, 12, 64) -> (N, 768) into N, 12, 64. A merged axis
has its channels' labels repeated over the other factors. For a split axis one factor carries the labels: *blocks* (the
leading factor: whole groups, attention heads) or *positions* (a trailing one: the same position in every group);
labels are tied over the other factors.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.ir.symbolic import Size, quotient
from onnxprune.ops.label_table import Array, Axes, Labels, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, Shape, ints, normal_axis, register, remaining

Sizes = tuple[Size | None, ...]


@dataclass(frozen=True)
class Factor:
    """Common factor: its size and the input and output axis that contain it."""

    size: int
    source: int
    target: int


def factors(source: Shape, target: Shape) -> tuple[list[Factor], set[int]]:
    """Return the common factors of two shapes of equal volume, in order, and the source axes that have none.

    Axes that do not nest, (8, 7) -> (7, 8), have none: no index of one corresponds to indices of the other.

    >>> [f.size for f in factors((50, 11, 768), (50, 132, 64))[0]]
    [50, 11, 12, 64]
    """
    out: list[Factor] = []
    opaque: set[int] = set()
    left = [(n, i) for i, n in enumerate(source) if n != 1]
    right = [(n, j) for j, n in enumerate(target) if n != 1]
    while left and right:
        (a, i), (b, j) = left.pop(0), right.pop(0)
        if a == b:
            out.append(Factor(a, i, j))
        elif 0 < a < b and b % a == 0:
            out.append(Factor(a, i, j))
            right.insert(0, (b // a, j))
        elif b and a % b == 0:
            out.append(Factor(b, i, j))
            left.insert(0, (a // b, i))
        else:
            run = {i}
            while a != b and (left if a < b else right):
                if a < b:
                    n, k = left.pop(0)
                    a, run = a * n, run | {k}
                else:
                    b *= right.pop(0)[0]
            # A source axis that shares the target axis with a part that does not nest passes no labels either.
            opaque |= run | {f.source for f in out if f.target == j}
    return out, opaque


@functools.lru_cache(1024)
def _matched(
    shapes: tuple[Shape, Shape], sizes: tuple[Sizes, Sizes] | None
) -> tuple[Sequence[Factor], set[int], Sequence[bool]]:
    """Return the factors of two shapes, the source axes without one, and whether each factor holds for all sizes.

    Args:
        shapes: Witness shapes of a Reshape's input and output.
        sizes: Symbolic shapes; None if both are constants.
    """
    found, opaque = factors(*shapes)
    return found, opaque, [True] * len(found) if sizes is None else _nested(*sizes, found)


def _nested(source: Sizes, target: Sizes, found: Sequence[Factor]) -> list[bool]:
    """Return of every factor found for witness sizes whether it is a factor for all sizes.

    A factor begins and ends at a *cut*: equally many elements precede it in both shapes, or follow it in both;
    the two are equivalent because the shapes of a Reshape have the same volume.
    """
    before = (_products(source), _products(target))
    behind = (_products(source[::-1])[::-1], _products(target[::-1])[::-1])

    def cut(k: int, other: int, after: int) -> bool:
        """Return whether factor k begins (or ends: `after` 1), towards another one, at a cut for all sizes."""
        axes = (found[k].source, found[k].target)
        beyond = (found[other].source, found[other].target) if 0 <= other < len(found) else (-1, -1)
        # Whether an axis begins or ends at this point, in each shape; in one of them the point may lie inside an axis.
        at = [axis != another for axis, another in zip(axes, beyond, strict=True)]
        if all(at):
            return any(_same(a[axes[0] + after], b[axes[1] + after]) for a, b in (before, behind))
        here, inside = (0, 1) if at[0] else (1, 0)
        return _divides(before[inside][axes[inside]], before[here][axes[here] + after]) or _divides(
            behind[inside][axes[inside] + 1], behind[here][axes[here] + after]
        )

    return [cut(k, k - 1, 0) and cut(k, k + 1, 1) for k in range(len(found))]


def _products(sizes: Sequence[Size | None]) -> list[Size | None]:
    """Return the number of elements before every axis, and of all."""
    out: list[Size | None] = [1]
    for n in sizes:
        last = out[-1]
        out.append(None if n is None or last is None else last * n)
    return out


def _same(a: Size | None, b: Size | None) -> bool:
    return a is not None and a == b


def _divides(a: Size | None, b: Size | None) -> bool:
    return a is not None and b is not None and quotient(b, a) is not None


def couple_reshape(node: gs.Node, table: LabelTable) -> None:
    """Pass labels through the common factors."""
    x, y = node.inputs[0], node.outputs[0]
    axes = table.get(x)
    if all(a is None for a in axes):
        return
    shapes, dynamic = (table.shape(x), table.shape(y)), x.name in table.sizes or y.name in table.sizes
    found, opaque, nested = _matched(shapes, (tuple(table.size(x)), tuple(table.size(y))) if dynamic else None)
    stated = _stated(node, len(shapes[1]))
    if stated is None:
        for labels in axes:
            table.lock(labels, "is reshaped by run-time arithmetic")
        return
    if prod(shapes[0]) != prod(shapes[1]):
        # The model fixes a size that its inputs leave open, so that the assumed sizes do not fit.
        for labels in axes:
            table.lock(labels, "is reshaped to a size that holds at some input sizes only")
        return
    carried: dict[int, tuple[list[int], Labels]] = {}  # output axis -> factors that vary, labels over them
    for axis, labels in enumerate(axes):
        if labels is None:
            continue
        if axis in opaque:
            table.lock(labels, "is reshaped to dimensions that do not nest")
            continue
        mine = [k for k, f in enumerate(found) if f.source == axis]
        grid = labels.reshape([found[k].size for k in mine])
        varying = [k for p, k in enumerate(mine) if not (grid == grid.take([0], p)).all()]
        if not varying:
            table.lock(labels, "is one channel by now, through the couplings before it")
            continue
        if not all(nested[k] for k in varying):
            table.lock(labels, "is reshaped to dimensions that nest at some sizes only")
            continue
        grid = grid[tuple(slice(None) if k in varying else 0 for k in mine)]
        target = _choose(node, table, found, varying)
        for p in reversed(range(len(varying))):
            if found[varying[p]].target != target:
                grid = table.tie_within(grid, p)
        kept = [k for k in varying if found[k].target == target]
        if target in carried:
            # (heads, head_dim) merged while both are free: no single array of labels describes the removable indices.
            table.lock(min(grid, carried[target][1], key=len), "is merged with an axis that has channels of its own")
            if len(grid) <= len(carried[target][1]):
                continue
        carried[target] = (kept, grid)
    out: Axes = [None] * len(table.shape(y))
    for target, (varying, grid) in carried.items():
        mine = [k for k, f in enumerate(found) if f.target == target]
        shape = [found[k].size if k in varying else 1 for k in mine]
        full = np.broadcast_to(grid.reshape(shape), [found[k].size for k in mine])
        out[target] = full.reshape(-1)
        if not stated[target]:
            table.lock(out[target], "is reshaped by run-time arithmetic")
    table.put(y, out)


def _stated(node: gs.Node, rank: int) -> list[bool] | None:
    """Return of every output axis whether its size is stated by a constant, which can be patched, or inferred.

    The operand is a constant, or joined from single elements for this node alone (by the pass fold_shapes).
    """
    if len(node.inputs) < 2 or isinstance(node.inputs[1], gs.Constant):
        return [True] * rank
    joined = _elements(node)
    if joined is None or len(joined.inputs) != rank:
        return None
    return [isinstance(t, gs.Constant) and int(t.values.reshape(-1)[0]) != 0 for t in joined.inputs]


def _elements(node: gs.Node) -> gs.Node | None:
    """Return the Concat of single elements that computes the shape operand; None if there is none."""
    if len(node.inputs) < 2 or not node.inputs[1].inputs:
        return None
    operand = node.inputs[1]
    joined = operand.inputs[0]
    if joined.op != "Concat" or len(operand.outputs) > 1:
        return None
    return joined if all(list(t.shape or ()) == [1] for t in joined.inputs) else None


def _choose(node: gs.Node, table: LabelTable, found: Sequence[Factor], varying: Sequence[int]) -> int:
    """Return the output axis that carries the labels of a split axis."""
    targets = sorted({found[k].target for k in varying})
    if len(targets) == 1:
        return targets[0]
    targets = [t for t in targets if not picked_apart(node.outputs[0], t, table)] or targets
    normed = any(n.op == "InstanceNormalization" for n in node.outputs[0].outputs)
    if normed and 1 in targets and not table.choices.inexact:
        return 1  # GroupNorm as TorchScript exports it: removing whole groups is exact
    if len(targets) > 1 and feeds_attention(node.outputs[0], table):
        return targets[-2] if table.choices.attention == "heads" else targets[-1]
    size = {t: prod(found[k].size for k in varying if found[k].target == t) for t in targets}
    return max(targets, key=lambda t: size[t])


# Operators between a projection's Reshape and the product of queries and keys.
_TRANSPARENT = frozenset(
    [
        "Transpose",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Split",
        "Slice",
        "Gather",
        "Mul",
        "Div",
        "Add",
        "Sub",
        "Neg",
        "Concat",
        "Cast",
        "Identity",
        "Pow",
        "Sqrt",
        "LayerNormalization",
        "RMSNormalization",
        "RotaryEmbedding",
        "Softmax",
        "Where",
        "Clip",
        "Max",
        "ReduceL2",
        "Expand",
        "Tile",
        "ScatterND",
        "Relu",
    ]
)


def feeds_attention(t: gs.Tensor, table: LabelTable, limit: int = 64) -> bool:
    """Return whether a tensor reaches a product of two activations through operators that only move or scale it."""
    seen: set[int] = set()
    front = [t]
    while front and len(seen) < limit:
        for node in front.pop().outputs:
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.op in ("MatMul", "Einsum", "FusedMatMul", "TransposeMatMul") and not any(
                table.is_const(i) for i in node.inputs[:2]
            ):
                return True
            if node.op in ("Attention", "MultiHeadAttention", "GroupQueryAttention"):
                return True
            if node.op in _TRANSPARENT:
                front.extend(node.outputs)
    return False


def picked_apart(t: gs.Tensor, axis: int, table: LabelTable) -> bool:
    """Return whether later nodes index an axis one by one (the 3 of packed queries, keys and values)."""
    rank = len(table.shape(t))
    for node in t.outputs:
        if not node.outputs or node.outputs[0].name not in table.shapes:
            continue
        out = node.outputs[0]
        follow: int | None = None
        if node.op in ("Gather", "Split"):
            if normal_axis(int(node.attrs.get("axis", 0)), rank) == axis:
                return True
            follow = axis if len(table.shape(out)) == rank else None
        elif node.op == "Transpose":
            follow = ints(node.attrs.get("perm", range(rank - 1, -1, -1))).index(axis)
        elif node.op in ("Squeeze", "Unsqueeze", "Mul", "Div", "Add", "Cast"):
            # Axes of size 1 are added or dropped; the others keep their order.
            place = [i for i, n in enumerate(table.shape(t)) if n != 1].index(axis)
            solid = [i for i, n in enumerate(table.shape(out)) if n != 1]
            follow = solid[place] if place < len(solid) else None
        if follow is not None and picked_apart(out, follow, table):
            return True
    return False


def patch_reshape(node: gs.Node, patcher: Patcher) -> None:
    """Update stated sizes; -1 (infer) adapts itself, and 0 (copy) is kept where both axes have the same size."""
    value = patcher.constant(node, 1)
    if value is None:
        joined = _elements(node)
        for axis in range(len(joined.inputs)) if joined is not None else ():
            keep = patcher.keep(node.outputs[0], axis)
            element = patcher.constant(joined, axis)
            if keep is not None and element is not None and int(element.reshape(-1)[0]) > 0:
                patcher.replace(joined, axis, np.full(1, keep.sum(), element.dtype))
        return
    value = value.copy()
    changed = False
    for axis in range(len(value)):
        keep = patcher.keep(node.outputs[0], axis)
        if value[axis] == 0 and not node.attrs.get("allowzero", 0):
            # 0 copies the input's dimension of the same index, which may belong to another axis.
            if remaining(patcher, node.inputs[0], axis) == remaining(patcher, node.outputs[0], axis):
                continue
            value[axis] = remaining(patcher, node.outputs[0], axis)
            changed = True
        elif keep is not None and value[axis] > 0:
            value[axis] = keep.sum()
            changed = True
    if changed:
        patcher.replace(node, 1, value)


def _evaluate_reshape(node: gs.Node, values: Sequence[Array]) -> Array:
    shape = ints(values[1])
    if not node.attrs.get("allowzero", 0):
        shape = [values[0].shape[i] if n == 0 else n for i, n in enumerate(shape)]
    return np.reshape(values[0], shape)


def _evaluate_flatten(node: gs.Node, values: Sequence[Array]) -> Array:
    shape = values[0].shape
    axis = int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    return np.reshape(values[0], (prod(shape[:axis]), prod(shape[axis:])))


register(OpSpec("Reshape", couple_reshape, patch=patch_reshape, evaluate=_evaluate_reshape))
register(OpSpec("Flatten", couple_reshape, evaluate=_evaluate_flatten))  # a Reshape to two axes
