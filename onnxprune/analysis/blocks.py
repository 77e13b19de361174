"""Residual blocks: branches whose result is added to the tensor that they start from.

Before:  y = t + f(t)
After:   y = t

or for a layer of a dense block, with V split like the sum that it is multiplied with:

Before:  c = Concat(t, f(t)) ; z = Conv(c, V)
After:   z = Conv(t, V)

A block is found by dominance. Its nodes are those of which every value ends in the addition, and its entry is one of
the addends of the same sum, behind operators that move values at most. Without the branch the addition is then the
identity on its other operand. Nested, sequential and parallel branches are blocks of their own. The branch of a dense
layer starts from all other operands of a Concat; the channels that it appends are removed with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.group_naming import human_name
from onnxprune.analysis.shapes.shape_inference import Witness
from onnxprune.analysis.shapes.type_inference import captured
from onnxprune.ir.branches import FLAT, LAYERS, LOOP_START
from onnxprune.ops import find
from onnxprune.ops.label_table import LabelTable
from onnxprune.ops.op_spec import normal_axis

if TYPE_CHECKING:
    from onnxprune.analysis.coupling import Group

_MOVES = frozenset(("Identity", "Dropout", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators that a shortcut may pass: they move values and compute nothing."""
_RESIZES = frozenset(("AveragePool", "Concat", "Gather", "MaxPool", "Pad", "Resize", "Slice", *_MOVES))
_ATTENTION = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention", "Softmax"))


@dataclass(frozen=True, repr=False)
class Block:
    """Branch between a tensor and an addition that returns to it.

    Attributes:
        name: Derived from the names of the branch's weights or nodes; unique.
        kind: "attention", "mlp" or "conv".
        entry: Tensor that the branch starts from.
        output: Result of the addition.
        operand: Index of the branch among the addition's operands.
        branch: Result of the branch.
        nodes: First outputs of the branch's nodes, in graph order.
        component: Number of the block among the components of the analysis; 0 for blocks that are not free.
        reason: Reason why the block cannot be removed; "" for free ones.
        channels: Components of the channels that a dense layer appends, which are removed with it.
    """

    name: str
    kind: str
    entry: str
    output: str
    operand: int
    branch: str
    nodes: tuple[str, ...] = field(repr=False)
    component: int = 0
    reason: str = ""
    channels: tuple[int, ...] = field(default=(), repr=False)

    @property
    def components(self) -> list[int]:
        """Components that are removed with the block."""
        return [self.component, *self.channels]

    def __repr__(self) -> str:
        state = f"not free: {self.reason}" if self.reason else f"{len(self.nodes)} nodes"
        return f"<Block {self.name}: {self.kind}, {state}>"


@dataclass(frozen=True)
class _Region:
    """Nodes that are computed for one operand of an addition only, and the activations that they read."""

    nodes: tuple[int, ...]
    entries: Mapping[str, int]


def find_blocks(
    graph: gs.Graph, witness: Witness, table: LabelTable, component: npt.NDArray[np.int64], groups: Sequence[Group],
    first: int,
) -> tuple[Block, ...]:  # fmt: skip
    """Return the blocks of a graph in the order of their additions, those that are not free included.

    Args:
        graph: Normalized graph.
        witness: Its shapes.
        table: Its labels, for views of constants.
        component: Component of every label.
        groups: Groups of channels.
        first: Component of the first free block; the others follow.
    """
    finder = _Finder(graph, witness, table)
    found = [block for i in finder.additions() for block in finder.blocks(i)]
    if dense := [block for i in finder.concats() for block in finder.layers(i, component, groups)]:
        found = sorted([*found, *dense], key=lambda entry: finder.writer[entry[0].output])
    if any(n.op == LOOP_START for n in graph.nodes):
        found = _beside_layers(graph.nodes, found)
    names = _unique([finder.names(nodes) for _, nodes in found], {g.name for g in groups})
    out = []
    for (block, nodes), name in zip(found, names, strict=True):
        number = 0 if block.reason else first
        first += not block.reason
        outputs = tuple([graph.nodes[n].outputs[0].name for n in nodes])
        out.append(Block(**{**vars(block), "name": name, "nodes": outputs, "component": number}))
    return tuple(out)


