"""If and Loop nodes in flat form: the nodes of their bodies are nodes of the graph.

File:  y = If(c) <then_branch = {a = Conv(x, w)}, else_branch = {b = Relu(x)}>
Flat:  a = Conv(x, w) ; b = Relu(x) ; y = onnxprune.flat.If(c, a, b)

File:  y = Loop(m, c, x) <body = (i, d, s) => (e, t) {e = Identity(d), t = Conv(s, w)}>
Flat:  start, i, d, s = LoopStart(m, c, x) ; e = Identity(d) ; t = Conv(s, w) ; y = onnxprune.flat.Loop(start, e, t)

A Loop without layers in its body, and a Scan, remain as they are. A graph in memory is flat, so that analysis, passes
and the checker treat nodes and weights of bodies like any others. Every file and every session is nested: a node whose
results one branch alone reads is part of that branch, and not executed if the other one is. Names are unique over all
bodies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import onnx
from onnx import helper

from onnxprune.errors import OnnxPruneError

FLAT = "onnxprune.flat"
"""Domain of If nodes in flat form, which no file contains: inputs are the condition, then the results of the branch
that is executed if it is true, then those of the other one."""
Place = tuple[tuple[int, int], ...]
"""Body that a node belongs to: (index of an If, 0 or 1) or (index of a Loop, 0) from the outermost inwards; () for the
graph itself."""
LOOP_START = "LoopStart"
_BRANCHES = ("then_branch", "else_branch")
LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "GRU", "LSTM", "MatMul", "RNN"))
"""Operators for which the body of a Loop is flattened."""
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
    return bool(node.domain == FLAT and node.op_type == "If")


def is_loop_start(node: onnx.NodeProto) -> bool:
    """Return whether a node defines the inputs of the body of a Loop in flat form."""
    return bool(node.domain == FLAT and node.op_type == LOOP_START)


def is_loop_end(node: onnx.NodeProto) -> bool:
    """Return whether a node returns the results of a Loop in flat form."""
    return bool(node.domain == FLAT and node.op_type == "Loop")


def flat(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """Return the model with every If, and every Loop with layers in its body, in flat form.

    Bodies of other Loops and of Scans remain as they are.

    Args:
        proto: Model that passed the ONNX checker; never changed.

    Returns:
        The model, the given one if there is nothing to do, and the number of Ifs and Loops around each node, by its
        first output.
    """
    if not any(_is_if(n) or _is_loop(n) for n in proto.graph.node):
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
            elif _is_loop(node):
                self._loop(node, new, scope, depth)
            self.nodes.append(new)
            self.depth[next((o for o in new.output if o), "")] = depth

    def _loop(self, node: onnx.NodeProto, new: onnx.NodeProto, scope: Mapping[str, str], depth: int) -> None:
        """Add the start and the body of a Loop; `new` becomes its end."""
        body = node.attribute[0].g
        token = self._unique(f"{next(o for o in new.output if o)}_start")
        inner = dict(scope)
        for value in body.input:
            inner[value.name] = self._unique(value.name)
        start = onnx.NodeProto(op_type=LOOP_START, domain=FLAT, name=f"{node.name or token}_start", input=new.input)
        start.output.extend([token, *(inner[v.name] for v in body.input)])
        self.nodes.append(start)
        self.depth[token] = depth + 1
        results = self._branch(body, inner, depth + 1)
        new.domain, new.input[:] = FLAT, [token, *results]
        del new.attribute[:]


def _is_loop(node: onnx.NodeProto) -> bool:
    """Return whether a node is a Loop with layers in its body; others are not rewritten."""
    if node.op_type != "Loop" or node.domain not in ("", "ai.onnx"):
        return False
    return any(n.op_type in LAYERS for n in _nodes_within(node.attribute[0].g))


def _nodes_within(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.type in (_GRAPH, _GRAPHS) else ():
                yield from _nodes_within(body)


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
    """Return the innermost body that contains all uses of each node; None if it was in a body and nothing uses it.

    Args:
        nodes: Nodes in topological order, Ifs and Loops in flat form.
        outputs: Tensors that the graph itself must compute.
        depth: Largest number of Ifs and Loops around a node, by its first output; unbounded for others.
        read: Names that each node reads, captures of its bodies included.

    Raises:
        OnnxPruneError: A value of the body of a Loop is used outside of it.
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
        around = place
        if is_loop_end(node):
            around = (*place, (i, 0))
        elif is_loop_start(node):
            if not place or node.output[0] not in nodes[place[-1][0]].input:
                raise OnnxPruneError(
                    "a value is computed in every iteration of a Loop, so there is not one value of it to measure",
                    where=f"Loop {node.name.removesuffix('_start')!r}",
                    fix="use a criterion without data (l2), or --exclude the groups of the Loop",
                )
            around = place[:-1]
        for k, name in enumerate(node.input if results else read[i]):
            inside = (*place, (i, int(k > results))) if results and k else around
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
    """Return the nodes with bodies again; nodes that nothing uses are dropped from bodies.

    Args: see `places`.
    """
    if not any(n.domain == FLAT for n in nodes):
        return list(nodes)
    at: dict[Place, list[int]] = {}
    for i, place in enumerate(places(nodes, outputs, depth, read)):
        if place is not None:
            at.setdefault(place, []).append(i)
    names = {o for n in nodes for o in n.output}

    def build(place: Place) -> list[onnx.NodeProto]:
        made = []
        for i in at.get(place, ()):
            if is_flat_if(nodes[i]):
                made.append(branching(i, place))
            elif is_loop_end(nodes[i]):
                made.append(looping(i, place))
            elif not is_loop_start(nodes[i]):
                made.append(nodes[i])
        return made

    def looping(i: int, place: Place) -> onnx.NodeProto:
        node = onnx.NodeProto()
        node.CopyFrom(nodes[i])
        inside = (*place, (i, 0))
        start = next(nodes[j] for j in at[inside] if is_loop_start(nodes[j]) and nodes[j].output[0] == node.input[0])
        results = list(node.input[1:])
        body = branch("body", inside, results, results)
        count, condition, *states = start.output[1:]
        body.input.append(helper.make_tensor_value_info(count, onnx.TensorProto.INT64, []))
        body.input.append(helper.make_tensor_value_info(condition, onnx.TensorProto.BOOL, []))
        body.input.extend(onnx.ValueInfoProto(name=name) for name in states)
        node.domain, node.input[:] = "", start.input
        node.attribute.append(helper.make_attribute("body", body))
        return node

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
