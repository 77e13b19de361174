"""Importance of whole blocks in one partial least squares of the classes on all of their outputs (layer pruning)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.analysis.blocks import Block
from onnxprune.analysis.coupling import Analysis
from onnxprune.criteria.model_runs.block_runs import BlockRuns, BlockScorer
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration

Columns = NDArray[np.float64]
Pool = Callable[[NDArray[np.floating], int, int], Columns]
"""(values, axis of the channels, samples) -> [samples, channels, cells]."""
Importance = Callable[[Columns, Columns], Columns]
"""(X [n, p], Y [n, classes]) -> VIP [p]."""


class BlockImportance(BlockScorer):
    """Mean importance of the pooled channels of a branch's result, in one regression on all blocks that remain.

    Args:
        analysis: Coupling analysis of the model.
        calibration: Samples with labels.
        count: Number of blocks that are scored.
        pool: Columns of a tensor.
        importance: Importance of columns.
    """

    together = True
    by_saving = False

    def __init__(
        self, analysis: Analysis, calibration: Calibration, count: int, pool: Pool, importance: Importance
    ) -> None:
        self.runs = BlockRuns(analysis, calibration, count, images=len(calibration.data))
        self.pool, self.importance = pool, importance
        labels = self.runs.feeds.data.y
        assert labels is not None
        classes = np.unique(labels)
        if len(classes) < 2:
            raise OnnxPruneError(
                f"criterion 'pls_vip' needs two classes; all samples are of class {classes[0]}",
                fix="pass samples of at least two classes",
            )
        self.labels = (labels[:, None] == classes).astype(np.float64)

    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        model = self.runs.without(removed)
        tensors = model.graph.tensors()
        present = [b for b in blocks if b.branch in tensors]
        found: list[list[Columns]] = [[] for _ in present]
        names = list(dict.fromkeys(b.branch for b in present))
        for i, values in enumerate(self.runs.tensors(model, names)):
            count = self.runs.feeds.real(i)
            for columns, b in zip(found, present, strict=True):
                v = values[b.branch]
                axis = 1 if v.ndim == 4 and b.kind == "conv" else v.ndim - 1
                columns.append(self.pool(v, axis, count).reshape(count, -1))
        joined = [np.concatenate(columns) for columns in found]
        out = dict.fromkeys((b.name for b in blocks), 0.0)
        if joined:
            vip = self.importance(np.concatenate(joined, axis=1), self.labels)
            edges = np.cumsum([c.shape[1] for c in joined])[:-1]
            out |= {b.name: float(v.mean()) for b, v in zip(present, np.split(vip, edges), strict=True)}
        return out
