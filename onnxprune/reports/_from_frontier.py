"""Report data of a frontier: curves, the table of points, downloads."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from onnxprune._utils.formatting import counted, percent
from onnxprune.execution.tasks.evaluation import metric_text, metric_title
from onnxprune.pipeline import Frontier, load_frontier
from onnxprune.reports._report_data import FrontierRow, FrontierSection, ReportData

FILE = "frontier.json"
DRAWN = ("macs", "latency", "bytes")
"""Costs that have a chart, if they were measured."""


def is_frontier(folder: Path) -> bool:
    """Return True if a folder is one of `onnxprune frontier`."""
    return (folder / FILE).is_file()


def collect_frontier(folder: Path) -> ReportData:
    """Collect report data from the folder of a frontier.

    Raises:
        OnnxPruneError: Its file is not valid.
    """
    found = load_frontier(folder)
    curves = list(dict.fromkeys(p.curve for p in found.points))
    report = ReportData(f"Frontier of {found.model}", f"{metric_title(found.metric)} over cost")
    report.frontier = FrontierSection(
        found, [c for c in DRAWN if any(c in p.costs for p in found.points)], _rows(found),
        _link(found.to_csv(), "text/csv"), _link(json.dumps(found.as_dict(), indent=1), "application/json"),
    )  # fmt: skip
    report.facts.append(("Frontier", [
        ("model", found.model), ("metric", metric_title(found.metric)),
        ("original", metric_text(found.metric, found.original)),
        ("samples", f"{counted(found.samples, 'sample')} held out of the calibration"),
        ("points", f"{len(found.points)} on {counted(len(curves), 'curve')}"),
    ]))  # fmt: skip
    report.why += found.notes
    return report


def _rows(found: Frontier) -> list[FrontierRow]:
    best = set(map(id, found.pareto(found.measure)))
    rows = []
    for p in found.points:
        error = "" if p.drop_error is None else f" +- {p.drop_error:.2f}"
        latency = percent(p.costs["latency"]) if "latency" in p.costs else "-"
        rows.append(FrontierRow(
            p.curve, percent(p.costs["macs"]), percent(p.costs["bytes"]) if "bytes" in p.costs else "-", latency,
            metric_text(found.metric, p.value), f"{p.drop:.2f}{error}", id(p) in best, p.path,
        ))  # fmt: skip
    return rows


def _link(text: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
