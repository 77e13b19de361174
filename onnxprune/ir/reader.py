"""Reading of ONNX files into a `Model`.

Weights become numpy arrays; large ones are read-only views over the memory-mapped file.
"""

from __future__ import annotations

import difflib
import mmap
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import SparseValues

from onnxprune._utils.output.formatting import shortened
from onnxprune._utils.processes.gc_pause import gc_paused
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir import protobuf_wire
from onnxprune.ir._reading.endless_loops import check_loops
from onnxprune.ir._reading.foreign_files import foreign
from onnxprune.ir._reading.function_inlining import without_functions
from onnxprune.ir._reading.node_order import in_order
from onnxprune.ir.branches import flat
from onnxprune.ir.input_sizes import Shapes, with_shapes
from onnxprune.ir.model import Array, Model, Sidecar, node_key

# onnxruntime supports opset 7 and later; graphs below 9 use forms that no current exporter writes.
OLDEST_OPSET = 9
# Since IR 4 initializers need not be graph inputs; current tools write 8 for these opsets.
IR_WITHOUT_INPUTS = 8


SHIPPED = "onnxprune:"
"""Begins the name of a model that comes with the package: onnxprune:digits_cnn.onnx."""


def shipped_model(name: str) -> Path:
    """Return the file of a model that comes with the package, by its name after `SHIPPED`.

    Raises:
        OnnxPruneError: There is none of this name (with the nearest names).
    """
    folder = resources.files("onnxprune.models")
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".onnx"))
    if name not in names:
        raise unknown("shipped model", name, names)
    return Path(str(folder / name))


def load(source: str | os.PathLike[str] | onnx.ModelProto, *, shapes: Shapes | None = None) -> Model:
    """Read a model from a file or a ModelProto.

    Large weights are memory-mapped, not copied. External data is read only from files inside the model's folder.

    Args:
        source: Path of the file, "onnxprune:NAME" for a model that comes with the package, or the message.
        shapes: Sizes assumed for dynamic dimensions of the inputs, {"x": (1, 3, 48, 320)}; None for a dimension leaves
            it open. The dimensions stay dynamic in all results.

    Raises:
        OnnxPruneError: The file is missing, not ONNX, truncated, rejected by the ONNX checker, its nodes depend on each
            other in a cycle, its opset is older than 9, its external data is missing or lies elsewhere, a
            convolution's weight has no value, or the shapes do not fit the inputs.
    """
    with gc_paused():
        model = _from_proto(source, {}, None) if isinstance(source, onnx.ModelProto) else _from_file(Path(source))
        return with_shapes(model, shapes)


def _from_file(path: Path) -> Model:
    if str(path).startswith(SHIPPED):
        path = shipped_model(str(path).removeprefix(SHIPPED))
    if path.is_dir():
        raise foreign(path) or OnnxPruneError(f"{str(path)!r} is a folder", fix="name the .onnx file in it")
    try:
        proto, raw, buf = protobuf_wire.read(path)
    except FileNotFoundError as err:
        raise OnnxPruneError(f"no such file: {str(path)!r}", fix=_near(path)) from err
    except OSError as err:
        raise OnnxPruneError(f"cannot read {str(path)!r}: {err.strerror}") from err
    except (protobuf_wire.WireError, UnicodeDecodeError) as err:
        known = foreign(path)
        raise known or OnnxPruneError(f"{str(path)!r} is not an ONNX model, or is cut off ({err})") from err
    except OnnxPruneError as err:
        raise foreign(path) or err from err.__cause__
    if not proto.HasField("graph") or not proto.graph.node:
        raise foreign(path) or OnnxPruneError(f"{str(path)!r} is not an ONNX model: it holds no graph")
    arrays = {
        proto.graph.initializer[i].name: _view(buf, proto.graph.initializer[i], r.offset, r.length)
        for i, r in raw.items()
    }
    return _from_proto(proto, arrays, path)


def _near(path: Path) -> str | None:
    """Return a hint at models of similar names, or at those beside a path that does not exist."""
    if not path.parent.is_dir():
        return f"the folder {str(path.parent)!r} does not exist either"
    try:
        beside = sorted(p.name for p in path.parent.glob("*.onnx"))
    except OSError:
        return None
    near = difflib.get_close_matches(path.name, beside, n=2) or beside[:3]
    return f"in that folder: {', '.join(str(path.with_name(n)) for n in near)}" if near else None


