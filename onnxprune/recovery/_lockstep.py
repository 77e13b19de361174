"""A pruned model beside its original, node by node on the same samples: what solving for weights needs.

The weights of a linear node are judged at the next *stable point*: where its outputs have passed the per-channel
constants after it (a BatchNormalization that was kept) and, in a residual block, the addition of the shortcut. There
the pruned model should say what the original says, given what reaches the node and the shortcut in the pruned model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import ceil, sqrt

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis
from onnxprune.analysis.linear_layers import LinearNode, Matrix, linear_node
from onnxprune.analysis.shape_inference import witness
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration
from onnxprune.execution.channel_moments import Moments
from onnxprune.execution.gram import Indices, picked_positions, stretches
from onnxprune.execution.graph_segments import ActivationCursor, Segments
from onnxprune.ir.model import Array, Model
from onnxprune.plans import Plan

MEMORY = 2**29  # bytes that held tensors of each model may take; the others wait in files

Vector = npt.NDArray[np.float64]
Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PairedLayer:
    """A linear node of the pruned model and the stable point it is judged at: `z = scale * y + offset + shortcut`.

    Attributes:
        linear: the node, with outputs y.
        reads: the tensor it reads.
        point: the tensor z, in both models.
        shortcut: the tensor added to it in the pruned model; None where none is, or none is there yet.
        scale: per output.
        offset: per output.
        low: what a nonlinearity after z (Relu, Clip) raises smaller values to; -inf where there is none.
        high: what it lowers larger ones to; inf where there is none.
        kept: which outputs of the original the pruned node still has; None: all.
        norm: a BatchNormalization that alone reads y, with a mean of its own; None where there is none.
    """

    linear: LinearNode
    reads: str
    point: str
    shortcut: str | None
    scale: Vector = field(repr=False)
    offset: Vector = field(repr=False)
    low: float
    high: float
    kept: Kept | None = field(repr=False)
    norm: gs.Node | None = field(default=None, repr=False)

    def set_weights(self, matrix: Matrix, shift: Matrix | None, names: set[str]) -> None:
        """Changes the weights, and with `shift` what is added to y (see `LinearNode.put`).

        Where a BatchNormalization follows a node without bias, its mean takes the shift: it then is the mean of y.
        """
        if shift is not None and self.linear.bias is None and self.norm is not None:
            mean = self.norm.inputs[3]
            mean.values = (np.asarray(mean.values, np.float64) - shift).astype(mean.dtype)
            shift = None
        self.linear.set_weights(matrix, shift, names)


@dataclass(frozen=True)
class RegressionRows:
    """What a step is solved from, sample by sample.

    Attributes:
        inputs: [groups, n, inputs * kernel], of the pruned model; float32, or float64 where it is.
        wanted: z of the original, [n, outputs], likewise.
        shortcut: of the pruned model, [n, outputs], likewise; None: nothing is added.
        samples: the sample each row is from, [n].
    """

    inputs: Array
    targets: Array
    shortcut: Array | None
    samples: npt.NDArray[np.int64]


class PairedCursor:
    """Both models at the same node. Use it as a context: it may keep files.

    Args:
        analysis: of the original.
        plan: what was removed.
        pruned: what is left; its weights may change on the way, behind or at the current node.
        calibration: the samples.
        memory: bytes that held tensors of each model may take.

    Raises:
        OnnxPruneError: the pruned model is not what the plan makes of the original.
    """

    def __init__(
        self, analysis: Analysis, plan: Plan, pruned: Model, calibration: Calibration, *, memory: int = MEMORY
    ) -> None:
        check_wiring(analysis.model, pruned)
        self.analysis, self.pruned, self.calibration = analysis, pruned, calibration
        self.kept = analysis.kept(plan)
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
        """Tensors of the pruned model whose values the pruning has changed."""
        reads = [(c.output, c.labels) for c in self.analysis.contractions]
        reads += [(s.output, s.labels) for s in self.analysis.table.statistics]
        reduced = {output for output, labels in reads if not self.kept[self.analysis.component[labels]].all()}
        changed: set[str] = set()
        for node in self.pruned.graph.nodes:
            names = {o.name for o in node.outputs}
            inside = (t for body in node.subgraphs(recursive=True) for n in body.nodes for t in n.inputs)
            if names & reduced or any(t.name in changed for t in (*node.inputs, *inside)):
                changed |= names
        return changed

    def steps(self) -> list[PairedLayer]:
        """The linear nodes whose outputs the pruning has changed, in the order of the graph."""
        outputs = frozenset(t.name for t in self.pruned.graph.outputs)
        changed = self.changed()
        found = []
        for node in self.pruned.graph.nodes:
            linear = linear_node(node, outputs) if node.outputs and node.outputs[0].name in changed else None
            if linear is not None and (step := self._step(linear, outputs)) is not None:
                found.append(step)
        return found

    def moments(self, name: str, node: gs.Node, axis: int) -> Moments:
        """Mean and variance per channel of a tensor of the pruned model, which goes to the node first."""
        self.pruned_cursor.advance(self.pruned_cursor.segments.producer_index[node.outputs[0].name])
        found = Moments(name, axis)
        for batch, values in enumerate(self.pruned_cursor.values([name])):
            found.add(values[name], self.pruned_cursor.samples(batch))
        return found

    def kept_channels(self, name: str, spatial: bool) -> Kept | None:
        """Which channels of a tensor the pruned model still has; None: all."""
        labels = self.analysis.table.variables.get(name)
        if not labels:
            return None
        return self.analysis.keep(name, 1 if spatial else len(labels) - 1, self.kept)

    def advance(self, step: PairedLayer) -> None:
        """Both models go to a step's node."""
        output = step.linear.node.outputs[0].name
        self.original_cursor.advance(self.original_cursor.segments.producer_index[output])
        self.pruned_cursor.advance(self.pruned_cursor.segments.producer_index[output])

    def rows(self, step: PairedLayer, positions: int, *, seed: int = 0) -> RegressionRows:
        """What a step is solved from; both models must be at it.

        Args:
            step: where.
            positions: output positions of each sample, at most.
            seed: of the choice of positions.
        """
        linear, names = step.linear, [step.reads, *([step.shortcut] if step.shortcut else [])]
        inputs, wanted, shortcut, samples = [], [], [], []
        pairs = zip(self.original_cursor.values([step.point]), self.pruned_cursor.values(names), strict=True)
        for batch, (theirs, ours) in enumerate(pairs):
            span = self.pruned_cursor.samples(batch)
            count, each = linear.count(ours[step.reads]), len(ours[step.reads]) // len(span)
            for part in stretches(span):
                # Windows or tokens folded into the first axis are positions as well: some of them, some places in each.
                few = max(ceil(positions / count), ceil(sqrt(positions)))
                folds = picked_positions(each, few, part.start, seed)
                picks = picked_positions(count, ceil(positions / min(few, each)), part.start, seed)
                own = partial(_picked, first=part.start - span.start, count=len(part), each=each, folds=folds)
                inputs.append(linear.rows(own(ours[step.reads]), picks))
                z = own(theirs[step.point])
                if step.kept is not None:
                    z = np.compress(step.kept, z, 1 if linear.spatial else -1)
                wanted.append(linear.picked(z, picks))
                if step.shortcut:
                    shortcut.append(linear.picked(own(ours[step.shortcut]), picks))
                samples.append(np.repeat(np.arange(part.start, part.stop), len(wanted[-1]) // len(part)))
        return RegressionRows(
            np.concatenate(inputs, axis=1), np.concatenate(wanted), np.concatenate(shortcut) if shortcut else None,
            np.concatenate(samples),
        )  # fmt: skip

    def _step(self, linear: LinearNode, outputs: frozenset[str]) -> PairedLayer | None:
        """Where a node is judged; None where the samples do not come first in its tensors."""
        seen, place = self.pruned_cursor.segments.witness, self.pruned_cursor.segments.producer_index
        if linear.output not in place:  # an Add in the body of an If or a Loop
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
        norm = norm if t.name != linear.output else None  # only one whose constants are known
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
        batch = seen.shapes[self.pruned.graph.inputs[0].name][:1]
        for name in (reads, t.name):
            shape = seen.shapes.get(name)
            if not shape or not batch or shape[0] % batch[0]:
                return None
        low, high = bounds(node)
        kept = self.kept_channels(t.name, linear.spatial)
        return PairedLayer(linear, reads, t.name, shortcut, scale, offset, low, high, kept, norm)

    def _only_consumer(self, t: gs.Tensor, outputs: frozenset[str]) -> gs.Node | None:
        """The node of the graph that alone reads a tensor; one in the body of an If or a Loop does not count."""
        node = t.outputs[0] if len(t.outputs) == 1 and t.name not in outputs else None
        return node if node is not None and node.outputs[0].name in self.pruned_cursor.segments.producer_index else None


def _picked(x: Array, first: int, count: int, each: int, folds: Indices | None) -> Array:
    """Some samples of a tensor `[samples * each, ...]`, and of each some entries; at least float32."""
    found = x[first * each : (first + count) * each]
    if folds is not None:
        found = found.reshape(count, each, *x.shape[1:])[:, folds].reshape(-1, *x.shape[1:])
    return found.astype(np.float32) if found.dtype.itemsize < 4 else found


def check_wiring(original: Model, pruned: Model) -> None:
    """Refuses a model whose nodes are not those of the original; their order and their constants may differ.

    Raises:
        OnnxPruneError: with the first node that differs.
    """
    theirs, ours = ({_identity(n): n for n in m.graph.nodes} for m in (original, pruned))
    for name in [*ours, *theirs]:
        node, other = ours.get(name), theirs.get(name)
        if node is None or other is None or not _same(node, other):
            raise OnnxPruneError(
                "the pruned model is not what the plan makes of the original: its nodes differ",
                where=f"{(node or other).op} {name!r}",  # type: ignore[union-attr]
                fix="give the model that this plan made (`onnxprune apply`), before any other tool changed it",
            )
    outputs = [[t.name for t in m.graph.outputs] for m in (original, pruned)]
    if outputs[0] != outputs[1]:
        raise OnnxPruneError(
            "the pruned model is not what the plan makes of the original: its outputs have other names",
            fix="give the two models that the plan belongs to",
        )


def _same(node: gs.Node, other: gs.Node) -> bool:
    """Whether a node is what stripping leaves of another: a Slice may become a Gather, a computed size a constant."""
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
    """The name of its first output."""
    return next((str(t.name) for t in node.outputs if t.name), "")


def _in_order_of(first: Model, other: Model) -> Model:
    """The other model with its nodes in the order that the first has them in; both have the same nodes."""
    place = {_identity(n): i for i, n in enumerate(first.graph.nodes)}
    order = [place[_identity(n)] for n in other.graph.nodes]
    if order == sorted(order):
        return other
    copy = other.copy()
    copy.graph.nodes.sort(key=lambda n: place[_identity(n)])
    return copy


def affine(node: gs.Node, t: gs.Tensor, linear: LinearNode) -> tuple[Vector, Vector] | None:
    """(factor, summand) per channel of a node that does nothing else to the outputs t of a linear node, or None."""
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


def bounds(node: gs.Node | None) -> tuple[float, float]:
    """Between which values a node hands on what it gets; all where it is no Relu or Clip."""
    if node is not None and node.op == "Relu":
        return 0.0, np.inf
    if node is None or node.op != "Clip":
        return -np.inf, np.inf
    limits: list[float] = []
    for i, name, default in ((1, "min", -np.inf), (2, "max", np.inf)):
        value: float = float(node.attrs.get(name, default))
        if len(node.inputs) > i and node.inputs[i].name:
            if not isinstance(node.inputs[i], gs.Constant):
                return -np.inf, np.inf
            value = float(np.asarray(node.inputs[i].values).reshape(-1)[0])
        limits.append(value)
    return limits[0], limits[1]
