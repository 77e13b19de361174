"""Plots of sensitivity curves, criteria and sparsity studies as PNG or SVG; equal values give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune._utils.files.atomic_files import check_output
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
    """Check that a plot can be written to a file, before hours of measuring.

    Raises:
        OnnxPruneError: Another suffix, matplotlib is missing, or the folder is not writable.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OnnxPruneError(f"no picture format has the suffix {path.suffix!r}", where=str(path), fix=".png or .svg")
    check_output(path)
    import_matplotlib()


def plot_curves(curves: Curves, path: Path, *, plan: Plan | None = None, kind: str = "auto", name: str = "") -> None:
    """Draw sensitivity curves.

    `lines` has one line per group, coloured by depth in the network, from the baseline at 0 % through the measured
    points; standard errors are bands where there are at most 12 groups. `heat` has one row per group, brighter is
    better, and one column per ratio; unmeasured cells are grey. If groups were measured at different
    ratios (bisected curves) or at few, columns are 2.5 % wide, measured points are dots, values between them are
    interpolated, and cells beyond the last one are grey. `both` has the lines above the heat map. `auto` is `lines`
    for up to 20 groups and `heat` for more, because many lines hide each other.

    A plan's choice is a point on each line, interpolated between measured points, and a step line over the heat map. If
    the plan removes more than was measured, the point is hollow, at the last value.

    In SVG, lines have the ids `curve:GROUP`, points `chosen:GROUP`, the heat map `heat` and its step line `plan`.

    Args:
        path: Path that ends in .png or .svg.
        plan: Plan whose choice is marked.
        kind: auto, lines, heat or both.
        name: Name of the model for the title; default: its fingerprint.

    Raises:
        OnnxPruneError: Another suffix or kind, no groups, a plan for another model, matplotlib is missing, or the file
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
    """Draw the filters of a layer in the order of every criterion, and the weights that each would keep.

    As figures 4 and 5 of the D-Score paper (Park & Kim 2022): one panel per criterion, with the sums of
    a filter's positive and negative weights above and below the axis, the first to be removed at the left, removed
    filters pale; below them a bar per criterion, as long as the kept share of all weights (by magnitude), divided by
    sign.

    In SVG, areas have the ids `removed:positive:CRITERION`, `kept:negative:CRITERION` and so on, bars
    `share:positive:CRITERION`; the bar of the whole layer is that of the criterion ``.

    Args:
        path: Path that ends in .png or .svg.
        name: Name of the model for the title.

    Raises:
        OnnxPruneError: Another suffix, matplotlib is missing, the file cannot be written, or the group has no weights.
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
    """Draw top1 accuracy over sparsity with standard errors, and below it the bytes of the compressed files.

    Weights and units have a line each.

    In SVG, lines have the ids `top1:weight`, `top1:unit`, `bytes:weight`, `bytes:unit`.

    Args:
        path: Path that ends in .png or .svg.
        name: Name of the model for the title; default: its fingerprint.

    Raises:
        OnnxPruneError: Another suffix, no points, matplotlib is missing, or the file cannot be written.
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
    """Return the number of channels that a plan removes from every group with a curve."""
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
