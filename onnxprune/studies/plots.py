"""Sensitivity curves, and the weights that criteria keep, as a picture, PNG or SVG: the same values, the same bytes.

matplotlib is imported when a picture is made, and only its figure objects are used: no window, no global figure.
"""

from __future__ import annotations

import io
import textwrap
import unicodedata
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune._utils.atomic_files import atomic, check_output
from onnxprune.errors import OnnxPruneError, unknown

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from onnxprune.planning.curves import Curve, Curves
    from onnxprune.plans import Plan
    from onnxprune.studies.criteria_comparison import RankedGroup
    from onnxprune.studies.sparsity_study import SparsityStudy

KINDS = ("auto", "lines", "heat", "both")
SUFFIXES = (".png", ".svg")
LINES = 20  # more groups than this: `auto` draws a heat map
BANDS = 12  # more groups than this: bands of standard errors would cover each other
LEGEND = 24  # more groups than this: a colour bar of depth instead of a legend
COLUMN = 0.025  # width of a heat map's column where the ratios of the groups make no even columns
WIDTHS = (0.01, 0.125)  # narrower ones cannot be seen, wider ones would say more than was measured
MARKERS = "os^Dv"  # neighbours in depth have colours that are hard to tell apart
NAME = 30  # letters of a group's name
RATES = {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}  # shares, shown in percent
SHARE = "channels removed from one group alone (%)"
UNMEASURED = "0.88"
SIGNS = {"positive": "#c2512f", "negative": "#2f6690"}
PRUNED = {"weight": "#2f6690", "unit": "#c2512f"}
FADED = 0.28  # opacity of what is removed
STYLE: Any = {  # Any: newer stubs list the keys, older ones take strings
    "axes.axisbelow": True,
    "axes.edgecolor": "0.45",
    "axes.labelcolor": "0.15",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture does not depend on the machine's fonts
    "font.size": 9,
    "grid.color": "0.9",
    "grid.linewidth": 0.7,
    "svg.hashsalt": "onnxprune",
    "text.parse_math": False,  # a name may hold dollars
    "xtick.color": "0.45",
    "xtick.labelcolor": "0.15",
    "ytick.color": "0.45",
    "ytick.labelcolor": "0.15",
}


