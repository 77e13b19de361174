"""Calls with a limit: results and errors pass, a late call is one error; the clock is replaced."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from onnxprune._utils.processes.deadlines import Deadline, Late, wait_in_slices


@pytest.fixture
def blocked() -> Iterator[threading.Event]:
    """Yield an event that releases the threads of a test at its end."""
    event = threading.Event()
    yield event
    event.set()


def never(done: threading.Event, seconds: float) -> bool:
    return False


def test_results_and_errors_pass_and_all_calls_share_a_thread() -> None:
    with Deadline(1e6) as deadline:
        threads = {deadline(threading.get_ident) for _ in range(3)}
        assert len(threads) == 1
        assert threads != {threading.get_ident()}
        assert deadline(divmod, 7, 2) == (3, 1)
        for problem in (ValueError("x"), SystemExit(3), StopIteration()):

            def fails(problem: BaseException = problem) -> None:
                raise problem

            with pytest.raises(type(problem)) as caught:
                deadline(fails)
            assert caught.value is problem
        assert deadline(next, iter(()), 5) == 5


def test_a_late_call_is_one_error_and_the_next_call_has_another_thread(blocked: threading.Event) -> None:
    asked = []

    def wait(done: threading.Event, seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) > 1 and done.wait()

    with Deadline(7.0, wait) as deadline:
        with pytest.raises(Late):
            deadline(blocked.wait)
        assert deadline(str, 1) == "1"
    assert asked == [7.0, 7.0]


def test_no_limit_is_no_thread() -> None:
    with Deadline(0, never) as deadline:
        assert deadline(threading.get_ident) == threading.get_ident()


def test_a_wait_in_slices_ends_with_the_event_or_with_the_time() -> None:
    done = threading.Event()
    assert not wait_in_slices(done, 0.0)
    assert not wait_in_slices(done, 0.01)
    done.set()
    assert wait_in_slices(done, 1e6)
