"""Criteria of whole residual blocks: distance of the outputs without one, angle between its input and output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxprune.analysis.blocks import Block
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria._registry import register
from onnxprune.criteria.base import BlockCriterion
from onnxprune.criteria.model_runs.block_losses import DistanceWithout, check_block_samples, unit_vectors
from onnxprune.criteria.model_runs.block_runs import BlockRuns, BlockScorer
from onnxprune.execution.calibration import Calibration


@register
@dataclass(frozen=True)
class OutputDistanceOfBlocks(BlockCriterion):
    """Distance of the outputs from the original's without the block; no labels needed.

    A divergence of class probabilities for classifiers, of boxes and scores for detectors, else a squared error.
    """

    name: ClassVar[str] = "distance"
    title: ClassVar[str] = "distance of the outputs without the block (blocks only)"
    source: ClassVar[str] = "the label-free form of loss_change"
    needs: ClassVar[str] = "data"

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer:
        return DistanceWithout(analysis, check_block_samples(self.name, calibration), count)


class _Angles(BlockScorer):
    """Mean of 1 - cosine between the input and the output of blocks, from one run."""

    together = True
    by_saving = False

    def __init__(self, analysis: Analysis, calibration: Calibration, count: int) -> None:
        self.runs = BlockRuns(analysis, calibration, count)

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        model = self.runs.without(removed)
        tensors = model.graph.tensors()
        # Of parallel branches one may have replaced the addition of another.
        present = [b for b in blocks if b.output in tensors and b.branch in tensors]
        names = list(dict.fromkeys(n for b in present for n in (b.branch, b.output)))
        sums, count = np.zeros(len(present)), np.zeros(len(present))
        for values in self.runs.tensors(model, names) if names else ():
            for i, b in enumerate(present):
                out, branch = (np.asarray(values[n], np.float64) for n in (b.output, b.branch))
                axis = 1 if out.ndim == 4 and b.kind == "conv" else -1
                if b.channels:  # appended: the other channels of the output are the input
                    whole, own = (np.square(v).sum(axis) for v in (out, branch))
                    cosines = np.sqrt(np.divide(whole - own, whole, out=np.zeros_like(whole), where=whole > 0))
                else:
                    cosines = (unit_vectors(out, axis) * unit_vectors(out - branch, axis)).sum(axis)
                sums[i] += float((1 - cosines).sum())
                count[i] += cosines.size
        found = dict(zip((b.name for b in present), (sums / np.maximum(count, 1)).tolist(), strict=True))
        return {b.name: found.get(b.name, 0.0) for b in blocks}


@register
@dataclass(frozen=True)
class AngularDistance(BlockCriterion):
    """`1 - cos(x, x + f(x))`, the mean over positions and samples: how far a block turns its input.

    The vectors are those of channels at a pixel, or of a token. A block that turns its input least is removed first.
    """

    name: ClassVar[str] = "angular"
    title: ClassVar[str] = "angle between the input and the output of the block (blocks only)"
    source: ClassVar[str] = "Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant"
    needs: ClassVar[str] = "data"

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer:
        return _Angles(analysis, check_block_samples(self.name, calibration), count)
