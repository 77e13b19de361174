"""Mutators: each makes one change to a correctly pruned model, of the kind that a defect of the compiler would make.

A mutator gets a subject and a random generator, and returns a mutant, or None if nothing can be changed. `KINDS`
lists them by name; `tools/mutate.py` draws from it by the thousand, `test_mutants.py` a fixed sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from networks.residual import with_blocks
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.plans import Plan, Removal
from proofs.mutation import Array, Subject

Random = np.random.Generator


@dataclass(frozen=True)
class Mutant:
    """A changed model.

    Attributes:
        kind: name of the mutator.
        what: the change, in words.
        proto: the changed model.
        probe: the same change made large, where its effect may drown in rounding: it decides whether there is one.
    """

    kind: str
    what: str
    proto: ModelProto
    probe: ModelProto | None = None


Edit = tuple[str, ModelProto] | tuple[str, ModelProto, ModelProto]
Mutator = Callable[[Subject, Random], Edit | None]
KINDS: dict[str, Mutator] = {}


def kind(name: str) -> Callable[[Mutator], Mutator]:
    """Register a mutator."""

    def register(mutator: Mutator) -> Mutator:
        KINDS[name] = mutator
        return mutator

    return register


def mutate(subject: Subject, name: str, rng: Random) -> Mutant | None:
    """Return a mutant of one kind, or None if the subject has nothing of that kind."""
    edit = KINDS[name](subject, rng)
    return None if edit is None else Mutant(name, *edit)


# ------------------------------------------------------------------------------------------------------- helpers


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and the bodies inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, attribute.g):
                if body.node:
                    yield from graphs(body)


def all_nodes(proto: ModelProto) -> list[NodeProto]:
    """Every node, those of bodies included; the order is the same in a copy."""
    return [n for g in graphs(proto.graph) for n in g.node]


def picked(rng: Random, items: Sequence[Any]) -> Any:
    """One of the items; None if there are none."""
    return items[int(rng.integers(len(items)))] if items else None


def sites(subject: Subject, wanted: Callable[[NodeProto], bool]) -> list[int]:
    """Positions in `all_nodes` of nodes that qualify."""
    return [i for i, n in enumerate(all_nodes(subject.proto)) if wanted(n)]


def named(node: NodeProto) -> str:
    """A node in words."""
    return f"{node.op_type} {node.output[0]!r}"


def weights(subject: Subject, kinds: str = "f", least: int = 1) -> list[str]:
    """Names of initializers that some node reads."""
    read = {i for n in all_nodes(subject.proto) for i in n.input}
    return [
        t.name
        for t in subject.proto.graph.initializer
        if t.name in read and subject.known[t.name][1].kind in kinds and np.prod(t.dims) >= least
    ]


def get(proto: ModelProto, name: str) -> Array:
    """A copy of an initializer's values."""
    return numpy_helper.to_array(_initializer(proto, name)).copy()


def put(proto: ModelProto, name: str, values: Array) -> ModelProto:
    """Overwrite an initializer."""
    _initializer(proto, name).CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return proto


def _initializer(proto: ModelProto, name: str) -> TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def add_constant(proto: ModelProto, value: Array, name: str) -> str:
    """Add an initializer under a free name."""
    taken = {t.name for t in proto.graph.initializer} | {o for n in all_nodes(proto) for o in n.output}
    while name in taken:
        name += "_"
    proto.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of an attribute."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set an attribute."""
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def _insert(proto: ModelProto, at: int, *made: NodeProto) -> None:
    """Insert nodes at a position of the main graph."""
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes[:at], *made, *nodes[at:]])


def become(node: NodeProto, op: str, inputs: Sequence[str], **attributes: Any) -> None:
    """Turn a node into another one with the same output."""
    made = helper.make_node(op, list(inputs), [node.output[0]], name=node.name, **attributes)
    node.CopyFrom(made)


# ------------------------------------------------------------------------------------------------------- weights


def _element(subject: Subject, rng: Random, name: str, factor: float, index: Any = None) -> Edit:
    """Change one element of an initializer by a factor; the probe makes it large."""
    values = get(subject.proto, name)
    flat = int(rng.integers(values.size)) if index is None else index
    wide = values.astype(np.float64).reshape(-1)
    old = wide[flat]
    changed = np.asarray(old * factor if old else factor - 1).astype(values.dtype)
    if changed == values.reshape(-1)[flat]:
        changed = np.nextafter(values.reshape(-1)[flat], values.dtype.type(np.inf))
    values.reshape(-1)[flat] = changed
    mutant = put(subject.copy(), name, values)
    text = f"{name}[{flat}] {old:.6g} -> {float(changed):.6g}"
    if not np.abs(wide).max() < 1e6:  # a mask's "minus infinity": larger would be no number
        return text, mutant
    values.reshape(-1)[flat] = 3 * np.abs(wide).max() + 1 if old <= 0 else -3 * np.abs(wide).max() - 1
    return text, mutant, put(subject.copy(), name, values)


