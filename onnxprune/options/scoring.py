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
"""Criterion where none is named."""


@dataclass(frozen=True, kw_only=True, repr=False)
class AttentionOptions(Options):
    """How multi-head attention is grouped."""

    attention: str = option(
        "heads", help="Unit removed from multi-head attention.", heading=MODEL, advanced=True, choices=ATTENTION,
        usage=True,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class AnalysisOptions(AttentionOptions):
    """Which channels the analysis frees."""

    include_inexact: bool = option(
        False, heading=MODEL, advanced=True,
        help="Also free channels that LayerNorm, GroupNorm, Softmax or a mean runs over (a transformer's residual "
        "stream). The statistic changes with them.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Scoring(Options):
    """How channels are scored."""

    criterion: str | None = option(
        None, help="Criterion that scores channels (see `criteria`).", heading=SELECTION, flag=("-c", "--criterion"),
        shown="l2; obs with --data in prune; with --curves theirs",
    )  # fmt: skip
    params: Mapping[str, Any] = option(
        {}, help="Parameter of the criterion (repeatable).", heading=SELECTION, advanced=True, flag=("-p", "--param"),
        metavar="NAME=VALUE", text=PAIRS,
    )  # fmt: skip
    reduce: str | None = option(
        None, help="How the scores of a group's weights are joined: mean, sum, max, first.", heading=SELECTION,
        advanced=True, choices=REDUCTIONS, shown="the criterion's own", title="reduction",
    )  # fmt: skip

    @property
    def name(self) -> str:
        """The criterion, or the default one."""
        return self.criterion or CRITERION
