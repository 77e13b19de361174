"""Seeded random ONNX graphs with coupled channels, built block by block; hypothesis draws and shrinks a `Spec`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

# The same examples every time, so that a failure belongs to the change that made it; `make test-random` draws new ones.
PROPERTY = functools.partial(
    settings,
    deadline=None,
    derandomize=not os.environ.get("ONNXPRUNE_RANDOM"),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
Array = npt.NDArray[Any]
OPSETS = (11, 13, 17, 18, 20, 21)
_DISGUISES = ("plain", "plain", "constant", "identity", "transpose", "cast")


@dataclass(frozen=True)
class Spec:
    """One random graph: the same spec gives the same bytes.

    Attributes:
        blocks: names of `BLOCKS`, in order; one that needs a newer opset gives way to a convolution.
        seed: of all weights and of the blocks' own choices.
        head: "flatten", "pool" (global average pool and Gemm) or "conv" (dense prediction).
        dynamic: whether the batch is symbolic.
        disguise: whether weights may hide behind Constant, Identity, Transpose or Cast nodes.
        half: float16 instead of float32.
    """

    blocks: tuple[str, ...]
    seed: int = 0
    opset: int = 17
    head: str = "pool"
    dynamic: bool = True
    disguise: bool = False
    half: bool = False


@dataclass(frozen=True)
class T:
    """An activation [N, c, h, w]."""

    name: str
    c: int
    h: int
    w: int


class Builder:
    """Collects nodes and initializers; methods return the names of what they make."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.opset = spec.opset
        self.rng = np.random.default_rng(spec.seed)
        self.dtype: np.dtype[Any] = np.dtype(np.float16 if spec.half else np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.used = 0

    def fresh(self, prefix: str) -> str:
        """A name not yet used."""
        self.used += 1
        return f"{prefix}{self.used}"

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """Adds a node; the name of its output, or all of them if there are several."""
        names = [self.fresh(op.lower() + "_") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.fresh("n_"), **attrs))
        return names[0] if outputs == 1 else names

    def const(self, values: Array | Sequence[int], prefix: str = "k_") -> str:
        """An initializer as it is."""
        name = self.fresh(prefix)
        array = values if isinstance(values, np.ndarray) else np.array(values, np.int64)
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def weight(self, *shape: int, spread: float | None = None, values: Array | None = None) -> str:
        """A random weight, perhaps behind another node."""
        if values is None:
            fan = int(np.prod(shape[1:])) or 1
            values = self.rng.standard_normal(shape) * (spread if spread is not None else fan**-0.5)
        array = np.asarray(values).astype(self.dtype)
        how = str(self.rng.choice(_DISGUISES)) if self.spec.disguise else "plain"
        if how == "constant":
            name = self.fresh("w_")
            tensor = numpy_helper.from_array(array)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
            return name
        if how == "identity":
            return str(self.node("Identity", self.const(array, "w_")))
        if how == "transpose" and array.ndim > 1:
            perm = self.rng.permutation(array.ndim).tolist()
            return str(self.node("Transpose", self.const(array.transpose(perm), "w_"), perm=np.argsort(perm).tolist()))
        if how == "cast" and not self.spec.half:
            other = np.float32 if self.dtype == np.float64 else np.float64
            wide = self.const(array.astype(other), "w_")
            return str(self.node("Cast", wide, to=helper.np_dtype_to_tensor_dtype(self.dtype)))
        return self.const(array, "w_")

    # ------------------------------------------------------------------------------------------------ small parts

    def conv(self, x: T, out: int, kernel: int = 3, stride: int = 1, group: int = 1, bias: bool = True) -> T:
        """Conv with "same" padding."""
        w = self.weight(out, x.c // group, kernel, kernel)
        extra = [self.weight(out, spread=0.5)] if bias else []
        pad = kernel // 2
        y = self.node("Conv", x.name, w, *extra, group=group, pads=[pad] * 4, strides=[stride] * 2,
                      kernel_shape=[kernel] * 2)  # fmt: skip
        return T(y, out, (x.h - 1) // stride + 1, (x.w - 1) // stride + 1)

    def bn(self, x: T) -> T:
        """BatchNormalization with random statistics: its shift leaks into channels whose filters are zero."""
        scale, shift, mean = (self.weight(x.c, spread=s) for s in (1.0, 0.7, 0.5))
        var = self.weight(x.c, values=self.rng.uniform(0.4, 2.0, x.c))
        return T(self.node("BatchNormalization", x.name, scale, shift, mean, var), x.c, x.h, x.w)

    def act(self, x: T) -> T:
        """One of the activations."""
        op = str(self.rng.choice(["Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Softplus"]))
        return T(self.node(op, x.name), x.c, x.h, x.w)

    def unit(self, x: T, out: int, **kw: Any) -> T:
        """Conv, perhaps BatchNormalization, perhaps an activation."""
        y = self.conv(x, out, **kw)
        if self.rng.random() < 0.6:
            y = self.bn(y)
        return self.act(y) if self.rng.random() < 0.8 else y

    def width(self, low: int = 2, high: int = 6) -> int:
        """An even number of channels."""
        return 2 * int(self.rng.integers(low, high + 1))

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
        """Split, spelled as the opset wants it; an equal one sometimes without sizes."""
        implicit = len(set(sizes)) == 1 and bool(self.rng.random() < 0.5)
        attrs: dict[str, Any] = {"axis": axis}
        extra: list[str] = []
        if implicit and self.opset >= 18:
            attrs["num_outputs"] = len(sizes)
        elif not implicit and self.opset < 13:
            attrs["split"] = list(sizes)
        elif not implicit:
            extra = [self.const(list(sizes))]
        return list(self.node("Split", x, *extra, outputs=len(sizes), **attrs))

    def slice(self, x: str, start: int, end: int, axis: int = 1, step: int = 1) -> str:
        """Slice of one axis."""
        return str(self.node("Slice", x, *(self.const([v]) for v in (start, end, axis, step))))


# --------------------------------------------------------------------------------------------------------- blocks

Block = Callable[[Builder, T], T]
BLOCKS: dict[str, Block] = {}
NEWER: dict[str, int] = {}
HALF: set[str] = set()  # blocks whose operators onnxruntime's CPU provider runs in float16


def block(since: int = 0, half: bool = False) -> Callable[[Block], Block]:
    """Registers a block under its function's name."""

    def add(function: Block) -> Block:
        name = function.__name__
        BLOCKS[name] = function
        if since:
            NEWER[name] = since
        if half:
            HALF.add(name)
        return function

    return add


@block(half=True)
def conv(b: Builder, x: T) -> T:
    return b.unit(x, b.width(), kernel=int(b.rng.choice([1, 3])))


@block(half=True)
def strided(b: Builder, x: T) -> T:
    return b.unit(x, b.width(), stride=2 if x.h > 2 else 1)


@block(half=True)
def residual(b: Builder, x: T) -> T:
    y = b.conv(b.unit(x, b.width()), x.c)
    return b.act(T(b.node("Add", x.name, y.name), x.c, x.h, x.w))


@block(half=True)
def projection(b: Builder, x: T) -> T:
    out = b.width()
    y = b.bn(b.conv(b.unit(x, b.width()), out))
    s = b.conv(x, out, kernel=1)
    return T(b.node("Add", y.name, s.name), out, x.h, x.w)


@block(half=True)
def dense(b: Builder, x: T) -> T:
    y = b.unit(x, b.width(2, 3))
    return b.bn(T(b.node("Concat", x.name, y.name, axis=1), x.c + y.c, x.h, x.w))


@block()
def split_equal(b: Builder, x: T) -> T:
    x = b.conv(x, b.width())
    left, right = b.split(x.name, [x.c // 2] * 2)
    y = b.unit(T(left, x.c // 2, x.h, x.w), b.width(2, 3))
    return T(b.node("Concat", y.name, right, axis=1), y.c + x.c // 2, x.h, x.w)


@block()
def split_unequal(b: Builder, x: T) -> T:
    x = b.conv(x, b.width())
    first = int(b.rng.integers(1, x.c - 1))
    left, right = b.split(x.name, [first, x.c - first])
    y = b.conv(T(right, x.c - first, x.h, x.w), first)
    return T(b.node("Mul", b.node("Sigmoid", left), y.name), first, x.h, x.w)


@block()
def gated(b: Builder, x: T) -> T:
    """GLU: two halves of one convolution multiplied."""
    x = b.conv(x, b.width())
    left, right = b.split(x.name, [x.c // 2] * 2)
    return T(b.node("Mul", left, b.node("Sigmoid", right)), x.c // 2, x.h, x.w)


@block()
def shuffle(b: Builder, x: T) -> T:
    x = b.unit(x, 4 * int(b.rng.integers(2, 4)))
    groups = int(b.rng.choice([2, 4]))
    y = b.node("Reshape", x.name, b.const([0, groups, x.c // groups, x.h, x.w]))
    y = b.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    lead = 0 if b.rng.random() < 0.5 else -1
    y = b.node("Reshape", y, b.const([lead, x.c, x.h, x.w]))
    return b.conv(T(y, x.c, x.h, x.w), b.width())


@block()
def shuffle_depthwise(b: Builder, x: T) -> T:
    """ShuffleNetV2: half passes, half is worked on, both shuffled."""
    x = b.unit(x, 8)
    left, right = b.split(x.name, [4, 4])
    y = b.conv(T(right, 4, x.h, x.w), 4, group=4)
    y = b.unit(y, 4, kernel=1)
    z = b.node("Concat", left, y.name, axis=1)
    z = b.node("Reshape", z, b.const([0, 2, 4, x.h, x.w]))
    z = b.node("Transpose", z, perm=[0, 2, 1, 3, 4])
    return T(b.node("Reshape", z, b.const([0, 8, x.h, x.w])), 8, x.h, x.w)


@block(half=True)
def depthwise(b: Builder, x: T) -> T:
    y = b.unit(x, b.width(), kernel=1)
    y = b.bn(b.conv(y, y.c * int(b.rng.choice([1, 1, 2])), group=y.c))
    return b.conv(y, b.width(), kernel=1)


@block()
def grouped_blocks(b: Builder, x: T) -> T:
    x = b.unit(x, 12)
    y = b.unit(x, 12 * int(b.rng.choice([1, 2])), group=6)
    return b.conv(y, b.width(), kernel=1)


@block()
def grouped_positions(b: Builder, x: T) -> T:
    x = b.unit(x, 12)
    return b.conv(b.unit(x, int(b.rng.choice([8, 12])), group=2), b.width(), kernel=1)


@block()
def conv_transpose(b: Builder, x: T) -> T:
    group = int(b.rng.choice([1, 1, 2, 4]))
    x = b.unit(x, 8)
    out = int(b.rng.choice([4, 8]))
    w = b.weight(8, out // group, 2, 2, spread=0.3)
    y = b.node("ConvTranspose", x.name, w, b.weight(out, spread=0.5), strides=[2, 2], group=group)
    return b.unit(T(y, out, 2 * x.h, 2 * x.w), b.width(), stride=2)


@block(half=True)
def squeeze_excite(b: Builder, x: T) -> T:
    s = T(b.node("GlobalAveragePool", x.name), x.c, 1, 1)
    s = b.conv(s, b.width(2, 3), kernel=1)
    s = b.conv(T(b.node("Relu", s.name), s.c, 1, 1), x.c, kernel=1)
    return T(b.node("Mul", x.name, b.node("Sigmoid", s.name)), x.c, x.h, x.w)


@block()
def option_a(b: Builder, x: T) -> T:
    """The CIFAR ResNets' shortcut: every second pixel, channels padded with zeros."""
    extra = 2 * int(b.rng.integers(1, 3))
    before = int(b.rng.integers(0, extra + 1))
    s = b.slice(b.slice(x.name, 0, x.h, 2, 2), 0, x.w, 3, 2)
    h, w = (x.h + 1) // 2, (x.w + 1) // 2
    s = b.node("Pad", s, b.const([0, before, 0, 0, 0, extra - before, 0, 0]))
    y = b.conv(b.unit(x, b.width()), x.c + extra, stride=2)
    return b.act(T(b.node("Add", y.name, s), x.c + extra, h, w))


@block()
def shared_weight(b: Builder, x: T) -> T:
    """One convolution applied twice, as a detector's head is to several scales."""
    x = b.conv(x, 6)
    w, bias = b.weight(6, 6, 3, 3), b.weight(6, spread=0.5)
    y = b.node("Conv", x.name, w, bias, pads=[1, 1, 1, 1])
    y = b.node("Conv", b.node("Relu", y), w, bias, pads=[1, 1, 1, 1])
    return T(y, 6, x.h, x.w)


def _tokens(b: Builder, x: T) -> tuple[str, int, int]:
    length = x.h * x.w
    y = b.node("Transpose", b.node("Reshape", x.name, b.const([0, x.c, length])), perm=[0, 2, 1])
    return y, length, x.c


def _image(b: Builder, y: str, like: T, c: int) -> T:
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1]), b.const([0, c, like.h, like.w]))
    return T(y, c, like.h, like.w)


def _linear(b: Builder, y: str, k: int, n: int) -> str:
    w = b.weight(k, n, spread=k**-0.5)
    y = b.node("MatMul", y, w)
    bias = b.weight(n, spread=0.3)
    return str(b.node("Add", *([y, bias] if b.rng.random() < 0.5 else [bias, y])))


@block()
def attention(b: Builder, x: T) -> T:
    tokens, length, c = _tokens(b, x)
    heads, dim = int(b.rng.choice([2, 4])), int(b.rng.choice([3, 4]))

    def head(perm: list[int]) -> str:
        y = b.node("Reshape", _linear(b, tokens, c, heads * dim), b.const([0, length, heads, dim]))
        return str(b.node("Transpose", y, perm=perm))

    q, k, v = head([0, 2, 1, 3]), head([0, 2, 3, 1]), head([0, 2, 1, 3])
    weights = b.node("MatMul", b.node("Mul", q, b.const(np.array(dim**-0.5, b.dtype))), k)
    y = b.node("MatMul", b.node("Softmax", weights, axis=-1 if b.opset >= 13 else 3), v)
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.const([0, length, heads * dim]))
    y = b.node("Add", tokens, _linear(b, y, heads * dim, c))
    return _image(b, y, x, c)


@block()
def packed_attention(b: Builder, x: T) -> T:
    """Queries, keys and values from one product, as timm exports them."""
    tokens, length, c = _tokens(b, x)
    heads, dim = 3, 4
    y = b.node("Reshape", _linear(b, tokens, c, 3 * heads * dim), b.const([0, length, 3, heads, dim]))
    y = b.node("Transpose", y, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.node("Gather", y, b.const(np.array(i, np.int64)), axis=0) for i in range(3))
    weights = b.node("MatMul", q, b.node("Transpose", k, perm=[0, 1, 3, 2]))
    y = b.node("MatMul", b.node("Softmax", weights, axis=-1 if b.opset >= 13 else 3), v)
    y = b.node("Reshape", b.node("Transpose", y, perm=[0, 2, 1, 3]), b.const([0, length, heads * dim]))
    return _image(b, _linear(b, y, heads * dim, c), x, c)


@block()
def mlp(b: Builder, x: T) -> T:
    tokens, _, c = _tokens(b, x)
    hidden = b.width(3, 8)
    y = b.node("Relu", _linear(b, tokens, c, hidden))
    return _image(b, b.node("Add", tokens, _linear(b, y, hidden, c)), x, c)


@block(since=17)
def layer_norm_mlp(b: Builder, x: T) -> T:
    tokens, _, c = _tokens(b, x)
    hidden = b.width(3, 8)
    y = b.node("LayerNormalization", tokens, b.weight(c, spread=1.0), b.weight(c, spread=0.3), axis=-1)
    y = b.node("Tanh", _linear(b, y, c, hidden))
    return _image(b, b.node("Add", tokens, _linear(b, y, hidden, c)), x, c)


@block()
def prelu(b: Builder, x: T) -> T:
    x = b.conv(x, b.width())
    slope = b.weight(x.c, 1, 1, spread=0.5) if b.rng.random() < 0.7 else b.weight(1, spread=0.5)
    return T(b.node("PRelu", x.name, slope), x.c, x.h, x.w)


@block()
def scaled(b: Builder, x: T) -> T:
    """A per-channel scale and shift in the shapes exporters write them."""
    shape = [(x.c, 1, 1), (1, x.c, 1, 1)][int(b.rng.integers(2))]
    y = b.node("Mul", x.name, b.weight(*shape, spread=1.0))
    return T(b.node("Add", b.weight(*shape, spread=1.0), y), x.c, x.h, x.w)


@block()
def instance_norm(b: Builder, x: T) -> T:
    x = b.conv(x, b.width())
    y = b.node("InstanceNormalization", x.name, b.weight(x.c, spread=1.0), b.weight(x.c, spread=0.5))
    return T(y, x.c, x.h, x.w)


@block(since=21)  # the checker rejects its first form, deprecated in opset 18 itself
def group_norm(b: Builder, x: T) -> T:
    x = b.conv(x, 12)
    groups = int(b.rng.choice([2, 3, 6]))
    y = b.node("GroupNormalization", x.name, b.weight(12, spread=1.0), b.weight(12, spread=0.5), num_groups=groups)
    return b.conv(T(y, 12, x.h, x.w), b.width(), kernel=1)


@block()
def nhwc(b: Builder, x: T) -> T:
    """A section in channels-last order, as tf2onnx leaves it."""
    y = b.node("Transpose", x.name, perm=[0, 2, 3, 1])
    y = b.node("Add", b.node("MatMul", y, b.weight(x.c, 8, spread=x.c**-0.5)), b.weight(8, spread=0.5))
    y = b.node("Mul", y, b.weight(8, spread=1.0))
    return T(b.node("Transpose", y, perm=[0, 3, 1, 2]), 8, x.h, x.w)


@block()
def gather(b: Builder, x: T) -> T:
    x = b.conv(x, 8)
    index = b.rng.permutation(8)[: int(b.rng.integers(2, 9))].astype(np.int64)
    index = np.where(b.rng.random(len(index)) < 0.3, index - 8, index)
    y = T(b.node("Gather", x.name, b.const(index), axis=1), len(index), x.h, x.w)
    return b.conv(y, b.width())


@block()
def channel_slice(b: Builder, x: T) -> T:
    x = b.conv(x, 8)
    start, step = int(b.rng.integers(0, 4)), int(b.rng.choice([1, 1, 2]))
    count = len(range(start, 8, step))
    return b.conv(T(b.slice(x.name, start, 2**31 - 1, 1, step), count, x.h, x.w), b.width())


@block()
def one_channel(b: Builder, x: T) -> T:
    """A single channel picked as a gate for the others."""
    x = b.conv(x, 6)
    place = int(b.rng.integers(0, 6))
    if b.rng.random() < 0.5:
        gate = b.slice(x.name, place, place + 1)
    else:
        gate = b.node("Gather", x.name, b.const([place]), axis=1)
    return T(b.node("Mul", x.name, b.node("Sigmoid", gate)), 6, x.h, x.w)


@block()
def depth_to_space(b: Builder, x: T) -> T:
    x = b.conv(x, 4 * int(b.rng.choice([1, 2, 3])))
    y = b.node("DepthToSpace", x.name, blocksize=2, mode=str(b.rng.choice(["DCR", "CRD"])))
    return b.unit(T(y, x.c // 4, 2 * x.h, 2 * x.w), b.width(), stride=2)


@block()
def space_to_depth(b: Builder, x: T) -> T:
    x = b.conv(x, b.width(2, 3))
    if x.h % 2 or x.w % 2:
        return x
    y = b.node("SpaceToDepth", x.name, blocksize=2)
    return b.conv(T(y, 4 * x.c, x.h // 2, x.w // 2), b.width(), kernel=1)


@block()
def resize(b: Builder, x: T) -> T:
    x = b.conv(x, b.width())
    if b.rng.random() < 0.5 or b.spec.dynamic:
        extra = [b.const(np.array([1, 1, 2, 2], np.float32))]
    else:
        extra = ["" if b.opset >= 13 else b.const(np.zeros(0, np.float32)), b.const([BATCH, x.c, 2 * x.h, 2 * x.w])]
    extra = ["" if b.opset >= 13 else b.const(np.zeros(0, np.float32)), *extra]  # roi, not optional in opset 11
    y = b.node("Resize", x.name, *extra, mode="nearest")
    return b.unit(T(y, x.c, 2 * x.h, 2 * x.w), b.width(), stride=2)


@block()
def pad(b: Builder, x: T) -> T:
    y = b.node("Pad", x.name, b.const([0, 0, 1, 0, 0, 0, 0, 1]), mode=str(b.rng.choice(["constant", "edge"])))
    w = b.weight(8, x.c, 2, 2)
    return T(b.node("Conv", y, w), 8, x.h, x.w)


@block()
def pools(b: Builder, x: T) -> T:
    x = b.unit(x, b.width())
    op = str(b.rng.choice(["MaxPool", "AveragePool"]))
    return T(b.node(op, x.name, kernel_shape=[3, 3], pads=[1, 1, 1, 1]), x.c, x.h, x.w)


@block()
def runtime_flatten(b: Builder, x: T) -> T:
    """Shape arithmetic as TorchScript writes `x.view(x.size(0), 2, -1)` and back."""
    x = b.conv(x, b.width())
    batch = b.node("Gather", b.node("Shape", x.name), b.const([0]), axis=0)
    y = b.node("Reshape", x.name, b.node("Concat", batch, b.const([x.c, x.h * x.w]), axis=0))
    y = b.node("Reshape", y, b.node("Concat", batch, b.const([x.c, x.h, x.w]), axis=0))
    return b.conv(T(y, x.c, x.h, x.w), b.width(), kernel=1)


@block()
def channel_sum(b: Builder, x: T) -> T:
    """A sum over channels as a gate: a contraction without a weight."""
    x = b.conv(x, b.width())
    if b.opset >= 13:
        s = b.node("ReduceSum", x.name, b.const([1]), keepdims=1)
    else:
        s = b.node("ReduceSum", x.name, axes=[1], keepdims=1)
    y = b.conv(x, b.width(), kernel=1)
    return T(b.node("Mul", y.name, b.node("Tanh", s)), y.c, y.h, y.w)


BATCH = 2
CLASSES = 5
SIDE = 6


def build(spec: Spec) -> onnx.ModelProto:
    """The model of a spec."""
    b = Builder(spec)
    kind = TensorProto.FLOAT16 if spec.half else TensorProto.FLOAT
    batch: str | int = "N" if spec.dynamic else BATCH
    x = b.unit(T("x", 3, SIDE, SIDE), b.width())
    for name in spec.blocks:
        allowed = spec.opset >= NEWER.get(name, 0) and (not spec.half or name in HALF)
        x = (BLOCKS[name] if allowed else conv)(b, x)
    if spec.head == "flatten":
        y = b.node("Flatten", x.name)
        size, w = x.c * x.h * x.w, (CLASSES, x.c * x.h * x.w)
        y = b.node("Gemm", y, b.weight(*w, spread=size**-0.5), b.weight(CLASSES, spread=0.3), transB=1)
        shape: list[str | int] = [batch, CLASSES]
    elif spec.head == "pool":
        y = b.node("Flatten", b.node("GlobalAveragePool", x.name))
        y = b.node("Gemm", y, b.weight(x.c, CLASSES, spread=1.0), b.weight(CLASSES, spread=0.3))
        shape = [batch, CLASSES]
    else:
        y = b.conv(x, 2, kernel=1).name
        shape = [batch, 2, x.h, x.w]
    b.nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        b.nodes,
        "random",
        [helper.make_tensor_value_info("x", kind, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", kind, shape)],
        b.initializers,
    )
    ir = 10 if spec.opset >= 21 else 9 if spec.opset >= 20 else 8
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", spec.opset)], ir_version=ir)


def specs(max_blocks: int = 4, half: bool = False) -> st.SearchStrategy[Spec]:
    """Specs of random graphs; with `half` also float16 ones."""
    return st.builds(
        Spec,
        blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=max_blocks).map(tuple),
        seed=st.integers(0, 2**16),
        opset=st.sampled_from(OPSETS),
        head=st.sampled_from(("pool", "flatten", "conv")),
        dynamic=st.sampled_from((True, True, True, False)),
        disguise=st.booleans(),
        half=st.sampled_from((False, False, False, False, True)) if half else st.just(False),
    )


def removal(channels: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Random channels of a group to remove, never all of them."""
    count = int(rng.integers(0, channels))
    return tuple(sorted(rng.choice(channels, count, replace=False).tolist()))
