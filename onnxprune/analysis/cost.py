"""What a model costs, before and after a plan, in tens of microseconds per question.

MACs are multiply-accumulate operations of Conv, ConvTranspose, Gemm, MatMul and Einsum, for one sample (a dynamic
batch counts as 1), as fvcore and the papers count them; biases, activations and normalisations are left out.
Parameters are the elements of floating-point constants without BatchNormalization's running statistics, and of the
integer weights of quantized models, without their scales and zero points; bytes are
those of all constants, the file without its graph. Memory is the most bytes of activations alive at once, for one
sample, when the nodes run one by one in the order of the graph: a runtime that fuses or works in place needs less.
Channels are those that can be removed, over all groups. What a selection finds (boxes of a detector), of which only the
data knows how many there are, counts as 101 of them, see `shapes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Kept
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
        """This over another, by the name of the measure."""
        total = getattr(baseline, what)
        return float(getattr(self, what) / total) if total else 1.0


MEASURES = ("macs", "params", "bytes", "memory", "channels")

# Operators whose output is their input's memory under another shape.
_SAME_MEMORY = frozenset(("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"))

# Operators whose floating-point constants are scales.
_SCALED = frozenset(("QuantizeLinear", "DequantizeLinear", "QGemm"))

# A dimension is a number, or the place of a count that depends on what is kept (negative: -1 - place).
_Template = tuple[int, ...]
_Counts = npt.NDArray[np.int64]


@dataclass
class _Work:
    """The MACs of one node, remembered by the counts it depends on."""

    rule: Macs
    node: gs.Node
    ins: list[_Template]
    outs: list[_Template]
    rows: list[int]
    known: dict[tuple[int, ...], int] = field(default_factory=dict)

    def macs(self, counts: Sequence[int]) -> int:
        key = tuple([counts[r] for r in self.rows])
        if key not in self.known:

            def shape(template: _Template) -> tuple[int, ...]:
                return tuple(n if n >= 0 else counts[-1 - n] for n in template)

            self.known[key] = self.rule(self.node, [shape(t) for t in self.ins], [shape(t) for t in self.outs])
        return self.known[key]


class _Elements:
    """Numbers of elements of many tensors at once: a factor times the counts of their labelled axes."""

    def __init__(self, templates: Sequence[_Template], one: int) -> None:
        rows = [[-1 - n for n in t if n < 0] for t in templates]
        width = max(map(len, rows), default=0)
        self.fixed = np.array([int(np.prod([n for n in t if n >= 0], dtype=np.int64)) for t in templates], np.int64)
        # Short rows are filled up with the place of a count that is always 1.
        self.rows = np.array([r + [one] * (width - len(r)) for r in rows], np.int64).reshape(len(rows), width)

    def __call__(self, counts: _Counts) -> _Counts:
        out = self.fixed.copy()
        for column in self.rows.T:
            out *= counts[column]
        return out


class CostModel:
    """Answers "what would it cost if these channels stayed?"."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self._rows: dict[int, tuple[npt.NDArray[np.int64], int]] = {}  # by id, with the array: ids are used again
        self._equal: dict[bytes, int] = {}
        self._labels: list[npt.NDArray[np.int64]] = []
        batch = [n for (name, axis), n in analysis.witness.dims.items() if axis == 0]
        self._batch = batch[0] if batch else 1
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

    def _constants(self) -> list[tuple[_Template, int, bool]]:
        """Shape, bytes per element, and whether they are parameters, of every constant once."""
        nodes = self.analysis.model.graph.nodes
        table = self.analysis.table
        aside = {t.name for n in nodes if n.op == "BatchNormalization" for t in n.inputs[3:5]}
        aside |= {t.name for n in nodes if n.op in _SCALED or n.op.startswith("QLinear") for t in n.inputs}
        integers = {root.name for root, _ in table.views.values() if root.dtype.kind != "f"} | table.quantized.keys()
        found: dict[str, tuple[_Template, int, bool]] = {}
        for t in (t for n in nodes for t in n.inputs):
            if isinstance(t, gs.Constant) and t.name not in found:
                template = self._template(tuple(t.shape), self.analysis.table.constants.get(t.name))
                floating = t.dtype.kind == "f" or t.dtype.name.startswith(("bfloat", "float"))
                counted = t.name in integers or (floating and t.name not in aside)
                found[t.name] = (template, t.dtype.itemsize, counted)
        return list(found.values())

    def _nodes(self) -> list[_Work]:
        """Every node that has MACs and whose shapes are known."""
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
            out.append(_Work(spec.macs, node, templates[:split], templates[split:], rows))
        return out

    def _lives(self) -> list[tuple[_Template, int, int, int]]:
        """Shape, bytes per element, first and last node (by place) of every piece of activation memory.

        Shape arithmetic that is known beforehand and tensors of unknown shape are left out.
        """
        seen, table, graph = self.analysis.witness, self.analysis.table, self.analysis.model.graph
        nodes = graph.nodes
        memory: dict[str, str] = {}  # tensor -> the tensor whose memory it is
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
            out.append((self._template(table.shapes[name], table.variables.get(name)), dtype.itemsize,
                        first[name], max(last[name], first[name])))  # fmt: skip
        return out

    def _template(self, shape: Sequence[int], axes: Axes | None) -> _Template:
        out = []
        for axis, n in enumerate(shape):
            labels = axes[axis] if axes else None
            if labels is None:
                out.append(n)
                continue
            # Tensors that follow each other share their label arrays, coupled ones their components: one count
            # serves them all.
            if id(labels) not in self._rows:
                components = self.analysis.component[labels]
                row = self._equal.setdefault(components.tobytes(), len(self._labels))
                if row == len(self._labels):
                    self._labels.append(components)
                self._rows[id(labels)] = labels, row
            out.append(-1 - self._rows[id(labels)][1])
        return tuple(out)

    def cost(self, kept: Kept) -> Cost:
        """The cost if the components in `kept` (bool [count]) stay."""
        counts = self._remaining(kept)
        return Cost(**{measure: self._of(measure, kept, counts) for measure in MEASURES})

    def share(self, kept: Kept, measure: str) -> float:
        """The share of one measure that these components keep: `cost(kept).ratio(whole, measure)`, without the rest."""
        total: int = getattr(self.baseline, measure)
        return self._of(measure, kept, self._remaining(kept)) / total if total else 1.0

    def _of(self, measure: str, kept: Kept, counts: _Counts) -> int:
        if measure == "channels":
            return int(np.count_nonzero(kept[self._free]))
        if measure == "macs":
            return self._macs(counts)
        if measure == "memory":
            return self._memory(counts)
        return int(self._weights(counts) @ (self._counted if measure == "params" else self._itemsize))

    def _remaining(self, kept: Kept) -> _Counts:
        """How many labels of every row stay, and a 1 at the end."""
        counts = np.ones(len(self._labels) + 1, np.int64)
        if len(self._flat):
            counts[:-1] = np.add.reduceat(kept[self._flat], self._starts, dtype=np.int64)
        return counts

    def _macs(self, counts: _Counts) -> int:
        """Multiply-accumulates of one sample."""
        sizes = counts.tolist()
        return sum([work.macs(sizes) for work in self._work]) // self._batch

    def _memory(self, counts: _Counts) -> int:
        """Most bytes alive at once, for one sample."""
        if not len(self._born):
            return 0
        sizes = (self._activations(counts) * self._width).astype(np.float64)  # exact below 2^53
        places = int(self._dead.max()) + 2
        change = np.bincount(self._born, sizes, places) - np.bincount(self._dead + 1, sizes, places)
        return int(np.cumsum(change).max()) // self._batch
