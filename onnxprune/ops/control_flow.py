"""Records of control flow: an If in flat form (see `onnxprune.ir.branches`) selects among results of two branches."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxprune.ir.branches import FLAT, LOOP_START
from onnxprune.ops.elementwise import broadcast
from onnxprune.ops.label_table import LabelTable
from onnxprune.ops.op_spec import OpSpec, register, register_locked


def couple_if(node: gs.Node, table: LabelTable) -> None:
    """Tie the results of both branches index by index; lock those of different shapes.

    A result whose rank the nodes after the If reject is not tied: no run that succeeds returns it.
    """
    count = len(node.inputs) // 2
    for k, output in enumerate(node.outputs):
        results = [
            t for t in (node.inputs[1 + k], node.inputs[1 + count + k]) if t.name != table.impossible.get(output.name)
        ]
        if len(results) == 1:
            table.put(output, table.get(results[0]))
            continue
        sizes = [table.size(t) for t in results]
        axes = [i for t in results for i, a in enumerate(table.get(t)) if a is not None]
        same = len(sizes[0]) == len(sizes[1]) and all(sizes[0][i] == sizes[1][i] is not None for i in axes)
        if not same:
            for t in results:
                table.lock_tensor(t, "is a result of one branch that has another shape in the other branch")
        if output.name:
            rank = len(table.shape(output))
            table.put(output, broadcast(table, [(t, rank) for t in results]) if same else [None] * rank)


def couple_loop_start(node: gs.Node, table: LabelTable) -> None:
    """Pass the labels of the initial states to the states in the body."""
    for t in node.outputs[:3]:
        table.put(t, [])
    for initial, state in zip(node.inputs[2:], node.outputs[3:], strict=True):
        table.put(state, table.operand(initial))


def couple_loop_end(node: gs.Node, table: LabelTable) -> None:
    """Tie the states of one iteration to those of the next; results of all iterations have one more axis."""
    states = node.inputs[0].inputs[0].outputs[3:]
    for before, after, output in zip(states, node.inputs[2:], node.outputs, strict=False):
        axes = table.get(before)
        for axis, labels in enumerate(axes):
            if table.is_const(after):
                table.lock(labels, "is set to a constant in every iteration")
            else:
                table.tie(table.get(after)[axis], labels)
        if output.name:
            table.put(output, axes)
    for t, output in zip(node.inputs[2 + len(states) :], node.outputs[len(states) :], strict=True):
        if output.name:
            table.put(output, [None, *table.operand(t)])


register(OpSpec("If", couple_if))
register(OpSpec(LOOP_START, couple_loop_start, domain=FLAT))
register(OpSpec("Loop", couple_loop_end, domain=FLAT))
register_locked("is read or written inside a subgraph", "Loop", "Scan")