def _one_weight(factor: float) -> Mutator:
    def mutator(subject: Subject, rng: Random) -> Edit | None:
        name = picked(rng, weights(subject, least=2))
        return None if name is None else _element(subject, rng, name, factor)

    return mutator


for label, factor in (("weight by 1e-6", 1 + 1e-6), ("weight by 1e-3", 1 + 1e-3), ("weight doubled", 2.0)):
    kind(label)(_one_weight(factor))


def _biases(subject: Subject) -> list[str]:
    known = set(weights(subject))
    names = []
    for n in all_nodes(subject.proto):
        if n.op_type in ("Conv", "Gemm", "ConvTranspose", "BatchNormalization", "LayerNormalization"):
            names += [i for i in n.input[2:3] if i in known]
        elif n.op_type == "Add":
            names += [i for i in n.input if i in known and len(subject.known[i][0]) <= 1]
    return names


def _one_bias(factor: float) -> Mutator:
    def mutator(subject: Subject, rng: Random) -> Edit | None:
        name = picked(rng, _biases(subject))
        return None if name is None else _element(subject, rng, name, factor)

    return mutator


kind("bias by 1e-6")(_one_bias(1 + 1e-6))
kind("bias by 1e-2")(_one_bias(1.01))


@kind("integer weight")
def integer_weight(subject: Subject, rng: Random) -> Edit | None:
    """One quantized weight, scale's zero point or index changed by one."""
    sizing = {i for n in all_nodes(subject.proto) if n.op_type in SIZES for i in n.input[1:]}
    names = [n for n in weights(subject, "iu") if n not in sizing]
    name = picked(rng, names)
    if name is None:
        return None
    values = get(subject.proto, name)
    flat = int(rng.integers(values.size))
    old = int(values.reshape(-1)[flat])
    values.reshape(-1)[flat] = old - 1 if old else 1
    return f"{name}[{flat}] {old} -> {values.reshape(-1)[flat]}", put(subject.copy(), name, values)


@kind("table row")
def table_row(subject: Subject, rng: Random) -> Edit | None:
    """One number of an embedding, in a row after the second."""
    known = set(weights(subject))
    tables = [
        n.input[0]
        for n in all_nodes(subject.proto)
        if n.op_type == "Gather" and n.input[0] in known and len(subject.known[n.input[0]][0]) == 2
        and subject.known[n.input[0]][0][0] > 2 and not attribute(n, "axis", 0)
    ]  # fmt: skip
    name = picked(rng, tables)
    if name is None:
        return None
    rows, width = subject.known[name][0]
    used = [int(v) for f in subject.feeds for a in f.values() if a.dtype.kind in "iu" for v in a.flat if 2 <= v < rows]
    row = picked(rng, used) or int(rng.integers(2, rows))
    return _element(subject, rng, name, 1.5, row * width + int(rng.integers(width)))


@kind("filters swapped in one consumer")
def swapped_filters(subject: Subject, rng: Random) -> Edit | None:
    """Two slices of one weight exchanged, along its input or output axis."""
    known = set(weights(subject))
    names = [
        i
        for n in all_nodes(subject.proto)
        if n.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose")
        for i in n.input[:2]
        if i in known and len(subject.known[i][0]) >= 2
    ]
    name = picked(rng, names)
    if name is None:
        return None
    values = get(subject.proto, name)
    axis = int(rng.integers(2)) if values.ndim != 3 else int(rng.integers(1, 3))
    if values.shape[axis] < 2:
        axis = 1 - axis if values.ndim != 3 else 3 - axis
    if values.shape[axis] < 2:
        return None
    a, b = rng.choice(values.shape[axis], 2, replace=False)
    view = np.moveaxis(values, axis, 0)
    view[[a, b]] = view[[b, a]]
    return f"{name}, axis {axis}: {a} and {b}", put(subject.copy(), name, values)


@kind("tiny output column")
def tiny_column(subject: Subject, rng: Random) -> Edit | None:
    """The column of a tiny output replaced by random numbers of its own size."""
    if subject.tiny is None:
        return None
    name, axis, index = subject.tiny
    if name not in subject.known:
        return None
    values = get(subject.proto, name)
    column = np.moveaxis(values, axis, 0)[index]
    np.moveaxis(values, axis, 0)[index] = np.abs(column).max() * rng.standard_normal(column.shape)
    return f"{name}, axis {axis}, index {index}", put(subject.copy(), name, values)


