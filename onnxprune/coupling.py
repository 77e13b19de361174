"""Which channels belong together: one walk over the graph, connected components of label ties, groups.

A *channel* is a component: indices of many tensors that live or die together. A *group* is the set of channels that
sit on the same axes of the same weights, what a user prunes by a ratio. Channels that some operator needs whole are
locked, with the operator's name and reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune import wire
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.model import Array, Model
from onnxprune.ops import OpSpec, find, guarded
from onnxprune.ops.labels import Choices, Contraction, FilterSite, Labels, LabelTable, Lock, ScaleSite
from onnxprune.plans import Plan
from onnxprune.shapes import Witness, witness

Kept = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Channels that sit on the same axes.

    Attributes:
        name: from the producing weight's name, else its node's; stable across runs.
        components: component number of each channel, ascending; a channel's place here is its index in plans.
        width: indices per channel on the producing axis (64 for a head of 64, 2 after a channel shuffle).
        sites: (weight, axis) pairs on which the channels sit.
        op: operator of the producing node.
        residual: whether an addition of activations joins the outputs of several layers in it.
    """

    name: str
    components: npt.NDArray[np.int64] = field(repr=False)
    width: int
    sites: tuple[tuple[str, int], ...] = field(repr=False)
    op: str
    residual: bool = False

    @property
    def channels(self) -> int:
        """How many channels the group has."""
        return len(self.components)


@dataclass(frozen=True)
class LockedGroup:
    """Channels that cannot be removed, and why. `inexact` ones could be, but not exactly."""

    name: str
    channels: int
    node: str
    op: str
    reason: str
    inexact: bool


@dataclass(frozen=True)
class Analysis:
    """What can be removed from a model, what cannot and why.

    Attributes:
        source: the caller's model, untouched.
        model: the normalized model the labels belong to.
        witness: shapes and values the walk was made with.
        table: labels of every tensor.
        component: component of every label; 0 for everything that stays.
        count: how many components there are, 0 included.
        groups: what can be pruned.
        locked: what cannot.
    """

    source: Model
    model: Model
    witness: Witness = field(repr=False)
    table: LabelTable = field(repr=False)
    component: npt.NDArray[np.int64] = field(repr=False)
    count: int
    groups: tuple[Group, ...]
    locked: tuple[LockedGroup, ...]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    @cached_property
    def by_name(self) -> Mapping[str, Group]:
        """Groups by name."""
        return {g.name: g for g in self.groups}

    def __getitem__(self, name: str) -> Group:
        """A group by name.

        Raises:
            OnnxPruneError: there is none of that name, or it is locked.
        """
        if name in self.by_name:
            return self.by_name[name]
        for locked in self.locked:
            if locked.name == name:
                raise OnnxPruneError(
                    f"the group {name!r} is locked: it {locked.reason}", where=f"{locked.op} {locked.node!r}"
                )
        raise unknown("group", name, self.by_name)

    def kept(self, plan: Plan | None = None) -> Kept:
        """Which components stay under a plan: bool [count]."""
        out = np.ones(self.count, bool)
        for name, removed in (plan.groups if plan is not None else {}).items():
            out[self[name].components[np.asarray(removed.removed, np.int64)]] = False
        return out

    def keep(self, tensor: str, axis: int, kept: Kept) -> Kept | None:
        """Which indices of a tensor's axis stay; None when all do."""
        axes = self.table.variables.get(tensor) or self.table.constants.get(tensor)
        labels = axes[axis] if axes else None
        if labels is None:
            return None
        out: Kept = kept[self.component[labels]]
        return None if out.all() else out

    @property
    def contractions(self) -> Sequence[Contraction]:
        """Where masks stand for removed channels."""
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
        """Values of a weight, through Transpose and Cast views of a constant."""
        if isinstance(t, gs.Constant):
            return np.asarray(t.values)
        node = t.inputs[0]
        value = self.weight(node.inputs[0])
        spec = find(node)
        assert spec is not None
        assert spec.evaluate is not None
        out = np.asarray(spec.evaluate(node, [value]))
        if not np.may_share_memory(out, value):
            wire.release(value)
        return out


