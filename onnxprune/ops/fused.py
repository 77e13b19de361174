"""Records of the fused operators of onnxruntime's optimizer (com.microsoft): FusedConv, FusedMatMul, BiasGelu ...

With them, models optimized up to level "extended" can be pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import onnx
import onnx_graphsurgeon as gs

from onnxprune.ops.conv import convolve, macs_conv, patch_conv_group
from onnxprune.ops.elementwise import broadcast, couple_broadcast, couple_unary
from onnxprune.ops.label_table import STATISTIC, Axes, LabelTable
from onnxprune.ops.matmul import couple_gemm, macs_gemm, multiply_terms
from onnxprune.ops.op_spec import OpSpec, Shape, StandIn, register
from onnxprune.ops.quantize import MICROSOFT


def like(op: str, inputs: int | None = None) -> StandIn:
    """Return a stand-in: the standard operator `op` on the first inputs, with the attributes in its schema."""

    def stand_in(node: gs.Node) -> list[onnx.NodeProto]:
        known = onnx.defs.get_schema(op).attributes
        attrs = {k: v for k, v in node.attrs.items() if k in known}
        names = [t.name for t in node.inputs[:inputs]]
        while names and not names[-1]:
            names.pop()
        return [onnx.helper.make_node(op, names, [node.outputs[0].name], **attrs)]

    return stand_in


def couple_fused_conv(node: gs.Node, table: LabelTable) -> None:
    """Tie channels as for Conv; the fourth input, added before the activation, is tied to the output channels."""
    out = convolve(node, table)
    z = table.optional_input(3)
    if z is None:
        return
    if out is not None:
        table.sums.append(out)
    for axis, labels in enumerate(table.get(z)):
        if axis == 1:
            table.bind(z, 1, out)
        else:
            table.lock(labels, "is added along space")


def _letters(node: gs.Node, rank_a: int, rank_b: int) -> tuple[str, str, str]:
    """Return the einsum terms of FusedMatMul: m and n of the output, k summed, capitals for leading axes.

    With transBatchA the rows come first, before the leading axes; transA then swaps rows and the last axis.
    """
    lead = "ABCDEFGH"[: max(rank_a, rank_b) - 2]

    def term(rank: int, rows: str, columns: str, side: str) -> str:
        mine = lead[len(lead) - (rank - 2) :]
        if node.attrs.get(f"trans{side}", 0):
            rows, columns = columns, rows
        return rows + mine + columns if node.attrs.get(f"transBatch{side}", 0) else mine + rows + columns

    return term(rank_a, "m", "k", "A"), term(rank_b, "k", "n", "B"), f"{lead}mn"


def couple_fused_matmul(node: gs.Node, table: LabelTable) -> None:
    """Tie axes as for MatMul, with either operand transposed."""
    ranks = [len(table.shape(t)) for t in node.inputs[:2]]
    if min(ranks) < 2:
        table.lock_inputs("multiplies vectors")
        return
    a, b, out = _letters(node, *ranks)
    multiply_terms(node, table, [a, b], out)


def _like_einsum(node: gs.Node) -> list[onnx.NodeProto]:
    terms = []
    for t, side, rows, columns in (node.inputs[0], "A", "m", "k"), (node.inputs[1], "B", "k", "n"):
        if node.attrs.get(f"trans{side}", 0):
            rows, columns = columns, rows
        # ONNX shape inference fails on ellipses of different length: a 2-D constant has no ellipsis.
        lead = "" if isinstance(t, gs.Constant) and len(t.shape) == 2 else "..."
        batch = node.attrs.get(f"transBatch{side}", 0)
        terms.append(f"{rows}{lead}{columns}" if batch else f"{lead}{rows}{columns}")
    equation = f"{terms[0]},{terms[1]}->...mn"
    return [
        onnx.helper.make_node("Einsum", [t.name for t in node.inputs[:2]], [node.outputs[0].name], equation=equation)
    ]


def macs_fused_matmul(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the output elements times the summed length."""
    a = _letters(node, len(ins[0]), len(ins[1]))[0]
    return prod(outs[0]) * ins[0][a.index("k")]


