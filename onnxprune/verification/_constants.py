"""Constants need no tolerance: each kept one must be the original's, compressed, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Array
from onnxprune.ir.proto_graph import SIZE_OPS, Graph, attributes, bodies
from onnxprune.verification._claims import Claims

_CHUNK = 2**24  # bytes compared at once
_WEIGHTS = (
    "fc"  # numpy kinds whose values have to agree; integers may state a size, and are compared where they are used
)


@dataclass(frozen=True)
class Constants:
    """How the constants of a pruned model were found in the original.

    Attributes:
        origin: pruned constant -> original constant it is a copy or a part of.
        compressed: those that lost entries.
        computed: pruned constants that the original computes; they are compared by value.
        unknown: names without a counterpart.
        replaced: pruned weights whose values differ, with what they should be; only where weights may differ.
    """

    origin: dict[str, str]
    compressed: set[str]
    computed: list[str]
    unknown: list[str]
    replaced: dict[str, Array] = field(default_factory=dict)


def compare_constants(original: Graph, pruned: Graph, claims: Claims, *, weights: bool) -> Constants:
    """Find every constant of the pruned model in the original and compare.

    Args:
        weights: whether values of weights have to agree; shapes and element types always do.

    Raises:
        VerificationError: a weight is not the original's, compressed.
    """
    found = Constants({}, set(), [], [])
    for name in original.outputs:
        if name in original.constants and (
            name not in pruned.constants or not _same(original.value(name), pruned.value(name), ())
        ):
            raise VerificationError("a constant output is not the original's", where=f"output {name!r}")
    by_use, places = _uses(original), _uses_by_constant(pruned)
    users = {name: node for node in pruned.nodes for name in node.input if name}
    counted = {s.node for s in claims.statistics if s.counted}
    for name in pruned.constants:
        if name in original.writer:
            found.computed.append(name)
            continue
        source = name if name in original.constants else None
        if source is None:
            source = next((by_use[u] for u in places.get(name, ()) if u in by_use), None)
        if source is None:
            found.unknown.append(name)
            continue
        before, after = original.value(source), pruned.value(name)
        kept = claims.kept.get(name, ())
        if _same(before, after, kept):
            found.origin[name] = source
            if any(k is not None for k in kept):
                found.compressed.add(name)
            continue
        node = users.get(name)
        where = f"constant {name!r}" + (f" of {pruned.where(node.output[0])}" if node is not None else "")
        if before.dtype != after.dtype:
            raise VerificationError(
                f"its element type is {after.dtype} where the original has {before.dtype}", where=where
            )
        if before.dtype.kind not in _WEIGHTS and before.dtype.name not in ("bfloat16", "int8", "uint8"):
            found.unknown.append(name)  # a size, perhaps: the node that reads it shows
        elif after.size == 1 and node is not None and any(i in counted for i in node.input):
            found.unknown.append(name)  # the count that a sum is divided by
        elif weights:
            raise VerificationError("it is not the original's, compressed", where=where)
        else:
            wanted = claims.compress(name, before) if kept else before
            if wanted.shape != after.shape:
                raise VerificationError(f"its shape is {after.shape} where the plan leaves {wanted.shape}", where=where)
            found.origin[name] = source
            found.compressed.add(name)
            found.replaced[name] = np.ascontiguousarray(wanted)
    for (name, axis), stays in claims.losses.items():
        lost = claims.kept.get(name, ())
        mask = lost[axis] if axis < len(lost) else None
        if name in pruned.constants and (mask is None or not np.array_equal(mask, stays)):
            raise VerificationError(
                "an axis does not lose the channels that the plan names", where=f"constant {name!r}"
            )
    _compare_bodies(original, pruned, weights)
    return found


def _compare_bodies(original: Graph, pruned: Graph, weights: bool) -> None:
    """Compare weights inside the bodies of If, Loop and Scan, which lose nothing."""
    inside = {t.name: t for body in bodies(original.nodes) for t in body.initializer}
    for body in bodies(pruned.nodes):
        for tensor in body.initializer:
            before = inside.get(tensor.name)
            if before is None or not weights or tensor.data_type not in (1, 10, 11, 16):
                continue
            one, other = (numpy_helper.to_array(t) for t in (before, tensor))
            if not _same(one, other, ()):
                raise VerificationError("it is not the original's", where=f"constant {tensor.name!r} inside a body")


def _uses(graph: Graph) -> dict[tuple[str, int], str]:
    """Return the constants by (output, input index) of the nodes that read them, Identity nodes looked through."""
    out = {}
    for node in [*graph.nodes, *(n for b in bodies(graph.nodes) for n in b.node)]:
        for i, name in enumerate(node.input):
            while name in graph.writer and graph.nodes[graph.writer[name]].op_type == "Identity":
                name = graph.nodes[graph.writer[name]].input[0]
            if name in graph.constants:
                for output in node.output:
                    out[output, i] = name
    return out


def _uses_by_constant(graph: Graph) -> dict[str, list[tuple[str, int]]]:
    """Return where every constant is read: (output, input index) of the node."""
    out: dict[str, list[tuple[str, int]]] = {}
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            if name in graph.constants:
                out.setdefault(name, []).extend((o, i) for o in node.output if o)
    return out


def _same(before: Array, after: Array, kept: Sequence[Array | None]) -> bool:
    """Compare bit for bit, a few megabytes at a time; memory-mapped pages are released behind the comparison."""
    kept = kept or (None,) * before.ndim
    if before.dtype != after.dtype or len(kept) != before.ndim or after.ndim != before.ndim:
        return False
    if any(k is not None and len(k) != n for k, n in zip(kept, before.shape, strict=True)):
        return False
    shape = tuple(n if k is None else int(k.sum()) for k, n in zip(kept, before.shape, strict=True))
    if shape != after.shape:
        return False
    if all(k is None for k in kept) and before.__array_interface__["data"] == after.__array_interface__["data"]:
        return True
    if before.dtype == object:
        return bool(np.array_equal(_compressed(before, kept), after))
    first = kept[0] if before.ndim else None
    rows = np.flatnonzero(first) if first is not None else np.arange(before.shape[0] if before.ndim else 1)
    step = max(1, _CHUNK * max(1, len(rows)) // max(1, after.nbytes))
    for start in range(0, max(1, len(rows)), step):
        part = before if before.ndim == 0 else before[rows[start : start + step]]
        part = _compressed(part, (None, *kept[1:])) if before.ndim else part
        other = after if before.ndim == 0 else after[start : start + step]
        if not np.array_equal(_bytes(part), _bytes(other)):
            return False
    for array in (before, after):
        protobuf_wire.release(array)
    return True


def _compressed(values: Array, kept: Sequence[Array | None]) -> Array:
    for axis, k in enumerate(kept):
        if k is not None:
            values = np.take(values, np.flatnonzero(k), axis)
    return values


def _bytes(values: Array) -> Array:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


PATCHED_FLOATS = frozenset(("scale",))
"""Float attributes that follow the number of channels where they were implied (attention's 1 / sqrt(size))."""


MOVES = frozenset(
    ("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice",
     "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)  # fmt: skip
"""Operators that move values and compute none: what they do wrong shows in full."""


def compare_nodes(original: Graph, pruned: Graph, constants: Constants) -> None:
    """Compare operators, and float and string attributes, of nodes that compute, and which constants they read.

    Integers state sizes, too: nodes that differ in them are compared by what they compute, at every size.

    Raises:
        VerificationError: a node computes what no node of that output in the original does, bodies included.
    """
    uses = _uses(original)
    known = [*original.nodes, *(n for b in bodies(original.nodes) for n in b.node)]
    writers = {o: n for n in reversed(known) for o in n.output if o}
    taken = [n for n in known if n.op_type not in MOVES] if any(n.op_type == "If" for n in original.nodes) else []
    for node in [*pruned.nodes, *(n for b in bodies(pruned.nodes) for n in b.node)]:
        output = next((o for o in node.output if o), "")
        if node.op_type in MOVES or node.op_type in SIZE_OPS:
            continue
        source = writers.get(output)
        if source is None or source.op_type != node.op_type or source.domain != node.domain:
            # What a branch of an If returns has the If's name now, or one that had to be made unique.
            text = (node.op_type, node.domain, attributes(node))
            like = any((n.op_type, n.domain, attributes(n)) == text for n in taken)
            if (source is not None and source.op_type != "If") or not like:
                was = f"where the original has {source.op_type}" if source is not None else "that the original has not"
                raise VerificationError(f"the pruned model computes {node.op_type} {was}", where=pruned.where(output))
            continue
        for i, name in enumerate(node.input):
            before, after = uses.get((output, i)), constants.origin.get(name)
            if before is None or after is None or before == after:
                continue
            if not _same(original.value(before), original.value(after), ()):
                raise VerificationError(
                    f"it reads {after!r} where the original reads {before!r}", where=pruned.where(output)
                )
        if attributes(source) == attributes(node):
            continue
        own, other = ({a.name: a for a in n.attribute} for n in (source, node))
        for name in own.keys() | other.keys():
            if not _alike(own.get(name), other.get(name)):
                raise VerificationError(f"its attribute {name!r} is not the original's", where=pruned.where(output))


def _alike(a: AttributeProto | None, b: AttributeProto | None) -> bool:
    if a is None or b is None:
        one = a or b
        floats = (AttributeProto.FLOAT, AttributeProto.FLOATS)
        return one is None or one.type not in floats or one.name in PATCHED_FLOATS
    if a.type != b.type:
        return False
    return bool(a.f == b.f and list(a.floats) == list(b.floats) and a.s == b.s and list(a.strings) == list(b.strings))
