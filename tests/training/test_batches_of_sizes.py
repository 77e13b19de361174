"""Batches of samples of several sizes: one size each, every sample once, the same work for every process."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lightning")

from onnxprune.training._datasets import Batches


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 7), st.integers(1, 3),
    st.none() | st.integers(0, 5), st.integers(0, 3),
)  # fmt: skip
def test_every_sample_is_in_one_batch_of_its_size(
    drawn: list[int], batch: int, world: int, seed: int | None, epoch: int
) -> None:
    sizes = np.unique(np.array(drawn), return_inverse=True)[1].astype(np.int64)
    parts = [
        list(Batches(len(sizes), batch, rank=rank, world=world, seed=seed, epoch=epoch, sizes=sizes))
        for rank in range(world)
    ]
    assert {len(part) for part in parts} == {len(Batches(len(sizes), batch, world=world, sizes=sizes))}
    counted: list[int] = []
    for picks in parts:
        for pick in picks:
            assert len(pick.indices) == batch
            assert len(set(sizes[pick.indices])) == 1
            counted += pick.indices[: pick.real].tolist()
    assert sorted(counted) == list(range(len(sizes)))


def test_the_order_follows_the_seed_and_the_epoch() -> None:
    sizes = np.arange(24) % 3

    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(24, 2, seed=seed, epoch=epoch, sizes=sizes)
        return [int(i) for pick in batches for i in pick.indices]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
