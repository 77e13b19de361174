"""Timing of a model with a designed set of channel counts, while onnxruntime profiles its kernels."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

import numpy as np

from onnxprune._utils.output.progress import Progress
from onnxprune.analysis.coupling import Analysis, Group, Kept
from onnxprune.execution.sessions import Kernel, Session
from onnxprune.execution.timing import waited_for_processor
from onnxprune.ir.model import Array, Model
from onnxprune.latency._channel_axes import Counts
from onnxprune.latency.random_inputs import random_feeds
from onnxprune.passes import Pipeline, StripChannels
from onnxprune.plans import Plan, Removal

_SMALLEST = 0.2  # share of channels kept in the smallest variants
_WARMUP = 2
_DISTURBED = 0.01  # share of a run in which its threads waited for a processor


@dataclass(frozen=True)
class MeasuringEffort:
    """Number of variants and of their runs.

    Attributes:
        variants: Variants of the model.
        least_variants: Variants of a model that is too large for all within `seconds`.
        seconds: Seconds after which a large model is measured with fewer variants.
        least_rounds: Least number of undisturbed runs of each variant.
        rounds: Number of undisturbed runs if they are short.
        short: Seconds of all runs of a variant up to which more than the least number are made.
        patience: Seconds of waiting for undisturbed runs.
    """

    variants: int = 32
    least_variants: int = 14
    seconds: float = 100.0
    least_rounds: int = 6
    rounds: int = 24
    short: float = 0.25
    patience: float = 1.5

    def is_enough(self, rounds: int, quiet: int, seconds: float) -> bool:
        """Return True if a variant was measured often enough."""
        if rounds < _WARMUP + self.least_rounds:
            return False
        return quiet >= self.rounds or (quiet >= self.least_rounds and seconds > self.short) or seconds > self.patience


@dataclass(frozen=True)
class VariantMeasurement:
    """Measurement of one variant of the model.

    Attributes:
        kept: Components of the variant.
        kernels: Kernels with the least time of several runs.
        seconds: Time of a run without the profiler.
        quiet: True if no other process used the processor.
    """

    kept: Kept
    kernels: Sequence[Kernel]
    seconds: float
    quiet: bool = True


class VariantTimer:
    """Run variants of a model in turn with the unpruned one, which cancels drift of the machine."""

    def __init__(
        self, analysis: Analysis, *, batch: int, threads: int, device: str, effort: MeasuringEffort | None = None
    ) -> None:
        self.analysis = analysis
        self.effort = effort or MeasuringEffort()
        self.feeds = random_feeds(analysis, batch)
        self.threads = threads
        self.device = device
        self._folders = contextlib.ExitStack()
        self._windows: list[int] = []  # runs of the reference beside each variant
        self._least: list[float] = []  # seconds of the fastest of those
        self._spread: list[float] = []  # median over least time of a variant's run

    def __enter__(self) -> VariantTimer:
        with self._folders as folders:  # removed if the session fails
            self._reference = self._session(self.analysis.model, profiled=True)
            self.provider = self._reference.provider
            self._folders = folders.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._folders.close()

    def samples(self, block: int, progress: Progress | None = None) -> list[VariantMeasurement]:
        """Measure a designed set of variants, as many as the time limit allows."""
        variants = design(self.analysis, block, self.effort.variants)
        for _ in range(_WARMUP):
            self._reference.run(self.feeds)
        out = []
        start = time.monotonic()
        for i, counts in enumerate(variants):
            out.append(self._sample(counts))
            late = i + 1 >= self.effort.least_variants and time.monotonic() - start > self.effort.seconds
            if progress is not None:
                progress(len(variants) if late else i + 1, len(variants))
            if late:
                break
        return self._without_drift(out)

    def _session(self, model: Model, *, profiled: bool) -> Session:
        folder = self._folders.enter_context(tempfile.TemporaryDirectory(prefix="onnxprune-")) if profiled else None
        return Session(model, device=self.device, threads=self.threads, profile=Path(folder) if folder else None)

    def _sample(self, counts: Mapping[str, int]) -> VariantMeasurement:
        plan = variant(self.analysis, counts)
        model = Pipeline([StripChannels(plan, self.analysis)])(self.analysis.model)
        plain, profiled = self._session(model, profiled=False), self._session(model, profiled=True)
        rounds: list[list[float]] = []  # seconds of each session
        quiet: list[list[float]] = []  # rounds in which no other process used the processor
        start = time.monotonic()
        # In turn, because caches are as warm as the previous run left them.
        while not self.effort.is_enough(len(rounds), len(quiet), time.monotonic() - start):
            runs = [timed_run(s, self.feeds) for s in (self._reference, plain, profiled)]
            rounds.append([seconds for seconds, _ in runs])
            if len(rounds) > _WARMUP and all(waited <= _DISTURBED * seconds for seconds, waited in runs):
                quiet.append(rounds[-1])
        self._windows.append(len(rounds))
        reference, whole, _ = zip(*(quiet or rounds[_WARMUP:]), strict=True)
        self._least.append(min(reference))
        self._spread.append(float(np.median(whole)) / min(whole))
        return VariantMeasurement(
            self.analysis.kept(plan), _fastest(profiled.kernels()[_WARMUP:]), min(whole), bool(quiet)
        )

    def _without_drift(self, samples: Sequence[VariantMeasurement]) -> list[VariantMeasurement]:
        """Return times scaled by the drift of the unpruned model, and from least to typical ones."""
        pace = np.array(self._least)
        if self.provider.startswith("CPU"):  # a kernel is less often disturbed than a run
            runs = iter(self._reference.kernels()[_WARMUP:])
            windows = [[run for _, run in zip(range(n), runs, strict=False)] for n in self._windows]
            sums = np.array([sum(k.seconds for k in _fastest(w)) for w in windows])
            pace = sums if (sums > 0).all() else pace
        pace = pace / np.median(pace)
        typical = float(np.percentile(self._spread, 25))  # if no other process uses the processor
        out = []
        for s, p in zip(samples, (typical / pace).tolist(), strict=True):
            kernels = [replace(k, seconds=k.seconds * p) for k in s.kernels]
            out.append(replace(s, kernels=kernels, seconds=s.seconds * p))
        return out


def timed_run(session: Session, feeds: Mapping[str, Array]) -> tuple[float, float]:
    """Return the seconds of a run, and the seconds in which this process's threads waited for a processor."""
    before = waited_for_processor()
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start, waited_for_processor() - before


