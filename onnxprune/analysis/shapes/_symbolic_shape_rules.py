"""Dimensions of outputs in symbols, operator by operator.

`SIZES` computes the dimensions of a node's outputs from those of its inputs: integers where they are constant,
expressions where they depend on a dynamic dimension, None where they cannot be expressed, which is always correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.analysis.shapes._symbolic_value_rules import Elements, MaybeSize
from onnxprune.ir.symbolic import Expr as Expr
from onnxprune.ir.symbolic import (
    Size,
    apply,
    atom_of,
    bounds,
    floor_divide,
    maximum,
    minimum,
    product,
    quotient,
)  # fmt: skip
from onnxprune.ops import find
from onnxprune.ops.elementwise import couple_broadcast, couple_unary
from onnxprune.ops.op_spec import ints, normal_axis

Dims = tuple[MaybeSize, ...]
Value = Callable[[int], Elements | None]
SizeRule = Callable[[gs.Node, Sequence[Dims | None], Value], Sequence[Dims | None] | None]
AS_SEEN = -1
"""In the dimensions that a rule returns: a constant whose number is known from the witness."""
_NO_END = 2**31 - 1  # exporters write at least this for "to the end"


class _Unknown(Exception):
    """A rule needs a value or shape that is not known."""


def _dims(dims: Sequence[Dims | None], i: int = 0) -> Dims:
    found = dims[i] if i < len(dims) else None
    if found is None:
        raise _Unknown
    return found


def _numbers(node: gs.Node, value: Value, i: int, attribute: str = "") -> list[int] | None:
    """Return the constant integers of an input or attribute; None if neither is given."""
    if attribute in node.attrs:
        return ints(node.attrs[attribute])
    if i >= len(node.inputs) or not node.inputs[i].name:
        return None
    elements = _elements(value, i)
    if not all(isinstance(n, int) for n in elements):
        raise _Unknown
    return elements  # type: ignore[return-value]


def _elements(value: Value, i: int) -> list[MaybeSize]:
    found = value(i)
    if found is None:
        raise _Unknown
    return found.reshape(-1).tolist()


def stretched(a: MaybeSize, b: MaybeSize) -> MaybeSize:
    """Return the size of two axes that broadcast: both are equal, or one of them is 1."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    for one, two in ((a, b), (b, a)):
        low = None if one is None else bounds(one)[0]
        if low is not None and low > 1:
            return one
        if one is not None and two is not None and minimum(one, two) == two:
            return one
    if a is None or b is None:
        return None
    parts: set[Size] = set()
    for x in (a, b):
        single = isinstance(x, Expr) and len(x.terms) == 1 and len(next(iter(x.terms))) == 1
        atom = atom_of(x) if single else None  # type: ignore[arg-type]
        parts.update(atom.args if atom is not None and atom.kind == "broadcast" else (x,))
    return apply("broadcast", *sorted(parts, key=repr), low=min(bounds(p)[0] or 0 for p in parts))


def broadcast(*shapes: Dims) -> Dims:
    """Return the shape of operands that broadcast against each other."""
    first, *others = shapes
    if all(s == first for s in others):
        return first
    rank = max(map(len, shapes))
    full = [(1,) * (rank - len(s)) + s for s in shapes]
    return tuple(reduce(stretched, axis) for axis in zip(*full, strict=True))


