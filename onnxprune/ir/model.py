"""Models in and out: what is read, what onnx-graphsurgeon would lose, and how files are written.

The working graph is an onnx-graphsurgeon `Graph`. On its way there and back ONNX models lose documentation strings,
metadata and more; `Model` keeps those aside, keyed by names, and `to_proto` puts back what still applies.
Weights are numpy arrays, read-only views over the memory-mapped file where they are large.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import mmap
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, update_import_domains
from onnx_graphsurgeon.ir.tensor import SparseValues
from onnx_graphsurgeon.logger import G_LOGGER
from onnx_graphsurgeon.util.misc import SynchronizedList

from onnxprune._utils.atomic_files import atomic, check_output
from onnxprune._utils.formatting import counted, listed, shortened
from onnxprune._utils.html import html_table
from onnxprune.errors import OnnxPruneError
from onnxprune.ir import protobuf_wire
from onnxprune.ir._function_inlining import without_functions

Array = npt.NDArray[Any]

G_LOGGER.severity = G_LOGGER.ERROR  # its notes on names and types are not for our users

# onnxruntime runs opset 7 on; below 9 exporters wrote graphs (BatchNormalization's `spatial`, say) nobody makes today.
OLDEST_OPSET = 9
# Initializers may be left out of the graph's inputs since IR 4; 8 is what current tools write for these opsets.
IR_WITHOUT_INPUTS = 8
# Protobuf refuses messages above 2 GiB; leave room for the graph itself.
LARGEST_SINGLE_FILE = protobuf_wire.TWO_GIB - 64 * 2**20
PROVENANCE = "onnxprune"


@dataclass(frozen=True)
class Sidecar:
    """What onnx-graphsurgeon drops: protobuf messages without their bulk, to be merged back on export.

    Attributes:
        shell: the ModelProto without graph and functions (metadata, doc string, domain, versions, opsets).
        graph: the GraphProto without nodes, tensors and interface (doc string, metadata, quantization annotations).
        nodes: first output name -> NodeProto with only doc string and metadata, for nodes that have any.
        values: name -> ValueInfoProto of graph inputs and outputs, whole.
        tensors: name -> TensorProto with only doc string and metadata, for initializers that have any.
    """

    shell: onnx.ModelProto
    graph: onnx.GraphProto
    nodes: dict[str, onnx.NodeProto]
    values: dict[str, onnx.ValueInfoProto]
    tensors: dict[str, onnx.TensorProto]


@dataclass(repr=False)
class Model:
    """A graph with what belongs to it. Treat it as a value: passes return new ones.

    Attributes:
        graph: the onnx-graphsurgeon graph; constants hold numpy arrays.
        sidecar: what the graph cannot hold.
        path: the file it came from, if any.
        data_files: the external data files its weights lie in; empty if they came in the model file itself.
    """

    graph: gs.Graph
    sidecar: Sidecar
    path: Path | None = None
    data_files: frozenset[Path] = frozenset()
    _fingerprint: str | None = field(default=None, repr=False)
    # What a pass knows of all shapes (a `shape_inference.Witness`), until another one may have changed them.
    _shapes: Any = field(default=None, repr=False, compare=False)

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

    @property
    def external(self) -> bool:
        """Whether its weights came in files of their own."""
        return bool(self.data_files)

    def copy(self, constants: Mapping[int, gs.Constant] = MappingProxyType({})) -> Model:
        """A copy whose graph can be rewritten; weights are shared, never written in place.

        Args:
            constants: what stands for outputs of nodes, by the identity of these; the nodes are left out.
        """
        return replace(self, graph=copy_graph(self.graph, dict(constants)), _fingerprint=None, _shapes=None)

    @property
    def metadata(self) -> dict[str, str]:
        """The `metadata_props` entries."""
        return {p.key: p.value for p in self.sidecar.shell.metadata_props}

    def with_metadata(self, entries: dict[str, str]) -> Model:
        """The same model with `metadata_props` entries set."""
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
        """Identifies the model a plan was made for: structure, names, shapes and a sample of every weight.

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


