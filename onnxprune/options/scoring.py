"""Options of the analysis and of scoring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.options._declare import MODEL, SELECTION, Options, option
from onnxprune.options._text import PAIRS

ATTENTION = ("heads", "head_dim")
REDUCTIONS = ("mean", "sum", "max", "first")
CRITERION = "l2"
"""Default criterion."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionOptions(Options):
    """Grouping of multi-head attention."""

    attention: str = option(
        "heads", help="Unit removed from multi-head attention.", heading=MODEL, advanced=True, choices=ATTENTION,
        usage=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class AnalysisOptions(AttentionOptions):
    """Channels that the analysis frees."""

    include_inexact: bool = option(
        False, heading=MODEL, advanced=True,
        help="Also free channels that LayerNorm, GroupNorm, Softmax or a mean runs over (a transformer's residual "
        "stream). The statistic changes with them.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Scoring(Options):
    """Criterion with its parameters and reduction."""

    criterion: str | None = option(
        None, help="Criterion of the scores (`criteria` lists them).", heading=SELECTION, flag=("-c", "--criterion"),
        shown="l2; prune --data: obs",
    )  # fmt: skip
    params: Mapping[str, Any] = option(
        {}, help="Parameter of the criterion (repeatable).", heading=SELECTION, advanced=True, flag=("-p", "--param"),
        metavar="NAME=VALUE", text=PAIRS,
    )  # fmt: skip
    reduce: str | None = option(
        None, help="Reduction over the weights of a group: mean, sum, max, first.", heading=SELECTION,
        advanced=True, choices=REDUCTIONS, shown="the criterion's own", title="reduction",
    )  # fmt: skip

    @property
    def name(self) -> str:
        """Name of the criterion, or of the default one."""
        return self.criterion or CRITERION
