"""Lazy greedy: the same moves as a search that computes every price at every step, with fewer prices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_graphs.graphs import PROPERTY

from onnxprune.planning._lazy_greedy import Price, lazy_greedy

Counts = tuple[int, ...]


class Problem:
    """Candidates with a number of units each; taking one costs the more, the more are taken in all."""

    def __init__(self, units: list[list[int]]) -> None:
        self.units = units
        self.asked = 0

    def price(self, taken: Counts, i: int) -> tuple[Price, int] | None:
        self.asked += 1
        if taken[i] == len(self.units[i]):
            return None
        return (float(self.units[i][taken[i]] * (1 + sum(taken))),), taken[i] + 1

    @staticmethod
    def apply(taken: Counts, i: int, move: int) -> Counts:
        return (*taken[:i], move, *taken[i + 1 :])

    def plain(self, start: Counts) -> Iterator[Counts]:
        yield (taken := start)
        while offers := [(*o, i) for i in range(len(start)) if (o := self.price(taken, i)) is not None]:
            _, move, i = min(offers, key=lambda o: (o[0], o[2]))
            taken = self.apply(taken, i, move)
            yield taken


# Every candidate's own units become dearer, as the lower hull of a loss curve makes them.
problems = st.lists(st.lists(st.integers(1, 50), max_size=5).map(sorted), max_size=5)


@PROPERTY(max_examples=100)
@given(problems, st.booleans())
def test_moves_are_those_of_a_search_that_asks_everyone(units: list[list[int]], eager: bool) -> None:
    problem, start = Problem(units), (0,) * len(units)
    found = list(lazy_greedy(start, len(units), problem.price, problem.apply, eager=eager))
    assert found == list(problem.plain(start))
    assert found[-1] == tuple(map(len, units))


def test_prices_are_computed_only_where_they_decide() -> None:
    problem = Problem([[i] * 10 for i in range(1, 101)])
    lazy = list(lazy_greedy((0,) * 100, 100, problem.price, problem.apply))
    asked, problem.asked = problem.asked, 0
    assert lazy == list(lazy_greedy((0,) * 100, 100, problem.price, problem.apply, eager=True))
    assert asked < problem.asked / 20


def test_steps_are_computed_when_they_are_asked_for() -> None:
    problem = Problem([[1, 2], [3]])
    steps = lazy_greedy((0, 0), 2, problem.price, problem.apply)
    assert next(steps) == (0, 0)
    assert problem.asked == 0
    assert next(steps) == (1, 0)
    assert problem.asked == 2


@pytest.mark.parametrize(("eager", "order"), [(False, [0, 1, 2]), (True, [0, 2, 1])])
def test_only_eager_finds_prices_that_fall(eager: bool, order: list[int]) -> None:
    def price(taken: Counts, i: int) -> tuple[Price, int] | None:
        prices = (1.0, 2.0, 1.5 if taken[0] else 5.0)
        return None if taken[i] else ((prices[i],), 1)

    steps = list(lazy_greedy((0, 0, 0), 3, price, Problem.apply, eager=eager))
    assert [steps.index(next(s for s in steps if s[i])) for i in order] == [1, 2, 3]


@pytest.mark.parametrize("eager", [False, True])
def test_equal_prices_go_in_order(eager: bool) -> None:
    found = list(lazy_greedy((0, 0), 2, lambda t, i: ((1.0,), 1) if not t[i] else None, Problem.apply, eager=eager))
    assert found == [(0, 0), (1, 0), (1, 1)]