def copy_graph(graph: gs.Graph, tensors: dict[int, gs.Tensor]) -> gs.Graph:
    """Copies nodes and edges, bodies included; constants share their values.

    Args:
        graph: to copy. graphsurgeon's own copy takes sequences in bodies for tensors.
        tensors: copies that exist, by the identity of what they stand for: of a body, what it uses from around it. A
            node whose output became a constant is left out.
    """

    def tensor(old: gs.Tensor) -> gs.Tensor:
        new = tensors.get(id(old))
        if new is None:
            new = tensors[id(old)] = _copy_tensor(old)
        return new

    inputs = [tensor(t) for t in graph.inputs]
    nodes = [
        _copy_node(node, tensors, tensor)
        for node in graph.nodes
        if not node.outputs or not isinstance(tensors.get(id(node.outputs[0])), gs.Constant)
    ]
    return gs.Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=[tensor(t) for t in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=graph.import_domains,
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=list(graph.functions),
        ir_version=graph.ir_version,
    )


_set = object.__setattr__  # graphsurgeon's own looks at every name


def new_constant(name: str, values: Any) -> gs.Constant:
    """A constant. The constructor would do the same in three times the time."""
    new = object.__new__(gs.Constant)
    _set(new, "name", name)
    _set(new, "inputs", _edges(new, "outputs"))
    _set(new, "outputs", _edges(new, "inputs"))
    _set(new, "_values", values)
    _set(new, "data_location", None)
    _set(new, "export_dtype", None)
    return new


def _copy_tensor(old: gs.Tensor) -> gs.Tensor:
    """A tensor like another one, of no node."""
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
    """A node like another one between copies of its tensors, likewise."""
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


# ---------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """No search for garbage meanwhile: a graph is many small objects, all in use, and searching them takes time."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> Model:
    """Reads a model from a file or takes a ModelProto.

    Large weights stay in the file, memory-mapped. External data is read only from files inside the model's folder.

    Raises:
        OnnxPruneError: the file is missing, not ONNX, truncated, rejected by the ONNX checker, its opset is older
            than 9, its external data is missing or lies elsewhere, or a convolution's weight has no value.
    """
    with gc_paused():
        return _from_proto(source, {}, None) if isinstance(source, onnx.ModelProto) else _from_file(Path(source))


def _from_file(path: Path) -> Model:
    if path.is_dir():
        raise OnnxPruneError(f"{str(path)!r} is a folder", fix="name the .onnx file in it")
    try:
        proto, raw, buf = protobuf_wire.read(path)
    except FileNotFoundError as err:
        raise OnnxPruneError(f"no such file: {str(path)!r}") from err
    except OSError as err:
        raise OnnxPruneError(f"cannot read {str(path)!r}: {err.strerror}") from err
    except (protobuf_wire.WireError, UnicodeDecodeError) as err:
        raise OnnxPruneError(f"{str(path)!r} is not an ONNX model, or is cut off ({err})") from err
    if not proto.HasField("graph") or not proto.graph.node:
        raise OnnxPruneError(f"{str(path)!r} is not an ONNX model: it holds no graph")
    arrays = {
        proto.graph.initializer[i].name: _view(buf, proto.graph.initializer[i], r.offset, r.length)
        for i, r in raw.items()
    }
    return _from_proto(proto, arrays, path)


def _from_proto(proto: onnx.ModelProto, arrays: dict[str, Array], path: Path | None) -> Model:
    arrays = dict(arrays)
    data_files: dict[Path, mmap.mmap | None] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            arrays[tensor.name] = _external(tensor, path, data_files)
        elif tensor.name not in arrays:
            arrays[tensor.name] = _inline(tensor)
    _check(proto, arrays)
    proto = without_functions(proto)
    missing = _valueless_weights(proto)
    if missing:
        raise OnnxPruneError(
            f"the weight {missing[1]!r} is a graph input without a value, so there is nothing to score",
            where=missing[0],
            fix="export the model with its parameters (torch: export_params=True)",
        )
    graph = _import(proto)
    # A weight that only the bodies of an If or a Loop use is no tensor of the graph itself.
    for t in (t for g in (graph, *graph.subgraphs(recursive=True)) for t in g.tensors().values()):
        if isinstance(t, gs.Constant) and t.name in arrays:
            t._values = arrays[t.name]
            t.data_location = None
        elif isinstance(t, gs.Constant) and not isinstance(t._values, SparseValues):
            t._values = t.values
    if graph.ir_version < 4:
        graph.ir_version = IR_WITHOUT_INPUTS
    return Model(graph, _sidecar(proto), path, frozenset(data_files))


