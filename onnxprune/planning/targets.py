"""What a plan aims at: the share of one measure that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onnxprune.analysis.cost import MEASURES, CostModel
from onnxprune.analysis.coupling import Kept
from onnxprune.errors import OnnxPruneError

ALL_MEASURES = (*MEASURES, "latency")


class LatencyPredictor(Protocol):
    """Predicts how long a pruned model takes. What the planner asks of a latency model (`op.latency_model`)."""

    @property
    def baseline(self) -> float:
        """Seconds of one run of the unpruned model."""

    @property
    def batch(self) -> int:
        """Samples per run."""

    @property
    def threads(self) -> int:
        """Of onnxruntime; 0 for all cores."""

    @property
    def provider(self) -> str:
        """What onnxruntime ran on."""

    def seconds(self, kept: Kept) -> float:
        """Seconds of one run if the components in `kept` (bool [count]) stay."""


@dataclass(frozen=True)
class Target:
    """The share of one measure that is **kept**: `Target(macs=0.5)` keeps half.

    Attributes:
        macs: multiply-accumulate operations.
        params: parameters.
        bytes: of the weights.
        memory: most bytes of activations alive at once.
        channels: of all that can be removed.
        latency: seconds of a run, as a latency model predicts them.

    Raises:
        OnnxPruneError: not exactly one measure, or a share outside (0, 1].
    """

    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    memory: float | None = None
    channels: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        given = [m for m in ALL_MEASURES if getattr(self, m) is not None]
        if len(given) != 1:
            raise OnnxPruneError(f"a target names exactly one of {', '.join(ALL_MEASURES)}", fix="for example macs=0.5")
        if not 0 < self.share <= 1:
            raise OnnxPruneError(
                f"a target is the share kept, in (0, 1]; got {self.measure}={self.share:g}", fix="for example macs=0.5"
            )

    @property
    def measure(self) -> str:
        """Which measure."""
        return next(m for m in ALL_MEASURES if getattr(self, m) is not None)

    @property
    def share(self) -> float:
        """How much of it is kept."""
        return float(getattr(self, self.measure))

    @classmethod
    def parse(cls, text: str) -> Target:
        """Reads `macs=0.5`.

        Raises:
            OnnxPruneError: anything else.
        """
        name, equals, value = text.partition("=")
        if not equals or name.strip() not in ALL_MEASURES:
            raise OnnxPruneError(f"cannot read the target {text!r}", fix=f"NAME=SHARE with {', '.join(ALL_MEASURES)}")
        try:
            share = float(value)
        except ValueError as err:
            raise OnnxPruneError(f"cannot read the target {text!r}", fix="for example macs=0.5") from err
        return cls(**{name.strip(): share})


class MeasureShare:
    """Shares of one measure.

    Raises:
        OnnxPruneError: latency without a latency model, or with one that predicts nothing.
    """

    def __init__(self, cost: CostModel, measure: str, latency: LatencyPredictor | None = None) -> None:
        self.measure = measure
        self._cost = cost
        self._latency = latency if measure == "latency" else None
        if measure == "latency" and latency is None:
            raise OnnxPruneError(
                "a latency target needs a latency model", fix="plan(..., latency=op.latency_model(groups))"
            )
        if self._latency is not None and not self._latency.baseline > 0:
            raise OnnxPruneError(f"the latency model predicts {self._latency.baseline:g} s for the whole model")

    def share(self, kept: Kept) -> float:
        """The share that stays with the components in `kept` (bool [count])."""
        if self._latency is not None:
            return self._latency.seconds(kept) / self._latency.baseline
        return self._cost.share(kept, self.measure)
