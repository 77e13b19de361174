"""Latency as a cost: seconds per run of one batch, predicted from the kept channels.

Variants of the model with other channel counts are timed (`_measuring`), and the time of every kernel is fitted by a
polynomial in the counts (`_fitting`), which a cache keeps (`_fit_cache`). Weights do not matter, only shapes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxprune._utils.progress import Progress
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import import_onnxruntime, kernel_block, provider_of
from onnxprune.latency._channel_axes import ChannelAxes
from onnxprune.latency._fit_cache import cache_file, machine, read_fit, structure, write_fit
from onnxprune.latency._fitting import LatencyFit, fit
from onnxprune.latency._measuring import MeasuringEffort, VariantTimer

_FASTEST = 1e-6


class LatencyModel:
    """Predicted time of a run for any set of kept channels.

    Args:
        axes: Axes whose counts the terms multiply.
        fitted: Polynomial in these counts.

    Attributes:
        batch: Samples per run.
        threads: Intra-op threads of onnxruntime.
        provider: Execution provider of the measurement.
        baseline: Predicted seconds of the unpruned model.
    """

    def __init__(self, axes: ChannelAxes, fitted: LatencyFit, *, batch: int, threads: int, provider: str) -> None:
        self.batch = batch
        self.threads = threads
        self.provider = provider
        self._axes, places = axes.only([m for _, m in fitted.terms])
        width = max(map(len, places), default=0)
        self._places = np.array([[*p, *[0] * (width - len(p))] for p in places], np.int64).reshape(len(places), width)
        self._factors = np.array([c for c, _ in fitted.terms], np.float64)
        self._curve = fitted.curve
        self.baseline = self.seconds(np.ones(axes.count, bool))

    def seconds(self, kept: Kept) -> float:
        """Return the predicted seconds per run with the components in `kept` (bool [count])."""
        kernels = float(self._axes.sizes(kept)[self._places].prod(axis=1) @ self._factors)
        constant, linear, square = self._curve
        return max(constant + (linear + square * kernels) * kernels, _FASTEST)


def latency_model(
    analysis: Analysis,
    *,
    batch: int = 1,
    threads: int = 1,
    device: str = "cpu",
    cache: bool = True,
    refresh: bool = False,
    effort: MeasuringEffort | None = None,
    file: Path | None = None,
    progress: Progress | None = None,
) -> LatencyModel:
    """Measure a model in onnxruntime on this machine, or read an earlier measurement from the cache.

    The cache is `$ONNXPRUNE_CACHE`, else `onnxprune/latency` in the user's cache folder. The key is
    machine, onnxruntime, provider, threads, batch and the model's structure, so retrained weights share an entry.

    Args:
        analysis: Coupling analysis of the model.
        batch: Samples per run if the model's batch is dynamic.
        threads: Intra-op threads; 0 for all cores.
        device: "auto" (CUDA if it loads), "cpu" or "cuda".
        cache: Read and write the cache.
        refresh: Measure even if the cache has an entry.
        effort: Number of variants and of their runs.
        file: File that keeps this measurement, so that a later call returns the same predictions.
        progress: Called with (done, total) variants.

    Raises:
        OnnxPruneError: onnxruntime is missing, rejects the model or has no such device; or `file` holds another
            measurement.
    """
    if batch < 1 or threads < 0:
        raise OnnxPruneError(f"batch {batch} and threads {threads} are no counts", fix="batch >= 1, threads >= 0")
    provider = provider_of(device)
    axes = ChannelAxes.of(analysis, kernel_block("cuda" if provider.startswith("CUDA") else "cpu"))
    settings = {
        "onnxruntime": import_onnxruntime().__version__, "provider": provider, "threads": threads, "batch": batch,
        "machine": machine(), "block": axes.block, "structure": structure(analysis),
        **({"blocks": len(axes.switches)} if len(axes.switches) else {}),
    }  # fmt: skip
    if file is not None and file.exists():
        kept = read_fit(file, settings, axes)
        if kept is None:
            raise OnnxPruneError(
                "the latency was measured on another machine, with other settings, or the file is damaged",
                where=str(file), fix="start again with --restart",
            )  # fmt: skip
        return LatencyModel(axes, kept, batch=batch, threads=threads, provider=provider)
    path = cache_file(settings)
    fitted = read_fit(path, settings, axes) if cache and not refresh else None
    if fitted is None:
        with VariantTimer(analysis, batch=batch, threads=threads, device=device, effort=effort) as bench:
            provider = bench.provider
            fitted = fit(analysis, bench.samples(axes.block, progress), axes, clocked=provider.startswith("CPU"))
        if cache and provider == settings["provider"]:  # "auto" may have fallen back
            write_fit(path, settings, fitted)
    if file is not None:
        write_fit(file, settings, fitted)
    return LatencyModel(axes, fitted, batch=batch, threads=threads, provider=provider)
