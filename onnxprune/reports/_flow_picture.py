"""The explorer's picture of the flow between groups as a static SVG: a line for each group, a dot for its channels.

The filled part of a dot's area is the share of the channels that is kept; a square is locked. Colours are variables of
the page's style, so that the picture follows its scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from onnxprune.analysis.coupling import Analysis
from onnxprune.reports.explorer import flow

MOST = 400
"""Rows of a picture at most; a longer one would be megabytes of text."""
_COLOURS = 6
_ROW = 26
_TURN = 12  # height of a branch
_RADIUS = 7
_LETTERS = 44


@dataclass(frozen=True)
class FlowPicture:
    """Picture of the flow.

    Attributes:
        svg: Markup; names are escaped.
        summary: Description for screen readers.
        rows: Number of groups that it shows.
        hidden: Number of groups that it leaves out.
    """

    svg: str
    summary: str
    rows: int
    hidden: int


def flow_picture(analysis: Analysis, kept: Mapping[str, int], *, most: int = MOST) -> FlowPicture:
    """Draw the flow of a model.

    Args:
        analysis: Analysis of the original.
        kept: Number of channels that are kept, by group; other groups keep all.
        most: Number of rows; further ones are hidden.
    """
    found = flow(analysis)
    rows = found.rows[:most]
    lanes = max((r.lane for r in rows), default=0) + 1
    step = min(18.0, 120 / max(lanes - 1, 1))
    left = 24 + step * (lanes - 1)
    x = [12 + step * r.lane for r in rows]
    y = [_ROW * (i + 0.5) for i in range(len(rows))]
    ends = list(y)
    parts = []
    for source, target in found.edges:
        if max(source, target) >= len(rows):
            continue
        back = target < source
        stream, side = (target, source) if back else (source, target)
        at = y[source] + _TURN if back else y[target] - _TURN
        straight = not back and x[source] == x[target]
        ends[stream] = max(ends[stream], y[target] if straight else at)
        if not straight:
            middle = (at + y[side]) / 2
            path = f"M{x[stream]:g},{at:g}C{x[stream]:g},{middle:g} {x[side]:g},{middle:g} {x[side]:g},{y[side]:g}"
            parts.append(_line(path, rows[source if back else stream].lane))
    parts += [_line(f"M{x[i]:g},{y[i]:g}V{ends[i]:g}", r.lane) for i, r in enumerate(rows) if ends[i] > y[i]]
    for i, r in enumerate(rows):
        colour = f"var(--lane{r.lane % _COLOURS})"
        if r.group is None:
            parts.append(f'<rect x="{x[i] - 5:g}" y="{y[i] - 5:g}" width="10" height="10" class="locked"/>')
            about = f"{r.channels} locked"
        else:
            left_over = kept.get(r.name, r.channels)
            radius = _RADIUS * (left_over / r.channels) ** 0.5
            parts.append(f'<circle cx="{x[i]:g}" cy="{y[i]:g}" r="{_RADIUS}" class="hole" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x[i]:g}" cy="{y[i]:g}" r="{radius:.2f}" fill="{colour}"/>')
            gone = r.channels - left_over
            about = f"{gone} of {r.channels} removed" if gone else f"{r.channels} kept"
        name = r.name if len(r.name) <= _LETTERS else f"{r.name[:14]}…{r.name[-_LETTERS + 15 :]}"
        parts.append(
            f'<text x="{left + 8:g}" y="{y[i] + 4:g}">{escape(name)} <tspan class="soft">{about}</tspan></text>'
        )
    width = left + 8 + 7.2 * max((len(r.name[:_LETTERS]) for r in rows), default=0) + 150
    removed = sum(1 for r in rows if r.group is not None and kept.get(r.name, r.channels) < r.channels)
    locked = sum(1 for r in rows if r.group is None)
    summary = (
        f"Graph of {len(rows)} groups of channels from the input down; {removed} of them lose channels, {locked} are "
        "locked. The table of channels holds the numbers."
    )
    height = _ROW * len(rows)
    svg = f'<svg width="{width:.0f}" height="{height}" viewBox="0 0 {width:.0f} {height}" aria-hidden="true">'
    return FlowPicture(svg + "".join(parts) + "</svg>", summary, len(rows), len(found.rows) - len(rows))


def _line(path: str, lane: int) -> str:
    return f'<path d="{path}" stroke="var(--lane{lane % _COLOURS})"/>'
