"""Options of a budget of accuracy, and of a frontier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.options._declare import BUDGET, DATA, OUTPUT, RUNTIME, Options, option
from onnxprune.options._text import NAMES
from onnxprune.options.measuring import RuntimeChoice

MINIMIZED = ("macs", "latency", "bytes", "params", "memory", "channels")
QUANTIZED = ("int8",)
SERIES = ("channels", "blocks", "both")


@dataclass(frozen=True, kw_only=True, repr=False)
class EvaluationData(Options):
    """Samples that a metric is measured on, apart from those of the calibration."""

    val_data: str | None = option(
        None, heading=DATA, advanced=True, shown="every 4th sample of --data",
        help="Samples for the metric, apart from those of --data.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Quantizing(Options):
    """Quantization after recovery."""

    quantize: str | None = option(
        None, heading=OUTPUT, advanced=True, choices=QUANTIZED, metavar="int8",
        help="Quantize the recovered model by onnxruntime (int8, QDQ, per channel).",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, repr=False)
class Budget(EvaluationData, Quantizing):
    """Budget of accuracy: the cheapest model whose metric drops no more."""

    max_drop: float | None = option(
        None, heading=BUDGET, ge=0, metavar="POINTS",
        help="Search for the smallest model whose metric drops by at most this many percentage points; needs --data.",
    )  # fmt: skip
    minimize: str = option(
        "macs", heading=BUDGET, advanced=True, choices=MINIMIZED, title="cost",
        help="With --max-drop: the cost to minimize; latency is predicted, and measured for the last candidates.",
    )  # fmt: skip
    polish: int = option(
        0, heading=BUDGET, advanced=True, ge=0, usage=True, metavar="EPOCHS",
        help="With --max-drop: train the result for some epochs towards the original's outputs, without labels.",
    )  # fmt: skip
    retrain: int = option(
        0, heading=BUDGET, advanced=True, ge=0, usage=True, metavar="EPOCHS",
        help="The same with the labels of --data as well.",
    )  # fmt: skip
    restart: bool = option(
        False, help="Discard the points of an interrupted --max-drop search.", heading=OUTPUT, advanced=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class FrontierOptions(EvaluationData, Quantizing, RuntimeChoice):
    """Curves and points of a frontier."""

    points: int = option(10, help="Points of every curve.", heading=BUDGET, ge=1, usage=True)
    least: float = option(0.2, help="Share of the cost that the last point keeps.", heading=BUDGET, gt=0, lt=1)
    minimize: str = option(
        "macs",
        help="Cost that the points save; latency is predicted to place them, and measured.",
        heading=BUDGET,
        advanced=True,
        choices=MINIMIZED,
        title="cost",
    )
    criteria: tuple[str, ...] = option(
        ("obs",), help="Criteria, a curve for each: obs,l2,dscore.", heading=BUDGET, text=NAMES, metavar="NAMES"
    )
    allocators: tuple[str, ...] = option(
        (), help="Allocators, a curve for each.", heading=BUDGET, text=NAMES, metavar="NAMES",
        shown="the criterion's own",
    )  # fmt: skip
    series: tuple[str, ...] = option(
        (), heading=BUDGET, text=NAMES, metavar="NAMES", shown="one, by --only and --max-blocks", choices=SERIES,
        help="Curves without channels, without residual blocks, and without either: channels,blocks,both.",
    )  # fmt: skip
    reconstruct_blocks: bool = option(
        False, heading=OUTPUT, advanced=True, flag="--reconstruct-blocks",
        help="Also fit whole blocks of every point by descent, without labels. Several times slower; needs PyTorch.",
    )  # fmt: skip
    latency: bool = option(
        True, help="Measure latency (default) or not.", heading=OUTPUT, advanced=True, flag="--latency/--no-latency"
    )
    threads: int = option(1, help="CPU threads for latency.", heading=RUNTIME, advanced=True, ge=0, usage=True)
    runs: int = option(30, help="Timed runs of each model.", heading=RUNTIME, advanced=True, ge=1, usage=True)
    device: str = option(
        "cpu", help="Device that onnxruntime runs on: auto, cpu or cuda.", heading=RUNTIME, advanced=True
    )
    jobs: int = option(1, help="Curves at a time.", heading=RUNTIME, ge=1, usage=True)
    backend: str = option("loky", help="loky (this machine), dask or ray (a cluster).", heading=RUNTIME, advanced=True)
    address: str | None = option(
        None, help="Address of the dask or ray cluster; its machines share the folder.", heading=RUNTIME, advanced=True
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class FrontierOutput(Options):
    """Folder of a frontier."""

    output: Path = option(
        help="Folder for the points, frontier.json and frontier.csv.", heading=OUTPUT, flag=("-o", "--output")
    )