def _import(proto: onnx.ModelProto) -> gs.Graph:
    # The domain of standard operators may be spelled out; graphsurgeon and onnxruntime know it as "".
    if any(opset.domain == "ai.onnx" for opset in proto.opset_import):
        proto = onnx.ModelProto.FromString(proto.SerializeToString())  # the caller's own stays as it is
        for opset in proto.opset_import:
            opset.domain = "" if opset.domain == "ai.onnx" else opset.domain
    try:
        return gs.import_onnx(proto)
    except Exception as err:  # graphsurgeon raises bare exceptions of several kinds
        raise OnnxPruneError(f"the graph cannot be imported: {err}") from err


def _dtype(tensor: onnx.TensorProto) -> np.dtype[Any]:
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError as err:
        raise OnnxPruneError(f"unknown element type {tensor.data_type}", where=f"initializer {tensor.name!r}") from err


def _view(buf: mmap.mmap, tensor: onnx.TensorProto, offset: int, length: int) -> Array:
    """A tensor's values over a mapped file; 4-bit types are unpacked, the rest stays where it is."""
    dims = tuple(tensor.dims)
    if any(d < 0 for d in dims):
        raise OnnxPruneError(f"negative dimension in shape {dims}", where=f"initializer {tensor.name!r}")
    dtype = _dtype(tensor)
    count = 1
    for d in dims:
        count *= d
    bits = _bits(tensor.data_type)
    if (count * bits + 7) // 8 != length:
        raise OnnxPruneError(
            f"holds {length} bytes of data where its shape {dims} of {dtype} needs {(count * bits + 7) // 8}",
            where=f"initializer {tensor.name!r}",
            fix="the file is damaged: export it again",
        )
    if bits < 8:
        whole = onnx.TensorProto()
        whole.CopyFrom(tensor)
        whole.ClearField("external_data")
        whole.ClearField("data_location")
        whole.raw_data = buf[offset : offset + length]
        return numpy_helper.to_array(whole)
    return np.frombuffer(buf, dtype, count, offset).reshape(dims)


def _bits(data_type: int) -> int:
    name = onnx.TensorProto.DataType.Name(data_type)
    if name.endswith("INT4") or name == "FLOAT4E2M1":
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).itemsize * 8)


def _inline(tensor: onnx.TensorProto) -> Array:
    _dtype(tensor)
    count = 1
    for d in tensor.dims:
        count *= max(d, 0)
    # A hostile header could ask for terabytes: compare with what the message holds before anything is allocated.
    if count > 8 * max(1, tensor.ByteSize()):
        raise OnnxPruneError(
            f"its shape {tuple(tensor.dims)} does not fit its data", where=f"initializer {tensor.name!r}"
        )
    try:
        return numpy_helper.to_array(tensor)
    except Exception as err:  # to_array raises TypeError, ValueError and more for damaged tensors
        raise OnnxPruneError(f"its data cannot be read: {err}", where=f"initializer {tensor.name!r}") from err


