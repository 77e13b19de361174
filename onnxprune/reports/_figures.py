"""Figures of a report as plotly JSON, without theme colours: the page's script sets those.

Plotly interprets text as markup, so every name from a file is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from onnxprune.execution.tasks.evaluation import metric_title
from onnxprune.execution.tasks.metrics import SHARES
from onnxprune.planning.curves import Curve, Curves
from onnxprune.reports._report_data import FrontierSection, ModelSnapshot, SensitivitySection

RATES = {"top1": "top1 accuracy", "top5": "top5 accuracy"}
_DASHES = ("solid", "dash", "dot", "dashdot")
_MARKERS = ("circle", "square", "diamond", "triangle-up", "cross")
_HUES = (262, 205, 165, 45, 12)  # from the input down: violet, blue, green, amber, red
_NAME = 40  # letters

Figure = dict[str, Any]


def hue(index: int, count: int) -> int:
    """Return the hue of a group in degrees, by its depth in the network."""
    return round(float(np.interp(index / max(1, count - 1), np.linspace(0, 1, len(_HUES)), _HUES)))


def metric_name(curves: Curves) -> str:
    """Return the label of the vertical axis."""
    return f"{RATES[curves.metric]} (%)" if curves.metric in RATES else curves.metric


def scale(curves: Curves) -> float:
    """Return the factor that shows shares in percent."""
    return 100.0 if curves.metric in RATES else 1.0


def value_at(curves: Curves, curve: Curve, removed: int) -> tuple[float, bool]:
    """Return the metric at a removed count, linear between points, and False beyond the last measured point."""
    x = [0, *(p.removed for p in curve.points)]
    y = [curves.baseline.value, *(p.value for p in curve.points)]
    return float(np.interp(removed, x, y)), removed <= x[-1]


def sensitivity_figure(section: SensitivitySection) -> Figure:
    """Draw one line per group over the removed share of its channels, with the plan's choice as a point."""
    curves, by = section.curves, scale(section.curves)
    traces: list[Figure] = []
    count = len(curves.groups)
    for i, (name, curve) in enumerate(curves.groups.items()):
        label = plotly_text(name)
        points = [(0, curves.baseline.value, curves.baseline.error)]
        points += [(p.removed, p.value, p.error) for p in curve.points]
        meta = {"group": i, "name": label, "channels": curve.channels, "hue": hue(i, count)}
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": label, "meta": meta,
            "x": [_round(100 * r / curve.channels) for r, _, _ in points],
            "y": [_round(by * v) for _, v, _ in points],
            "customdata": [[r, "" if e is None else f" ± {by * e:.3g}"] for r, _, e in points],
            "line": {"dash": _DASHES[i % len(_DASHES)] if count > 5 else "solid", "width": 1.6},
            "marker": {"symbol": _MARKERS[i % len(_MARKERS)], "size": 4 if count > 20 else 5},
            "hovertemplate": "<b>%{meta.name}</b><br>%{customdata[0]} of %{meta.channels} channels removed (%{x:.1f} %)"
            "<br>%{y:.5g}%{customdata[1]}<extra></extra>",
        })  # fmt: skip
    for i, (name, curve) in enumerate(curves.groups.items()):
        if section.chosen is None:
            break
        removed = section.chosen[name]
        value, inside = value_at(curves, curve, removed)
        meta = {"group": i, "name": plotly_text(name), "channels": curve.channels, "hue": hue(i, count),
                "removed": removed, "chosen": True, "hollow": not inside}  # fmt: skip
        beyond = "" if inside else "<br>beyond the last measured point"
        traces.append({
            "type": "scatter", "mode": "markers", "name": f"{plotly_text(name)}, chosen", "meta": meta,
            "x": [_round(100 * removed / curve.channels)], "y": [_round(by * value)],
            "marker": {"size": 11, "symbol": "circle-open" if not inside else "circle"},
            "hovertemplate": "<b>%{meta.name}</b><br>the plan removes %{meta.removed} of %{meta.channels} channels "
            f"(%{{x:.1f}} %)<br>%{{y:.5g}} by the curve{beyond}<extra></extra>",
        })  # fmt: skip
    levels = [("baseline", by * curves.baseline.value)]
    if curves.bisected is not None:
        levels.append(("threshold", by * curves.bisected))
    shapes = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": _round(v), "y1": _round(v), "layer": "below",
         "line": {"width": 1, "dash": "dash" if n == "baseline" else "dot"}}
        for n, v in levels
    ]  # fmt: skip
    notes = [
        {"xref": "paper", "x": 1, "xanchor": "right", "y": _round(v), "yanchor": "bottom", "showarrow": False,
         "text": f"{n} {v:.4g}"}
        for n, v in levels
    ]  # fmt: skip
    layout: Figure = {
        "xaxis": {"title": {"text": "channels removed from this group alone (%)"}, "range": [-2, 102],
                  "tickvals": list(range(0, 101, 20))},
        "yaxis": {"title": {"text": plotly_text(metric_name(curves))},
                  "rangemode": "tozero" if by == 100 else "normal"},
        "shapes": shapes, "annotations": notes, "hovermode": "closest",
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def sensitivity_summary(section: SensitivitySection) -> str:
    """Describe the figure in a sentence or two, for screen readers."""
    curves = section.curves
    by, unit = scale(curves), " %" if curves.metric in RATES else ""
    last = {n: c.points[-1].value for n, c in curves.groups.items() if c.points}
    text = (
        f"Line chart of {metric_name(curves).removesuffix(' (%)')} for {len(curves.groups)} groups of channels, each "
        f"over the share of its channels removed. Unpruned: {by * curves.baseline.value:.4g}{unit}."
    )
    if last:
        worst, best = (
            (min if curves.higher_is_better == low else max)(last, key=lambda n: last[n]) for low in (True, False)
        )
        text += (
            f" At its last point {_short(worst)} has lost most ({by * last[worst]:.4g}{unit}), {_short(best)} least "
            f"({by * last[best]:.4g}{unit})."
        )
    if section.chosen is not None:
        text += f" The plan removes channels from {sum(map(bool, section.chosen.values()))} of them: the large points."
    return text


def steps_figure(stages: list[ModelSnapshot]) -> Figure | None:
    """Draw every measure of every model relative to the first model; accuracy unscaled. None for fewer than three."""
    models = [s for s in stages if s.model]
    if len(models) < 3:
        return None
    x = [plotly_text(s.name) for s in models]
    traces: list[Figure] = []
    for i, (label, what) in enumerate(
        (("MACs", "macs"), ("params", "params"), ("latency", "latency"), ("top1 accuracy", "top1"))
    ):
        values = [getattr(s, what) for s in models]
        first = values[0] if what != "top1" else 1.0
        if not first or sum(v is not None for v in values) < 2:
            continue
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": label, "x": x,
            "y": [None if v is None else _round(100 * v / first) for v in values],
            "meta": {"hue": (262, 205, 45, 150)[i]}, "connectgaps": True,
            "line": {"width": 2, "dash": _DASHES[i]}, "marker": {"symbol": _MARKERS[i], "size": 7},
            "hovertemplate": f"<b>{label}</b><br>%{{x}}<br>%{{y:.1f}} %<extra></extra>",
        })  # fmt: skip
    if not traces:
        return None
    layout: Figure = {
        "xaxis": {"type": "category", "automargin": True}, "showlegend": True,
        "yaxis": {"title": {"text": "% of the original; accuracy in %"}, "rangemode": "tozero"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}, "hovermode": "closest",
    }  # fmt: skip
    return {"data": traces, "layout": layout}


