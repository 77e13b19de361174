"""Unstructured pruning: the smallest weights become zero. Shapes do not change: files shrink, models run no faster.

Before:  Conv(x, W) with W [64, 32, 3, 3]
After:   Conv(x, W * keep) with keep [64, 32, 3, 3] of zeros and ones, as a constant of the same shape and type
Formula: magnitude pruning (Han et al. 2015). Of a weight with n elements the floor(n * sparsity) of smallest |w| become
0; with scope "global" the floor(sum n * sparsity) smallest of all weights together. Of equal values the earlier weight
and the lower index become 0 first. Elements that are 0 already count.
Pattern N:M (Mishra et al. 2021: 2:4): of every M consecutive inputs of a unit, at the same kernel position, the N of
largest |w| are kept. Inputs beyond the last multiple of M are all kept (a depthwise layer, for example: one input per
unit).
Method "unit": whole units (filters; columns of a matrix [in, out]) of smallest Euclidean norm, floor(units * sparsity)
of each layer. With scope "global" it is floor(all units * sparsity), by norm / sqrt(weights of the unit), since norms
grow with the number of inputs; all units of a layer may then become 0. With a unit its bias becomes 0, and the scale
and shift of a BatchNormalization or an Add after the layer, so that its output is 0.
Conditions: 1. the weights are constants of a floating type, of Conv, ConvTranspose, Gemm and MatMul: initializers,
Constant nodes, or read through Identity, Cast and Transpose. A weight shared by several layers is pruned once; if they
read it in different directions, units and inputs are those of the first. 2. weights that match `exclude` are kept; so
are those of last layers (with no other layer between them and an output), such as classifiers in the study of weight
and unit pruning, unless `include_last`. 3. a zero unit is equivalent to a removed one if the activation maps 0 to 0 and
nothing else is added to it (a residual stream is).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.group_naming import human_name
from onnxprune.analysis.layer_weights import LayerUse, LayerWeight, constant_value, layer_weights
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir.model import Array, Model
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import unique_name

METHODS = ("weight", "unit")
SCOPES = ("layer", "global")
Mask = npt.NDArray[np.bool_]


@register
@dataclass(frozen=True)
class SparsifyWeights(Pass):
    """Set the smallest weights, or the units of smallest norm, to zero.

    Args:
        sparsity: Share that becomes zero, in [0, 1), read as its decimal digits: 0.29 of 100 is 29.
        method: "weight" or "unit".
        scope: "layer", the same share of every weight, or "global", one threshold for all.
        pattern: "N:M", N of every M inputs are kept; it determines the sparsity, so sparsity and scope are ignored.
        exclude: Glob patterns of weights to keep, by the initializer's name or the layer's (as in `inspect`).
        include_last: Prune last layers, too.

    Raises:
        OnnxPruneError: A parameter is out of range.
    """

    name: ClassVar[str] = "sparsify_weights"
    sparsity: float = 0.5
    method: str = "weight"
    scope: str = "layer"
    pattern: str = ""
    exclude: tuple[str, ...] = ()
    include_last: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise OnnxPruneError(f"sparsity must be the share that becomes zero, in [0, 1), not {self.sparsity:g}")
        if self.method not in METHODS:
            raise unknown("method", self.method, METHODS)
        if self.scope not in SCOPES:
            raise unknown("scope", self.scope, SCOPES)
        if self.pattern:
            parse_pattern(self.pattern)
            if self.method == "unit":
                raise OnnxPruneError("a pattern is for single weights, not for units", fix="--what weight")

    @property
    def summary(self) -> str:
        """Return the settings in one line, for the model's metadata."""
        how = f"pattern={self.pattern}" if self.pattern else f"sparsity={self.sparsity!r} scope={self.scope}"
        return f"method={self.method} {how}"

    def rewrite(self, model: Model) -> Model:
        """Prune every chosen weight; remaining values and all other arrays are bit-identical.

        Raises:
            OnnxPruneError: No weight can be pruned, a pattern matches none, a weight holds NaN, or a unit's bias is
                computed at run time.
        """
        chosen = prunable(model, self.exclude, self.include_last)
        if self.method == "unit":
            self._units(model, chosen)
            return model
        if self.pattern:
            kept, of = parse_pattern(self.pattern)
            masks: Sequence[Mask] = [_pattern(w, kept, of) for w in chosen]
        else:
            masks = self._smallest([_magnitude(w) for w in chosen])
        for weight, mask in zip(chosen, masks, strict=True):
            _zero(weight, mask)
        return model

    def _smallest(self, keys: Sequence[Array]) -> list[Mask]:
        """Return the masks of elements to zero, for arrays of non-negative numbers."""
        share = exact(self.sparsity)
        if self.scope == "layer":
            return [smallest([k], floor(k.size * share))[0] for k in keys]
        return smallest(keys, floor(sum(k.size for k in keys) * share))

    def _units(self, model: Model, chosen: Sequence[LayerWeight]) -> None:
        silencer = _Silencer(model.graph)
        keys = [unit_norms(w) for w in chosen]
        if self.scope == "global":
            keys = [k / np.sqrt(w.values.size / len(k)) for k, w in zip(keys, chosen, strict=True)]
        for weight, gone in zip(chosen, self._smallest(keys), strict=True):
            if gone.any():
                rows = weight.rows(np.zeros(weight.values.shape, np.bool_))
                _zero(weight, weight.stored(np.broadcast_to(gone[:, None, None], rows.shape)))
                first = weight.uses[0]
                for use in weight.uses:
                    if (use.unit_axis, use.groups) == (first.unit_axis, first.groups):
                        silencer.silence(use, gone)