def _external(tensor: onnx.TensorProto, path: Path | None, files: dict[Path, mmap.mmap | None]) -> Array:
    """A tensor's values in a data file; every file is mapped once, and noted in `files`."""
    where = f"initializer {tensor.name!r}"
    if path is None:
        raise OnnxPruneError(
            "its data is in a file, but the model was given without one",
            where=where,
            fix="load it by its path, or with onnx.load(path), which reads the external data",
        )
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    file = inside(path.parent, location, where)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", 0)) or file.stat().st_size - offset
        if offset < 0 or length < 0 or offset + length > file.stat().st_size:
            raise ValueError
    except ValueError as err:
        raise OnnxPruneError(
            f"its data lies outside {location!r} (offset {entries.get('offset')}, length {entries.get('length')})",
            where=where,
            fix="the external data file is damaged or belongs to another model",
        ) from err
    if length == 0:
        if 0 not in tensor.dims or any(d < 0 for d in tensor.dims):
            raise OnnxPruneError(f"holds no data where its shape is {tuple(tensor.dims)}", where=where)
        files.setdefault(file, None)
        return np.zeros(tuple(tensor.dims), _dtype(tensor))
    buf = files.get(file) or protobuf_wire.mapped(file)
    files[file] = buf
    return _view(buf, tensor, offset, length)


def inside(folder: Path, location: str, where: str) -> Path:
    """The file `location` names, if it is a plain file inside `folder`.

    Raises:
        OnnxPruneError: it is empty, absolute, leaves the folder, passes through a symbolic link, or is missing.
    """
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or os.path.isabs(location) or ".." in parts or ":" in parts[0]:
        raise OnnxPruneError(
            f"external data {location!r} is not inside the model's folder",
            where=where,
            fix="put the data file beside the model and refer to it by a relative path",
        )
    file = folder / location
    real = os.path.join(os.path.realpath(folder), *[p for p in parts if p not in ("", ".")])
    if os.path.realpath(file) != real:
        raise OnnxPruneError(
            f"external data {location!r} is reached through a symbolic link",
            where=where,
            fix="put the data file itself into the model's folder",
        )
    if not file.is_file():
        raise OnnxPruneError(
            f"external data file {str(file)!r} is missing", where=where, fix="copy it beside the model"
        )
    return file


def weightless(proto: onnx.ModelProto, largest: int = 64) -> onnx.ModelProto:
    """A copy in which float initializers (and any above `largest` elements) are graph inputs with their type.

    The ONNX checker and shape inference need types and shape operands, not weights; carrying half a gigabyte
    through them costs seconds.
    """
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    inputs = {i.name for i in out.graph.input}
    kept = []
    for tensor in out.graph.initializer:
        count = 1
        for d in tensor.dims:
            count *= d
        if count <= largest and tensor.data_location != onnx.TensorProto.EXTERNAL and _has_data(tensor):
            kept.append(tensor)
        elif tensor.name not in inputs:
            out.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    kept_copies = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del out.graph.initializer[:]
    out.graph.initializer.extend(kept_copies)
    return out


def _has_data(tensor: onnx.TensorProto) -> bool:
    return 0 in tensor.dims or bool(
        tensor.raw_data
        or tensor.float_data
        or tensor.int32_data
        or tensor.int64_data
        or tensor.double_data
        or tensor.uint64_data
        or tensor.string_data
    )


def _check(proto: onnx.ModelProto, arrays: dict[str, Array]) -> None:
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    if opset is not None and opset < OLDEST_OPSET:
        raise OnnxPruneError(
            f"the model uses opset {opset}; {OLDEST_OPSET} is the oldest supported",
            fix="export it again, or convert it with onnx.version_converter",
        )
    skeleton = weightless(proto)
    if skeleton.ir_version < 4:
        skeleton.ir_version = IR_WITHOUT_INPUTS  # below 4 every initializer has to be an input as well
    try:
        onnx.checker.check_model(skeleton)
    except onnx.checker.ValidationError as err:
        message = str(err).strip().splitlines()
        raise OnnxPruneError(f"the ONNX checker rejects the model: {message[0]}") from err
    except Exception as err:  # names that are not UTF-8 fail while the checker words its message
        raise OnnxPruneError(f"the ONNX checker cannot read the model: {err}") from err
    for tensor in proto.graph.initializer:
        if arrays[tensor.name].shape != tuple(tensor.dims):
            raise OnnxPruneError("its data does not fit its shape", where=f"initializer {tensor.name!r}")


