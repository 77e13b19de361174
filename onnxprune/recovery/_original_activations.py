"""Activations of the original where layers are solved, computed once for several recoveries of the same samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, TypeVar

from onnxprune.analysis.shapes.shape_inference import Witness
from onnxprune.execution.graph_segments import ActivationCursor
from onnxprune.ir.model import Array

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MEMORY = 2**30

T = TypeVar("T")


class OriginalActivations:
    """Store of the original's activations, for recoveries with the same original, samples and batches.

    The original is run from one linear node to the next, whichever layers were changed: a value never depends on the
    plans of earlier recoveries, so that an interrupted run ends with the bytes of one that was not.

    Args:
        memory: Bytes to hold; tensors that do not fit are computed anew for each recovery.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self.memory = memory
        self._found: dict[str, list[Array]] = {}
        self._owner: tuple[Witness, int, int] | None = None
        self._results: dict[Hashable, Any] = {}
        self._results_of: Witness | None = None

    def once(self, witness: Witness, key: Hashable, compute: Callable[[], T]) -> T:
        """Return a result that depends on the original and the samples alone, computed at the first call.

        Args:
            witness: Witness of the original.
            key: Everything else that the result depends on.
            compute: Function that computes it.
        """
        if self._results_of is not witness:
            self._results, self._results_of = {}, witness
        if key not in self._results:
            self._results[key] = compute()
        found: T = self._results[key]
        return found

    def values(self, cursor: ActivationCursor, name: str, node_index: int) -> Iterator[Array]:
        """Yield a tensor batch by batch, from the store or by running the original.

        Args:
            cursor: Cursor on the original, not beyond the node.
            name: Name of the tensor.
            node_index: Index of the linear node before it.
        """
        witness, size = cursor.segments.witness, (len(cursor), len(cursor.feeds.data))
        if self._owner is None or self._owner[0] is not witness or self._owner[1:] != size:
            self._found, self._owner = {}, (witness, *size)
        if name in self._found:
            yield from self._found[name]
            return
        for i, node in enumerate(cursor.segments.nodes[: node_index + 1]):
            if node.op in LINEAR:
                cursor.advance(i)
        cursor.advance(node_index)
        kept: list[Array] | None = []
        room = self.memory - sum(v.nbytes for known in self._found.values() for v in known)
        for found in cursor.values([name]):
            values = found[name]
            if kept is not None and not kept and values.nbytes * len(cursor) > room:
                kept = None
            if kept is not None:
                kept.append(values)
            yield values
        if kept is not None:
            self._found[name] = kept