def held_names(graph: gs.Graph) -> set[str]:
    """Return the names of tensors that are outputs of the model, or read in the body of a Loop or Scan."""
    return {t.name for t in graph.outputs} | {t.name for n in graph.nodes for t in captured(n)}


def adds(node: gs.Node) -> bool:
    """Return whether a node adds two tensors."""
    return node.op in ("Add", "Sum") and node.domain in (None, "", "ai.onnx") and len(node.inputs) == 2


def inner_groups(graph: gs.Graph, groups: Iterable[Group], block: Block) -> frozenset[str]:
    """Return the names of the groups of which every weight is used in a block only, or that it appends."""
    nodes = set(block.nodes)
    outside: set[str] = set()
    for node in graph.nodes:
        if not node.outputs or node.outputs[0].name not in nodes:
            outside.update(t.name for t in node.inputs if isinstance(t, gs.Constant))
    own = set(block.channels)
    return frozenset(
        g.name
        for g in groups
        if (g.sites and not any(t in outside for t, _ in g.sites)) or (own and set(g.components.tolist()) <= own)
    )


_Found = tuple[Block, tuple[int, ...]]


def _beside_layers(nodes: Sequence[gs.Node], found: Sequence[_Found]) -> list[_Found]:
    """Return the blocks with a reason for those whose removal can leave the body of a Loop without layers.

    Files are read with such Loops in nested form, which the checker does not compare with a flat one.
    """
    loops: dict[str, frozenset[str]] = {}  # tensor -> starts of the Loops whose bodies compute it
    layers: dict[str, set[int]] = {}
    for i, node in enumerate(nodes):
        around = frozenset().union(*(loops.get(t.name, ()) for t in node.inputs))
        if node.domain == FLAT and node.op == LOOP_START:
            around |= {node.outputs[0].name}
            layers[node.outputs[0].name] = set()
        elif node.domain == FLAT and node.op == "Loop":
            around -= {node.inputs[0].name}
        elif node.op in LAYERS:
            for start in around:
                layers[start].add(i)
        loops.update((t.name, around) for t in node.outputs)
    removable = {n for block, inside in found if not block.reason for n in inside}
    bare = {start for start, places in layers.items() if places <= removable}
    reason = "the body of its Loop has no other layers"
    return [
        (replace(block, reason=reason) if not block.reason and loops[block.output] & bare else block, inside)
        for block, inside in found
    ]


