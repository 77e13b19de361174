"""Losses of residual blocks: runs of a model without some of them, and the greedy order of removal.

The removal of one block changes what the others are worth, so losses are computed again after each removal. Losses
grow as a rule while others are removed, so only the block that seems to be next is computed again (Minoux 1978).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.blocks import Block
from onnxprune.analysis.cost import CostModel
from onnxprune.analysis.coupling import Analysis
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, exposing
from onnxprune.execution.data import Feeds, subset
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array, Model
from onnxprune.passes import Pipeline
from onnxprune.passes.remove_blocks import removal_passes
from onnxprune.plans import BlockRemoval, Plan

_IMAGES = (32, 256)  # least and most samples, few for large models
_WORK = 8e12  # MAC budget of all runs
_ROUNDS = 3  # runs of a block that are expected
_BATCH = 32


class BlockRuns:
    """Runs of an analysed model without some of its blocks.

    Args:
        analysis: Coupling analysis of the model.
        calibration: Samples.
        count: Number of blocks that are scored: the more, the fewer samples are run.
        images: Number of samples; None: as many as the work allows.
    """

    def __init__(self, analysis: Analysis, calibration: Calibration, count: int, images: int | None = None) -> None:
        self.analysis, self.calibration = analysis, calibration
        work = max(1, CostModel(analysis).baseline.macs) * max(1, count) * _ROUNDS
        most = int(np.clip(_WORK / work, *_IMAGES)) if images is None else images
        self.feeds = Feeds(
            analysis.model, subset(calibration.data, most), calibration.preprocess, min(calibration.batch, _BATCH)
        )

    def without(self, blocks: Sequence[Block]) -> Model:
        """Return the model without blocks; other tensors keep their names."""
        plan = Plan("", {}, blocks={b.name: BlockRemoval(b.output, b.operand) for b in blocks})
        return Pipeline(removal_passes(plan, self.analysis))(self.analysis.model)

    def outputs(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Yield outputs of a model, batch by batch, without copies that fill a batch.

        Raises:
            OnnxPruneError: onnxruntime fails, or an output is not finite.
        """
        session = self._session(model)
        for i in range(len(self.feeds)):
            yield self._real(i, dict(zip(names, session.run(self.feeds[i][0], list(names)), strict=True)))

    def tensors(self, model: Model, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Yield tensors inside a model, as `outputs`."""
        session = self._session(exposing(model, names))
        for i in range(len(self.feeds)):
            yield self._real(i, dict(zip(names, session.run(self.feeds[i][0]), strict=True)))

    def _session(self, model: Model) -> Session:
        return Session(model, device=self.calibration.device, threads=self.calibration.threads)

    def _real(self, batch: int, values: Mapping[str, Array]) -> dict[str, Array]:
        real, size = self.feeds.real(batch), self.feeds.size(batch)
        out = {}
        for name, v in values.items():
            with np.errstate(all="ignore"):
                if v.dtype.kind == "f" and not np.isfinite(v.sum(dtype=np.float64)):
                    raise OnnxPruneError(
                        f"the tensor {name!r} is not finite on this data (batch {batch})",
                        fix="check the data and its scaling (--mean, --std); a float16 model may overflow",
                    )
            out[name] = v[: len(v) // size * real] if real < size and v.ndim else v
        return out


class BlockScorer(ABC):
    """Losses of blocks beside removed ones, in one unit for all blocks.

    Attributes:
        together: Whether one run gives the losses of all blocks.
        by_saving: Whether blocks are ordered by loss per MAC saved, else by loss.
    """

    together: bool = False
    by_saving: bool = True

    @abstractmethod
    def losses(self, blocks: Sequence[Block], removed: Sequence[Block]) -> dict[str, float]:
        """Return block name -> loss without it, beside blocks that were removed before.

        Raises:
            OnnxPruneError: The samples do not fit the model, or results are not finite.
        """


def removal_path(
    analysis: Analysis,
    blocks: Sequence[Block],
    scorer: BlockScorer,
    *,
    most: int = 0,
    enough: Callable[[np.ndarray], bool] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return blocks in order of removal -> loss beside the ones before, least loss (per MAC saved) first.

    A block inside one that was removed before saves nothing and is left out.

    Args:
        analysis: Coupling analysis of the model.
        blocks: Blocks that may be removed.
        scorer: Losses.
        most: Largest number of blocks; 0: all.
        enough: (kept components) -> whether no more blocks are needed.
        progress: Called with (losses computed, losses expected).
    """
    cost = CostModel(analysis)
    kept = analysis.kept()
    left = list(blocks)
    removed: list[Block] = []
    out: dict[str, float] = {}
    known: dict[str, tuple[float, int]] = {}
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, max(done, _ROUNDS * len(blocks)))

    while left and not (most and len(out) >= most) and not (enough is not None and enough(kept)):
        share = cost.share(kept, "macs")
        gains = {}
        for block in left:
            after = kept.copy()
            after[block.components] = False
            gains[block.name] = share - cost.share(after, "macs")
        left = [b for b in left if gains[b.name] > 0]
        unit = gains if scorer.by_saving else dict.fromkeys(gains, 1.0)
        while left:
            stale = [b for b in left if b.name not in known]
            if not stale:
                best = min(left, key=lambda b: known[b.name][0] / unit[b.name])
                if known[best.name][1] == len(removed):
                    break
                stale = left if scorer.together else [best]
            for group in [stale] if scorer.together else [[b] for b in stale]:
                known |= {name: (loss, len(removed)) for name, loss in scorer.losses(group, removed).items()}
                tick(len(group))
        if not left:
            break
        out[best.name] = known[best.name][0]
        kept[best.components] = False
        left.remove(best)
        removed.append(best)
    return out
