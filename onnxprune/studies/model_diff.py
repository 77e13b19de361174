"""Comparison of two models: different nodes, shapes, weights and sizes.

Nodes are matched by name, then by the name of their first output, then by the order of their operators, so that a
second export of the same network with other names is still aligned. Weights are matched by name, then by the inputs of
matched nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any
from zlib import crc32

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune._utils.output.formatting import count, percent, size
from onnxprune._utils.output.html import html_table, share
from onnxprune.analysis.cost import Cost, CostModel
from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Array, Model
from onnxprune.pipeline import analyze
from onnxprune.studies._layer_diff import LayerChange as LayerChange
from onnxprune.studies._layer_diff import layer_changes, layers

_LONGEST = 20_000  # unmatched nodes: aligning more by operator would take minutes
_SHOWN = 16  # elements of an attribute that are printed


@dataclass(frozen=True)
class NodeChange:
    """Node of both models that differs. `other` is its name in the second model; `changes` are readable lines."""

    name: str
    other: str
    op: str
    changes: tuple[str, ...]


@dataclass(frozen=True)
class ShapeChange:
    """Activation, input or output with another shape. Dynamic dimensions are names or "?"."""

    tensor: str
    before: tuple[int | str, ...]
    after: tuple[int | str, ...]


@dataclass(frozen=True)
class WeightChange:
    """Constant that differs.

    Attributes:
        name: Name in the first model; `other`: in the second model.
        before, after: Shapes.
        dtypes: Element types before and after.
        elements: Share of the elements that differ; None if shapes or types do.
        largest: Largest absolute difference; None if shapes differ or values are not numbers.
        relative: Euclidean norm of the difference divided by that of the values before; None likewise.
    """

    name: str
    other: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    dtypes: tuple[str, str]
    elements: float | None
    largest: float | None
    relative: float | None


@dataclass(frozen=True)
class Sizes:
    """Size of a model: nodes, MACs per sample, parameters (elements), bytes of constants and of its file, opset."""

    nodes: int
    macs: int | None
    params: int | None
    bytes: int
    file: int | None
    opset: int


@dataclass(frozen=True)
class Differences:
    """Differences between two models.

    Attributes:
        before, after: Sizes.
        same_nodes: Number of equal nodes; `added`, `removed`: (name, operator) of nodes in one model only.
        changed: Nodes of both models that differ.
        same_shapes: Number of activations with equal shapes; `shapes`: those with different ones.
        same_weights: Number of constants equal bit for bit; `weights`: changed ones; `added_weights`,
            `removed_weights`: (name, shape) of constants in one model only.
        interface: Readable lines about inputs, outputs and opset.
        layers: Layers that differ, with channels and MACs; `same_layers`: number of equal ones.
        renamed: Names of corresponding nodes that have another name in the second model.
    """

    before: Sizes
    after: Sizes
    same_nodes: int
    added: tuple[tuple[str, str], ...]
    removed: tuple[tuple[str, str], ...]
    changed: tuple[NodeChange, ...]
    same_shapes: int
    shapes: tuple[ShapeChange, ...]
    same_weights: int
    weights: tuple[WeightChange, ...]
    added_weights: tuple[tuple[str, tuple[int, ...]], ...]
    removed_weights: tuple[tuple[str, tuple[int, ...]], ...]
    interface: tuple[str, ...]
    layers: tuple[LayerChange, ...] = ()
    same_layers: int = 0
    renamed: tuple[tuple[str, str], ...] = ()

    def _repr_html_(self) -> str:
        """Return sizes and numbers of differences as an HTML table."""
        rows = []
        for what in ("nodes", "macs", "params", "bytes", "file", "opset"):
            a, b = getattr(self.before, what), getattr(self.after, what)
            rows.append([what, *("-" if v is None else f"{v:,}" for v in (a, b)), "-" if not a else share(b or 0, a)])
        note = (
            f"nodes: {len(self.added)} added, {len(self.removed)} removed, {len(self.changed)} changed; "
            f"{len(self.shapes)} activations of another shape; weights: {len(self.weights)} changed, "
            f"{len(self.added_weights)} added, {len(self.removed_weights)} removed"
        )
        note = "the same" if self.identical else note
        return html_table("differences", ["", "before", "after", ""], rows, note=note)

    @property
    def identical(self) -> bool:
        """True if nodes, shapes, weights and interface are all equal."""
        return not any(
            (self.added, self.removed, self.changed, self.shapes, self.weights, self.added_weights,
             self.removed_weights, self.interface)
        )  # fmt: skip

    @property
    def retrained(self) -> bool:
        """True if only values of weights differ: the same graph with the same shapes."""
        structure = (self.added, self.removed, self.changed, self.shapes, self.added_weights, self.removed_weights)
        return not any(structure) and bool(self.weights) and all(w.before == w.after for w in self.weights)

    def size_rows(self) -> list[list[str]]:
        """Return the rows of a table of sizes: name, before, after, share."""
        rows = []
        for label, what, form in (
            ("nodes", "nodes", str), ("MACs", "macs", count), ("params", "params", count), ("bytes", "bytes", size),
            ("file", "file", size), ("opset", "opset", str),
        ):  # fmt: skip
            a, b = getattr(self.before, what), getattr(self.after, what)
            kept = percent(b / a) if a and b is not None and what != "opset" else ""
            rows.append([label, *("-" if v is None else form(v) for v in (a, b)), kept])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Return the differences as a JSON object; numbers that are not finite become None."""
        return {"identical": self.identical, **_finite(asdict(self))}


