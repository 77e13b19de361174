"""Parts of random graphs that ordinary blocks leave out: shape arithmetic, inputs of other types, hidden activations.

`SIZED` parts take an image whose height and width may be dynamic and return another; `HIDDEN` parts are ordinary blocks
whose channels random inputs at unit scale do not show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from random_graphs.graphs import T

if TYPE_CHECKING:
    from random_graphs.fuzzing import FuzzBuilder

Part = Callable[["FuzzBuilder", T], T]
SIZED: dict[str, Part] = {}
HIDDEN: dict[str, Part] = {}
DECIDES: set[str] = set()  # by a threshold: float16 decides otherwise at some place by rounding alone
UNKNOWN = -1  # height or width of an image that is dynamic


def sized(function: Part) -> Part:
    """Register a part under its function's name."""
    SIZED[function.__name__] = function
    return function


def hidden(decides: bool = False) -> Callable[[Part], Part]:
    """Register a block of `HIDDEN` under its function's name."""

    def add(function: Part) -> Part:
        HIDDEN[function.__name__] = function
        if decides:
            DECIDES.add(function.__name__)
        return function

    return add


# ---------------------------------------------------------------------------------------------------- arithmetic


def size(b: FuzzBuilder, x: str, axis: int) -> str:
    """One dimension of a tensor as int64[1], in one of the ways that exporters write it."""
    how = int(b.rng.integers(4))
    if how == 0 and b.opset >= 15:
        return str(b.node("Shape", x, start=axis, end=axis + 1))
    shape = b.node("Shape", x)
    if how == 1:
        return b.slice(shape, axis, axis + 1, 0)
    if how == 2:
        scalar = b.node("Gather", shape, b.const(np.array(axis, np.int64)))
        return str(b.node("Unsqueeze", scalar, b.const([0])))
    return str(b.node("Gather", shape, b.const([axis])))


def _constant(b: FuzzBuilder, low: int = 1) -> str:
    return b.const([int(b.rng.choice([v for v in (1, 2, 3, 4, 5, 7, 8, 16, 32, 100, 224, 640) if v >= low]))])


def _binary(op: str) -> Callable[[FuzzBuilder, str, str], str]:
    return lambda b, x, y: str(b.node(op, x, y))


def _half(b: FuzzBuilder, x: str, _: str) -> str:
    return str(b.node("Div", x, b.const([2])))


def _round_up(b: FuzzBuilder, x: str, _: str) -> str:
    """The next multiple, through floats as torch's `math.ceil` is traced."""
    step = float(b.rng.choice([2, 4, 8]))
    scaled = b.node("Div", b.node("Cast", x, to=TensorProto.FLOAT), b.const(np.array([step], np.float32)))
    whole = b.node("Mul", b.node("Ceil", scaled), b.const(np.array([step], np.float32)))
    return str(b.node("Cast", whole, to=TensorProto.INT64))


def _choice(b: FuzzBuilder, x: str, y: str) -> str:
    return str(b.node("Where", comparison(b, x, y), x, y))


def _clip(b: FuzzBuilder, x: str, _: str) -> str:
    low, high = sorted(int(v) for v in b.rng.choice([1, 2, 5, 9, 40, 300], 2, replace=False))
    return str(b.node("Clip", x, b.const(np.array(low, np.int64)), b.const(np.array(high, np.int64))))


def _share(b: FuzzBuilder, x: str, _: str) -> str:
    return str(b.node("Div", x, _constant(b, 2)))


def _rest(b: FuzzBuilder, x: str, _: str) -> str:
    return str(b.node("Mod", x, _constant(b, 2)))


def _distance(b: FuzzBuilder, x: str, y: str) -> str:
    return str(b.node("Abs", b.node("Sub", x, y)))


_ARITHMETIC = (
    _binary("Min"), _binary("Max"), _binary("Add"), _half, _round_up, _choice, _clip, _share, _rest, _distance,
)  # fmt: skip


