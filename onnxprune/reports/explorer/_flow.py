"""Data flow between groups, laid out like the history of a repository.

Groups are rows, in the order of their first producer. A group's line runs down its lane to the last layer that consumes
it or adds to it: a residual stream is a long line, the layers of its blocks branch off and return.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from onnxprune.analysis.coupling import Analysis, components
from onnxprune.analysis.group_naming import human_name
from onnxprune.ops.label_table import Contraction, FilterSite, Labels


@dataclass(frozen=True)
class FlowRow:
    """Group, or locked channels.

    Attributes:
        name: name of the group.
        channels: their number.
        op: operator of its first producer.
        group: its place in `analysis.groups`; None for locked channels.
        reason: reason of the lock.
        lane: column of its line.
        end: the last row that consumes it or adds to it.
    """

    name: str
    channels: int
    op: str
    group: int | None
    reason: str
    lane: int
    end: int


@dataclass(frozen=True)
class Flow:
    """Rows from top to bottom, and edges (row of the consumed group, row of the produced group).

    An edge to a row above is an addition into a stream that began there.
    """

    rows: tuple[FlowRow, ...]
    edges: tuple[tuple[int, int], ...]


def flow(analysis: Analysis) -> Flow:
    """Return the flow: an edge for every layer that sums over one group's channels and produces another's."""
    table = analysis.table
    root = components(table.count, table.ties)
    owners = _Owners(analysis, root)
    edges: dict[tuple[int, int], None] = {}
    for sites, contractions in _layers(analysis):
        sources = [owners.of(c.labels) for c in contractions]
        targets = [owners.of(s.labels, s) for s in sites]
        for target in (t for found in targets for t in found):
            edges |= {(source, target): None for found in sources for source in found if source != target}
    owners.add_rest()
    ends = list(range(len(owners.found)))
    for source, target in edges:
        ends[source] = max(ends[source], target)
        ends[target] = max(ends[target], source)
    lanes = _lanes(ends, set(edges))
    rows = [FlowRow(*what, lane, end) for what, lane, end in zip(owners.found, lanes, ends, strict=True)]
    return Flow(tuple(rows), tuple(edges))


def _layers(analysis: Analysis) -> Iterator[tuple[list[FilterSite], list[Contraction]]]:
    """Return the labels that every node produces and sums over, in the order of the graph and its tables."""
    table = analysis.table
    sums: dict[str, list[Contraction]] = {}
    for c in table.contractions:
        sums.setdefault(c.output, []).append(c)
    place = 0
    for node in analysis.model.graph.nodes:
        sites = []
        while place < len(table.filter_sites) and _is_of(table.filter_sites[place], node):
            sites.append(table.filter_sites[place])
            place += 1
        if sites:
            yield sites, sums.get(next(o.name for o in node.outputs if o.name), [])


def _is_of(site: FilterSite, node: gs.Node) -> bool:
    return site.node == node.name and any(t is site.tensor for t in node.inputs)


class _Owners:
    """Rows by label; rows are added at their first use.

    `found` holds the first fields of `FlowRow`: name, channels, operator, group, reason.
    """

    def __init__(self, analysis: Analysis, root: npt.NDArray[np.int64]) -> None:
        self.analysis = analysis
        self.found: list[tuple[str, int, str, int | None, str]] = []
        self._root = root
        self._reasons = {lock.name: lock.reason for lock in analysis.locked}
        self._group = np.full(analysis.count, -1, np.int64)  # by component
        for i, g in enumerate(analysis.groups):
            self._group[g.components] = i
        self._row_of_group = [-1] * len(analysis.groups)
        self._row_of_root = np.full(analysis.table.count, -1, np.int64)

    def of(self, labels: Labels, site: FilterSite | None = None) -> list[int]:
        """Return the rows of some labels; locked channels get a row if a layer produces them."""
        component = self.analysis.component[labels]
        rows = [self._of_group(i) for i in np.unique(self._group[component[component > 0]]).tolist()]
        fixed = self._root[labels[(component == 0) & (labels > 0)]]
        if not len(fixed):
            return rows
        known = self._row_of_root[fixed]
        if site is not None and (known < 0).any():
            new = fixed[known < 0]
            self._row_of_root[new] = len(self.found)
            name = human_name(site.tensor.name, site.node)
            reason = self._reasons.get(name, "")
            self.found.append((name, len(np.unique(new)), site.op, None, reason))
        found = self._row_of_root[fixed]
        locked: list[int] = np.unique(found[found >= 0]).tolist()
        return rows + locked

    def _of_group(self, i: int) -> int:
        if self._row_of_group[i] < 0:
            g = self.analysis.groups[i]
            self._row_of_group[i] = len(self.found)
            self.found.append((g.name, g.channels, g.op, i, ""))
        return self._row_of_group[i]

    def add_rest(self) -> None:
        """Add rows for groups that no layer produces or sums over."""
        for i in range(len(self._row_of_group)):
            self._of_group(i)


def _lanes(ends: Sequence[int], edges: set[tuple[int, int]]) -> list[int]:
    """Assign every row the leftmost lane that is free down to its end.

    If a line ends in the row that it feeds, that row continues in its lane.
    """
    busy: list[int] = []  # lane -> row whose line occupies it
    out = []
    for row in range(len(ends)):

        def free(holder: int, row: int = row) -> bool:
            return ends[holder] < row or (ends[holder] == row and (holder, row) in edges)

        lane = next((i for i, holder in enumerate(busy) if free(holder)), len(busy))
        busy[lane : lane + 1] = [row]
        out.append(lane)
    return out
