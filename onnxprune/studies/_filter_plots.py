"""Filters of a layer in the order of each criterion, and the share of weights that each criterion keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxprune.studies._plot_style import Text, gid, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onnxprune.studies.criteria_comparison import RankedGroup

SIGNS = {"positive": "#c2512f", "negative": "#2f6690"}
FADED = 0.28  # opacity of removed filters


def draw_filters(panels: Any, layer: RankedGroup, text: Text) -> None:
    """Draw one panel per criterion: the sums of each filter's positive and negative weights."""
    count, cut = len(layer.positive), layer.removed
    high, low = 1.06 * layer.positive.max(), -1.06 * layer.negative.max()
    for axes, (criterion, order) in zip(panels, layer.orders.items(), strict=True):
        for sign, values in (("positive", layer.positive[order]), ("negative", -layer.negative[order])):
            for part, first, last in (("removed", 0, cut), ("kept", cut, count)):
                if first < last:
                    axes.stairs(
                        values[first:last], np.arange(first, last + 1), fill=True, color=SIGNS[sign],
                        alpha=FADED if part == "removed" else 1.0, gid=gid(f"{part}:{sign}", criterion),
                    )  # fmt: skip
        axes.axhline(0, color="0.45", linewidth=0.8)
        if 0 < cut < count:
            axes.axvline(cut, color="black", linewidth=1.1, linestyle=(0, (4, 2)))
        axes.set_xlim(0, count)
        axes.set_ylim(low or -high, high or -low)
        axes.set_ylabel(text(short(criterion, 16)))
        if axes is not panels[-1]:
            axes.set_xticklabels([])
    panels[-1].set_xlabel("filters in the order of the criterion: those at the left go first")


def draw_shares(axes: Axes, layer: RankedGroup, text: Text) -> None:
    """Draw one bar per criterion: the kept share of the layer's weights, by sign."""
    from matplotlib.patches import Patch

    whole = float(layer.positive.sum()), float(layer.negative.sum())
    rows = {"": whole, **{criterion: layer.kept(criterion) for criterion in layer.orders}}
    for place, (criterion, kept) in enumerate(rows.items()):
        left = 0.0
        for sign, value in zip(SIGNS, kept, strict=True):
            width = 100 * value / sum(whole)
            axes.barh(
                place, width, 0.72, left=left, color=SIGNS[sign], alpha=1.0 if criterion else 0.6,
                gid=gid(f"share:{sign}", criterion),
            )  # fmt: skip
            if width > 8:  # room for the number
                share = f"{100 * value / sum(kept):.1f} %"
                axes.text(
                    left + width / 2, place, share, ha="center", va="center", fontsize=8,
                    color="white" if criterion else "0.15",
                )  # fmt: skip
            left += width
    names = ["whole layer", *(text(short(criterion, 16)) for criterion in layer.orders)]
    axes.set_yticks(range(len(rows)), labels=names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("kept share of the layer's weights by magnitude (%), and how it divides by sign")
    axes.legend(
        handles=[Patch(color=colour, label=sign) for sign, colour in SIGNS.items()], frameon=False, fontsize=8,
        loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0,
    )  # fmt: skip
