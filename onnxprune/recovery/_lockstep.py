"""Traversal of a pruned model and its original, node by node on the same samples, for re-solving weights.

The error of a linear node is measured at the next *stable point*: after the per-channel constants that follow (a kept
BatchNormalization) and, in a residual block, after the addition of the shortcut. There the pruned model should equal
the original, given the inputs of the node and the shortcut in the pruned model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.linear_layers import LinearNode, Matrix, linear_node
from onnxprune.analysis.shapes.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.channel_moments import Moments
from onnxprune.execution.gram import Indices, picked_positions, stretches
from onnxprune.execution.graph_segments import ActivationCursor, Segments
from onnxprune.ir.model import Array, Model
from onnxprune.ir.symbolic import quotient
from onnxprune.passes import RemoveBlocks
from onnxprune.plans import Plan
from onnxprune.recovery._activations import Activation, Clamp, activation, chain
from onnxprune.recovery._original_activations import OriginalActivations

MEMORY = 2**28  # bytes of live tensors of each model held in memory; the others are stored in files

Vector = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairedLayer:
    """Linear node of the pruned model and its stable point: `z = scale * y + offset + shortcut`.

    Attributes:
        linear: Linear node with outputs y.
        reads: Name of its input.
        point: Name of z, in both models.
        shortcut: Tensor added in the pruned model; None if there is none, or it is not computed yet.
        scale: Factor per output.
        offset: Offset per output.
        activation: Scalar function that follows z.
        kept: Outputs of the original that the pruned node keeps; None: all.
        norm: BatchNormalization that is the only consumer of y and has a mean of its own; None if there is none.
    """

    linear: LinearNode
    reads: str
    point: str
    shortcut: str | None
    scale: Vector = field(repr=False)
    offset: Vector = field(repr=False)
    activation: Activation = field(repr=False)
    kept: Kept | None = field(repr=False)
    norm: gs.Node | None = field(default=None, repr=False)

    def set_weights(self, matrix: Matrix, shift: Matrix | None, names: set[str]) -> None:
        """Set the weights, and with `shift` the values added to y (see `LinearNode.put`).

        If the node has no bias and a BatchNormalization follows, the shift is subtracted from its mean.
        """
        if shift is not None and self.linear.bias is None and self.norm is not None:
            mean = self.norm.inputs[3]
            mean.values = (np.asarray(mean.values, np.float64) - shift).astype(mean.dtype)
            shift = None
        self.linear.set_weights(matrix, shift, names)


@dataclass(frozen=True)
class RegressionRows:
    """Data of one regression, sample by sample.

    Attributes:
        inputs: Inputs in the pruned model, [groups, n, inputs * kernel], float32 (float64 for float64 models).
        targets: z of the original, [n, outputs], same type.
        shortcut: Shortcut in the pruned model, [n, outputs], same type; None if nothing is added.
        samples: Sample number of each row, [n].
    """

    inputs: Array
    targets: Array
    shortcut: Array | None
    samples: npt.NDArray[np.int64]


class PairedCursor:
    """Original and pruned model at the same node. A context manager, because it may hold files.

    Args:
        analysis: Coupling analysis of the original.
        plan: Channels that were removed.
        pruned: Pruned model; weights before or at the current node may change between steps.
        calibration: Calibration data.
        memory: Bytes of live tensors of each model held in memory.
        originals: Activations of the original from earlier recoveries; None: they are not kept.

    Raises:
        OnnxPruneError: The pruned model is not the original pruned by the plan.
    """

    def __init__(
        self, analysis: Analysis, plan: Plan, pruned: Model, calibration: Calibration, *, memory: int = MEMORY,
        originals: OriginalActivations | None = None,
    ) -> None:  # fmt: skip
        wired = without_blocks(analysis, plan)
        check_wiring(wired, pruned)
        self.rewired = _rewired(analysis.model, wired) if plan.blocks else frozenset()
        self.analysis, self.pruned, self.calibration = analysis, pruned, calibration
        self.kept = analysis.kept(plan)
        self.originals = originals
        run = {"device": calibration.device, "threads": calibration.threads, "memory": memory}
        before = Segments(_in_order_of(pruned, analysis.model), analysis.witness)
        after = Segments(pruned, witness(pruned))
        self.original_cursor = ActivationCursor(before, calibration.feeds(analysis.model), **run)  # type: ignore[arg-type]
        self.pruned_cursor = ActivationCursor(after, calibration.feeds(pruned), **run)  # type: ignore[arg-type]

    def __enter__(self) -> PairedCursor:
        return self

    def __exit__(self, *_: object) -> None:
        self.original_cursor.__exit__()
        self.pruned_cursor.__exit__()

    def changed(self) -> set[str]:
        """Return the tensors of the pruned model whose values were changed by pruning."""
        reads = [(c.output, c.labels) for c in self.analysis.contractions]
        reads += [(s.output, s.labels) for s in self.analysis.table.statistics]
        reduced = {output for output, labels in reads if not self.kept[self.analysis.component[labels]].all()}
        changed: set[str] = set()
        for node in self.pruned.graph.nodes:
            names = {o.name for o in node.outputs}
            inside = (t for body in node.subgraphs(recursive=True) for n in body.nodes for t in n.inputs)
            if names & (reduced | self.rewired) or any(t.name in changed for t in (*node.inputs, *inside)):
                changed |= names
        return changed

    def steps(self) -> list[PairedLayer]:
        """Return the linear nodes whose outputs were changed by pruning, in graph order."""
        outputs = frozenset(t.name for t in self.pruned.graph.outputs)
        changed = self.changed()
        found = []
        for node in self.pruned.graph.nodes:
            linear = linear_node(node, outputs) if node.outputs and node.outputs[0].name in changed else None
            if linear is not None and (step := self._step(linear, outputs)) is not None:
                found.append(step)
        return found

    def moments(self, name: str, node: gs.Node, axis: int) -> Moments:
        """Advance to a node; return mean and variance per channel of a tensor of the pruned model."""
        self.pruned_cursor.advance(self.pruned_cursor.segments.producer_index[node.outputs[0].name])
        found = Moments(name, axis)
        for batch, values in enumerate(self.pruned_cursor.values([name])):
            found.add(values[name], self.pruned_cursor.samples(batch))
        return found

    def kept_channels(self, name: str, spatial: bool) -> Kept | None:
        """Return the channels of a tensor that the pruned model keeps; None: all."""
        labels = self.analysis.table.variables.get(name)
        if not labels:
            return None
        return self.analysis.keep(name, 1 if spatial else len(labels) - 1, self.kept)

    def advance(self, step: PairedLayer) -> None:
        """Advance both models to a step's node; with a store the original runs only for what is not there."""
        output = step.linear.node.outputs[0].name
        if self.originals is None:
            self.original_cursor.advance(self.original_cursor.segments.producer_index[output])
        self.pruned_cursor.advance(self.pruned_cursor.segments.producer_index[output])

    def rows(self, step: PairedLayer, positions: int, *, seed: int = 0) -> RegressionRows:
        """Return the regression rows of a step; both models must be at it.

        Args:
            step: Node and stable point.
            positions: Maximum number of output positions per sample.
            seed: Seed of the choice of positions.
        """
        linear, names = step.linear, [step.reads, *([step.shortcut] if step.shortcut else [])]
        inputs, wanted, shortcut, samples = [], [], [], []
        pairs = zip(self._original_values(step), self.pruned_cursor.values(names), strict=True)
        for batch, (theirs, ours) in enumerate(pairs):
            span = self.pruned_cursor.samples(batch)
            count, each = linear.count(ours[step.reads]), len(ours[step.reads]) // len(span)
            for part in stretches(span):
                # Windows or tokens folded into the first axis are positions as well: pick some, and positions in each.
                few = max(ceil(positions / count), ceil(sqrt(positions)))
                folds = picked_positions(each, few, part.start, seed)
                picks = picked_positions(count, ceil(positions / min(few, each)), part.start, seed)
                own = partial(_picked, first=part.start - span.start, count=len(part), each=each, folds=folds)
                inputs.append(linear.rows(own(ours[step.reads]), picks))
                z = own(theirs)
                if step.kept is not None:
                    z = np.compress(step.kept, z, 1 if linear.spatial else -1)
                wanted.append(linear.picked(z, picks))
                if step.shortcut:
                    shortcut.append(linear.picked(own(ours[step.shortcut]), picks))
                samples.append(np.repeat(np.arange(part.start, part.stop), len(wanted[-1]) // len(part)))
        return RegressionRows(
            _joined(inputs, 1), _joined(wanted, 0), _joined(shortcut, 0) if shortcut else None, np.concatenate(samples)
        )

    def _original_values(self, step: PairedLayer) -> Iterator[Array]:
        """Yield the stable point of a step in the original, batch by batch."""
        if self.originals is None:
            return (values[step.point] for values in self.original_cursor.values([step.point]))
        index = self.original_cursor.segments.producer_index[step.linear.node.outputs[0].name]
        return self.originals.values(self.original_cursor, step.point, index)

    def _step(self, linear: LinearNode, outputs: frozenset[str]) -> PairedLayer | None:
        """Return a node with its stable point; None if samples are not on the first axis of its tensors."""
        seen, place = self.pruned_cursor.segments.witness, self.pruned_cursor.segments.producer_index
        if linear.output not in place:  # an Add in the body of an If or Loop
            return None
        t = self.pruned.graph.tensors()[linear.output]
        norm, node = None, self._only_consumer(t, outputs)
        if node is not None and node.op == "BatchNormalization" and len(node.inputs[3].outputs) == 1:
            norm = node
        scale, offset = np.ones(linear.outputs), np.zeros(linear.outputs)
        while node is not None and (found := affine(node, t, linear)) is not None:
            scale, offset = scale * found[0], offset * found[0] + found[1]
            t = node.outputs[0]
            node = self._only_consumer(t, outputs)
        norm = norm if t.name != linear.output else None  # only one with known constants
        shortcut = None
        if node is not None and node.op == "Add":
            other = next((x for x in node.inputs if x is not t), t)
            shape, start = seen.shapes.get(t.name), place[linear.node.outputs[0].name]
            if shape is not None and shape == seen.shapes.get(other.name) and place.get(other.name, start) < start:
                shortcut, t = other.name, node.outputs[0]
                node = self._only_consumer(t, outputs)
            else:
                node = None
        reads = linear.node.inputs[0].name
        batch = (seen.symbolic(self.pruned.graph.inputs[0].name) or (None,))[0]
        for name in (reads, t.name):
            length = (seen.symbolic(name) or (None,))[0]
            if batch is None or length is None or quotient(length, batch) is None:
                return None
        kept = self.kept_channels(t.name, linear.spatial)
        return PairedLayer(
            linear, reads, t.name, shortcut, scale, offset, self._activation(t, node, outputs), kept, norm
        )

    def _activation(self, t: gs.Tensor, node: gs.Node | None, outputs: frozenset[str]) -> Activation:
        """Return the function behind a tensor; `node` is its only consumer, or None."""
        if node is not None and node.op in ("Relu", "Clip"):
            return Clamp(*bounds(node))
        segments = self.pruned_cursor.segments
        found = chain(t, outputs, segments.producer_index)
        if found is None:
            return Clamp()
        dtype = segments.witness.dtypes.get(t.name, np.dtype(np.float32))
        return activation(self.pruned, t, found, dtype)

    def _only_consumer(self, t: gs.Tensor, outputs: frozenset[str]) -> gs.Node | None:
        """Return the only consumer of a tensor; None if there are several or it is in the body of an If or Loop."""
        node = t.outputs[0] if len(t.outputs) == 1 and t.name not in outputs else None
        return node if node is not None and node.outputs[0].name in self.pruned_cursor.segments.producer_index else None


def _joined(parts: list[Array], axis: int) -> Array:
    """Return arrays concatenated along an axis; empties the list, to save memory."""
    shape = list(parts[0].shape)
    shape[axis] = sum(p.shape[axis] for p in parts)
    out = np.empty(shape, parts[0].dtype)
    view = np.moveaxis(out, axis, 0)
    parts.reverse()
    start = 0
    while parts:
        part = np.moveaxis(parts.pop(), axis, 0)
        view[start : start + len(part)] = part
        start += len(part)
    return out


def _picked(x: Array, first: int, count: int, each: int, folds: Indices | None) -> Array:
    """Return some samples of a tensor `[samples * each, ...]`, some entries of each, as float32 or wider."""
    found = x[first * each : (first + count) * each]
    if folds is not None:
        found = found.reshape(count, each, *x.shape[1:])[:, folds].reshape(-1, *x.shape[1:])
    return found.astype(np.float32) if found.dtype.itemsize < 4 else found


def without_blocks(analysis: Analysis, plan: Plan) -> Model:
    """Return the analysed model without the blocks of a plan, at full width."""
    return RemoveBlocks(plan, analysis)(analysis.model) if plan.blocks else analysis.model


def _rewired(original: Model, wired: Model) -> frozenset[str]:
    """Return the outputs of the nodes that read another tensor than in the original: what a removed block changes."""
    theirs = {_identity(n): [t.name for t in n.inputs] for n in original.graph.nodes}
    return frozenset(
        t.name for n in wired.graph.nodes if theirs.get(_identity(n)) != [t.name for t in n.inputs] for t in n.outputs
    )


def check_wiring(original: Model, pruned: Model) -> None:
    """Raise if a model's nodes are not those of the original; order and constants may differ.

    Raises:
        OnnxPruneError: Names the first differing node.
    """
    theirs, ours = ({_identity(n): n for n in m.graph.nodes} for m in (original, pruned))
    for name in [*ours, *theirs]:
        node, other = ours.get(name), theirs.get(name)
        if node is None or other is None or not _same(node, other):
            raise OnnxPruneError(
                "the pruned model is not the original pruned by the plan: its nodes differ",
                where=f"{(node or other).op} {name!r}",  # type: ignore[union-attr]
                fix="pass the model pruned by this plan (`onnxprune apply`), unchanged by other tools",
            )
    outputs = [[t.name for t in m.graph.outputs] for m in (original, pruned)]
    if outputs[0] != outputs[1]:
        raise OnnxPruneError(
            "the pruned model is not the original pruned by the plan: its outputs have other names",
            fix="pass the two models that the plan belongs to",
        )


def _same(node: gs.Node, other: gs.Node) -> bool:
    """Return whether a node may be the stripped form of another: a Slice as Gather, a computed size as constant."""
    ops = [(n.op, n.domain or "") for n in (node, other)]
    if ops[0] != ops[1] and ops != [("Gather", ""), ("Slice", "")]:
        return False
    if [t.name for t in node.outputs] != [t.name for t in other.outputs]:
        return False
    for i, (ours, theirs) in enumerate(zip_longest(node.inputs, other.inputs)):
        computed = [isinstance(t, gs.Variable) and bool(t.name) for t in (ours, theirs)]
        if (computed[0] and (not computed[1] or ours.name != theirs.name)) or (i == 0 and computed[0] != computed[1]):
            return False
    return True


def _identity(node: gs.Node) -> str:
    """Return the name of a node's first output."""
    return next((str(t.name) for t in node.outputs if t.name), "")


def _in_order_of(first: Model, other: Model) -> Model:
    """Return the other model with its nodes in the order of the first; the first may have fewer nodes."""
    place = {_identity(n): i for i, n in enumerate(first.graph.nodes)}
    order = [place[name] for n in other.graph.nodes if (name := _identity(n)) in place]
    if len(order) < len(other.graph.nodes):  # blocks are removed: the order of the rest is the original's
        return other
    if order == sorted(order):
        return other
    copy = other.copy()
    copy.graph.nodes.sort(key=lambda n: place[_identity(n)])
    return copy


def affine(node: gs.Node, t: gs.Tensor, linear: LinearNode) -> tuple[Vector, Vector] | None:
    """Return (factor, offset) per channel if a node only scales and shifts the outputs t of a linear node, or None."""
    if node.op == "BatchNormalization" and node.inputs[0] is t and linear.spatial:
        if node.attrs.get("training_mode") or not all(isinstance(x, gs.Constant) for x in node.inputs[1:]):
            return None
        gamma, beta, mean, var = (np.asarray(x.values).astype(np.float64) for x in node.inputs[1:5])
        factor = gamma / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
        return factor, beta - mean * factor
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] is t
    other = node.inputs[1 if first else 0]
    if not isinstance(other, gs.Constant) or (not first and node.op in ("Sub", "Div")):
        return None
    values = np.asarray(other.values).astype(np.float64)
    shape = list(values.shape)
    if len(shape) > (len(linear.weight.shape) if linear.spatial else 2):  # the outputs would get another axis
        return None
    axis = len(shape) - (len(linear.weight.shape) - 1 if linear.spatial else 1)
    if values.size == 1:
        vector = np.full(linear.outputs, float(values.reshape(-1)[0]))
    elif axis >= 0 and values.size == linear.outputs == shape[axis]:
        vector = values.reshape(-1)
    else:
        return None
    one, zero = np.ones(linear.outputs), np.zeros(linear.outputs)
    with np.errstate(divide="ignore"):
        return {"Add": (one, vector), "Sub": (one, -vector), "Mul": (vector, zero), "Div": (one / vector, zero)}[
            node.op
        ]


def bounds(node: gs.Node) -> tuple[float, float]:
    """Return the bounds that a Relu or Clip applies; infinite if they are computed."""
    if node.op == "Relu":
        return 0.0, np.inf
    limits: list[float] = []
    for i, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        value: float = float(node.attrs.get(name, default))
        if len(node.inputs) > i and node.inputs[i].name:
            if not isinstance(node.inputs[i], gs.Constant):
                return -np.inf, np.inf
            value = float(np.asarray(node.inputs[i].values).reshape(-1)[0])
        limits.append(value)
    return limits[0], limits[1]
