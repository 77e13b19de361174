"""Options of runs and timings: device, threads, batch, runs."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.options._declare import LATENCY, OUTPUT, RUNTIME, Options, option


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
class Machine(Options):
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
class Prediction(Machine):
    """Latency prediction."""

    latency: bool = option(False, help="Predict latency as well; measures this machine first.", heading=LATENCY)


@dataclass(frozen=True, kw_only=True, repr=False)
class Measuring(Timing):
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