def components(count: int, ties: Sequence[tuple[Labels, Labels]]) -> npt.NDArray[np.int64]:
    """Connected components of `count` labels: for each the smallest label it is connected to.

    Vectorised hooking and pointer jumping (Shiloach & Vishkin 1982). scipy's connected_components gives the same
    partition; importing it costs more than the whole analysis of a ResNet-50.
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


def walk(model: Model, seen: Witness, choices: Choices | None = None) -> LabelTable:
    """Runs every operator's rule once, in graph order."""
    graph = model.graph
    table = LabelTable(seen.shapes, seen.values, model.opset, choices)
    table.outputs = frozenset(t.name for t in graph.outputs)
    for node in graph.nodes:
        table.node = node
        spec = find(node)
        tensors = [*node.inputs, *node.outputs]
        known = all(not t.name or isinstance(t, gs.Constant) or t.name in seen.shapes for t in tensors)
        if spec is not None and known:
            _couple(spec, node, table)
        else:
            reason = (
                f"is used by {node.domain or 'ai.onnx'}::{node.op}, which has no record"
                if spec is None
                else "is used where a shape is not known"
            )
            for t in node.inputs:
                if t.name and (isinstance(t, gs.Constant) or t.name in seen.shapes):
                    table.lock_tensor(t, reason)
        for body in node.subgraphs(recursive=True):
            for t in (t for n in body.nodes for t in n.inputs):
                if t.name in table.variables or t.name in table.constants:
                    table.lock_tensor(t, "is used inside a subgraph")
        if not any(t.name in table.views for t in node.outputs):
            for t in node.inputs:
                if t.name:
                    table.seal(t)
    table.node = None
    for t in graph.outputs:
        if t.name in seen.shapes:
            for labels in table.get(t):
                if labels is not None:
                    table.locks.append(Lock(labels, t.name, "output", "is an output of the model"))
    return table


def _couple(spec: OpSpec, node: gs.Node, table: LabelTable) -> None:
    """Runs a rule; of one of another package it is checked that its labels fit."""
    with guarded(spec, node) as foreign:
        spec.couple(node, table)
        for t in node.outputs if foreign else ():
            sizes = [None if a is None else len(a) for a in table.get(t)]
            shape = table.shape(t)
            if len(sizes) != len(shape) or any(n not in (None, m) for n, m in zip(sizes, shape, strict=True)):
                raise ValueError(f"it labels {t.name!r} of shape {shape} with arrays of {sizes}")


def couple(
    model: Model, *, source: Model | None = None, choices: Choices | None = None, include_inexact: bool = False
) -> Analysis:
    """Finds channels and groups of a normalized model.

    Args:
        model: normalized (see `onnxprune.passes.NORMALIZE`).
        source: the model it was normalized from; default: itself.
        choices: what ambiguous splits free.
        include_inexact: free also what only operators with statistics over channels forbid.
    """
    seen = witness(model)
    return assemble(model, seen, walk(model, seen, choices), source=source, include_inexact=include_inexact)


def assemble(
    model: Model, seen: Witness, table: LabelTable, *, source: Model | None = None, include_inexact: bool = False
) -> Analysis:
    """Components, locks and groups of a finished label table."""
    root = components(table.count, table.ties)
    none = len(table.locks)
    first_lock = np.full(table.count, none, np.int64)  # by root label: the lock that counts
    order = sorted(range(none), key=lambda i: table.locks[i].inexact)  # exact ones first
    rank = np.empty(none + 1, np.int64)
    rank[[*order, none]] = np.arange(none + 1)
    for i, lock in enumerate(table.locks):
        np.minimum.at(first_lock, root[lock.labels], rank[i])
    by_rank = [table.locks[i] for i in order]
    allowed = np.array([include_inexact and lock.inexact for lock in by_rank] + [True], bool)
    roots = np.flatnonzero(root == np.arange(table.count))
    free_roots = roots[(roots > 0) & allowed[first_lock[roots]]]
    number = np.zeros(table.count, np.int64)
    number[free_roots] = np.arange(1, len(free_roots) + 1)
    component = number[root]
    component[0] = 0
    summed = np.zeros(table.count, bool)
    for labels in table.sums:
        summed[root[labels]] = True
    cause = np.where(allowed[first_lock], -1, first_lock)  # by root: the lock that holds it, -1 if it is free
    namer = _Namer(table, root)
    groups, locked = [], []
    for members, sites in _grouped(table, root, cause):
        why = int(cause[members[0]])
        if why < 0:
            width, op = namer.shape(members)
            groups.append(Group(namer.name(members), number[members], width, sites, op, bool(summed[members].any())))
        else:
            lock = by_rank[why]
            locked.append(LockedGroup(namer.name(members), len(members), lock.node, lock.op, lock.reason, lock.inexact))
    return Analysis(source or model, model, seen, table, component, len(free_roots) + 1, tuple(groups), tuple(locked))