@kind("not a number")
def not_a_number(subject: Subject, rng: Random) -> Edit | None:
    """All NaN: a weight, or an output."""
    if rng.random() < 0.5:
        name = picked(rng, weights(subject))
        if name is not None:
            values = get(subject.proto, name)
            values[...] = np.nan
            return f"{name} all NaN", put(subject.copy(), name, values)
    proto = subject.copy()
    outputs = [o.name for o in proto.graph.output if subject.known.get(o.name, ((), np.dtype(bool)))[1].kind == "f"]
    name = picked(rng, outputs)
    nan = None if name is None else np.array(np.nan, subject.known[name][1])
    return None if nan is None else (f"output {name!r} times NaN", _behind(proto, name, "Mul", nan))


def _behind(proto: ModelProto, name: str, op: str, *constants: Array, **attributes: Any) -> ModelProto:
    """Put a node behind the producer of an output; it takes over the name."""
    inner = f"{name}_inner"
    for node in proto.graph.node:
        for i, output in enumerate(node.output):
            if output == name:
                node.output[i] = inner
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = inner
    more = [add_constant(proto, c, f"{name}_operand") for c in constants]
    proto.graph.node.append(helper.make_node(op, [inner, *more], [name], name=f"{name}_{op}", **attributes))
    return proto


# ------------------------------------------------------------------------------------------------------- channels


def _other_plan(subject: Subject, rng: Random, how: str) -> tuple[str, Plan] | None:
    groups = dict(subject.plan.groups)
    usable = [n for n, r in groups.items() if r.removed and len(r.removed) < r.channels - 1]
    name = picked(rng, usable)
    if name is None:
        return None
    removal = groups[name]
    kept = [i for i in range(removal.channels) if i not in removal.removed]
    out, back = int(rng.choice(kept)), int(rng.choice(removal.removed))
    removed = set(removal.removed)
    if how in ("swapped", "more"):
        removed.add(out)
    if how in ("swapped", "fewer"):
        removed.discard(back)
    groups[name] = Removal(removal.channels, tuple(sorted(removed)))
    return f"group {name}: kept {out}, removed {back} ({how})", replace(subject.plan, groups=groups)


def _consistently(how: str) -> Mutator:
    def mutator(subject: Subject, rng: Random) -> Edit | None:
        found = _other_plan(subject, rng, how)
        return None if found is None else (found[0], subject.stripped(found[1]))

    return mutator


kind("another channel removed everywhere")(_consistently("swapped"))
kind("one more channel removed everywhere")(_consistently("more"))
kind("one channel less removed everywhere")(_consistently("fewer"))


@kind("another block removed")
def another_block(subject: Subject, rng: Random) -> Edit | None:
    """Remove another block than the plan names, one more, or one less."""
    own = list(subject.plan.blocks)
    others = [b.name for b in subject.analysis.free_blocks if b.name not in own]
    if not own or not others:
        return None
    gone, more = str(rng.choice(own)), str(rng.choice(others))
    how = int(rng.integers(3))
    names = [n for n in own if how == 1 or n != gone] + ([more] if how < 2 else [])
    what = ("in place of", "beside", "no longer")[how]
    return f"{more} {what} {gone}", subject.stripped(with_blocks(subject.analysis, subject.plan, names))


@kind("another channel removed in one tensor")
def channel_in_one_tensor(subject: Subject, rng: Random) -> Edit | None:
    """One weight keeps what the plan removes, in place of what it keeps."""
    before = {t.name: t for t in subject.original.graph.initializer}
    names = [
        n
        for n in weights(subject)
        if n in before and sum(a != b for a, b in zip(before[n].dims, subject.known[n][0], strict=True)) == 1
    ]
    rng.shuffle(names)
    for name in names[:4]:
        whole, values = numpy_helper.to_array(before[name]), get(subject.proto, name)
        axis = next(i for i, (a, b) in enumerate(zip(whole.shape, values.shape, strict=True)) if a != b)
        every, kept = np.moveaxis(whole, axis, 0), np.moveaxis(values, axis, 0)
        other = [i for i in range(len(every)) if not any(np.array_equal(every[i], k) for k in kept)]
        if other:
            at, source = int(rng.integers(len(kept))), int(rng.choice(other))
            kept[at] = every[source]
            return f"{name}, axis {axis}: {at} holds channel {source}", put(subject.copy(), name, values)
    return None


# ------------------------------------------------------------------------------------------------------- sizes

SIZES = {
    "Reshape": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "Pad": (1,), "Expand": (1,), "Resize": (2, 3), "Tile": (1,),
    "TopK": (1,), "Gather": (1,), "ConstantOfShape": (0,), "Unsqueeze": (1,), "Squeeze": (1,), "ReduceMean": (1,),
    "ReduceSum": (1,), "Range": (0, 1, 2), "OneHot": (1,), "Upsample": (1,), "Trilu": (1,), "CumSum": (1,),
}  # fmt: skip


