"""Read weight-less structures (models/structures/NAME.onnx.xz) and fill them with random weights.

Files are not trusted: their size, decompressed size and the memory of their shapes are bounded, and only protobuf is
parsed. `tools/structures.py` writes these files.
"""

from __future__ import annotations

import lzma
import math
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

import onnxprune as op
from onnxprune.analysis.cost import CostModel

FOLDER = Path(__file__).resolve().parents[3] / "models" / "structures"
MAX_PACKED = 2**20  # bytes of a file
MAX_UNPACKED = 2**25  # bytes of the message
MAX_MEMORY = 2**28  # bytes the decompressor may use
MAX_ELEMENTS = 2**28  # of all tensors to fill together
FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.FLOAT16: np.float16}
VIEWS = ("Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze")
HALVED = ("Relu", "Clip", "LeakyRelu", "MaxPool", "Concat", "HardSwish")  # leave half of the mean square

Array = np.ndarray[Any, Any]
Use = tuple[NodeProto, int]


class StructureError(ValueError):
    """File that is not a packed structure, or exceeds a bound."""


def all_structures() -> list[Path]:
    """Return the bundled structures, by name."""
    return sorted(FOLDER.glob("*.onnx.xz"))


def unpack(path: Path) -> onnx.ModelProto:
    """The stripped model of a packed structure.

    Raises:
        StructureError: too large, damaged, or not a model.
    """
    if path.stat().st_size > MAX_PACKED:
        raise StructureError(f"{path.name} is larger than {MAX_PACKED} bytes")
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
    try:
        data = reader.decompress(path.read_bytes(), MAX_UNPACKED)
    except lzma.LZMAError as err:
        raise StructureError(f"{path.name} is not xz: {err}") from err
    if not reader.eof:
        raise StructureError(f"{path.name} is cut off, or holds more than {MAX_UNPACKED} bytes")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as err:  # protobuf's DecodeError moves between its versions
        raise StructureError(f"{path.name} is not an ONNX model: {err}") from err
    return proto


def fill(proto: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Fill every tensor without data with random values, in place; the same for the same names, shapes and seed.

    Raises:
        StructureError: a shape or type that cannot be filled, or too many elements.
    """
    graph = proto.graph
    empty = [(t.name, t) for t in graph.initializer if _is_empty(t)]
    for node in graph.node:
        empty += [(node.output[0], a.t) for a in node.attribute if a.HasField("t") and _is_empty(a.t)]
    if any(d < 0 for _, t in empty for d in t.dims) or sum(math.prod(t.dims) for _, t in empty) > MAX_ELEMENTS:
        raise StructureError(f"its tensors have more than {MAX_ELEMENTS} elements")
    uses: dict[str, list[Use]] = defaultdict(list)
    for node in graph.node:
        for i, name in enumerate(node.input):
            uses[name].append((node, i))
    made_by = {name: node for node in graph.node for name in node.output}
    for name, tensor in empty:
        if tensor.data_type not in FLOATS:
            raise StructureError(f"tensor {name!r} of type {tensor.data_type} has no data")
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        role, index = _use(name, uses)
        values = _values(role, index, tuple(tensor.dims), rng, _gain(role, index, made_by, uses))
        tensor.raw_data = values.astype(FLOATS[tensor.data_type]).tobytes()
    return proto


def _is_empty(t: TensorProto) -> bool:
    has_data = t.raw_data or t.float_data or t.double_data or t.int32_data or t.int64_data or t.string_data
    return not has_data and not t.uint64_data and math.prod(t.dims) > 0


def _use(name: str, uses: dict[str, list[Use]]) -> tuple[NodeProto, int]:
    """Return the first node that computes with a tensor, and the index of the input."""
    for _ in range(8):
        found = uses.get(name, [])
        if not found:
            break
        node, index = found[0]
        if node.op_type not in VIEWS or index:
            return node, index
        name = node.output[0]
    return NodeProto(op_type="Unknown"), 0


def _gain(node: NodeProto, index: int, made_by: dict[str, NodeProto], uses: dict[str, list[Use]]) -> float:
    """Variance of output over mean square of input: 2 behind a rectifier; a quarter in front of a shortcut's sum."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 1.0
    producer = made_by.get(node.input[1 - index] if index < 2 else node.input[0])
    gain = 2.0 if producer is not None and producer.op_type in HALVED else 1.0
    after = uses.get(node.output[0], [])
    while len(after) == 1 and _per_channel(after[0][0], made_by):
        after = uses.get(after[0][0].output[0], [])
    if any(n.op_type == "Softmax" for n, _ in after):
        return gain / 100  # a head: probabilities of one and zero would prove little
    joins = [n for n, _ in after if n.op_type == "Add" and not _per_channel(n, made_by)]
    return gain / 4 if joins else gain


def _per_channel(node: NodeProto, made_by: dict[str, NodeProto]) -> bool:
    """Return True if a node is BatchNormalization, in one operator or as products and sums with constants."""
    computed = [i for i in node.input if i in made_by and made_by[i].op_type != "Constant"]
    return node.op_type == "BatchNormalization" or (node.op_type in ("Mul", "Add", "Sub") and len(computed) == 1)


def _values(node: NodeProto, index: int, shape: tuple[int, ...], rng: np.random.Generator, gain: float) -> Array:
    kind = node.op_type
    if kind in ("Conv", "ConvTranspose", "Gemm", "MatMul") and index < 2 and len(shape) > 1:
        return rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(gain / _fan_in(node, index, shape)))
    scale = (
        (kind in ("BatchNormalization",) and index in (1, 4))
        or (kind in ("LayerNormalization", "InstanceNormalization", "GroupNormalization") and index == 1)
        or kind in ("Mul", "Div")
    )
    if scale:
        return rng.uniform(0.5, 1.5, shape)
    if kind == "PRelu":
        return rng.uniform(0.1, 0.4, shape)
    return rng.normal(0, 0.1, shape)


def _fan_in(node: NodeProto, index: int, shape: tuple[int, ...]) -> int:
    flags = {a.name: a.i for a in node.attribute if a.name in ("transA", "transB", "group")}
    if node.op_type == "Conv":
        return math.prod(shape[1:])
    if node.op_type == "ConvTranspose":
        return int(math.prod(shape) // shape[1] // flags.get("group", 1))
    if node.op_type == "Gemm":
        return shape[1] if (index == 1) == bool(flags.get("transB" if index else "transA")) else shape[0]
    return shape[-2] if index == 1 else shape[-1]


def filled(path: Path, seed: int = 0) -> op.Model:
    """A structure with random weights, as onnxprune loads it."""
    return op.load(fill(unpack(path), seed))


def analysed(path: Path, seed: int = 0) -> op.Analysis:
    """The analysis of a filled structure."""
    return op.analyze(filled(path, seed))


def coverage(analysis: op.Analysis) -> dict[str, object]:
    """Return the entry of tests/goldens/structures.json, without the size."""
    locked = sorted({(lock.op, lock.reason) for lock in analysis.locked})
    return {
        "groups": len(analysis),
        "channels": sum(g.channels for g in analysis),
        "locked": [list(pair) for pair in locked],
    }


def size(analysis: op.Analysis) -> dict[str, int]:
    """Millions of MACs of one sample, nodes, and elements of all weights in millions."""
    cost = CostModel(analysis).baseline
    return {
        "mmacs": round(cost.macs / 1e6),
        "nodes": len(analysis.source.graph.nodes),
        "mparams": round(cost.params / 1e6),
    }