def _fastest(runs: Sequence[Sequence[Kernel]]) -> list[Kernel]:
    """Return the kernels of the last run, each with its least time of all runs: disturbances only add time.

    Runs of one session have the same kernels; one that has not (an If that went the other way) is left out.
    """
    if not runs:
        return []
    last = runs[-1]
    same = [run for run in runs if [k.name for k in run] == [k.name for k in last]]
    return [replace(k, seconds=min(run[i].seconds for run in same)) for i, k in enumerate(last)]


def design(analysis: Analysis, block: int, variants: int, seed: int = 0) -> list[dict[str, int]]:
    """Return channel counts per group: the unpruned model first, then sizes from full to small, groups around these.

    Counts are whole blocks on the producing axis, as in plans.
    """
    rng = np.random.default_rng(seed)
    out = [{g.name: g.channels for g in analysis.groups}]
    if not analysis.groups:
        return out
    for level in rng.permutation(np.linspace(_SMALLEST, 1.0, variants - 1)):
        counts = {}
        for g in analysis.groups:
            options = _options(g, block)
            wanted = g.channels * level * rng.uniform(0.5, 1.5)
            counts[g.name] = int(options[np.argmin(np.abs(options - wanted))])
        out.append(counts)
    return out


def _options(group: Group, block: int) -> Counts:
    unit = block // gcd(block, group.width)
    while unit > 1 and unit >= group.channels:
        unit //= 2
    return np.append(np.arange(unit, group.channels, unit), group.channels)


def variant(analysis: Analysis, counts: Mapping[str, int]) -> Plan:
    """Return a plan that keeps so many channels of each group; the time does not depend on which."""
    sizes = {g.name: g.channels for g in analysis.groups}
    removed = {n: Removal(sizes[n], tuple(range(k, sizes[n]))) for n, k in counts.items() if k < sizes[n]}
    return Plan("", removed, options=analysis.choices.options())
