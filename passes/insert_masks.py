"""Masked reference: the original model in which consumers read zeros for removed channels.

Before:  Conv(x, W)
After:   Conv(Mul(x, mask), W), mask [1, C, 1, 1] of zeros and ones
Conditions: 1. a mask is inserted at every contraction input over removed channels: the data input of Conv,
ConvTranspose, Gemm, MatMul, Einsum, a sum. Masking producers would be wrong: the shift of a BatchNormalization leaks.
2. data that is quantized before it is read is masked as numbers and quantized again with the same scale and zero
point: DequantizeLinear(q) -> Mul -> QuantizeLinear -> DequantizeLinear. This rounds nothing, zero is the zero point,
and a runtime still matches the patterns that it computes in integers.
3. nodes are found by the name of their first output, so the caller's own graph can be masked with the labels of its
normalized copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, Kept, couple
from onnxprune.errors import OnnxPruneError
from onnxprune.ir.model import Model
from onnxprune.ops.label_table import Contraction
from onnxprune.passes.base import Pass, register
from onnxprune.passes.edit import unique_name
from onnxprune.passes.strip_channels import analysis_options
from onnxprune.plans import NOTHING, Plan

MASK_INPUT = "onnxprune_mask"


@register
@dataclass(frozen=True)
class InsertMasks(Pass):
    """Mask the channels that a plan removes, by constants or through one graph input.

    Args:
        plan: Channels to mask; unused with `as_input`.
        analysis: Coupling analysis of the model, if available.
        as_input: Gather the masks from a graph input `onnxprune_mask`, float [channels + 1]: 1 keeps, 0 removes,
            index = component number (0 is everything that is not removable, always 1). One session then evaluates
            every mask of a sensitivity sweep.
        groups: With `as_input`, mask only inputs that read channels of these groups (default: all).
        partial: The model is a segment of the analysed one; consumers outside it are skipped.
    """

    name: ClassVar[str] = "insert_masks"
    plan: Plan = NOTHING
    analysis: Analysis | None = None
    as_input: bool = False
    groups: tuple[str, ...] = ()
    partial: bool = False

    def rewrite(self, model: Model) -> Model:
        """Insert a Mul at every contraction input that reads removed channels."""
        analysis = self.analysis
        if analysis is None:
            analysis = couple(model, **analysis_options(self.plan))
        graph = model.graph
        kept = analysis.kept(self.plan)
        masker = _Masker(graph, analysis, self.as_input)
        by_output = {o.name: n for n in graph.nodes for o in n.outputs if o.name}
        masked = ~kept
        if self.as_input:
            masked = np.zeros(analysis.count, bool)
            for g in [analysis[n] for n in self.groups] or analysis.groups:
                masked[g.components] = True
        for c in analysis.contractions:
            if not masked[analysis.component[c.labels]].any():
                continue
            node = by_output.get(c.output)  # condition 3
            if node is None and self.partial:
                continue
            if node is None:
                raise OnnxPruneError(f"the node that computes {c.output!r} is not in the graph to be masked")
            masker.mask(node, c, kept)
        graph.nodes[:] = masker.nodes(graph.nodes)
        return model


class _Masker:
    def __init__(self, graph: gs.Graph, analysis: Analysis, as_input: bool) -> None:
        self.graph = graph
        self.analysis = analysis
        self.names = set(graph.tensors())
        self.input: gs.Variable | None = None
        if as_input:
            self.input = gs.Variable(MASK_INPUT, np.float32, [analysis.count])
            graph.inputs.append(self.input)
        self.sources = {o.name: n for n in analysis.model.graph.nodes for o in n.outputs if o.name}
        self.before: dict[int, list[gs.Node]] = {}
        self.done: dict[tuple[int, int, bytes], gs.Variable] = {}

    def mask(self, node: gs.Node, c: Contraction, kept: Kept) -> None:
        x = node.inputs[c.input_index]
        components = self.analysis.component[c.labels]
        key = (id(x), c.axis, (components if self.input is not None else kept[components]).tobytes())
        if key not in self.done:
            shape = [1] * c.rank
            shape[c.axis] = len(components)
            dtype = self._dtype(node, x, c)
            base = unique_name(self.names, f"{x.name}_mask")
            new: list[gs.Node] = []
            if self.input is None:
                mask: gs.Tensor = gs.Constant(base, kept[components].astype(dtype).reshape(shape))
            else:
                mask = self._gathered(base, components, shape, dtype, new)
            masked = gs.Variable(unique_name(self.names, f"{x.name}_masked"), dtype)
            steps = self._steps(node, c, x)
            if c.steps is not None:  # integers are dequantized, masked and quantized again
                x = self._step("DequantizeLinear", x, steps, dtype, new)
            new.append(gs.Node("Mul", masked.name, {}, [x, mask], [masked]))
            if steps is not None:  # condition 2
                attrs, domain = self._kind(node, c)
                masked = self._step("QuantizeLinear", masked, steps, None, new, attrs, domain)
                if c.steps is None:
                    masked = self._step("DequantizeLinear", masked, steps, dtype, new, attrs, domain)
            self.before.setdefault(id(node), []).extend(new)
            self.done[key] = masked
        node.inputs[c.input_index] = self.done[key]

    def _steps(self, node: gs.Node, c: Contraction, x: gs.Tensor) -> list[gs.Tensor] | None:
        """Return scale and zero point of quantized data; None for other data."""
        if c.steps is None:
            source = x.inputs[0] if x.inputs else None
            if source is None or source.op != "DequantizeLinear" or isinstance(source.inputs[0], gs.Constant):
                return None
            reader, x, places = source, source.inputs[0], (1, 2)
        else:
            reader, places = node, c.steps
        out = []
        for place, absent in zip(places, (np.float32(1), self._integer(x).type(0)), strict=True):
            t = reader.inputs[place] if 0 <= place < len(reader.inputs) else None
            if t is None or not t.name:
                t = gs.Constant(unique_name(self.names, f"{x.name}_step"), np.asarray(absent))
            out.append(t)
        return out

    def _integer(self, x: gs.Tensor) -> np.dtype:
        """Return the integer type; a tensor of the caller's graph that normalization removed may have none."""
        return np.dtype(x.dtype or self.analysis.witness.dtypes.get(x.name) or np.uint8)

    def _kind(self, node: gs.Node, c: Contraction) -> tuple[dict[str, object], str]:
        """Return attributes and domain of the DequantizeLinear that is repeated."""
        if c.steps is not None:
            return {}, ""
        source = node.inputs[c.input_index].inputs[0]
        return {k: v for k, v in source.attrs.items() if k in ("axis", "block_size")}, source.domain or ""

    def _step(
        self, op: str, x: gs.Tensor, steps: list[gs.Tensor] | None, dtype: np.dtype | None, new: list[gs.Node],
        attrs: dict[str, object] | None = None, domain: str = "",
    ) -> gs.Variable:  # fmt: skip
        assert steps is not None
        out = gs.Variable(unique_name(self.names, f"{x.name}_{op[:-6].lower()}d"), dtype)
        new.append(gs.Node(op, out.name, dict(attrs or {}), [x, *steps], [out], domain))
        return out

    def _dtype(self, node: gs.Node, x: gs.Tensor, c: Contraction) -> np.dtype:
        """Return the type of the data to mask; its name in the caller's graph may be one that normalization removed."""
        dtypes = self.analysis.witness.dtypes
        if c.steps is not None:  # dequantized data has the type of its scale
            scale = node.inputs[c.steps[0]] if 0 <= c.steps[0] < len(node.inputs) else None
            return np.dtype((scale.dtype or dtypes.get(scale.name) if scale is not None else None) or np.float32)
        found = dtypes.get(x.name) or x.dtype
        if found is None:
            source = self.sources.get(c.output)
            found = dtypes.get(source.inputs[c.input_index].name) if source is not None else None
        return np.dtype(np.float32 if found is None else found)

    def _gathered(
        self, base: str, components: np.ndarray, shape: list[int], dtype: np.dtype, new: list[gs.Node]
    ) -> gs.Tensor:
        index = gs.Constant(unique_name(self.names, f"{base}_index"), components.astype(np.int64).reshape(shape))
        out = gs.Variable(base, np.float32)
        new.append(gs.Node("Gather", base, {"axis": 0}, [self.input, index], [out]))
        if dtype == np.float32:
            return out
        cast = gs.Variable(unique_name(self.names, f"{base}_cast"), dtype)
        new.append(gs.Node("Cast", cast.name, {"to": dtype.type}, [out], [cast]))
        return cast

    def nodes(self, old: list[gs.Node]) -> list[gs.Node]:
        """Return all nodes, the new ones before their first consumer."""
        out: list[gs.Node] = []
        for node in old:
            out.extend(self.before.get(id(node), ()))
            out.append(node)
        return out
