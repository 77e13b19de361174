"""Model as a list of ONNX nodes, with classes of tensors (fixed, selected, discontinuous).

Works on ONNX messages, not on the graph that the compiler rewrites.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.ir.branches import (
    FLAT,
    LOOP_START,
    describe,
    flat,
    is_flat_if,
    is_loop_end,
    is_loop_start,
    nested,
    places,
)
from onnxprune.ir.branches import reads as reads
from onnxprune.ir.model import Array, Model
from onnxprune.ir.writer import to_skeleton

SIZE_OPS = frozenset(("Shape", "Size"))
"""Operators that read the shape of a tensor and no values."""
_LISTS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
_EXTERNAL = 2**16  # constants of at least this many bytes are passed to onnxruntime without a copy
INSERTED = "//"
"""Part of every name that the checker inserts."""
EXECUTED, SKIPPED = f"{INSERTED}executed", f"{INSERTED}skipped"
SIDE = f"{INSERTED}side"
"""Constants [1] and [], by which a branch shows whether it was executed."""
COMPUTED = "//computed"
"""Suffix of a computed tensor whose consumers read a substitute chosen by the checker."""


def bodies(nodes: Sequence[NodeProto]) -> Iterator[onnx.GraphProto]:
    """Return an iterator over all bodies of these nodes, nested ones included."""
    for node in nodes:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield body
                yield from bodies(body.node)


@dataclass
class Graph:
    """Nodes of a model in topological order, Ifs in flat form, its constants, and the producer of each tensor.

    Attributes:
        shell: Model with IR version, opsets and functions only.
        nodes: Nodes without Constant nodes, whose values are in `constants`.
        constants: Headers of initializers and Constant nodes; the data of large ones is in `arrays`.
        arrays: Values of large constants by name.
        inputs: Graph inputs, except those that override an initializer.
        outputs: Graph outputs by name, in order.
        sparse: Sparse initializers, copied unchanged.
        writer: Tensor name -> index of its producer.
        read: Names that each node reads, bodies included.
        fixed: Tensors that depend only on constants and sizes.
    """

    shell: onnx.ModelProto
    nodes: list[NodeProto]
    constants: dict[str, TensorProto]
    arrays: dict[str, Array]
    inputs: dict[str, onnx.ValueInfoProto]
    outputs: dict[str, onnx.ValueInfoProto]
    sparse: list[onnx.SparseTensorProto] = field(default_factory=list)
    writer: dict[str, int] = field(default_factory=dict)
    read: list[list[str]] = field(default_factory=list)
    fixed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: Model) -> Graph:
        """Return the graph of a model; it shares the model's weights."""
        proto, arrays = to_skeleton(model)
        proto, _ = flat(proto)
        shell = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
        constants = {t.name: t for t in proto.graph.initializer}
        nodes = []
        for node in proto.graph.node:
            tensor = _constant(node)
            if tensor is None:
                nodes.append(node)
            else:
                constants[node.output[0]] = tensor
        inputs = {v.name: v for v in proto.graph.input if v.name not in constants}
        outputs = {v.name: v for v in proto.graph.output}
        graph = cls(shell, nodes, constants, arrays, inputs, outputs, list(proto.graph.sparse_initializer))
        graph.index()
        return graph

    def index(self) -> None:
        """Sort the nodes topologically; compute the producers and the fixed tensors."""
        made = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        known = [reads(n) for n in self.nodes]
        order: list[int] = []
        state = [0] * len(self.nodes)
        for start in range(len(self.nodes)):
            stack = [start]
            while stack:
                i = stack[-1]
                waiting = [made[r] for r in known[i] if r in made and not state[made[r]]]
                if state[i] or not waiting:
                    stack.pop()
                    if not state[i]:
                        state[i] = 1
                        order.append(i)
                else:
                    stack += waiting
        self.nodes = [self.nodes[i] for i in order]
        self.read = [known[i] for i in order]
        self.writer = {o: i for i, n in enumerate(self.nodes) for o in n.output if o}
        self.fixed = set(self.constants) | {s.values.name for s in self.sparse}
        for node, names in zip(self.nodes, self.read, strict=True):
            fixed = node.op_type in SIZE_OPS or all(r in self.fixed for r in names)
            if fixed and not node.op_type.startswith(_NEVER_FIXED):
                self.fixed.update(o for o in node.output if o)

    def value(self, name: str) -> Array:
        """Return the values of a constant."""
        if name in self.arrays:
            return self.arrays[name]
        return numpy_helper.to_array(self.constants[name])

    def name(self, tensor: str) -> str:
        """Return the name of the node that computes a tensor; the tensor's name if the node has none."""
        return self.nodes[self.writer[tensor]].name or tensor

    def where(self, tensor: str) -> str:
        """Return a description of the producer of a tensor, for messages."""
        if tensor not in self.writer:
            return f"tensor {tensor!r}"
        return describe(self.nodes[self.writer[tensor]])

    def needed(self, targets: Collection[str], cuts: Collection[str]) -> tuple[list[int], set[str]]:
        """Return the indices of the nodes that compute the targets, and the cut tensors and inputs they start from."""
        found: set[int] = set()
        leaves: set[str] = set()
        stack = [self.writer[t] for t in targets if t in self.writer]
        while stack:
            i = stack.pop()
            if i in found:
                continue
            found.add(i)
            for name in self.read[i]:
                if name in cuts or name in self.inputs:
                    leaves.add(name)
                elif name in self.writer:
                    stack.append(self.writer[name])
        return sorted(found), leaves

    def cut_out(
        self, indices: Sequence[int], leaves: Mapping[str, int], ranks: Mapping[str, int], cuts: Collection[str],
        outputs: Sequence[str],
    ) -> tuple[onnx.ModelProto, dict[str, Array]]:  # fmt: skip
        """Return a model of some nodes whose cut tensors are inputs, and the values of its large constants.

        Args:
            indices: Node indices, ascending.
            leaves: Tensor that becomes an input -> element type.
            ranks: Tensor that becomes an input -> rank.
            cuts: Tensors whose consumers read an input instead; the computed tensor gets the suffix `COMPUTED`.
            outputs: Tensors to return.
        """
        nodes, used = [], set(outputs)
        for i in indices:
            node = self.nodes[i]
            used.update(self.read[i])
            if any(o in cuts for o in node.output):
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.output[:] = [o + COMPUTED if o in cuts else o for o in node.output]
                node = copy
            nodes.append(node)
        proto = onnx.ModelProto()
        proto.CopyFrom(self.shell)
        proto.graph.name = "checked"
        made = {name + COMPUTED if name in cuts else name for name in outputs}
        proto.graph.node.extend(nested(nodes, made, {}, [reads(n) for n in nodes]))
        for name, kind in leaves.items():
            info = proto.graph.input.add(name=name)
            info.type.tensor_type.elem_type = kind
            info.type.tensor_type.shape.SetInParent()
            for _ in range(ranks[name]):
                info.type.tensor_type.shape.dim.add()
        for name in outputs:
            proto.graph.output.add(name=name + COMPUTED if name in cuts else name)
        proto.graph.sparse_initializer.extend(s for s in self.sparse if s.values.name in used)
        external: dict[str, Array] = {}
        for name in sorted(used & self.constants.keys()):
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(self.constants[name])
            tensor.name = name
            if name in self.arrays:
                fill(tensor, self.arrays[name], external)
        return proto, external

    def with_outputs(self, outputs: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """Return the model with these outputs, and the values of its large constants."""
        proto, external = self.cut_out(range(len(self.nodes)), {}, {}, (), outputs)
        proto.graph.input.extend(self.inputs.values())
        return proto, external

    def iterated(self) -> set[str]:
        """Return the tensors that a Loop computes in every iteration."""
        if not any(map(is_loop_end, self.nodes)):
            return set()
        inside = places(self.nodes, self.outputs, {}, self.read)
        found = zip(self.nodes, inside, strict=True)
        return {o for n, p in found for o in n.output if any(is_loop_end(self.nodes[at]) for at, _ in p or ())}

    def branches_of(self, names: Sequence[str]) -> list[str]:
        """Return descriptions of the innermost branches, or bodies of Loops, that compute tensors; none outside."""
        inside = places(self.nodes, self.outputs, {}, self.read)
        found = {place[-1]: None for n in names if n in self.writer and (place := inside[self.writer[n]])}
        return [
            f"body of {describe(self.nodes[at])}"
            if is_loop_end(self.nodes[at])
            else f"{('then', 'else')[side]} branch of {describe(self.nodes[at])}"
            for at, side in sorted(found)
        ]

    def outside_branches(self, names: Sequence[str]) -> list[str]:
        """Return the tensors that are computed whichever branches are executed."""
        inside = places(self.nodes, self.outputs, {}, self.read)
        return [n for n in names if n not in self.writer or not inside[self.writer[n]]]

    def with_sizes(
        self, outputs: Sequence[str], sized: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, Array], list[str]]:
        """Return the model with these outputs and the shapes of other tensors.

        A shape is followed by a 1; it is empty if the branch that computes the tensor is not executed. In a Loop there
        is one shape for each iteration.

        Args:
            outputs: Tensors to return.
            sized: Tensors of which the shape is returned.

        Returns:
            The model, the values of its large constants, and the names of the shapes, "" for those not available.
        """
        graph = Graph(**{**self.__dict__, "nodes": list(self.nodes), "constants": dict(self.constants)})
        inside = places(self.nodes, [*outputs, *self.outputs], {}, self.read)
        for name, values in ((EXECUTED, [1]), (SKIPPED, [])):
            graph.constants[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        names = []
        for i, name in enumerate(sized):
            around = (inside[self.writer[name]] if name in self.writer else None) or ()
            loops = [is_loop_end(self.nodes[at]) for at, _ in around]
            if True in loops and not all(loops[loops.index(True) :]):
                names.append("")  # a branch in a body: its shapes may differ between iterations
                continue
            shape, found = f"{INSERTED}shape{i}", f"{INSERTED}size{i}"
            graph.nodes.append(helper.make_node("Shape", [name], [shape]))
            graph.nodes.append(helper.make_node("Concat", [shape, EXECUTED], [found], axis=0))
            for level, (at, side) in enumerate(reversed(around)):
                node = graph.nodes[at]
                count = len(node.output)
                if is_loop_end(node):
                    found, last = f"{INSERTED}size{i}/{level}", found
                    graph.nodes[at] = helper.make_node(
                        node.op_type, [*node.input, last], [*node.output, found], node.name, domain=node.domain
                    )
                    continue
                added = [SKIPPED, found] if side else [found, SKIPPED]
                found = f"{INSERTED}size{i}/{level}"
                results = [*node.input[1 : 1 + count], added[0], *node.input[1 + count :], added[1]]
                graph.nodes[at] = helper.make_node(
                    node.op_type, [node.input[0], *results], [*node.output, found], node.name, domain=node.domain
                )
            names.append(found)
        graph.index()
        proto, external = graph.with_outputs([*outputs, *filter(None, names)])
        return proto, external, names

    def with_side(self, names: Sequence[str]) -> tuple[onnx.ModelProto, dict[str, Array], list[str]]:
        """Return a model of the shapes of results of Ifs that all take the branch of one input, `SIDE`.

        Args:
            names: Results of Ifs.

        Returns:
            As `with_sizes`.
        """
        graph = Graph(**{**self.__dict__, "nodes": list(self.nodes), "inputs": dict(self.inputs)})
        for at in {graph.writer[n] for n in names}:
            node = NodeProto()
            node.CopyFrom(graph.nodes[at])
            node.input[0] = SIDE
            graph.nodes[at] = node
        graph.inputs[SIDE] = helper.make_tensor_value_info(SIDE, TensorProto.BOOL, [])
        graph.index()
        return graph.with_sizes([], names)

    def selected(self, settled: Collection[str] = ()) -> set[str]:
        """Return the tensors whose shapes may depend on data: selections, and everything computed from them.

        Args:
            settled: Results of If nodes whose branches give results of one shape.
        """
        out: set[str] = set()
        for node, names in zip(self.nodes, self.read, strict=True):
            selects = _selects(node) and not self._decided_by_sizes(node)
            if any(n in out for n in names):
                out.update(o for o in node.output if o)
            elif selects:
                out.update(o for o in node.output if o and o not in settled)
        return out

    def branches_by_data(self) -> dict[str, tuple[str, str]]:
        """Return the results of both branches of each If that data decides, by the name of its output."""
        out: dict[str, tuple[str, str]] = {}
        for node in self.nodes:
            if is_flat_if(node) and not self._decided_by_sizes(node):
                count = len(node.output)
                pairs = zip(node.input[1 : 1 + count], node.input[1 + count :], strict=True)
                out |= {o: pair for o, pair in zip(node.output, pairs, strict=True) if o}
        return out

    def _decided_by_sizes(self, node: NodeProto) -> bool:
        """Return whether the number of results of a selection depends on sizes only."""
        if is_flat_if(node):
            return node.input[0] in self.fixed
        if is_loop_end(node):
            start = self.nodes[self.writer[node.input[0]]]
            counters = set(start.output[1:3])
            found, leaves = self.needed(() if node.input[1] in counters else [node.input[1]], counters)
            drawn = any(self.nodes[i].op_type.startswith(_NEVER_FIXED) for i in found)
            return not drawn and leaves <= counters and all(n in self.fixed for n in start.input[:2] if n)
        return node.op_type == "TopK" and all(n in self.fixed for n in node.input[1:])

    def discontinuous(self, rounded: Collection[str]) -> set[str]:
        """Return the tensors computed by or after a discontinuous operator from values with other rounding.

        Args:
            rounded: First tensors whose sums are taken in another order.
        """
        moved = set(rounded)
        out: set[str] = set()
        for node, names in zip(self.nodes, self.read, strict=True):
            if node.op_type in SIZE_OPS or not any(r in moved for r in names):
                continue
            moved.update(o for o in node.output if o)
            inserted = any(INSERTED in o for o in node.output)  # masking integers does not round
            jumps = not inserted and (node.op_type in DISCONTINUOUS or _makes_integers(node))
            if node.domain == FLAT:
                decisive = (
                    node.input[:2] if is_loop_start(node) else node.input[1:2] if is_loop_end(node) else node.input[:1]
                )
                jumps = any(n in moved for n in decisive)
            if jumps or any(r in out for r in names):
                out.update(o for o in node.output if o)
        return out


_NEVER_FIXED = ("Random", "Multinomial", "Bernoulli", LOOP_START)
SELECTIONS = frozenset(("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Scan", "TopK", "Unique"))
"""Operators whose number of results may depend on data."""

DISCONTINUOUS = frozenset(
    ("ArgMax", "ArgMin", "Ceil", "Compress", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "If", "Less",
     "LessOrEqual", "Loop", "Mod", "NonMaxSuppression", "NonZero", "Not", "RoiAlign", "MaxRoiPool", "Round", "Scan",
     "Shrink", "Sign", "ThresholdedRelu", "TopK", "Trunc", "Unique", "And", "Or", "Xor", "IsInf", "IsNaN")
)  # fmt: skip
"""Operators whose output may jump when an input changes by one unit in the last place."""
_INTEGERS = frozenset((2, 3, 4, 5, 6, 7, 9, 12, 13))


def _makes_integers(node: NodeProto) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i in _INTEGERS for a in node.attribute)