def differences(one: Model, other: Model) -> Differences:
    """Return the differences between two models.

    Args:
        one: Model before.
        other: Model after.
    """
    first, second = _Side(one), _Side(other)
    pairs = _matched(first.nodes, second.nodes)
    ends = [(one.graph.inputs, other.graph.inputs)]
    ends += [(first.nodes[i].outputs, second.nodes[j].outputs) for i, j in pairs]
    names = {a.name: b.name for mine, its in ends for a, b in zip(mine, its, strict=False) if a.name and b.name}
    constants = _matched_constants(first, second, pairs)
    changed = []
    for i, j in pairs:
        lines = tuple(_node_changes(first.nodes[i], second.nodes[j], names, constants))
        if lines:
            changed.append(NodeChange(_title(first.nodes[i]), _title(second.nodes[j]), first.nodes[i].op, lines))
    gone, came = {i for i, _ in pairs}, {j for _, j in pairs}
    weights = [w for w in (_weight_change(first, second, a, b) for a, b in constants.items()) if w is not None]
    known = [(a, b) for a, b in names.items() if a in first.shapes and b in second.shapes]
    shapes = [
        ShapeChange(a, first.shapes[a], second.shapes[b]) for a, b in known if first.shapes[a] != second.shapes[b]
    ]
    relative = {w.name: w.relative for w in weights}
    changed_layers, same_layers = layer_changes(first.layers, second.layers, pairs, relative)
    return Differences(
        before=first.sizes, after=second.sizes,
        same_nodes=len(pairs) - len(changed),
        added=tuple((_title(n), n.op) for j, n in enumerate(second.nodes) if j not in came),
        removed=tuple((_title(n), n.op) for i, n in enumerate(first.nodes) if i not in gone),
        changed=tuple(changed),
        same_shapes=len(known) - len(shapes), shapes=tuple(shapes),
        same_weights=len(constants) - len(weights), weights=tuple(weights),
        added_weights=tuple((n, a.shape) for n, a in second.constants.items() if n not in set(constants.values())),
        removed_weights=tuple((n, a.shape) for n, a in first.constants.items() if n not in constants),
        interface=tuple(_interface(one, other)),
        layers=changed_layers, same_layers=same_layers,
        renamed=tuple((a, b) for i, j in pairs if (a := _title(first.nodes[i])) != (b := _title(second.nodes[j]))),
    )  # fmt: skip


class _Side:
    """Nodes, constants, shapes and sizes of one of the two models."""

    def __init__(self, model: Model) -> None:
        self.nodes = [n for n in model.graph.nodes if n.op != "Constant"]
        held = {
            n.outputs[0].name: n.attrs["value"].values
            for n in model.graph.nodes
            if n.op == "Constant" and isinstance(n.attrs.get("value"), gs.Constant)
        }
        self.constants: dict[str, Array] = {
            t.name: np.asarray(t.values if isinstance(t, gs.Constant) else held[t.name])
            for n in self.nodes
            for t in n.inputs
            if isinstance(t, gs.Constant) or t.name in held
        }
        seen = witness(model)
        symbols: dict[int, int | str] = {}
        for t in model.graph.inputs:
            for axis, length in enumerate(t.shape or ()):
                if (t.name, axis) in seen.dims:
                    number = seen.dims[t.name, axis]
                    symbols.setdefault(number, length if isinstance(length, str) and length else "?")
        self.shapes = {name: tuple(symbols.get(n, n) for n in shape) for name, shape in seen.shapes.items()}
        cost: Cost | None = None
        macs: dict[str, int] = {}
        with suppress(OnnxPruneError):  # a model that cannot be analysed can still be compared
            costs = CostModel(analyze(model))
            cost, macs = costs.baseline, costs.node_macs()
        self.layers = layers(self.nodes, self.shapes, macs)
        self.sizes = Sizes(
            nodes=len(self.nodes), macs=cost.macs if cost else None,
            params=cost.params if cost else None,
            bytes=sum(a.nbytes for a in self.constants.values()),
            file=_file_size(model), opset=model.opset,
        )  # fmt: skip


def _file_size(model: Model) -> int | None:
    """Return the bytes of the model's file and its external data files."""
    try:
        return sum(p.stat().st_size for p in {model.path, *model.data_files} if p is not None) or None
    except OSError:
        return None


def _title(node: gs.Node) -> str:
    return str(node.name or (node.outputs[0].name if node.outputs else node.op))


def _name(node: gs.Node) -> str:
    return str(node.name or "")


def _output(node: gs.Node) -> str:
    return str(node.outputs[0].name) if node.outputs else ""


