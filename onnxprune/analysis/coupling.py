"""Coupled channels of a model: one pass over the graph ties labels, connected components are channels.

A *channel* is a component: indices of many tensors that are removed or kept together. A *group* is the set of channels
on the same axes of the same weights, the unit of pruning ratios. Channels that an operator needs completely are
locked, with the operator's name and reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune._utils.output.formatting import counted, shortened
from onnxprune._utils.output.html import html_table
from onnxprune.analysis._lock_reasons import lock_dynamic, name_inputs
from onnxprune.analysis.blocks import Block, find_blocks
from onnxprune.analysis.group_naming import Namer
from onnxprune.analysis.shapes.node_faults import NodeFaults
from onnxprune.analysis.shapes.shape_inference import Witness, known_or_witness
from onnxprune.analysis.shapes.type_inference import body_constants, captured
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.ir import protobuf_wire
from onnxprune.ir.model import Array, Model
from onnxprune.ops import GuardedRule, OpSpec, find, is_foreign
from onnxprune.ops.label_table import Contraction, CouplingOptions, FilterSite, Labels, LabelTable, Lock, ScaleSite
from onnxprune.ops.quantize import dequantized
from onnxprune.options.planning import GROUP_KINDS as KINDS
from onnxprune.plans import Plan

Kept = npt.NDArray[np.bool_]

_KIND_OF_OP = {
    "Conv": "conv", "ConvTranspose": "conv", "Gemm": "mlp", "MatMul": "mlp", "Einsum": "mlp", "Gather": "embedding",
    "Pad": "padding",
}  # fmt: skip
# Layouts of one kernel library for one processor, from models optimized beyond level "extended".
RUNTIME_ONLY = ("com.microsoft.nchwc",)
OPS_GROUP = "onnxprune.ops"


@dataclass(frozen=True, repr=False)
class Group:
    """Channels on the same axes.

    Attributes:
        name: Derived from the name of the producing weight or its node; stable across runs.
        components: Component of each channel, ascending; the position is the channel's index in plans.
        width: Indices per channel on the producing axis (64 for a head of 64, 2 after a channel shuffle).
        sites: (weight, axis) pairs of the channels.
        op: Operator of the producer.
        residual: Whether an addition of activations joins the outputs of several layers.
        kind: Kind of its channels, one of `KINDS`.
        statistics: Operators that compute a statistic over its channels; if any, its removal is inexact.
    """

    name: str
    components: npt.NDArray[np.int64] = field(repr=False)
    width: int
    sites: tuple[tuple[str, int], ...] = field(repr=False)
    op: str
    residual: bool = False
    kind: str = "other"
    statistics: tuple[str, ...] = ()

    def __repr__(self) -> str:
        facts = [counted(self.channels, "channel"), f"kind {self.kind}", f"produced by {self.op}"]
        facts += [f"{self.width} indices per channel"] if self.width > 1 else []
        facts += ["residual"] if self.residual else []
        facts += [f"inexact: {', '.join(self.statistics)}"] if self.statistics else []
        return f"<Group {shortened(self.name, 80)}: {', '.join(facts)}>"

    def _repr_html_(self) -> str:
        """Table for notebooks: the weights and axes that the channels are on."""
        rows = [[tensor, str(axis)] for tensor, axis in self.sites]
        return html_table(f"group {self.name}", ["weight", "axis"], rows, note=repr(self))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.components)

    @property
    def exact(self) -> bool:
        """True if removing the channels equals masking them."""
        return not self.statistics


@dataclass(frozen=True)
class LockedGroup:
    """Channels that cannot be removed, and the reason; `inexact` ones can be freed, but not removed exactly."""

    name: str
    channels: int
    node: str
    op: str
    reason: str
    inexact: bool


@dataclass(frozen=True)
class Analysis:
    """Prunable groups and locked groups of a model.

    Attributes:
        source: Original model, unchanged.
        model: Normalized model that the labels belong to.
        witness: Shapes and values used for the analysis.
        table: Labels of every tensor.
        component: Component of every label; 0 for labels that are always kept.
        count: Number of components, 0 included.
        groups: Prunable groups.
        locked: Locked groups.
        blocks: Residual blocks, those that cannot be removed included; free ones have components behind the channels'.
    """

    source: Model
    model: Model
    witness: Witness = field(repr=False)
    table: LabelTable = field(repr=False)
    component: npt.NDArray[np.int64] = field(repr=False)
    count: int
    groups: tuple[Group, ...]
    locked: tuple[LockedGroup, ...]
    blocks: tuple[Block, ...] = ()

    def __repr__(self) -> str:
        channels = sum(g.channels for g in self.groups)
        return f"<Analysis: {len(self.groups)} groups, {channels} channels can be removed; {len(self.locked)} locked>"

    def _repr_html_(self) -> str:
        """Return the groups and the locked groups as HTML tables."""
        rows = [
            [g.name, str(g.channels), str(g.width), str(len(g.sites)), g.op + (", residual" if g.residual else "")]
            for g in self.groups
        ]
        title = f"{len(rows)} groups, {sum(g.channels for g in self.groups)} channels can be removed"
        columns = ["group", "channels", "width", "tensors", "made by"]
        out = html_table(title, columns, rows, text=(0, 4))
        if self.locked:
            why = [[k.name, str(k.channels), f"it {k.reason}", f"{k.op} {k.node}"] for k in self.locked]
            out += html_table("locked", ["group", "channels", "because", "by"], why, text=(0, 2, 3))
        return out

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """Groups by name."""
        return {g.name: g for g in self.groups}

    def __getitem__(self, name: str) -> Group:
        """Return a group by name.

        Raises:
            OnnxPruneError: The group does not exist or is locked.
        """
        if name in self.by_name:
            return self.by_name[name]
        for locked in self.locked:
            if locked.name == name:
                raise OnnxPruneError(
                    f"the group {name!r} is locked: it {locked.reason}",
                    where=f"{locked.op} {locked.node!r}",
                    fix="free it with --include-inexact" if locked.inexact else None,
                )
        raise unknown("group", name, self.by_name)

    def kept(self, plan: Plan | None = None) -> Kept:
        """Return the components kept under a plan: bool [count]."""
        out = np.ones(self.count, bool)
        for name, removed in (plan.groups if plan is not None else {}).items():
            out[self[name].components[np.asarray(removed.removed, np.int64)]] = False
        for name in plan.blocks if plan is not None else ():
            out[self.block(name).components] = False
        return out

    def block(self, name: str) -> Block:
        """Return a free block by name.

        Raises:
            OnnxPruneError: The block does not exist or is not free.
        """
        for block in self.blocks:
            if block.name == name and not block.reason:
                return block
            if block.name == name:
                raise OnnxPruneError(f"the block {name!r} cannot be removed: {block.reason}")
        raise unknown("block", name, [b.name for b in self.free_blocks])

    @property
    def free_blocks(self) -> tuple[Block, ...]:
        """Blocks that can be removed."""
        return tuple(b for b in self.blocks if not b.reason)

    def keep(self, tensor: str, axis: int, kept: Kept) -> Kept | None:
        """Return the kept indices of a tensor's axis: bool [size]; None if all are kept."""
        axes = self.table.variables.get(tensor) or self.table.constants.get(tensor)
        labels = axes[axis] if axes else None
        if labels is None:
            return None
        out: Kept = kept[self.component[labels]]
        return None if out.all() else out

    @property
    def choices(self) -> CouplingOptions:
        """Options of the analysis that free locked channels."""
        return self.table.choices

    def inexact(self, plan: Plan) -> tuple[Group, ...]:
        """Return the groups whose removal under a plan is inexact."""
        return tuple(g for g in self.groups if not g.exact and g.name in plan.groups and plan.groups[g.name].removed)

    @property
    def contractions(self) -> Sequence[Contraction]:
        """Contraction inputs, where masks represent removed channels."""
        return self.table.contractions

    @property
    def filter_sites(self) -> Sequence[FilterSite]:
        """Weights whose filters produce channels."""
        return self.table.filter_sites

    @property
    def scale_sites(self) -> Sequence[ScaleSite]:
        """BatchNormalization scales."""
        return self.table.scale_sites

    def weight(self, t: gs.Tensor) -> Array:
        """Return a weight's values, also behind Transpose, Cast and DequantizeLinear; integers are dequantized."""
        if isinstance(t, gs.Constant):
            steps = self.table.quantized.get(t.name)
            return np.asarray(t.values) if steps is None else dequantized(t.values, steps)
        node = t.inputs[0]
        spec = find(node)
        assert spec is not None
        assert spec.evaluate is not None
        operands = [self._raw(i) if i.name else None for i in node.inputs]
        out = np.asarray(spec.evaluate(node, operands))
        for value in operands:
            if value is not None and not np.may_share_memory(out, value):
                protobuf_wire.release(value)
        return out

    def _raw(self, t: gs.Tensor) -> Array:
        return np.asarray(t.values) if isinstance(t, gs.Constant) else self.weight(t)


