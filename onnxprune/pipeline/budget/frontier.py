"""Accuracy over cost: the points of a frontier, and the Pareto-optimal ones among them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from onnxprune._utils.output.formatting import counted, percent
from onnxprune._utils.output.html import html_table
from onnxprune._utils.strict import Format
from onnxprune.analysis.cost import MEASURES
from onnxprune.errors import OnnxPruneError

RESULT, TABLE = "frontier.json", "frontier.csv"
FORMAT = Format("frontier", 2**26, fix="make it anew with `onnxprune frontier`")
PREDICTED = "latency_predicted"
COSTS = (*MEASURES, "latency", PREDICTED)
"""Costs that points are compared by, as shares of the original's."""


@dataclass(frozen=True, repr=False)
class FrontierPoint:
    """One model of a frontier.

    Attributes:
        curve: Name of its curve: criterion and allocator, with ", int8" if it is quantized.
        target: Share of the measure that was asked for.
        costs: Share of the original's cost that is kept, by its name in `COSTS`; latency is missing if not measured,
            and its prediction unless the points were placed by it.
        value: Metric on held-out samples.
        error: Standard error of the metric; None if it has none.
        drop: Loss against the original, see `Judgement`.
        drop_error: Standard error of the drop; None if it is not known.
        path: File of the model, relative to the folder.
    """

    curve: str
    target: float
    costs: Mapping[str, float]
    value: float
    error: float | None
    drop: float
    drop_error: float | None
    path: str

    def __repr__(self) -> str:
        return f"<FrontierPoint: {self.curve}, {percent(self.costs['macs'])} of the MACs, drop {self.drop:.2f}>"


@dataclass(frozen=True, repr=False)
class FrontierFile:
    """Contents of `frontier.json`.

    Attributes:
        model: Name of the original.
        measure: Measure that the points save.
        metric: Name of the metric.
        unit: Unit of drops.
        higher_is_better: Whether larger values of the metric are better.
        original: Value of the metric for the original.
        samples: Number of held-out samples.
        points: All points, curve by curve, largest first.
        notes: Remarks, such as a curve that ends early.
        machine: Processor, runtime, batch and threads of the latency; "" if there is none, or of an earlier version.
    """

    model: str
    measure: str
    metric: str
    unit: str
    higher_is_better: bool
    original: float
    samples: int
    points: tuple[FrontierPoint, ...]
    notes: tuple[str, ...] = ()
    machine: str = ""


@dataclass(frozen=True, repr=False)
class Frontier(FrontierFile):
    """Accuracy over cost.

    Attributes:
        folder: Folder with the points.
    """

    folder: Path | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        curves = len({p.curve for p in self.points})
        return (
            f"<Frontier: {counted(len(self.points), 'point')} on {counted(curves, 'curve')}, {self.metric} over "
            f"{self.measure}, {counted(self.samples, 'held-out sample')}>"
        )

    def _repr_html_(self) -> str:
        """Table for notebooks."""
        note = f"{self.metric} of the original: {self.original:.4f}; {counted(self.samples, 'held-out sample')}"
        return html_table("frontier", ["curve", self.measure, self.metric, "drop", "Pareto"], self.rows(), note=note)

    def rows(self) -> list[list[str]]:
        """Return the rows of a table: curve, share kept, metric, drop, mark of a Pareto-optimal point."""
        best = set(map(id, self.pareto(self.measure)))
        return [
            [p.curve, percent(p.costs[self.measure]), f"{p.value:.4f}", f"{p.drop:.2f}", "*" if id(p) in best else ""]
            for p in self.points
            if self.measure in p.costs
        ]

    def pareto(self, cost: str = "macs") -> list[FrontierPoint]:
        """Return the points that no other point beats in both a cost and the metric, cheapest first.

        Raises:
            OnnxPruneError: The cost is unknown or was not measured.
        """
        known = [p for p in self.points if cost in p.costs]
        if not known:
            raise OnnxPruneError(f"no point has the cost {cost!r}", fix=f"one of {', '.join(COSTS)}")
        out: list[FrontierPoint] = []
        for p in sorted(known, key=lambda p: (p.costs[cost], p.drop)):
            if not out or p.drop < out[-1].drop:
                out.append(p)
        return out

    def best(self, max_drop: float, cost: str | None = None) -> FrontierPoint | None:
        """Return the cheapest point whose drop is at most `max_drop`; None if there is none."""
        name = cost or self.measure
        fits = [p for p in self.points if p.drop <= max_drop and name in p.costs]
        return min(fits, key=lambda p: p.costs[name], default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return the frontier as a JSON object."""
        return {
            "model": self.model, "measure": self.measure, "metric": self.metric, "unit": self.unit,
            "higher_is_better": self.higher_is_better, "original": self.original, "samples": self.samples,
            "notes": list(self.notes), "machine": self.machine,
            "points": [{**vars(p), "costs": dict(p.costs)} for p in self.points],
        }  # fmt: skip

    def to_csv(self) -> str:
        """Return the points as a table: one line for each, with the costs and whether it is Pareto-optimal."""
        best = set(map(id, self.pareto(self.measure)))
        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(["curve", "target", *COSTS, self.metric, "error", "drop", "drop_error", "pareto", "model"])
        for p in self.points:
            costs = [p.costs.get(c, "") for c in COSTS]
            errors = ["" if v is None else v for v in (p.error, p.drop, p.drop_error)]
            out.writerow([p.curve, p.target, *costs, p.value, *errors, int(id(p) in best), p.path])
        return text.getvalue()


def load_frontier(folder: Path) -> Frontier:
    """Read the frontier that `onnxprune frontier` wrote into a folder.

    Raises:
        OnnxPruneError: The file is missing or not valid.
    """
    found = FORMAT.read(FrontierFile, folder / RESULT)
    for i, point in enumerate(found.points):
        if not {"macs", found.measure} <= point.costs.keys() <= set(COSTS):
            raise FORMAT.error(f"the costs of point {i} are not complete or not known", str(folder / RESULT))
        path = PurePosixPath(point.path)
        if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or "\\" in point.path:
            raise FORMAT.error(f"the file of point {i} is not in a subfolder", str(folder / RESULT))
    if not found.points:
        raise FORMAT.error("there are no points", str(folder / RESULT))
    return Frontier(**vars(found), folder=folder)
