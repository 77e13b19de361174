"""Options of zeroing weights and units."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.options._declare import BUDGET, SELECTION, Options, option
from onnxprune.options._text import NAMES, NUMBERS

UNITS = ("weight", "unit")
SCOPES = ("layer", "global")
POINTS = (0.0, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99)
ENDS = ("zeros", "strip")


@dataclass(frozen=True, kw_only=True, repr=False)
class SparsityScope(Options):
    """Which weights become zero together."""

    scope: str | None = option(
        None, help="The same share of each weight, or one threshold for all.", heading=SELECTION, choices=SCOPES,
        usage=True, shown="layer",
    )  # fmt: skip
    exclude: tuple[str, ...] = option(
        (), help="Do not change these weights (repeatable).", heading=SELECTION, metavar="GLOB"
    )
    include_last: bool = option(False, help="Prune the last layer as well.", heading=SELECTION)


@dataclass(frozen=True, kw_only=True, repr=False)
class Sparsifying(SparsityScope):
    """How many weights become zero."""

    sparsity: float | None = option(None, help="Share that becomes zero.", heading=BUDGET, ge=0, lt=1)
    pattern: str | None = option(
        None, heading=BUDGET, metavar="N:M",
        help="Instead: of every M inputs of a unit the N largest weights remain (2:4).",
    )  # fmt: skip
    what: str = option(
        "weight", help="Single weights, or whole filters and neurons of smallest norm.", heading=SELECTION,
        choices=UNITS, usage=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class SparsitySweep(SparsityScope):
    """Which sparsities are measured."""

    what: tuple[str, ...] = option(
        UNITS, help="weight, unit or both.", heading=SELECTION, text=NAMES, metavar="NAMES", title="method",
        choices=UNITS,
    )  # fmt: skip
    points: tuple[float, ...] = option(
        POINTS, help="Sparsities to measure.", heading=BUDGET,
        text=NUMBERS, metavar="NUMBERS", ge=0, lt=1,
    )  # fmt: skip
    end: str = option(
        "zeros", help="Units become zero, or are removed and the result is verified.", heading=BUDGET, choices=ENDS,
        usage=True,
    )  # fmt: skip