def components(count: int, ties: Sequence[tuple[Labels, Labels]]) -> npt.NDArray[np.int64]:
    """Return the connected components of `count` labels: for each label the smallest one connected to it.

    Vectorized hooking and pointer jumping (Shiloach & Vishkin 1982). scipy's connected_components gives the same
    partition, but its import takes longer than the analysis of a ResNet-50.
    """
    parent = np.arange(count, dtype=np.int64)
    if not ties:
        return parent
    a = np.concatenate([t[0] for t in ties])
    b = np.concatenate([t[1] for t in ties])
    while True:
        pa, pb = parent[a], parent[b]
        active = pa != pb
        if not active.any():
            return parent
        a, b = a[active], b[active]
        pa, pb = pa[active], pb[active]
        np.minimum.at(parent, np.maximum(pa, pb), np.minimum(pa, pb))
        while True:
            up = parent[parent]
            if np.array_equal(up, parent):
                break
            parent = up


def _show_weights(node: gs.Node, table: LabelTable) -> None:
    """Label the weights of an operator without a rule, so that they are reported as locked."""
    for t in node.inputs:
        if isinstance(t, gs.Constant) and len(t.shape) > 1:
            table.filters(t, 0, table.produce(t, 0))


def _show_body_weights(node: gs.Node, table: LabelTable) -> None:
    """Label the weights in the bodies of a Loop or Scan, so that they are reported as locked."""
    if not any(isinstance(a, gs.Graph) for a in node.attrs.values()):
        return
    for t in body_constants(node):
        if len(t.shape) > 1 and t.name not in table.constants:
            table.filters(t, 0, table.produce(t, 0))
            table.lock_tensor(t, f"is in the body of a {node.op}, where channels are not analysed; unroll it on export")