def _constants(proto: ModelProto) -> dict[str, Any]:
    """Return the constants: initializers and Constant nodes of the main graph, as TensorProto."""
    out = {t.name: t for t in proto.graph.initializer}
    for node in all_nodes(proto):
        if node.op_type == "Constant":
            out.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return out


@kind("size off by one")
def size_off_by_one(subject: Subject, rng: Random) -> Edit | None:
    """One number of a Reshape target, a Slice end, a Split, a Pad, an Expand, Resize sizes ... changed by one."""
    there = _constants(subject.proto)
    found = []
    for i in sites(subject, lambda n: n.op_type in SIZES):
        node = all_nodes(subject.proto)[i]
        for at in SIZES[node.op_type]:
            if at < len(node.input) and node.input[at] in there:
                values = numpy_helper.to_array(there[node.input[at]])
                if values.dtype.kind in "if" and 0 < values.size <= 64:
                    found.append((node.op_type, node.input[at]))
    if not found:
        return None
    op = picked(rng, sorted({o for o, _ in found}))
    name = picked(rng, sorted({n for o, n in found if o == op}))
    proto = subject.copy()
    tensor = _constants(proto)[name]
    values = numpy_helper.to_array(tensor).copy()
    flat = int(rng.integers(values.size))
    old = values.reshape(-1)[flat]
    step = int(rng.choice([-1, 1]))
    values.reshape(-1)[flat] = old + step if values.dtype.kind == "i" else old * 1.5
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return f"{name}[{flat}] of {op}: {old} -> {values.reshape(-1)[flat]}", proto


@kind("size folded")
def size_folded(subject: Subject, rng: Random) -> Edit | None:
    """A computed operand of Reshape, Expand, Pad, Slice ... replaced by its value at one size."""
    computed = {o for n in subject.proto.graph.node if n.op_type != "Constant" for o in n.output}
    found = [
        (i, at)
        for i, n in enumerate(subject.proto.graph.node)
        for at in SIZES.get(n.op_type, ())
        if at < len(n.input) and n.input[at] in computed and n.input[at] in subject.small
    ]
    site = picked(rng, found)
    if site is None:
        return None
    proto = subject.copy()
    node = proto.graph.node[site[0]]
    name = node.input[site[1]]
    node.input[site[1]] = add_constant(proto, subject.small[name], f"{name}_folded")
    return f"{name!r} of {named(node)} is {subject.small[name].tolist()}", proto


@kind("value folded")
def value_folded(subject: Subject, rng: Random) -> Edit | None:
    """A computed tensor of few elements replaced by its value at one input, wherever it is read."""
    computed = [o for n in subject.proto.graph.node if n.op_type != "Constant" for o in n.output]
    ends = {o.name for o in subject.proto.graph.output}
    name = picked(rng, [n for n in computed if n in subject.small and n not in ends])
    if name is None:
        return None
    proto = subject.copy()
    folded = add_constant(proto, subject.small[name], f"{name}_folded")
    for node in all_nodes(proto):
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = folded
    return f"{name!r} is {subject.small[name].tolist()}", proto


@kind("batch frozen")
def batch_frozen(subject: Subject, rng: Random) -> Edit | None:
    """A Reshape target with the batch of one run in place of 0 or -1."""
    there = _constants(subject.proto)
    found = []
    for i, node in enumerate(subject.proto.graph.node):
        if node.op_type == "Reshape" and node.input[1] in there and node.output[0] in subject.known:
            target = numpy_helper.to_array(there[node.input[1]])
            shape = subject.known[node.output[0]][0]
            if len(target) == len(shape) and (target <= 0).any():
                found.append((i, shape))
    site = picked(rng, found)
    if site is None:
        return None
    proto = subject.copy()
    node = proto.graph.node[site[0]]
    node.input[1] = add_constant(proto, np.array(site[1], np.int64), f"{node.input[1]}_frozen")
    return f"target of {named(node)} is {site[1]}", proto


@kind("input frozen")
def input_frozen(subject: Subject, rng: Random) -> Edit | None:
    """A dynamic dimension of an input declared as a number."""
    proto = subject.copy()
    dims = [(v, d) for v in proto.graph.input for d in v.type.tensor_type.shape.dim if not d.HasField("dim_value")]
    site = picked(rng, dims)
    if site is None:
        return None
    value, dim = site
    at = next(i for i, d in enumerate(value.type.tensor_type.shape.dim) if d is dim or d == dim)
    dim.dim_value = subject.feeds[0][value.name].shape[at]
    return f"axis {at} of {value.name!r} is {dim.dim_value}", proto