def check_plot(path: Path) -> None:
    """Whether a picture can be drawn to a file: asked before hours of measuring.

    Raises:
        OnnxPruneError: another suffix, matplotlib missing, a folder that cannot take it.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OnnxPruneError(f"no picture format has the suffix {path.suffix!r}", where=str(path), fix=".png or .svg")
    check_output(path)
    _matplotlib()


def plot_curves(curves: Curves, path: Path, *, plan: Plan | None = None, kind: str = "auto", name: str = "") -> None:
    """Draws sensitivity curves.

    `lines` has one line per group, coloured by depth in the network, from the baseline at 0 % through the measured
    points; standard errors are bands where there are at most 12 groups. `heat` has one row per group, brighter is
    better, and one column per ratio; what was not measured is grey. Where groups were measured at ratios of their own
    (bisected curves) or far between, columns are 2.5 % wide, measured points are dots, values between them lie on the
    straight line, and what is beyond the last one is grey. `both` has the lines above the heat map. `auto` is `lines`
    for up to 20 groups and `heat` for more: that many lines hide each other.

    A plan's choice is a point on each line, between measured points on the straight line, and a step line over the heat
    map; where the plan goes further than the curve was measured the point is hollow, at the last value.

    In SVG, lines have the ids `curve:GROUP`, points `chosen:GROUP`, the heat map `heat` and its step line `plan`.

    Args:
        path: ends in .png or .svg.
        plan: whose choice is marked.
        kind: auto, lines, heat or both.
        name: the model's name for the title; its fingerprint otherwise.

    Raises:
        OnnxPruneError: another suffix or kind, no groups, a plan for another model, matplotlib missing, a file that
            cannot be written.
    """
    check_plot(path)
    if kind not in KINDS:
        raise unknown("kind of picture", kind, KINDS)
    if not curves.groups:
        raise OnnxPruneError("there are no curves to draw")
    chosen = None if plan is None else _chosen(curves, plan)
    _write(path, _render(curves, chosen, kind, name, path.suffix.lower()[1:]))


def plot_criteria(layer: RankedGroup, path: Path, *, name: str = "") -> None:
    """Draws the filters of a layer in the order of every criterion, and the weights that each would keep.

    In the manner of figures 4 and 5 of the D-Score paper (Park & Kim 2022): one panel per criterion, in which the sums
    of a filter's positive and negative weights stand above and below the axis, what goes first at the left, what is
    removed pale; below them a bar per criterion, as long as the share of all weights (by magnitude) that is kept,
    divided by sign.

    In SVG, areas have the ids `removed:positive:CRITERION`, `kept:negative:CRITERION` and so on, bars
    `share:positive:CRITERION`; the bar of the whole layer is that of the criterion ``.

    Args:
        path: ends in .png or .svg.
        name: the model's name for the title.

    Raises:
        OnnxPruneError: another suffix, matplotlib missing, a file that cannot be written; a group without weights.
    """
    check_plot(path)
    if not (layer.positive.any() or layer.negative.any()):
        raise OnnxPruneError(
            "there are no weights to draw: the channels of this group are made by none", where=f"group {layer.name!r}"
        )
    bars = 0.7 + 0.26 * (1 + len(layer.orders))  # inches
    heights = [*([1.3] * len(layer.orders)), bars]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        text = _writable()
        _filters(axes[:-1], layer, text)
        _shares(axes[-1], layer, text)
        title = f"{text(_short(layer.name, 60))}: {layer.removed} of {len(layer.positive)} filters removed"
        axes[0].set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
        axes[0].annotate(
            text(f"{name}, sums of each filter's weights" if name else "sums of each filter's weights"), (0, 1), (0, 8),
            xycoords="axes fraction", textcoords="offset points", color="0.35",
        )  # fmt: skip

    _write(path, _drawn(path.suffix.lower()[1:], (9.6, sum(heights) + 0.9), draw))


def plot_study(study: SparsityStudy, path: Path, *, name: str = "") -> None:
    """Draws top-1 accuracy over sparsity, a line with its standard errors for weights and one for units, and below it
    the bytes of the compressed files over the same axis.

    In SVG, lines have the ids `top1:weight`, `top1:unit`, `bytes:weight`, `bytes:unit`.

    Args:
        path: ends in .png or .svg.
        name: the model's name for the title; its fingerprint otherwise.

    Raises:
        OnnxPruneError: another suffix, no points, matplotlib missing, a file that cannot be written.
    """
    check_plot(path)
    if not study.points:
        raise OnnxPruneError("there are no points to draw")

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.0, 1.6))
        text = _writable()
        for what in dict.fromkeys(p.what for p in study.points):
            points = [p for p in study.points if p.what == what]
            x = np.array([100 * p.sparsity for p in points])
            y, error = (100 * np.array([getattr(p, f) for p in points]) for f in ("top1", "top1_error"))
            label = f"{what}s {'removed' if points[0].end == 'strip' else 'set to zero'}"
            look: Any = {"color": PRUNED[what], "marker": "o" if what == "weight" else "s", "markersize": 4}
            upper.plot(x, y, label=label, gid=_gid("top1", what), **look)
            upper.fill_between(x, y - error, y + error, color=PRUNED[what], alpha=0.15, linewidth=0)
            lower.plot(x, [p.compressed_bytes / 1e6 for p in points], gid=_gid("bytes", what), **look)
        upper.set_ylabel(f"{RATES['top1']} (%)")
        upper.set_ylim(0, 101)
        lower.set_ylabel("compressed file (MB)")
        lower.set_ylim(bottom=0)
        lower.set_xlim(-1, 101)
        lower.set_xticks(range(0, 101, 10))
        of = "of every pruned layer" if study.scope == "layer" else "of all pruned layers together"
        lower.set_xlabel(f"share of the weights, or units, {of} (%)")
        for axes in (upper, lower):
            axes.grid(True)
        upper.legend(frameon=False, loc="lower left")
        title = f"Weight and unit pruning of {_short(text(name), 60) or f'model {study.model[:12]}'}"
        upper.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
        upper.annotate(
            text(f"{study.images:,} images of {study.data}, nothing retrained"), (0, 1), (0, 8),
            xycoords="axes fraction", textcoords="offset points", color="0.35",
        )  # fmt: skip

    _write(path, _drawn(path.suffix.lower()[1:], (7.0, 4.8), draw))


def _write(path: Path, image: bytes) -> None:
    try:
        with atomic(path) as file:
            file.write(image)
    except OSError as err:
        raise OnnxPruneError(f"cannot write {str(path)!r}: {err.strerror or err}") from err


def _chosen(curves: Curves, plan: Plan) -> dict[str, int]:
    """Channels a plan removes from every group that has a curve."""
    if plan.model and plan.model != curves.model:
        raise OnnxPruneError(
            "the plan was made for another model than the curves",
            where=f"plan {plan.model[:12]}, curves {curves.model[:12]}",
        )
    out = {}
    for group, curve in curves.groups.items():
        removal = plan.groups.get(group)
        if removal is not None and removal.channels != curve.channels:
            raise OnnxPruneError(
                f"the plan has {removal.channels} channels in a group where the curve has {curve.channels}",
                where=f"group {group!r}",
            )
        out[group] = 0 if removal is None else len(removal.removed)
    return out


def _render(curves: Curves, chosen: dict[str, int] | None, kind: str, name: str, form: str) -> bytes:
    """The file's bytes."""
    count = len(curves.groups)
    if kind == "auto":
        kind = "lines" if count <= LINES else "heat"
    rows = min(max(1.2, 0.17 * count), 30.0)  # inches of heat map
    heights = {"lines": [4.4], "heat": [rows], "both": [4.4, rows]}[kind]

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        text = _writable()
        if kind != "heat":
            _lines(figure, axes[0], curves, chosen, text)
        if kind != "lines":
            _heat(figure, axes[-1], curves, chosen, text)
        _titles(axes[0], curves, text(name) or f"model {text(curves.model[:12])}", text)

    return _drawn(form, (9.6, sum(heights) + 1.0 + 0.4 * (len(heights) - 1)), draw)