def _grouped(
    table: LabelTable, root: npt.NDArray[np.int64], cause: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.int64], tuple[tuple[str, int], ...]]]:
    """Partitions root labels by the set of weight axes they sit on and by what locks them, in label order."""
    # Two components belong together if they sit on the same set of sites: compare sums of well-mixed site keys.
    key = np.zeros(table.count, np.uint64)
    roots_of: dict[int, npt.NDArray[np.int64]] = {}  # tensors that follow each other share their label arrays
    sites: list[tuple[str, int, int]] = []
    for tensor, axes in table.constants.items():
        for axis, labels in enumerate(axes):
            if labels is None:
                continue
            here = roots_of.get(id(labels))
            if here is None:
                here = roots_of[id(labels)] = root[labels]
            key[here] += _scattered(len(sites) + 1)  # an index that occurs twice is added to once, as wanted
            sites.append((tensor, axis, id(labels)))
    key[0] = 0
    present = np.flatnonzero(key)
    if not len(present):
        return []
    key[present] += (cause[present] + 1).astype(np.uint64) * _scattered(0x10CC)
    _, inverse = np.unique(key[present], return_inverse=True)
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
    """A well-mixed 64-bit number for a small one (the finaliser of SplitMix64, Steele et al. 2014)."""
    z = n * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return np.uint64(z ^ (z >> 31))


_AUTOMATIC = re.compile(
    r"^(onnx::|\d+$|val_\d+|const_fold_opt|Constant|_v_\d|node_|/|new_|arith_|p_)|_quantized$|__\d+$"
)
_SUFFIX = re.compile(
    r"(/convolution)?(/merged_input|_weights_fused_bn)?([./](weight|weights|kernel|gamma|scale|w|W)|/ReadVariableOp)?"
    r"(:\d+)?$"
)


def human_name(tensor: str, node: str) -> str:
    """A name for what a weight produces: its own without `.weight`, or its node's path where exporters made one up.

    >>> human_name("layer1.0.conv1.weight", "/layer1/layer1.0/conv1/Conv")
    'layer1.0.conv1'
    >>> human_name("onnx::Conv_538", "/layer1/layer1.0/conv1/Conv")
    'layer1.0.conv1'
    """
    if not _AUTOMATIC.search(tensor):
        name = _SUFFIX.sub("", tensor)
        return name or tensor
    parts = [p for p in node.split("/") if p]
    if len(parts) > 1:
        parts = parts[:-1]  # the operator itself
    path: list[str] = []
    for part in parts:  # TorchScript repeats the parent: layer1/layer1.0/conv1
        if path and part.startswith(path[-1] + "."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path) or _SUFFIX.sub("", tensor) or tensor


class _Namer:
    """Names and widths of groups from the weights that produce them."""

    def __init__(self, table: LabelTable, root: npt.NDArray[np.int64]) -> None:
        self.sites = table.filter_sites
        self.table = table
        self.root = root
        self.used: dict[str, int] = {}
        # For each root label the first filter site that holds it, else len(sites).
        self.first = np.full(table.count, len(self.sites), np.int64)
        for i in range(len(self.sites) - 1, -1, -1):
            self.first[root[self.sites[i].labels]] = i

    def shape(self, members: npt.NDArray[np.int64]) -> tuple[int, str]:
        """(indices per channel on the producing axis, producing operator)."""
        site = int(self.first[members[0]])
        if site == len(self.sites):
            return 1, "Pad"
        return int((self.root[self.sites[site].labels] == members[0]).sum()), self.sites[site].op

    def name(self, members: npt.NDArray[np.int64]) -> str:
        """A unique name; a second group of the same weight gets `#2`."""
        site = int(self.first[members[0]])
        if site < len(self.sites):
            base = human_name(self.sites[site].tensor.name, self.sites[site].node)
        else:
            base = self._by_consumer(int(members[0]))
        self.used[base] = self.used.get(base, 0) + 1
        return base if self.used[base] == 1 else f"{base}#{self.used[base]}"

    def _by_consumer(self, label: int) -> str:
        for tensor, axes in self.table.constants.items():
            for labels in axes:
                if labels is not None and (self.root[labels] == label).any():
                    return f"{human_name(tensor, tensor)}.in"
        return f"channels_{label}"
