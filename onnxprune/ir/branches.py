"""If nodes in flat form: nodes of both branches are nodes of the graph, and the If selects among their results.

File:  y = If(c) <then_branch = {a = Conv(x, w)}, else_branch = {b = Relu(x)}>
Flat:  a = Conv(x, w) ; b = Relu(x) ; y = onnxprune.flat.If(c, a, b)

A graph in memory is flat, so that analysis, passes and the checker treat nodes and weights of branches like any others.
Every file and every session is nested: a node whose results one branch alone reads is part of that branch, and not
executed if the other one is. Names are unique over all branches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import onnx
from onnx import helper

FLAT = "onnxprune.flat"
"""Domain of If nodes in flat form, which no file contains: inputs are the condition, then the results of the branch
that is executed if it is true, then those of the other one."""
Place = tuple[tuple[int, int], ...]
"""Branch that a node belongs to: (index of an If, 0 or 1) from the outermost If inwards; () for the graph itself."""
_BRANCHES = ("then_branch", "else_branch")
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS


def describe(node: onnx.NodeProto) -> str:
    """Return the operator and the name of a node, for messages."""
    return f"{node.op_type} {node.name or next((o for o in node.output if o), '')!r}"


def reads(node: onnx.NodeProto) -> list[str]:
    """Return the tensor names a node reads, including outer tensors captured by its bodies."""
    names = [n for n in node.input if n]
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            names += captured(body)
    return names


def captured(body: onnx.GraphProto) -> list[str]:
    """Return the names that a body uses and does not define."""
    own = {v.name for v in body.input} | {t.name for t in body.initializer}
    own |= {t.values.name for t in body.sparse_initializer}
    used: list[str] = []
    for node in body.node:
        used += [n for n in reads(node) if n not in own]
        own.update(node.output)
    return used + [v.name for v in body.output if v.name not in own]


def is_flat_if(node: onnx.NodeProto) -> bool:
    """Return whether a node is an If in flat form."""
    return node.domain == FLAT


def flat(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return the model with every If in flat form, except inside bodies of Loop and Scan.

    Args:
        proto: Model that passed the ONNX checker; never changed.

    Returns:
        The model, the given one if it has no If, and the number of Ifs around each node, by its first output.
    """
    if not any(_is_if(n) for n in proto.graph.node):
        return proto, {}
    out = onnx.ModelProto()
    out.CopyFrom(proto)
    flattener = _Flattener(out.graph)
    del out.graph.node[:]
    out.graph.node.extend(flattener.nodes)
    return out, flattener.depth