# ------------------------------------------------------------------------------------------------------- attributes

# Attribute -> (operators that have it by default, default).
DEFAULTS: dict[str, tuple[tuple[str, ...], Any]] = {
    "epsilon": (("BatchNormalization", "LayerNormalization", "InstanceNormalization"), 1e-5),
    "alpha": (("LeakyRelu", "Gemm"), None),
    "beta": (("Gemm",), 1.0),
    "keepdims": (("ReduceMean", "ReduceSum", "ArgMax"), 1),
    "count_include_pad": (("AveragePool",), 0),
    "ceil_mode": (("AveragePool", "MaxPool"), 0),
    "axis": (("Softmax", "Gather", "LayerNormalization"), None),
    "mode": (("Pad",), b"constant"),
    "dilations": (("Conv",), None),
    "transB": (("Gemm",), 0),
}
MODES = {
    b"constant": "edge", b"edge": "constant", b"reflect": "edge", b"nearest": "linear", b"linear": "nearest",
    b"cubic": "linear", b"DCR": "CRD", b"CRD": "DCR", b"half_pixel": "asymmetric", b"asymmetric": "half_pixel",
    b"pytorch_half_pixel": "half_pixel", b"align_corners": "half_pixel", b"floor": "ceil", b"ceil": "floor",
    b"round_prefer_floor": "floor", b"round_prefer_ceil": "floor", b"none": "tanh", b"tanh": "none", b"add": "mul",
}  # fmt: skip

_SIMPLE = (AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.INTS)


def _changed(name: str, value: Any, rng: Random) -> tuple[Any, Any] | None:
    """A changed attribute and the probe's; None where the attribute has no other sensible value."""
    if isinstance(value, float):
        if name == "epsilon":
            return value * 2, max(value * 1000, 0.3)
        return value * 1.001 if value else 1e-3, value * 3 + 1
    if isinstance(value, bytes):
        other = MODES.get(value)
        return None if other is None else (other, other)
    if isinstance(value, int):
        if name in ("keepdims", "transA", "transB", "ceil_mode", "count_include_pad", "largest", "sorted"):
            return 1 - value, 1 - value
        other = value + int(rng.choice([-1, 1])) if name in ("axis", "batch_dims") else value + 1
        return other, other
    if isinstance(value, list) and value and all(isinstance(v, int) for v in value):
        out = list(value)
        at = int(rng.integers(len(out)))
        if name == "perm":
            other = (at + 1) % len(out)
            out[at], out[other] = out[other], out[at]
        elif name in ("strides", "dilations"):
            out[at] = 1 if out[at] > 1 else 2
        else:
            out[at] += 1 if out[at] <= 0 else int(rng.choice([-1, 1]))
        return out, out
    return None


@kind("attribute")
def changed_attribute(subject: Subject, rng: Random) -> Edit | None:
    """One attribute changed, or a default replaced."""
    found: dict[str, list[tuple[int, str, Any]]] = {}
    for i, node in enumerate(all_nodes(subject.proto)):
        if node.op_type in ("Constant", "ConstantOfShape", "Cast"):
            continue
        for a in node.attribute:
            # onnxruntime compares these with the weights: nothing else loads
            if a.name not in ("kernel_shape", "num_outputs", "hidden_size") and a.type in _SIMPLE:
                found.setdefault(a.name, []).append((i, a.name, helper.get_attribute_value(a)))
        for name, (ops, default) in DEFAULTS.items():
            if node.op_type in ops and attribute(node, name) is None:
                value = default
                if name == "alpha":
                    value = 1.0 if node.op_type == "Gemm" else 0.01
                elif name == "dilations":
                    value = [1] * (len(subject.known.get(node.input[1], ((1, 1),))[0]) - 2)
                elif name == "axis":
                    value = 0 if node.op_type == "Gather" else -1
                found.setdefault(name, []).append((i, name, value))
    name = picked(rng, sorted(found))
    if name is None:
        return None
    at, name, value = picked(rng, found[name])
    values = _changed(name, list(value) if isinstance(value, Sequence) and not isinstance(value, bytes) else value, rng)
    if values is None:
        return None
    proto, probe = subject.copy(), subject.copy()
    for copy, new in zip((proto, probe), values, strict=True):
        set_attribute(all_nodes(copy)[at], name, new)
    text = f"{name} of {named(all_nodes(subject.proto)[at])}: {value} -> {values[0]}"
    return (text, proto) if values[0] == values[1] else (text, proto, probe)