def number(b: FuzzBuilder, x: str, depth: int = 2) -> str:
    """Random arithmetic on the sizes of an image, as int64[1]; never negative."""
    value = size(b, x, int(b.rng.choice([0, 2, 2, 3, 3])))
    for _ in range(int(b.rng.integers(1, depth + 1))):
        other = _constant(b) if b.rng.random() < 0.5 else size(b, x, int(b.rng.choice([0, 2, 3])))
        value = _ARITHMETIC[int(b.rng.integers(len(_ARITHMETIC)))](b, value, other)
    return value


def comparison(b: FuzzBuilder, x: str, y: str) -> str:
    """Random comparison of two numbers, as bool[1]."""
    op = str(b.rng.choice(["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]))
    found = b.node(op, x, y)
    return str(b.node("Not", found)) if b.rng.random() < 0.3 else str(found)


def condition(b: FuzzBuilder, x: str) -> str:
    """Random decision on the sizes of an image, as bool[1]."""
    other = _constant(b) if b.rng.random() < 0.5 else number(b, x, 1)
    found = comparison(b, number(b, x), other)
    if b.rng.random() < 0.25:
        again = comparison(b, number(b, x, 1), _constant(b))
        found = str(b.node(str(b.rng.choice(["And", "Or", "Xor"])), found, again))
    return found


def within(b: FuzzBuilder, value: str, high: str) -> str:
    """A number moved into [1, high]."""
    return str(b.node("Max", b.node("Min", value, high), b.const([1])))


def cut(b: FuzzBuilder, x: str, start: str, end: str, axis: int) -> str:
    """Slice of one axis by computed numbers."""
    return str(b.node("Slice", x, start, end, b.const([axis])))


def shape(b: FuzzBuilder, *numbers: str) -> str:
    """A shape of numbers."""
    return str(b.node("Concat", *numbers, axis=0))


def _axis(b: FuzzBuilder) -> int:
    return int(b.rng.choice([2, 3]))


def _width(b: FuzzBuilder, x: T) -> str:
    """The channels as a number: a constant, or read from the shape as `x.shape[1]` is."""
    return b.const([x.c]) if b.rng.random() < 0.5 else size(b, x.name, 1)


def _as_float(b: FuzzBuilder, value: str) -> str:
    return str(b.node("Cast", value, to=b.kind))


# --------------------------------------------------------------------------------------------------- sized parts


@sized
def crop(b: FuzzBuilder, x: T) -> T:
    """The first rows or columns, as many as arithmetic says."""
    axis = _axis(b)
    end = within(b, number(b, x.name), size(b, x.name, axis))
    return b.unit(T(cut(b, x.name, b.const([0]), end, axis), x.c, UNKNOWN, UNKNOWN), b.width(), kernel=1)


@sized
def roll(b: FuzzBuilder, x: T) -> T:
    """Two halves swapped, as Swin shifts windows."""
    x = b.conv(x, b.width(), kernel=1)
    axis = _axis(b)
    middle = b.node("Div", size(b, x.name, axis), b.const([2]))
    if b.rng.random() < 0.5:
        middle = b.node("Sub", size(b, x.name, axis), middle)
    first = cut(b, x.name, b.const([0]), middle, axis)
    second = cut(b, x.name, middle, b.const([2**31 - 1]), axis)
    return T(b.node("Concat", second, first, axis=axis), x.c, UNKNOWN, UNKNOWN)


@sized
def pad_to_multiple(b: FuzzBuilder, x: T) -> T:
    """Rows and columns added up to a multiple, something computed on windows, and cut off again."""
    x = b.conv(x, b.width(), kernel=1)
    step = int(b.rng.choice([2, 3, 4]))
    h, w = size(b, x.name, 2), size(b, x.name, 3)
    missing = [b.node("Mod", b.node("Sub", b.const([step]), b.node("Mod", n, b.const([step]))), b.const([step]))
               for n in (h, w)]  # fmt: skip
    y = b.node("Pad", x.name, shape(b, b.const([0, 0, 0, 0, 0, 0]), *missing))
    rows, columns = (b.node("Div", size(b, y, axis), b.const([step])) for axis in (2, 3))
    n = size(b, y, 0) if b.rng.random() < 0.5 else b.const([-1])
    y = b.node("Reshape", y, shape(b, n, _width(b, x), rows, b.const([step]), columns, b.const([step])))
    y = b.node("Sigmoid", b.node("ReduceMax", y, axes=[3, 5], keepdims=0) if b.opset < 18 else
               b.node("ReduceMax", y, b.const([3, 5]), keepdims=0))  # fmt: skip
    y = b.conv(T(y, x.c, UNKNOWN, UNKNOWN), b.width(), kernel=1)
    return y


@sized
def windows(b: FuzzBuilder, x: T) -> T:
    """Space cut into windows that join the batch, a product in each, and back."""
    x = b.conv(x, b.width(), kernel=1)
    n, h, w = (size(b, x.name, axis) for axis in (0, 2, 3))
    rows = b.node("Div", b.node("Add", h, b.const([1])), b.const([2]))
    columns = b.node("Div", b.node("Add", w, b.const([1])), b.const([2]))
    odd = [b.node("Mod", size_, b.const([2])) for size_ in (h, w)]
    y = b.node("Pad", x.name, shape(b, b.const([0, 0, 0, 0, 0, 0]), *odd))
    y = b.node("Reshape", y, shape(b, n, _width(b, x), rows, b.const([2]), columns, b.const([2])))
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 4, 3, 5, 1]), shape(b, b.const([-1, 4]), _width(b, x)))
    y = b.node("Tanh", b.node("MatMul", y, b.weight(x.c, x.c)))
    y = b.node("Reshape", y, shape(b, n, rows, columns, b.const([2, 2, x.c])))
    y = b.node("Transpose", y, perm=[0, 5, 1, 3, 2, 4])
    y = b.node("Reshape", y, shape(b, n, b.const([x.c]), b.node("Mul", rows, b.const([2])), b.const([-1])))
    return T(cut(b, cut(b, y, b.const([0]), h, 2), b.const([0]), w, 3), x.c, UNKNOWN, UNKNOWN)


