"""Masked reference: the original in which no consumer reads a removed channel, and removed blocks add zero.

Every contraction input has a mask. Masks select instead of multiply, because removed channels may be infinite or NaN.
If removed channels feed a statistic, its node runs on the kept channels instead (inexact groups). The operators that
may be masked or sliced are defined here, not by the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import VerificationError
from onnxprune.ir.model import Array
from onnxprune.ir.proto_graph import Graph, bodies
from onnxprune.verification._claims import Claims, MaskSite, StatisticSite, ZeroSite

CONTRACTIONS: Mapping[str, frozenset[int]] = {
    "Conv": frozenset((0,)), "ConvTranspose": frozenset((0,)), "FusedConv": frozenset((0,)),
    "ConvInteger": frozenset((0,)), "DeformConv": frozenset((0,)), "QLinearConv": frozenset((0,)),
    "NhwcConv": frozenset((0,)),
    "Gemm": frozenset((0, 1)), "FusedGemm": frozenset((0, 1)), "QGemm": frozenset((0,)),
    "MatMul": frozenset((0, 1)), "FusedMatMul": frozenset((0, 1)), "TransposeMatMul": frozenset((0, 1)),
    "FusedMatMulActivation": frozenset((0, 1)), "MatMulInteger": frozenset((0, 1)),
    "QLinearMatMul": frozenset((0, 3)), "MatMulIntegerToFloat": frozenset((0, 1)),
    "DynamicQuantizeMatMul": frozenset((0,)), "DynamicQuantizeLinear": frozenset((0,)),
    "MatMulNBits": frozenset((0,)), "Einsum": frozenset(range(16)), "ReduceSum": frozenset((0,)),
    "ReduceSumSquare": frozenset((0,)), "ReduceL1": frozenset((0,)), "ReduceL2": frozenset((0,)),
    "LpNormalization": frozenset((0,)), "LSTM": frozenset((0, 2)), "GRU": frozenset((0, 2)), "RNN": frozenset((0, 2)),
    "DynamicQuantizeLSTM": frozenset((0, 2)), "Attention": frozenset((0, 1)),
    "MultiHeadAttention": frozenset((0, 1, 3)), "GroupQueryAttention": frozenset((0, 1)),
    "PackedMultiHeadAttention": frozenset((0, 1, 3)), "QAttention": frozenset((0,)),
    "DecoderMaskedMultiHeadAttention": frozenset((0, 1, 10)),
}  # fmt: skip
"""Inputs by operator that are summed over, so that a channel of zeros adds nothing."""
STATISTICS = frozenset(
    ("GroupNormalization", "Hardmax", "InstanceNormalization", "LRN", "LayerNormalization", "LogSoftmax",
     "LpNormalization", "MeanVarianceNormalization", "QLinearSoftmax", "RMSNormalization", "ReduceLogSum",
     "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
     "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax",
     "EmbedLayerNormalization", "GroupNorm", "SkipGroupNorm", "QLinearReduceMean", "QLinearGlobalAveragePool")
)  # fmt: skip
"""Operators that may run on the kept channels only, in plans with inexact groups."""
_STANDARD = ("", "ai.onnx", "com.microsoft")
NOISE = 2.0**-20
"""Relative noise in masks, to measure how a model amplifies rounding errors of float32."""


class Reference:
    """Original with masks and sliced statistics.

    Args:
        original: Original model; changed in place.
        claims: Sites of masks and statistics.

    Raises:
        VerificationError: A site is not in the graph, or its operator does not allow it.
    """

    def __init__(self, original: Graph, claims: Claims) -> None:
        self.graph = original
        self.claims = claims
        self._selected: dict[str, np.dtype] = {}  # floats behind a mask: name, element type
        self.masked: dict[str, str] = {}
        self.sliced: set[str] = set()
        self.summed: dict[str, np.dtype] = {}  # additions that lose an operand: name, element type
        self._names = set(original.writer) | set(original.constants) | set(original.inputs)
        self._names |= {n for node in original.nodes for n in node.input}
        self._before: dict[int, list[NodeProto]] = {}
        self._after: dict[int, list[NodeProto]] = {}
        self._done: dict[tuple[str, int, bytes], str] = {}
        nodes = original.nodes
        for site in claims.masks:
            self._mask(self._find(site.node), site)
        for statistic in claims.statistics:
            self._slice(self._find(statistic.node), statistic)
        for zero in claims.zeros:
            self._zero(self._find(zero.node, f"block {zero.block!r}"), zero)
        original.nodes = [
            m for i, n in enumerate(nodes) for m in (*self._before.get(i, ()), n, *self._after.get(i, ()))
        ]
        original.index()

    @property
    def rounded(self) -> set[str]:
        """Return the tensors that the pruned model may round differently, before what follows them."""
        return {*self.masked, *self.sliced, *self.summed}

    def _find(self, output: str, what: str = "a channel") -> int:
        if output not in self.graph.writer:
            raise VerificationError(f"{what} is removed at a node that the original does not have", where=repr(output))
        return self.graph.writer[output]

    def _own(self, i: int) -> NodeProto:
        """Return a private copy of a node that may be changed."""
        node = NodeProto()
        node.CopyFrom(self.graph.nodes[i])
        self.graph.nodes[i] = node
        return node

    def _name(self, base: str) -> str:
        name, n = base, 0
        while name in self._names:
            n += 1
            name = f"{base}_{n}"
        self._names.add(name)
        return name

    def _constant(self, base: str, values: Array) -> str:
        name = self._name(base)
        if values.dtype == object and not all(isinstance(v, str | bytes) for v in values.flat):
            raise VerificationError(
                "a constant of strings takes part in the mask, and cannot be masked",
                where=base, fix="export the model again; if it runs as it is, report this",
            )  # fmt: skip
        self.graph.constants[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
        return name

    def _mask(self, i: int, site: MaskSite) -> None:
        node = self._own(i)
        known = node.domain in _STANDARD
        if known and site.index not in CONTRACTIONS.get(node.op_type, ()):
            raise VerificationError(
                f"a mask stands at input {site.index} of {node.op_type}, which does not sum over it",
                where=self.graph.where(site.node),
            )
        x = node.input[site.index]
        claimed = self.claims.kept.get(x, (None,) * site.rank)[site.axis]
        if x in self.claims.kept and (claimed is None or not np.array_equal(claimed, site.kept)):
            raise VerificationError("a mask keeps other channels than are kept", where=self.graph.where(site.node))
        key = (x, site.axis, site.kept.tobytes())
        if key not in self._done:
            shape = [1] * site.rank
            shape[site.axis] = len(site.kept)
            new: list[NodeProto] = []
            if site.zero is not None:
                zero = node.input[site.zero] if 0 <= site.zero < len(node.input) else ""
                self._done[key] = self._integers(x, site.kept.reshape(shape), zero, new)
            else:
                self._done[key] = self._select(x, site.kept.reshape(shape), self._dtype(x, node), new)
            self.masked[self._done[key]] = x
            self._before.setdefault(i, []).extend(new)
        node.input[site.index] = self._done[key]

    def _select(self, x: str, kept: Array, kind: np.dtype, new: list[NodeProto]) -> str:
        """Replace removed numbers by zeros; return the masked tensor's name."""
        out = self._name(f"{x}//masked")
        if kind.kind != "f":
            new.append(helper.make_node("Mul", [x, self._constant(f"{x}//mask", kept.astype(kind))], [out]))
            return out
        self._selected[out] = kind
        mask = self._constant(f"{x}//mask", kept)
        if kind.itemsize > 2:
            new.append(helper.make_node("Where", [mask, x, self._constant(f"{x}//zero", np.zeros((), kind))], [out]))
            return out
        wide, chosen = self._name(f"{x}//wide"), self._name(f"{x}//chosen")  # onnxruntime has no Where for float16
        zero = self._constant(f"{x}//zero", np.zeros((), np.float32))
        new.append(helper.make_node("Cast", [x], [wide], to=TensorProto.FLOAT))
        new.append(helper.make_node("Where", [mask, wide, zero], [chosen]))
        new.append(helper.make_node("Cast", [chosen], [out], to=TensorProto.FLOAT16))
        return out

    def _integers(self, x: str, kept: Array, zero: str, new: list[NodeProto]) -> str:
        """Replace removed integers by the zero point; return the masked tensor's name."""
        kind = int(helper.np_dtype_to_tensor_dtype(self.claims.dtypes.get(x, np.dtype(np.uint8))))
        mask = self._constant(f"{x}//mask", kept)
        wide, out, chosen = (self._name(f"{x}//{n}") for n in ("wide", "masked", "chosen"))
        if zero:
            point = self._name(f"{x}//point")
            new.append(helper.make_node("Cast", [zero], [point], to=TensorProto.INT32))
        else:
            point = self._constant(f"{x}//point", np.zeros((), np.int32))
        new.append(helper.make_node("Cast", [x], [wide], to=TensorProto.INT32))
        new.append(helper.make_node("Where", [mask, wide, point], [chosen]))
        new.append(helper.make_node("Cast", [chosen], [out], to=kind))
        return out

    def _zero(self, i: int, site: ZeroSite) -> None:
        """Replace an operand of an addition by zeros of its shape."""
        node = self._own(i)
        if node.op_type == "Concat" and node.domain in _STANDARD:
            self._check_left_out(node, site)
            return
        two = node.op_type in ("Add", "Sum") and node.domain in _STANDARD and len(node.input) == 2
        if not two or site.index > 1:
            raise VerificationError(
                f"block {site.block!r} ends in {node.op_type}, which adds nothing", where=self.graph.where(site.node)
            )
        x = node.input[site.index]
        new = self._before.setdefault(i, [])
        kind = self.summed[node.output[0]] = self._dtype(x, node)
        node.input[site.index] = self._select(x, np.zeros(1, bool), kind, new)

    def _check_left_out(self, node: NodeProto, site: ZeroSite) -> None:
        """Check that the claims keep nothing of an operand of a Concat; masks at the contractions select zeros."""
        shapes = [self.claims.shapes.get(n) for n in node.input]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        kept = self.claims.kept.get(node.output[0])
        if kept is not None and site.index < len(shapes) and all(s is not None for s in shapes):
            axis %= len(kept)
            sizes = [s[axis] for s in shapes if s is not None]
            start = sum(sizes[: site.index])
            mask = kept[axis]
            if mask is not None and not mask[start : start + sizes[site.index]].any():
                return
        raise VerificationError(
            f"block {site.block!r} appends channels that are kept", where=self.graph.where(site.node)
        )

    def _dtype(self, x: str, node: NodeProto) -> np.dtype:
        if x in self.graph.constants:
            return np.dtype(self.graph.value(x).dtype)
        found = self.claims.dtypes.get(x)
        while found is None and x in self.graph.writer:  # the graph that defines the types has no Identity nodes
            x = self.graph.nodes[self.graph.writer[x]].input[0]
            found = self.claims.dtypes.get(x)
        return np.dtype(np.float32 if found is None or found.name == "bfloat16" else found)

    def _slice(self, i: int, site: StatisticSite) -> None:
        node = self._own(i)
        self.sliced.update(node.output)
        where = self.graph.where(site.node)
        if not self.claims.inexact:
            raise VerificationError("a statistic loses channels, which the plan does not allow", where=where)
        if node.domain in _STANDARD and node.op_type not in STATISTICS:
            raise VerificationError(f"{node.op_type} takes no statistic that could run on fewer channels", where=where)
        indices = np.flatnonzero(site.kept)
        back = np.where(site.kept, np.cumsum(site.kept) - 1, 0)
        before, after = self._before.setdefault(i, []), self._after.setdefault(i, [])
        for index, axis in site.inputs:
            kept = self._constant(f"{node.input[index]}//kept", indices)
            name = self._name(f"{node.input[index]}//sliced")
            before.append(helper.make_node("Gather", [node.input[index], kept], [name], axis=axis))
            node.input[index] = name
        for index, axis in site.outputs:
            wide, small = node.output[index], self._name(f"{node.output[index]}//sliced")
            node.output[index] = small
            after.insert(
                0, helper.make_node("Gather", [small, self._constant(f"{wide}//back", back)], [wide], axis=axis)
            )
        if site.counted:
            total, part = node.output[0], self._name(f"{node.output[0]}//part")
            kind = self.claims.dtypes.get(total, np.dtype(np.float32))
            kind = np.dtype(np.float32) if kind.name == "bfloat16" else kind
            ratio = self._constant(f"{total}//ratio", np.array(len(site.kept) / len(indices), kind))
            node.output[0] = part
            after.insert(0, helper.make_node("Mul", [part, ratio], [total]))

    def noisy(self, model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
        """Return a copy of a model of the reference with rounding errors where the pruned model rounds differently.

        They are in the channels behind masks, and in sums that lose an operand: without it, onnxruntime fuses other
        nodes. Signs of the latter come from the numbers themselves, so that any size has them.
        """
        rng = np.random.default_rng(seed)
        out = onnx.ModelProto()
        out.CopyFrom(model)
        kept = {t.name: t for t in model.graph.initializer}
        for graph in [*bodies(out.graph.node)][::-1] + [out.graph]:
            nodes = list(graph.node)
            del graph.node[:]
            mask = None
            for node in nodes:
                graph.node.append(node)
                mask = kept.get(node.input[0], mask) if node.op_type == "Where" else mask
                name = node.output[0]
                before = f"{name}//before noise"
                if name in self._selected and mask is not None:
                    kind = self._selected[name]
                    noise = (1 + _rounding(kind) * rng.choice([-1.0, 1.0], tuple(mask.dims))).astype(kind)
                    graph.node[-1].output[0] = before
                    graph.node.add(op_type="Mul", input=[before, f"{name}//noise"], output=[name])
                    out.graph.initializer.append(numpy_helper.from_array(noise, f"{name}//noise"))
                elif name in self.summed and self.summed[name].kind == "f":
                    graph.node[-1].output[0] = before
                    added, constants = signed_noise(before, name, self.summed[name])
                    graph.node.extend(added)
                    out.graph.initializer.extend(constants)
        return out


def _rounding(kind: np.dtype) -> float:
    return max(NOISE, 4 * float(np.finfo(kind).eps)) if kind.itemsize < 8 else 2.0**-48


def signed_noise(x: str, out: str, kind: np.dtype) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return nodes that add to each number its rounding error, up or down by the sign of a sine of it."""
    wide = np.dtype(np.float64 if kind.itemsize == 8 else np.float32)  # onnxruntime has no Sin for float16
    constants = [
        numpy_helper.from_array(np.array(value, wide), f"{out}//{name}")
        for name, value in (("frequency", 1e4), ("rounding", _rounding(kind)))
    ]
    to = {kind: int(helper.np_dtype_to_tensor_dtype(kind)) for kind in (kind, wide)}
    names = [f"{out}//noise {n}" for n in range(7)]
    nodes = [
        helper.make_node("Cast", [x], [names[0]], to=to[wide]),
        helper.make_node("Mul", [names[0], constants[0].name], [names[1]]),
        helper.make_node("Sin", [names[1]], [names[2]]),
        helper.make_node("Sign", [names[2]], [names[3]]),
        helper.make_node("Mul", [names[3], constants[1].name], [names[4]]),
        helper.make_node("Mul", [names[4], names[0]], [names[5]]),
        helper.make_node("Add", [names[0], names[5]], [names[6]]),
        helper.make_node("Cast", [names[6]], [out], to=to[kind]),
    ]
    return nodes, constants