class _Finder:
    """Regions of the additions of one graph."""

    def __init__(self, graph: gs.Graph, witness: Witness, table: LabelTable) -> None:
        self.nodes: list[gs.Node] = graph.nodes
        self.witness = witness
        self.table = table
        self.place = {id(n): i for i, n in enumerate(self.nodes)}
        self.writer: dict[str, int] = {t.name: i for i, n in enumerate(self.nodes) for t in n.outputs if t.name}
        self.fixed = table.views.keys() | witness.values.keys()  # views of constants, and values computed from shapes
        self.last_reader = {t.name: i for i, n in enumerate(self.nodes) for t in n.inputs}
        self.held = held_names(graph)
        self.appended: set[str] = set()  # branches of dense layers that were found
        self._regions: dict[str, _Region] = {}  # of operands of Concats, which several of them may share
        self._groups: dict[int, Group] | None = None
        self._filters: set[tuple[str, int]] | None = None
        self._reads: dict[int, list[str]] = {}
        self._weighs: dict[int, bool] = {}
        self._multiply: dict[tuple[str, str | None], bool] = {}  # by operator

    def concats(self) -> Iterator[int]:
        """Return the nodes that join activations of known shape."""
        shapes = self.table.shapes
        for i, node in enumerate(self.nodes):
            if node.op == "Concat" and node.outputs[0].name in shapes and node.outputs[0].name not in self.fixed:
                names = self.reads(i)
                if len(names) == len(node.inputs) and shapes.keys() >= set(names) and self.fixed.isdisjoint(names):
                    yield i

    def reads(self, n: int) -> list[str]:
        """Return the names of the inputs of a node that are no constants."""
        found = self._reads.get(n)
        if found is None:
            found = [t.name for t in self.nodes[n].inputs if t.name and not isinstance(t, gs.Constant)]
            self._reads[n] = found
        return found

    def layers(self, i: int, component: npt.NDArray[np.int64], groups: Sequence[Group]) -> Iterator[_Found]:
        """Return the dense layers that append to the other operands of a Concat."""
        node, names = self.nodes[i], self.reads(i)
        places = [self.writer.get(name, -1) for name in names]
        operand = places.index(max(places))  # only the operand that is computed last can depend on all others
        name = names[operand]
        if name in self.appended or any(r.op != "Concat" for r in node.inputs[operand].outputs):
            return
        sources = dict(zip(names, places, strict=True))
        del sources[name]
        if not sources:
            return
        region = self._regions.get(name)
        if region is None:
            region = self.region(i, operand, min(sources.values()))
            if region.nodes:
                self._regions[name] = region
        if region.entries.keys() != sources.keys() or not any(self.weighs(n) for n in region.nodes):
            return
        self.appended.add(name)
        channels, reason = self.appends(node, node.inputs[operand], region.nodes, component, groups)
        yield self.block(node, operand, region, max(sources, key=sources.__getitem__), reason, channels)

    def appends(
        self,
        node: gs.Node,
        t: gs.Tensor,
        nodes: tuple[int, ...],
        component: npt.NDArray[np.int64],
        groups: Sequence[Group],
    ) -> tuple[tuple[int, ...], str]:
        """Return the components of the channels that a dense layer appends, and why they cannot all be removed."""
        rank = len(self.table.shape(t))
        axis = normal_axis(int(node.attrs["axis"]), rank)
        labels = self.table.get(t)[axis]
        own = [] if labels is None else sorted(set(component[labels].tolist()))
        if not own or not own[0]:
            return (), "the channels that it appends are locked"
        group = self.groups_of(groups).get(own[0])
        inside = {c.name for n in nodes for c in self.nodes[n].inputs if isinstance(c, gs.Constant)}
        if group is None or sorted(group.components.tolist()) != own:
            return (), "the channels that it appends are coupled with others"
        if not self.producers(group) <= inside:
            return (), "the channels that it appends are coupled with others"
        if not group.exact:
            return (), "a statistic runs over the channels that it appends"
        return tuple(own), ""

    def groups_of(self, groups: Sequence[Group]) -> Mapping[int, Group]:
        """Return the groups by their least component."""
        if self._groups is None:
            self._groups = {min(g.components.tolist()): g for g in groups}
        return self._groups

    def producers(self, group: Group) -> set[str]:
        """Return the names of the weights whose filters produce the channels of a group."""
        if self._filters is None:
            self._filters = {(site.tensor.name, site.axis) for site in self.table.filter_sites}
        return {tensor for tensor, _ in self._filters.intersection(group.sites)}

    def additions(self) -> Iterator[int]:
        """Return the additions of two activations of known shape."""
        for i, node in enumerate(self.nodes):
            if not adds(node):
                continue
            if all(not self.constant(t) and t.name in self.table.shapes for t in (*node.inputs, *node.outputs)):
                yield i

    def constant(self, t: gs.Tensor) -> bool:
        """Return whether a tensor is a constant, a view of one, or computed from shapes."""
        return not t.name or isinstance(t, gs.Constant) or t.name in self.fixed

    def blocks(self, i: int) -> Iterator[_Found]:
        """Return the blocks that end in an addition."""
        node = self.nodes[i]
        regions = [self.region(i, operand) for operand in (0, 1)]
        free = False
        for operand, region in enumerate(regions):
            if not any(self.weighs(n) for n in region.nodes):
                continue
            entry = self.entry(i, operand, region)
            if entry is not None:
                reason = self.obstacle(i, operand, region, entry)
                free = True
                yield self.block(node, operand, region, entry, reason)
        if not free and (entry := self.common(regions)) is not None:
            heavy = [sum(map(self.weighs, r.nodes)) for r in regions]
            operand = int(heavy[1] > heavy[0])
            other = regions[1 - operand]
            if heavy[operand] and other.nodes:
                own = next((n for n in other.nodes if self.weighs(n)), None)
                if own is not None:
                    reason = f"the shortcut has weights of its own ({self.nodes[own].op} {self.label(own)!r})"
                elif self.nodes[other.nodes[-1]].op in _RESIZES:
                    reason = f"the shortcut changes the tensor ({self.nodes[other.nodes[-1]].op})"
                else:
                    return
                yield self.block(node, operand, regions[operand], entry, reason)

    def block(
        self, node: gs.Node, operand: int, region: _Region, entry: str, reason: str, channels: tuple[int, ...] = ()
    ) -> _Found:  # fmt: skip
        ops = {self.nodes[n].op for n in region.nodes}
        mixed = any(self.nodes[n].op in ("MatMul", "Einsum") and not self.weighs(n) for n in region.nodes)
        kind = "attention" if mixed or ops & _ATTENTION else "conv" if "Conv" in ops else "mlp"
        branch = node.inputs[operand].name
        return Block("", kind, entry, node.outputs[0].name, operand, branch, (), 0, reason, channels), region.nodes

    def region(self, i: int, operand: int, least: int = -1) -> _Region:
        """Return the nodes that only this operand of an addition needs: all of their values end there.

        Args:
            i: Index of the addition.
            operand: Index of its operand.
            least: Index of a node; a region that reads activations before it is not followed, and is empty.
        """
        t = self.nodes[i].inputs[operand]
        inside: set[int] = set()
        single = [id(n) for n in t.outputs] == [id(self.nodes[i])] or self.nodes[i].op == "Concat"
        if t.name in self.held or t.name not in self.writer or not single:
            return _Region((), {t.name: self.writer.get(t.name, -1)})
        writer, last_reader = self.writer, self.last_reader
        queue = [-writer[t.name]]
        read: dict[str, int] = {}  # tensors that the region reads -> node that writes them
        while queue:  # from the last node to the first: the consumers of a node are decided before it
            n = -heappop(queue)
            if n in inside or not self.only(n, i, t, inside):
                continue
            inside.add(n)
            if n < least and not self.fixed.issuperset(self.reads(n)):
                return _Region((), {})
            for name in self.reads(n):
                if name not in read:
                    read[name] = place = writer.get(name, -1)
                    if last_reader[name] < i and place >= 0:
                        heappush(queue, -place)
        fixed = read.keys() & self.fixed
        return _Region(
            tuple(sorted(inside)), {n: place for n, place in read.items() if place not in inside and n not in fixed}
        )

    def only(self, n: int, i: int, t: gs.Tensor, inside: Collection[int]) -> bool:
        """Return whether all values of a node are read inside the region or are the operand itself."""
        for out in self.nodes[n].outputs:
            if out.name in self.held:
                return False
            for reader in out.outputs:
                place = self.place.get(id(reader), -1)
                if place not in inside and not (out is t and (place == i or reader.op == "Concat")):
                    return False
        return True

    def weighs(self, n: int) -> bool:
        """Return whether a node multiplies by a constant matrix."""
        if n not in self._weighs:
            node = self.nodes[n]
            kind = node.op, node.domain
            if kind not in self._multiply:
                spec = find(node)
                self._multiply[kind] = spec is not None and (
                    spec.macs is not None or node.op in ("LSTM", "GRU", "RNN")
                )  # fmt: skip
            self._weighs[n] = self._multiply[kind] and any(
                t.name and self.constant(t) and len(self.table.shape(t)) > 1 for t in node.inputs
            )
        return self._weighs[n]

    def entry(self, i: int, operand: int, region: _Region) -> str | None:
        """Return the entry of a region that is an addend of the sum which the addition belongs to."""
        if not region.nodes:
            return None
        least = min(region.entries.values(), default=0)
        node = self.nodes[i]
        addends = self.addends(node.inputs[1 - operand], least)
        found = addends & region.entries.keys()
        while not found:  # the sum of parallel branches goes on in the next addition
            out = node.outputs[0]
            if len(out.outputs) != 1 or out.name in self.held or not adds(out.outputs[0]):
                return None
            node = out.outputs[0]
            others = [t for t in node.inputs if t is not out]
            if len(others) != 1 or self.constant(others[0]):
                return None
            found = self.addends(others[0], least) & region.entries.keys()
        return max(found, key=lambda name: region.entries[name])

    def addends(self, t: gs.Tensor, least: int) -> set[str]:
        """Return a tensor and the tensors that it is a sum or a view of, down to a node index."""
        out: set[str] = set()
        front = [t]
        while front:
            t = front.pop()
            if t.name in out or self.constant(t):
                continue
            out.add(t.name)
            place = self.writer.get(t.name, -1)
            if place < 0 or place < least:
                continue
            node = self.nodes[place]
            if adds(node):
                front += list(node.inputs)
            elif node.op in _MOVES:
                front.append(node.inputs[0])
        return out

    def obstacle(self, i: int, operand: int, region: _Region, entry: str) -> str:
        """Return the reason why a branch cannot be removed; "" if it can."""
        node = self.nodes[i]
        shapes = [self.table.shape(t) for t in (node.inputs[1 - operand], node.outputs[0])]
        if shapes[0] != shapes[1]:
            return "the shortcut is broadcast to the shape of the branch"
        start = region.entries[entry]
        for name, place in region.entries.items():
            if place > start and name != entry and self.depends(place, entry, start):
                return f"its values are used outside of it as well ({name!r})"
        return ""

    def depends(self, n: int, entry: str, start: int) -> bool:
        """Return whether a node depends on a tensor that is written at `start`."""
        front, seen = [n], {n}
        while front:
            for t in self.nodes[front.pop()].inputs:
                if t.name == entry:
                    return True
                place = self.writer.get(t.name, -1)
                if place > start and place not in seen:
                    seen.add(place)
                    front.append(place)
        return False

    def common(self, regions: Iterable[_Region]) -> str | None:
        """Return the last activation that both operands of an addition start from; None if there is none."""
        one, other = (r.entries for r in regions)
        return max(one.keys() & other.keys(), key=lambda name: one[name], default=None)

    def label(self, n: int) -> str:
        """Return a readable name of a node."""
        node = self.nodes[n]
        weight = next((t for t in node.inputs if self.constant(t) and t.name and len(self.table.shape(t)) > 1), None)
        return human_name(weight.name if weight is not None else node.name, node.name)

    def names(self, nodes: Iterable[int]) -> tuple[str, str]:
        """Return the common name of a branch's weights, and a longer one that tells it from others."""
        labels = [self.label(n) for n in nodes if self.weighs(n)]
        return _common(labels), labels[0] if labels else ""


def _common(labels: list[str]) -> str:
    """Return the path that names have in common: of "a.b.conv1" and "a.b.conv2", "a.b"."""
    if len(labels) < 2:
        return labels[0] if labels else ""
    first, *others = (label.replace("/", ".").split(".") for label in labels)
    same = len(first)
    for parts in others:
        same = min(same, len(parts))
        while parts[:same] != first[:same]:
            same -= 1
    return ".".join(filter(None, first[:same]))


def _unique(names: list[tuple[str, str]], taken: Collection[str]) -> list[str]:
    """Return unique names: common paths, or where several blocks share one, the paths of their first weights."""
    count = Counter(short for short, _ in names)
    used = set(taken)
    out = []
    for short, long in names:
        base = short if short and count[short] == 1 else f"{long or 'residual'}:block"
        base = f"{base}:block" if base in used else base
        name, n = base, 1
        while name in used:
            n += 1
            name = f"{base}#{n}"
        used.add(name)
        out.append(name)
    return out
