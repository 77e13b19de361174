"""What a model costs, before and after a plan: MACs, parameters, bytes; in microseconds per question.

MACs are multiply-accumulate operations of Conv, ConvTranspose, Gemm, MatMul and Einsum, for one sample (a dynamic
batch counts as 1), as fvcore and the papers count them; biases, activations and normalisations are left out.
Parameters are the elements of floating-point constants without BatchNormalization's running statistics; bytes are
those of all constants, the file without its graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.coupling import Analysis, Kept
from onnxprune.ops import find
from onnxprune.ops.labels import Axes
from onnxprune.ops.record import Macs


@dataclass(frozen=True)
class Cost:
    """MACs per sample, parameters (elements) and bytes of the constants."""

    macs: int
    params: int
    bytes: int

    def ratio(self, whole: Cost, what: str) -> float:
        """This over another, by the name of the measure."""
        total = getattr(whole, what)
        return float(getattr(self, what) / total) if total else 1.0


MEASURES = ("macs", "params", "bytes")

# A dimension is a number, or the place of a count that depends on what is kept (negative: -1 - place).
_Template = tuple[int, ...]


class CostModel:
    """Answers "what would it cost if these channels stayed?"."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self._rows: dict[int, int] = {}
        self._labels: list[npt.NDArray[np.int64]] = []
        table = analysis.table
        batch = [n for (name, axis), n in analysis.witness.dims.items() if axis == 0]
        self._batch = batch[0] if batch else 1
        statistics = {t.name for n in analysis.model.graph.nodes if n.op == "BatchNormalization" for t in n.inputs[3:5]}
        self._constants: list[tuple[_Template, int, bool]] = []
        seen: set[str] = set()
        self._nodes: list[tuple[Macs, gs.Node, list[_Template], list[_Template]]] = []
        for node in analysis.model.graph.nodes:
            for t in node.inputs:
                if isinstance(t, gs.Constant) and t.name not in seen:
                    seen.add(t.name)
                    template = self._template(tuple(t.shape), table.constants.get(t.name))
                    floating = t.dtype.kind == "f" or t.dtype.name.startswith(("bfloat", "float"))
                    self._constants.append((template, t.dtype.itemsize, floating and t.name not in statistics))
            spec = find(node)
            if spec is None or spec.macs is None:
                continue
            tensors = [*node.inputs, *node.outputs]
            if any(t.name and not isinstance(t, gs.Constant) and t.name not in table.shapes for t in tensors):
                continue
            templates = [self._template(table.shape(t), table.get(t)) if t.name else () for t in tensors]
            split = len(node.inputs)
            self._nodes.append((spec.macs, node, templates[:split], templates[split:]))
        flat = [analysis.component[labels] for labels in self._labels]
        self._flat = np.concatenate(flat) if flat else np.zeros(0, np.int64)
        self._starts = np.cumsum([0, *[len(f) for f in flat[:-1]]]) if flat else np.zeros(0, np.int64)
        self.whole = self.cost(np.ones(analysis.count, bool))

    def _template(self, shape: Sequence[int], axes: Axes | None) -> _Template:
        out = []
        for axis, n in enumerate(shape):
            labels = axes[axis] if axes else None
            if labels is None:
                out.append(n)
                continue
            # Tensors that follow each other share their label arrays: one count serves them all.
            if id(labels) not in self._rows:
                self._rows[id(labels)] = len(self._labels)
                self._labels.append(labels)
            out.append(-1 - self._rows[id(labels)])
        return tuple(out)

    def cost(self, kept: Kept) -> Cost:
        """The cost if the components in `kept` (bool [count]) stay."""
        sizes: list[int] = []
        if len(self._flat):
            sizes = np.add.reduceat(kept[self._flat].astype(np.int64), self._starts).tolist()

        def shape(template: _Template) -> tuple[int, ...]:
            return tuple(n if n >= 0 else sizes[-1 - n] for n in template)

        params = size = macs = 0
        for template, itemsize, counted in self._constants:
            elements = prod(shape(template))
            size += elements * itemsize
            params += elements if counted else 0
        for rule, node, ins, outs in self._nodes:
            macs += rule(node, [shape(t) for t in ins], [shape(t) for t in outs])
        return Cost(macs // self._batch, params, size)