class _Flattener:
    """Nodes of a graph and its branches; initializers of branches become the graph's."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.depth: dict[str, int] = {}
        self._names = {t.name for t in (*graph.input, *graph.initializer, *graph.output)}
        self._names |= {s.values.name for s in graph.sparse_initializer} | {o for n in graph.node for o in n.output}
        self._add(graph.node, {}, 0)

    def _unique(self, name: str) -> str:
        out, n = name, 0
        while out in self._names:
            n += 1
            out = f"{name}_{n}"
        self._names.add(out)
        return out

    def _branch(self, body: onnx.GraphProto, outer: Mapping[str, str], depth: int) -> list[str]:
        """Add the nodes of a branch; return the names of its results."""
        scope = dict(outer)
        for tensor in body.initializer:
            copy = self.graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = scope[tensor.name] = self._unique(tensor.name)
        for sparse in body.sparse_initializer:
            name = sparse.values.name
            copy_sparse = self.graph.sparse_initializer.add()
            copy_sparse.CopyFrom(sparse)
            copy_sparse.values.name = scope[name] = self._unique(name)
        for node in body.node:
            for output in node.output:
                if output:
                    scope[output] = self._unique(output)
        for info in body.value_info:
            if info.name in scope and scope[info.name] != outer.get(info.name):
                copy_info = self.graph.value_info.add()
                copy_info.CopyFrom(info)
                copy_info.name = scope[info.name]
        self._add(body.node, scope, depth)
        return [scope.get(o.name, o.name) for o in body.output]

    def _add(self, nodes: Iterable[onnx.NodeProto], scope: Mapping[str, str], depth: int) -> None:
        for node in nodes:
            new = onnx.NodeProto()
            new.CopyFrom(node)
            _rename(new, scope)
            new.output[:] = [scope.get(o, o) for o in node.output]
            if _is_if(node):
                bodies = {a.name: a.g for a in node.attribute}
                results = [self._branch(bodies[name], scope, depth + 1) for name in _BRANCHES]
                new.domain, new.input[:] = FLAT, [new.input[0], *results[0], *results[1]]
                del new.attribute[:]
            self.nodes.append(new)
            self.depth[next((o for o in new.output if o), "")] = depth


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _rename(node: onnx.NodeProto, scope: Mapping[str, str]) -> None:
    """Rename what a node reads, also in its bodies unless they define the name themselves."""
    if not scope:
        return
    node.input[:] = [scope.get(name, name) for name in node.input]
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.type == _GRAPH else attribute.graphs if attribute.type == _GRAPHS else ()
        for body in bodies:
            own = {t.name for t in (*body.input, *body.initializer)} | {s.values.name for s in body.sparse_initializer}
            own |= {o for n in body.node for o in n.output}
            inner = {old: new for old, new in scope.items() if old not in own}
            for n in body.node:
                _rename(n, inner)
            for output in body.output:
                output.name = inner.get(output.name, output.name)


def places(
    nodes: Sequence[onnx.NodeProto], outputs: Collection[str], depth: Mapping[str, int], read: Sequence[Iterable[str]]
) -> list[Place | None]:
    """Return the innermost branch that contains all uses of each node; None if it was in a branch and nothing uses it.

    Args:
        nodes: Nodes in topological order, Ifs in flat form.
        outputs: Tensors that the graph itself must compute.
        depth: Largest number of Ifs around a node, by its first output; unbounded for others.
        read: Names that each node reads, captures of its bodies included.
    """
    uses: dict[str, Place] = dict.fromkeys(outputs, ())
    out: list[Place | None] = [None] * len(nodes)
    for i in range(len(nodes) - 1, -1, -1):
        node = nodes[i]
        first = next((o for o in node.output if o), "")
        found = [uses[o] for o in node.output if o in uses]
        if not found and depth.get(first, 0):
            continue
        place = _common(found) if found else ()
        place = out[i] = place[: depth.get(first, len(place))]
        results = (len(node.input) - 1) // 2 if is_flat_if(node) else 0
        for k, name in enumerate(node.input if results else read[i]):
            inside = (*place, (i, int(k > results))) if results and k else place
            uses[name] = _common([uses[name], inside]) if name in uses else inside
    return out


def _common(found: Sequence[Place]) -> Place:
    first, *rest = found
    length = len(first)
    for other in rest:
        same = 0
        for a, b in zip(first[:length], other, strict=False):
            if a != b:
                break
            same += 1
        length = same
    return first[:length]


def nested(
    nodes: Sequence[onnx.NodeProto], outputs: Collection[str], depth: Mapping[str, int], read: Sequence[Iterable[str]]
) -> list[onnx.NodeProto]:
    """Return the nodes with every flat If as a node with branches; nodes that nothing uses are dropped from branches.

    Args: see `places`.
    """
    if not any(map(is_flat_if, nodes)):
        return list(nodes)
    at: dict[Place, list[int]] = {}
    for i, place in enumerate(places(nodes, outputs, depth, read)):
        if place is not None:
            at.setdefault(place, []).append(i)
    names = {o for n in nodes for o in n.output}

    def build(place: Place) -> list[onnx.NodeProto]:
        return [branching(i, place) if is_flat_if(nodes[i]) else nodes[i] for i in at.get(place, ())]

    def branching(i: int, place: Place) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(nodes[i])
        results = (len(node.input) - 1) // 2
        values = (node.input[1 : 1 + results], node.input[1 + results :])
        bodies = [branch(_BRANCHES[s], (*place, (i, s)), list(values[s]), node.output) for s in (0, 1)]
        node.domain, node.input[:] = "", [node.input[0]]
        node.attribute.extend(helper.make_attribute(b.name, b) for b in bodies)
        return node

    def branch(name: str, place: Place, values: list[str], results: Sequence[str]) -> onnx.GraphProto:
        body = build(place)
        made = {o for n in body for o in n.output}
        returned: list[str] = []
        for value, result in zip(values, results, strict=True):
            if value in made and value not in returned:
                returned.append(value)
                continue
            # A branch returns values of its own, each once.
            copy, n = f"{result or value}_{name}", 0
            while copy in names:
                n += 1
                copy = f"{result or value}_{name}_{n}"
            names.add(copy)
            body.append(helper.make_node("Identity", [value], [copy]))
            returned.append(copy)
        return onnx.GraphProto(name=name, node=body, output=[onnx.ValueInfoProto(name=r) for r in returned])

    return build(())
