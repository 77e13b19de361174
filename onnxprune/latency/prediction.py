"""Latency as a cost: seconds per run of one batch, predicted from the kept channels.

Variants of the model with other channel counts are timed (`_measuring`), and the time of every kernel is fitted by a
polynomial in the counts (`_fitting`), which a cache keeps (`_fit_cache`). Weights do not matter, only shapes.
"""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Kept
from onnxprune.errors import OnnxPruneError
from onnxprune.execution.sessions import import_onnxruntime, kernel_block, provider_of
from onnxprune.latency._cache_files import cached_file, machine
from onnxprune.latency._channel_axes import ChannelAxes
from onnxprune.latency._fit_cache import read_fit, structure, write_fit
from onnxprune.latency._fitting import LatencyFit, fit
from onnxprune.latency._measuring import MeasuringEffort, VariantTimer
from onnxprune.latency._runtime_variants import EFFORT, RuntimeVariants
from onnxprune.latency.runtimes import Runtime, block_of, make_runtime

_FASTEST = 1e-6


class LatencyModel:
    """Predicted time of a run for any set of kept channels.

    Args:
        axes: Axes whose counts the terms multiply.
        fitted: Polynomial in these counts.

    Attributes:
        batch: Samples per run.
        threads: Intra-op threads of onnxruntime.
        provider: Execution provider of the measurement, or the runtime and its device.
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
    runtime: Runtime | str | None = None,
    cache: bool = True,
    refresh: bool = False,
    effort: MeasuringEffort | None = None,
    file: Path | None = None,
    progress: Progress | None = None,
) -> LatencyModel:
    """Measure a model in a runtime, or read an earlier measurement from the cache.

    The cache is `$ONNXPRUNE_CACHE`, else `onnxprune/latency` in the user's cache folder. The key is machine, runtime,
    version, device, precision, threads, batch and the model's structure, so retrained weights share an entry.

    Args:
        analysis: Coupling analysis of the model.
        batch: Samples per run if the model's batch is dynamic.
        threads: Intra-op threads; 0 for all cores.
        device: For onnxruntime: "auto" (CUDA if it loads), "cpu" or "cuda".
        runtime: Runtime to measure in, or its name ("openvino"); default: onnxruntime on the device.
        cache: Read and write the cache.
        refresh: Measure even if the cache has an entry.
        effort: Number of variants and of their runs.
        file: File that keeps this measurement, so that a later call returns the same predictions.
        progress: Called with (done, total) variants.

    Raises:
        OnnxPruneError: The runtime is missing, rejects the model or has no such device; or `file` holds another
            measurement.
    """
    if batch < 1 or threads < 0:
        raise OnnxPruneError(f"batch {batch} and threads {threads} are no counts", fix="batch >= 1, threads >= 0")
    if isinstance(runtime, str):
        runtime = make_runtime(runtime, device=device)
    if runtime is None or getattr(runtime, "is_plain_cpu", False):
        run: _Run = _OnnxRuntimeRun(analysis, batch, threads, "cpu" if runtime is not None else device, effort)
    else:
        run = _RuntimeRun(analysis, batch, threads, runtime, effort, cache)
    axes, settings, provider = run.axes, run.settings, run.provider
    if file is not None and file.exists():
        kept = read_fit(file, settings, axes)
        if kept is None:
            raise OnnxPruneError(
                "the latency was measured on another machine, with other settings, or the file is damaged",
                where=str(file), fix="start again with --restart",
            )  # fmt: skip
        return LatencyModel(axes, kept, batch=batch, threads=threads, provider=provider)
    path = cached_file(settings)
    fitted = read_fit(path, settings, axes) if cache and not refresh else None
    if fitted is None:
        fitted, provider = run.fitted(progress)
        if cache and provider == run.provider:  # "auto" may have fallen back
            write_fit(path, settings, fitted)
    if file is not None:
        write_fit(file, settings, fitted)
    return LatencyModel(axes, fitted, batch=batch, threads=threads, provider=provider)


class _Run(Protocol):
    """Measurement that a latency model is fitted to.

    Attributes:
        axes: Axes that can shrink.
        settings: Key of the cache.
        provider: Provider or runtime that is expected to run the model.
    """

    axes: ChannelAxes
    settings: dict[str, Any]
    provider: str

    def fitted(self, progress: Progress | None) -> tuple[LatencyFit, str]:
        """Measure; return the fit and the provider that ran the model."""


class _OnnxRuntimeRun:
    """Measurement in onnxruntime on the CPU or CUDA, with the profiler of its kernels."""

    def __init__(
        self, analysis: Analysis, batch: int, threads: int, device: str, effort: MeasuringEffort | None
    ) -> None:
        self.provider = provider_of(device)
        self.axes = ChannelAxes.of(analysis, kernel_block("cuda" if self.provider.startswith("CUDA") else "cpu"))
        self.settings: dict[str, Any] = {
            "onnxruntime": import_onnxruntime().__version__, "provider": self.provider, "threads": threads,
            "batch": batch, "machine": machine(), "block": self.axes.block, "structure": structure(analysis),
            **_blocks(self.axes),
        }  # fmt: skip
        self._analysis = analysis
        self._timer = partial(VariantTimer, analysis, batch=batch, threads=threads, device=device, effort=effort)

    def fitted(self, progress: Progress | None) -> tuple[LatencyFit, str]:
        """See `_Run`."""
        with self._timer() as bench:
            provider = bench.provider
            clocked = provider.startswith("CPU")
            return fit(self._analysis, bench.samples(self.axes.block, progress), self.axes, clocked=clocked), provider


class _RuntimeRun:
    """Measurement in any runtime; variants that were measured before a failure are kept."""

    def __init__(
        self, analysis: Analysis, batch: int, threads: int, runtime: Runtime, effort: MeasuringEffort | None,
        cache: bool,
    ) -> None:  # fmt: skip
        info = runtime.describe()
        self.provider = str(info)
        self.axes = ChannelAxes.of(analysis, block_of(runtime))
        self.settings: dict[str, Any] = {
            "runtime": info.as_dict(), "threads": threads, "batch": batch, "machine": machine(),
            "block": self.axes.block, "structure": structure(analysis), **_blocks(self.axes),
        }  # fmt: skip
        self._analysis = analysis
        journal = cached_file({**self.settings, "effort": vars(effort or EFFORT)}).with_suffix(".journal")
        self._variants = partial(
            RuntimeVariants, analysis, runtime, batch=batch, threads=threads, effort=effort,
            journal=journal if cache else None, settings=self.settings,
        )  # fmt: skip

    def fitted(self, progress: Progress | None) -> tuple[LatencyFit, str]:
        """See `_Run`."""
        with contextlib.closing(self._variants()) as variants:
            samples = variants.samples(self.axes.block, progress)
            return fit(self._analysis, samples, self.axes, clocked=variants.clocked), self.provider


def _blocks(axes: ChannelAxes) -> dict[str, int]:
    """Return the number of residual blocks that can be removed, as part of a key."""
    return {"blocks": len(axes.switches)} if len(axes.switches) else {}