def _lock_all(tensors: Sequence[gs.Tensor], table: LabelTable, reason: str) -> None:
    for t in tensors:
        if t.name and (isinstance(t, gs.Constant) or t.name in table.shapes):
            table.lock_tensor(t, reason)


def _no_record(node: gs.Node) -> str:
    name = f"is used by {node.domain or 'ai.onnx'}::{node.op}, which has no record"
    if node.domain in RUNTIME_ONLY:
        return f"{name}: onnxruntime made it for its own kernels; prune the model that it was made from"
    return f"{name}: add one (CONTRIBUTING, or a package with an entry point in {OPS_GROUP!r})"


def walk(model: Model, witness: Witness, choices: CouplingOptions | None = None) -> LabelTable:
    """Return the label table of a model: run the rule of every operator once, in graph order."""
    graph = model.graph
    table = LabelTable(witness.shapes, witness.values, model.opset, choices, witness.sizes, witness.formulas)
    table.impossible = witness.impossible
    table.outputs = frozenset(t.name for t in graph.outputs)
    sources = {t.name: t.name for t in graph.inputs}
    for node in graph.nodes:
        table.node = node
        outer = captured(node)
        start = len(table.locks)
        spec = find(node)
        tensors = [*node.inputs, *node.outputs]
        known = all(not t.name or isinstance(t, gs.Constant) or t.name in witness.shapes for t in tensors)
        if spec is not None and (known or spec.locked_reason):
            with NodeFaults(node):
                _couple(spec, node, table)
                if witness.sizes:
                    lock_dynamic(node, table)
        else:
            if spec is None:
                _show_weights(node, table)
            _lock_all(node.inputs, table, _no_record(node) if spec is None else "is used where a shape is not known")
        name_inputs(node, table, start, sources)
        _lock_all(outer, table, "is used inside a subgraph")
        _show_body_weights(node, table)
        for t in outer:
            table.seal(t)  # in any order of nodes: other consumers of the constant keep it complete
        if not any(t.name in table.views for t in node.outputs):
            for t in node.inputs:
                if t.name:
                    table.seal(t)
    table.finish()
    table.node = None
    for t in graph.outputs:
        if t.name in witness.shapes:
            for labels in table.get(t):
                if labels is not None:
                    table.locks.append(Lock(labels, t.name, "output", "is an output of the model"))
    return table


