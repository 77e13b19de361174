"""Options of runs and timings: device, threads, batch, runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.options._declare import LATENCY, OUTPUT, RUNTIME, OptionError, Options, option
from onnxprune.options._text import TEXTS


@dataclass(frozen=True, kw_only=True, repr=False)
class Device(Options):
    """Device that onnxruntime runs on."""

    device: str = option(
        "cpu", help="Device that onnxruntime runs on: auto, cpu or cuda.", heading=RUNTIME, advanced=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Execution(Device):
    """Batch, threads and device of runs over data."""

    batch: int = option(64, help="Samples per run.", heading=RUNTIME, advanced=True, ge=1, usage=True)
    threads: int = option(0, help="CPU threads.", heading=RUNTIME, advanced=True, ge=0, usage=True, shown="all cores")


@dataclass(frozen=True, kw_only=True, repr=False)
class RuntimeChoice(Options):
    """Runtime that latency counts in.

    Attributes:
        runtime: Name, with a provider or device: "onnxruntime:cuda", "openvino", "command:trtexec --onnx={model}".
        runtime_options: Options of the runtime by name.
    """

    runtime: str = option(
        "onnxruntime", heading=LATENCY, metavar="NAME[:DEVICE]",
        help='Runtime that latency counts in: onnxruntime[:PROVIDER], openvino, command:"CMD {model}".',
    )  # fmt: skip
    runtime_options: Mapping[str, Any] = option(
        {}, help="Option of the runtime, such as trt_fp16_enable=1 (repeatable).", heading=LATENCY, advanced=True,
        flag="--runtime-option", metavar="NAME=VALUE", text=TEXTS,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.runtime.partition(":")[0].strip():
            raise OptionError("runtime", f"must be a name; got {self.runtime!r}", fix="for example openvino")

    @property
    def is_default(self) -> bool:
        """True for onnxruntime without a provider and options."""
        return self.runtime == "onnxruntime" and not self.runtime_options


@dataclass(frozen=True, kw_only=True, repr=False)
class Machine(RuntimeChoice):
    """Runs that latency is predicted for."""

    batch: int = option(1, help="For latency: samples per run.", heading=LATENCY, advanced=True, ge=1, usage=True)
    threads: int = option(1, help="CPU threads; 0: all cores.", heading=LATENCY, advanced=True, ge=0, usage=True)
    device: str = option(
        "cpu", help="Device that latency is measured on: auto, cpu or cuda.", heading=LATENCY, advanced=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Timing(Machine):
    """Latency measurement."""

    runs: int = option(30, help="Timed runs of each model.", heading=LATENCY, advanced=True, ge=1, usage=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class Benchmark(Timing):
    """Latency measurement of several models in turn."""

    warmup: int = option(5, help="Runs before the timed ones.", heading=LATENCY, advanced=True, ge=0, usage=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class Profiling(Options):
    """Latency of every layer."""

    profile: bool = option(
        False, heading=LATENCY,
        help="Show the latency of every layer of the first and the last model, and why layers did not get faster.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class LatencyTarget(RuntimeChoice):
    """Measurements towards a latency target."""

    latency_rounds: int = option(
        4, heading=LATENCY, advanced=True, ge=0, usage=True, metavar="N",
        help="With a latency target: plans that are measured, each with a corrected prediction, until the measured "
        "latency is within 2 % of the target; 0: as predicted.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Prediction(Machine):
    """Latency prediction."""

    latency: bool = option(False, help="Predict latency as well; measures this machine first.", heading=LATENCY)


@dataclass(frozen=True, kw_only=True, repr=False)
class Measuring(Timing, LatencyTarget):
    """Latency prediction and measurement."""

    latency: bool = option(
        False, help="Predict and measure latency, whatever the target is.", heading=LATENCY, advanced=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class ReportMeasurements(Timing):
    """Measurements that a report runs itself."""

    latency: bool = option(
        True, help="Measure latency that no file contains (default) or not.", heading=LATENCY,
        flag="--latency/--no-latency",
    )  # fmt: skip
    verify: bool = option(
        True, help="Prove the pruned model again (default) or not.", heading=OUTPUT, flag="--verify/--no-verify"
    )
