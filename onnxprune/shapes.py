"""Witness shapes: every dimension a number, so that reshapes can be reasoned about.

Dynamic dimensions break the arithmetic of Reshape. A *witness* sets each of them to a distinct number, infers all
shapes anew on a copy without weights, and computes the shape arithmetic in the graph with numpy. Comparing two
witnesses tells what depends on a dynamic dimension: whatever is equal in both is a constant of the model. How many
boxes a detector keeps depends on the data itself; such dimensions are set to numbers just so.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnxprune.model import Array, Model, to_skeleton, weightless
from onnxprune.ops import find

# The batch: a prime that divides no usual channel count, so that no factor of a Reshape is ambiguous.
_BATCH = (11, 23)
# Sequence-like ones (of token inputs).
_LENGTH = ((41, 43, 47, 53), (59, 61, 67, 71))
# Image sides: large enough for five strided layers, divisible by what strided networks and windows divide by.
_SIDE = ((224, 448, 672, 896), (1120, 1344, 1568, 1792))

# How many a selection finds: a prime, and few, so that "at most 100 of them" is not taken for a constant.
_SELECTED = (101, 2)
_SELECTIONS = frozenset(("Compress", "If", "Loop", "NonMaxSuppression", "NonZero", "Unique"))

_SMALL = 4096  # elements: larger constants seen through these operators stay weights behind a view
_VIEWS = frozenset(("Transpose", "Cast", "Identity"))
_LIKE_INPUT = frozenset(("GroupNormalization", "MeanVarianceNormalization"))
_LARGEST = 2**24  # elements of a folded constant expression
_LARGEST_OF_BATCH = 2**16  # of one that grows with the batch: no constant, at best a shape may come of it
_NOT_A_FUNCTION = ("Random", "Multinomial", "Bernoulli", "Dropout")
# What they say is how the runtime should compute: a weight of integers stays one.
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Witness:
    """Shapes and known values of a graph under one assignment of its dynamic dimensions.

    Attributes:
        dims: the number given to each dynamic dimension, by (input name, axis).
        shapes: shape of every tensor that has one; where a selection finds as many as the data say, the number is
            101 (2 in a witness that is `like` another). Other shapes that depend on data are missing.
        values: computed values of shape arithmetic and constant expressions, by tensor name.
        dtypes: element type of every tensor that has one.
        fixed: names of values in which no input has a part, not even by its shape.
        assumed: tensors with a dimension that depends on data, and was set to a number.
        names: of all tensors that the graph had.
    """

    dims: Mapping[tuple[str, int], int]
    shapes: dict[str, tuple[int, ...]]
    values: dict[str, Array]
    dtypes: dict[str, np.dtype[Any]]
    fixed: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


def assignments(model: Model, *, single: bool = False) -> list[dict[tuple[str, int], int]]:
    """Numbers for the dynamic input dimensions: two different sets of them, or one where nothing is dynamic."""
    sets: list[dict[tuple[str, int], int]] = []
    for which in range(2):
        numbers: dict[object, int] = {}
        used = {"length": 0, "side": 0}
        out: dict[tuple[str, int], int] = {}
        dynamic = [
            (t, axis, dim)
            for t in model.graph.inputs
            for axis, dim in enumerate(t.shape or ())
            if not (isinstance(dim, int) and dim > 0)
        ]
        for t, axis, dim in sorted(dynamic, key=lambda item: item[1]):
            key: object = dim if isinstance(dim, str) and dim else (t.name, axis)
            if axis == 0:
                # Exporters name the batch of every input differently, or not at all; it is one batch all the same.
                numbers[key] = _BATCH[which]
            elif key not in numbers:
                kind = "side" if len(t.shape) > 3 else "length"
                table = (_SIDE if kind == "side" else _LENGTH)[which]
                numbers[key] = table[used[kind] % len(table)] * (1 + used[kind] // len(table))
                used[kind] += 1
            out[t.name, axis] = numbers[key]
        sets.append(out)
    return sets[:1] if single or not sets[0] else sets


def bare(model: Model) -> onnx.ModelProto:
    """The model as shape inference needs it: without weights and without the shapes it came with."""
    proto = weightless(to_skeleton(model)[0])
    del proto.graph.value_info[:]
    return proto


def known_or_witness(model: Model) -> Witness:
    """What the pass fold_shapes has found out, of what the graph still has; a new witness where it has not seen all.

    What it has seen and found no shape for, it would find none for again: folding only writes down what it knew.
    """
    seen: Witness | None = model._shapes
    if seen is None:
        return witness(model)
    tensors = [*model.graph.tensors().values(), *model.graph.inputs, *model.graph.outputs]
    names = {t.name for t in tensors if t.name and not isinstance(t, gs.Constant)}
    if not names <= seen.names:
        return witness(model)
    constants = [t for t in tensors if isinstance(t, gs.Constant)]
    shapes = {name: seen.shapes[name] for name in names & seen.shapes.keys()}
    shapes |= {t.name: tuple(int(n) for n in t.shape) for t in constants}
    values = {name: seen.values[name] for name in names & seen.values.keys()}
    dtypes = {name: seen.dtypes[name] for name in names & seen.dtypes.keys()}
    dtypes |= {t.name: np.dtype(t.dtype) for t in constants}
    return Witness(seen.dims, shapes, values, dtypes, seen.fixed & names, seen.assumed & names, seen.names)


def with_nodes(seen: Witness, nodes: Sequence[gs.Node], opset: int) -> Witness:
    """A witness that knows shape arithmetic that was added to the graph; other nodes are left out.

    Args:
        seen: of the graph without them.
        nodes: new ones, in graph order.
        opset: of the model.
    """
    values = dict(seen.values)
    _evaluate(nodes, opset, seen.shapes, values, set())
    new = {t.name: values[t.name] for n in nodes for t in n.outputs if t.name in values and t.name not in seen.names}
    shapes = seen.shapes | {name: value.shape for name, value in new.items()}
    dtypes = seen.dtypes | {name: value.dtype for name, value in new.items()}
    return replace(seen, shapes=shapes, dtypes=dtypes, values=values, names=seen.names | new.keys())


def witness(
    model: Model, dims: Mapping[tuple[str, int], int] | None = None, *, skeleton: onnx.ModelProto | None = None,
    like: Witness | None = None,
) -> Witness:  # fmt: skip
    """Infers all shapes and computes all shape arithmetic under one assignment (default: the first).

    Args:
        dims: numbers of dynamic input dimensions, one of `assignments`.
        skeleton: `bare(model)`, if there is more than one assignment to try.
        like: the witness of another assignment, for what is the same in both; selections then find another number
            than in that one, so that what is equal in both does not depend on data (but for "at most two of them").
    """
    if dims is None:
        dims = assignments(model, single=True)[0]
    proto = onnx.ModelProto()
    proto.CopyFrom(skeleton or bare(model))
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (value.name, axis) in dims:
                dim.dim_value = dims[value.name, axis]
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    _use_stand_ins(proto, model.graph)
    open_nodes = [_Open(n, _reads(n), tuple(n.output)) for n in proto.graph.node]
    shapes: dict[str, tuple[int, ...]] = {}
    values = {name: like.values[name] for name in like.fixed} if like is not None else {}
    dtypes: dict[str, np.dtype[Any]] = {}
    skipped: set[str] = set()  # outputs that cannot be computed, or are too large to be worth it
    assumed: set[str] = set()
    nodes, constant = _computable(model.graph)
    nodes = [n for n in nodes if n.outputs[0].name not in values]
    for _ in range(64):  # every round resolves one more layer of shape-dependent shapes; few graphs need three
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        graph = inferred.graph
        before = len(shapes), len(values)
        for infos in (graph.input, graph.value_info, graph.output):
            for value in infos:
                name = value.name
                if name in shapes and name in dtypes:
                    continue  # from an earlier round
                shape, dtype = _known(value.type)
                if shape is not None:
                    shapes[name] = shape
                if dtype is not None:
                    dtypes[name] = dtype
        _evaluate(nodes, model.opset, shapes, values, skipped)
        nodes = [n for n in nodes if n.outputs[0].name not in values and n.outputs[0].name not in skipped]
        for name, value in values.items():  # inference never sees what was pinned
            shapes.setdefault(name, value.shape)
            dtypes.setdefault(name, value.dtype)
        if all(o in shapes for n in open_nodes for o in n.outputs if o):
            break
        if (len(shapes), len(values)) == before:
            found = _selected(open_nodes, graph, shapes, _SELECTED[like is not None])
            if not found:
                break
            shapes |= found
            assumed |= found.keys()
        open_nodes = _unsettled(open_nodes, shapes, dtypes, values, assumed)
        proto = _rest(proto, open_nodes, shapes, dtypes, values)
    tensors = model.graph.tensors()
    for t in tensors.values():
        if isinstance(t, gs.Constant):
            shapes[t.name] = tuple(int(n) for n in t.shape)
    names = frozenset([*tensors, *(t.name for t in (*model.graph.inputs, *model.graph.outputs))])
    return Witness(dims, shapes, values, dtypes, constant & values.keys(), frozenset(assumed), names)


def _use_stand_ins(proto: onnx.ModelProto, graph: gs.Graph) -> None:
    """Replaces operators of which onnx infers no shape by standard ones that have the same."""
    changed = False
    nodes: list[onnx.NodeProto] = []
    for original, node in zip(graph.nodes, proto.graph.node, strict=True):
        spec = find(original)
        if not node.domain and node.op_type in _LIKE_INPUT:
            nodes.append(onnx.helper.make_node("Identity", node.input[:1], node.output))
        elif spec is not None and spec.stand_in is not None:
            nodes.extend(spec.stand_in(original))
        else:
            nodes.append(node)
            continue
        changed = True
    if changed:
        kept = onnx.GraphProto(node=nodes)  # copies: clearing the field would take the nodes themselves along
        proto.graph.ClearField("node")
        proto.graph.node.extend(kept.node)


_dtype = functools.cache(onnx.helper.tensor_dtype_to_np_dtype)


def _known(kind: onnx.TypeProto) -> tuple[tuple[int, ...] | None, np.dtype[Any] | None]:
    """Shape, where every dimension is known, and element type. Asks protobuf as little as it can, that is slow."""
    if not kind.HasField("tensor_type"):
        return None, None
    tensor = kind.tensor_type
    dtype = _dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return None, dtype
    shape = []
    for d in tensor.shape.dim:
        n = d.dim_value
        if n == 0 and not d.HasField("dim_value"):
            return None, dtype
        shape.append(n)
    return tuple(shape), dtype


@dataclass(frozen=True)
class _Open:
    """A node that inference still has to see, with its tensors by name: protobuf is slow to ask."""

    node: onnx.NodeProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def _reads(node: onnx.NodeProto) -> tuple[str, ...]:
    """What a node reads, in its bodies too."""
    names = list(node.input)
    for a in node.attribute:
        for body in (*([a.g] if a.HasField("g") else ()), *a.graphs):
            names += [name for inner in body.node for name in _reads(inner)]
            names += [t.name for t in body.output]
    return tuple(names)


def _unsettled(
    nodes: Sequence[_Open], shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, np.dtype[Any]],
    values: Mapping[str, Array], assumed: Set[str],
) -> list[_Open]:  # fmt: skip
    """Nodes of which inference may have more to say: of integers it follows the values, of all else the shapes."""

    def settled(name: str) -> bool:
        if _pinned(values.get(name)) or name in assumed:
            return True
        return name in shapes and name in dtypes and dtypes[name].kind not in "iu"

    return [n for n in nodes if not all(settled(o) for o in n.outputs if o)]


def _selected(
    nodes: Sequence[_Open], graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], number: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of what selections with known inputs find, with a number for what depends on data."""
    known = shapes.keys() | {t.name for t in graph.initializer}
    wanted = {
        o
        for n in nodes
        if n.node.op_type in _SELECTIONS and not n.node.domain and all(i in known for i in n.node.input if i)
        for o in n.outputs
        if o not in shapes
    }
    found = {}
    for v in (*graph.value_info, *graph.output) if wanted else ():
        if v.name in wanted and v.type.HasField("tensor_type") and v.type.tensor_type.HasField("shape"):
            dims = v.type.tensor_type.shape.dim
            found[v.name] = tuple(d.dim_value if d.HasField("dim_value") else number for d in dims)
    return found