def _couple(spec: OpSpec, node: gs.Node, table: LabelTable) -> None:
    """Run a rule; check that the labels of a rule from another package match the shapes."""
    if not is_foreign(spec):
        spec.couple(node, table)
        return
    with GuardedRule(spec, node):
        spec.couple(node, table)
        for t in node.outputs:
            sizes = [None if a is None else len(a) for a in table.get(t)]
            shape = table.shape(t)
            if len(sizes) != len(shape) or any(n not in (None, m) for n, m in zip(sizes, shape, strict=True)):
                raise ValueError(f"it labels {t.name!r} of shape {shape} with arrays of {sizes}")


def couple(
    model: Model,
    *,
    shapes: Witness | None = None,
    source: Model | None = None,
    choices: CouplingOptions | None = None,
) -> Analysis:
    """Return the channels and groups of a normalized model.

    Args:
        model: Normalized model (see `onnxprune.passes.NORMALIZE`).
        shapes: Shapes that the passes inferred; default: they are inferred here.
        source: Model before normalization; default: `model`.
        choices: Axis freed by ambiguous splits, and whether inexact channels are free.
    """
    seen = known_or_witness(model, shapes)
    return assemble(model, seen, walk(model, seen, choices), source=source)


def assemble(model: Model, witness: Witness, table: LabelTable, *, source: Model | None = None) -> Analysis:
    """Return the components, locks and groups of a complete label table."""
    root = components(table.count, table.ties)
    none = len(table.locks)
    first_lock = np.full(table.count, none, np.int64)  # by root label: the lock that applies
    order = sorted(range(none), key=lambda i: table.locks[i].inexact)  # exact locks first
    rank = np.empty(none + 1, np.int64)
    rank[[*order, none]] = np.arange(none + 1)
    for i, lock in enumerate(table.locks):
        np.minimum.at(first_lock, root[lock.labels], rank[i])
    by_rank = [table.locks[i] for i in order]
    allowed = np.array([table.choices.inexact and lock.inexact for lock in by_rank] + [True], bool)
    roots = np.flatnonzero(root == np.arange(table.count))
    free_roots = roots[(roots > 0) & allowed[first_lock[roots]]]
    number = np.zeros(table.count, np.int64)
    number[free_roots] = np.arange(1, len(free_roots) + 1)
    component = number[root]
    component[0] = 0
    summed = np.zeros(table.count, bool)
    for labels in table.sums:
        summed[root[labels]] = True
    cause = np.where(allowed[first_lock], -1, first_lock)  # by root: the lock that applies, -1 if free
    ops, lifted = _lifted(table, root)
    lifted[cause >= 0] = 0
    kinds = _kinds(table, root)
    namer = Namer(table, root)
    groups, locked = [], []
    for members, sites in _grouped(table, root, cause, lifted):
        why = int(cause[members[0]])
        if why < 0:
            width, op = namer.shape(members)
            residual = bool(summed[members].any())
            kind = KINDS[kinds[members].min()]
            if kind == "other":
                kind = "stream" if residual else _KIND_OF_OP.get(op, kind)
            statistics = tuple(op for i, op in enumerate(ops) if int(lifted[members[0]]) >> i & 1)
            groups.append(Group(namer.name(members), number[members], width, sites, op, residual, kind, statistics))
        elif namer.produced(members):  # constants that no layer produces (masks, frequencies) are not reported
            lock = by_rank[why]
            locked.append(LockedGroup(namer.name(members), len(members), lock.node, lock.op, lock.reason, lock.inexact))
    count = len(free_roots) + 1
    blocks = find_blocks(model.graph, witness, table, component, groups, count)
    count += sum(not b.reason for b in blocks)
    return Analysis(source or model, model, witness, table, component, count, tuple(groups), tuple(locked), blocks)