def _drawn(form: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """A file's bytes: a figure of a size in inches, drawn in our own style."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    out = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever a matplotlibrc says
        matplotlib.rcParams.update(STYLE)
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08, hspace=0.03))
        draw(figure)
        metadata = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
        # A Figure without a canvas of its own takes Agg for PNG and the SVG writer for SVG.
        figure.savefig(out, format=form, dpi=150, metadata=metadata)
    return out.getvalue()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as err:
        raise OnnxPruneError("pictures need matplotlib", fix="pip install 'onnxprune[report]'") from err
    return matplotlib


Text = Callable[[str], str]


def _writable() -> Text:
    """A function that leaves out what the font cannot show: matplotlib would warn of it and draw boxes."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))

    def text(value: str) -> str:
        return "".join(c if _printable(c) and font.get_char_index(ord(c)) else "?" for c in value)

    return text


def _printable(char: str) -> bool:
    # Neither control characters nor lone surrogates can stand in XML.
    return unicodedata.category(char) not in ("Cc", "Cs", "Cn")


def _gid(kind: str, group: str) -> str:
    return f"{kind}:{''.join(c if _printable(c) else '?' for c in group)}"


def _short(name: str, limit: int = NAME) -> str:
    """A name with its middle left out: the end says which layer it is, the start in which part."""
    if len(name) <= limit:
        return name
    head = limit // 3
    return f"{name[:head]}…{name[len(name) - (limit - head - 1) :]}"


def _scale(curves: Curves) -> float:
    return 100.0 if curves.metric in RATES else 1.0


def _metric(curves: Curves, text: Text) -> str:
    return f"{RATES[curves.metric]} (%)" if curves.metric in RATES else text(curves.metric)


def _titles(axes: Axes, curves: Curves, name: str, text: Text) -> None:
    """Which model; then metric, criterion and images, smaller."""
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
    title = f"Sensitivity of {_short(name, 60)}"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=10 + 11 * len(lines))