def _pinned(value: Array | None) -> bool:
    """Whether inference is told a value."""
    return value is not None and value.size <= _SMALL and value.dtype != object


def _rest(
    proto: onnx.ModelProto, nodes: Sequence[_Open], shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, np.dtype[Any]], values: Mapping[str, Array],
) -> onnx.ModelProto:  # fmt: skip
    """The graph of these nodes alone: what they read of the others becomes constants and inputs."""
    graph = proto.graph
    computed = {o for n in nodes for o in n.outputs}
    wanted = {i for n in nodes for i in n.inputs if i} - computed
    constants = [t for t in graph.initializer if t.name in wanted]
    inputs = [v for v in graph.input if v.name in wanted]
    for name in sorted(wanted - {t.name for t in constants} - {v.name for v in inputs}):
        value = values.get(name)
        if value is not None and _pinned(value):
            # No ascontiguousarray: it makes a vector of a 0-d array, and later rounds infer other shapes from that.
            constants.append(numpy_helper.from_array(value, name))
        elif name in shapes and name in dtypes:
            kind = onnx.helper.np_dtype_to_tensor_dtype(dtypes[name])
            inputs.append(onnx.helper.make_tensor_value_info(name, kind, shapes[name]))
    outputs = [v for v in graph.output if v.name in computed]
    rest = onnx.GraphProto(
        name=graph.name, node=[n.node for n in nodes], initializer=constants, input=inputs, output=outputs
    )
    return onnx.ModelProto(
        ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions, graph=rest
    )


