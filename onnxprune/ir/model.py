"""The model: a graph and the parts of an ONNX file that the graph cannot hold.

The working graph is an onnx-graphsurgeon `Graph`, which loses documentation strings, metadata and more; `Model` keeps
those in a `Sidecar`, keyed by names, and `onnxprune.ir.writer` merges back what still applies. Weights are numpy
arrays, read-only views over the memory-mapped file where they are large. If nodes are in flat form
(`onnxprune.ir.branches`).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import SparseValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxprune._utils.output.formatting import counted, listed, shortened
from onnxprune._utils.output.html import html_table
from onnxprune.ir import protobuf_wire

Array = npt.NDArray[Any]
G_LOGGER.severity = G_LOGGER.ERROR  # its notes on names and types are not for our users
PROVENANCE = "onnxprune"


@dataclass(frozen=True)
class Sidecar:
    """Parts that onnx-graphsurgeon drops: protobuf messages without their bulk, merged back on export.

    Attributes:
        shell: ModelProto without graph and functions (metadata, doc string, domain, versions, opsets).
        graph: GraphProto without nodes, tensors and interface (doc string, metadata, quantization annotations).
        nodes: NodeProto with only doc string and metadata, by the name of the first output, for nodes that have any.
        values: Complete ValueInfoProto of graph inputs and outputs, by name.
        tensors: TensorProto with only doc string and metadata, by name, for initializers that have any.
        depth: Number of Ifs around each node in the file, by its first output; empty if the file has no If.
    """

    shell: onnx.ModelProto
    graph: onnx.GraphProto
    nodes: dict[str, onnx.NodeProto]
    values: dict[str, onnx.ValueInfoProto]
    tensors: dict[str, onnx.TensorProto]
    depth: dict[str, int] = field(default_factory=dict)


@dataclass(repr=False)
class Model:
    """Graph with the parts of its file that the graph cannot hold. Treat it as a value: passes return new ones.

    Attributes:
        graph: onnx-graphsurgeon graph; constants hold numpy arrays.
        sidecar: Parts of the file that the graph cannot hold.
        path: File it was read from, if any.
        data_files: External data files of its weights; empty if the model file itself holds them.
        sizes: Numbers assumed for dynamic input dimensions, by input name and axis (see `with_shapes`); the file does
            not hold them.
    """

    graph: gs.Graph
    sidecar: Sidecar
    path: Path | None = None
    data_files: frozenset[Path] = frozenset()
    sizes: Mapping[tuple[str, int], int] = field(default_factory=dict)
    _fingerprint: str | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        name = shortened(self.path.name if self.path is not None else self.graph.name or "", 60)
        inputs, outputs = (", ".join(map(_interface, ends[:3])) for ends in (self.graph.inputs, self.graph.outputs))
        more = [" ..." if len(ends) > 3 else "" for ends in (self.graph.inputs, self.graph.outputs)]
        nodes = counted(len(self.graph.nodes), "node")
        return f"<Model {name}: {nodes}, opset {self.opset}, {inputs}{more[0]} -> {outputs}{more[1]}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: file, operators, inputs and outputs."""
        operators = Counter(node.op for node in self.graph.nodes).most_common()
        ends = [("input", t) for t in self.graph.inputs] + [("output", t) for t in self.graph.outputs]
        rows = [[kind, *_shape_and_type(t)] for kind, t in ends]
        note = f"{counted(len(self.graph.nodes), 'node')}, opset {self.opset}: "
        note += listed((f"{count} {op}" for op, count in operators), 8)
        name = self.path.name if self.path is not None else self.graph.name
        return html_table(f"model {name}", ["", "name", "shape", "type"], rows, text=(0, 1, 2, 3), note=note)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return int(self.graph.opset)

    def part(self, nodes: Sequence[gs.Node], inputs: Sequence[gs.Tensor], outputs: Sequence[gs.Tensor]) -> Model:
        """Return a copy of some nodes as a model; weights are shared, never written in place.

        Args:
            nodes: Nodes of the graph, in its order.
            inputs: Tensors of the graph that become inputs: all that the nodes read and do not write.
            outputs: Tensors of the graph that become outputs.
        """
        return replace(self, graph=copy_graph(self.graph, {}, (nodes, inputs, outputs)), _fingerprint=None)

    @property
    def external(self) -> bool:
        """True if the weights were read from external data files."""
        return bool(self.data_files)

    def copy(self, constants: Mapping[int, gs.Constant] = MappingProxyType({})) -> Model:
        """Return a copy whose graph can be rewritten; weights are shared, never written in place.

        Args:
            constants: Replacements of node outputs, by the identity of the output; the nodes are not copied.
        """
        return replace(self, graph=copy_graph(self.graph, dict(constants)), _fingerprint=None)

    @property
    def metadata(self) -> dict[str, str]:
        """Entries of `metadata_props`."""
        return {p.key: p.value for p in self.sidecar.shell.metadata_props}

    def with_metadata(self, entries: dict[str, str]) -> Model:
        """Return the same model with `metadata_props` entries set."""
        shell = onnx.ModelProto()
        shell.CopyFrom(self.sidecar.shell)
        kept = [p for p in shell.metadata_props if p.key not in entries]
        del shell.metadata_props[:]
        shell.metadata_props.extend(kept)
        for key, value in entries.items():
            shell.metadata_props.add(key=key, value=value)
        return replace(self, sidecar=replace(self.sidecar, shell=shell))

    @property
    def fingerprint(self) -> str:
        """Identifier of the model a plan was made for: structure, names, shapes and a sample of every weight.

        Up to 256 evenly spaced elements of each constant enter the SHA-256 digest, so it costs milliseconds for
        models of any size and still tells a retrained model from the one before.
        """
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self.graph)
        return self._fingerprint