def couple_skip_norm(node: gs.Node, table: LabelTable) -> None:
    """Tie the streams that are added; the statistic over the last axis is an inexact lock."""
    simplified = node.op.startswith("SkipSimplified")
    streams = [(t, len(table.shape(t))) for t in node.inputs[:2]]
    axes = broadcast(table, streams)
    for t in node.inputs[2 : 4 if simplified else 5]:
        if t.name:
            table.bind(t, 0, axes[-1])
    last = len(axes) - 1
    params = [(i, len(table.shape(t)) - 1) for i, t in enumerate(node.inputs) if i and t.name]
    table.statistic(last, params=params, outputs=[i for i, t in enumerate(node.outputs) if i in (0, 3) and t.name])
    for place, t in enumerate(node.outputs):
        if t.name:
            table.put(t, axes if place in (0, 3) else [*axes[:-1], None])


def _like_skip_norm(node: gs.Node) -> list[onnx.NodeProto]:
    names = [t.name for t in node.inputs]
    nodes = []
    for place, t in enumerate(node.outputs):
        if t.name and place in (0, 3):
            nodes.append(onnx.helper.make_node("Add", names[:2], [t.name]))
        elif t.name:
            nodes.append(onnx.helper.make_node("ReduceL2", [names[0]], [t.name], keepdims=1))
    return nodes


def couple_embed_norm(node: gs.Node, table: LabelTable) -> None:
    """Tie the embedding tables that are added; lock their channels, which a statistic reads."""
    tables = [node.inputs[i] for i in (2, 3, 4) if i < len(node.inputs) and node.inputs[i].name]
    labels = table.produce(tables[0], 1) if table.is_const(tables[0]) else None
    for t in tables:
        table.bind(t, 1, labels)
        table.filters(t, 1, labels)
    for t in node.inputs[5:7]:
        table.bind(t, 0, labels)
    table.lock(labels, STATISTIC)
    for place, t in enumerate(node.outputs):
        if t.name:
            out: Axes = [None] * len(table.shape(t))
            table.put(t, [*out[:-1], labels] if place != 1 else out)


def _like_embed_norm(node: gs.Node) -> list[onnx.NodeProto]:
    ids, words = node.inputs[0].name, node.inputs[2].name
    out = [
        onnx.helper.make_node("Gather", [words, ids], [t.name]) for p, t in enumerate(node.outputs) if t.name and p != 1
    ]
    if len(node.outputs) > 1 and node.outputs[1].name:  # lengths [batch], int32
        mask = f"{node.outputs[1].name}/long"
        out.append(onnx.helper.make_node("ArgMax", [ids], [mask], axis=1, keepdims=0))
        out.append(onnx.helper.make_node("Cast", [mask], [node.outputs[1].name], to=onnx.TensorProto.INT32))
    return out


for _spec in (
    OpSpec("FusedConv", couple_fused_conv, patch_conv_group, macs_conv, stand_in=like("Conv", 3)),
    OpSpec("FusedGemm", couple_gemm, macs=macs_gemm, stand_in=like("Gemm")),
    OpSpec("FusedMatMul", couple_fused_matmul, macs=macs_fused_matmul, stand_in=_like_einsum),
    OpSpec("TransposeMatMul", couple_fused_matmul, macs=macs_fused_matmul, stand_in=_like_einsum),
    OpSpec("BiasGelu", couple_broadcast, stand_in=like("Add")),
    OpSpec("FastGelu", couple_broadcast, stand_in=like("Sum")),
    OpSpec("Gelu", couple_unary, stand_in=like("Identity")),
    OpSpec("QuickGelu", couple_unary, stand_in=like("Identity")),
    OpSpec("SkipLayerNormalization", couple_skip_norm, stand_in=_like_skip_norm),
    OpSpec("SkipSimplifiedLayerNormalization", couple_skip_norm, stand_in=_like_skip_norm),
    OpSpec("EmbedLayerNormalization", couple_embed_norm, stand_in=_like_embed_norm),
):
    register(replace(_spec, domain=MICROSOFT))