@kind("window moved")
def moved_window(subject: Subject, rng: Random) -> Edit | None:
    """A change that keeps all shapes: padding moved from one side to the other, or dilation and padding doubled."""

    def padded(n: NodeProto) -> bool:
        return n.op_type in ("Conv", "MaxPool", "AveragePool") and any(attribute(n, "pads", ()))

    at = picked(rng, sites(subject, padded))
    if at is None:
        return None
    proto = subject.copy()
    node = all_nodes(proto)[at]
    pads, kernel = list(attribute(node, "pads")), attribute(node, "kernel_shape", [])
    rank = len(pads) // 2
    wide = node.op_type == "Conv" and list(kernel) == [3] * rank and pads == [1] * (2 * rank)
    if wide and set(attribute(node, "dilations", [1])) == {1} and rng.random() < 0.5:
        set_attribute(node, "pads", [2] * (2 * rank))
        set_attribute(node, "dilations", [2] * rank)
        return f"{named(node)} dilated by 2", proto
    axis = picked(rng, [i for i in range(rank) if pads[i] or pads[i + rank]])
    source, target = (axis, axis + rank) if pads[axis] else (axis + rank, axis)
    pads[source] -= 1
    pads[target] += 1
    set_attribute(node, "pads", pads)
    return f"pads of {named(node)} are {pads}", proto


@kind("slice or split moved")
def moved_slice(subject: Subject, rng: Random) -> Edit | None:
    """A change that keeps shapes: Slice one further, padding from begin to end, sizes of a Split exchanged."""
    there = _constants(subject.proto)

    def movable(n: NodeProto) -> bool:
        return n.op_type in ("Slice", "Split", "Pad") and len(n.input) > 1 and all(i in there for i in n.input[1:] if i)

    at = picked(rng, sites(subject, movable))
    if at is None:
        return None
    proto = subject.copy()
    node = all_nodes(proto)[at]
    values = [numpy_helper.to_array(there[i]).copy() for i in node.input[1:3] if i]
    if node.op_type == "Slice":
        step = -1 if values[0][0] > 0 else 1
        values = [v + step if 0 <= abs(v).max() < 2**30 else v for v in values[:2]]
    elif node.op_type == "Split":
        values = [values[0][::-1]]
    else:
        half = len(values[0]) // 2
        values = [np.concatenate([values[0][half:], values[0][:half]])]
    for i, value in enumerate(values, 1):
        node.input[i] = add_constant(proto, value, f"{node.input[i]}_moved")
    return f"{named(node)}: {[v.tolist() for v in values]}", proto


# ------------------------------------------------------------------------------------------------------- types


@kind("rounded to half precision")
def rounded(subject: Subject, rng: Random) -> Edit | None:
    """A tensor cast to a narrower type and back; the probe goes through integers."""
    floats = (np.float32, np.float64)
    found = [
        (i, at)
        for i, n in enumerate(subject.proto.graph.node)
        for at, name in enumerate(n.input)
        if name in subject.known and subject.known[name][1] in floats and n.op_type not in ("Resize", "Upsample")
    ]
    site = picked(rng, found)
    if site is None:
        return None
    copies = []
    for narrow in (TensorProto.FLOAT16, TensorProto.INT32):
        proto = subject.copy()
        node = proto.graph.node[site[0]]
        name = node.input[site[1]]
        wide = helper.np_dtype_to_tensor_dtype(subject.known[name][1])
        node.input[site[1]] = f"{name}_back"
        casts = [
            helper.make_node("Cast", [name], [f"{name}_cast"], name="cast_there", to=narrow),
            helper.make_node("Cast", [f"{name}_cast"], [f"{name}_back"], name="cast_back", to=wide),
        ]
        _insert(proto, site[0], *casts)
        copies.append(proto)
    return f"{name!r} of {named(subject.proto.graph.node[site[0]])}", copies[0], copies[1]


@kind("output of another type")
def output_type(subject: Subject, rng: Random) -> Edit | None:
    """An output cast to another element type, and declared so."""
    proto = subject.copy()
    value = picked(rng, [o for o in proto.graph.output if o.name in subject.known])
    if value is None:
        return None
    others = {"f": (TensorProto.DOUBLE, TensorProto.FLOAT16), "i": (TensorProto.INT32, TensorProto.FLOAT)}
    old = value.type.tensor_type.elem_type
    new = next((o for o in others.get(subject.known[value.name][1].kind, (TensorProto.INT32,)) if o != old), None)
    if new is None:
        return None
    value.type.tensor_type.elem_type = new
    return f"{value.name!r} is {TensorProto.DataType.Name(new)}", _behind(proto, value.name, "Cast", to=new)


# ------------------------------------------------------------------------------------------------------- wiring


