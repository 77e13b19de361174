"""Random scores: the baseline for every criterion."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.analysis.blocks import Block
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import Array, Criterion
from onnxprune.criteria.model_runs.block_runs import BlockScorer
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration


class _RandomLosses(BlockScorer):
    """Numbers in [0, 1) from a seed and the names of blocks."""

    together = True
    by_saving = False

    def __init__(self, rule: RandomScores) -> None:
        self.rule = rule

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        return {b.name: float(self.rule.score_rows(np.zeros((1, 1)), f"block {b.name}")[0]) for b in blocks}


@register
@dataclass(frozen=True)
class RandomScores(Criterion):
    """`s_f` uniform in [0, 1), from the seed and the tensor's name alone, independent of the weights.

    Args:
        seed: Any whole number.
    """

    seed: int = 0

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "seeded random scores, the baseline"
    source: ClassVar[str] = "baseline of Mittal et al. 2018, Recovering from Random Pruning"
    default_normalize: ClassVar[str] = "none"  # one distribution for all layers

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise OnnxPruneError(f"random: seed must be a whole number, not {self.seed!r}", fix="for example seed=0")

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer:
        return _RandomLosses(self)

    def score_rows(self, rows: Array, tensor: str) -> Array:
        # `hash()` differs between runs; numpy keeps the raw stream of PCG64 stable, but not the floats of Generator.
        digest = hashlib.sha256(f"{self.seed}:{tensor}".encode()).digest()
        raw = np.random.PCG64(int.from_bytes(digest, "little")).random_raw(len(rows))
        return (np.asarray(raw) >> np.uint64(11)).astype(np.float64) * 2.0**-53
