"""Layer-wise relevance propagation through a module of the bridge: from the logits back to any tensor inside.

Every operator passes the relevance R of its output y to its inputs:

- Conv, ConvTranspose, Gemm, MatMul, Einsum with weights: the z+ rule, in proportion to the positive contributions
  `x_i w_ij`, bias ignored. If no input is negative, as after a ReLU, that is `x * V^T(R / (V x + 1e-9))` with
  V = max(w, 0). Negative inputs contribute through negative weights: otherwise `V x` approaches zero and relevance is
  unbounded (EfficientNet-B0 overflows). Relevance to which no input contributes is lost.
- Elementwise functions, normalizations, softmax, + - * / with constants: unchanged.
- Operators that move or select elements (Reshape, Concat, Split, MaxPool by arg-max ...): moved back to the elements'
  origin; padding's share is lost.
- Add, Sub, Sum, Mean of activations; averages and sums over axes, Resize: in proportion to the contributions that have
  the sign of y, that is the positive ones if y is positive.
- Mul of activations: all to the signal and none to its gate, or half each if neither is a gate (`Relevance._signal`
  selects the signal). Division: all to the dividend. Power: all to the base.
- MatMul, Einsum of activations (attention): in proportion to the products that have the sign of y, half of each to
  either factor.
- Any other: `x * J^T(R / (y + 1e-9 sign(y)))`, with J the Jacobian.

Except for losses named above and the last rule, relevance is conserved, and not negative if R is not.

Sources: Bach et al. 2015, PLoS ONE 10(7) (the z+ rule is their alpha 1, beta 0); Montavon et al. 2017,
arXiv:1512.02479; for gates Arras et al. 2017, arXiv:1706.07206; for normalizations, products and softmax, simplified,
Achtibat et al. 2024, arXiv:2402.05602.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

EPSILON = 1e-9

_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"))
_BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}  # input index of the bias, if it is an input of the module
_UNCHANGED = frozenset((
    "Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Selu", "Celu", "Softplus",
    "Softsign", "Tanh", "Gelu", "Mish", "Swish", "ThresholdedRelu", "Shrink", "Erf", "Abs", "Neg", "Exp", "Log", "Sqrt",
    "Reciprocal", "Sin", "Cos", "Round", "Floor", "Ceil", "Identity", "Cast", "CastLike", "Dropout", "Pow", "Div",
    "BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization", "RMSNormalization",
    "LRN", "LpNormalization", "MeanVarianceNormalization", "Softmax", "LogSoftmax", "QuantizeLinear",
    "DequantizeLinear",
))  # fmt: skip
_MOVED = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Pad", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Trilu", "Where",
    "ScatterElements", "ScatterND", "TopK", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Compress",
))  # fmt: skip
_ADDED = frozenset(("Add", "Sub", "Sum", "Mean"))
_AVERAGED = frozenset((
    "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "Resize", "Upsample", "CumSum", "GridSample",
    "RoiAlign",
))  # fmt: skip
_EXTREMES = frozenset(("Max", "Min"))
# Squashing functions: of two factors of one shape, the output of one of these is the gate.
_GATES = frozenset(("Sigmoid", "HardSigmoid", "Tanh", "Softmax", "Clip", "Erf"))


class Relevance:
    """Relevance of tensors of a module.

    Args:
        module: Module of `to_torch`, in inference mode; it returns a tuple that begins with the logits. Its other
            outputs are the tensors whose relevance is computed.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.nodes = list(module.graph.nodes)
        self.outputs: list[fx.Node] = list(self.nodes[-1].args[0])
        self.ancestry = _Ancestry(self.nodes)

    def __call__(self, x: Tensor, start: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Return the relevance of the requested tensors.

        Args:
            x: Input of the module.
            start: Function from the logits to their relevance, of equal shape.

        Returns:
            For every output after the logits a tensor of equal shape; zeros if the logits do not depend on it.
        """
        with torch.no_grad():
            run = fx.Interpreter(self.module, garbage_collect_values=False)
            run.run(x)
            values: dict[fx.Node, Any] = run.env
            depends = _dependent(self.nodes)
            carries = {n for n in depends if isinstance(values[n], Tensor) and values[n].is_floating_point()}
            found: dict[fx.Node, Tensor] = {}
            # For nodes with several outputs, by output.
            parts: dict[fx.Node, dict[int, Tensor]] = {}
            _add(found, self.outputs[0], start(values[self.outputs[0]]))
            wanted: dict[fx.Node, Tensor] = {}
            for node in reversed(self.nodes):
                if node in self.outputs[1:]:
                    wanted[node] = found.get(node, torch.zeros((), device=x.device)).expand_as(values[node])
                r = found.pop(node, None)
                if node.op == "call_function" and node.target is getitem and r is not None:
                    source, place = node.args
                    parts.setdefault(source, {})[place] = r
                elif node.op == "call_module" and (r is not None or node in parts):
                    given = parts.pop(node, {}) if r is None else {0: r}
                    for source, share in self._propagated(node, given, values, carries):
                        _add(found, source, share)
                del values[node]  # its consumers are processed
        return [wanted[node] for node in self.outputs[1:]]

    def _propagated(
        self, node: fx.Node, relevances: Mapping[int, Tensor], values: Mapping[fx.Node, Any], carries: set[fx.Node]
    ) -> list[tuple[fx.Node, Tensor]]:
        """Return the share of each input of a node in the relevance of the node's outputs."""
        places = [i for i, a in enumerate(node.args) if isinstance(a, fx.Node) and a in carries]
        if not places:
            return []
        op: str = node.meta.get("op", "")
        module = self.module.get_submodule(str(node.target))
        arguments = [values[a] if isinstance(a, fx.Node) else a for a in node.args]
        call = _Call(op, module, arguments, places)
        sources: list[fx.Node] = [node.args[i] for i in places]
        first = relevances.get(0)
        if op in _MOVED:
            shares = call.moved(relevances)
        elif first is None:
            shares = call.generic(relevances)
        elif op in _WEIGHTED and len(places) == 1:
            shares = [call.weighted(first)]
        elif op in _UNCHANGED or (len(places) == 1 and op in (*_ADDED, *_EXTREMES, "Mul")):
            sources = sources[:1]
            shares = [first.sum_to_size(call.xs[0].shape)]
        elif op in _EXTREMES:
            shares = call.moved(relevances)
        elif op in _ADDED:
            shares = call.added(first)
        elif op in _AVERAGED:
            sources = sources[:1]
            shares = [call.only_first().added(first)[0]]
        elif op == "Mul":
            shares = self._multiplied(first, sources, call.xs)
        elif op in _WEIGHTED and places == [0, 1]:
            shares = call.bilinear(first)
        else:
            shares = call.generic(relevances)
        return list(zip(sources, shares, strict=True))

    def _multiplied(self, r: Tensor, sources: list[fx.Node], xs: list[Tensor]) -> list[Tensor]:
        signal = self._signal(sources, xs)
        weights = [0.5, 0.5] if signal is None else [1.0 - signal, float(signal)]
        return [(r * w).sum_to_size(x.shape) for w, x in zip(weights, xs, strict=True)]

    def _signal(self, sources: Sequence[fx.Node], xs: Sequence[Tensor]) -> int | None:
        """Return the index of the signal of two factors, the other being its gate; None if neither is a gate.

        1. The factor from which the other is computed: x in x * sigmoid(x), and in squeeze-and-excitation.
        2. The larger one: the other broadcasts to it.
        3. The one that is not the output of a squashing function: a in a * sigmoid(b).
        """
        a, b = sources
        if self.ancestry.leads(a, b) or self.ancestry.leads(b, a):
            return 0 if self.ancestry.leads(a, b) else 1
        if xs[0].numel() != xs[1].numel():
            return 0 if xs[0].numel() > xs[1].numel() else 1
        squashed = [s.meta.get("op") in _GATES for s in sources]
        return squashed.index(False) if any(squashed) and not all(squashed) else None


class _Call:
    """A node's module with its arguments, as a function of the arguments that carry relevance.

    Args:
        op: ONNX operator.
        module: Module that computes it.
        arguments: Values of all inputs.
        indices: Indices of the inputs that carry relevance.
    """

    def __init__(self, op: str, module: nn.Module, arguments: Sequence[Any], indices: Sequence[int]) -> None:
        self.op, self.module, self.arguments, self.indices = op, module, list(arguments), list(indices)
        self.xs: list[Tensor] = [self.arguments[i].detach() for i in self.indices]

    def only_first(self) -> _Call:
        """Return the call as a function of the first input that carries relevance."""
        return _Call(self.op, self.module, self.arguments, self.indices[:1])

    def homogeneous(self, indices: Sequence[int]) -> _Call:
        """Return the call with zeros for the constants at some inputs."""
        arguments = [
            torch.zeros_like(a) if i in indices and i not in self.indices and isinstance(a, Tensor) else a
            for i, a in enumerate(self.arguments)
        ]
        return _Call(self.op, self.module, arguments, self.indices)

    def __call__(self, *xs: Tensor) -> Any:
        """Return the module's outputs."""
        arguments = list(self.arguments)
        for place, x in zip(self.indices, xs, strict=True):
            arguments[place] = x
        return self.module(*arguments)

    def moved(self, relevances: Mapping[int, Tensor]) -> list[Tensor]:
        """Move relevance back to the origin of each element."""
        return self._credited(
            lambda *xs: [(_output(y, self(*xs)) * r).sum() for y, r in relevances.items()], times=False
        )

    def weighted(self, r: Tensor) -> Tensor:
        """Share relevance in proportion to the positive products of input and weight."""
        (x,) = self.xs
        signed = bool((x < 0).any())

        def terms(x: Tensor) -> list[Tensor]:
            z = self._by_weights(x.clamp(min=0), 1)
            if signed:
                z = z + self._by_weights(x.clamp(max=0), -1)
            return [(z * (r / (z.detach() + EPSILON))).sum()]

        return self._credited(terms)[0]

    def _by_weights(self, x: Tensor, sign: int) -> Tensor:
        """Compute the node with its positive or its negative weights alone, and without bias."""

        def part(w: Tensor) -> Tensor:
            return w.clamp(min=0) if sign > 0 else w.clamp(max=0)

        arguments = [
            a if not isinstance(a, Tensor) or i in self.indices else torch.zeros_like(a) if i == bias else part(a)
            for bias in (_BIAS.get(self.op),)
            for i, a in enumerate(self.arguments)
        ]
        arguments[self.indices[0]] = x
        held = {
            name: torch.zeros_like(w) if name.endswith("bias") else part(w)
            for name, w in self.module.named_parameters()
        }
        made: Tensor = functional_call(self.module, held, tuple(arguments))
        return made

    def added(self, r: Tensor) -> list[Tensor]:
        """Share relevance in proportion to the contributions that have the sign of the sum."""
        signs = (1, -1) if self.op == "Sub" else (1,) * len(self.xs)
        call = self.homogeneous(range(len(self.arguments))) if self.op in _ADDED else self

        def terms(*xs: Tensor) -> list[Tensor]:
            up = call(*(x.clamp(min=0) if s > 0 else x.clamp(max=0) for x, s in zip(xs, signs, strict=True)))
            down = call(*(x.clamp(max=0) if s > 0 else x.clamp(min=0) for x, s in zip(xs, signs, strict=True)))
            return _by_sign(r, up, down)

        return self._credited(terms)

    def bilinear(self, r: Tensor) -> list[Tensor]:
        """Share relevance in proportion to the products that have their sum's sign; half of each to either factor."""

        call = self.homogeneous([_BIAS[self.op]] if self.op in _BIAS else [])

        def terms(a: Tensor, b: Tensor) -> list[Tensor]:
            (a_up, a_down), (b_up, b_down) = ((x.clamp(min=0), x.clamp(max=0)) for x in (a, b))
            up = call(a_up, b_up) + call(a_down, b_down)
            down = call(a_up, b_down) + call(a_down, b_up)
            return _by_sign(r / 2, up, down)

        return self._credited(terms)

    def generic(self, relevances: Mapping[int, Tensor]) -> list[Tensor]:
        """Return input times the gradient of the outputs, each weighted by its relevance over its value."""

        def terms(*xs: Tensor) -> list[Tensor]:
            made = self(*xs)
            out = []
            for place, r in relevances.items():
                y = _output(place, made)
                sign = torch.where(y.detach() < 0, -1.0, 1.0)
                out.append((y * (r / (y.detach() + EPSILON * sign))).sum())
            return out

        return self._credited(terms)

    def _credited(self, terms: Callable[..., list[Tensor]], *, times: bool = True) -> list[Tensor]:
        """Return the inputs times the gradient of a sum of terms; the gradient alone if not `times`."""
        with torch.enable_grad():
            xs = [x.detach().requires_grad_() for x in self.xs]
            total = torch.stack(terms(*xs)).sum()
            gradients = torch.autograd.grad(total, xs, allow_unused=True, materialize_grads=True)
        return [g * x if times else g for g, x in zip(gradients, self.xs, strict=True)]


def _by_sign(r: Tensor, up: Tensor, down: Tensor) -> list[Tensor]:
    """Return terms whose gradient shares relevance among the parts of a sum that have the sum's sign."""
    positive = (up + down).detach() >= 0
    zero = torch.zeros_like(r)
    return [
        (up * torch.where(positive, r / (up.detach() + EPSILON), zero)).sum(),
        (down * torch.where(positive, zero, r / (down.detach() - EPSILON))).sum(),
    ]


def _output(index: int, result: Any) -> Tensor:
    found: Tensor = result[index] if isinstance(result, tuple | list) else result
    return found


def _add(found: dict[fx.Node, Tensor], node: fx.Node, r: Tensor) -> None:
    found[node] = found[node] + r if node in found else r


def _dependent(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes computed from the input's values, not from its shape alone."""
    out: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or (
            node.meta.get("op") not in ("Shape", "Size") and any(a in out for a in node.all_input_nodes)
        ):
            out.add(node)
    return out


class _Ancestry:
    """Ancestors of every node, one bit per node."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.bit = {node: 1 << i for i, node in enumerate(nodes)}
        self.above: dict[fx.Node, int] = {}
        for node in nodes:
            mask = 0
            for source in node.all_input_nodes:
                mask |= self.above[source] | self.bit[source]
            self.above[node] = mask

    def leads(self, a: fx.Node, b: fx.Node) -> bool:
        """Return whether b is computed from a."""
        return bool(self.above[b] & self.bit[a])
