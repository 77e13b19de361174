"""Nodes of a model by the names that runtimes give to fused and rewritten layers."""

from __future__ import annotations

import re

import onnx_graphsurgeon as gs

from onnxprune.ir.model import Model

# Running numbers and suffixes that onnxruntime appends.
_SUFFIXES = re.compile(r"(_nchwc|_token(_\d+)?|_quant|_fused|_\d+|/\w*Fusion/?)$")
_PREFIXES = re.compile(r"^(fused |Fused |ReorderInput_|ReorderOutput_)")
_MERGED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FOLLOWERS = (
    "Relu", "Clip", "Add", "Mul", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Tanh",
    "BatchNormalization", "Sub", "Div",
)  # fmt: skip


class NodeNames:
    """Names of a model's nodes, by their own names and those of their outputs."""

    def __init__(self, model: Model) -> None:
        self._by_name: dict[str, str] = {}
        self._producer: dict[str, gs.Node] = {}
        for node in model.graph.nodes:
            name = node_name(node)
            self._by_name.setdefault(name, name)
            for t in node.outputs:
                self._producer.setdefault(t.name, node)
        for tensor, node in self._producer.items():
            self._by_name.setdefault(tensor, node_name(_dense(node)))
        for node in model.graph.nodes:
            if node.op not in _MERGED and node.op in _FOLLOWERS:
                # A fused layer has the name of its last node: it is the dense one that takes the time.
                dense = _dense(node)
                if dense is not node:
                    self._by_name[f"\0{node_name(node)}"] = node_name(dense)

    def of(self, name: str, *, fused: bool = False) -> tuple[str, ...]:
        """Return the node that a layer is named after; empty if there is none.

        Args:
            name: Name of the layer in the runtime.
            fused: The layer is a dense one, and may be named after a node that was fused into it.
        """
        text = name.strip()
        for _ in range(4):
            if fused and f"\0{text}" in self._by_name:
                return (self._by_name[f"\0{text}"],)
            if text in self._by_name:
                return (self._by_name[text],)
            shorter = _SUFFIXES.sub("", _PREFIXES.sub("", text))
            if shorter == text:
                break
            text = shorter
        return ()


def node_name(node: gs.Node) -> str:
    """Return the name of a node, or of its first output."""
    if node.name:
        return str(node.name)
    return str(node.outputs[0].name) if node.outputs else ""


def _dense(node: gs.Node) -> gs.Node:
    """Return the convolution or product whose result a chain of simple nodes passes on, else the node itself."""
    start = node
    for _ in range(6):
        if node.op in _MERGED:
            return node
        if node.op not in _FOLLOWERS:
            return start
        made = [t.inputs[0] for t in node.inputs if not isinstance(t, gs.Constant) and t.inputs]
        fed = [n for n in made if len(n.outputs[0].outputs) == 1] or made[:1]
        if not fed:
            return start
        node = fed[0]
    return start