def _from_proto(proto: onnx.ModelProto, arrays: dict[str, Array], path: Path | None) -> Model:
    arrays = dict(arrays)
    data_files: dict[Path, mmap.mmap | None] = {}
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            arrays[tensor.name] = _external(tensor, path, data_files)
        elif tensor.name not in arrays:
            arrays[tensor.name] = _inline(tensor)
    proto = in_order(proto)
    _check(proto, arrays)
    proto = without_functions(proto)
    check_loops(proto.graph)
    missing = _valueless_weights(proto)
    if missing:
        raise OnnxPruneError(
            f"the weight {missing[1]!r} is a graph input without a value, so there is nothing to score",
            where=missing[0],
            fix="export the model with its parameters (torch: export_params=True)",
        )
    proto, depth = flat(proto)
    graph = _import(proto)
    # A weight that only bodies of Loop or Scan read is not a tensor of the graph itself.
    for t in (t for g in (graph, *graph.subgraphs(recursive=True)) for t in g.tensors().values()):
        if isinstance(t, gs.Constant) and t.name in arrays:
            t._values = arrays[t.name]
            t.data_location = None
        elif isinstance(t, gs.Constant) and not isinstance(t._values, SparseValues):
            t._values = t.values
    if graph.ir_version < 4:
        graph.ir_version = IR_WITHOUT_INPUTS
    return Model(graph, _sidecar(proto, depth), path, frozenset(data_files))


def _import(proto: onnx.ModelProto) -> gs.Graph:
    # The domain of standard operators may be written out; graphsurgeon and onnxruntime expect "".
    if any(opset.domain == "ai.onnx" for opset in proto.opset_import):
        proto = onnx.ModelProto.FromString(proto.SerializeToString())  # do not change the caller's
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
    """Return a tensor's values as a view of a mapped file; types below 8 bits are unpacked."""
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
    # A malicious header could state terabytes: compare with the size of the message before allocating.
    if count > 8 * max(1, tensor.ByteSize()):
        raise OnnxPruneError(
            f"its shape {tuple(tensor.dims)} does not fit its data", where=f"initializer {tensor.name!r}"
        )
    try:
        return numpy_helper.to_array(tensor)
    except Exception as err:  # to_array raises TypeError, ValueError and more for damaged tensors
        raise OnnxPruneError(f"its data cannot be read: {err}", where=f"initializer {tensor.name!r}") from err


def _external(tensor: onnx.TensorProto, path: Path | None, files: dict[Path, mmap.mmap | None]) -> Array:
    """Return a tensor's values in a data file; every file is mapped once, and added to `files`."""
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
    """Return the file named by `location` if it is a plain file inside `folder`.

    Raises:
        OnnxPruneError: The location is empty, absolute, outside the folder, behind a symbolic link, or missing.
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
    """Return a copy in which initializers above `largest` elements are graph inputs with their type.

    The ONNX checker and shape inference need types and shape operands, not weights; copying half a gigabyte takes
    seconds.
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
        raise _rejected(str(err)) from err
    except Exception as err:  # names that are not UTF-8 fail while the checker words its message
        raise OnnxPruneError(f"the ONNX checker cannot read the model: {err}") from err
    for tensor in proto.graph.initializer:
        if arrays[tensor.name].shape != tuple(tensor.dims):
            raise OnnxPruneError("its data does not fit its shape", where=f"initializer {tensor.name!r}")


def _rejected(message: str) -> OnnxPruneError:
    """Return the error for a message of the ONNX checker; the nodes are in order already."""
    unknown = re.search(r"however input '(.*)' of node: *\nname: *(.*) OpType: (.*)", message)
    if unknown is not None:
        name, node, op = unknown.groups()
        return OnnxPruneError(
            f"the ONNX checker rejects the model: a node reads {name!r}, which nothing computes",
            where=f"{op} {node!r}".removesuffix(" ''"),
            fix="the file is damaged: export it again",
        )
    what, _, context = message.partition("==> Context:")
    place = re.search(r"Name: *(.*) OpType: (.*)", context)
    return OnnxPruneError(
        f"the ONNX checker rejects the model: {shortened(' '.join(what.split()), 400)}",
        where=f"{place[2]} {place[1]!r}".removesuffix(" ''") if place is not None else None,
    )


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


def _sidecar(proto: onnx.ModelProto, depth: dict[str, int]) -> Sidecar:
    shell = onnx.ModelProto()
    shell.CopyFrom(proto)
    graph = onnx.GraphProto()
    nodes: dict[str, onnx.NodeProto] = {}
    for node in proto.graph.node:
        if node.doc_string or node.metadata_props or node.overload:
            note = onnx.NodeProto(doc_string=node.doc_string or None, overload=node.overload or None)
            note.metadata_props.extend(node.metadata_props)
            nodes[node_key(node.output)] = note
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
    return Sidecar(shell, graph, nodes, values, tensors, depth)
