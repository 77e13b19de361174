"""Protocol of a runtime, and the values that it returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from onnxprune._utils.output.progress import Progress
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.timing import Latency
from onnxprune.ir.model import Array, Model

Inputs = Mapping[str, Array]
"""Input arrays of one run by name."""


@dataclass(frozen=True)
class RuntimeInfo:
    """Description of a runtime, as results state it and as caches of measurements are keyed.

    Attributes:
        name: Name in the registry.
        version: Version of the package or tool; "" if unknown.
        device: Device or execution provider.
        precision: Element type that the runtime computes in; "as the model" unless it changes it.
        options: Options that the user set.
    """

    name: str
    version: str
    device: str
    precision: str = "as the model"
    options: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        version = f" {self.version}" if self.version else ""
        precision = f", {self.precision}" if self.precision != "as the model" else ""
        return f"{self.name}{version}, {self.device}{precision}"

    def as_dict(self) -> dict[str, Any]:
        """Return the description as a JSON object."""
        return {
            "name": self.name, "version": self.version, "device": self.device, "precision": self.precision,
            "options": dict(self.options),
        }  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Latencies of several models that were measured in turns.

    Attributes:
        latencies: Latency of each model, in order.
        ran: Device or execution provider that really ran the models.
        rounds: Rounds that were measured.
        quiet: Undisturbed rounds. If they are too few, the fastest runs of each model count.
    """

    latencies: tuple[Latency, ...]
    ran: str
    rounds: int
    quiet: int

    def share(self, index: int) -> float:
        """Return the latency of a model as a share of the first model's."""
        return self.latencies[index].median / self.latencies[0].median

    def error(self, index: int) -> float:
        """Return the standard error of `share`, from the spread of the rounds."""
        first, other = self.latencies[0], self.latencies[index]
        return float(self.share(index) * (first.relative_error**2 + other.relative_error**2) ** 0.5)


class MeasurementStopped(OnnxPruneError):
    """A measurement that failed after some models had been measured.

    Attributes:
        latencies: Latency of each model; None for those that were not measured.
    """

    def __init__(
        self, what: str, latencies: Sequence[Latency | None] = (), *, where: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.latencies = tuple(latencies)


@dataclass(frozen=True)
class LayerTime:
    """Time of one layer, as a runtime's profiler states it.

    Attributes:
        name: Name in the runtime.
        op: Operator, possibly internal to the runtime.
        seconds: Least time of several runs: disturbances only add to it.
        kernel: Implementation that the runtime chose; "" if unknown.
        nodes: Names of the model's nodes that the layer computes; empty for layers that the runtime inserted.
    """

    name: str
    op: str
    seconds: float
    kernel: str = ""
    nodes: tuple[str, ...] = ()


@runtime_checkable
class Runtime(Protocol):
    """A runtime on a device.

    Classes of runtimes have a `name`, and are created from the text after the name ("cuda" of "onnxruntime:cuda") and
    the options: `Class(device, options)`. An entry point of the group `onnxprune.runtimes` names such a class.
    """

    name: str

    def describe(self) -> RuntimeInfo:
        """Return name, version, device, precision and options."""

    def block_size(self) -> int:
        """Return the number whose multiples are fast as counts of channels; `ConvProbe` measures it."""

    def measure(
        self,
        models: Sequence[Model],
        inputs: Sequence[Inputs],
        *,
        threads: int,
        batch: int,
        runs: int = 30,
        warmup: int = 3,
        progress: Progress | None = None,
    ) -> Measurement:
        """Measure models in turns; the first one is the reference for drift of the machine.

        Args:
            models: Models to measure.
            inputs: Inputs of each model.
            threads: CPU threads; 0: all cores.
            batch: Samples per run.
            runs: Undisturbed rounds that are wanted.
            warmup: Runs of each model before.
            progress: Called with (rounds done, rounds).

        Raises:
            MeasurementStopped: The runtime failed; the models that it measured are in the error.
            OnnxPruneError: The runtime refuses a model.
        """

    def profile(self, model: Model, inputs: Inputs, *, threads: int, runs: int = 20) -> Sequence[LayerTime] | None:
        """Return the time of every layer; None if the runtime cannot tell."""


class ConvProbe(Protocol):
    """Function that measures convolutions: the counts of channels -> seconds of each."""

    def __call__(self, channels: Sequence[int]) -> Sequence[float]: ...