INT8 = ", int8"  # end of the name of a quantized curve
COST_NAMES = {"macs": "MACs", "latency": "latency", "bytes": "bytes"}


def frontier_figure(section: FrontierSection, cost: str) -> Figure:
    """Draw one line per curve over the share of a cost, the original, and the Pareto-optimal points as stars.

    The quantized curve of a criterion has the colour of the float one and hollow points. `customdata` holds the index
    of each point in the frontier.
    """
    found = section.frontier
    by = 100.0 if found.metric in SHARES else 1.0
    curves = list(dict.fromkeys(p.curve for p in found.points))
    kinds = list(dict.fromkeys(c.removesuffix(INT8) for c in curves))
    best = {id(p) for p in found.pareto(cost)}
    places = {id(p): i for i, p in enumerate(found.points)}
    traces: list[Figure] = []
    for i, curve in enumerate(curves):
        points = sorted((p for p in found.points if p.curve == curve and cost in p.costs), key=lambda p: p.costs[cost])
        if not points:
            continue
        label, kind = plotly_text(curve), kinds.index(curve.removesuffix(INT8))
        hollow = "-open" if curve.endswith(INT8) else ""
        traces.append({
            "type": "scatter", "mode": "lines+markers", "name": label,
            "meta": {"hue": hue(kind, len(kinds)), "group": i},
            "x": [_round(100 * p.costs[cost]) for p in points], "y": [_round(by * p.value) for p in points],
            "error_y": {"type": "data", "array": [_round(by * (p.error or 0)) for p in points], "thickness": 1},
            "text": [plotly_text(p.path) for p in points], "customdata": [places[id(p)] for p in points],
            "line": {"width": 2, "dash": _DASHES[kind % len(_DASHES)]},
            "marker": {"symbol": [("star" if id(p) in best else "circle") + hollow for p in points],
                       "size": [13 if id(p) in best else 7 for p in points]},
            "hovertemplate": f"<b>{label}</b><br>%{{x:.1f}} % of the {COST_NAMES[cost]}<br>%{{y:.4g}}<br>%{{text}}"
                             "<extra></extra>",
        })  # fmt: skip
    unit = " (%)" if by == 100 else ""
    layout: Figure = {
        "xaxis": {"title": {"text": f"{COST_NAMES[cost]} kept (%)"}, "rangemode": "tozero"}, "showlegend": True,
        "yaxis": {"title": {"text": f"{metric_title(found.metric)}{unit}"}}, "hovermode": "closest",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "shapes": [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": _round(by * found.original),
                    "y1": _round(by * found.original), "line": {"dash": "dot", "width": 1}}],
        "annotations": [{"xref": "paper", "x": 1, "y": _round(by * found.original), "text": "original",
                         "showarrow": False, "yanchor": "bottom", "xanchor": "right"}],
    }  # fmt: skip
    return {"data": traces, "layout": layout}


def plotly_text(text: str) -> str:
    """Escape a text for plotly, whose labels interpret tags and entities."""
    return escape(_short(text), quote=True)


def _short(text: str, limit: int = _NAME) -> str:
    """Shorten a name in its middle: its end identifies the layer."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]}…{text[len(text) - (limit - head - 1) :]}"


def _round(value: float) -> float:
    return float(f"{value:.6g}")
