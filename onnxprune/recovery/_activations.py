"""Activations behind the stable point of a linear node, and targets of its fit that take them into account.

Before:  z* - z counts everywhere
After:   f(z*) - f(z) counts, f the scalar function behind z: Relu, Clip, or a chain of elementwise nodes with scalar
constants, such as HardSwish as Add, Clip, Mul, Div, or GELU as Div, Erf, Add, Mul, Mul
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_graphsurgeon as gs

from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model

# Nodes of a chain; their constants hold one number each. Exp is not among them: it decodes boxes, and the squared error
# of the largest would outweigh all others.
_LINEAR = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Identity"})
_CURVED = frozenset({
    "Relu", "Clip", "Min", "Max", "Sigmoid", "Tanh", "Erf", "Pow", "Abs", "HardSwish", "HardSigmoid", "LeakyRelu",
    "PRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Gelu", "FastGelu", "QuickGelu", "Mish", "Swish",
    "ThresholdedRelu",
})  # fmt: skip
_LONGEST = 32  # nodes of a chain
_STEP = 1e-2  # step of difference quotients, as a share of the standard deviation
_RELAXED = 1.8  # t, see `ElementwiseChain.target`
_BLOCK = 2**15  # values evaluated at a time
_PROBES = np.linspace(-100, 100, 801, dtype=np.float32)[:, None]


class Activation(Protocol):
    """Function of the values at a stable point, entry by entry."""

    def __call__(self, z: Array) -> Array:
        """Return the values passed on."""

    def bends(self, wanted: Array) -> bool:
        """Return whether it is not the identity on some values."""

    def target(self, given: Array, wanted: Array, passed: Array) -> Array:
        """Return values towards which a least-squares fit lowers the error of the values passed on.

        Args:
            given: Values of the present fit, [n, outputs].
            wanted: Values of the original, same shape.
            passed: This function of them.
        """


@dataclass(frozen=True)
class Clamp:
    """Relu or Clip; with infinite bounds the identity.

    Attributes:
        low: Lower bound; -inf if there is none.
        high: Upper bound; inf if there is none.
    """

    low: float = -np.inf
    high: float = np.inf

    def __call__(self, z: Array) -> Array:
        return np.clip(z, self.low, self.high)

    def bends(self, wanted: Array) -> bool:
        return bool((wanted <= self.low).any() or (wanted >= self.high).any())

    def target(self, given: Array, wanted: Array, passed: Array) -> Array:
        """Return what is wanted; beyond a bound, where all values are equally good, what is given beyond it."""
        found = wanted.copy("K")
        np.minimum(given, self.low, out=found, where=wanted <= self.low)
        np.maximum(given, self.high, out=found, where=wanted >= self.high)
        return found


@dataclass(frozen=True)
class ElementwiseChain:
    """Chain of elementwise nodes, evaluated by onnxruntime.

    Attributes:
        session: Its nodes as a model of one input and one output.
        input: Name of the input.
        dtype: Its type.
    """

    session: Session = field(repr=False)
    input: str
    dtype: np.dtype[Any]

    def __call__(self, z: Array) -> Array:
        [found] = self.session.run({self.input: z.astype(self.dtype, copy=False)})
        return found.reshape(z.shape).astype(z.dtype, copy=False)

    def bends(self, wanted: Array) -> bool:
        return True

    def target(self, given: Array, wanted: Array, passed: Array) -> Array:
        """Return `z - t f'(z) (f(z) - f(z*)) / max f'^2`, t < 2: a step of Gauss-Newton that overshoots nowhere.

        The error of the fit then bounds that of the values passed on, but for the curvature of f (majorization: Hunter
        & Lange 2004, A Tutorial on MM Algorithms). All outputs share one Gram matrix.
        """
        step = given.dtype.type(_STEP * float(given.std(dtype=np.float64)) or _STEP)
        change, steepest = np.empty_like(given), 0.0
        rows = max(1, _BLOCK // given.shape[1])
        for i in range(0, len(given), rows):
            z = given[i : i + rows]
            value, beside = np.split(self(np.concatenate([z, z + step])), 2)
            slope = (beside - value) / step
            change[i : i + rows] = slope * (value - passed[i : i + rows])
            steepest = max(steepest, float(np.square(slope).max(initial=0.0)))
        if steepest > 0:
            change *= given.dtype.type(_RELAXED / steepest)
        return np.asarray(given - change)


def chain(t: gs.Tensor, outputs: Collection[str], known: Collection[str]) -> tuple[list[gs.Node], gs.Tensor] | None:
    """Return the longest chain of nodes that computes one tensor from `t` alone, entry by entry, and that tensor.

    Args:
        t: Tensor whose consumers are followed.
        outputs: Names of the model's outputs; a chain does not end at one, because an output is compared as it is.
        known: Names of the tensors of the graph itself, without those in the bodies of If and Loop.

    Returns:
        Nodes in order and the tensor; None if there is no such chain, or it is linear.
    """
    nodes: list[gs.Node] = []
    inside, found, curved = {t.name: t}, None, False
    while len(nodes) < _LONGEST and not any(name in outputs for name in inside):
        taken = {id(n) for n in nodes}
        behind = (n for x in inside.values() for n in x.outputs if id(n) not in taken)
        node = next((n for n in behind if _follows(n, inside) and n.outputs[0].name in known), None)
        if node is None:
            break
        nodes.append(node)
        taken.add(id(node))
        curved |= node.op in _CURVED or sum(isinstance(x, gs.Variable) for x in node.inputs) > 1
        inside[node.outputs[0].name] = node.outputs[0]
        ends = [x for x in inside.values() if x.name in outputs or any(id(n) not in taken for n in x.outputs)]
        if curved and len(ends) == 1 and ends[0] is not t and ends[0].name not in outputs:
            found = list(nodes), ends[0]
    return found


def _follows(node: gs.Node, inside: Collection[str]) -> bool:
    """Return whether a node is elementwise and reads only tensors of the chain and single numbers."""
    if node.op not in _LINEAR | _CURVED or len(node.outputs) != 1:
        return False
    return all(
        x.values.size == 1 if isinstance(x, gs.Constant) else not x.name or x.name in inside for x in node.inputs
    )


def activation(
    model: Model, t: gs.Tensor, found: tuple[Sequence[gs.Node], gs.Tensor], dtype: np.dtype[Any]
) -> Activation:
    """Return a chain as a function; the identity if some of its values are not finite, such as those of a root.

    Args:
        model: Model that it is part of.
        t: Tensor that it reads.
        found: Result of `chain`.
        dtype: Type of both tensors.
    """
    nodes, end = found
    part = model.part(nodes, [t], [end])
    for x in (*part.graph.inputs, *part.graph.outputs):
        x.dtype, x.shape = dtype, None
    part.graph.inputs[0].shape = ["rows", "outputs"]
    curve = ElementwiseChain(Session(part, threads=1), t.name, dtype)  # blocks are too small for more threads
    return curve if np.isfinite(curve(_PROBES)).all() else Clamp()
