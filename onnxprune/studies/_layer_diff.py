"""Layers of two models side by side: channels, inputs and MACs of every node with a weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.analysis.group_naming import human_name
from onnxprune.ops import find

Shape = Sequence[int | str]
# Operators between a constant and the node that uses it as a weight.
_BESIDE = frozenset(("Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"))
_CHANNELS_SECOND = frozenset(("Conv", "ConvInteger", "ConvTranspose", "QLinearConv"))


@dataclass(frozen=True)
class WeightedNode:
    """Node with a weight.

    Attributes:
        name: Name of its weight, without `.weight`, or of its node.
        op: Operator.
        weight: Name of the constant.
        channels, inputs: Sizes of the channel axis of its output and its input; None if unknown.
        macs: Multiply-accumulates of one sample; None if unknown.
    """

    name: str
    op: str
    weight: str
    channels: int | str | None
    inputs: int | str | None
    macs: int | None


@dataclass(frozen=True)
class LayerChange:
    """Layer that differs; the numbers are (before, after), None where a model does not have the layer.

    Attributes:
        name: Name in the first model that has it.
        op: Operator.
        channels, inputs: Sizes of the channel axis of its output and its input.
        macs: Multiply-accumulates of one sample.
        weights: Norm of the change of its weight divided by the norm before; None if the shapes differ.
    """

    name: str
    op: str
    channels: tuple[int | str | None, int | str | None]
    inputs: tuple[int | str | None, int | str | None]
    macs: tuple[int | None, int | None]
    weights: float | None = None

    @property
    def share(self) -> float | None:
        """Relative change of the MACs: -0.5 for half of them; None if unknown."""
        before, after = self.macs
        return None if not before else (after or 0) / before - 1


def layers(nodes: Sequence[gs.Node], shapes: Mapping[str, Shape], macs: Mapping[str, int]) -> dict[int, WeightedNode]:
    """Return the layers among the nodes of a model, by the index of the node.

    Args:
        nodes: Nodes of the model.
        shapes: Shapes of its activations.
        macs: Multiply-accumulates of nodes, by the name of their first output.
    """
    return {i: layer for i, node in enumerate(nodes) if (layer := _layer(node, shapes, macs)) is not None}


def _layer(node: gs.Node, shapes: Mapping[str, Shape], macs: Mapping[str, int]) -> WeightedNode | None:
    spec = find(node)
    if spec is None or spec.macs is None or not node.outputs:
        return None
    held = next(((k, root) for k, t in enumerate(node.inputs) if (root := _root(t)) is not None), None)
    if held is None:
        return None
    position, root = held
    activation = next((t for t in node.inputs if t.name in shapes and _root(t) is None), None)
    axis = 1 if node.op in _CHANNELS_SECOND else -2 if node.op == "MatMul" and position == 0 else -1

    def size(tensor: gs.Tensor | None) -> int | str | None:
        shape = shapes.get(tensor.name, ()) if tensor is not None else ()
        return shape[axis] if len(shape) >= max(axis + 1, -axis) else None

    output = node.outputs[0]
    return WeightedNode(
        human_name(root, str(node.name or output.name)), node.op, root, size(output), size(activation),
        macs.get(output.name),
    )  # fmt: skip


def _root(tensor: gs.Tensor) -> str | None:
    """Return the name of the constant of at least two dimensions that a tensor is computed from, if there is one."""
    while not isinstance(tensor, gs.Constant):
        producer = tensor.inputs[0] if len(tensor.inputs) == 1 else None
        if producer is None:
            return None
        if producer.op == "Constant":
            value = producer.attrs.get("value")
            return str(tensor.name) if isinstance(value, gs.Constant) and len(value.shape) >= 2 else None
        if producer.op not in _BESIDE or not producer.inputs:
            return None
        tensor = producer.inputs[0]
    return str(tensor.name) if len(tensor.shape) >= 2 else None


def layer_changes(
    one: Mapping[int, WeightedNode], other: Mapping[int, WeightedNode], pairs: Sequence[tuple[int, int]],
    relative: Mapping[str, float | None],
) -> tuple[tuple[LayerChange, ...], int]:  # fmt: skip
    """Return the layers that differ, those of the first model first, and the number of equal ones.

    Args:
        one, other: Layers by the index of their node.
        pairs: Indices of nodes that correspond.
        relative: Relative change of weights that differ, by their names in the first model; None for another shape.
    """
    twin = dict(pairs)
    matched = set()
    changes = []
    for i, a in one.items():
        b = other.get(twin.get(i, -1))
        if b is None:
            changes.append(LayerChange(a.name, a.op, (a.channels, None), (a.inputs, None), (a.macs, None)))
            continue
        matched.add(twin[i])
        numbers = [(a.channels, b.channels), (a.inputs, b.inputs), (a.macs, b.macs)]
        if a.weight in relative or any(x != y for x, y in numbers):
            changes.append(
                LayerChange(
                    a.name, a.op, (a.channels, b.channels), (a.inputs, b.inputs), (a.macs, b.macs),
                    relative.get(a.weight),
                )
            )  # fmt: skip
    same = len(one) - len(changes)
    alone = [b for j, b in other.items() if j not in matched]
    changes += [LayerChange(b.name, b.op, (None, b.channels), (None, b.inputs), (None, b.macs)) for b in alone]
    return tuple(changes), same
