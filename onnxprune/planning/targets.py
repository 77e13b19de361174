"""Target of a plan: the share of one measure that is kept."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from onnxprune._utils.output.formatting import short_repr
from onnxprune.analysis.cost import MEASURES, CostModel
from onnxprune.analysis.coupling import Kept
from onnxprune.errors import OnnxPruneError, unknown

ALL_MEASURES = (*MEASURES, "latency")
DEFAULT_MEASURE = "macs"
"""Measure of a target that is a share alone."""
ALIASES = {
    "mac": "macs", "flop": "macs", "flops": "macs", "gflops": "macs", "compute": "macs", "madds": "macs",
    "param": "params", "parameters": "params", "weights": "bytes", "size": "bytes", "weight_bytes": "bytes",
    "activations": "memory", "activation_bytes": "memory", "peak_memory": "memory", "ram": "memory",
    "channel": "channels", "filters": "channels", "time": "latency", "ms": "latency",
}  # fmt: skip
"""Other names of measures that targets accept."""
_SHARE = re.compile(r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<percent>%?)", re.ASCII)


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

        Case does not matter, `flops=`, `parameters=` and other names of `ALIASES` are accepted, and so is a percentage
        (`macs=50%`). A share alone (`0.5`, `50%`) is one of the MACs.

        Raises:
            OnnxPruneError: The text has another form, or is no share.
        """
        name, equals, value = text.rpartition("=")
        measure = _measure(name, text) if equals else DEFAULT_MEASURE
        if not equals and not _SHARE.fullmatch(value.strip()):
            raise OnnxPruneError(f"cannot read the target {text!r}", fix=f"NAME=SHARE with {', '.join(ALL_MEASURES)}")
        return cls(**{measure: _share(value, text, f"{measure}=" if equals else "")})

    @staticmethod
    def names_measure(text: str) -> bool:
        """Return True if a text names its measure; otherwise `parse` assumes `DEFAULT_MEASURE`."""
        return "=" in text


def _measure(name: str, text: str) -> str:
    """Return the measure of a name, in any case and with any of its aliases."""
    key = name.strip().lower().replace("-", "_").replace(" ", "_")
    measure = ALIASES.get(key, key)
    if measure not in ALL_MEASURES:
        err = unknown("measure", name.strip(), (*ALL_MEASURES, *ALIASES))
        raise OnnxPruneError(f"cannot read the target {text!r}: {err.what}", fix=err.fix)
    return measure


def _share(value: str, text: str, start: str) -> float:
    """Return a share in (0, 1] from a number or a percentage."""
    found = _SHARE.fullmatch(value.strip())
    if found is None:
        raise OnnxPruneError(f"cannot read the target {text!r}", fix="for example macs=0.5")
    number = float(found["number"])
    share = number / 100 if found["percent"] else number
    if not 0 < share <= 1:
        near = f"{start}{number / 100:g}" if not found["percent"] and 1 < number <= 100 else ""
        raise OnnxPruneError(
            f"a target is the share kept, in (0, 1]; got {text.strip()}",
            fix=f"did you mean {near}? (keep {number:g} %)" if near else "for example macs=0.5",
        )
    return share


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
