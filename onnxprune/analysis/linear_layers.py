"""Conv, ConvTranspose, Gemm and MatMul as `outputs = rows @ matrix + bias`, group by group.

A *row* holds the inputs of one output position, `[channels of the group * kernel]`, ordered by input channel. Least
squares, Gram matrices and per-channel errors are then the same for all four operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.ir.model import Array

Matrix = npt.NDArray[np.float64]
Picks = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LinearNode:
    """Node whose weight is a constant.

    Attributes:
        node: Node of the graph.
        weight: Weight, a constant with no other consumer.
        bias: Constant added to the outputs, by the node itself or by an Add after it; None if there is none.
        output: Name of the tensor after the bias.
        groups: Groups of a convolution; 1 for others.
        kernel: Number of kernel positions; 1 for Gemm and MatMul.
    """

    node: gs.Node
    weight: gs.Constant
    bias: gs.Constant | None
    output: str
    groups: int
    kernel: int

    @property
    def intercept(self) -> bool:
        """True if the outputs can be shifted: the node has or accepts a bias."""
        return self.bias is not None or self.node.op != "MatMul"

    @property
    def spatial(self) -> bool:
        """True for a convolution."""
        return self.node.op in ("Conv", "ConvTranspose")

    @property
    def outputs(self) -> int:
        """Number of outputs per position, over all groups."""
        shape = self.weight.shape
        if self.node.op == "Conv":
            return int(shape[0])
        if self.node.op == "ConvTranspose":
            return int(shape[1]) * self.groups
        return int(shape[0 if self._transposed else 1])

    @property
    def inputs(self) -> int:
        """Number of input channels of a group."""
        shape = self.weight.shape
        if self.node.op == "Conv":
            return int(shape[1])
        if self.node.op == "ConvTranspose":
            return int(shape[0]) // self.groups
        return int(shape[1 if self._transposed else 0])

    @property
    def _transposed(self) -> bool:
        return bool(self.node.attrs.get("transB", 0))

    @property
    def alpha(self) -> float:
        """Factor of a Gemm's product."""
        return _factor(self.node, "alpha")

    @property
    def beta(self) -> float:
        """Factor of a Gemm's bias."""
        return _factor(self.node, "beta")

    def matrix(self, outputs: Picks | None = None) -> Matrix:
        """Return the weight as float64 [groups, inputs * kernel, outputs of a group], optionally of some outputs."""
        w = np.asarray(self.weight.values)
        if self.node.op == "Conv":
            found = w.reshape(self.groups, w.shape[0] // self.groups, -1).transpose(0, 2, 1)
        elif self.node.op == "ConvTranspose":
            split = w.reshape(self.groups, -1, w.shape[1], self.kernel).transpose(0, 1, 3, 2)
            found = split.reshape(self.groups, -1, w.shape[1])
        else:
            found = (w.T if self._transposed else w)[None]
        if outputs is not None:
            found = found[:, :, outputs]
        out = np.array(found, np.float64, order="C")
        out *= self.alpha
        return out

    def values_of(self, matrix: Matrix) -> Array:
        """Return the inverse of `matrix`: values in the shape and type of the weight."""
        shape, dtype = tuple(self.weight.shape), self.weight.dtype
        if self.node.op == "Conv":
            return np.asarray(matrix.transpose(0, 2, 1).reshape(shape), dtype)
        if self.node.op == "ConvTranspose":
            split = matrix.reshape(self.groups, -1, self.kernel, shape[1])
            return np.asarray(split.transpose(0, 1, 3, 2).reshape(shape), dtype)
        return np.asarray((matrix[0].T if self._transposed else matrix[0]) / self.alpha, dtype)

    def shift(self) -> Matrix:
        """Return the values added to the outputs, float64 [outputs]."""
        if self.bias is None:
            return np.zeros(self.outputs)
        return self.beta * np.asarray(self.bias.values).astype(np.float64).ravel()

    def set_weights(self, matrix: Matrix, shift: Matrix | None = None, names: set[str] | None = None) -> None:
        """Set the weight (in the form of `matrix`) and optionally the bias (in the form of `shift`) of the node.

        A convolution or Gemm without a bias gets one. Its name avoids those in `names` and is added to them.
        """
        self.weight.values = self.values_of(matrix)
        if shift is None:
            return
        values = (shift / self.beta).astype(self.weight.dtype)
        if self.bias is not None:
            self.bias.values = values.reshape(self.bias.shape).astype(self.bias.dtype)
        else:
            assert self.intercept
            name = f"{self.weight.name}_bias"
            while names is not None and name in names:
                name += "_"
            if names is not None:
                names.add(name)
            made = gs.Constant(name, values)
            if len(self.node.inputs) > 2:  # an empty name is a placeholder
                self.node.inputs[2] = made
            else:
                self.node.inputs.append(made)

    def count(self, x: Array) -> int:
        """Return the number of output positions per sample of an input [n, ...]."""
        return prod(len(taps) for taps in self._taps(x.shape[2:])) if self.spatial else prod(x.shape[1:-1])

    def picked(self, y: Array, picks: Picks | None = None) -> Array:
        """Return outputs [n, ...] as [n * positions, outputs], optionally at some positions of every sample only."""
        flat = (
            y.reshape(len(y), y.shape[1], -1).transpose(0, 2, 1) if self.spatial else y.reshape(len(y), -1, y.shape[-1])
        )
        if picks is not None:
            flat = flat[:, picks]
        return flat.reshape(-1, flat.shape[-1])

    def rows(self, x: Array, picks: Picks | None = None) -> Array:
        """Return the rows of inputs [n, ...]: [groups, n * positions, inputs * kernel], in the input's type."""
        if not x.size:  # a detector that finds no boxes
            return np.zeros((self.groups, 0, self.inputs * self.kernel), x.dtype)
        if not self.spatial:
            flat = x.reshape(len(x), -1, x.shape[-1])
            if picks is not None:
                flat = flat[:, picks]
            return flat.reshape(1, -1, flat.shape[-1])
        taps = self._taps(x.shape[2:])
        places = tuple(len(t) for t in taps)
        at = np.unravel_index(np.arange(prod(places)) if picks is None else picks, places)
        reads = np.zeros((len(at[0]), 1), np.int64)  # [positions, kernel]: pixel index
        inside = np.ones((len(at[0]), 1), np.bool_)
        for axis, size in enumerate(x.shape[2:]):
            tap = taps[axis][at[axis]]
            reads = (reads[:, :, None] * size + np.maximum(tap, 0)[:, None]).reshape(len(reads), -1)
            inside = (inside[:, :, None] & (tap >= 0)[:, None]).reshape(len(reads), -1)
        # One gather for all inputs of a position is several times faster than windows of a padded copy.
        pixels = prod(x.shape[2:])
        places_of = (np.arange(self.inputs)[:, None] * pixels + reads[:, None]).reshape(len(reads), -1)
        found = x.reshape(len(x), self.groups, -1).take(places_of, axis=2, mode="clip")
        if not inside.all():
            by_channel = found.reshape(*found.shape[:3], self.inputs, self.kernel)
            by_channel *= inside[:, None]
        return found.transpose(1, 0, 2, 3).reshape(self.groups, -1, found.shape[-1])

    def _taps(self, sizes: Sequence[int]) -> list[Picks]:
        """Return, for each axis, the pixel index read per output and kernel position, [positions, kernel]; -1: none."""
        rank = len(sizes)
        strides, dilations = self._attr("strides", rank, 1), self._attr("dilations", rank, 1)
        out = []
        for axis, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True)):
            kernel = np.arange(self.weight.shape[2 + axis]) * dilation
            extent = int(kernel[-1]) + 1
            before, after = self._pads(axis, rank, size, extent, stride)
            if self.node.op == "Conv":
                places = np.arange((size + before + after - extent) // stride + 1)
                tap = places[:, None] * stride - before + kernel
            else:
                more = self._attr("output_padding", rank, 0)[axis]
                places = np.arange((size - 1) * stride + extent + more - before - after)
                tap, rest = np.divmod(places[:, None] + before - kernel, stride)
                tap[rest > 0] = -1
            out.append(np.where((tap >= 0) & (tap < size), tap, -1))
        return out

    def _attr(self, name: str, length: int, default: int) -> list[int]:
        return [int(v) for v in self.node.attrs.get(name) or [default] * length]

    def _pads(self, axis: int, rank: int, size: int, extent: int, stride: int) -> tuple[int, int]:
        auto = self.node.attrs.get("auto_pad") or "NOTSET"
        if auto == "NOTSET":
            pads = self._attr("pads", 2 * rank, 0)
            return pads[axis], pads[rank + axis]
        if auto == "VALID":
            return 0, 0
        total = max(0, (-(-size // stride) - 1) * stride + extent - size)
        return (total // 2, -(-total // 2)) if auto == "SAME_UPPER" else (-(-total // 2), total // 2)


def linear_node(node: gs.Node, outputs: frozenset[str] = frozenset()) -> LinearNode | None:
    """Return the linear view of a node; None if it is not linear in a constant of its own, or has an unsupported form.

    Args:
        node: Any node.
        outputs: Names of the graph outputs; an Add after one of them is not a bias.
    """
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.domain not in ("", "ai.onnx", None):
        return None
    data, weight, bias = (*node.inputs, None, None)[:3]
    if isinstance(data, gs.Constant) or not _own(weight) or weight.dtype.kind not in "fV":
        return None
    if bias is not None and not bias.name:
        bias = None
    if bias is not None and not _own(bias):
        return None
    out = node.outputs[0]
    if node.op in ("Conv", "ConvTranspose"):
        if node.op == "ConvTranspose" and (
            node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "") or node.attrs.get("output_shape")
        ):
            return None
        return LinearNode(node, weight, bias, out.name, int(node.attrs.get("group", 1)), prod(weight.shape[2:]))
    if len(weight.shape) != 2 or node.attrs.get("transA", 0):
        return None
    width = int(weight.shape[0 if node.attrs.get("transB", 0) else 1])
    if node.op == "MatMul":
        if len(out.outputs) == 1 and out.name not in outputs and out.outputs[0].op == "Add":
            add = out.outputs[0]
            other = next((t for t in add.inputs if t is not out), None)
            if _own(other) and _is_row(other, width):
                bias, out = other, add.outputs[0]
    elif (bias is not None and not _is_row(bias, width)) or _factor(node, "alpha") * _factor(node, "beta") == 0:
        return None
    return LinearNode(node, weight, bias, out.name, 1, 1)


def _factor(node: gs.Node, name: str) -> float:
    return float(node.attrs.get(name, 1.0)) if node.op == "Gemm" else 1.0


def _own(t: gs.Tensor | None) -> bool:
    """Return whether a tensor is a constant with a single consumer."""
    return isinstance(t, gs.Constant) and len(t.outputs) == 1


def _is_row(t: gs.Constant, width: int) -> bool:
    """Return whether adding it to [n, width] adds one number per column."""
    shape = tuple(t.shape)
    return len(shape) <= 2 and prod(shape) == width and (not shape or shape[-1] == width)
