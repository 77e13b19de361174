"""Feature maps of channels: the tensors that data-driven criteria measure.

A filter's map is traced from the node that computes it through BatchNormalization and per-channel constants (so that
exports with BatchNorm and with folded BatchNorm are measured at the same tensor), then through residual additions, to
the first nonlinearity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.ir.model import Array
from onnxprune.ops.label_table import FilterSite

Stage = Literal["linear", "active"]

ACTIVATIONS = {
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Softplus",
    "Softsign", "Tanh", "Gelu", "Mish", "Swish", "ThresholdedRelu",
}  # fmt: skip
# Operators between x and the Mul that gates x in decomposed SiLU, HardSwish and GELU.
_GATES = {
    "Sigmoid", "HardSigmoid", "Erf", "Tanh", "Softplus", "Clip", "Relu", "Div", "Mul", "Add", "Pow", "Cast",
}  # fmt: skip


@dataclass(frozen=True)
class FeatureSite:
    """Tensor that holds feature maps of channels.

    Attributes:
        tensor: Name in the normalized model of the analysis.
        axis: Channel axis.
        components: Component of every index along the axis; 0 for indices that are always kept.
        filters: Filters that compute the maps; None if no weight does (padding), then the tensor is a consumer's input.
    """

    tensor: str
    axis: int
    components: npt.NDArray[np.int64]
    filters: FilterSite | None


def feature_sites(analysis: Analysis, groups: Sequence[Group], stage: Stage) -> list[FeatureSite]:
    """Return the feature maps of groups in graph order, each tensor once.

    Args:
        analysis: Coupling analysis of the model.
        groups: Groups whose channels are measured.
        stage: "linear": before the nonlinearity and before any residual addition; "active": after both. A map with
            several consumers before its nonlinearity is measured there.
    """
    wanted = np.zeros(analysis.count, bool)
    for group in groups:
        wanted[group.components] = True
    order = {id(n): i for i, n in enumerate(analysis.model.graph.nodes)}
    outputs = {t.name for t in analysis.model.graph.outputs}
    found: dict[str, tuple[int, FeatureSite]] = {}
    reached = np.zeros(analysis.count, bool)
    for site in analysis.filter_sites:
        components = analysis.component[site.labels]
        if not wanted[components].any():
            continue
        node = _node_of(site)
        tensor = _followed(node.outputs[0], stage, outputs)
        axis = _axis_of(analysis, tensor.name, components)
        if axis is None:
            tensor = node.outputs[0]
            axis = _axis_of(analysis, tensor.name, components)
        if axis is None or tensor.name in found:
            continue
        labels = analysis.table.variables[tensor.name][axis]
        assert labels is not None
        here = analysis.component[labels]
        reached[here] = True
        place = order[id(tensor.inputs[0])]
        found[tensor.name] = (place, FeatureSite(tensor.name, axis, here, site))
    lost = [g for g in groups if not reached[g.components].any()]
    return [site for _, site in sorted(found.values(), key=lambda item: item[0])] + read_sites(analysis, lost)


def read_sites(analysis: Analysis, groups: Sequence[Group]) -> list[FeatureSite]:
    """Return the data inputs of the groups' consumers (Conv, Gemm, MatMul ...), each tensor once."""
    if not groups:
        return []
    wanted = np.zeros(analysis.count, bool)
    for group in groups:
        wanted[group.components] = True
    nodes = {o.name: n for n in analysis.model.graph.nodes for o in n.outputs if o.name}
    found: dict[tuple[str, int], FeatureSite] = {}
    for c in analysis.contractions:
        components = analysis.component[c.labels]
        if wanted[components].any():
            name = nodes[c.output].inputs[c.input_index].name
            found.setdefault((name, c.axis), FeatureSite(name, c.axis, components, None))
    return list(found.values())


def channels_first(values: Array, axis: int, samples: int) -> Array:
    """Return a tensor [samples * k, ...] with channels on `axis` as [samples, channels, positions]."""
    if axis == 0:
        raise ValueError("the first axis holds the samples")
    moved = np.moveaxis(values, axis, 1)
    if len(moved) == samples:
        return moved.reshape(samples, moved.shape[1], -1)
    split = moved.reshape(samples, len(moved) // max(1, samples), moved.shape[1], -1)
    return np.moveaxis(split, 2, 1).reshape(samples, moved.shape[1], -1)


def _node_of(site: FilterSite) -> gs.Node:
    """Return the node that computes a site's maps."""
    nodes = [n for n in site.tensor.outputs if n.name == site.node and n.op == site.op] or site.tensor.outputs
    return nodes[0]


def _axis_of(analysis: Analysis, tensor: str, components: npt.NDArray[np.int64]) -> int | None:
    """Return the axis, other than the first, on which a tensor has these channels."""
    for axis, labels in enumerate(analysis.table.variables.get(tensor, [])):
        if axis and labels is not None and np.isin(analysis.component[labels], components[components > 0]).any():
            return axis
    return None


def _followed(tensor: gs.Variable, stage: Stage, outputs: set[str]) -> gs.Variable:
    """Return the tensor at a stage, traced from the output of the weight's node."""
    while tensor.name not in outputs:
        readers = {id(n): n for n in tensor.outputs}
        if len(readers) == 1:
            node = next(iter(readers.values()))
            others = [t for t in node.inputs if t is not tensor]
            constant = all(isinstance(t, gs.Constant) or not t.name for t in others)
            affine = node.op == "BatchNormalization" or (node.op in ("Add", "Sub", "Mul", "Div") and constant)
            if affine or (stage == "active" and node.op in ("Add", "Sum")):
                tensor = node.outputs[0]
                continue
            if stage == "active" and node.op in ACTIVATIONS:
                return node.outputs[0]
            if stage == "active" and node.op in ("QuantizeLinear", "DequantizeLinear"):
                tensor = node.outputs[0]  # a quantizer whose zero point is its smallest integer acts as the ReLU
                continue
        elif stage == "active" and (gated := _gated(tensor, list(readers.values()))) is not None:
            return gated
        break
    return tensor


def _gated(tensor: gs.Variable, consumers: list[gs.Node]) -> gs.Variable | None:
    """Return the output of a decomposed `x * gate(x)`; None if there is none."""
    for node in consumers:
        other = [n for n in consumers if n is not node]
        if node.op != "Mul" or len(other) != 1:
            continue
        gate = other[0]
        for _ in range(6):
            if gate.op not in _GATES or len(gate.outputs[0].outputs) != 1:
                break
            following = gate.outputs[0].outputs[0]
            if following is node:
                return node.outputs[0]
            gate = following
    return None
