"""Rendering of report data as one HTML file with embedded scripts, styles and figures.

Names and texts from files are escaped by jinja2, those in figures also by `figures.plotly_text`. A content security
policy allows only the page's own scripts, by their digests, and forbids any request.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict
from functools import partial
from importlib import resources
from typing import Any

from onnxprune import __version__
from onnxprune._utils.files.input_files import read_resource
from onnxprune._utils.output.formatting import count, percent, seconds, size
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.tasks.evaluation import metric_text, metric_title
from onnxprune.reports import _figures
from onnxprune.reports._layers import group_link, step_link
from onnxprune.reports._report_data import ModelSnapshot, ReportData, SensitivitySection

_COLUMNS = 20  # columns of a table of curves; with more counts each row lists its own points


def check_extra() -> None:
    """Check that jinja2 and plotly are installed, before minutes of measuring.

    Raises:
        OnnxPruneError: naming the extra.
    """
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as err:
        raise OnnxPruneError(
            f"a report needs {err.name or 'jinja2 and plotly'}", fix="pip install 'onnxprune[report]'"
        ) from err


def render(report: ReportData, *, served: bool = False) -> str:
    """Return the page.

    Args:
        report: Contents.
        served: The page is served by `explore`: files of points are links below `files/`, and a button ends it.

    Raises:
        OnnxPruneError: the extra is not installed.
    """
    check_extra()
    import jinja2

    env = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {
        "count": partial(_or_dash, count), "size": partial(_or_dash, size), "seconds": partial(_or_dash, seconds),
        "percent": partial(_or_dash, percent), "relative": partial(_or_dash, "{:.1e}".format),
    }  # fmt: skip
    found = {f"curves-{i}": _figures.sensitivity_figure(s) for i, s in enumerate(report.curves)}
    costs = report.frontier.costs if report.frontier is not None else []
    found |= {f"frontier-{c}": _figures.frontier_figure(report.frontier, c) for c in costs if report.frontier}
    steps = _figures.steps_figure(report.stages)
    if steps is not None:
        found["steps"] = steps
    scripts = [_plotly(), _file("report.js")] if found else []
    if costs:
        scripts.append(_file("frontier.js"))
    html = env.get_template("report.html.jinja").render(
        report=report,
        version=__version__,
        css=_file("report.css"),
        scripts=scripts,
        digests=[_digest(s) for s in scripts],
        figures=found,
        served=served,
        details=[asdict(d) for d in report.frontier.details] if report.frontier is not None else [],
        has_steps=steps is not None,
        cost_names=_figures.COST_NAMES,
        cards=cards(report.stages),
        links={"steps": step_link(report), "groups": group_link(report)},
        metric_title=metric_title,
        metric_text=metric_text,
        stages=report.stages,
        columns=_stage_columns(report.stages),
        curves=[_curves_part(i, s) for i, s in enumerate(report.curves)],
        total=(
            sum(b.channels for b in report.groups),
            sum(b.kept[-1] if b.kept else b.channels for b in report.groups),
        ),
    )
    # A lone surrogate in a name cannot be written as UTF-8.
    return html.encode("utf-8", "replace").decode()


def cards(stages: list[ModelSnapshot]) -> list[dict[str, Any]]:
    """Return the headline: each measure of the first and the last model, and the remaining share."""
    models = [s for s in stages if s.model]
    if not models:
        return []
    first, last = models[0], models[-1]
    out = [_accuracy_card(first, last)]
    for label, what, form in (
        ("Latency", "latency", seconds), ("MACs", "macs", count),
        ("Params", "params", count), ("Bytes", "bytes", size),
    ):  # fmt: skip
        a, b = getattr(first, what), getattr(last, what)
        if a is None and b is None:
            continue
        card: dict[str, Any] = {
            "label": label, "before": _or_dash(form, a), "after": _or_dash(form, b), "share": None, "note": "",
            "single": first is last,
        }  # fmt: skip
        if first is not last and b is not None and a:
            card["share"] = b / a
            faster = f", {a / b:.2f} times as fast" if what == "latency" and b else ""
            card["note"] = f"{percent(b / a)} kept{faster}"
        out.append(card)
    return out


def _accuracy_card(first: ModelSnapshot, last: ModelSnapshot) -> dict[str, Any]:
    """Return the first card: the metric before and after with the standard error, or that it was not measured."""
    card: dict[str, Any] = {"label": "Accuracy", "share": None, "note": "", "single": first is last, "before": ""}
    if first.top1 is None and last.top1 is None and first.value is None and last.value is None:
        note = "name labelled samples with --data" if last.model else ""
        return {**card, "after": "not measured", "single": True, "note": note}
    if first.top1 is not None or last.top1 is not None:
        name, form, by = "Accuracy (top1)", percent, 100.0
        (a, e), (b, f) = ((s.top1, s.top1_error) for s in (first, last))
    else:
        metric = first.metric or last.metric
        name, form, by = metric_title(metric), partial(metric_text, metric), 1.0
        (a, e), (b, f) = ((s.value, s.error) for s in (first, last))
    notes = []
    if first is not last and a is not None and b is not None:
        gap = by * (b - a)
        unit = " points" if by == 100 else ""
        notes.append(f"{gap:+.{1 if by == 100 else 4}f}{unit}" if abs(gap) >= 0.05 * by / 100 else "unchanged")
    error = f if f is not None else e
    if error is not None:
        notes.append(f"standard error {by * error:.{1 if by == 100 else 4}f}{' points' if by == 100 else ''}")
    return {**card, "label": name[:1].upper() + name[1:], "before": _or_dash(form, a), "after": _or_dash(form, b),
            "note": ", ".join(notes)}  # fmt: skip


def _stage_columns(stages: list[ModelSnapshot]) -> dict[str, bool]:
    """Return the columns of the table of steps that are not empty."""
    names = ("top1", "value", "loss", "macs", "params", "bytes", "latency", "seconds", "note")
    return {n: any(getattr(s, n) not in (None, "") for s in stages) for n in names}


def _curves_part(i: int, section: SensitivitySection) -> dict[str, Any]:
    """Return the template values for a figure of curves and its table."""
    curves, by = section.curves, _figures.scale(section.curves)
    ratios = sorted({round(p.ratio, 9) for c in curves.groups.values() for p in c.points})
    wide = len(ratios) <= _COLUMNS
    groups = []
    for k, (name, curve) in enumerate(curves.groups.items()):
        values = {round(p.ratio, 9): f"{by * p.value:.4g}" for p in curve.points}
        chosen = None if section.chosen is None else section.chosen[name]
        at = None if chosen is None else _figures.value_at(curves, curve, chosen)
        groups.append({
            "name": name, "hue": _figures.hue(k, len(curves.groups)), "channels": curve.channels, "chosen": chosen,
            "at": "" if at is None else f"{by * at[0]:.4g}" + ("" if at[1] else " (not measured that far)"),
            "cells": [values.get(r, "") for r in ratios] if wide else [],
            "points": "; ".join(f"{p.removed}: {by * p.value:.4g}" for p in curve.points),
        })  # fmt: skip
    return {
        "key": f"curves-{i}", "title": section.title, "summary": _figures.sensitivity_summary(section),
        "groups": groups,
        "ratios": [f"{100 * r:.3g} %" for r in ratios] if wide else None, "metric": _figures.metric_name(curves),
        "chosen": section.chosen is not None, "baseline": f"{by * curves.baseline.value:.4g}",
        "threshold": None if curves.bisected is None else f"{by * curves.bisected:.4g}",
        "images": curves.data.get("images"),
    }  # fmt: skip


def _or_dash(form: Any, value: Any) -> str:
    text = "-" if value is None else str(form(value))
    return text.removesuffix(" us") + " µs" if text.endswith(" us") else text


def _file(name: str) -> str:
    return read_resource(resources.files("onnxprune.reports") / "templates" / name).decode()


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # Browsers normalize carriage returns before they hash a script.
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