def _computable(graph: gs.Graph) -> tuple[list[gs.Node], frozenset[str]]:
    """Nodes that read nothing of the model's inputs but their shapes, in graph order; what reads not even those."""
    data = {t.name for t in graph.inputs}
    shaped: set[str] = set()
    constant: set[str] = set()
    out = []
    for node in graph.nodes:
        names = [t.name for t in node.inputs]
        asks = node.op in ("Shape", "Size")
        if not asks and any(name in data for name in names):
            data.update(t.name for t in node.outputs if t.name)
        elif node.outputs and not any(t.outputs for t in node.outputs[1:]):
            out.append(node)
            (shaped if asks or any(name in shaped for name in names) else constant).add(node.outputs[0].name)
        else:
            shaped.update(t.name for t in node.outputs)
    return out, frozenset(constant)


def _evaluate(
    nodes: Sequence[gs.Node], opset: int, shapes: Mapping[str, tuple[int, ...]], values: dict[str, Array],
    skipped: set[str],
) -> None:  # fmt: skip
    """Computes every node whose inputs are known, in graph order, into `values`."""
    for node in nodes:
        if node.op in ("Shape", "Size") and not node.domain:
            shape = shapes.get(node.inputs[0].name)
            known = _value(node.inputs[0], values) if shape is None else None
            if known is not None:
                shape = known.shape
            if shape is not None:
                start, end = node.attrs.get("start", 0), node.attrs.get("end")
                values[node.outputs[0].name] = (
                    np.array(shape[start:end], np.int64) if node.op == "Shape" else np.array(prod(shape), np.int64)
                )
            continue
        if node.domain or node.op.startswith(_NOT_A_FUNCTION) or node.op in _QUANTIZERS:
            continue
        inputs = [_value(t, values) for t in node.inputs]
        if any(v is None and t.name for v, t in zip(inputs, node.inputs, strict=True)):
            continue
        if any(isinstance(a, gs.Graph) for a in node.attrs.values()):
            continue
        if node.op in _VIEWS and isinstance(node.inputs[0], gs.Constant) and node.inputs[0].values.size > _SMALL:
            continue  # a weight, transposed or cast: the labels look through it, the file keeps it as it is
        name = node.outputs[0].name
        if _too_large(shapes.get(name, ())):
            skipped.add(name)
            continue
        result = _compute(node, inputs, opset)
        if result is None or _too_large(result.shape):
            skipped.add(name)
        else:
            values[name] = result