@sized
def tokens(b: FuzzBuilder, x: T) -> T:
    """All places in one axis of a computed length, and back."""
    x = b.conv(x, b.width(), kernel=1)
    n, h, w = (size(b, x.name, axis) for axis in (0, 2, 3))
    many = b.node("Mul", h, w) if b.rng.random() < 0.6 else b.const([-1])
    y = b.node("Reshape", x.name, shape(b, n, _width(b, x), many))
    y = b.node("Transpose", y, perm=[0, 2, 1])
    out = b.width()
    y = b.node("Relu", b.node("Add", b.node("MatMul", y, b.weight(x.c, out, spread=x.c**-0.5)), b.weight(out)))
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1]), shape(b, n, b.const([out]), h, w))
    return T(y, out, UNKNOWN, UNKNOWN)


@sized
def factor(b: FuzzBuilder, x: T) -> T:
    """Everything scaled by a number made of sizes."""
    value = _as_float(b, number(b, x.name))
    scale = b.node("Div", value, b.node("Add", value, b.const(np.ones(1, b.dtype))))
    x = b.unit(x, b.width(), kernel=1)
    return T(b.node("Mul", x.name, scale), x.c, UNKNOWN, UNKNOWN)


@sized
def where_size(b: FuzzBuilder, x: T) -> T:
    """One of two values for all places, by a decision on sizes."""
    x = b.conv(x, b.width(), kernel=1)
    other = b.conv(x, x.c, kernel=1) if b.rng.random() < 0.5 else b.act(x)
    sides = [x.name, other.name] if b.rng.random() < 0.5 else [other.name, x.name]
    return T(b.node("Where", condition(b, x.name), *sides), x.c, UNKNOWN, UNKNOWN)