def multiplies_integers(node: NodeProto) -> bool:
    """Return whether a node runs in 8-bit integer kernels."""
    return node.op_type.startswith(
        ("MatMulInteger", "ConvInteger", "DynamicQuantize", "QLinear", "QGemm", "QAttention")
    )


def quantizes(node: NodeProto) -> bool:
    """Return whether a node rounds activations to a few bits."""
    return node.op_type.startswith(("QuantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention"))


def fill(tensor: TensorProto, values: Array, external: dict[str, Array]) -> None:
    """Set the data of a tensor header: by reference if onnxruntime accepts it, else as a copy."""
    values = np.ascontiguousarray(values)
    if values.nbytes < _EXTERNAL or values.dtype.kind != "f":  # onnxruntime rewrites integer weights: copy them
        tensor.raw_data = values.tobytes()
        return
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "memory"), ("offset", 0), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    external[tensor.name] = values


def attributes(node: NodeProto, without: Collection[str] = ()) -> tuple[bytes, ...]:
    """Return the attributes of a node as comparable bytes, sorted by name, without doc strings."""
    out = []
    for a in sorted((a for a in node.attribute if a.name not in without), key=lambda a: a.name):
        if a.doc_string:
            copy = onnx.AttributeProto()
            copy.CopyFrom(a)
            copy.ClearField("doc_string")
            a = copy
        out.append(a.SerializeToString(deterministic=True))
    return tuple(out)


def digest(values: Array) -> tuple[Any, ...]:
    """Return a key that identifies an array: element type, shape and hash of its values."""
    data = str(values.tolist()).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes()
    return values.dtype.name, values.shape, hashlib.sha1(data).digest()


def _constant(node: NodeProto) -> TensorProto | None:
    """Return the value of a Constant node; None for other nodes and for sparse constants."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    a = node.attribute[0]
    if a.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(a.t)
        tensor.name = node.output[0]
        return tensor
    value = helper.get_attribute_value(a)
    if a.name in _LISTS:
        return numpy_helper.from_array(np.array(value, _LISTS[a.name]), node.output[0])
    if a.name in ("value_string", "value_strings"):
        return numpy_helper.from_array(np.array(value, object), node.output[0])
    return None


def _selects(node: NodeProto) -> bool:
    return node.op_type in SELECTIONS or node.op_type.startswith("Sequence")
