"""Sensitivity curves drawn as lines and as a heat map."""

from __future__ import annotations

import textwrap
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.studies._plot_style import RATES, Text, drawn, gid, short, writable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from onnxprune.planning.curves import Curve, Curves

LINES = 20  # more groups than this: `auto` draws a heat map
BANDS = 12  # more groups than this: bands of standard errors would cover each other
LEGEND = 24  # more groups than this: a colour bar of depth instead of a legend
COLUMN = 0.025  # width of a heat map's columns if the ratios of the groups are not evenly spaced
WIDTHS = (0.01, 0.125)  # narrower columns are invisible, wider ones suggest more than was measured
MARKERS = "os^Dv"  # neighbours in depth have similar colours
SHARE = "channels removed from one group alone (%)"
UNMEASURED = "0.88"


def render_curves(curves: Curves, chosen: dict[str, int] | None, kind: str, name: str, form: str) -> bytes:
    """Return the bytes of the plot file."""
    count = len(curves.groups)
    if kind == "auto":
        kind = "lines" if count <= LINES else "heat"
    rows = min(max(1.2, 0.17 * count), 30.0)  # inches of heat map
    heights = {"lines": [4.4], "heat": [rows], "both": [4.4, rows]}[kind]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        text = writable()
        if kind != "heat":
            _lines(figure, axes[0], curves, chosen, text)
        if kind != "lines":
            _heat(figure, axes[-1], curves, chosen, text)
        _titles(axes[0], curves, text(name) or f"model {text(curves.model[:12])}", text)

    return drawn(form, (9.6, sum(heights) + 1.0 + 0.4 * (len(heights) - 1)), draw)


def _scale(curves: Curves) -> float:
    return 100.0 if curves.metric in RATES else 1.0


def _metric(curves: Curves, text: Text) -> str:
    return f"{RATES[curves.metric]} (%)" if curves.metric in RATES else text(curves.metric)


def _titles(axes: Axes, curves: Curves, name: str, text: Text) -> None:
    """Draw the title: the model; below it metric, criterion and images."""
    parameters = ", ".join(f"{k}={v}" for k, v in curves.criterion.items() if k != "name" and v is not None)
    criterion = str(curves.criterion.get("name", "criterion unknown")) + (f" ({parameters})" if parameters else "")
    parts = [RATES.get(curves.metric, curves.metric), f"channels chosen by {criterion}"]
    images, data = curves.data.get("images"), curves.data.get("name")
    if isinstance(images, int):
        parts.append(f"{images:,} images" + (f" of {data}" if data else ""))
    lines = textwrap.wrap(text(", ".join(parts)), 95, max_lines=2, placeholder=" …")
    axes.annotate(
        "\n".join(lines), (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color="0.35",
    )  # fmt: skip
    title = f"Sensitivity of {short(name, 60)}"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10 + 11 * len(lines))


def _depth() -> Colormap:
    """Return the colours of lines: plasma without its yellow, which is invisible on white."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["plasma"](np.linspace(0.0, 0.9, 256)))


def _series(curves: Curves, curve: Curve) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return removed channels and values from the baseline on, each count once."""
    points = {0: curves.baseline.value}
    for p in curve.points:
        points.setdefault(p.removed, p.value)
    return np.array(list(points), np.float64), np.array(list(points.values()), np.float64) * _scale(curves)


