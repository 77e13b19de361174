"""Records of the operators that compute attention as a whole: whole heads, or head_dim positions, are removed.

Queries, keys and values are [batch, steps, heads * size] or [batch, heads, steps, size]. With fewer key-value heads
than query heads (grouped-query attention) a key-value head is removed together with all queries that read it, so the
ratio is kept. When head_dim positions are removed, the original scale (1 / sqrt(size) by default) is written as an
attribute. Queries and keys are multiplied over head_dim: that axis is masked on the queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import Labels, LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, Shape, register
from onnxprune.ops.quantize import MICROSOFT


def _heads(labels: Labels | None, heads: int, table: LabelTable, ratio: int = 1) -> Labels | None:
    """Return labels of whole heads, [heads / ratio], of an axis of heads * size tied within `ratio` heads each."""
    if labels is None:
        return None
    whole = table.tie_within(labels.reshape(heads // ratio, -1), 1)
    table.mark(whole, "heads")
    return whole


def _places(labels: Labels | None, heads: int, table: LabelTable) -> Labels | None:
    """Return labels of the positions in a head, [size], tied over the heads."""
    if labels is None:
        return None
    places = table.tie_within(labels.reshape(heads, -1), 0)
    table.mark(places, "head_dim")
    return places


def _together(table: LabelTable, *parts: Labels | None) -> Labels | None:
    """Tie arrays of labels of the same heads or positions."""
    for part in parts[1:]:
        table.tie(parts[0], part)
    return parts[0] if all(p is not None for p in parts) else None


def _by_head(table: LabelTable, kv_heads: int) -> bool:
    return table.choices.attention == "heads" and kv_heads > 1


def _packed(
    table: LabelTable, q: Labels | None, k: Labels | None, v: Labels | None, heads: int, kv_heads: int, size: int
) -> tuple[Labels | None, Labels | None]:
    """Return (labels of the output's last axis, labels of key heads); `size` is the head size of the values."""
    ratio = heads // kv_heads
    if _by_head(table, kv_heads):
        part = _together(
            table, _heads(q, heads, table, ratio), _heads(k, kv_heads, table), _heads(v, kv_heads, table)
        )  # fmt: skip
        return (None if part is None else np.repeat(part, ratio * size)), part
    _together(table, _places(q, heads, table), _places(k, kv_heads, table))
    table.contract(0, -1)
    places = _places(v, kv_heads, table)
    return (None if places is None else np.tile(places, heads)), None


def _bind_heads(table: LabelTable, place: int, axis: int, heads: Labels | None, count: int) -> None:
    """Bind the axis of heads of an input (a mask, a cache) to the heads."""
    t = table.optional_input(place)
    if t is None:
        return
    rank = len(table.shape(t))
    if rank + axis >= 0 and table.shape(t)[axis] == count > 1:
        table.bind(t, axis % rank, heads)


def couple_attention(node: gs.Node, table: LabelTable) -> None:
    """Tie the heads of queries, keys and values; lock the steps."""
    axes = [table.get(t) for t in node.inputs[:3]]
    shapes = [table.shape(t) for t in node.inputs[:3]]
    for a in axes:
        for labels in a[1:2] if len(a) == 3 else a[2:3]:
            table.lock(labels, "attends over it")
    if len(axes[0]) == 3:
        heads, kv_heads = int(node.attrs["q_num_heads"]), int(node.attrs["kv_num_heads"])
        q, k, v = (a[2] for a in axes)
        out, part = _packed(table, q, k, v, heads, kv_heads, shapes[2][2] // kv_heads)
        table.put(node.outputs[0], [None, None, out])
    else:
        heads, kv_heads = shapes[0][1], shapes[1][1]
        part = _together(table, _heads(axes[0][1], heads, table, heads // kv_heads), axes[1][1], axes[2][1])
        table.tie(axes[0][3], axes[1][3])
        table.contract(0, 3)
        out = None if part is None else np.repeat(part, heads // kv_heads)
        table.put(node.outputs[0], [None, out, None, axes[2][3]])
    whole = None if part is None else np.repeat(part, heads // kv_heads)
    _bind_heads(table, 3, -3, whole, heads)
    for place in (4, 5):  # caches of keys and values share head_dim with the data
        _bind_heads(table, place, 1, part, kv_heads)
        cache = table.optional_input(place)
        if cache is not None:
            _same_places(table, cache, axes[place - 3], kv_heads)
    for place, t in enumerate(node.outputs[1:], 1):
        if not t.name:
            continue
        if place == 3:
            table.put(t, [None, whole, None, None])
        else:
            own = axes[place][-1] if part is None and len(axes[0]) == 4 else None
            table.put(t, [None, part, None, own])
            if part is None and len(axes[0]) == 3:
                table.lock(axes[place][2], "is part of a cache")


def _same_places(table: LabelTable, cache: gs.Tensor, axes: Sequence[Labels | None], kv_heads: int) -> None:
    if len(axes) == 4:
        table.bind(cache, 3, axes[3])
    elif not _by_head(table, kv_heads):
        table.lock(axes[2], "is joined to a cache")


def _state_scale(node: gs.Node, size: int) -> None:
    if not node.attrs.get("scale", 0.0):
        node.attrs["scale"] = 1 / sqrt(size)


def _patch_packed(node: gs.Node, patcher: Patcher, heads: str, kv_heads: str, sizes: Sequence[int] = ()) -> None:
    """Update the head counts; where head_dim positions are removed instead, write the original scale.

    `sizes`: Widths of queries, keys and values where one input holds all three.
    """
    q = node.inputs[0]
    keep = patcher.keep(q, len(patcher.shape(q)) - 1)
    if keep is None:
        return
    count = int(node.attrs[heads])
    grid = keep[: sizes[0] if sizes else None].reshape(count, -1)
    if (grid.all(1) | ~grid.any(1)).all():
        left = int(grid.any(1).sum())
        if kv_heads != heads and kv_heads in node.attrs:
            node.attrs[kv_heads] = int(node.attrs[kv_heads]) * left // count
        node.attrs[heads] = left
    else:
        _state_scale(node, grid.shape[1])


def patch_attention(node: gs.Node, patcher: Patcher) -> None:
    """Update the head counts; where head_dim positions are removed instead, write the original scale."""
    q = node.inputs[0]
    if len(patcher.shape(q)) == 3:
        _patch_packed(node, patcher, "q_num_heads", "kv_num_heads")
    elif patcher.keep(q, 3) is not None:
        _state_scale(node, patcher.shape(q)[3])


def macs_attention(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the MACs of queries times keys and weights times values."""
    q, k, out = ins[0], ins[1] or ins[0], outs[0]
    if len(q) == 3:
        return q[0] * q[1] * k[1] * (q[2] + out[2])
    if len(k) != 4 or len(q) != 4:
        return 0
    return q[0] * q[1] * q[2] * k[2] * (q[3] + out[3])


def couple_multihead(node: gs.Node, table: LabelTable) -> None:
    """Tie the heads of queries, keys and values; lock packed ones."""
    k, v = table.optional_input(1), table.optional_input(2)
    if k is None or v is None or any(len(table.shape(t)) != 3 for t in (node.inputs[0], k, v)):
        table.lock_inputs("packs queries, keys or values")
        return
    axes = [table.get(t) for t in node.inputs[:3]]
    heads = int(node.attrs["num_heads"])
    for a in axes:
        table.lock(a[1], "attends over it")
    if table.optional_input(6) is not None and not _by_head(table, heads):
        table.lock_inputs("is joined to a cache")
        return
    sizes = [table.shape(t)[2] for t in node.inputs[:3]]
    out, part = _packed(table, axes[0][2], axes[1][2], axes[2][2], heads, heads, sizes[2] // heads)
    bias = table.optional_input(3)
    if bias is not None:
        table.bind(bias, 0, table.concat([a[2] for a in axes], sizes))
        if not _by_head(table, heads):
            table.contract(3, 0)
    _bind_heads(table, 5, -3, part, heads)
    for place in (6, 7):
        _bind_heads(table, place, 1, part, heads)
    table.put(node.outputs[0], [None, None, out])
    for place, t in enumerate(node.outputs[1:], 1):
        if t.name:
            table.put(t, [None, part, None, None])
            if part is None and place < 3:
                table.lock(axes[place][2], "is part of a cache")


def patch_multihead(node: gs.Node, patcher: Patcher) -> None:
    """Update `num_heads`; where head_dim positions are removed instead, write the original scale."""
    _patch_packed(node, patcher, "num_heads", "num_heads")


def _like_multihead(node: gs.Node) -> list[onnx.NodeProto]:
    q, k, v = ([t.name for t in node.inputs[:3]] + ["", ""])[:3]
    out = node.outputs[0].name
    if not k or not v:
        return [onnx.helper.make_node(node.op, [t.name for t in node.inputs], [t.name for t in node.outputs],
                                      domain=node.domain)]  # fmt: skip
    return [
        # [B, S, q] x [B, T, k] x [B, T, v]: the product has the output's shape if queries and keys are equally long.
        onnx.helper.make_node("Transpose", [k], [f"{out}/keys"], perm=[0, 2, 1]),
        onnx.helper.make_node("MatMul", [q, f"{out}/keys"], [f"{out}/weights"]),
        onnx.helper.make_node("MatMul", [f"{out}/weights", v], [out]),
        *_caches(node, k, v),
    ]


def _caches(node: gs.Node, k: str, v: str) -> list[onnx.NodeProto]:
    """Return nodes that compute the key and value caches [batch, heads, steps, size] when no past cache is given."""
    heads = int(node.attrs.get("kv_num_heads", node.attrs["num_heads"]))
    out = []
    for t, source, past in zip(node.outputs[1:3], (k, v), node.inputs[3:5] if "kv_num_heads" in node.attrs else
                               node.inputs[6:8], strict=False):  # fmt: skip
        if not t.name or past.name:
            continue
        shape = onnx.helper.make_tensor(f"{t.name}/four", onnx.TensorProto.INT64, [4], [0, 0, heads, -1])
        out += [
            onnx.helper.make_node("Constant", [], [f"{t.name}/four"], value=shape),
            onnx.helper.make_node("Reshape", [source, f"{t.name}/four"], [f"{t.name}/heads"]),
            onnx.helper.make_node("Transpose", [f"{t.name}/heads"], [t.name], perm=[0, 2, 1, 3]),
        ]
    return out


def _sizes(node: gs.Node, total: int) -> list[int]:
    """Return the widths of queries, keys and values in the packed weight."""
    stated = node.attrs.get("qkv_hidden_sizes")
    return [int(n) for n in stated] if stated else [total // 3] * 3


def couple_self_attention(node: gs.Node, table: LabelTable) -> None:
    """Free whole heads of the packed projection weight (com.microsoft)."""
    x, w = node.inputs[:2]
    heads = int(node.attrs["num_heads"])
    if not table.is_const(w):
        table.lock_inputs("its weight is not a constant")
        return
    axes = table.get(x)
    table.lock(axes[1], "attends over it")
    table.bind(w, 0, axes[2])
    table.contract(0, 2)
    sizes = _sizes(node, table.shape(w)[1])
    part = table.fresh(heads)
    joined = None if part is None else np.concatenate([np.repeat(part, n // heads) for n in sizes])
    table.bind(w, 1, joined)
    table.filters(w, 1, joined)
    bias = table.optional_input(2)
    if bias is not None:
        table.bind(bias, 0, joined)
    _bind_heads(table, 4, 2, part, heads)
    _bind_heads(table, 5, -3, part, heads)
    out = None if part is None else np.repeat(part, sizes[2] // heads)
    table.put(node.outputs[0], [None, None, out])
    for t in node.outputs[1:]:
        if t.name:
            table.put(t, [None, None, part, None, None])


def patch_self_attention(node: gs.Node, patcher: Patcher) -> None:
    """Update `num_heads` and the widths of the packed weight."""
    keep = patcher.keep(node.inputs[1], 1)
    if keep is None:
        return
    heads = int(node.attrs["num_heads"])
    sizes = _sizes(node, len(keep))
    left = int(keep[: sizes[0]].sum()) * heads // sizes[0]
    node.attrs["num_heads"] = left
    if "qkv_hidden_sizes" in node.attrs:
        node.attrs["qkv_hidden_sizes"] = [n // heads * left for n in sizes]


def macs_self_attention(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the MACs of the projections, queries times keys, and weights times values."""
    batch, steps, width = ins[0]
    total, out = ins[1][1], outs[0][2]
    return batch * steps * (width * total + steps * (total - out) // 2 + steps * out)


def _like_self_attention(node: gs.Node) -> list[onnx.NodeProto]:
    w = node.inputs[1]
    out = node.outputs[0].name
    if not isinstance(w, gs.Constant):
        return [onnx.helper.make_node("Identity", [node.inputs[0].name], [out])]
    width = _sizes(node, int(w.shape[1]))[2]
    columns = onnx.helper.make_tensor(f"{out}/columns", onnx.TensorProto.INT64, [width], list(range(width)))
    return [
        onnx.helper.make_node("Constant", [], [f"{out}/columns"], value=columns),
        onnx.helper.make_node("Gather", [w.name, f"{out}/columns"], [f"{out}/values"], axis=1),
        onnx.helper.make_node("MatMul", [node.inputs[0].name, f"{out}/values"], [out]),
    ]


def couple_grouped(node: gs.Node, table: LabelTable) -> None:
    """Tie key-value heads to the queries that read them (com.microsoft)."""
    heads, kv_heads = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    if any(table.optional_input(p) is not None for p in range(11, len(node.inputs))):
        table.lock_inputs("quantizes its caches, or normalizes heads")
        return
    if kv_heads < 2:
        table.lock_inputs("has one head of keys, which cannot be removed")
        return
    k, v = table.optional_input(1), table.optional_input(2)
    labels = table.get(node.inputs[0])[2]
    width = table.shape(node.inputs[0])[2]
    ratio = heads // kv_heads
    if k is None or v is None:  # one packed input
        size = width // (heads + 2 * kv_heads)
        cuts = [heads * size, (heads + kv_heads) * size]
        q, key, value = (None, None, None) if labels is None else np.split(labels, cuts)
    else:
        size, q, key, value = width // heads, labels, table.get(k)[2], table.get(v)[2]
    part = _together(
        table, _heads(q, heads, table, ratio), _heads(key, kv_heads, table), _heads(value, kv_heads, table)
    )  # fmt: skip
    _bind_heads(table, 10, -3, None if part is None else np.repeat(part, ratio), heads)
    for place in (3, 4):
        _bind_heads(table, place, 1, part, kv_heads)
    table.put(node.outputs[0], [None, None, None if part is None else np.repeat(part, ratio * size)])
    for t in node.outputs[1:3]:
        if t.name:
            table.put(t, [None, part, None, None])


def patch_grouped(node: gs.Node, patcher: Patcher) -> None:
    """Update the head counts."""
    heads, kv_heads = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    width = patcher.shape(node.inputs[0])[2]
    joined = len(node.inputs) < 2 or not node.inputs[1].name
    _patch_packed(node, patcher, "num_heads", "kv_num_heads",
                  [width * heads // (heads + 2 * kv_heads)] if joined else ())  # fmt: skip


def _like_grouped(node: gs.Node) -> list[onnx.NodeProto]:
    q = node.inputs[0].name
    k, v = node.inputs[1].name, node.inputs[2].name
    out = node.outputs[0].name
    heads, kv_heads = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    if k and v:
        return [onnx.helper.make_node("Identity", [q], [out]), *_caches(node, k, v)]
    # [B, S, (heads + 2 kv_heads) * size] as separate heads, gathered into queries, keys and values.
    ints = onnx.TensorProto.INT64
    four = onnx.helper.make_tensor(f"{out}/four", ints, [4], [0, 0, heads + 2 * kv_heads, -1])
    three = onnx.helper.make_tensor(f"{out}/three", ints, [3], [0, 0, -1])
    nodes = [
        onnx.helper.make_node("Constant", [], [f"{out}/four"], value=four),
        onnx.helper.make_node("Constant", [], [f"{out}/three"], value=three),
        onnx.helper.make_node("Reshape", [q, f"{out}/four"], [f"{out}/heads"]),
    ]
    parts = ((out, heads), (f"{out}/keys", kv_heads), (f"{out}/values", kv_heads))
    for name, count in parts:
        picked = onnx.helper.make_tensor(f"{name}/picked", ints, [count], list(range(count)))
        nodes += [
            onnx.helper.make_node("Constant", [], [f"{name}/picked"], value=picked),
            onnx.helper.make_node("Gather", [f"{out}/heads", f"{name}/picked"], [f"{name}/part"], axis=2),
            onnx.helper.make_node("Reshape", [f"{name}/part", f"{out}/three"], [name]),
        ]
    return [*nodes, *_caches(node, f"{out}/keys", f"{out}/values")]


def _rotary_heads(node: gs.Node, shape: Shape, cache: Shape) -> int:
    """Return the number of heads in [batch, steps, heads * size]."""
    stated = int(node.attrs.get("num_heads", 0))
    return stated or shape[-1] // (2 * cache[-1])


def couple_rotary(node: gs.Node, table: LabelTable) -> None:
    """Tie the positions within every head, which are rotated in pairs; whole heads are free."""
    x = node.inputs[0]
    axes = list(table.get(x))
    if len(axes) == 4:
        table.lock(axes[3], "rotates pairs of it")
        axes[3] = None
    else:
        heads = _rotary_heads(node, table.shape(x), table.shape(node.inputs[2]))
        if axes[2] is not None:
            part = _heads(axes[2], heads, table)
            assert part is not None
            if heads == 1:
                table.lock(part, "rotates pairs of it")
            axes[2] = np.repeat(part, len(axes[2]) // heads)
    for t in node.inputs[1:]:
        if t.name:
            table.lock_tensor(t, "holds rotation angles")
    table.put(node.outputs[0], axes)


def patch_rotary(node: gs.Node, patcher: Patcher) -> None:
    """Update `num_heads`."""
    keep = patcher.keep(node.inputs[0], 2) if len(patcher.shape(node.inputs[0])) == 3 else None
    if keep is not None and node.attrs.get("num_heads", 0):
        node.attrs["num_heads"] = int(keep.sum()) * int(node.attrs["num_heads"]) // len(keep)


def _like_input(node: gs.Node) -> list[onnx.NodeProto]:
    return [onnx.helper.make_node("Identity", [node.inputs[0].name], [node.outputs[0].name])]


register(OpSpec("Attention", couple_attention, patch=patch_attention, macs=macs_attention))
register(OpSpec("RotaryEmbedding", couple_rotary, patch=patch_rotary))
for _spec in (
    OpSpec("RotaryEmbedding", couple_rotary, patch_rotary, stand_in=_like_input),
    OpSpec("MultiHeadAttention", couple_multihead, patch_multihead, macs_attention, stand_in=_like_multihead),
    OpSpec("Attention", couple_self_attention, patch_self_attention, macs_self_attention,
           stand_in=_like_self_attention),
    OpSpec("GroupQueryAttention", couple_grouped, patch_grouped, macs_attention, stand_in=_like_grouped),
):  # fmt: skip
    register(replace(_spec, domain=MICROSOFT))
