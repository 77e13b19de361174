"""End-to-end runs of both models, on random inputs and the user's: the second line of the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxprune.errors import OnnxPruneError, VerificationError
from onnxprune.execution.sessions import Session
from onnxprune.ir.branches import is_loop_end
from onnxprune.ir.model import Array
from onnxprune.ir.proto_graph import Graph, quantizes
from onnxprune.verification._certificate import QUANTIZED
from onnxprune.verification._claims import Claims
from onnxprune.verification._compare import TensorComparison
from onnxprune.verification._induction import REPORT
from onnxprune.verification._reference import Reference
from onnxprune.verification._sessions import Sessions
from onnxprune.verification._size_runs import SizedRun

Feeds = Mapping[str, Array]
_HEADS = frozenset(("Sigmoid", "Softmax", "LogSoftmax", "HardSigmoid"))
_VIEWS = frozenset(("Identity", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Concat"))


class WholeRuns:
    """Comparison of whole runs of the pruned model and the masked reference.

    Args:
        original: Original without masks.
        masked: Masked reference.
        pruned: Pruned model.
        cuts: Tensors that both models have.
        claims: Kept indices of each tensor.
        sessions: Factory of sessions.
        tolerance: (element type) -> largest allowed difference.
        exact: Whether the caller set the tolerance: no extra allowance for noise or quantization.
        seed: Seed of the noise.

    Attributes:
        observed: Compared tensors.
    """

    def __init__(
        self, original: Graph, masked: Reference, pruned: Graph, cuts: set[str], claims: Claims, sessions: Sessions,
        tolerance: Callable[[np.dtype], float], *, exact: bool, seed: int,
    ) -> None:  # fmt: skip
        self.plain, self.masked, self.reference, self.pruned = original, masked, masked.graph, pruned
        self.cuts, self.claims, self.sessions = cuts, claims, sessions
        self.tolerance, self.exact, self.seed = tolerance, exact, seed
        self.observed = self._observables()

    def _observables(self) -> list[str]:
        """Return the tensors to compare: outputs, or for decided outputs the numbers before the decision.

        Inputs of a final Sigmoid or Softmax are compared as well.
        """
        graph = self.reference
        decided = graph.discontinuous(self.masked.rounded)
        out: list[str] = []
        for name in graph.outputs:
            front, seen = [name], {name}
            while front:
                t = front.pop()
                ours = t in self.cuts or t in graph.outputs
                if t not in graph.writer or t in graph.fixed:
                    continue
                node = graph.nodes[graph.writer[t]]
                if is_loop_end(node):  # a value in the body has no single value
                    node = graph.nodes[graph.writer[node.input[0]]]
                quantized = quantizes(node) and t not in graph.outputs
                if t not in decided and ours and not quantized and not self.claims.removes(t):
                    out.append(t)
                    head = _read_by_head(t, graph)
                    if head in self.cuts and not self.claims.removes(head) and head not in decided:
                        out.append(head)
                    continue
                more = [n for n in node.input if n and n not in seen]
                seen.update(more)
                front += more
        found = [n for n in dict.fromkeys(out) if n in self.pruned.writer]
        return found or [n for n in graph.outputs if n in graph.writer and n in self.pruned.writer and n not in decided]

    def compare(self, runs: Sequence[SizedRun], data: Sequence[Feeds]) -> tuple[dict[str, float], float]:
        """Run both models on random inputs and the user's; return the differences and the effect of removal."""
        names = list(dict.fromkeys(self.observed))
        proto, external = self.pruned.with_outputs(
            list(self.pruned.outputs) + [n for n in names if n not in self.pruned.outputs]
        )
        session = self.sessions.model_session(proto, external)
        found = {n: TensorComparison(bounded=bool(_read_by_head(n, self.reference))) for n in names}
        pairs: list[tuple[Feeds, Mapping[str, Array]]] = [(r.feeds, r.expected) for r in runs]
        if data and names:
            whole = self.sessions.model_session(*self.reference.with_outputs(names))
            pairs += [(f, dict(zip(names, map(np.array, whole.run(f, names)), strict=True))) for f in data]
            del whole
        for feeds, wanted in pairs:
            for n, value in self._outputs(session, feeds, names).items():
                found[n].add(value, wanted[n])
        del session  # releases its copy of the weights
        worst = {n: found[n].worst()[0] for n in names}
        for n in names:
            limit = self._limit(runs[0].expected[n].dtype)
            beyond = worst[n]
            if worst[n] > limit and not self.exact:
                beyond = found[n].beyond(self._noise(pairs, n))
            if not beyond <= limit:
                raise VerificationError(
                    f"the pruned model differs from the masked original by {worst[n]:.2g} relative"
                    f" (allowed: {limit:.0e}){': ' * bool(found[n].problem)}{found[n].problem}",
                    where=f"output {n!r}, in a whole run", fix=REPORT,
                )  # fmt: skip
        return worst, self._effect(runs, names)

    def _outputs(self, session: Session, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(feeds, names), strict=True)) if names else {}
        except OnnxPruneError as err:
            raise VerificationError(f"the pruned model fails where the original runs: {err.what}") from err

    def _limit(self, dtype: np.dtype) -> float:
        own = self.tolerance(dtype)
        return max(own, QUANTIZED) if self.sessions.quantized and not self.exact else own

    def _noise(self, pairs: Sequence[tuple[Feeds, Mapping[str, Array]]], name: str) -> TensorComparison:
        """Return the effect of rounding errors in the masks on an output of the reference, over all runs."""
        proto, external = self.reference.with_outputs([name])
        session = self.sessions.model_session(self.masked.noisy(proto, self.seed), external)
        found = TensorComparison()
        for feeds, wanted in pairs:
            found.add(session.run(feeds, [name])[0], wanted[name])
        return found

    def _effect(self, runs: Sequence[SizedRun], names: Sequence[str]) -> float:
        """Return the difference of reference and original on the smallest inputs; 1 if shapes differ."""
        if not names:
            return 0.0
        run = min(runs, key=lambda r: sum(v.size for v in r.feeds.values()))
        proto, external = self.plain.with_outputs(list(names))
        got = self.sessions.model_session(proto, external).run(run.feeds, names)
        out = 0.0
        for n, value in zip(names, got, strict=True):
            found = TensorComparison()
            found.add(value, run.expected[n])
            worst = found.worst()[0]
            out = max(out, min(worst, 1.0) if np.isfinite(worst) else 1.0)
        return out


def _read_by_head(name: str, graph: Graph) -> str:
    """Return the input of a final Sigmoid or Softmax; "" if there is none."""
    for _ in range(4):
        if name not in graph.writer:
            return ""
        node = graph.nodes[graph.writer[name]]
        if node.op_type in _HEADS:
            return str(node.input[0])
        if node.op_type not in _VIEWS:
            return ""
        name = node.input[0]
    return ""
