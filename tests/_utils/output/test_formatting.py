"""Numbers as tables show them."""

from __future__ import annotations

import pytest

from onnxprune._utils.output.formatting import decimal


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0000"), (0.0412, "0.0412"), (-1.5, "-1.5000"), (12345.6, "12345.6000"), (2e-6, "2e-06"),
     (0.00021234, "0.000212"), (3.4e35, "3.4e+35"), (float("inf"), "inf"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers_have_four_decimals_where_those_show_something(value: float, text: str) -> None:
    assert decimal(value) == text