def _valueless_weights(proto: onnx.ModelProto) -> tuple[str, str] | None:
    valued = {t.name for t in proto.graph.initializer}
    # A weight's shape is static: an activation that enters a Gemm from outside has a dynamic batch.
    inputs = {
        i.name
        for i in proto.graph.input
        if i.name not in valued and all(d.HasField("dim_value") for d in i.type.tensor_type.shape.dim)
    }
    for node in proto.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "Gemm"):
            for name in node.input[1:]:
                if name in inputs:
                    return f"{node.op_type} {node.name or node.output[0]!r}", name
    return None


def _sidecar(proto: onnx.ModelProto) -> Sidecar:
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    graph = onnx.GraphProto()
    nodes: dict[str, onnx.NodeProto] = {}
    for node in proto.graph.node:
        if node.doc_string or node.metadata_props or node.overload:
            note = onnx.NodeProto(doc_string=node.doc_string or None, overload=node.overload or None)
            note.metadata_props.extend(node.metadata_props)
            nodes[_key(node.output)] = note
    values = {v.name: v for v in [*shell.graph.input, *shell.graph.output]}
    values = {n: onnx.ValueInfoProto.FromString(v.SerializeToString()) for n, v in values.items()}
    tensors: dict[str, onnx.TensorProto] = {}
    for tensor in proto.graph.initializer:
        if tensor.doc_string or tensor.metadata_props:
            note_t = onnx.TensorProto(doc_string=tensor.doc_string or None)
            note_t.metadata_props.extend(tensor.metadata_props)
            tensors[tensor.name] = note_t
    graph.doc_string = proto.graph.doc_string
    graph.metadata_props.extend(proto.graph.metadata_props)
    graph.quantization_annotation.extend(proto.graph.quantization_annotation)
    shell.ClearField("graph")
    shell.ClearField("functions")
    return Sidecar(shell, graph, nodes, values, tensors)


def _key(outputs: Iterable[str]) -> str:
    return next((o for o in outputs if o), "")


# ---------------------------------------------------------------------------------------------------------- writing