@sized
def if_size(b: FuzzBuilder, x: T) -> T:
    """One of two bodies, by a decision on sizes."""
    x = b.conv(x, b.width(), kernel=1)
    decided = b.node("Squeeze", condition(b, x.name), b.const([0]))
    scale, shift = b.weight(x.c, 1, 1, spread=1.0), b.weight(x.c, 1, 1, spread=1.0)

    def body(op: str, *inputs: str) -> onnx.GraphProto:
        y = b.fresh("body_")
        node = helper.make_node(op, list(inputs), [y], name=b.fresh("n_"))
        return helper.make_graph([node], b.fresh("g_"), [], [helper.make_tensor_value_info(y, b.kind, None)])

    bodies = [body("Mul", x.name, scale), body("Add", x.name, shift), body("Relu", x.name), body("Identity", x.name)]
    one, two = b.rng.permutation(4)[:2]
    y = b.node("If", decided, then_branch=bodies[one], else_branch=bodies[two])
    return b.conv(T(y, x.c, UNKNOWN, UNKNOWN), b.width(), kernel=1)


@sized
def if_layers(b: FuzzBuilder, x: T) -> T:
    """One of two branches with layers of their own, perhaps nested, by a decision on sizes or by an input."""
    return _either(b, b.conv(x, b.width(), kernel=1), b.width(), 2)


@sized
def loop_layers(b: FuzzBuilder, x: T) -> T:
    """Layers that run several times, perhaps with a branch inside and a tensor from outside."""
    x = b.conv(x, b.width(), kernel=1)
    other = b.conv(x, x.c, kernel=1)
    count, go = b.const(np.array(int(b.rng.integers(1, 4)), np.int64)), b.const(np.array(True))
    before, held = b.nodes, len(b.initializers)
    b.nodes = []
    trip, run, state = b.fresh("trip_"), b.fresh("run_"), b.fresh("state_")
    y = T(state, x.c, UNKNOWN, UNKNOWN)
    y = _either(b, y, x.c, 0) if b.rng.random() < 0.3 else b.act(b.conv(y, b.width(), kernel=1))
    y = b.conv(y, x.c, kernel=1)
    after = b.node("Add", y.name, str(b.rng.choice([state, other.name])))
    after = b.node("Tanh", after)
    go_on = b.node("Identity", run)
    inside = b.initializers[held:] if b.rng.random() < 0.5 else []
    b.initializers = b.initializers[: len(b.initializers) - len(inside)]
    inputs = [helper.make_tensor_value_info(trip, TensorProto.INT64, []),
              helper.make_tensor_value_info(run, TensorProto.BOOL, []),
              helper.make_tensor_value_info(state, b.kind, None)]  # fmt: skip
    outputs = [helper.make_tensor_value_info(go_on, TensorProto.BOOL, []),
               helper.make_tensor_value_info(after, b.kind, None)]  # fmt: skip
    body = helper.make_graph(b.nodes, b.fresh("g_"), inputs, outputs, inside)
    b.nodes = before
    return T(b.node("Loop", count, go, x.name, body=body), x.c, UNKNOWN, UNKNOWN)


