"""Comparison of constants without tolerance: each kept one must be the original's, compressed, bit for bit."""

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
    "fc"  # numpy kinds whose values must agree; integers may state a size and are compared by their effect on results
)


@dataclass(frozen=True)
class Constants:
    """Correspondence between the constants of a pruned model and the original.

    Attributes:
        origin: Pruned constant -> original constant of which it is a copy or a part.
        compressed: Constants that lost entries.
        computed: Pruned constants that the original computes; they are compared by value.
        unknown: Names without a counterpart.
        replaced: Pruned weights with other values -> expected values, zeros for biases that recovery added; only if
            weights may differ.
    """

    origin: dict[str, str]
    compressed: set[str]
    computed: list[str]
    unknown: list[str]
    replaced: dict[str, Array] = field(default_factory=dict)


def compare_constants(original: Graph, pruned: Graph, claims: Claims, *, weights: bool) -> Constants:
    """Compare every constant of the pruned model with its counterpart in the original.

    Args:
        original: Original model.
        pruned: Pruned model.
        claims: Kept indices of each constant.
        weights: Whether values of weights must agree; shapes and element types always must.

    Raises:
        VerificationError: A weight is not the original's, compressed.
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
            if not weights and _added_bias(original, pruned, places.get(name, ())):
                found.replaced[name] = np.zeros_like(pruned.value(name))
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
            found.unknown.append(name)  # possibly a size: compared through its consumers
        elif after.size == 1 and node is not None and any(i in counted for i in node.input):
            found.unknown.append(name)  # the count that a sum is divided by
        elif weights:
            raise VerificationError("it is not the original's, compressed", where=where)
        else:
            wanted = claims.compress(name, before) if kept else before
            if wanted.shape != after.shape:
                raise VerificationError(f"its shape is {after.shape} where the plan keeps {wanted.shape}", where=where)
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
    """Compare weights inside the bodies of If, Loop and Scan, which are never pruned."""
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
    """Return the constants by (output, input index) of their consumers, through Identity nodes."""
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
    """Return the uses of every constant: (output, input index) of its consumers."""
    out: dict[str, list[tuple[str, int]]] = {}
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            if name in graph.constants:
                out.setdefault(name, []).extend((o, i) for o in node.output if o)
    return out


def _added_bias(original: Graph, pruned: Graph, uses: Sequence[tuple[str, int]]) -> bool:
    """Return whether a constant is the bias of nodes that have none in the original, as recovery adds one."""

    def without(output: str) -> bool:
        before, after = (g.nodes[g.writer[output]] if output in g.writer else None for g in (original, pruned))
        return (
            before is not None and after is not None
            and before.op_type == after.op_type in ("Conv", "ConvTranspose", "Gemm")
            and not any(before.input[2:])
        )  # fmt: skip

    return bool(uses) and all(i == 2 and without(output) for output, i in uses)


def _same(before: Array, after: Array, kept: Sequence[Array | None]) -> bool:
    """Return whether arrays are equal bit for bit, compared in blocks; memory-mapped pages are released afterwards."""
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
"""Float attributes that depend on the number of channels if implicit (attention's 1 / sqrt(size))."""


MOVES = frozenset(
    ("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice",
     "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze")
)  # fmt: skip
"""Operators that move values without computing: any error in them shows in full."""


def compare_nodes(original: Graph, pruned: Graph, constants: Constants) -> None:
    """Compare operators, float and string attributes, and constants read by nodes that compute.

    Integer attributes may state sizes: nodes that differ in them are compared by their results, at every size.

    Raises:
        VerificationError: A node, in a body or not, computes something else than the original's node of that output.
    """
    uses = _uses(original)
    known = [*original.nodes, *(n for b in bodies(original.nodes) for n in b.node)]
    writers = {o: n for n in reversed(known) for o in n.output if o}
    for node in [*pruned.nodes, *(n for b in bodies(pruned.nodes) for n in b.node)]:
        output = next((o for o in node.output if o), "")
        if node.op_type in MOVES or node.op_type in SIZE_OPS:
            continue
        source = writers.get(output)
        if source is None or source.op_type != node.op_type or source.domain != node.domain:
            was = f"where the original has {source.op_type}" if source is not None else "that the original has not"
            raise VerificationError(f"the pruned model computes {node.op_type} {was}", where=pruned.where(output))
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