def to_skeleton(model: Model, graph: gs.Graph | None = None) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The ModelProto without large weights, and those by name.

    The proto's initializers are complete in order, type and shape; the data of the large ones is in the dict.
    """
    graph = model.graph if graph is None else graph
    side = model.sidecar
    proto = onnx.ModelProto()
    proto.CopyFrom(side.shell)
    proto.ir_version = graph.ir_version
    del proto.opset_import[:]
    proto.opset_import.extend(update_import_domains(graph))
    out = proto.graph
    out.CopyFrom(side.graph)
    out.name = graph.name or "graph"
    for node in graph.nodes:
        exported = OnnxExporter.export_node(node)
        note = side.nodes.get(_key(exported.output))
        if note is not None:
            exported.MergeFrom(note)
        out.node.append(exported)
    for tensors, field_ in ((graph.inputs, out.input), (graph.outputs, out.output)):
        for t in tensors:
            field_.append(side.values.get(t.name) or OnnxExporter.export_value_info_proto(t, True))
    arrays: dict[str, Array] = {}
    interface = {t.name for t in [*graph.inputs, *graph.outputs]}
    for t in _tensors(graph):
        if isinstance(t, gs.Constant):
            if isinstance(t._values, SparseValues):
                out.sparse_initializer.append(t._values.tensor)
                continue
            out.initializer.append(_initializer(t, arrays, side))
        elif t.name not in interface and t.dtype is not None:
            out.value_info.append(OnnxExporter.export_value_info_proto(t, False))
    present = {t.name for t in out.initializer} | {v.name for v in out.value_info} | interface
    notes = [q for q in out.quantization_annotation if q.tensor_name in present]
    del out.quantization_annotation[:]
    out.quantization_annotation.extend(notes)
    proto.functions.extend(OnnxExporter.export_function(f) for f in graph.functions)
    return proto, arrays


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    seen: set[str] = {""}
    for t in [*(t for n in graph.nodes for t in [*n.inputs, *n.outputs]), *graph.outputs]:
        if t.name not in seen:
            seen.add(t.name)
            yield t
    # A body may use an outer weight that no node of this graph touches.
    bodies = list(graph.subgraphs(recursive=True))
    ours = {id(t) for t in graph.tensors().values()} if bodies else set()
    for body in bodies:
        inner = {o.name for n in body.nodes for o in n.outputs} | {i.name for i in body.inputs}
        for t in (t for n in body.nodes for t in n.inputs):
            outer = isinstance(t, gs.Constant) and t.name not in seen and t.name not in inner and not t.inputs
            if outer and id(t) in ours:
                seen.add(t.name)
                yield t


def _initializer(t: gs.Constant, arrays: dict[str, Array], side: Sidecar) -> onnx.TensorProto:
    values: Array = np.asarray(t.values)
    plain = values.dtype != object and values.dtype.byteorder in "=<|" and not values.dtype.name.endswith("int4")
    if (
        plain
        and values.nbytes >= protobuf_wire.KEEP_INLINE
        and not values.dtype.name.startswith(("float4", "int2", "uint2"))
    ):
        tensor = onnx.TensorProto(name=t.name, data_type=onnx.helper.np_dtype_to_tensor_dtype(values.dtype))
        tensor.dims.extend(values.shape)
        arrays[t.name] = values
    else:
        tensor = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape), t.name)
    note = side.tensors.get(t.name)
    if note is not None:
        tensor.MergeFrom(note)
    return tensor


def to_proto(model: Model) -> onnx.ModelProto:
    """The whole model as one ModelProto (weights copied into it).

    Raises:
        OnnxPruneError: it is larger than protobuf's 2 GiB; use `save`.
    """
    proto, arrays = to_skeleton(model)
    if protobuf_wire.size(proto, arrays) > LARGEST_SINGLE_FILE:
        raise OnnxPruneError("the model is above 2 GiB, too large for one ModelProto", fix="write it with save(path)")
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            tensor.raw_data = np.ascontiguousarray(arrays[tensor.name]).tobytes()
    return proto


def save(model: Model, path: str | os.PathLike[str], *, external: bool | None = None) -> Path:
    """Writes a model, whole or not at all.

    Args:
        path: the `.onnx` file. Neither it nor its data file may be one the model was read from.
        external: weights in `NAME.data` beside it; default: as the model came, or when it is above 2 GiB.

    Raises:
        OnnxPruneError: the path cannot be written, or is the model's own source.
    """
    path = Path(path)
    check_output(path, model.path)
    proto, arrays = to_skeleton(model)
    big = protobuf_wire.size(proto, arrays) > LARGEST_SINGLE_FILE
    if external is False and big:
        raise OnnxPruneError("the model is above 2 GiB, too large for a single file", fix="allow external data")
    separate = bool(external or big or (external is None and model.external))
    data_path = path.with_name(path.name + ".data")
    for source in model.data_files if separate else ():
        check_output(data_path, source)
    try:
        with atomic(path) as out:
            if separate:
                with atomic(data_path) as data:
                    _write_external(data, proto, arrays, data_path.name)
                    arrays = {}
                    # Killed between the two renames, an old model must not be left over new data.
                    path.unlink(missing_ok=True)
            protobuf_wire.write(out, proto, arrays)
    except OSError as err:
        raise OnnxPruneError(f"cannot write {str(path)!r}: {err.strerror or err}") from err
    return path


def _write_external(file: Any, proto: onnx.ModelProto, arrays: dict[str, Array], location: str) -> None:
    position = 0
    for tensor in proto.graph.initializer:
        data = arrays.get(tensor.name)
        if data is None:
            continue
        padding = -position % 4096 if data.nbytes >= 4096 else -position % 64  # page-aligned, so it can be mapped
        file.write(b"\0" * padding)
        position += padding
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", position), ("length", data.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        protobuf_wire.write_array(file, data)
        position += data.nbytes