@kind("branches swapped")
def swapped_branches(subject: Subject, rng: Random) -> Edit | None:
    """The branches of an If, or what a Where chooses from."""
    at = picked(rng, sites(subject, lambda n: n.op_type in ("If", "Where")))
    if at is None:
        return None
    proto = subject.copy()
    node = all_nodes(proto)[at]
    if node.op_type == "Where":
        node.input[1], node.input[2] = node.input[2], node.input[1]
    else:
        for a in node.attribute:
            a.name = {"then_branch": "else_branch", "else_branch": "then_branch"}.get(a.name, a.name)
    return named(node), proto


@kind("one side of a choice changed")
def changed_side(subject: Subject, rng: Random) -> Edit | None:
    """Negate what one side of a Where reads, or what a branch of an If returns."""
    at = picked(rng, sites(subject, lambda n: n.op_type in ("If", "Where")))
    if at is None:
        return None
    proto = subject.copy()
    node = all_nodes(proto)[at]
    if node.op_type == "If":
        bodies = [a.g for a in node.attribute if a.g.node]
        body = picked(rng, bodies)
        if body is None:
            return None
        name = body.output[0].name
        last = next((n for n in body.node if name in n.output), None)
        if last is None:
            return None
        last.output[list(last.output).index(name)] = f"{name}_inner"
        body.node.append(helper.make_node("Neg", [f"{name}_inner"], [name], name="negative"))
        return f"branch of {named(node)}", proto
    side = int(rng.integers(1, 3))
    index = next((i for i, n in enumerate(proto.graph.node) if n.output[0] == node.output[0]), None)
    known = subject.known.get(node.input[side])
    if index is None or known is None or known[1].kind not in "fi":
        return None
    negative = helper.make_node("Neg", [node.input[side]], [f"{node.output[0]}_negative"], name="negative")
    node.input[side] = negative.output[0]
    _insert(proto, index, negative)
    return f"input {side} of {named(node)}", proto


@kind("input rewired")
def rewired(subject: Subject, rng: Random) -> Edit | None:
    """An input of a node replaced by another tensor of the same shape and type that is computed before it."""
    before: dict[Any, list[str]] = {}
    for name in subject.feeds[0]:
        before.setdefault(subject.known[name], []).append(name)
    for t in subject.proto.graph.initializer:
        before.setdefault(subject.known[t.name], []).append(t.name)
    found = []
    for i, node in enumerate(subject.proto.graph.node):
        for at, name in enumerate(node.input):
            same = [o for o in before.get(subject.known.get(name), []) if o != name]
            if same:
                found.append((i, at, same))
        for o in node.output:
            if o in subject.known:
                before.setdefault(subject.known[o], []).append(o)
    site = picked(rng, found)
    if site is None:
        return None
    proto = subject.copy()
    node = proto.graph.node[site[0]]
    old, new = node.input[site[1]], picked(rng, site[2])
    node.input[site[1]] = new
    return f"{named(node)} reads {new!r} in place of {old!r}", proto


@kind("inputs swapped")
def swapped_inputs(subject: Subject, rng: Random) -> Edit | None:
    """The operands of Sub, Div, Concat, MatMul, a comparison ... exchanged."""
    ops = ("Sub", "Div", "Pow", "Concat", "MatMul", "Gemm", "Less", "Greater", "Mod", "PRelu", "Where")
    at = picked(rng, sites(subject, lambda n: n.op_type in ops and len(n.input) > 1 and n.input[0] != n.input[1]))
    if at is None:
        return None
    proto = subject.copy()
    node = all_nodes(proto)[at]
    a, b = (0, 1) if len(node.input) == 2 else sorted(rng.choice(2, 2, replace=False))
    node.input[a], node.input[b] = node.input[b], node.input[a]
    return named(node), proto


def _alike(subject: Subject, node: NodeProto) -> bool:
    known = subject.known
    return (
        len(node.output) == 1
        and bool(node.input)
        and node.op_type not in ("Identity", "Constant", "Dropout")
        and known.get(node.input[0]) == known.get(node.output[0]) is not None
    )


@kind("node removed")
def removed_node(subject: Subject, rng: Random) -> Edit | None:
    """A node whose output has the shape of its input becomes Identity."""
    found: dict[str, list[int]] = {}
    for i in sites(subject, lambda n: _alike(subject, n)):
        found.setdefault(all_nodes(subject.proto)[i].op_type, []).append(i)
    op = picked(rng, sorted(found))
    if op is None:
        return None
    proto = subject.copy()
    node = all_nodes(proto)[picked(rng, found[op])]
    text = named(node)
    become(node, "Identity", node.input[:1])
    return text, proto


