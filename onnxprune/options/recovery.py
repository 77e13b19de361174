"""Options of recovery without training."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.options._declare import BUDGET, OUTPUT, Options, option
from onnxprune.options._text import NAMES

STAGES = ("recalibrate_batchnorm", "reconstruct_weights")
"""Stages that run by default."""
ALL_STAGES = (*STAGES, "reconstruct_blocks")
"""All stages; the last one needs PyTorch."""


def stages_of(reconstruct_blocks: bool) -> tuple[str, ...]:
    """Return the stages of a recovery, with blocks or without."""
    return ALL_STAGES if reconstruct_blocks else STAGES


@dataclass(frozen=True, kw_only=True, repr=False)
class Recovery(Options):
    """Stages and size of a recovery."""

    stages: tuple[str, ...] = option(
        STAGES, heading=BUDGET, text=NAMES, metavar="NAMES",
        help="Stages, in order. A third one, reconstruct_blocks, fits whole blocks by descent and needs PyTorch.",
    )  # fmt: skip
    rows: int = option(
        40_000, help="Positions that a layer is fitted on.", heading=BUDGET, advanced=True, ge=1, usage=True
    )
    rounds: int = option(
        3, help="Rounds of the fit around Relu and Clip.", heading=BUDGET, advanced=True, ge=0, usage=True
    )
    epochs: int = option(
        10, help="Epochs of reconstruct_blocks, for each block.", heading=BUDGET, advanced=True, ge=1, usage=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class AfterPruning(Options):
    """Recovery directly after pruning."""

    recover: bool | None = option(
        None, heading=OUTPUT, flag="--recover/--no-recover", shown="with --data",
        help="Re-solve the remaining weights, or not.",
    )  # fmt: skip
    reconstruct_blocks: bool = option(
        False, heading=OUTPUT, advanced=True, flag="--reconstruct-blocks",
        help="Then fit whole blocks by descent towards the original's, without labels. Several times slower; needs "
        "PyTorch.",
    )  # fmt: skip

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of the recovery."""
        return stages_of(self.reconstruct_blocks)
