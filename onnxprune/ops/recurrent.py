"""Records of recurrent layers: RNN, GRU, LSTM, DynamicQuantizeLSTM.

A hidden unit is removed with its row of every gate and its state.
The operator reads its state through the recurrence weight R: the mask is applied to R's own input axis, which is
equivalent. An external state has the same channels; a state of zeros is dropped first (`drop_zero_states`).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnxprune.ops.label_table import LabelTable
from onnxprune.ops.op_spec import OpSpec, Patcher, Shape, register, remaining
from onnxprune.ops.quantize import MICROSOFT

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
# Inputs: data, W, R, bias, lengths, hidden state, cell state, peepholes.
_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)


def couple_recurrent(node: gs.Node, table: LabelTable) -> None:
    """Tie the input axis of W to the data's channels; hidden units are free, the same in both directions."""

    gates = GATES[node.op]
    data = table.get(node.inputs[_X])
    for labels in data[:2]:
        table.lock(labels, "recurs over it")
    w, r = node.inputs[_W], node.inputs[_R]
    outputs = [t for t in node.outputs if t.name]
    if not (table.is_const(w) and table.is_const(r)):
        table.lock_inputs("its weight is not a constant")
        return
    table.bind(w, 2, data[2])
    table.contract(_X, 2)
    hidden = table.fresh(table.shape(r)[2])

    def gate(n: int) -> np.ndarray | None:
        return None if hidden is None else np.tile(hidden, n)

    table.bind(w, 1, gate(gates))
    table.bind(r, 1, gate(gates))
    table.bind(r, 2, hidden)
    table.contract(_R, 2)
    table.filters(w, 1, gate(gates))
    for place, copies in ((_B, 2 * gates), (_P, 3)):
        t = table.optional_input(place)
        if t is not None:
            table.bind(t, 1, gate(copies))
    for place in (_H, _C):
        t = table.optional_input(place)
        if t is not None:
            table.bind(t, 2, hidden)
    for (
        t
    ) in outputs:  # Y [steps, directions, batch, hidden] and states [directions, batch, hidden]; axes may be swapped
        table.put(t, [*[None] * (len(table.shape(t)) - 1), hidden])


def patch_recurrent(node: gs.Node, patcher: Patcher) -> None:
    """Update `hidden_size` to the remaining units."""
    node.attrs["hidden_size"] = remaining(patcher, node.inputs[_R], 2)


def couple_quantized_lstm(node: gs.Node, table: LabelTable) -> None:
    """Tie the input axis of W to the data's channels; hidden units stay.

    The state is quantized by one range at run time, which the removal of a unit would change for all others.
    """
    data = table.get(node.inputs[_X])
    for labels in data[:2]:
        table.lock(labels, "recurs over it")
    w = node.inputs[_W]
    if not table.is_const(w):
        table.lock_inputs("its weight is not a constant")
        return
    table.bind(w, 1, data[2])
    table.contract(_X, 2)
    units = table.produce(w, 2)
    table.filters(w, 2, units)
    table.lock(units, "quantizes its state by one range at run time: without a unit the others are rounded otherwise")
    for place in (_H, _C):
        t = table.optional_input(place)
        if t is not None:
            table.lock_tensor(t, "is a state that is quantized by one range")
    for t in node.outputs:
        if t.name:
            table.put(t, [None] * len(table.shape(t)))


def _as_lstm(node: gs.Node) -> list[onnx.NodeProto]:
    """Return an LSTM of the same shapes: its weights are [directions, 4 * hidden, inputs]."""
    names, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
    out = next(name for name in outputs if name)
    nodes = []
    for place in (_W, _R):
        wide = f"{out}/wide{place}"
        nodes.append(onnx.helper.make_node("Cast", [names[place]], [wide], to=onnx.TensorProto.FLOAT))
        nodes.append(onnx.helper.make_node("Transpose", [wide], [f"{wide}/turned"], perm=[0, 2, 1]))
        names[place] = f"{wide}/turned"
    known = {k: v for k, v in node.attrs.items() if k in ("hidden_size", "direction")}
    return [*nodes, onnx.helper.make_node("LSTM", names[:_P], outputs, **known)]


def macs_recurrent(node: gs.Node, ins: Sequence[Shape], outs: Sequence[Shape]) -> int:
    """Return the MACs of one pass of W and R per step."""
    return prod(ins[_X][:2]) * (prod(ins[_W]) + prod(ins[_R]))


register(OpSpec("DynamicQuantizeLSTM", couple_quantized_lstm, macs=macs_recurrent, domain=MICROSOFT, stand_in=_as_lstm))
for _op in GATES:
    register(OpSpec(_op, couple_recurrent, patch=patch_recurrent, macs=macs_recurrent))
