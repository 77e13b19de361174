"""Base classes of criteria: one number per channel, higher means keep. From weights (`Criterion`) or from data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Group
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.calibration import Calibration, Probe
from onnxprune.options.scoring import REDUCTIONS as REDUCTIONS

if TYPE_CHECKING:
    from onnxprune.criteria.model_runs.block_runs import BlockScorer

Array = NDArray[np.float64]

_BLOCK = 1 << 16  # weights per block of rows: 0.5 MB as float64, small enough that the allocator reuses its memory


class AnyCriterion(ABC):
    """Attributes of all criteria. Subclasses are frozen dataclasses; their fields are the user's parameters.

    Direction: a **higher score means keep**. Filters are removed in ascending order of the score, equal scores
    by the lower index first (`np.argsort(scores, kind="stable")`).
    """

    name: ClassVar[str]
    """Name on the command line, `l1`."""
    title: ClassVar[str]
    """One line for `--help`."""
    source: ClassVar[str]
    """Paper that defines the criterion."""
    needs: ClassVar[str]
    """Required input: `weights`, `data` or `labels` (data with labels)."""
    default_reduce: ClassVar[str] = "mean"
    """Reduction of the scores of a group's tensors to one."""
    reductions: ClassVar[tuple[str, ...]] = REDUCTIONS
    """Reductions that are valid for this criterion."""
    default_normalize: ClassVar[str]
    """Normalization that makes scores of different layers comparable for a global ranking; see `normalize`."""
    default_allocator: ClassVar[str] = "global"
    """Default allocator of a target: "global", or "saving" for scores that are costs to be summed."""
    forbids: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Options that the definition forbids, with the reason: `normalize` (any but the default) or `global`."""
    classwise: ClassVar[bool] = False
    """The criterion also computes the importance for single classes (`SiteScores.per_class`)."""
    blocks_only: ClassVar[bool] = False
    """The criterion scores whole residual blocks, not channels."""
    blocks_beside_channels: ClassVar[bool] = False
    """Scores of blocks have the unit of summed scores of channels, so that both compete for one budget."""

    def block_scorer(self, analysis: Analysis, calibration: Calibration | None, count: int) -> BlockScorer | None:
        """Return the losses of residual blocks by this criterion; None: those of the channels inside them.

        Args:
            analysis: Coupling analysis of the model.
            calibration: Samples.
            count: Number of blocks that are scored.

        Raises:
            OnnxPruneError: The criterion needs samples or labels that are missing.
        """
        return None


class Criterion(AnyCriterion):
    """Criterion that scores the filters of one tensor.

    Subclasses set the class variables and implement `score_rows`; callers use `filter_scores`.
    """

    needs: ClassVar[str] = "weights"
    rowwise: ClassVar[bool] = False
    """A filter's score depends on that filter alone: large weights are then scored in blocks of rows."""
    reads: ClassVar[str] = "filters"
    """Tensors of a group that are scored: `filters` (weights `[filters, ...]`) or `bn_scale` (gammas `[C]`)."""

    def filter_scores(self, weight: NDArray[Any], *, tensor: str = "") -> Array:
        """Return the score of every filter.

        Args:
            weight: `[filters, ...]` in any floating type, bfloat16 included; for `reads = "bn_scale"` the gammas `[C]`.
            tensor: Name of the tensor, for messages (and the seed of `random`).

        Returns:
            `[filters]` float64, higher = keep. The input is not changed.

        Raises:
            OnnxPruneError: The tensor has no filters, or its values are not finite floats.
        """
        weight = np.asarray(weight)
        self._check(weight, tensor)
        filters = len(weight)
        step = max(1, _BLOCK * filters // weight.size) if self.rowwise else filters
        with np.errstate(over="ignore", invalid="ignore"):  # reported below as one error that names the tensor
            blocks = [self.score_rows(_rows(weight[i : i + step], tensor), tensor) for i in range(0, filters, step)]
        scores = np.concatenate(blocks, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise OnnxPruneError(
                f"criterion {self.name!r} overflows", where=tensor or None, fix="scale the weights down first"
            )
        return scores

    @abstractmethod
    def score_rows(self, rows: Array, tensor: str) -> Array:
        """Return the scores of rows `[filters, n]`: a private, C-ordered float64 copy, which may be overwritten."""

    def _check(self, weight: NDArray[Any], tensor: str) -> None:
        """Raise if the tensor does not hold filters of floats."""
        where = tensor or None
        # The types of ml_dtypes (bfloat16, float8_*) have kind "V", so they are recognized by name.
        if weight.dtype.kind != "f" and not weight.dtype.name.startswith(("bfloat", "float")):
            raise OnnxPruneError(
                f"criterion {self.name!r} scores floating-point weights, not {weight.dtype}",
                where=where,
                fix="score the model before it is quantized, or the dequantized weights",
            )
        if self.reads == "bn_scale" and weight.ndim != 1:
            raise OnnxPruneError(f"BatchNorm scales must be [channels], not {list(weight.shape)}", where=where)
        if self.reads != "bn_scale" and weight.ndim < 2:
            raise OnnxPruneError(
                f"a weight must be [filters, ...] with at least two axes, not {list(weight.shape)}", where=where
            )
        if weight.size == 0:
            raise OnnxPruneError(f"nothing to score: the tensor is empty, {list(weight.shape)}", where=where)


def _rows(weight: NDArray[Any], tensor: str) -> Array:
    """Return `[filters, ...]` as finite rows `[filters, n]`, always a copy."""
    # Cast a transposed weight in its own order first: numpy does both in one step three times as slowly.
    rows = np.ascontiguousarray(weight.astype(np.float64, order="K")).reshape(len(weight), -1)
    if not np.isfinite(rows).all():
        raise OnnxPruneError(
            "the weights contain NaN or infinity",
            where=tensor or None,
            fix="export the model again from a sound checkpoint",
        )
    return rows


@dataclass(frozen=True)
class ScoringContext:
    """Input of a data criterion.

    Attributes:
        analysis: Coupling analysis of the model.
        groups: Groups whose channels are scored.
        calibration: Samples and their runner.
        progress: Called with (done, total); the total may be in any unit, and change.
    """

    analysis: Analysis
    groups: tuple[Group, ...]
    calibration: Calibration
    progress: Progress | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """Return the classes of the samples, [n]; present if a criterion needs labels."""
        assert self.calibration.data.y is not None
        return self.calibration.data.y

    @property
    def running_labels(self) -> NDArray[np.int64]:
        """Return the classes of the samples in the order in which statistics receive them."""
        labels = self.calibration.feeds(self.analysis.model).data.y
        assert labels is not None
        return labels


@dataclass(frozen=True)
class SiteScores:
    """Scores of the indices of one axis of one tensor.

    Attributes:
        components: Component of every index, [n]; 0 for indices that cannot be removed.
        scores: [n] float64. A channel with several indices gets their mean.
        per_class: Importance for one class alone, by its label: [n] float64; empty if the criterion has none.
    """

    components: NDArray[np.int64]
    scores: Array
    per_class: Mapping[int, Array] = field(default_factory=dict)


class DataCriterion(AnyCriterion):
    """Criterion that scores channels from runs of the model on samples.

    `probes` declares the statistics of one run of the model, which all requested criteria share. `score_sites` then
    computes the scores, or runs the model itself.
    """

    def least_samples(self, context: ScoringContext) -> int:
        """Return the least number of samples that the criterion needs."""
        return 1

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        """Return the probes to collect on the normalized model's tensors."""
        return ()

    @abstractmethod
    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """Return scores of every tensor on which the context's groups have channels, or of every group.

        Args:
            context: Model, groups and samples.
            probes: Filled probes from `probes`.

        Raises:
            OnnxPruneError: There are too few samples, or the model cannot be scored by this criterion.
        """


class BlockCriterion(DataCriterion):
    """Criterion that scores whole residual blocks from data; subclasses implement `block_scorer`."""

    blocks_only: ClassVar[bool] = True
    default_normalize: ClassVar[str] = "none"

    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        raise OnnxPruneError(f"criterion {self.name!r} scores whole blocks, not channels", fix="add --only blocks")
