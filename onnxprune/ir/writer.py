"""Writing of a `Model` as a ModelProto or a file, with or without external data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, update_import_domains
from onnx_graphsurgeon.ir.tensor import SparseValues

from onnxprune._utils.files.atomic_files import atomic, check_output, is_stream, remove_dead
from onnxprune.errors import OnnxPruneError
from onnxprune.ir import protobuf_wire
from onnxprune.ir.branches import FLAT, nested, reads
from onnxprune.ir.model import Array, Model, Sidecar, node_key
from onnxprune.ir.node_export import exported_node

# Protobuf refuses messages above 2 GiB; leave room for the graph itself.
LARGEST_SINGLE_FILE = protobuf_wire.TWO_GIB - 64 * 2**20


def to_skeleton(
    model: Model, graph: gs.Graph | None = None, *, nest: bool = True
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """Return the ModelProto without large weights, and those weights by name.

    All initializers are listed with type and shape; the data of the large ones is in the dict.

    Args:
        model: Model to write.
        graph: Graph to write instead of the model's.
        nest: Write an If with branches; otherwise in flat form, which no runtime reads.
    """
    graph = model.graph if graph is None else graph
    side = model.sidecar
    proto = onnx.ModelProto()
    proto.CopyFrom(side.shell)
    proto.ir_version = graph.ir_version
    del proto.opset_import[:]
    proto.opset_import.extend(update_import_domains(graph))
    for i in [i for i, o in enumerate(proto.opset_import) if o.domain == FLAT]:
        del proto.opset_import[i]
    out = proto.graph
    out.CopyFrom(side.graph)
    out.name = graph.name or "graph"
    for node in graph.nodes:
        exported = exported_node(node)
        note = side.nodes.get(node_key(exported.output))
        if note is not None:
            exported.MergeFrom(note)
        out.node.append(exported)
    for tensors, field_ in ((graph.inputs, out.input), (graph.outputs, out.output)):
        for t in tensors:
            field_.append(side.values.get(t.name) or OnnxExporter.export_value_info_proto(t, True))
    ours = None
    if nest and any(n.domain == FLAT for n in out.node):
        nodes = nested(out.node, {t.name for t in graph.outputs}, side.depth, [reads(n) for n in out.node])
        ours = {o for n in nodes for o in n.output}
        del out.node[:]
        out.node.extend(nodes)
    arrays: dict[str, Array] = {}
    interface = {t.name for t in [*graph.inputs, *graph.outputs]}
    for t in _tensors(graph):
        if isinstance(t, gs.Constant):
            if isinstance(t._values, SparseValues):
                out.sparse_initializer.append(t._values.tensor)
                continue
            out.initializer.append(_initializer(t, arrays, side))
        elif t.name not in interface and t.dtype is not None and (ours is None or t.name in ours):
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
    # A body may read an outer weight that no node of this graph reads.
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
    """Return the model as one ModelProto, with copies of the weights.

    Raises:
        OnnxPruneError: The model is larger than protobuf's 2 GiB; use `save`.
    """
    proto, arrays = to_skeleton(model)
    if protobuf_wire.size(proto, arrays) > LARGEST_SINGLE_FILE:
        raise OnnxPruneError("the model is above 2 GiB, too large for one ModelProto", fix="write it with save(path)")
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            tensor.raw_data = np.ascontiguousarray(arrays[tensor.name]).tobytes()
    return proto


def save(model: Model, path: str | os.PathLike[str], *, external: bool | None = None) -> Path:
    """Write a model atomically.

    Args:
        path: The `.onnx` file. Neither it nor its data file may be one that the model was read from.
        external: Write the weights to `NAME.data` beside it; default: if they were read so, or exceed 2 GiB.

    Raises:
        OnnxPruneError: The path cannot be written, or is the model's own source.
    """
    path = Path(path)
    for source in (model.path, *model.data_files):
        check_output(path, source)
    proto, arrays = to_skeleton(model)
    big = protobuf_wire.size(proto, arrays) > LARGEST_SINGLE_FILE
    if external is False and big:
        raise OnnxPruneError("the model is above 2 GiB, too large for a single file", fix="allow external data")
    separate = bool(external or big or (external is None and model.external))
    data_path = path.with_name(path.name + ".data")
    if separate and is_stream(path):
        raise OnnxPruneError("external data needs a file", where=str(path), fix="name a file, or --single-file")
    for source in (model.path, *model.data_files) if separate else ():
        check_output(data_path, source)
    if not separate and not is_stream(path):
        remove_dead(data_path)  # a killed run may have left gigabytes
    try:
        with atomic(path) as out:
            if separate:
                with atomic(data_path) as data:
                    _write_external(data, proto, arrays, data_path.name)
                    arrays = {}
                    # If killed between the two renames, no old model may remain beside new data.
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
