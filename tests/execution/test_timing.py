"""Interleaved measurement with a filter for contention; times come from lists, not from a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, repeat

import numpy as np
import pytest

from onnxprune.execution.timing import Latency, interleaved


def timer(seconds: Sequence[float], called: list[str], name: str) -> Callable[[], float]:
    values: Iterator[float] = chain(seconds, repeat(seconds[-1]))

    def run() -> float:
        called.append(name)
        return next(values)

    return run


def test_models_run_in_turns_after_the_warm_up() -> None:
    called: list[str] = []
    found = interleaved([timer([1.0], called, "a"), timer([2.0], called, "b")], runs=4, warmup=2, pause=pytest.fail)
    assert "".join(called) == "ab" * 6
    assert found.clean
    assert [la.median for la in found.latencies] == [1.0, 2.0]
    assert [la.runs for la in found.latencies] == [4, 4]


def test_rounds_in_which_the_original_was_slow_do_not_count() -> None:
    # Rounds 2 and 5 are disturbed: both models take twice as long.
    slow = [1.0, 1.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]
    pauses: list[float] = []
    found = interleaved(
        [timer(slow, [], "a"), timer([0.5 * s for s in slow], [], "b")], runs=6, warmup=0, pause=pauses.append
    )
    assert [la.median for la in found.latencies] == [1.0, 0.5]
    assert not found.quiet[2]
    assert not found.quiet[5]
    assert found.quiet.sum() == 6
    assert found.seconds.shape == (2, 8)  # two rounds more than wanted
    assert len(pauses) == 2


def test_a_model_that_is_slow_itself_is_no_disturbance() -> None:
    found = interleaved([timer([1.0], [], "a"), timer([3.0, 9.0, 3.0, 9.0], [], "b")], runs=4, warmup=0)
    assert found.seconds.shape == (2, 4)
    assert found.latencies[1].median == 6.0


def test_rounds_in_which_the_process_waited_for_a_processor_do_not_count() -> None:
    lost = iter([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    found = interleaved([timer([1.0], [], "a")], runs=3, warmup=0, waited=lambda: next(lost), pause=lambda _: None)
    assert found.quiet.tolist() == [True, False, True, True]


def test_on_a_machine_that_is_never_quiet_the_fastest_runs_of_each_model_count() -> None:
    always = iter(np.arange(0.0, 1000.0).tolist())
    found = interleaved(
        [timer([5.0, 1.0, 4.0, 1.1, 3.0, 6.0, 9.0, 9.0, 9.0], [], "a"),
         timer([0.6, 2.0, 0.5, 3.0, 2.0, 4.0, 9.0, 9.0, 9.0], [], "b")],
        runs=3, warmup=0, waited=lambda: next(always), pause=lambda _: None,
    )  # fmt: skip
    assert not found.clean
    assert found.seconds.shape == (2, 9)  # three times the wanted rounds at most
    assert [la.median for la in found.latencies] == [1.05, 0.55]
    assert [la.runs for la in found.latencies] == [2, 2]


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    slow = [1.0, 1.0, 2.0, 1.0]
    interleaved(
        [timer(slow, [], "a")], runs=3, warmup=2, pause=lambda _: None, progress=lambda a, b: seen.append((a, b))
    )
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)


def test_the_error_of_a_median_follows_from_its_quartiles() -> None:
    sample = np.random.default_rng(0).normal(1.0, 0.05, 4000)
    assert Latency.of(sample).relative_error == pytest.approx(1.2533 * 0.05 / 4000**0.5, rel=0.05)
    assert Latency.of([2.0]).relative_error == 0.0