def _interface(t: gs.Tensor) -> str:
    return shortened("{} [{}] {}".format(*_shape_and_type(t)), 80)


def _shape_and_type(t: gs.Tensor) -> tuple[str, str, str]:
    """Name, shape and element type of an input or output, as text."""
    shape = "?" if t.shape is None else ", ".join(map(str, t.shape))
    return t.name, shape, "?" if t.dtype is None else np.dtype(t.dtype).name


def copy_graph(
    graph: gs.Graph,
    tensors: dict[int, gs.Tensor],
    part: tuple[Sequence[gs.Node], Sequence[gs.Tensor], Sequence[gs.Tensor]] | None = None,
) -> gs.Graph:
    """Copy nodes and edges, with the bodies of control flow; constants share their values.

    Args:
        graph: Graph to copy. graphsurgeon's own copy turns sequences in bodies into tensors.
        tensors: Existing copies, by the identity of the original; for a body, the outer tensors it reads. A node whose
            output became a constant is not copied.
        part: Nodes to copy, with the inputs and outputs of the copy; None: the whole graph.
    """
    chosen, reads, writes = part or (graph.nodes, graph.inputs, graph.outputs)

    def tensor(old: gs.Tensor) -> gs.Tensor:
        new = tensors.get(id(old))
        if new is None:
            new = tensors[id(old)] = _copy_tensor(old)
        return new

    inputs = [tensor(t) for t in reads]
    nodes = [
        _copy_node(node, tensors, tensor)
        for node in chosen
        if not node.outputs or not isinstance(tensors.get(id(node.outputs[0])), gs.Constant)
    ]
    return gs.Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=[tensor(t) for t in writes],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )


_set = object.__setattr__  # graphsurgeon's __setattr__ compares every name


def new_constant(name: str, values: Any) -> gs.Constant:
    """Return a constant. The constructor does the same in three times the time."""
    new = object.__new__(gs.Constant)
    _set(new, "name", name)
    _set(new, "inputs", _edges(new, "outputs"))
    _set(new, "outputs", _edges(new, "inputs"))
    _set(new, "_values", values)
    _set(new, "data_location", None)
    _set(new, "export_dtype", None)
    return new


def _copy_tensor(old: gs.Tensor) -> gs.Tensor:
    """Return a copy of a tensor that no node reads or writes."""
    if isinstance(old, gs.Constant):
        return new_constant(old.name, old._values)
    new = object.__new__(gs.Variable)
    _set(new, "name", old.name)
    _set(new, "inputs", _edges(new, "outputs"))
    _set(new, "outputs", _edges(new, "inputs"))
    _set(new, "dtype", old.dtype)
    _set(new, "shape", old.shape)
    _set(new, "type", old.type)
    return new


def _copy_node(old: gs.Node, tensors: dict[int, gs.Tensor], tensor: Callable[[gs.Tensor], gs.Tensor]) -> gs.Node:
    """Return a copy of a node between copies of its tensors."""
    new = object.__new__(gs.Node)
    attrs = dict(old.attrs)
    for name, value in attrs.items():
        if isinstance(value, gs.Graph):
            attrs[name] = copy_graph(value, tensors)
    inputs, outputs = _edges(new, "outputs"), _edges(new, "inputs")
    for ends, copied, readers in ((old.inputs, inputs, True), (old.outputs, outputs, False)):
        for end in ends:
            t = tensors.get(id(end)) or tensor(end)
            list.append(copied, t)
            list.append(t.outputs if readers else t.inputs, new)
    _set(new, "op", old.op)
    _set(new, "name", old.name)
    _set(new, "attrs", attrs)
    _set(new, "inputs", inputs)
    _set(new, "outputs", outputs)
    _set(new, "domain", old.domain)
    return new


def _edges(owner: gs.Tensor | gs.Node, field_name: str) -> SynchronizedList:
    out = SynchronizedList.__new__(SynchronizedList)
    out.parent_obj, out.field_name = owner, field_name
    return out


def _fingerprint(graph: gs.Graph) -> str:
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update("\x1f".join(map(str, parts)).encode() + b"\x1e")

    seen: set[str] = set()
    add(graph.opset, [t.name for t in graph.inputs], [t.name for t in graph.outputs])
    for node in graph.nodes:
        add(node.op, node.domain or "", [t.name for t in node.inputs], [t.name for t in node.outputs])
        add(*(f"{k}={v}" for k, v in sorted(node.attrs.items()) if not isinstance(v, gs.Tensor | gs.Graph)))
        for t in node.inputs:
            if isinstance(t, gs.Constant) and t.name not in seen and not isinstance(t._values, SparseValues):
                seen.add(t.name)
                add(t.name, t.dtype, t.shape)
                flat = t.values.reshape(-1)
                sample = flat[:: max(1, flat.size // 256)][:256]
                with protobuf_wire.scattered(flat):
                    digest.update(str(sample.tolist()).encode() if sample.dtype == object else sample.tobytes())
    return digest.hexdigest()


def node_key(outputs: Iterable[str]) -> str:
    return next((o for o in outputs if o), "")
