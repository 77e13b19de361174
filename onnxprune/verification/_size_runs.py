"""Runs of the masked reference at assignments of sizes: admissible sizes, and the shapes of tensors there."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import OnnxPruneError
from onnxprune.execution.random_values import Values
from onnxprune.ir.model import Array
from onnxprune.ir.proto_graph import Graph
from onnxprune.verification import _sizes as sizes
from onnxprune.verification._sessions import Sessions


@dataclass(frozen=True)
class SizedRun:
    """Run at one admissible assignment: inputs, results of the reference, and shapes of all leaves that it computed."""

    number: int
    sizes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    feeds: Mapping[str, Array]
    expected: dict[str, Array]


class SizeFinder:
    """Search for admissible assignments by running the reference; records the shapes of leaves.

    Args:
        reference: Masked original.
        sessions: Factory of its session.
        values: Source of random inputs.
        observed: Tensors whose values are recorded.
        leaves: Tensors whose shapes are recorded.
        tested: Small tensors of the shape arithmetic whose values are recorded, too.
        runs: Earlier runs to continue.
    """

    def __init__(
        self, reference: Graph, sessions: Sessions, values: Values, observed: Sequence[str], leaves: Collection[str],
        tested: Sequence[str] = (), runs: Sequence[SizedRun] = (),
    ) -> None:  # fmt: skip
        self.runs = list(runs)
        self.error = ""
        self._graph = graph = reference
        self._values = values
        self._observed = observed
        self._inner = sorted(n for n in leaves if n not in graph.inputs)
        self._tested = graph.outside_branches([n for n in tested if n in graph.fixed])
        self._seen: dict[str, list[Array]] = {n: [] for n in self._tested}
        self._tried: list[dict[str, int]] = [r.sizes for r in runs]
        outputs = list(dict.fromkeys([*observed, *self._tested]))
        proto, external, self._sizes = graph.with_sizes(outputs, self._inner)
        self._names = [o.name for o in proto.graph.output]
        self._session = sessions.model_session(proto, external)

    def attempt(self, assigned: dict[str, int]) -> bool:
        """Run at one assignment, on inputs of its own style; return whether the original accepts it."""
        if assigned and assigned in self._tried:
            return False
        self._tried.append(assigned)
        graph, number = self._graph, len(self.runs)
        shapes = {n: sizes.shape(n, graph, assigned) for n in graph.inputs}
        if not sizes.affordable(shapes, self.runs[0].shapes, graph) if self.runs else sizes.excessive(assigned):
            return False
        style = ("unit", "positive", "unit", "image")[number % 4]
        for largest, choice in itertools.product((2, 1) if number else (2, 10, 1), range(self._values.choices)):
            try:
                feeds = self._values.inputs(shapes, number, style, largest, choice)
            except OnnxPruneError as err:  # an input that is not numeric
                self.error = err.what
                return False
            if self.fed(assigned, feeds):
                return True
        return False

    def fed(self, assigned: dict[str, int], feeds: Mapping[str, Array]) -> bool:
        """Run on these inputs; return whether the original accepts them."""
        try:
            results = zip(self._names, self._session.run(feeds, self._names), strict=True)
            # Copies, because an output keeps all memory of its session's arena. onnxruntime returns None for a size
            # in nested branches whose inner If it replaced by a branch.
            found = {n: np.array(v) for n, v in results if v is not None}
            wanted = {n: found[n] for n in self._observed}
        except OnnxPruneError as err:
            self.error = err.what
            return False
        except KeyError as err:
            self.error = f"onnxruntime computed no value of {err}"
            return False
        shapes = {}
        for name, size in zip(self._inner, self._sizes, strict=True):
            sizes_of = found.get(size)
            if sizes_of is not None and sizes_of.size:
                shapes[name] = tuple(sizes_of.reshape(-1, sizes_of.shape[-1])[-1, :-1].tolist())
        for name, values in self._seen.items():
            if name in found:
                values.append(found[name])
        shapes |= {n: v.shape for n, v in feeds.items()}
        self.runs.append(SizedRun(len(self.runs), assigned, shapes, feeds, wanted))
        return True

    def compared(self, probes: Sequence[sizes.SizeComparison]) -> set[int] | None:
        """Return the numbers that dynamic sizes are compared with; None if there are no comparisons.

        Comparisons with -1, 0 and 1 test whether a size was given or is inferred, and do not count.
        """
        moving = {n for n, v in self._seen.items() if v and any(not np.array_equal(w, v[0]) for w in v[1:])}
        numbers: set[int] = set()
        found = False
        for probe in probes:
            if not moving.intersection(probe.operands):
                continue
            fixed = [v for n in probe.operands if n not in moving for v in self._seen.get(n, [])[:1]]
            more = {
                int(x)
                for v in fixed
                if v.dtype.kind in "iu"
                for x in v.reshape(-1)[:4]
                if 1 < x <= sizes.LARGEST_NUMBER
            }
            numbers |= more | set(probe.numbers)
            found = found or bool(more or probe.numbers) or len(moving.intersection(probe.operands)) > 1
        return numbers if found else None
