"""Target of a plan: the share of one measure that is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from onnxprune._utils.formatting import short_repr
from onnxprune.analysis.cost import MEASURES, CostModel
from onnxprune.analysis.coupling import Kept
from onnxprune.errors import OnnxPruneError

ALL_MEASURES = (*MEASURES, "latency")


class LatencyPredictor(Protocol):
    """Predictor of a pruned model's latency: the part of a latency model (`op.latency_model`) that planning uses."""

    @property
    def baseline(self) -> float:
        """Seconds per run of the original."""

    @property
    def batch(self) -> int:
        """Samples per run."""

    @property
    def threads(self) -> int:
        """Threads of onnxruntime; 0 for all cores."""

    @property
    def provider(self) -> str:
        """Execution provider of the measurements."""

    def seconds(self, kept: Kept) -> float:
        """Return the seconds per run with the components in `kept` (bool [count])."""


@dataclass(frozen=True, repr=False)
class Target:
    """Share of one measure that is **kept**: `Target(macs=0.5)` keeps half.

    Attributes:
        macs: Multiply-accumulate operations.
        params: Parameters.
        bytes: Bytes of the weights.
        memory: Peak bytes of live activations.
        channels: Removable channels.
        latency: Seconds per run, predicted by a latency model.

    Raises:
        OnnxPruneError: Not exactly one measure, or a share outside (0, 1].
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

    def __repr__(self) -> str:
        return short_repr(self)

    @property
    def measure(self) -> str:
        """Name of the measure."""
        return next(m for m in ALL_MEASURES if getattr(self, m) is not None)

    @property
    def share(self) -> float:
        """Share of the measure that is kept."""
        return float(getattr(self, self.measure))

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse `macs=0.5`.

        Raises:
            OnnxPruneError: The text has another form.
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
        OnnxPruneError: Latency without a latency model, or with one that predicts no positive latency.
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
            raise OnnxPruneError(f"the latency model predicts {self._latency.baseline:g} s for the original")

    def share(self, kept: Kept) -> float:
        """Return the share kept with the components in `kept` (bool [count])."""
        if self._latency is not None:
            return self._latency.seconds(kept) / self._latency.baseline
        return self._cost.share(kept, self.measure)