def _lifted(table: LabelTable, root: npt.NDArray[np.int64]) -> tuple[list[str], npt.NDArray[np.uint64]]:
    """Return the operators whose locks are lifted on request, and for every root label the bit set of its operators."""
    found = np.zeros(table.count, np.uint64)
    ops = sorted({lock.op for lock in table.locks if lock.inexact}) if table.choices.inexact else []
    for lock in table.locks if ops else ():
        if lock.inexact:
            found[root[lock.labels]] |= np.uint64(1 << ops.index(lock.op))
    return ops, found


def _kinds(table: LabelTable, root: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return, for every root label, the index in `KINDS` that operators assign to it."""
    out = np.full(table.count, KINDS.index("other"), np.int64)
    for labels, kind in table.kinds:
        np.minimum.at(out, root[labels], KINDS.index(kind))
    return out


def _grouped(
    table: LabelTable, root: npt.NDArray[np.int64], cause: npt.NDArray[np.int64], lifted: npt.NDArray[np.uint64]
) -> list[tuple[npt.NDArray[np.int64], tuple[tuple[str, int], ...]]]:
    """Partition root labels by weight axes, applying lock and lifted locks; parts are in label order."""
    # Two components are in one group if they are on the same set of sites: compare sums of well-mixed site keys.
    key = np.zeros(table.count, np.uint64)
    roots_of: dict[int, npt.NDArray[np.int64]] = {}  # consecutive tensors share label arrays
    sites: list[tuple[str, int, int]] = []
    for tensor, axes in table.constants.items():
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            here = roots_of.get(id(labels))
            if here is None:
                here = roots_of[id(labels)] = root[labels]
            key[here] += _scattered(len(sites) + 1)  # an index that occurs twice is added once, as intended
            sites.append((tensor, axis, id(labels)))
    key[0] = 0
    present = np.flatnonzero(key)
    if not len(present):
        return []
    key[present] += (cause[present] + 1).astype(np.uint64) * _scattered(0x10CC)
    key[present] += lifted[present] * _scattered(0x11F7)
    # Neighbours are mostly in one group: compare runs of equal keys, not all keys.
    keys = key[present]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    _, of_run = np.unique(keys[starts], return_inverse=True)
    inverse = np.repeat(of_run, np.diff(starts, append=len(keys)))
    if len(starts) < 2**16:
        inverse = inverse.astype(np.uint16)  # enables radix sort
    group_of = np.full(table.count, -1, np.int64)
    group_of[present] = inverse
    groups_of = {i: set(group_of[here].tolist()) for i, here in roots_of.items()}
    sites_of: list[list[tuple[str, int]]] = [[] for _ in range(int(inverse.max()) + 1)]
    for tensor, axis, i in sites:
        for g in groups_of[i]:
            if g >= 0:
                sites_of[g].append((tensor, axis))
    order = np.argsort(inverse, kind="stable")
    parts = np.split(present[order], np.flatnonzero(np.diff(inverse[order])) + 1)
    return sorted(((m, tuple(sites_of[g])) for g, m in enumerate(parts)), key=lambda item: int(item[0][0]))


def _scattered(n: int) -> np.uint64:
    """Return a well-mixed 64-bit number for a small one (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = n * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return np.uint64(z ^ (z >> 31))
