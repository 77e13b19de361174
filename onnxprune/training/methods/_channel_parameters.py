"""Trained parameters of each channel, from an analysis and a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
import torch
from torch import Tensor, nn

from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.ops.label_table import LabelTable
from onnxprune.torch_bridge import bindings

Role = Literal["filter", "scale", "vector", "reader"]

# Operators whose weights produce channels along one axis and consume them along another, with those inputs.
_PRODUCTS: Mapping[str, tuple[int, ...]] = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (0, 1), "MatMul": (0, 1)}


@dataclass(frozen=True)
class ChannelAxis:
    """Axis of a trained parameter whose indices are channels.

    Attributes:
        parameter: parameter of the module.
        axis: axis of the parameter; if the module holds the transpose, not the initializer's axis.
        components: component of every index along the axis, int64 [n]; 0 for those that cannot be removed.
        role: "filter" (produces the channels), "scale" (BatchNorm's), "vector" (a bias, shift, slope or anything else
            that has its own numbers for a channel) or "reader" (weights that take the channels in).
        initializer: name in the normalized graph.
    """

    parameter: nn.Parameter = field(repr=False)
    axis: int
    components: npt.NDArray[np.int64] = field(repr=False)
    role: Role
    initializer: str


def members(module: nn.Module, analysis: Analysis) -> tuple[ChannelAxis, ...]:
    """Return the axes of trained parameters that hold channels of prunable groups, in the order of the bindings.

    Args:
        module: from `to_torch`, not wrapped.
        analysis: analysis of the model that was converted.

    Raises:
        OnnxPruneError: the module and the analysis do not belong together.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    roles = _Roles(analysis)
    seen: set[tuple[int, int]] = set()  # two nodes that share a weight share its parameter
    out: list[ChannelAxis] = []
    for b in bindings(module):
        parameter = parameters.get(b.path)
        axes = analysis.table.constants.get(b.initializer)
        if b.kind != "trained":
            continue
        if parameter is None or axes is None or parameter.ndim != len(axes):
            raise _strangers(b.initializer)
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            place = len(axes) - 1 - axis if b.transposed else axis
            if parameter.shape[place] != len(labels):
                raise _strangers(b.initializer)
            components = analysis.component[labels]
            if components.any() and (id(parameter), place) not in seen:
                seen.add((id(parameter), place))
                out.append(ChannelAxis(parameter, place, components, roles.of(b.initializer, axis), b.initializer))
    return tuple(out)


def _strangers(initializer: str) -> OnnxPruneError:
    return OnnxPruneError(
        "the module and the analysis do not belong together",
        where=f"initializer {initializer!r}",
        fix="analyze the model that to_torch was called with",
    )


def root(table: LabelTable, t: gs.Tensor) -> tuple[str, tuple[int, ...]]:
    """Return the initializer of a weight, and its axes in the weight's order: a Transpose may lie between."""
    constant, perm = table.views.get(t.name, (t, tuple(range(len(table.shape(t))))))
    return str(constant.name), perm


class _Roles:
    """Roles of an initializer's axes for their channels."""

    def __init__(self, analysis: Analysis) -> None:
        table = analysis.table
        self.scales = {root(table, site.tensor)[0] for site in analysis.scale_sites}
        self.filters: set[tuple[str, int]] = set()
        for site in analysis.filter_sites:
            name, perm = root(table, site.tensor)
            # A grouped ConvTranspose [in, out / groups, ...] may tell its filters' channels by the first axis alone.
            told = table.constants[name][perm[site.axis]] is not None
            self.filters.add((name, perm[site.axis if told else 0]))
        self.products = {
            root(table, t)[0]
            for node in analysis.model.graph.nodes
            for i, t in enumerate(node.inputs)
            if (node.op == "Einsum" or i in _PRODUCTS.get(node.op, ())) and not node.domain and table.is_const(t)
        }

    def of(self, initializer: str, axis: int) -> Role:
        if (initializer, axis) in self.filters:
            return "filter"
        if initializer in self.scales:
            return "scale"
        return "reader" if initializer in self.products else "vector"


class SquaredNorms:
    """Sums of squares over all entries of each component, in a few operations per parameter.

    An entry on two axes of the same component (a weight that consumes and produces one residual stream) counts once for
    each.

    Args:
        chosen: what belongs to the components.
        count: number of components, 0 included.

    Attributes:
        sizes: entries of each component, float32 [count].
    """

    def __init__(self, chosen: Sequence[ChannelAxis], count: int) -> None:
        self.count = count
        by_parameter: dict[int, list[ChannelAxis]] = {}
        for m in chosen:
            by_parameter.setdefault(id(m.parameter), []).append(m)
        self._parameters = [part[0].parameter for part in by_parameter.values()]
        self._axes = [[m.axis for m in part] for part in by_parameter.values()]
        ordered = [m for part in by_parameter.values() for m in part]
        index = np.concatenate([m.components for m in ordered] or [np.zeros(0, np.int64)])
        entries = [np.full(len(m.components), m.parameter.numel() // len(m.components)) for m in ordered]
        weights = np.concatenate([*entries, np.zeros(0, np.int64)])
        self.sizes = torch.from_numpy(np.bincount(index, weights, count).astype(np.float32))
        self._index = torch.from_numpy(index)

    def __call__(self) -> Tensor:
        """Return the sums, [count], on the parameters' device; index 0 sums entries that cannot be removed."""
        if not self._parameters:
            return torch.zeros(self.count)
        values = _AxisSquares.apply(self._axes, *self._parameters)
        if self._index.device != values.device:
            self._index, self.sizes = self._index.to(values.device), self.sizes.to(values.device)
        return values.new_zeros(self.count).index_add(0, self._index, values)


class _AxisSquares(torch.autograd.Function):
    """Sums of squares along axes of tensors: for every tensor and each of its axes [n], one after the other.

    Autograd would keep the squares of all weights, and add up a gradient of their size for every axis.
    """

    @staticmethod
    def forward(ctx: Any, axes: Sequence[Sequence[int]], *tensors: Tensor) -> Tensor:
        ctx.axes = axes
        ctx.save_for_backward(*tensors)
        sums = []
        for t, mine in zip(tensors, axes, strict=True):
            squares = (t if t.dtype in (torch.float32, torch.float64) else t.float()).square()
            for axis in mine:
                # Whole rows at a time: sums over the few positions of a kernel are slow on the CPU.
                before, n = prod(t.shape[:axis]), t.shape[axis]
                part = squares.reshape(before, -1).sum(0) if before > 1 else squares
                sums.append(part.reshape(n, -1).sum(1))
        return torch.cat(sums)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out: list[Tensor | None] = [None]
        start = 0
        for place, (t, mine) in enumerate(zip(ctx.saved_tensors, ctx.axes, strict=True), 1):
            slope: Tensor | None = None
            for axis in mine:
                part = 2 * grad[start : start + t.shape[axis]]
                start += t.shape[axis]
                part = part.reshape([-1 if i == axis else 1 for i in range(t.ndim)])
                slope = part if slope is None else slope + part
            assert slope is not None
            out.append((t * slope).to(t.dtype) if ctx.needs_input_grad[place] else None)
        return tuple(out)
