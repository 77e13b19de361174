"""Report data of a frontier: curves, the table of points, details of each point, downloads."""

from __future__ import annotations

import json
from pathlib import Path

from onnxprune._utils.output.formatting import count, counted, percent, seconds, size
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.evaluation import metric_text, metric_title
from onnxprune.pipeline import Frontier, FrontierPoint, PointRecord, PointStore, load_frontier
from onnxprune.pipeline.budget.frontier import PREDICTED
from onnxprune.plans import load_plan
from onnxprune.reports import _sections
from onnxprune.reports._layers import data_link
from onnxprune.reports._report_data import FrontierRow, FrontierSection, PointDetails, PointFile, ReportData

FILE = "frontier.json"
DRAWN = ("macs", "latency", "bytes")
"""Costs that the chart can show, if they were measured."""
_NAMES = {"macs": "MACs", "params": "params", "bytes": "bytes", "memory": "memory",
          PREDICTED: "latency, predicted"}  # fmt: skip


def is_frontier(folder: Path) -> bool:
    """Return True if a folder is one of `onnxprune frontier`."""
    return (folder / FILE).is_file()


def collect_frontier(folder: Path) -> ReportData:
    """Collect report data from the folder of a frontier.

    Files of points that are missing or damaged are named in the report's problems.

    Raises:
        OnnxPruneError: `frontier.json` is missing or not valid.
    """
    found = load_frontier(folder)
    curves = list(dict.fromkeys(p.curve for p in found.points))
    report = ReportData(f"Frontier of {found.model}", f"{metric_title(found.metric)} over cost")
    costs = [c for c in DRAWN if any(c in p.costs for p in found.points)]
    costs.sort(key=lambda c: c != found.measure)
    report.frontier = FrontierSection(
        found, costs, _rows(found, costs), [_details(found, p, folder, report) for p in found.points],
        data_link(found.to_csv(), "text/csv"), data_link(json.dumps(found.as_dict(), indent=1), "application/json"),
    )  # fmt: skip
    report.facts.append(("Frontier", [
        ("model", found.model), ("metric", metric_title(found.metric)),
        ("original", metric_text(found.metric, found.original)),
        ("samples", f"{counted(found.samples, 'sample')} held out of the calibration"),
        ("points", f"{len(found.points)} on {counted(len(curves), 'curve')}"),
    ]))  # fmt: skip
    return report


def _rows(found: Frontier, costs: list[str]) -> list[FrontierRow]:
    best = {c: set(map(id, found.pareto(c))) for c in costs}
    rows = []
    for p in found.points:
        latency = percent(p.costs["latency"]) if "latency" in p.costs else "-"
        rows.append(FrontierRow(
            p.curve, percent(p.costs["macs"]), percent(p.costs["bytes"]) if "bytes" in p.costs else "-", latency,
            metric_text(found.metric, p.value), _drop(p), [c for c in costs if id(p) in best[c]], p.path,
        ))  # fmt: skip
    return rows


def _drop(p: FrontierPoint) -> str:
    return f"{p.drop:.2f}" + ("" if p.drop_error is None else f" +- {p.drop_error:.2f}")


def _details(found: Frontier, p: FrontierPoint, folder: Path, report: ReportData) -> PointDetails:
    home = (folder / p.path).parent
    name = home.relative_to(folder).as_posix()
    record = None
    channels: list[tuple[str, int, int]] = []
    with _sections.noting(report, f"{name}/point.json"):
        record = PointStore(folder).record(name)
        if record is None:
            raise OnnxPruneError("the file is missing")
    with _sections.noting(report, f"{name}/plan.json"):
        plan = load_plan(home / "plan.json")
        channels = [(group, r.channels - len(r.removed), r.channels) for group, r in plan.groups.items()]
    facts = [("curve", p.curve), (metric_title(found.metric), metric_text(found.metric, p.value))]
    facts.append((f"drop ({found.unit})", _drop(p)))
    facts += _costs(p, record)
    wanted = (folder / p.path, home / "plan.json", home / "point.json")
    files = [PointFile(f.relative_to(folder).as_posix(), size(f.stat().st_size)) for f in wanted if f.is_file()]
    title = f"{p.curve}, {percent(p.costs[found.measure])} of the {_NAMES.get(found.measure, found.measure)}"
    return PointDetails(title, facts, _certificate(record), channels, files)


def _costs(p: FrontierPoint, record: PointRecord | None) -> list[tuple[str, str]]:
    facts = []
    for name, share in p.costs.items():
        text = percent(share)
        before = getattr(record.before, name, None) if record is not None else None
        if before is not None:
            form = size if name in ("bytes", "memory") else count
            text += f" ({form(round(share * before))} of {form(before)})"
        if record is not None and name == "latency":
            timed = record.figures.get("int8_latency" if p.curve.endswith(", int8") else "float_latency", {})
            text += f" ({seconds(timed['seconds'])})" if "seconds" in timed else ""
        facts.append((_NAMES.get(name, name), text))
    return facts


def _certificate(record: PointRecord | None) -> list[tuple[str, str]]:
    if record is None:
        return []
    found = record.certificate
    facts = [("proof", str(found.get("summary", "-")))]
    for key, name in (("nodes", "nodes checked"), ("max_relative", "largest difference"), ("tolerance", "allowed")):
        value = found.get(key)
        if isinstance(value, int | float):
            facts.append((name, f"{value:.3g}"))
    stages = [s.get("name", "") for s in record.recovery.get("stages", []) if s.get("kept")]
    facts.append(("recovered by", ", ".join(stages[1:]) or "nothing"))
    return facts
