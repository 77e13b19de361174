"""Assignments of sizes to the dynamic dimensions of a model's inputs.

They differ in parity, in residues modulo small numbers and in order of magnitude; every dimension, named or not, has a
size of its own. Only the original defines which sizes are admissible, so candidates are tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, TensorShapeProto

from onnxprune.ir.proto_graph import Graph

WANTED = 3
_LARGEST_TENSOR = 2**26  # elements
_LARGEST_SPAN = 2**24  # elements that three sizes span, as in attention of tokens over pixels
_LARGEST_INPUT = 2**21  # elements of the inputs at large sizes
LARGEST_NUMBER = 2**20  # larger sizes would not fit into memory
_NEIGHBOURS = 6  # constants of the shape arithmetic whose neighbours are tried
_COMPARING = frozenset(("Clip", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod"))


@dataclass(frozen=True)
class Dimension:
    """Dynamic dimension of an input; `name` is its parameter, or its input and axis if it has none."""

    input: str
    axis: int
    name: str
    kind: str
    integer: bool
    first: bool  # whether it is the first dynamic dimension of its input: a state is [layers, batch, hidden]


@dataclass(frozen=True)
class Profile:
    """Sizes for dimensions of each kind, in order of their occurrence."""

    batch: tuple[int, ...]
    length: tuple[int, ...]
    side: tuple[int, ...]


PROFILES = (
    Profile((1, 5, 7, 9), (24, 40, 32, 56), (96, 64, 128, 160)),
    Profile((2, 4, 6, 8), (7, 13, 5, 19), (75, 101, 57, 83)),
    Profile((3, 5, 10, 12), (150, 94, 118, 206), (118, 154, 190, 206)),
    Profile((5, 2, 3, 4), (130, 201, 97, 67), (136, 200, 104, 168)),
    Profile((2, 4, 6, 8), (512, 384, 640, 256), (224, 320, 256, 288)),
    Profile((1, 3, 7, 9), (64, 128, 96, 192), (192, 224, 160, 320)),
    Profile((3, 2, 5, 4), (1600, 1280, 1920, 2240), (320, 416, 384, 352)),
    Profile((1, 2, 3, 4), (1, 2, 3, 4), (32, 48, 40, 56)),
    Profile((2, 1, 3, 5), (16000, 8000, 12000, 4800), (640, 512, 576, 448)),
)
"""In order of trial: those that the original accepts, until there are enough."""
LARGE = (
    Profile((41, 37, 53, 43), (1021, 1531, 509, 2039), (332, 406, 274, 458)),
    Profile((41, 37, 53, 43), (341, 227, 419, 283), (182, 210, 166, 242)),
)
"""Additional sizes, for shape arithmetic that compares sizes."""


def dynamic(graph: Graph) -> list[Dimension]:
    """Return the dynamic dimensions of the graph inputs, in order."""
    out = []
    for name, info in graph.inputs.items():
        dims = info.type.tensor_type.shape.dim
        first = True
        for axis, dim in enumerate(dims):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                continue
            kind = "batch" if axis == 0 else "side" if len(dims) > 3 and axis > 1 else "length"
            integer = info.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64)
            out.append(Dimension(name, axis, _name(name, axis, dim), kind, integer, first))
            first = False
    return out


def _name(input_name: str, axis: int, dim: TensorShapeProto.Dimension) -> str:
    """Return the parameter of a dimension; exporters write "?" for several that are independent."""
    return dim.dim_param if dim.dim_param not in ("", "?") else f"{input_name}:{axis}"


def candidates(dims: list[Dimension], known: Mapping[str, int] | None = None) -> Iterator[dict[str, int]]:
    """Yield assignments by name: independent sizes first, then equal ones for dimensions that may belong together.

    Args:
        dims: Dynamic dimensions.
        known: Sizes that the original is said to take. They are tried first, then some of them with other sizes of the
            rest: a model may require one side only.
    """
    if not dims:
        yield {}
        return
    if known:
        yield _assigned(dims, PROFILES[0], _by_name) | dict(known)
        others = [_assigned(dims, profile, _by_name) for profile in PROFILES[1:6]]
        yield from others
        del others[2:]
        for name in known:
            yield from (found | {name: known[name]} for found in others)
        for name in known if len(known) > 2 else ():
            yield from (found | {n: size for n, size in known.items() if n != name} for found in others)
    for profile in PROFILES:
        seen = []
        for tie in (_batch_together, _kind_together):
            for found in _with_cache(dims, _assigned(dims, profile, tie)):
                seen.append(found)
                yield found
        for tie in _TIES:
            found = _assigned(dims, profile, tie)
            if found not in seen:
                seen.append(found)
                yield found


def _with_cache(dims: list[Dimension], found: dict[str, int]) -> Iterator[dict[str, int]]:
    """Yield variants in which a mask is as long as the cached tokens and the new ones together."""
    tokens = list(dict.fromkeys(d.name for d in dims if d.integer and d.kind == "length"))
    cached = {found[d.name] for d in dims if d.kind == "side" and not d.integer}
    if len(tokens) > 1 and len(cached) == 1:
        for mask in tokens[1:]:
            yield found | {mask: found[tokens[0]] + next(iter(cached))}


@dataclass(frozen=True)
class SizeComparison:
    """Comparison in the shape arithmetic: operands that may depend on a size, and constants."""

    operands: tuple[str, ...]
    numbers: tuple[int, ...]


def probes(graph: Graph) -> list[SizeComparison]:
    """Return the comparisons in the shape arithmetic."""
    out = []
    for node in graph.nodes:
        if node.op_type not in _COMPARING or not any(o in graph.fixed for o in node.output):
            continue
        operands, numbers = [], []
        for name in node.input:
            tensor = graph.constants.get(name)
            if tensor is None:
                operands += [name]
            elif tensor.data_type in (TensorProto.INT64, TensorProto.INT32) and int(np.prod(tensor.dims)) <= 4:
                numbers += [int(v) for v in graph.value(name).reshape(-1) if 1 < v <= LARGEST_NUMBER]
        if operands:
            out.append(SizeComparison(tuple(operands), tuple(numbers)))
    return out


def neighbours(
    dims: list[Dimension], graph: Graph, numbers: set[int], base: dict[str, int]
) -> Iterator[dict[str, int]]:
    """Yield large assignments, and assignments next to numbers that sizes are compared with."""
    large = [_assigned(dims, p, _by_name) for p in LARGE]
    for found in large:
        sample = sum(math.prod(shape(n, graph, {**found, **dict.fromkeys(_batches(dims), 1)})) for n in graph.inputs)
        found |= dict.fromkeys(_batches(dims), max(7, min(LARGE[0].batch[0], _LARGEST_INPUT // max(sample, 1))))
    yield large[0]
    for n in sorted(numbers)[:_NEIGHBOURS]:
        for value in (n - 1, n, n + 1):
            near = {name: value if kind != "batch" or n < 64 else base[name] for name, kind in _kinds(dims).items()}
            if value > 0 and sum(math.prod(shape(n, graph, near)) for n in graph.inputs) <= _LARGEST_INPUT:
                yield near
    yield from large[1:]


def shape(info_name: str, graph: Graph, sizes: dict[str, int]) -> tuple[int, ...]:
    """Return the shape of an input under an assignment."""
    dims = graph.inputs[info_name].type.tensor_type.shape.dim
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else sizes[_name(info_name, axis, d)]
        for axis, d in enumerate(dims)
    )


def excessive(assigned: Mapping[str, int]) -> bool:
    """Return whether a product of three independent sizes is too large, before the size of any tensor is known."""
    return math.prod(sorted(assigned.values())[-3:]) > _LARGEST_SPAN


def affordable(shapes: Mapping[str, tuple[int, ...]], first: Mapping[str, tuple[int, ...]], graph: Graph) -> bool:
    """Return whether no tensor becomes too large at these input shapes.

    The largest tensor is assumed to grow with the batch and with the square of a sample, like attention over pixels.

    Args:
        shapes: Shapes of the inputs.
        first: Shapes of the inputs and of other tensors in an earlier run.
        graph: Original model.
    """
    largest = max((math.prod(s) for s in first.values()), default=1)
    growth = 1.0
    for name in graph.inputs:
        (batch, *sample), (batch_before, *sample_before) = (s or (1,) for s in (shapes[name], first[name]))
        ratio = math.prod(sample) / max(math.prod(sample_before), 1)
        growth = max(growth, batch / max(batch_before, 1) * max(ratio, 1) ** 2)
    return largest * growth <= max(_LARGEST_TENSOR, 3 * largest)


def _batches(dims: list[Dimension]) -> set[str]:
    return {d.name for d in dims if d.kind == "batch"}


def _kinds(dims: list[Dimension]) -> dict[str, str]:
    out: dict[str, str] = {}
    for d in dims:
        out.setdefault(d.name, d.kind)
    return out


def _by_name(d: Dimension) -> object:
    return d.name


def _batch_together(d: Dimension) -> object:
    return "batch" if d.kind == "batch" else d.name


def _same_axis_together(d: Dimension) -> object:
    return (d.kind, d.axis)


def _kind_together(d: Dimension) -> object:
    return d.kind


def _first_together(d: Dimension) -> object:
    return "batch" if d.first else d.name


_TIES = (_by_name, _batch_together, _first_together, _same_axis_together, _kind_together)


def _assigned(dims: list[Dimension], profile: Profile, tie: Callable[[Dimension], object]) -> dict[str, int]:
    numbers: dict[object, int] = {}
    used = dict.fromkeys(("batch", "length", "side"), 0)
    out: dict[str, int] = {}
    for d in dims:
        key = tie(d)
        if d.name in out:
            continue
        if key not in numbers:
            table = getattr(profile, d.kind)
            numbers[key] = table[used[d.kind] % len(table)] + 2 * len(table) * (used[d.kind] // len(table))
            used[d.kind] += 1
        out[d.name] = numbers[key]
    return out


def describe(sizes: dict[str, int], graph: Graph) -> str:
    """Return an assignment as text: the inputs with their shapes."""
    return ", ".join(f"{n} [{', '.join(map(str, shape(n, graph, sizes)))}]" for n in graph.inputs)