def _same(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    return [_dims(dims)] * len(node.outputs)


def _first(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    return [_dims(dims), *[None] * (len(node.outputs) - 1)]


def _broadcast(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    return [broadcast(*(_dims(dims, i) for i, t in enumerate(node.inputs) if t.name))] * len(node.outputs)


def _window(node: gs.Node, axis: int, size: MaybeSize, kernel: int, rank: int) -> MaybeSize:
    """Return the size of a spatial axis of the output of a convolution or a pool."""
    if size is None or isinstance(size, int):
        return None if size is None else AS_SEEN
    attrs = node.attrs
    stride = (attrs.get("strides") or [1] * rank)[axis]
    dilation = (attrs.get("dilations") or [1] * rank)[axis]
    pads = attrs.get("pads") or [0] * 2 * rank
    auto = attrs.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return floor_divide(size + (stride - 1), stride)
    pad = pads[axis] + pads[axis + rank] if auto == "NOTSET" else 0
    spare = size + (pad - dilation * (kernel - 1) - 1)
    if attrs.get("ceil_mode", 0) and stride > 1:
        return apply("window", size, kernel, stride, dilation, *pads, low=0)
    return maximum(floor_divide(spare, stride) + 1, 0) if bounds(spare)[0] is None else floor_divide(spare, stride) + 1


def _conv(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, w = _dims(dims), _dims(dims, 3 if node.op == "QLinearConv" else 1)
    rank = len(x) - 2
    if any(not isinstance(n, int) for n in w[2:]):
        raise _Unknown
    return [(x[0], w[0], *(_window(node, i, n, w[2 + i], rank) for i, n in enumerate(x[2:])))]  # type: ignore[arg-type]


def _conv_transpose(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, w, attrs = _dims(dims), _dims(dims, 1), node.attrs
    rank = len(x) - 2
    if not all(isinstance(n, int) for n in w) or "output_shape" in attrs or attrs.get("auto_pad", "NOTSET") != "NOTSET":
        raise _Unknown
    strides, dilations = attrs.get("strides") or [1] * rank, attrs.get("dilations") or [1] * rank
    pads, extra = attrs.get("pads") or [0] * 2 * rank, attrs.get("output_padding") or [0] * rank
    space: list[MaybeSize] = []
    for i, n in enumerate(x[2:]):
        more = extra[i] + dilations[i] * (w[2 + i] - 1) + 1 - pads[i] - pads[i + rank]  # type: ignore[operator]
        space.append(None if n is None else (n + -1) * strides[i] + more if isinstance(n, Expr) else AS_SEEN)
    return [(x[0], w[1] * int(attrs.get("group", 1)), *space)]  # type: ignore[operator]


def _pool(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, kernel = _dims(dims), node.attrs["kernel_shape"]
    space = (_window(node, i, n, kernel[i], len(kernel)) for i, n in enumerate(x[2:]))
    return [(*x[:2], *space)] * len(node.outputs)


def _global_pool(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = _dims(dims)
    return [(*x[:2], *[1] * (len(x) - 2))]


def _matmul(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    a, b = _dims(dims), _dims(dims, 3 if node.op == "QLinearMatMul" else 1)
    if min(len(a), len(b)) < 2:
        raise _Unknown
    return [(*broadcast(a[:-2], b[:-2]), a[-2], b[-1])]


def _gemm(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    a, b = _dims(dims), _dims(dims, 1)
    return [(a[1 if node.attrs.get("transA", 0) else 0], b[0 if node.attrs.get("transB", 0) else 1])]


def _concat(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    shapes = [_dims(dims, i) for i in range(len(node.inputs))]
    axis = normal_axis(int(node.attrs["axis"]), len(shapes[0]))
    parts = [s[axis] for s in shapes]
    joined: MaybeSize = 0
    for n in parts:
        joined = None if n is None or joined is None else joined + n
    out: list[MaybeSize] = []
    for i, n in enumerate(shapes[0]):
        # The sizes must be equal, so a constant among them is the size of all.
        known = [s[i] for s in shapes if isinstance(s[i], int)]
        out.append(joined if i == axis else known[0] if known else n if all(s[i] == n for s in shapes) else None)
    return [tuple(out)]


def _bound(place: MaybeSize, size: Size) -> MaybeSize:
    """Return the start or end of a slice with positive steps."""
    if place is None:
        return None
    low, high = bounds(place)
    if low is not None and low >= 0:
        return size if low >= _NO_END else minimum(place, size)
    return maximum(size + place, 0) if high is not None and high < 0 else None


def _slice(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    out = list(_dims(dims))
    if "starts" in node.attrs:
        starts, ends = list(node.attrs["starts"]), list(node.attrs["ends"])
        axes, steps = node.attrs.get("axes"), None
    else:
        axes, steps = _numbers(node, value, 3), _numbers(node, value, 4)
        starts, ends = _elements(value, 1), _elements(value, 2)
    for i, axis in enumerate(range(len(starts)) if axes is None else axes):
        axis, step = normal_axis(axis, len(out)), 1 if steps is None else steps[i]
        out[axis] = _slice_length(out[axis], starts[i], ends[i], step)
    return [tuple(out)]


def _slice_length(size: MaybeSize, start: MaybeSize, end: MaybeSize, step: int) -> MaybeSize:
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        return len(range(*slice(start, end, step).indices(size)))
    if size is None or step < 1:
        return None
    start, end = _bound(start, size), _bound(end, size)
    return None if start is None or end is None else floor_divide(maximum(end - start, 0) + (step - 1), step)


def _split(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, count = _dims(dims), len(node.outputs)
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(x))
    sizes: Sequence[MaybeSize]
    if "split" in node.attrs:
        sizes = ints(node.attrs["split"])
    elif len(node.inputs) > 1 and node.inputs[1].name:
        sizes = _elements(value, 1)
    else:
        size = x[axis]
        sizes = [None if size is None else quotient(size, count)] * count
    return [(*x[:axis], n, *x[axis + 1 :]) for n in sizes]


def _pad(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    out = list(_dims(dims))
    pads = list(node.attrs["pads"]) if "pads" in node.attrs else _elements(value, 1)
    axes = _numbers(node, value, 3) or range(len(out))
    half = len(pads) // 2
    for i, axis in enumerate(axes):
        parts = (out[axis], pads[i], pads[half + i])
        out[axis] = None if None in parts else sum(parts)  # type: ignore[arg-type]
    return [tuple(out)]


def _reshape(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = _dims(dims)
    target = _elements(value, 1) if "shape" not in node.attrs else list(node.attrs["shape"])
    out: list[MaybeSize] = []
    for i, n in enumerate(target):
        low = None if n is None else bounds(n)[0]
        if n == 0 and not node.attrs.get("allowzero", 0):
            out.append(x[i])
        else:
            out.append(n if n == -1 or (low is not None and low >= 0) else None)
    if out.count(-1) == 1:
        rest, total = product([n for n in out if n != -1]), product(x)
        known = rest is not None and total is not None
        found = quotient(total, rest) if known else None  # type: ignore[arg-type]
        out[out.index(-1)] = floor_divide(total, rest) if found is None and known else found  # type: ignore[arg-type]
    return [tuple(out)]


def _flatten(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = _dims(dims)
    axis = normal_axis(int(node.attrs.get("axis", 1)), len(x))
    return [(product(x[:axis]), product(x[axis:]))]


def _transpose(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = _dims(dims)
    return [tuple(x[p] for p in node.attrs.get("perm") or reversed(range(len(x))))]


def _squeeze(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, axes = _dims(dims), _numbers(node, value, 1, "axes")
    drop = [i for i, n in enumerate(x) if n == 1] if axes is None else [normal_axis(a, len(x)) for a in axes]
    return [tuple(n for i, n in enumerate(x) if i not in drop)]


def _unsqueeze(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, axes = _dims(dims), _numbers(node, value, 1, "axes") or []
    rank = len(x) + len(axes)
    places, rest = {normal_axis(a, rank) for a in axes}, iter(x)
    return [tuple(1 if i in places else next(rest) for i in range(rank))]


def _expand(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    return [broadcast(_dims(dims), tuple(_elements(value, 1)))]


def _tile(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    pairs = zip(_dims(dims), _elements(value, 1), strict=True)
    return [tuple(None if n is None or k is None else n * k for n, k in pairs)]


def _scaled(size: MaybeSize, scale: float) -> MaybeSize:
    if size is None or isinstance(size, int):
        return None if size is None else AS_SEEN
    if scale == int(scale):
        return size * int(scale)
    if 1 / scale == round(1 / scale):
        return floor_divide(size, round(1 / scale))
    return apply("scaled", size, scale, low=0)  # type: ignore[arg-type]


def _resize(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    out = list(_dims(dims))
    axes = [normal_axis(a, len(out)) for a in ints(node.attrs.get("axes", range(len(out))))]
    plain = node.attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch"
    if len(node.inputs) > 3 and node.inputs[3].name:
        sizes = _elements(value, 3)
        for axis, n in zip(axes, sizes, strict=True):
            out[axis] = n if plain else None
        return [tuple(out)]
    operand = node.inputs[min(2, len(node.inputs) - 1)] if len(node.inputs) > 1 else None
    scales = (
        node.attrs.get("scales") if operand is None else operand.values if isinstance(operand, gs.Constant) else None
    )
    if scales is None or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise _Unknown
    for axis, scale in zip(axes, np.asarray(scales, np.float64).reshape(-1).tolist(), strict=True):
        out[axis] = _scaled(out[axis], scale)
    return [tuple(out)]


def _gather(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = _dims(dims)
    axis = normal_axis(int(node.attrs.get("axis", 0)), len(x))
    return [(*x[:axis], *_dims(dims, 1), *x[axis + 1 :])]


def _like_second(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    return [_dims(dims, 1)]


def _gather_nd(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, places = _dims(dims), _dims(dims, 1)
    if not isinstance(places[-1], int):
        raise _Unknown
    return [(*places[:-1], *x[int(node.attrs.get("batch_dims", 0)) + places[-1] :])]


def _reduced(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x, axes = _dims(dims), _numbers(node, value, 1, "axes")
    if not axes:
        axes = [] if node.attrs.get("noop_with_empty_axes", 0) else list(range(len(x)))
    return [_without(x, [normal_axis(a, len(x)) for a in axes], bool(node.attrs.get("keepdims", 1)))]


def _without(x: Dims, axes: Sequence[int], keep: bool) -> Dims:
    return tuple(1 if i in axes else n for i, n in enumerate(x) if keep or i not in axes)


def _arg(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = _dims(dims)
    return [_without(x, [normal_axis(int(node.attrs.get("axis", 0)), len(x))], bool(node.attrs.get("keepdims", 1)))]


def _topk(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = list(_dims(dims))
    x[int(node.attrs.get("axis", -1))] = _elements(value, 1)[0]
    return [tuple(x)] * len(node.outputs)


def _einsum(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    equation = node.attrs["equation"]
    left, arrow, right = (equation if isinstance(equation, str) else equation.decode()).replace(" ", "").partition("->")
    if "." in left or not arrow:
        raise _Unknown
    sizes: dict[str, MaybeSize] = {}
    for i, letters in enumerate(left.split(",")):
        for letter, n in zip(letters, _dims(dims, i), strict=True):
            sizes[letter] = stretched(sizes[letter], n) if letter in sizes else n
    return [tuple(sizes[letter] for letter in right)]


def _depth_space(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    n, c, *space = _dims(dims)
    block = int(node.attrs["blocksize"])
    if c is None or None in space:
        raise _Unknown
    if node.op == "DepthToSpace":
        return [(n, floor_divide(c, block**2), *(s * block for s in space))]  # type: ignore[operator]
    return [(n, c * block**2, *(floor_divide(s, block) for s in space))]  # type: ignore[arg-type]


def _of_value(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    return [tuple(_elements(value, 0))]


def _range(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    start, limit, delta = (_elements(value, i)[0] for i in range(3))
    if start is None or limit is None or not isinstance(delta, int) or delta < 1:
        raise _Unknown
    return [(maximum(floor_divide(limit - start + (delta - 1), delta), 0),)]


def _one_hot(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None]:
    x = list(_dims(dims))
    x.insert(normal_axis(int(node.attrs.get("axis", -1)), len(x) + 1), _elements(value, 1)[0])
    return [tuple(x)]


SIZES: dict[str, SizeRule] = {
    "Conv": _conv, "ConvInteger": _conv, "QLinearConv": _conv, "ConvTranspose": _conv_transpose, "MaxPool": _pool,
    "AveragePool": _pool, "LpPool": _pool, "MatMul": _matmul, "MatMulInteger": _matmul, "QLinearMatMul": _matmul,
    "Gemm": _gemm, "Concat": _concat, "Slice": _slice, "Split": _split, "Pad": _pad, "Reshape": _reshape,
    "Flatten": _flatten, "Transpose": _transpose, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Expand": _expand,
    "Tile": _tile, "Resize": _resize, "Upsample": _resize, "Gather": _gather, "GatherElements": _like_second,
    "GatherND": _gather_nd, "ArgMax": _arg, "ArgMin": _arg, "TopK": _topk, "Einsum": _einsum,
    "DepthToSpace": _depth_space, "SpaceToDepth": _depth_space, "ConstantOfShape": _of_value, "Range": _range,
    "OneHot": _one_hot,
}  # fmt: skip
SIZES |= dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool)
SIZES |= dict.fromkeys(
    ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
     "ReduceLogSum", "ReduceLogSumExp"), _reduced,
)  # fmt: skip
SIZES |= dict.fromkeys(
    ("Softmax", "LogSoftmax", "Hardmax", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
     "LayerNormalization", "RMSNormalization", "LpNormalization", "MeanVarianceNormalization", "LRN", "Trilu", "CumSum",
     "ScatterND", "ScatterElements", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"), _first,
)  # fmt: skip


def sizes(node: gs.Node, dims: Sequence[Dims | None], value: Value) -> Sequence[Dims | None] | None:
    """Return the dimensions of a node's outputs; None if there is no rule.

    Args:
        node: Node of the graph.
        dims: Dimensions of its inputs; None if they are not known or there is no such input.
        value: Function that returns the elements of an input, None if they are not known.
    """
    spec = find(node)
    if spec is not None and spec.couple is couple_broadcast:
        rule: SizeRule | None = _broadcast
    elif spec is not None and spec.couple is couple_unary:
        rule = _same
    else:
        rule = None if node.domain else SIZES.get(node.op)
    if rule is None:
        return None
    try:
        return rule(node, dims, value)
    except (_Unknown, ValueError, IndexError, TypeError, KeyError):  # an invalid node is unknown, too
        return None
