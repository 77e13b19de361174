"""What a criterion is: one number per channel, higher means keep. From weights (`Criterion`) or from data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration import Calibration, Probe
from onnxprune.coupling import Analysis, Group
from onnxprune.errors import OnnxPruneError

REDUCTIONS = ("mean", "sum", "max", "first")

Array = NDArray[np.float64]

_BLOCK = 1 << 16  # weights per block of rows: 0.5 MB as float64, so its memory is used again, not asked for anew


class AnyCriterion(ABC):
    """What all criteria say of themselves. Subclasses are frozen dataclasses; their fields are the user's parameters.

    Direction: a **higher score means keep**. Filters are removed in ascending order of the score, equal scores
    by the lower index first (`np.argsort(scores, kind="stable")`).
    """

    name: ClassVar[str]
    """What the user types, `l1`."""
    title: ClassVar[str]
    """One line for `--help`."""
    source: ClassVar[str]
    """The paper the definition is from."""
    needs: ClassVar[str]
    """What it looks at: `weights`, `data` or `labels` (data with labels)."""
    default_reduce: ClassVar[str] = "mean"
    """How the scores of a group's tensors become one."""
    reductions: ClassVar[tuple[str, ...]] = REDUCTIONS
    """The reductions that make sense for this criterion."""
    default_normalize: ClassVar[str]
    """How scores of different layers are made comparable for a global ranking; see `normalize`."""
    default_allocator: ClassVar[str] = "global"
    """How a target is shared where nothing is said: "global", or "saving" for scores that are costs to be summed."""
    forbids: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """What the definition forbids, and why: `normalize` (any but the default) or `global` (one ranking of layers)."""
    classwise: ClassVar[bool] = False
    """Whether it also knows the importance for single classes (`SiteScores.per_class`)."""


class Criterion(AnyCriterion):
    """Scores the filters of one tensor. A subclass sets the class variables and writes `score_rows`.

    Callers use `filter_scores`.
    """

    needs: ClassVar[str] = "weights"
    rowwise: ClassVar[bool] = False
    """Whether a filter's score depends on that filter alone: large weights are then scored in blocks of rows."""
    reads: ClassVar[str] = "filters"
    """Which tensors of a group are scored: `filters` (weights `[filters, ...]`) or `bn_scale` (gammas `[C]`)."""

    def filter_scores(self, weight: NDArray[Any], *, tensor: str = "") -> Array:
        """Score every filter.

        Args:
            weight: `[filters, ...]` in any floating type, bfloat16 included; for `reads = "bn_scale"` the gammas `[C]`.
            tensor: the tensor's name, for messages (and the seed of `random`).

        Returns:
            `[filters]` float64, higher = keep. The input is left as it is.

        Raises:
            OnnxPruneError: the tensor has no filters, or its values are not finite floats.
        """
        weight = np.asarray(weight)
        self._check(weight, tensor)
        filters = len(weight)
        step = max(1, _BLOCK * filters // weight.size) if self.rowwise else filters
        with np.errstate(over="ignore", invalid="ignore"):  # reported just below, as one error with a name
            blocks = [self.score_rows(_rows(weight[i : i + step], tensor), tensor) for i in range(0, filters, step)]
        scores = np.concatenate(blocks, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise OnnxPruneError(
                f"criterion {self.name!r} overflows", where=tensor or None, fix="scale the weights down first"
            )
        return scores

    @abstractmethod
    def score_rows(self, rows: Array, tensor: str) -> Array:
        """Score the rows `[filters, n]`: a private, C-ordered float64 copy, so it may be overwritten."""

    def _check(self, weight: NDArray[Any], tensor: str) -> None:
        """Refuses what holds no filters of floats."""
        where = tensor or None
        # The extra types of ml_dtypes (bfloat16, float8_*) have kind "V", so their names have to do.
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
    """`[filters, ...]` as finite rows `[filters, n]`, always a copy."""
    # A transposed weight is cast in its own order first: numpy does both in one step three times as slowly.
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
    """What a criterion that needs data scores.

    Attributes:
        analysis: of the model.
        groups: whose channels.
        calibration: samples, and how they are run.
        progress: called with (done, total); the total may be in any unit, and change.
    """

    analysis: Analysis
    groups: tuple[Group, ...]
    calibration: Calibration
    progress: Callable[[int, int], None] | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes of the samples, [n]; there are some where a criterion needs labels."""
        assert self.calibration.data.y is not None
        return self.calibration.data.y


@dataclass(frozen=True)
class SiteScores:
    """Scores of the indices of one axis of one tensor, as a criterion sees them.

    Attributes:
        components: of every index, [n]; 0 for what stays.
        scores: [n] float64. A channel that sits on several indices gets their mean.
        per_class: importance for one class alone, by its label: [n] float64; empty where the criterion knows none.
    """

    components: NDArray[np.int64]
    scores: Array
    per_class: Mapping[int, Array] = field(default_factory=dict)


class DataCriterion(AnyCriterion):
    """Scores channels by what the model does with samples.

    `probes` says what one run of the model should collect; the run is shared by all criteria that are asked for
    together. `score_sites` then makes scores of it, or runs the model in ways of its own.
    """

    def least_samples(self, context: ScoringContext) -> int:
        """How many samples it cannot do without."""
        return 1

    def probes(self, context: ScoringContext) -> Sequence[Probe]:
        """What to collect of the normalized model's tensors."""
        return ()

    @abstractmethod
    def score_sites(self, context: ScoringContext, probes: Sequence[Probe]) -> Sequence[SiteScores]:
        """Scores of every tensor on which the groups of the context have channels, or of every group.

        Args:
            context: what is scored.
            probes: those from `probes`, filled.

        Raises:
            OnnxPruneError: the samples are not enough, or the model cannot be scored this way.
        """