def _lines(figure: Figure, axes: Axes, curves: Curves, chosen: dict[str, int] | None, text: Text) -> None:
    """Draw one line per group over the share of channels that is removed."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    count, scale, colours = len(curves.groups), _scale(curves), _depth()
    norm = Normalize(0, max(1, count - 1))
    few = count <= BANDS
    names, handles = [], []
    for i, (group, curve) in enumerate(curves.groups.items()):
        colour = colours(norm(i))
        removed, values = _series(curves, curve)
        share = 100 * removed / curve.channels
        (line,) = axes.plot(
            share, values, color=colour, linewidth=1.6 if few else 1.1, alpha=1.0 if few else 0.85,
            marker=MARKERS[i % len(MARKERS)] if count <= LEGEND else "o", markersize=3.5 if few else 2.2,
            gid=gid("curve", group),
        )  # fmt: skip
        names.append(short(text(group)))
        handles.append(line)
        if few:
            measured = [(p.removed, p.value, p.error) for p in (curves.baseline, *curve.points) if p.error is not None]
            x = [100 * r / curve.channels for r, _, _ in measured]
            low, high = ([scale * (v + sign * e) for _, v, e in measured] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)
        if chosen is not None:
            hollow = chosen[group] > removed[-1]
            axes.plot(
                100 * chosen[group] / curve.channels, np.interp(chosen[group], removed, values), "o",
                color="white" if hollow else colour, markersize=7 if few else 5,
                markeredgecolor=colour if hollow else "black", markeredgewidth=0.9, zorder=4,
                gid=gid("chosen", group),
            )  # fmt: skip
    levels = [("baseline", curves.baseline.value, (0, (5, 3)))]
    if curves.bisected is not None:
        levels.append(("threshold", curves.bisected, (0, (1, 2))))
    for what, level, dashes in levels:
        handles.append(axes.axhline(scale * level, color="0.35", linewidth=0.9, linestyle=dashes, zorder=1))
        names.append(f"{what} {scale * level:.4g}")
    if chosen is not None:
        handles.extend(axes.plot([], [], "o", color="0.7", markersize=6, markeredgecolor="black", markeredgewidth=0.9))
        names.append("chosen by the plan")
    bottom, top = axes.get_ylim()
    if curves.metric in RATES:
        axes.set_ylim(max(bottom, -1.0), min(top, 101.0))
    axes.set_xlim(-1, 101)
    axes.set_xticks(range(0, 101, 10))
    axes.set_xlabel(SHARE)
    axes.set_ylabel(_metric(curves, text))
    axes.grid(True)
    if count > LEGEND:
        bar = figure.colorbar(ScalarMappable(norm, colours), cax=axes.inset_axes((1.015, 0, 0.016, 1)))
        ticks = np.unique(np.linspace(0, count - 1, 8).round().astype(int))
        bar.set_ticks(list(ticks), labels=[names[i] for i in ticks], fontsize=8)
        bar.outline.set_visible(False)
        bar.ax.invert_yaxis()  # input on top, like the rows of the heat map
        handles, names = handles[count:], names[count:]
        axes.legend(handles, names, frameon=False, fontsize=8, loc="best")
        return
    # Set names afterwards: matplotlib drops entries whose label starts with an underscore.
    legend = axes.legend(
        handles, ["x"] * len(handles), frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.02),
        borderaxespad=0, ncols=ceil(len(handles) / 20), labelspacing=0.35,
    )  # fmt: skip
    for entry, label in zip(legend.get_texts(), names, strict=True):
        entry.set_text(label)


def _grid(curves: Curves) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Return the edges of the columns, the values [group, column], and True if no value is interpolated.

    Values are NaN where nothing was measured.
    """
    all_ratios = {tuple(round(p.ratio, 9) for p in c.points) for c in curves.groups.values()}
    ratios = np.array(sorted({0.0}.union(*all_ratios)))
    gaps, near = np.diff(ratios), 1e-6
    exact = len(gaps) > 0 and WIDTHS[0] - near < gaps.min() and gaps.max() < WIDTHS[1] + near
    exact = bool(exact and (len(all_ratios) == 1 or np.ptp(gaps) < near))
    if not exact:
        ratios = np.arange(0, 1, COLUMN)
    values = np.full((len(curves.groups), len(ratios)), np.nan)
    for row, curve in zip(values, curves.groups.values(), strict=True):
        x = np.round([0.0, *(p.ratio for p in curve.points)], 9)
        y = np.array([curves.baseline.value, *(p.value for p in curve.points)])
        if exact:
            row[np.searchsorted(ratios, x)] = y
        else:
            inside = ratios <= x[-1] + COLUMN / 2
            row[inside] = np.interp(ratios[inside], x, y)
    middles = (ratios[1:] + ratios[:-1]) / 2
    last = min(1.0, 2 * ratios[-1] - middles[-1])
    return np.concatenate([[0.0], middles, [last]]), values * _scale(curves), exact


def _heat(figure: Figure, axes: Axes, curves: Curves, chosen: dict[str, int] | None, text: Text) -> None:
    """Draw one row per group, one column per ratio."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch
    from matplotlib.transforms import ScaledTranslation

    count = len(curves.groups)
    edges, values, exact = _grid(curves)
    colours = colormaps["viridis" if curves.higher_is_better else "viridis_r"].with_extremes(bad=UNMEASURED)
    mesh = axes.pcolormesh(
        100 * edges, np.arange(count + 1) - 0.5, np.ma.masked_invalid(values), cmap=colours,
        edgecolors="white", linewidth=0.4 if count <= 80 else 0.0, gid="heat",
    )  # fmt: skip
    entries: list[tuple[Artist, str]] = []
    if chosen is not None:
        # Columns are requested ratios, so the step is at the ratio that requested as many channels.
        steps = np.array([_requested_ratio(curve, chosen[group]) for group, curve in curves.groups.items()])
        x, y = 100 * np.repeat(steps, 2), np.repeat(np.arange(count + 1) - 0.5, 2)[1:-1]
        look: Any = {"solid_joinstyle": "miter", "solid_capstyle": "butt", "zorder": 4}
        axes.plot(x, y, color="white", linewidth=3.4, **look)
        (step,) = axes.plot(x, y, color="black", linewidth=1.6, gid="plan", **look)
        entries.append((step, "chosen by the plan"))
    if not exact:
        where = [(100 * p.ratio, i) for i, c in enumerate(curves.groups.values()) for p in c.points]
        x, y = np.array(where).reshape(-1, 2).T
        (dots,) = axes.plot(
            x, y, ".", color="white", markeredgecolor="black", markersize=7, markeredgewidth=0.6,
            zorder=5, gid="measured",
        )  # fmt: skip
        entries.append((dots, "measured"))
    if np.isnan(values).any():
        entries.append((Patch(color=UNMEASURED), "not measured"))
    if entries:
        below = axes.transAxes + ScaledTranslation(0, -0.44, figure.dpi_scale_trans)
        axes.legend(
            [e for e, _ in entries], [label for _, label in entries], frameon=False, fontsize=8, ncols=len(entries),
            loc="upper right", bbox_to_anchor=(1, 0), bbox_transform=below, borderaxespad=0, handlelength=1.6,
        )  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(count - 0.5, -0.5)  # input on top
    axes.set_xticks(range(0, 101, 10))
    every = ceil(count / 180)
    names = [short(text(g)) for g in curves.groups]
    axes.set_yticks(range(0, count, every), labels=names[::every], fontsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(SHARE)
    tall = min(1.0, 20 / count)  # keep the bar short beside many rows
    bar = figure.colorbar(mesh, cax=axes.inset_axes((1.015, 1 - tall, 0.016, tall)))
    bar.outline.set_visible(False)
    bar.set_label(_metric(curves, text))


def _requested_ratio(curve: Curve, removed: int) -> float:
    """Return the ratio at which that many channels are removed, interpolated between measured points."""
    counts = {0: 0.0}
    for p in curve.points:
        counts.setdefault(p.removed, p.ratio)
    if removed > max(counts):
        return removed / curve.channels
    return float(np.interp(removed, list(counts), list(counts.values())))
