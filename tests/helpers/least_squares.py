"""Least squares by numpy alone, as a reference for the solver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Layer:
    """Inputs x [rows, n] with correlations, weights [n, outputs], blocks of inputs; perhaps some in none."""

    x: Array
    weight: Array
    blocks: list[Any]

    @property
    def covariance(self) -> Array:
        return np.asarray(self.x.T @ self.x / len(self.x))

    def fitted(self, gone: Any, ridge: float) -> tuple[Array, float]:
        """By numpy alone: weights without some inputs, and their squared error. The ridge is rows of their own."""
        n = len(self.weight)
        level = ridge * np.square(self.x).sum() / self.x.size or 1.0
        rows = np.concatenate([self.x / np.sqrt(len(self.x)), np.sqrt(level) * np.eye(n)])
        wanted = rows @ self.weight
        left = np.setdiff1d(np.arange(n), gone)
        weight = np.zeros_like(self.weight)
        weight[left] = np.linalg.lstsq(rows[:, left], wanted, rcond=None)[0]
        return weight, float(np.square(rows @ weight - wanted).sum())


def greedy(layers: Sequence[tuple[Layer, float]], channels: int, ridge: float) -> tuple[list[int], list[float]]:
    """Return the removal order and the increase of each removal, by evaluating every candidate in every step.

    Args:
        layers: Consumers of the channels, a block each, and the divisors of their squared errors.
        channels: Number of channels.
        ridge: As for `Layer.fitted`.
    """

    def error(gone: list[int]) -> float:
        return sum(layer.fitted(np.concatenate([layer.blocks[c] for c in gone]), ridge)[1] / by for layer, by in layers)

    order: list[int] = []
    rises = []
    now = 0.0
    while len(order) < channels:
        errors = {c: error([*order, c]) for c in range(channels) if c not in order}
        order.append(min(errors, key=lambda c: errors[c]))
        rises.append(errors[order[-1]] - now)
        now = errors[order[-1]]
    return order, rises
