"""Options of recovery without training."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.options._declare import BUDGET, OUTPUT, Options, option
from onnxprune.options._text import NAMES

STAGES = ("recalibrate_batchnorm", "reconstruct_weights")


@dataclass(frozen=True, kw_only=True, repr=False)
class Recovery(Options):
    """How the remaining weights are re-solved."""

    stages: tuple[str, ...] = option(STAGES, help="Stages, in order.", heading=BUDGET, text=NAMES, metavar="NAMES")
    rows: int = option(
        40_000, help="Positions that a layer is fitted on.", heading=BUDGET, advanced=True, ge=1, usage=True
    )
    rounds: int = option(
        3, help="Rounds of the fit around Relu and Clip.", heading=BUDGET, advanced=True, ge=0, usage=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class AfterPruning(Options):
    """Whether a pruned model is recovered at once."""

    recover: bool | None = option(
        None, heading=OUTPUT, flag="--recover/--no-recover", shown="with --data",
        help="Re-solve the remaining weights, so that the outputs come close to the original's.",
    )  # fmt: skip
