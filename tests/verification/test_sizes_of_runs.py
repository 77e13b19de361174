"""Bounds on the sizes at which the checker runs a model."""

from __future__ import annotations

import pytest

from onnxprune.verification._sizes import excessive


@pytest.mark.parametrize(
    ("assigned", "expected"),
    [
        ({"N": 2, "H": 224, "W": 320, "L": 512}, True),  # attention of tokens over pixels: 587 MB of float64
        ({"N": 2, "L": 8192, "past": 8192}, True),
        ({"N": 5, "H": 136, "W": 200, "L": 130}, False),
        ({"N": 8, "H": 1024, "W": 1024}, False),
        ({}, False),
    ],
)
def test_sizes_are_bounded_before_any_run(assigned: dict[str, int], expected: bool) -> None:
    assert excessive(assigned) is expected