def _either(b: FuzzBuilder, x: T, out: int, depth: int) -> T:
    if b.rng.random() < 0.5:
        decided = b.node("Squeeze", condition(b, x.name), b.const([0]))
    else:
        decided = b.input(str(b.rng.choice(["flag", "other_flag"])), TensorProto.BOOL, [])
    sides = []
    for _ in range(2):
        before, held = b.nodes, len(b.initializers)
        b.nodes = []
        how = int(b.rng.integers(4))
        if how == 0 and depth:
            y = _either(b, x, out, depth - 1)
        elif how == 1:
            y = b.conv(b.act(b.conv(x, b.width(), kernel=1)), out, kernel=1)
        elif how == 2 and x.c == out:
            y = b.act(x)
        else:
            y = b.act(b.conv(x, out, kernel=1))
        result = b.node("Identity", y.name) if b.rng.random() < 0.3 else y.name
        inside = b.initializers[held:] if b.rng.random() < 0.5 else []
        b.initializers = b.initializers[: len(b.initializers) - len(inside)]
        info = helper.make_tensor_value_info(result, b.kind, None)
        sides.append(helper.make_graph(b.nodes, b.fresh("g_"), [], [info], inside))
        b.nodes = before
    return T(b.node("If", decided, then_branch=sides[0], else_branch=sides[1]), out, UNKNOWN, UNKNOWN)


@sized
def positions(b: FuzzBuilder, x: T) -> T:
    """Coordinates of every row or column, weighted by channel."""
    x = b.conv(x, b.width(), kernel=1)
    axis = _axis(b)
    count = b.node("Squeeze", size(b, x.name, axis), b.const([0]))
    line = b.node("Range", b.const(np.array(0, np.int64)), count, b.const(np.array(1, np.int64)))
    line = _as_float(b, line)
    line = b.node("Div", line, _as_float(b, size(b, x.name, axis)))
    line = b.node("Reshape", line, b.const([1, 1, -1, 1] if axis == 2 else [1, 1, 1, -1]))
    return T(b.node("Add", x.name, b.node("Mul", line, b.weight(1, x.c, 1, 1, spread=1.0))), x.c, UNKNOWN, UNKNOWN)


@sized
def stretched(b: FuzzBuilder, x: T) -> T:
    """The mean of all places beside each of them."""
    x = b.conv(x, b.width(), kernel=1)
    target = b.node("Shape", x.name)
    if b.rng.random() < 0.5:
        target = shape(b, size(b, x.name, 0), _width(b, x), size(b, x.name, 2), size(b, x.name, 3))
    y = b.node("Expand", b.mean(x.name), target)
    y = b.conv(T(b.node("Concat", x.name, y, axis=1), 2 * x.c, UNKNOWN, UNKNOWN), b.width(), kernel=1)
    return b.act(y)


@sized
def split_by_size(b: FuzzBuilder, x: T) -> T:
    """Two parts of computed sizes, of which one is worked on."""
    x = b.conv(x, b.width(), kernel=1)
    axis = _axis(b)
    whole = size(b, x.name, axis)
    first = within(b, number(b, x.name), whole)
    one, two = b.node("Split", x.name, shape(b, first, b.node("Sub", whole, first)), outputs=2, axis=axis)
    return T(b.node("Concat", b.node("Relu", one), two, axis=axis), x.c, UNKNOWN, UNKNOWN)


@sized
def resized(b: FuzzBuilder, x: T) -> T:
    """Resize to computed sizes."""
    x = b.conv(x, b.width(), kernel=1)
    low, high = b.const([1]), b.const([24])
    sides = [b.node("Max", b.node("Min", number(b, x.name), high), low) for _ in range(2)]
    target = shape(b, size(b, x.name, 0), _width(b, x), *sides)
    return b.unit(T(b.node("Resize", x.name, "", "", target), x.c, UNKNOWN, UNKNOWN), b.width(), kernel=1)


@sized
def largest(b: FuzzBuilder, x: T) -> T:
    """The largest rows of every column, at most three."""
    x = b.conv(x, b.width(), kernel=1)
    count = b.node("Min", size(b, x.name, 2), b.const([3]))
    values, _ = b.node("TopK", x.name, count, outputs=2, axis=2)
    return T(values, x.c, UNKNOWN, UNKNOWN)


