"""Latency measurement: interleaved runs, medians and quartiles, robust against drift and load of the machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxprune._utils.files.input_files import read_bytes
from onnxprune._utils.output.progress import Progress
from onnxprune.execution.sessions import Session
from onnxprune.ir.model import Array

Timer = Callable[[], float]
"""Function that runs a model once and returns the seconds."""

DRIFT = 0.1  # excess of the reference over its lower quartile at which a round counts as disturbed
WAITED = 0.01  # share of a round that the process waited for a processor, likewise
PATIENCE = 2  # rounds more than wanted, as a multiple, until the least disturbed ones count
_PAUSE = 0.05  # seconds of the first pause after a disturbed round; doubled up to the longest
_LONGEST_PAUSE = 0.4
_PAUSES = 2.0  # seconds of all pauses


@dataclass(frozen=True)
class Latency:
    """Seconds per run of one batch: median, quartiles, and number of runs."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float] | npt.NDArray[np.float64]) -> Latency:
        """Return median and quartiles of runs."""
        low, median, high = np.percentile(np.asarray(seconds, np.float64), [25, 50, 75])
        return cls(float(median), float(low), float(high), len(seconds))

    @property
    def relative_error(self) -> float:
        """Standard error of the median as a share of it, from the quartiles of normal noise."""
        return float(0.93 * (self.high - self.low) / max(self.runs, 1) ** 0.5 / self.median)


@dataclass(frozen=True)
class Rounds:
    """Times of models that ran in turns.

    Attributes:
        seconds: Seconds of every model [models, rounds].
        quiet: Undisturbed rounds [rounds].
        clean: False if too few rounds were undisturbed; then the fastest runs of each model count.
        fastest: Number of those.
    """

    seconds: npt.NDArray[np.float64]
    quiet: npt.NDArray[np.bool_]
    clean: bool
    fastest: int

    @property
    def latencies(self) -> list[Latency]:
        """Latency of every model over the runs that count: disturbances only add time."""
        if self.clean:
            return [Latency.of(t[self.quiet]) for t in self.seconds]
        return [Latency.of(np.sort(t)[: self.fastest]) for t in self.seconds]


def interleaved(
    timers: Sequence[Timer],
    *,
    runs: int = 30,
    warmup: int = 3,
    patience: float = PATIENCE,
    waited: Callable[[], float] | None = None,
    pause: Callable[[float], None] = time.sleep,
    progress: Progress | None = None,
) -> Rounds:
    """Run models in turns, A B C A B C ..., until enough rounds were undisturbed.

    A round is disturbed if the process waited for a processor in it, or if the first model, the reference, was slower
    than usual: its own drift shows what the machine did to the others.

    Args:
        timers: Functions that run the models.
        runs: Undisturbed rounds that are wanted.
        warmup: Rounds before, not counted.
        patience: Additional rounds at most, as a multiple of `runs`.
        waited: Returns the seconds that the process has waited for a processor so far.
        pause: Called with seconds to wait after a disturbed round.
        progress: Called with (rounds done, rounds).
    """
    for i in range(warmup):
        for timer in timers:
            timer()
        if progress is not None:
            progress(i + 1, runs + warmup)

    def tick(done: int, total: int) -> None:
        if progress is not None:
            progress(warmup + done, warmup + total)

    return quiet_rounds(
        lambda: [timer() for timer in timers], runs=runs, patience=patience, waited=waited, pause=pause, progress=tick
    )


def quiet_rounds(
    measure_round: Callable[[], Sequence[float]],
    *,
    runs: int,
    patience: float = PATIENCE,
    waited: Callable[[], float] | None = None,
    pause: Callable[[float], None] = time.sleep,
    progress: Progress | None = None,
) -> Rounds:
    """Measure rounds until enough were undisturbed; see `interleaved`.

    Args:
        measure_round: Returns the seconds of every model in one round; the first is the reference.
        runs, patience, waited, pause, progress: See `interleaved`.
    """
    rows: list[list[float]] = []
    free: list[bool] = []
    rest = _PAUSES
    wait = _PAUSE
    while True:
        before = waited() if waited is not None else 0.0
        rows.append(list(measure_round()))
        lost = waited() - before if waited is not None else 0.0
        free.append(lost <= WAITED * sum(rows[-1]))
        quiet = _quiet(np.array(rows), np.array(free))
        count = int(quiet.sum())
        if progress is not None:
            progress(min(count, runs), runs)
        if count >= runs or len(rows) >= runs * (1 + patience):
            break
        if quiet[-1]:
            wait = _PAUSE
        elif rest > 0:
            pause(min(wait, rest))
            rest -= wait
            wait = min(2 * wait, _LONGEST_PAUSE)
    if progress is not None:
        progress(runs, runs)
    enough = max(1, (runs + 1) // 2)
    return Rounds(np.array(rows).T, quiet, count >= enough, enough)


def _quiet(rows: npt.NDArray[np.float64], free: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    reference = rows[:, 0]
    usual = float(np.percentile(reference[free] if free.any() else reference, 25))
    return np.asarray(free & (reference <= (1 + DRIFT) * usual))


def measure(
    sessions: Sequence[Session],
    feeds: Sequence[Mapping[str, Array]],
    *,
    runs: int = 30,
    warmup: int = 3,
    progress: Progress | None = None,
) -> Rounds:
    """Time sessions in turns; see `interleaved`.

    Args:
        sessions: Loaded models.
        feeds: Inputs of each session.
        runs: Undisturbed rounds that are wanted.
        warmup: Untimed runs of each session before.
        progress: Called with (rounds done, rounds).
    """
    timers = [session_timer(s, f) for s, f in zip(sessions, feeds, strict=True)]
    return interleaved(timers, runs=runs, warmup=warmup, waited=waited_for_processor, progress=progress)


def session_timer(session: Session, feeds: Mapping[str, Array]) -> Timer:
    """Return a function that runs a session once; on a GPU with inputs and outputs in its memory."""
    if session.on_gpu:
        return _bound_timer(session, feeds)
    run = partial(session.raw.run, None, dict(feeds))

    def timer() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timer


def _bound_timer(session: Session, feeds: Mapping[str, Array]) -> Timer:
    binding = session.bind(feeds)

    def timer() -> float:
        # The copy to the device and back is no part of the model's time; outputs wait for the stream.
        binding.synchronize_inputs()
        start = time.perf_counter()
        session.raw.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return time.perf_counter() - start

    return timer


def waited_for_processor() -> float:
    """Return the seconds that all threads of this process have waited for a processor; 0 where this is unknown."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # a thread may have ended
            total += int(read_bytes(path, 4096).split()[1])
    return total * 1e-9
