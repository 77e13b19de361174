"""Greedy moves by price, with prices computed again only where they decide.

Each step makes the cheapest move. A move changes the prices of others, but as a rule only upwards: the more is removed,
the less a further removal saves. So a price is computed again only when its move comes first in the queue (Minoux 1978,
"Accelerated greedy algorithms"), which takes about one price a step instead of one for every candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import TypeVar

State = TypeVar("State")
Price = tuple[float, ...]
"""Compared from left to right; of equal prices the first candidate's counts as lower."""


def lazy_greedy(
    start: State,
    candidates: int,
    price: Callable[[State, int], tuple[Price, int] | None],
    apply: Callable[[State, int, int], State],
    *,
    eager: bool = False,
    watched: int | None = None,
) -> Iterator[State]:
    """Yield the start, then the state after each move, until no candidate has a move.

    Args:
        start: State before any move.
        candidates: Number of candidates; they are called 0, 1, 2 ...
        price: Returns the price of a candidate's next move in a state, and the move; None: it has no move any more.
        apply: Returns the state after a candidate's move.
        eager: Compute all prices again after each move. Needed where moves make others cheaper.
        watched: Candidate whose price is computed again after each move, because others make it cheaper.
    """
    state, moves = start, 0
    yield state

    def offered(candidate: int) -> list[tuple[Price, int, int, int]]:
        offer = price(state, candidate)
        return [] if offer is None else [(offer[0], candidate, offer[1], moves)]

    queue = [entry for i in range(candidates) for entry in offered(i)]
    heapify(queue)
    while queue:
        _, candidate, move, priced_at = heappop(queue)
        if priced_at == moves:
            state = apply(state, candidate, move)
            moves += 1
            yield state
            if eager:
                queue = [entry for i in range(candidates) for entry in offered(i)]
                heapify(queue)
                continue
            if watched is not None and candidate != watched:
                for entry in offered(watched):
                    heappush(queue, entry)
        elif candidate == watched:
            continue  # a newer price is in the queue
        for entry in offered(candidate):
            heappush(queue, entry)