@sized
def strided_image(b: FuzzBuilder, x: T) -> T:
    """A convolution by strides, and what it left out put back by Resize to the earlier size."""
    x = b.unit(x, b.width(), kernel=1)
    y = b.unit(x, x.c, stride=2)
    target = shape(b, size(b, x.name, 0), size(b, x.name, 1), size(b, x.name, 2), size(b, x.name, 3))
    y = T(b.node("Resize", y.name, "", "", target), x.c, UNKNOWN, UNKNOWN)
    return T(b.node("Add", x.name, y.name), x.c, UNKNOWN, UNKNOWN)


@sized
def sequence(b: FuzzBuilder, x: T) -> T:
    """A second input with a length of its own, as a gate."""
    z = b.input("z", b.kind, [b.batch, "L", 3])
    out = b.width()
    y = b.node("Tanh", b.node("MatMul", z, b.weight(3, out)))
    if b.rng.random() < 0.5:  # the first elements only
        y = cut(b, y, b.const([0]), within(b, number(b, x.name), size(b, y, 1)), 1)
    if b.opset >= 18:
        y = b.node("ReduceMean", y, b.const([1]), keepdims=0)
    else:
        y = b.node("ReduceMean", y, axes=[1], keepdims=0)
    y = b.node("MatMul", y, b.weight(out, x.c))
    y = b.node("Reshape", y, b.const([0, x.c, 1, 1]))
    return T(b.node("Mul", x.name, b.node("Sigmoid", y)), x.c, UNKNOWN, UNKNOWN)


@sized
def attended(b: FuzzBuilder, x: T) -> T:
    """Every place attends to a second input with a length and a mask of its own."""
    dim = 4
    z = b.input("tokens", b.kind, [b.batch, "L", 3], shared=True)
    mask = b.input("mask", TensorProto.BOOL, [b.batch, "L"], shared=True)
    y = b.node("Reshape", x.name, shape(b, size(b, x.name, 0), b.const([x.c, -1])))
    q = b.node("MatMul", b.node("Transpose", y, perm=[0, 2, 1]), b.weight(x.c, dim, spread=x.c**-0.5))
    k, v = (b.node("MatMul", z, b.weight(3, n)) for n in (dim, x.c))
    weights = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 2, 1]))
    shown = b.node("Unsqueeze", mask, b.const([1]))
    weights = b.node("Where", shown, weights, b.const(np.full(1, -100, b.dtype)))
    y = b.node("MatMul", b.node("Softmax", weights, axis=-1), v)
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1]), b.node("Shape", x.name))
    return b.conv(T(b.node("Add", x.name, y), x.c, UNKNOWN, UNKNOWN), b.width(), kernel=1)


@sized
def switched(b: FuzzBuilder, x: T) -> T:
    """A bool input that chooses between two values for every sample."""
    on = b.input("on", TensorProto.BOOL, [b.batch, 1, 1, 1])
    x = b.conv(x, b.width(), kernel=1)
    other = b.conv(x, x.c, kernel=1) if b.rng.random() < 0.5 else b.act(x)
    return T(b.node("Where", on, x.name, other.name), x.c, UNKNOWN, UNKNOWN)


@sized
def bytes_image(b: FuzzBuilder, x: T) -> T:
    """A second image, of bytes and of a size of its own, as a gate."""
    image = b.input("bytes", TensorProto.UINT8, [b.batch, 3, "BH", "BW"])
    y = b.node("Mul", b.node("Cast", image, to=b.kind), b.const(np.full(1, 1 / 255, b.dtype)))
    y = b.unit(T(y, 3, UNKNOWN, UNKNOWN), b.width(), kernel=1)
    y = b.conv(T(b.mean(y.name), y.c, 1, 1), x.c, kernel=1)
    return T(b.node("Mul", x.name, b.node("Sigmoid", y.name)), x.c, UNKNOWN, UNKNOWN)


