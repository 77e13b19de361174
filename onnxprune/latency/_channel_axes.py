"""Axes of tensors whose sizes depend on the removed channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.analysis.coupling import Analysis, Kept

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
# A product of sizes: their indices in ascending order; () is 1.
Monomial = tuple[int, ...]


class ChannelAxes:
    """Axes of tensors that shrink when channels are removed; axes with the same components are one.

    `sizes` is [1, counts rounded up to the block ..., the rounded counts that are not whole blocks, else 0 ...,
    a switch for each residual block: 1, or 0 if it is removed ...].
    """

    def __init__(self, components: Sequence[Counts], count: int, block: int, switches: Sequence[int] = ()) -> None:
        self.count = count
        self.block = block
        self.components = components
        self.switches = np.array(switches, np.int64)
        self._flat = np.concatenate(components) if components else np.zeros(0, np.int64)
        self._starts = np.cumsum([0, *[len(c) for c in components[:-1]]]) if components else np.zeros(0, np.int64)

    @classmethod
    def of(cls, analysis: Analysis, block: int) -> ChannelAxes:
        """Return the axes of an analysed model, in graph order."""
        found: dict[bytes, Counts] = {}
        seen: set[int] = set()
        for axes in (*analysis.table.variables.values(), *analysis.table.constants.values()):
            for labels in axes:
                if labels is None or id(labels) in seen:
                    continue
                seen.add(id(labels))
                components = analysis.component[labels]
                if components.any():
                    found.setdefault(np.sort(components).tobytes(), components)
        return cls(list(found.values()), analysis.count, block, [b.component for b in analysis.free_blocks])

    def only(self, monomials: Sequence[Monomial]) -> tuple[ChannelAxes, list[Monomial]]:
        """Return the axes that some products need, and the products as indices into these."""
        n = len(self.components)
        used = sorted({p for m in monomials for p in m})
        rows = sorted({(p - 1) % n for p in used if 0 < p <= 2 * n})
        places = [p - 1 - 2 * n for p in used if p > 2 * n]
        new = {0: 0}
        for i, row in enumerate(rows):
            new[1 + row] = 1 + i
            new[1 + n + row] = 1 + len(rows) + i
        for i, place in enumerate(places):
            new[1 + 2 * n + place] = 1 + 2 * len(rows) + i
        small = ChannelAxes([self.components[r] for r in rows], self.count, self.block, self.switches[places].tolist())
        return small, [tuple(new[p] for p in m) for m in monomials]

    def counts(self, kept: Kept) -> Counts:
        """Return the number of kept indices of each axis."""
        if not len(self._flat):
            return np.zeros(0, np.int64)
        return np.asarray(np.add.reduceat(kept[self._flat].astype(np.int64), self._starts), np.int64)

    def sizes(self, kept: Kept) -> Floats:
        """Return the factors of products."""
        counts = self.counts(kept)
        whole = -(-counts // self.block) * self.block
        return np.concatenate([[1.0], whole, np.where(whole == counts, 0, whole), kept[self.switches]])

    def switch(self, block: int) -> int:
        """Return the index of a block's switch among the sizes."""
        return 1 + 2 * len(self.components) + block
