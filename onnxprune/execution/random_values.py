"""Random values for tensors chosen by the checker: model inputs and every tensor between two nodes."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from functools import cache

import numpy as np
from onnx import NodeProto, TensorProto, helper

from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Array
from onnxprune.ir.proto_graph import Graph, reads

_POOL = 262_147  # prime, so that a window that wraps around is not aligned with the strides of a tensor
_THRESHOLDS = {
    "Clip": ("min", "max"), "Elu": (), "HardSigmoid": (), "Shrink": ("lambd",), "ThresholdedRelu": ("alpha",),
    "Greater": (), "GreaterOrEqual": (), "Less": (), "LessOrEqual": (), "Equal": (), "Max": (), "Min": (), "Mod": (),
}  # fmt: skip
"""Operators that behave differently on the two sides of a threshold, and the attributes that hold it."""
_ROWS = {"Gather": (1, 0), "GatherElements": (1, 0), "GatherND": (1, 0), "EmbedLayerNormalization": (0, 2)}
"""Operators that look up rows: (input of the indices, input of the table)."""
_VIEWS = frozenset(("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Concat", "Expand"))
_FEW_NUMBERS = 8
_RANDOM_TRUTHS = 4  # runs in which single truth values are random
STYLES = ("unit", "image", "wide", "positive", "huge")
"""N(0, 1); min(100 |N|, 255); N(0, 100 squared); min(|N| / 3, 1); N(0, 10,000 squared)."""


@cache
def _normal() -> Array:
    return np.random.default_rng(20240817).standard_normal(_POOL, np.float32)


def normal(count: int, key: int) -> Array:
    """Return `count` values of N(0, 1) that depend on `key` only."""
    pool, start = _normal(), key % _POOL
    out = np.empty(count, np.float32)
    done = 0
    while done < count:
        part = pool[start : start + count - done]
        out[done : done + len(part)] = part
        done += len(part)
        start = 0
    return out


def thresholds(graph: Graph) -> dict[str, tuple[float, ...]]:
    """Return, for each tensor, thresholds of its consumers that N(0, 1) does not reach."""
    out: dict[str, list[float]] = {}
    for node in graph.nodes:
        if node.op_type not in _THRESHOLDS and node.op_type not in ("QuantizeLinear", "FusedConv"):
            continue
        numbers = [float(a.f) for a in node.attribute if a.name in _THRESHOLDS.get(node.op_type, ())]
        for name in node.input[1:] if node.op_type in ("Clip", "QuantizeLinear") else node.input:
            tensor = graph.constants.get(name)
            if tensor is not None and tensor.data_type in (1, 10, 11) and int(np.prod(tensor.dims)) <= 64:
                numbers += [float(v) for v in np.asarray(graph.value(name), np.float64).reshape(-1)]
        if node.op_type == "QuantizeLinear":  # cover both ends of the integer range, and a margin
            numbers = [100 * n for n in numbers] + [-100 * n for n in numbers]
        numbers = [n for n in numbers if np.isfinite(n) and abs(n) < 1e30]
        for name in (r for r in reads(node) if r not in graph.constants):
            out.setdefault(name, []).extend(n for n in numbers if abs(n) > 0.5)
    return {name: tuple(sorted(set(numbers)))[:8] for name, numbers in out.items() if numbers}


def rows(graph: Graph) -> dict[str, int]:
    """Return, for each integer input that looks up rows, the number of rows of its smallest table."""
    out: dict[str, int] = {}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.nodes:
        for name in set(reads(node)):
            readers.setdefault(name, []).append(node)
    for name in graph.inputs:
        front, seen, sizes = [name], {name}, []
        while front:
            t = front.pop()
            for node in readers.get(t, ()):
                index, table = _ROWS.get(node.op_type, (-1, -1))
                if index >= 0 and len(node.input) > max(index, table) and node.input[index] == t:
                    tensor = graph.constants.get(node.input[table])
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
                    if tensor is not None and tensor.dims:
                        sizes.append(int(tensor.dims[axis]))
                elif node.op_type in _VIEWS:
                    front += [o for o in node.output if o not in seen]
                    seen.update(node.output)
        if sizes:
            out[name] = min(sizes)
    return out


_COMPARISONS = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
_PICKS = _VIEWS | {"Gather", "Slice"}


def decisive(graph: Graph) -> dict[str, list[int]]:
    """Return, for each integer input that the graph compares with constants, those constants."""
    out: dict[str, list[int]] = {}
    for name, info in graph.inputs.items():
        if info.type.tensor_type.elem_type not in (TensorProto.INT32, TensorProto.INT64):
            continue
        front = {name}
        numbers: set[int] = set()
        for node in graph.nodes:
            if node.op_type in _PICKS and node.input[0] in front:
                front.update(node.output)
            elif node.op_type in _COMPARISONS and front.intersection(node.input):
                known = [graph.value(n) for n in node.input if n in graph.constants]
                numbers.update(int(v) for value in known if value.size <= _FEW_NUMBERS for v in value.reshape(-1))
        if numbers:
            out[name] = sorted(numbers)[:_FEW_NUMBERS]
    return out


class Values:
    """Random values by name, the same for the same name, run and seed.

    Args:
        graph: Original model.
        pruned: Pruned model, whose thresholds count as well.
        seed: Seed of all values.
    """

    def __init__(self, graph: Graph, pruned: Graph, seed: int) -> None:
        self.graph = graph
        self.seed = seed
        self.thresholds = thresholds(pruned) | thresholds(graph)
        self.rows = rows(graph)
        self.decisive = decisive(graph)
        self._codes: dict[str, int] = {}
        self._digits = 0

    @property
    def choices(self) -> int:
        """Number of values to try for the integer inputs that the graph compares with constants."""
        return max((len(numbers) for numbers in self.decisive.values()), default=0) + 1

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, run: int, style: str = "unit", largest: int = 2,
        choice: int = 0,
    ) -> Array:  # fmt: skip
        """Return values for one tensor.

        Args:
            name: Tensor name, part of the seed.
            shape: Shape of the values.
            dtype: Element type.
            run: Number of the run.
            style: Distribution of floats, one of `STYLES`.
            largest: Exclusive upper bound of integers, for inputs that look up no table.
            choice: Which of the constants that the graph compares this input with; one after the last: random values.
        """
        key = zlib.crc32(f"{name}/{run}/{style}/{self.seed}".encode())
        count = int(np.prod(shape))
        if dtype.kind == "b":
            flat = normal(count, key) > 0 if count > 1 else np.full(count, self._truth(name, run))
            return flat.reshape(shape)
        if dtype.kind in "iu":
            rng = np.random.default_rng(key)
            numbers = [*self.decisive.get(name, ()), None]
            number = numbers[(run + choice) % len(numbers)]
            if number is not None:
                return np.full(shape, number, dtype)
            info = np.iinfo(dtype)
            low, high = (info.min, info.max + 1) if dtype.itemsize == 1 else (0, self.rows.get(name, largest))
            return rng.integers(low, max(high, low + 1), shape, np.int64).astype(dtype)
        values = self._floats(name, count, key, style)
        if dtype.itemsize < 4 and style in ("wide", "huge"):  # sums of large numbers would overflow
            values = values * np.float32(0.1 if style == "wide" else 3e-3)
        return values.reshape(shape).astype(dtype)

    def distinguish(self, names: Collection[str]) -> int:
        """Choose truth values such that single truth values have both values, and no two are equal in all runs.

        Args:
            names: Tensors that hold a single truth value.

        Returns:
            Number of runs, from 0 on, in which this is so.
        """
        self._codes = {name: i + 1 for i, name in enumerate(sorted(names))}
        self._digits = (len(self._codes) + 1).bit_length()
        return self._digits + _RANDOM_TRUTHS

    def _truth(self, name: str, run: int) -> bool:
        if run < self._digits and name in self._codes:
            return bool(self._codes[name] >> run & 1)
        return zlib.crc32(f"{name}/{run // 2}".encode()) >> 7 & 1 == run % 2

    def _floats(self, name: str, count: int, key: int, style: str) -> Array:
        x = normal(count, key)
        if style == "image":
            return np.minimum(np.abs(x) * np.float32(100), np.float32(255))
        if style == "positive":
            return np.minimum(np.abs(x) / 3, np.float32(1))
        if style != "unit":
            return x * np.float32(100 if style == "wide" else 1e4)
        centres = self.thresholds.get(name)
        if centres:
            which = np.arange(count) % (2 * len(centres))  # half of the values remain N(0, 1)
            spread = np.abs(np.array(centres, np.float32)) / 4 + 1
            for i, centre in enumerate(centres):
                at = which == i
                x[at] = np.float32(centre) + x[at] * spread[i]
        return x

    def inputs(
        self, shapes: Mapping[str, tuple[int, ...]], run: int, style: str, largest: int, choice: int = 0
    ) -> dict[str, Array]:
        """Return feeds of the model.

        Raises:
            OnnxPruneError: An input is not a tensor of numbers.
        """
        feeds = {}
        for name, info in self.graph.inputs.items():
            kind = info.type.tensor_type.elem_type
            if kind in (TensorProto.UNDEFINED, TensorProto.STRING):
                raise OnnxPruneError(
                    f"the input {name!r} is not numeric, so no values can be chosen for it",
                    fix="verify on real inputs with --data, or skip the proof with --no-verify",
                )
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
            feeds[name] = self.tensor(name, shapes[name], dtype, run, style, largest, choice)
            if dtype.kind == "f" and style == "unit" and name in self.thresholds:
                feeds[name] = normal(feeds[name].size, run).reshape(shapes[name]).astype(dtype)
        return feeds