def _too_large(shape: tuple[int, ...]) -> bool:
    size = prod(shape)
    if size <= _LARGEST_OF_BATCH:
        return False
    return size > _LARGEST or any(n and n % batch == 0 for n in shape for batch in _BATCH)


def _value(t: gs.Tensor, values: Mapping[str, Array]) -> Array | None:
    if not t.name:
        return None
    if isinstance(t, gs.Constant):
        return np.asarray(t.values)
    return values.get(t.name)


def _compute(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    spec = find(node)
    if spec is not None and spec.evaluate is not None:
        try:
            with np.errstate(all="ignore"):
                result = spec.evaluate(node, inputs)
        except (ValueError, IndexError, TypeError, AssertionError, ZeroDivisionError):
            return None  # a shape that this assignment makes impossible: leave it unknown
        return None if result is None else np.asarray(result)
    if spec is None or not inputs:
        return None
    return _reference(node, inputs, opset)


def _reference(node: gs.Node, inputs: list[Array | None], opset: int) -> Array | None:
    from onnx.reference import ReferenceEvaluator
    from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

    proto = OnnxExporter.export_node(node)
    feeds = {t.name: v for t, v in zip(node.inputs, inputs, strict=True) if t.name}
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [onnx.helper.make_tensor_value_info(n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)  # type: ignore[union-attr]
         for n, v in feeds.items()],
        [onnx.helper.make_empty_tensor_value_info(proto.output[0])],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):  # a constant may well be log(0), of which a Where takes nothing
            results: Any = ReferenceEvaluator(model).run(None, feeds)
        result = results[0]
    except Exception:  # the reference raises whatever numpy raises; unknown is always a safe answer
        return None
    return np.asarray(result)