@kind("producers of outputs exchanged")
def exchanged_outputs(subject: Subject, rng: Random) -> Edit | None:
    """Two outputs keep their names but not what computes them."""
    proto = subject.copy()
    made = {o for n in proto.graph.node for o in n.output}
    names = [o.name for o in proto.graph.output if o.name in made]
    if len(names) < 2:
        return None
    a, b = rng.choice(names, 2, replace=False)
    other = {str(a): str(b), str(b): str(a)}
    for node in all_nodes(proto):
        node.output[:] = [other.get(o, o) for o in node.output]
        node.input[:] = [other.get(i, i) for i in node.input]
    del proto.graph.value_info[:]
    return f"{a!r} and {b!r}", proto


@kind("order of outputs exchanged")
def reordered_outputs(subject: Subject, rng: Random) -> Edit | None:
    """The declared outputs in another order."""
    proto = subject.copy()
    if len(proto.graph.output) < 2:
        return None
    values = list(proto.graph.output)
    del proto.graph.output[:]
    proto.graph.output.extend([*values[1:], values[0]])
    return ", ".join(v.name for v in proto.graph.output), proto


# ------------------------------------------------------------------------------------------------------- activations


# How far an activation's input may be bounded so that the bound still shows: HardSigmoid and Erf are flat farther out.
REACH = {
    "LeakyRelu": 6.0, "Sigmoid": 6.0, "Tanh": 5.0, "HardSwish": 6.0, "Softplus": 6.0, "Elu": 6.0, "Erf": 2.5,
    "Gelu": 6.0, "HardSigmoid": 2.4,
}  # fmt: skip


@kind("activation that agrees on typical inputs")
def similar_activation(subject: Subject, rng: Random) -> Edit | None:
    """Relu with a bound, a leak or a threshold; bounds and slopes of others moved where N(0, 1) does not reach."""

    def usable(n: NodeProto) -> bool:
        known = subject.known.get(n.input[0]) if n.op_type in ("Relu", "Clip", *REACH) else None
        return known is not None and known[1] == np.float32

    at = picked(rng, sites(subject, usable))
    if at is None:
        return None
    proto, probe = subject.copy(), subject.copy()
    node, large = all_nodes(proto)[at], all_nodes(probe)[at]
    text, x = named(node), list(node.input[:1])
    legacy = subject.analysis.source.opset < 11

    def clip(copy: ModelProto, n: NodeProto, low: float | None, high: float) -> None:
        if legacy:
            become(n, "Clip", x, **({} if low is None else {"min": low}), max=high)
            return
        names = ["" if v is None else add_constant(copy, np.array(v, np.float32), "bound") for v in (low, high)]
        become(n, "Clip", [*x, *names])

    if node.op_type == "Relu":
        choice = int(rng.integers(3))
        if choice == 0:
            clip(proto, node, 0.0, 100.0)
            return f"{text} -> Clip(0, 100)", proto
        if choice == 1:
            become(node, "LeakyRelu", x, alpha=1e-6)
            become(large, "LeakyRelu", x, alpha=0.5)
            return f"{text} -> LeakyRelu(1e-6)", proto, probe
        become(node, "ThresholdedRelu", x, alpha=1e-5)
        become(large, "ThresholdedRelu", x, alpha=1.0)
        return f"{text} -> ThresholdedRelu(1e-5)", proto, probe
    if node.op_type == "Clip":
        bounds = [i for i in node.input[1:] if i in {t.name for t in proto.graph.initializer}]
        if not bounds:
            return None
        value = get(proto, bounds[-1])
        node.input[list(node.input).index(bounds[-1])] = add_constant(proto, value + value.dtype.type(1), "bound")
        return f"{text}: bound {value} + 1", proto
    reach = REACH[node.op_type]
    for copy, n, bound in ((proto, node, reach), (probe, large, 0.1)):
        inner = NodeProto()
        inner.CopyFrom(n)
        clip(copy, n, -bound, bound)
        n.name += "_bounded"
        n.output[0] += "_bounded"
        inner.input[0] = n.output[0]
        index = next((i for i, other in enumerate(copy.graph.node) if other.output[0] == n.output[0]), None)
        if index is None:  # in a body
            return None
        _insert(copy, index + 1, inner)
    return f"{text} of an input within {reach} of 0", proto, probe


@kind("interface")
def interface(subject: Subject, rng: Random) -> Edit | None:
    """An output renamed, or missing."""
    proto = subject.copy()
    if len(proto.graph.output) > 1 and rng.random() < 0.5:
        name = proto.graph.output[-1].name
        del proto.graph.output[-1]
        return f"without output {name!r}", proto
    name = proto.graph.output[0].name
    for node in all_nodes(proto):
        node.output[:] = [f"{name}_renamed" if o == name else o for o in node.output]
        node.input[:] = [f"{name}_renamed" if i == name else i for i in node.input]
    proto.graph.output[0].name = f"{name}_renamed"
    return f"output {name!r} renamed", proto
