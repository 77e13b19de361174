"""Plots of sensitivity curves, criteria and sparsity studies as PNG or SVG; equal values give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune._utils.atomic_files import check_output
from onnxprune.errors import OnnxPruneError, unknown
from onnxprune.studies._curve_plots import render_curves
from onnxprune.studies._filter_plots import draw_filters, draw_shares
from onnxprune.studies._plot_style import RATES, SUFFIXES, drawn, gid, import_matplotlib, short, writable, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from onnxprune.planning.curves import Curves
    from onnxprune.plans import Plan
    from onnxprune.studies.criteria_comparison import RankedGroup
    from onnxprune.studies.sparsity_study import SparsityStudy

KINDS = ("auto", "lines", "heat", "both")
PRUNED = {"weight": "#2f6690", "unit": "#c2512f"}


def check_plot(path: Path) -> None:
    """Whether a picture can be drawn to a file: asked before hours of measuring.

    Raises:
        OnnxPruneError: another suffix, matplotlib missing, a folder that cannot take it.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OnnxPruneError(f"no picture format has the suffix {path.suffix!r}", where=str(path), fix=".png or .svg")
    check_output(path)
    import_matplotlib()


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
    write(path, render_curves(curves, chosen, kind, name, path.suffix.lower()[1:]))


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
        text = writable()
        draw_filters(axes[:-1], layer, text)
        draw_shares(axes[-1], layer, text)
        title = f"{text(short(layer.name, 60))}: {layer.removed} of {len(layer.positive)} filters removed"
        axes[0].set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
        axes[0].annotate(
            text(f"{name}, sums of each filter's weights" if name else "sums of each filter's weights"), (0, 1), (0, 8),
            xycoords="axes fraction", textcoords="offset points", color="0.35",
        )  # fmt: skip

    write(path, drawn(path.suffix.lower()[1:], (9.6, sum(heights) + 0.9), draw))


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
        text = writable()
        for what in dict.fromkeys(p.what for p in study.points):
            points = [p for p in study.points if p.what == what]
            x = np.array([100 * p.sparsity for p in points])
            y, error = (100 * np.array([getattr(p, f) for p in points]) for f in ("top1", "top1_error"))
            label = f"{what}s {'removed' if points[0].end == 'strip' else 'set to zero'}"
            look: Any = {"color": PRUNED[what], "marker": "o" if what == "weight" else "s", "markersize": 4}
            upper.plot(x, y, label=label, gid=gid("top1", what), **look)
            upper.fill_between(x, y - error, y + error, color=PRUNED[what], alpha=0.15, linewidth=0)
            lower.plot(x, [p.compressed_bytes / 1e6 for p in points], gid=gid("bytes", what), **look)
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
        title = f"Weight and unit pruning of {short(text(name), 60) or f'model {study.model[:12]}'}"
        upper.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=24)
        upper.annotate(
            text(f"{study.images:,} images of {study.data}, nothing retrained"), (0, 1), (0, 8),
            xycoords="axes fraction", textcoords="offset points", color="0.35",
        )  # fmt: skip

    write(path, drawn(path.suffix.lower()[1:], (7.0, 4.8), draw))


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