def _matched(one: list[gs.Node], other: list[gs.Node]) -> list[tuple[int, int]]:
    """Return index pairs of nodes that correspond, in the order of the first model."""
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for key in (_name, _output):
        places = {key(n): j for j, n in reversed(list(enumerate(other))) if key(n) and j not in taken}
        for i, n in enumerate(one):
            j = places.get(key(n)) if i not in pairs else None
            if j is not None and j not in taken and other[j].op == n.op:
                pairs[i] = j
                taken.add(j)
    left = [i for i in range(len(one)) if i not in pairs]
    right = [j for j in range(len(other)) if j not in taken]
    if left and right and max(len(left), len(right)) <= _LONGEST:
        kinds = [[(nodes[i].domain, nodes[i].op) for i in places] for nodes, places in ((one, left), (other, right))]
        for a, b, size in SequenceMatcher(None, kinds[0], kinds[1], autojunk=False).get_matching_blocks():
            pairs.update(zip(left[a : a + size], right[b : b + size], strict=True))
    return sorted(pairs.items())


def _matched_constants(one: _Side, other: _Side, pairs: list[tuple[int, int]]) -> dict[str, str]:
    """Return constants that correspond: by name, then by the inputs of matched nodes."""
    out = {name: name for name in one.constants if name in other.constants}
    taken = set(out)
    for i, j in pairs:
        for a, b in zip(one.nodes[i].inputs, other.nodes[j].inputs, strict=False):
            known = a.name in one.constants and b.name in other.constants
            if known and a.name not in out and b.name not in taken:
                out[a.name] = b.name
                taken.add(b.name)
    return out


def _node_changes(
    one: gs.Node, other: gs.Node, names: Mapping[str, str], constants: Mapping[str, str]
) -> Iterator[str]:
    if one.op != other.op or (one.domain or "") != (other.domain or ""):
        yield f"operator {one.op} -> {other.op}"
    for key in sorted(one.attrs.keys() | other.attrs.keys()):
        a, b = (_attribute(n.attrs[key]) if key in n.attrs else "none" for n in (one, other))
        if a != b:
            yield f"{key} {a} -> {b}"
    if len(one.inputs) != len(other.inputs):
        yield f"{len(one.inputs)} inputs -> {len(other.inputs)}"
        return
    for k, (a, b) in enumerate(zip(one.inputs, other.inputs, strict=True)):
        expected = constants.get(a.name) or names.get(a.name, a.name)
        if expected != b.name:
            yield f"input {k}: {a.name} -> {b.name}"


def _attribute(value: Any) -> str:
    """Return an attribute as text that distinguishes values."""
    if isinstance(value, gs.Graph):
        return f"graph({', '.join(f'{n.op} {_title(n)}' for n in value.nodes)})"
    if isinstance(value, gs.Constant):
        value = value.values
    if isinstance(value, np.ndarray):
        flat = value.reshape(-1)
        more = f"... crc {crc32(value.tobytes()):08x}" if flat.size > _SHOWN else ""
        return f"{value.dtype.name}{list(value.shape)} {flat[:_SHOWN].tolist()}{more}"
    return repr(value)


def _weight_change(one: _Side, other: _Side, name: str, twin: str) -> WeightChange | None:
    a, b = one.constants[name], other.constants[twin]
    dtypes = (a.dtype.name, b.dtype.name)
    numbers = all(v.dtype.kind in "iufb" or v.dtype.kind == "V" for v in (a, b))
    if a.shape != b.shape:
        return WeightChange(name, twin, a.shape, b.shape, dtypes, None, None, None)
    if a.dtype == b.dtype and _same_bits(a, b):
        return None
    if not numbers:
        return WeightChange(name, twin, a.shape, b.shape, dtypes, None, None, None)
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(y - x)
        scale = float(np.sqrt(np.square(x).sum()))
        norm = float(np.sqrt(np.square(gap).sum()))
    relative = norm / scale if scale else None
    share = float(np.mean((x != y) & ~(np.isnan(x) & np.isnan(y)))) if gap.size else 0.0
    return WeightChange(
        name, twin, a.shape, b.shape, dtypes, share, float(gap.max()) if gap.size else 0.0, relative
    )  # fmt: skip


def _same_bits(a: Array, b: Array) -> bool:
    """Return whether two arrays of one shape and type are equal, NaN and the sign of zero included."""
    if a.dtype.hasobject:
        return np.array_equal(a, b)
    x, y = (np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in (a, b))
    return np.array_equal(x, y)


def _interface(one: Model, other: Model) -> Iterator[str]:
    if one.opset != other.opset:
        yield f"opset {one.opset} -> {other.opset}"
    for what in ("inputs", "outputs"):
        a, b = ([_signature(t) for t in getattr(m.graph, what)] for m in (one, other))
        if a != b:
            yield f"{what} {'; '.join(a)} -> {'; '.join(b)}"


def _signature(t: gs.Tensor) -> str:
    dims = ", ".join("?" if n is None else str(n) for n in t.shape or ())
    kind = np.dtype(t.dtype).name if t.dtype is not None else "?"
    return f"{t.name} {kind}[{dims}]"


def _finite(value: Any) -> Any:
    """Return the value with None for numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
