"""Values of sums over samples, with standard errors by the jackknife."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onnxprune.execution.tasks.metrics import MetricValue
from onnxprune.ir.model import Array


def of_sums(records: Sequence[Any], value: Callable[[Array], Array]) -> MetricValue:
    """Return a function of the summed records, and its standard error.

    The error is that of leaving out one sample at a time, for which only a subtraction is needed.

    Args:
        records: Numbers of each sample, of one shape.
        value: Sums [m, ...] -> values [m].
    """
    table = np.asarray(records, np.float64)
    total = table.sum(0)
    whole = float(value(total[None])[0])
    n = len(table)
    if n < 2:
        return MetricValue(whole, None)
    others = np.asarray(value(total[None] - table), np.float64)
    return MetricValue(whole, float(np.sqrt((n - 1) / n * np.square(others - others.mean()).sum())))