@dataclass(frozen=True)
class WeightSparsity:
    """Sparsity of a weight.

    Attributes:
        name: Name of the weight.
        shape: Shape of the weight.
        elements: Number of elements.
        zeros: Number of elements that are zero.
        pruned: The pass may prune the weight.
    """

    name: str
    shape: tuple[int, ...]
    elements: int
    zeros: int
    pruned: bool


def zeros_table(model: Model, rule: SparsifyWeights) -> list[WeightSparsity]:
    """Return the sparsity of all layers' weights of a model, and whether the pass prunes them.

    Raises:
        OnnxPruneError: As `prunable`.
    """
    chosen = {w.name for w in prunable(model, rule.exclude, rule.include_last)}
    return [
        WeightSparsity(w.name, tuple(map(int, v.shape)), v.size, v.size - int(np.count_nonzero(v)), w.name in chosen)
        for w in layer_weights(model.graph)
        for v in (w.values,)
    ]


def parse_pattern(text: str) -> tuple[int, int]:
    """Return (kept, block size) of a pattern such as "2:4".

    Raises:
        OnnxPruneError: `text` is not such a pattern.
    """
    found = re.fullmatch(r"(\d{1,6}):(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise OnnxPruneError(f"a pattern is N:M, N of every M weights kept, not {text!r}", fix="for example 2:4")
    return int(found[1]), int(found[2])


def exact(share: float) -> Fraction:
    """Return a share as the decimal number that was written: 0.29, not 0.28999999999999998."""
    return Fraction(str(float(share)))


def prunable(model: Model, exclude: Sequence[str] = (), include_last: bool = False) -> list[LayerWeight]:
    """Return the weights that may be pruned under conditions 1 and 2.

    Raises:
        OnnxPruneError: There are none, or a pattern matches no weight.
    """
    weights = layer_weights(model.graph)
    named = [(w, (w.name, human_name(w.name, w.uses[0].node.name))) for w in weights]
    for pattern in exclude:
        if not any(fnmatchcase(n, pattern) for _, names in named for n in names):
            raise unknown("weight", pattern, [w.name for w in weights])
    chosen = [
        w
        for w, names in named
        if not (w.last and not include_last) and not any(fnmatchcase(n, p) for p in exclude for n in names)
    ]
    if not chosen:
        what = "the model has no weights of Conv, ConvTranspose, Gemm or MatMul" if not weights else ""
        only = all(w.last for w in weights)
        raise OnnxPruneError(
            what or "no weight is left to prune",
            fix=None if what else "--include-last" if only and not exclude else "exclude less",
        )
    return chosen


def unit_norms(weight: LayerWeight) -> npt.NDArray[np.float64]:
    """Return the Euclidean norm of every unit, [units] float64.

    Raises:
        OnnxPruneError: The weight holds NaN.
    """
    rows = weight.rows(_magnitude(weight).reshape(weight.values.shape)).astype(np.float64)
    return np.asarray(np.sqrt(np.square(rows, out=rows).sum((1, 2))))


def smallest(keys: Sequence[Array], count: int) -> list[Mask]:
    """Return masks of the `count` smallest elements of all arrays together; of equal ones the first.

    Args:
        keys: Arrays of any shape, without NaN.
        count: Number of elements, at most the total size.

    Returns:
        A flat mask for each array, [size].
    """
    if count == 0:
        return [np.zeros(k.size, np.bool_) for k in keys]
    flat = [k.reshape(-1) for k in keys]
    threshold = np.partition(np.concatenate(flat), count - 1)[count - 1]
    masks = [k < threshold for k in flat]
    missing = count - sum(int(np.count_nonzero(m)) for m in masks)
    for mask, k in zip(masks, flat, strict=True):
        ties = np.flatnonzero(k == threshold)[:missing]
        mask[ties] = True
        missing -= len(ties)
    return masks


def _magnitude(weight: LayerWeight) -> Array:
    """Return |w| exactly, flat, in a type that numpy computes with."""
    values = weight.values.reshape(-1)
    wide = values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
    out = np.abs(wide)
    if np.isnan(out).any():
        raise OnnxPruneError(
            "the weights contain NaN", where=weight.name, fix="export the model again from a sound checkpoint"
        )
    return np.asarray(out)


def _pattern(weight: LayerWeight, kept: int, of: int) -> Mask:
    """Return the mask of elements to zero so that `kept` of every `of` inputs remain, flat in the stored order."""
    rows = weight.rows(_magnitude(weight).reshape(weight.values.shape))  # [units, inputs, positions]
    whole = rows.shape[1] // of * of
    mask = np.zeros(rows.shape, np.bool_)
    blocks = rows[:, :whole].reshape(len(rows), -1, of, rows.shape[2])
    order = np.argsort(blocks, axis=2, kind="stable")[:, :, : of - kept]
    inside = np.zeros(blocks.shape, np.bool_)
    np.put_along_axis(inside, order, True, axis=2)
    mask[:, :whole] = inside.reshape(len(rows), whole, rows.shape[2])
    return np.asarray(weight.stored(mask).reshape(-1))


def _zero(weight: LayerWeight, mask: Mask) -> None:
    """Set elements to zero in a copy, in the stored order."""
    if not mask.any():
        return
    values = np.array(weight.values, order="C")
    values.reshape(-1)[mask.reshape(-1)] = 0
    weight.replace(values)


class _Silencer:
    """Writer that zeroes what a layer and the per-channel constants after it add to some units."""

    def __init__(self, graph: gs.Graph) -> None:
        self.names = set(graph.tensors())
        self.outputs = {id(t) for t in graph.outputs}

    def silence(self, use: LayerUse, removed: Mask) -> None:
        """Zero the constants after a layer, up to the first node that is not a per-channel constant operation.

        Args:
            use: Use of the weight by a layer.
            removed: Mask of its zeroed units, [units].
        """
        node, axis = use.node, use.from_end
        if node.op in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and node.inputs[2].name:
            self._clear(node, 2, -1, removed)
        elif node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name:
            self._clear(node, 2, axis, removed)
        while True:
            out = node.outputs[0]
            if id(out) in self.outputs or len(out.outputs) != 1:
                return
            node = out.outputs[0]
            step = _STEPS.get(node.op) if node.domain in (None, "", "ai.onnx") else None
            if step is None or not step(self, node, out, axis, removed):
                return

    def _normalization(self, node: gs.Node, out: gs.Tensor, axis: int, removed: Mask) -> bool:
        """Zero scale and shift: scale * (0 - mean) / deviation + shift."""
        if node.inputs[0] is not out:
            return False
        self._clear(node, 1, -1, removed)
        self._clear(node, 2, -1, removed)
        return True

    def _shift(self, node: gs.Node, out: gs.Tensor, axis: int, removed: Mask) -> bool:
        """Zero the constant of 0 + c."""
        index = 1 if node.inputs[0] is out else 0
        values = constant_value(node.inputs[index])
        if values is None or (values.ndim >= -axis and values.shape[axis] not in (1, len(removed))):
            return False
        self._clear(node, index, axis, removed)
        return True

    def _scale(self, node: gs.Node, out: gs.Tensor, axis: int, removed: Mask) -> bool:
        """Continue after 0 * c and 0 / c, which are 0. (c / 0 is infinite, independent of later additions.)"""
        return constant_value(node.inputs[1 if node.inputs[0] is out else 0]) is not None

    def _clear(self, node: gs.Node, index: int, axis: int, removed: Mask) -> None:
        """Set a constant to zero at some units, for this node alone."""
        t = node.inputs[index]
        values = constant_value(t)
        if values is None:
            raise OnnxPruneError(
                "a unit cannot be set to zero where its bias is not a constant",
                where=f"{node.op} {node.name or node.outputs[0].name!r}",
                fix="exclude the weight (--exclude)",
            )
        shape = [1] * max(0, -axis - values.ndim) + list(values.shape)
        new = values.reshape(shape)
        if shape[axis] != len(removed):  # a scalar for all units
            shape[axis] = len(removed)
            new = np.broadcast_to(new, shape)
        new = np.array(new)
        np.moveaxis(new, axis, -1)[..., removed] = 0
        if np.array_equal(new, np.broadcast_to(values, new.shape)):
            return
        if isinstance(t, gs.Constant) and len(t.outputs) == 1 and id(t) not in self.outputs:
            t.values = new
        else:
            node.inputs[index] = gs.Constant(unique_name(self.names, f"{t.name}_zeroed"), new)


_STEPS: dict[str, Callable[[_Silencer, gs.Node, gs.Tensor, int, Mask], Any]] = {
    "BatchNormalization": _Silencer._normalization,
    "Add": _Silencer._shift,
    "Sub": _Silencer._shift,
    "Mul": _Silencer._scale,
    "Div": _Silencer._scale,
}