def fixed(b: FuzzBuilder, x: T, side: int) -> T:
    """An image of fixed size, padded and cut: blocks that state sizes follow."""
    missing = [b.node("Max", b.node("Sub", b.const([side]), size(b, x.name, axis)), b.const([0])) for axis in (2, 3)]
    y = b.node("Pad", x.name, shape(b, b.const([0, 0, 0, 0, 0, 0]), *missing))
    y = b.slice(b.slice(y, 0, side, 2), 0, side, 3)
    return T(y, x.c, side, side)


# -------------------------------------------------------------------------------------------------- hidden parts


@hidden(decides=True)
def thresholded_relu(b: FuzzBuilder, x: T) -> T:
    """Beside the trunk, above a threshold that inputs at unit scale may never reach."""
    y = b.conv(x, x.c, kernel=1)
    alpha = float(b.rng.choice([0.3, 1.0, 6.0, 30.0]))
    return T(b.node("Add", x.name, b.node("ThresholdedRelu", y.name, alpha=alpha)), x.c, x.h, x.w)


@hidden(decides=True)
def shrink(b: FuzzBuilder, x: T) -> T:
    """Beside the trunk, outside of an interval that inputs at unit scale may never leave."""
    y = b.conv(x, x.c, kernel=1)
    y = T(b.node("Shrink", y.name, lambd=float(b.rng.choice([0.3, 6.0, 30.0])), bias=0.2), x.c, x.h, x.w)
    return T(b.node("Add", x.name, b.conv(y, x.c, kernel=1).name), x.c, x.h, x.w)


@hidden()
def dead(b: FuzzBuilder, x: T) -> T:
    """A branch behind a Relu that inputs at unit scale do not pass."""
    y = b.conv(x, b.width(), kernel=1)
    height = b.const(np.full(1, b.rng.choice([3, 8, 20]), b.dtype))
    y = T(b.node("Relu", b.node("Sub", y.name, height)), y.c, x.h, x.w)
    return T(b.node("Add", x.name, b.conv(y, x.c, kernel=1).name), x.c, x.h, x.w)


@hidden()
def saturated(b: FuzzBuilder, x: T) -> T:
    """A gate that is almost one everywhere."""
    y = b.conv(b.unit(x, b.width(), kernel=1), x.c, kernel=1)
    y = T(b.node("Add", y.name, b.const(np.full(1, 12, b.dtype))), x.c, x.h, x.w)
    return T(b.node("Mul", x.name, b.node("Sigmoid", y.name)), x.c, x.h, x.w)


@hidden()
def magnitudes(b: FuzzBuilder, x: T) -> T:
    """Channels of very different magnitude, which the next convolution evens out."""
    x = b.conv(x, b.width(), kernel=1)
    scale = 10.0 ** b.rng.uniform(*((-3, 3) if b.dtype != np.float16 else (-1, 1)), x.c)
    y = b.node("Mul", x.name, b.weight(x.c, 1, 1, values=scale.reshape(-1, 1, 1)))
    y = b.node("Mul", b.act(T(y, x.c, x.h, x.w)).name, b.weight(x.c, 1, 1, values=1 / scale.reshape(-1, 1, 1)))
    return T(y, x.c, x.h, x.w)


@hidden()
def exposed_constant(b: FuzzBuilder, x: T) -> T:
    """An initializer that is an output of the model, too: the bias of the next layer, or one that nothing reads."""
    out = b.width()
    free = b.rng.random() < 0.5
    w = b.const((b.rng.standard_normal((x.c, out)) * x.c**-0.5).astype(b.dtype), "w_")
    bias = b.const(b.rng.standard_normal(out).astype(b.dtype), "w_")
    shown, count = (b.const(np.ones(3, b.dtype), "w_"), 3) if free else (bias, out)
    b.outputs.append(helper.make_tensor_value_info(shown, b.kind, [count]))
    y = b.node("Add", b.node("MatMul", b.node("Transpose", x.name, perm=[0, 2, 3, 1]), w), bias)
    return T(b.node("Transpose", y, perm=[0, 3, 1, 2]), out, x.h, x.w)
