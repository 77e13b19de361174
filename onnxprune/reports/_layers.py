"""Part of a report on single layers: channels, MACs and latency before and after."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence

from onnxprune.analysis.coupling import Analysis
from onnxprune.latency.layer_figures import LayerFigures, layer_figures
from onnxprune.plans import Plan
from onnxprune.reports._report_data import LayerBars, LayerSection, ReportData

SHOWN = 40
"""Layers of the chart: those with the most MACs, in the order of the graph. The file has all."""


def layer_section(
    analysis: Analysis, plan: Plan, times: Sequence[Mapping[str, float]] = (), how: str = ""
) -> LayerSection:
    """Return the layers of a model before and after a plan.

    Args:
        analysis: Analysis of the original.
        plan: Plan for it.
        times: Seconds of the layers of the original and of the result, by the layer's first output; empty if they were
            not measured.
        how: Machine and runtime of the times.

    Raises:
        OnnxPruneError: The plan was made for another model.
    """
    found = layer_figures(analysis, plan)
    rows = [_bars(x, times) for x in found]
    costs = sorted(found, key=lambda x: -x.macs[0])
    large = {x.output for x in costs[:SHOWN]}
    shown = [row for row, x in zip(rows, found, strict=True) if x.output in large]
    other = tuple(t.get("", 0.0) for t in times)
    return LayerSection(
        shown, len(rows) - len(shown), max((r.macs[0] for r in rows), default=0),
        max((s for r in rows for s in r.seconds), default=0.0), (other[0], other[1]) if len(other) == 2 else (0.0, 0.0),
        how, data_link(_csv(rows), "text/csv"),
    )  # fmt: skip


def _bars(x: LayerFigures, times: Sequence[Mapping[str, float]]) -> LayerBars:
    seconds = tuple(t.get(x.output, 0.0) for t in times)
    return LayerBars(x.name, x.op, x.channels, x.macs, (seconds[0], seconds[1]) if len(seconds) == 2 else ())


def _csv(rows: Sequence[LayerBars]) -> str:
    head = ["layer", "operator", "channels_before", "channels_after", "macs_before", "macs_after"]
    timed = any(r.seconds for r in rows)
    table = [[r.name, r.op, *r.channels, *r.macs, *([f"{s:.9f}" for s in r.seconds] if timed else [])] for r in rows]
    return to_csv([*head, *(["seconds_before", "seconds_after"] if timed else [])], table)


def to_csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as CSV; cells that a spreadsheet would take for formulas get a leading apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow([f"'{v}" if isinstance(v, str) and v[:1] in ("=", "+", "-", "@") else v for v in row])
    return out.getvalue()


def data_link(text: str, kind: str) -> str:
    """Return a text as the address of a download."""
    return f"data:{kind};base64,{base64.b64encode(text.encode('utf-8', 'replace')).decode()}"


def group_link(report: ReportData) -> str:
    """Return the channels of all groups as the address of a CSV file."""
    rows = [[g.name, g.channels, *g.kept, g.about] for g in report.groups]
    return data_link(
        to_csv(["group", "channels", *(f"kept after {c}" for c in report.cuts), "about"], rows), "text/csv"
    )


def step_link(report: ReportData) -> str:
    """Return the figures of all steps as the address of a CSV file."""
    names = ("name", "top1", "top1_error", "loss", "value", "metric", "macs", "params", "bytes", "latency", "low",
             "high", "seconds", "note")  # fmt: skip
    rows = [["" if (v := getattr(s, n)) is None else v for n in names] for s in report.stages]
    return data_link(to_csv(names, rows), "text/csv")