def _depth() -> Colormap:
    """Colours of lines: plasma without its yellow, which white paper swallows."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["plasma"](np.linspace(0.0, 0.9, 256)))


def _series(curves: Curves, curve: Curve) -> tuple[NDArray[Any], NDArray[Any]]:
    """Channels removed and values from the baseline on; counts that were measured twice once."""
    points = {0: curves.baseline.value}
    for p in curve.points:
        points.setdefault(p.removed, p.value)
    return np.array(list(points), np.float64), np.array(list(points.values()), np.float64) * _scale(curves)


def _lines(figure: Figure, axes: Axes, curves: Curves, chosen: dict[str, int] | None, text: Text) -> None:
    """One line per group over the share of channels that is really gone."""
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
            gid=_gid("curve", group),
        )  # fmt: skip
        names.append(_short(text(group)))
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
                gid=_gid("chosen", group),
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
        bar.ax.invert_yaxis()  # from the input down, like the rows of the heat map
        handles, names = handles[count:], names[count:]
        axes.legend(handles, names, frameon=False, fontsize=8, loc="best")
        return
    # Names go in afterwards: matplotlib drops entries whose label starts with an underscore.
    legend = axes.legend(
        handles, ["x"] * len(handles), frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.02),
        borderaxespad=0, ncols=ceil(len(handles) / 20), labelspacing=0.35,
    )  # fmt: skip
    for entry, label in zip(legend.get_texts(), names, strict=True):
        entry.set_text(label)


def _grid(curves: Curves) -> tuple[NDArray[Any], NDArray[Any], bool]:
    """Edges of the columns, the values [group, column] with NaN where nothing was measured, and whether they are the
    measured ones (not on straight lines between)."""
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
    """One row per group, one column per ratio."""
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
        # Columns are ratios that were asked for, so the step goes where that many channels were asked for.
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
    axes.set_ylim(count - 0.5, -0.5)  # the input on top
    axes.set_xticks(range(0, 101, 10))
    every = ceil(count / 180)
    names = [_short(text(g)) for g in curves.groups]
    axes.set_yticks(range(0, count, every), labels=names[::every], fontsize=8)
    axes.tick_params(axis="y", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(SHARE)
    tall = min(1.0, 20 / count)  # a bar as long as 60 rows is far to look along
    bar = figure.colorbar(mesh, cax=axes.inset_axes((1.015, 1 - tall, 0.016, tall)))
    bar.outline.set_visible(False)
    bar.set_label(_metric(curves, text))


def _requested_ratio(curve: Curve, removed: int) -> float:
    """The ratio at which that many channels go, on straight lines between measured points."""
    counts = {0: 0.0}
    for p in curve.points:
        counts.setdefault(p.removed, p.ratio)
    if removed > max(counts):
        return removed / curve.channels
    return float(np.interp(removed, list(counts), list(counts.values())))


def _filters(panels: Any, layer: RankedGroup, text: Text) -> None:
    """One panel per criterion: what a filter's positive and negative weights sum up to."""
    count, cut = len(layer.positive), layer.removed
    high, low = 1.06 * layer.positive.max(), -1.06 * layer.negative.max()
    for axes, (criterion, order) in zip(panels, layer.orders.items(), strict=True):
        for sign, values in (("positive", layer.positive[order]), ("negative", -layer.negative[order])):
            for part, first, last in (("removed", 0, cut), ("kept", cut, count)):
                if first < last:
                    axes.stairs(
                        values[first:last], np.arange(first, last + 1), fill=True, color=SIGNS[sign],
                        alpha=FADED if part == "removed" else 1.0, gid=_gid(f"{part}:{sign}", criterion),
                    )  # fmt: skip
        axes.axhline(0, color="0.45", linewidth=0.8)
        if 0 < cut < count:
            axes.axvline(cut, color="black", linewidth=1.1, linestyle=(0, (4, 2)))
        axes.set_xlim(0, count)
        axes.set_ylim(low or -high, high or -low)
        axes.set_ylabel(text(_short(criterion, 16)))
        if axes is not panels[-1]:
            axes.set_xticklabels([])
    panels[-1].set_xlabel("filters in the order of the criterion: those at the left go first")


def _shares(axes: Axes, layer: RankedGroup, text: Text) -> None:
    """A bar per criterion: how much of the layer's weights stays, by sign."""
    from matplotlib.patches import Patch

    whole = float(layer.positive.sum()), float(layer.negative.sum())
    rows = {"": whole, **{criterion: layer.kept(criterion) for criterion in layer.orders}}
    for place, (criterion, kept) in enumerate(rows.items()):
        left = 0.0
        for sign, value in zip(SIGNS, kept, strict=True):
            width = 100 * value / sum(whole)
            axes.barh(
                place, width, 0.72, left=left, color=SIGNS[sign], alpha=1.0 if criterion else 0.6,
                gid=_gid(f"share:{sign}", criterion),
            )  # fmt: skip
            if width > 8:  # room for the number
                share = f"{100 * value / sum(kept):.1f} %"
                axes.text(
                    left + width / 2, place, share, ha="center", va="center", fontsize=8,
                    color="white" if criterion else "0.15",
                )  # fmt: skip
            left += width
    names = ["whole layer", *(text(_short(criterion, 16)) for criterion in layer.orders)]
    axes.set_yticks(range(len(rows)), labels=names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("kept share of the layer's weights by magnitude (%), and how it divides by sign")
    axes.legend(
        handles=[Patch(color=colour, label=sign) for sign, colour in SIGNS.items()], frameon=False, fontsize=8,
        loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0,
    )  # fmt: skip
