"""Where a graph decides: which boxes, which class, above or below a threshold.

Sums in another order differ in the last bits, and two scores that are equal but for those may be decided either way:
a detector then returns its boxes in another order, or one box more. Such models are compared with the decisions of one
taken for both, and what they were decided by is compared as numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.coupling import Analysis
from onnxprune.model import Array, Model
from onnxprune.passes.edit import unique_name

# Numbers in, numbers out, and steps in between.
_STEPS = frozenset(("Ceil", "Floor", "Round", "Sign"))
# Integers and truth values that no small difference turns over, or that have a tolerance of their own (quantizers).
_CONTINUOUS = frozenset(("IsInf", "IsNaN", "Shape", "Size"))
_FLOATS = "fV"  # numpy knows no bfloat16
_QUANTIZERS = ("QuantizeLinear", "DynamicQuantize", "QLinear", "QGemm", "QAttention")


@dataclass(frozen=True)
class Decisions:
    """What a model decides.

    Attributes:
        tensors: those that hold decisions, in graph order.
        reasons: the numbers they were decided by.
        rounded: those of the reasons that are rounded inside the model and nothing else.
    """

    tensors: tuple[str, ...]
    reasons: tuple[str, ...]
    rounded: frozenset[str]


def decisions(analysis: Analysis, pruned: Model) -> Decisions:
    """Where a model decides on its data, in tensors that stand in the original and in the pruned graph.

    What a branch decides that only one of them still wraps in an If shows where the result is used. Decisions on
    channels that can be removed are left out: there an activation is spelled with a comparison. So are those whose
    reasons cannot be compared.
    """
    graph, dtypes = analysis.model.graph, analysis.witness.dtypes
    there = {o.name for n in analysis.source.graph.nodes for o in n.outputs}
    there &= {o.name for n in pruned.graph.nodes for o in n.outputs}
    computed = {t.name for t in graph.inputs}

    def is_kind(t: gs.Tensor, kinds: str) -> bool:
        return t.name in dtypes and dtypes[t.name].kind in kinds  # a sequence has no element type

    def shown(tensors: Sequence[gs.Tensor]) -> list[str]:
        """These tensors, or what they are computed from, as far as both graphs have it."""
        front, seen, out = list(tensors), set(), []
        while front:
            t = front.pop()
            if t.name in seen:
                continue
            seen.add(t.name)
            if t.name in there:
                out.append(t.name)
            elif t.inputs:
                front += [i for i in t.inputs[0].inputs if i.name in computed and is_kind(i, _FLOATS)]
        return sorted(out)

    outputs = {t.name for t in graph.outputs}
    tensors: list[str] = []
    compared: dict[str, bool] = {}  # reason -> whether it is rounded and nothing else
    hidden: dict[str, dict[str, bool]] = {}  # decided, but not to be seen in both -> its reasons

    def note(reasons: dict[str, bool], more: Mapping[str, bool]) -> None:
        reasons.update((name, rounds and reasons.get(name, True)) for name, rounds in more.items())

    for node in graph.nodes:
        # What the bodies of an If or a Loop decide comes out of it, and they read what is around them.
        inner = [t for body in node.subgraphs(recursive=True) for n in body.nodes for t in n.inputs]
        reads = [t for t in (*node.inputs, *inner) if t.name in computed]
        if node.op in _CONTINUOUS or not reads:
            continue
        computed.update(t.name for t in node.outputs if t.name)
        if node.domain or node.op.startswith(_QUANTIZERS):
            continue
        numbers = [t for t in reads if is_kind(t, _FLOATS)]
        steps = node.op in _STEPS
        decided = [t.name for t in node.outputs if is_kind(t, _FLOATS if steps else "iub")]
        if any(removable(analysis, n) for n in (*(t.name for t in numbers), *decided)):
            continue
        rounds = steps or (node.op == "Cast" and not is_kind(node.outputs[0], "b"))
        reasons = dict.fromkeys(shown(numbers), rounds)
        for t in reads:
            note(reasons, hidden.get(t.name, {}))
        for name in decided if reasons else ():
            if name in there:
                tensors.append(name)
                note(compared, dict.fromkeys(reasons, False) if name in outputs else reasons)
            else:
                hidden[name] = reasons
    return Decisions(tuple(tensors), tuple(compared), frozenset(n for n, rounds in compared.items() if rounds))


def removable(analysis: Analysis, name: str) -> bool:
    """Whether any axis of a tensor has indices that can be removed."""
    axes = analysis.table.variables.get(name, [])
    return any(a is not None and bool(analysis.component[a].any()) for a in axes)


def given(model: Model, values: Mapping[str, Array], analysis: Analysis) -> Model:
    """A copy in which these tensors are inputs, of any size: their values come from elsewhere.

    Args:
        model: the analysed one, or one with tensors of the same names.
        values: an example of each; their rank is kept, without which onnxruntime cannot infer what Loops do with them.
        analysis: of the model.
    """
    if not values:
        return model
    model = model.copy()
    graph = model.graph
    tensors = graph.tensors()
    taken = set(tensors)
    for name, value in values.items():
        t = tensors[name]
        node = t.inputs[0]
        place = next(i for i, o in enumerate(node.outputs) if o is t)
        node.outputs[place] = gs.Variable(unique_name(taken, f"{name}_computed"), t.dtype)
        for body in node.subgraphs(recursive=True):  # a branch may call what it returns by the name it has outside
            for own in (o for n in body.nodes for o in n.outputs if o.name == name):
                own.name = unique_name(taken, f"{name}_returned")
        t.dtype = analysis.witness.dtypes.get(name) or t.dtype or value.dtype
        t.shape = [f"{name}_{axis}" for axis in range(value.ndim)]
        graph.inputs.append(t)
    return model
