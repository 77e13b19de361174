"""Random nets with a normalised residual stream: small transformers and their kin, block by block from a `Stream`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

from random_graphs.graphs import Builder, Spec

TOKENS = 5
WORDS = 11
CLASSES = 4


@dataclass(frozen=True)
class Stream:
    """One random net: the same gives the same bytes.

    Attributes:
        blocks: names of `BLOCKS`, in order.
        seed: of weights and of the blocks' own choices.
        words: whether tokens come from an embedding table, else from patches of an image.
        opset: below 17 LayerNormalization is decomposed, as TorchScript exports it.
        disguise: whether weights may hide behind other nodes.
        half: float16 instead of float32; then the outputs are logits of every token, since behind one token's Softmax
            the tolerance of float16 would let mistakes through.
    """

    blocks: tuple[str, ...]
    seed: int = 0
    words: bool = True
    opset: int = 17
    disguise: bool = False
    half: bool = False


class Net(Builder):
    """A builder of [N, TOKENS, width] activations."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(Spec((), seed=stream.seed, opset=stream.opset, disguise=stream.disguise, half=stream.half))
        self.width_ = 2 * int(self.rng.integers(3, 7))

    def number(self, value: float | list[float]) -> str:
        """A constant of the net's own type."""
        return self.const(np.array(value, self.dtype))

    def linear(self, x: str, k: int, n: int) -> str:
        """MatMul and Add."""
        y = self.node("MatMul", x, self.weight(k, n, spread=k**-0.5))
        return str(self.node("Add", y, self.weight(n, spread=0.3)))

    def reduce(self, op: str, x: str, axis: int) -> str:
        """A reduction, spelled as the opset wants it."""
        if self.opset >= 18 or (op == "ReduceSum" and self.opset >= 13):
            return str(self.node(op, x, self.const([axis]), keepdims=1))
        return str(self.node(op, x, axes=[axis], keepdims=1))

    def mean(self, x: str) -> str:
        """ReduceMean, or a sum and a constant that states the count."""
        how = int(self.rng.integers(4))
        if how == 0:
            return str(self.node("Div", self.reduce("ReduceSum", x, -1), self.number(self.width_)))
        if how == 1:
            share = self.number([1 / self.width_])
            return str(self.node("Mul", share, self.reduce("ReduceSum", x, -1)))
        return self.reduce("ReduceMean", x, -1)

    def norm(self, x: str) -> str:
        """LayerNorm over the stream: one operator, or the nine that it was before there was one."""
        c = self.width_
        scale, shift = self.weight(c, values=self.rng.uniform(0.5, 1.5, c)), self.weight(c, spread=0.3)
        if self.opset >= 17 and self.rng.random() < 0.7:
            return str(self.node("LayerNormalization", x, scale, shift, axis=-1))
        d = self.node("Sub", x, self.mean(x))
        var = self.mean(self.node("Pow", d, self.number(2)))
        deviation = self.node("Sqrt", self.node("Add", var, self.number(1e-5)))
        return str(self.node("Add", self.node("Mul", self.node("Div", d, deviation), scale), shift))

    def rms(self, x: str) -> str:
        """RMSNorm as transformers writes it."""
        mean = self.reduce("ReduceMean", self.node("Pow", x, self.number(2)), -1)
        root = self.node("Sqrt", self.node("Add", mean, self.number(1e-5)))
        y = self.node("Mul", x, self.node("Reciprocal", root))
        return str(self.node("Mul", self.weight(self.width_, values=self.rng.uniform(0.5, 1.5, self.width_)), y))

    def heads(self, x: str, heads: int, dim: int) -> str:
        """[N, heads, TOKENS, dim]."""
        y = self.node("Reshape", self.linear(x, self.width_, heads * dim), self.const([0, TOKENS, heads, dim]))
        return str(self.node("Transpose", y, perm=[0, 2, 1, 3]))

    def attend(self, x: str, heads: int, shared: int = 1) -> str:
        """Self-attention; each key and value head serves `shared` query heads."""
        dim = int(self.rng.choice([2, 4]))
        q, k, v = (self.heads(x, n, dim) for n in (heads * shared, heads, heads))
        if shared > 1:
            k, v = (self._repeated(t, heads, shared, dim) for t in (k, v))
        scores = self.node("MatMul", q, self.node("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.node("Mul", scores, self.number(dim**-0.5))
        y = self.node("MatMul", self.node("Softmax", scores, axis=-1 if self.opset >= 13 else 3), v)
        y = self.node("Transpose", y, perm=[0, 2, 1, 3])
        y = self.node("Reshape", y, self.const([0, TOKENS, heads * shared * dim]))
        return self.linear(str(y), heads * shared * dim, self.width_)

    def _repeated(self, t: str, heads: int, shared: int, dim: int) -> str:
        """As `repeat_kv` of transformers exports: Unsqueeze, Expand, Reshape."""
        y = self.node("Unsqueeze", t, self.const([2])) if self.opset >= 13 else self.node("Unsqueeze", t, axes=[2])
        y = self.node("Expand", y, self.const([1, heads, shared, TOKENS, dim]))
        return str(self.node("Reshape", y, self.const([0, heads * shared, TOKENS, dim])))


Block = Callable[[Net, str], str]
BLOCKS: dict[str, Block] = {}


def block(function: Block) -> Block:
    """Registers a block under its function's name."""
    BLOCKS[function.__name__] = function
    return function


@block
def attention(b: Net, x: str) -> str:
    return str(b.node("Add", x, b.attend(b.norm(x), 3)))


@block
def grouped_query(b: Net, x: str) -> str:
    return str(b.node("Add", x, b.attend(b.rms(x), 2, shared=3)))


@block
def mlp(b: Net, x: str) -> str:
    hidden = b.width(3, 6)
    y = b.node("Tanh", b.linear(b.norm(x), b.width_, hidden))
    return str(b.node("Add", x, b.linear(y, hidden, b.width_)))


@block
def post_norm(b: Net, x: str) -> str:
    """As the first transformers and BERT: the norm after the sum, in the stream itself."""
    hidden = b.width(3, 6)
    y = b.node("Relu", b.linear(x, b.width_, hidden))
    return b.norm(str(b.node("Add", x, b.linear(y, hidden, b.width_))))


@block
def gated(b: Net, x: str) -> str:
    """SwiGLU behind RMSNorm, as Llama."""
    y, hidden = b.rms(x), b.width(3, 6)
    gate, up = b.linear(y, b.width_, hidden), b.linear(y, b.width_, hidden)
    y = b.node("Mul", b.node("Mul", gate, b.node("Sigmoid", gate)), up)
    return str(b.node("Add", x, b.linear(y, hidden, b.width_)))


@block
def scaled(b: Net, x: str) -> str:
    """LayerScale: the branch times a constant per channel, as ConvNeXt and CaiT."""
    y = b.node("Mul", b.linear(b.norm(x), b.width_, b.width_), b.weight(b.width_, spread=0.5))
    return str(b.node("Add", x, y))


@block
def soft_gate(b: Net, x: str) -> str:
    """A Softmax over channels as a gate."""
    y = b.node("Softmax", b.linear(x, b.width_, b.width_), axis=-1 if b.opset >= 13 else 2)
    return str(b.node("Mul", x, y))


@block
def mean_gate(b: Net, x: str) -> str:
    """The mean and the maximum over channels, as in CBAM's spatial attention."""
    y = b.node("Add", b.reduce("ReduceMean", x, -1), b.reduce("ReduceMax", x, -1))
    return str(b.node("Mul", x, b.node("Sigmoid", y)))


@block
def unit_length(b: Net, x: str) -> str:
    """L2 normalisation: exact, a masked channel adds nothing to the norm."""
    root = b.node("Sqrt", b.reduce("ReduceSum", b.node("Mul", x, x), -1))
    return str(b.node("Add", x, b.node("Div", x, b.node("Add", root, b.number(0.1)))))


@block
def group_norm(b: Net, x: str) -> str:
    """GroupNorm of two groups, native where the opset has it."""
    c = b.width_
    y = b.node("Transpose", x, perm=[0, 2, 1])
    scale, shift = b.weight(c, values=b.rng.uniform(0.5, 1.5, c)), b.weight(c, spread=0.3)
    if b.opset >= 21:
        y = b.node("GroupNormalization", y, scale, shift, num_groups=2)
        return str(b.node("Add", x, b.node("Transpose", y, perm=[0, 2, 1])))
    y = b.node("Reshape", y, b.const([0, 2, c // 2 * TOKENS]))
    one, zero = b.number([1, 1]), b.number([0, 0])
    y = b.node("Reshape", b.node("InstanceNormalization", y, one, zero), b.const([0, c, TOKENS]))
    y = b.node("Add", b.node("Mul", b.node("Transpose", y, perm=[0, 2, 1]), scale), shift)
    return str(b.node("Add", x, y))


def build_stream(stream: Stream) -> onnx.ModelProto:
    """The model of a stream: tokens, a class token and places, blocks, a norm, a head on the class token."""
    b = Net(stream)
    c = b.width_
    kind = TensorProto.FLOAT16 if stream.half else TensorProto.FLOAT
    if stream.words:
        source = helper.make_tensor_value_info("x", TensorProto.INT64, ["N", TOKENS - 1])
        x = b.node("Gather", b.weight(WORDS, c, spread=1.0), "x")
    else:
        source = helper.make_tensor_value_info("x", kind, ["N", 3, 2, 2 * (TOKENS - 1)])
        x = b.node("Conv", "x", b.weight(c, 3, 2, 2), b.weight(c, spread=0.3), strides=[2, 2])
        x = b.node("Transpose", b.node("Reshape", x, b.const([0, c, TOKENS - 1])), perm=[0, 2, 1])
    batch = b.node("Gather", b.node("Shape", "x"), b.const([0]), axis=0)
    target = b.node("Concat", batch, b.const([-1, -1]) if stream.opset < 13 else b.const([1, c]), axis=0)
    if stream.opset < 13:  # as torch writes expand(n, -1, -1): a -1 that Where turns into 1
        minus = b.node("Equal", target, b.const([-1]))
        target = b.node("Where", minus, b.const([1]), target)
    first = b.node("Expand", b.weight(1, 1, c, spread=1.0), target)
    x = b.node("Concat", first, x, axis=1)
    x = b.node("Add", x, b.weight(1, TOKENS, c, spread=1.0))
    for name in stream.blocks:
        x = BLOCKS[name](b, x)
    y = b.norm(x)
    if stream.half:
        y = b.linear(y, c, CLASSES)
    else:
        y = b.node("Gather", y, b.const(np.array(0, np.int64)), axis=1)
        y = b.node("Gemm", y, b.weight(c, CLASSES, spread=1.0), b.weight(CLASSES, spread=0.3))
        b.node("Softmax", y, axis=-1 if stream.opset >= 13 else 1)
    b.nodes[-1].output[0] = "y"
    sink = helper.make_tensor_value_info("y", kind, ["N", TOKENS, CLASSES] if stream.half else ["N", CLASSES])
    graph = helper.make_graph(b.nodes, "stream", [source], [sink], b.initializers)
    ir = 10 if stream.opset >= 21 else 8
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", stream.opset)], ir_version=ir)


def streams(max_blocks: int = 3, half: bool = False) -> st.SearchStrategy[Stream]:
    """Random nets, of float16 with `half`."""
    return st.builds(
        Stream,
        blocks=st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=max_blocks).map(tuple),
        seed=st.integers(0, 2**16),
        words=st.booleans(),
        opset=st.sampled_from((11, 13, 17, 18, 21)),
        disguise=st.booleans(),
        half=st.just(half),
    )
