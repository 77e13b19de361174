"""Cost of a model under a plan: MACs, parameters, bytes, activation memory, channels.

- `macs`: multiply-accumulate operations of Conv, ConvTranspose, Gemm, MatMul and Einsum for one sample (a dynamic
  batch counts as 1), as counted by fvcore; biases, activations and normalizations are excluded.
- `params`: elements of floating-point constants without BatchNormalization's running statistics, and of the integer
  weights of quantized models without scales and zero points.
- `bytes`: bytes of all constants, that is the file without its graph.
- `memory`: peak bytes of live activations for one sample, with the nodes run in graph order; a runtime that fuses or
  works in place needs less.
- `channels`: removable channels of all groups.

Results of a selection (boxes of a detector), whose number depends on data, count as 101, see `shape_inference`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.blocks import inner_groups
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.analysis.shapes.node_faults import NodeFaults
from onnxprune.analysis.shapes.type_inference import body_constants
from onnxprune.ops import find
from onnxprune.ops.label_table import Axes
from onnxprune.ops.op_spec import Macs


@dataclass(frozen=True)
class Cost:
    """MACs per sample, parameters (elements), bytes of the constants, bytes of live activations, channels."""

    macs: int
    params: int
    bytes: int
    memory: int
    channels: int

    def ratio(self, baseline: Cost, what: str) -> float:
        """Return this cost divided by another, by the name of the measure."""
        total = getattr(baseline, what)
        return float(getattr(self, what) / total) if total else 1.0


MEASURES = ("macs", "params", "bytes", "memory", "channels")
TITLES = {"macs": "MACs"}
"""Names of measures as tables show them; the others are shown as they are."""

# Operators whose output shares its input's memory under another shape.
_SAME_MEMORY = frozenset(("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))

# Operators whose floating-point constants are scales.
_SCALED = frozenset(("QuantizeLinear", "DequantizeLinear", "QGemm"))

# Entries: a size >= 0, or -1 - row of a count that depends on the kept components.
_Template = tuple[int, ...]
_Counts = npt.NDArray[np.int64]


@dataclass
class _Work:
    """MACs of one node, cached by the counts they depend on."""

    rule: Macs
    node: gs.Node
    ins: list[_Template]
    outs: list[_Template]
    rows: list[int]
    inside: list[int]
    known: dict[tuple[int, ...], int] = field(default_factory=dict)

    def macs(self, counts: Sequence[int]) -> int:
        if self.inside and not all(counts[r] for r in self.inside):  # a block that holds the node is removed
            return 0
        key = tuple([counts[r] for r in self.rows])
        if key not in self.known:

            def shape(template: _Template) -> tuple[int, ...]:
                return tuple(n if n >= 0 else counts[-1 - n] for n in template)

            with NodeFaults(self.node):
                ins, outs = [shape(t) for t in self.ins], [shape(t) for t in self.outs]
                self.known[key] = self.rule(self.node, ins, outs)
        return self.known[key]


class _Elements:
    """Numbers of elements of many tensors: a constant factor times the counts of their labelled axes."""

    def __init__(self, templates: Sequence[_Template], one: int) -> None:
        rows = [[-1 - n for n in t if n < 0] for t in templates]
        width = max(map(len, rows), default=0)
        self.fixed = np.array([int(np.prod([n for n in t if n >= 0], dtype=np.int64)) for t in templates], np.int64)
        # Short rows are padded with the index of a count that is always 1.
        self.rows = np.array([r + [one] * (width - len(r)) for r in rows], np.int64).reshape(len(rows), width)

    def __call__(self, counts: _Counts) -> _Counts:
        out = self.fixed.copy()
        for column in self.rows.T:
            out *= counts[column]
        return out


class CostModel:
    """Cost of a model for any choice of kept components, in tens of microseconds."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self._rows: dict[int, tuple[npt.NDArray[np.int64], int]] = {}  # by id, with the array, because ids are reused
        self._equal: dict[bytes, int] = {}
        self._labels: list[npt.NDArray[np.int64]] = []
        batch = [n for (name, axis), n in analysis.witness.dims.items() if axis == 0]
        self._batch = batch[0] if batch else 1
        self._holders = self._blocks()
        constants = self._constants()
        self._work = self._nodes()
        lives = self._lives()
        one = len(self._labels)
        self._flat = np.concatenate([*self._labels, np.zeros(0, np.int64)])
        self._starts = np.cumsum([0, *map(len, self._labels)], dtype=np.int64)[:one]
        self._weights = _Elements([t for t, _, _ in constants], one)
        self._itemsize = np.array([n for _, n, _ in constants], np.int64)
        self._counted = np.array([c for _, _, c in constants], np.int64)
        self._activations = _Elements([t for t, _, _, _ in lives], one)
        self._width = np.array([n for _, n, _, _ in lives], np.int64)
        self._born = np.array([b for _, _, b, _ in lives], np.int64)
        self._dead = np.array([d for _, _, _, d in lives], np.int64)
        self._free = np.concatenate([g.components for g in analysis.groups] or [np.zeros(0, np.int64)])
        self.baseline = self.cost(np.ones(analysis.count, bool))

    def _blocks(self) -> dict[str, list[int]]:
        """Return, for every node in blocks, by its first output, the rows that count the blocks: 0 for removed ones."""
        holders: dict[str, list[int]] = {}
        for block in self.analysis.blocks:
            if block.component:
                for name in block.nodes:
                    holders.setdefault(name, []).append(len(self._labels))
                self._labels.append(np.array([block.component], np.int64))
        return holders

    @cached_property
    def _inner(self) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """Return the component of every block, and those of the channels inside it, which are removed with it."""
        out = []
        for block in self.analysis.free_blocks:
            names = inner_groups(self.analysis.model.graph, self.analysis.groups, block)
            inside = [self.analysis[name].components for name in sorted(names)]
            out.append((block.component, np.concatenate([*inside, np.zeros(0, np.int64)])))
        return out

    def _holding(self, nodes: Sequence[gs.Node]) -> _Template:
        """Return the counts of the blocks that hold all of these nodes, as factors of a size."""
        rows: set[int] | None = None
        for node in nodes:
            own = set(self._holders.get(node.outputs[0].name, ())) if node.outputs else set()
            rows = own if rows is None else rows & own
            if not rows:
                return ()
        return tuple(-1 - r for r in sorted(rows or ()))

    def _constants(self) -> list[tuple[_Template, int, bool]]:
        """Return (shape, bytes per element, whether it counts as parameters) of every constant, each once."""
        nodes = self.analysis.model.graph.nodes
        table = self.analysis.table
        aside = {t.name for n in nodes if n.op == "BatchNormalization" for t in n.inputs[3:5]}
        aside |= {t.name for n in nodes if n.op in _SCALED or n.op.startswith("QLinear") for t in n.inputs}
        integers = {root.name for root, _ in table.views.values() if root.dtype.kind != "f"} | table.quantized.keys()
        found: dict[str, tuple[_Template, int, bool]] = {}
        inside = (t for n in nodes if any(isinstance(a, gs.Graph) for a in n.attrs.values()) for t in body_constants(n))
        for t in itertools.chain((t for n in nodes for t in n.inputs), inside):
            if isinstance(t, gs.Constant) and t.name not in found:
                template = self._template(tuple(t.shape), self.analysis.table.constants.get(t.name))
                template += self._holding(t.outputs) if self._holders else ()
                floating = t.dtype.kind == "f" or t.dtype.name.startswith(("bfloat", "float"))
                counted = t.name in integers or (floating and t.name not in aside)
                found[t.name] = (template, t.dtype.itemsize, counted)
        return list(found.values())

    def _nodes(self) -> list[_Work]:
        """Return every node that has MACs and known shapes."""
        table = self.analysis.table
        out = []
        for node in self.analysis.model.graph.nodes:
            spec = find(node)
            if spec is None or spec.macs is None:
                continue
            tensors = [*node.inputs, *node.outputs]
            if any(t.name and not isinstance(t, gs.Constant) and t.name not in table.shapes for t in tensors):
                continue
            templates = [self._template(table.shape(t), table.get(t)) if t.name else () for t in tensors]
            rows = sorted({-1 - n for t in templates for n in t if n < 0})
            split = len(node.inputs)
            inside = self._holders.get(node.outputs[0].name, []) if self._holders else []
            out.append(_Work(spec.macs, node, templates[:split], templates[split:], rows, inside))
        return out

    def _lives(self) -> list[tuple[_Template, int, int, int]]:
        """Return (shape, bytes per element, index of first and last node) of every activation buffer.

        Constant shape arithmetic and tensors of unknown shape are excluded.
        """
        seen, table, graph = self.analysis.witness, self.analysis.table, self.analysis.model.graph
        nodes = graph.nodes
        memory: dict[str, str] = {}  # tensor -> the tensor whose memory it shares
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        tensors: dict[str, gs.Tensor] = {}

        def make(t: gs.Tensor, place: int) -> None:
            if t.name and t.name in table.shapes and t.name not in seen.values and t.name not in table.views:
                memory[t.name] = t.name
                tensors[t.name] = t
                first[t.name] = last[t.name] = place

        for t in graph.inputs:
            make(t, 0)
        for place, node in enumerate(nodes):
            for t in node.inputs:
                if t.name in memory:
                    last[memory[t.name]] = place
            for i, t in enumerate(node.outputs):
                source = node.inputs[0].name if i == 0 and node.op in _SAME_MEMORY and not node.domain else ""
                if source in memory:
                    memory[t.name] = memory[source]
                else:
                    make(t, place)
        for t in graph.outputs:
            if t.name in memory:
                last[memory[t.name]] = len(nodes) - 1
        out = []
        for name, t in tensors.items():
            dtype = np.dtype(seen.dtypes.get(name) or t.dtype or np.float32)
            held = self._holding(t.inputs) if self._holders else ()
            out.append((self._template(table.shapes[name], table.variables.get(name)) + held, dtype.itemsize,
                        first[name], max(last[name], first[name])))  # fmt: skip
        return out

    def _template(self, shape: Sequence[int], axes: Axes | None) -> _Template:
        out = []
        for axis, n in enumerate(shape):
            labels = axes[axis] if axes else None
            if labels is None:
                out.append(n)
                continue
            # Consecutive tensors share label arrays and coupled ones share components, so one count serves all.
            if id(labels) not in self._rows:
                components = self.analysis.component[labels]
                row = self._equal.setdefault(components.tobytes(), len(self._labels))
                if row == len(self._labels):
                    self._labels.append(components)
                self._rows[id(labels)] = labels, row
            out.append(-1 - self._rows[id(labels)][1])
        return tuple(out)

    def cost(self, kept: Kept) -> Cost:
        """Return the cost with the components in `kept` (bool [count])."""
        counts = self._remaining(kept)
        return Cost(**{measure: self._of(measure, kept, counts) for measure in MEASURES})

    def node_macs(self) -> dict[str, int]:
        """Return the MACs of one sample of every node that has any, by the name of the node's first output."""
        counts = self._remaining(np.ones(self.analysis.count, bool)).tolist()
        return {str(w.node.outputs[0].name): w.macs(counts) // self._batch for w in self._work}

    def share(self, kept: Kept, measure: str) -> float:
        """Return `cost(kept).ratio(baseline, measure)` without computing the other measures."""
        total: int = getattr(self.baseline, measure)
        return self._of(measure, kept, self._remaining(kept)) / total if total else 1.0

    def by_node(self, kept: Kept) -> dict[str, int]:
        """Return the MACs of every node that has any, by the name of its first output."""
        sizes = self._remaining(kept).tolist()
        return {work.node.outputs[0].name: work.macs(sizes) // self._batch for work in self._work}

    def _of(self, measure: str, kept: Kept, counts: _Counts) -> int:
        if measure == "channels":
            gone = [inside for block, inside in self._inner if not kept[block]]
            if gone:
                kept = kept.copy()
                kept[np.concatenate(gone)] = False
            return int(np.count_nonzero(kept[self._free]))
        if measure == "macs":
            return self._macs(counts)
        if measure == "memory":
            return self._memory(counts)
        return int(self._weights(counts) @ (self._counted if measure == "params" else self._itemsize))

    def _remaining(self, kept: Kept) -> _Counts:
        """Return the number of kept labels of every row, followed by a 1."""
        counts = np.ones(len(self._labels) + 1, np.int64)
        if len(self._flat):
            counts[:-1] = np.add.reduceat(kept[self._flat], self._starts, dtype=np.int64)
        return counts

    def _macs(self, counts: _Counts) -> int:
        """Return the MACs of one sample."""
        sizes = counts.tolist()
        return sum([work.macs(sizes) for work in self._work]) // self._batch

    def _memory(self, counts: _Counts) -> int:
        """Return the peak bytes of live activations of one sample."""
        if not len(self._born):
            return 0
        sizes = (self._activations(counts) * self._width).astype(np.float64)  # exact below 2^53
        places = int(self._dead.max()) + 2
        change = np.bincount(self._born, sizes, places) - np.bincount(self._dead + 1, sizes, places)
        return int(np.cumsum(change).max()) // self._batch
