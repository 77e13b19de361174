"""Differences of arrays: per index of every axis, relative to the scale of that index.

A small column next to large ones is compared on its own scale. Scales are taken over all runs, because a single value
may be near zero by chance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxprune.ir.model import Array

_FEW = 3  # values over all runs; an index with fewer has no scale of its own if sizes differ between runs
FLOOR = 2.0**-20  # share of the largest value: onnxruntime's activations are no finer near 0
NOISE_FACTOR = 30.0  # whole runs may differ by this multiple of the effect of rounding errors in the masks alone
_ROUNDED = 0.01  # share of quantized integers that may differ by one


@dataclass
class _AxisExtremes:
    gap: Array
    low: Array
    high: Array
    count: int = 0


@dataclass
class TensorComparison:
    """Differences of one tensor over all runs.

    Attributes:
        problem: Difference that no tolerance covers: another shape or element type, NaN or infinity elsewhere.
        bounded: The values are in 0..1 and may vanish: differences of a few units in the last place of 1 are ignored,
            because onnxruntime's Sigmoid is no finer near 0.
        nothing_kept: There is nothing to compare: all entries are removed, or there are none at these sizes.
        empty: The original computed no element in some run.
    """

    problem: str = ""
    bounded: bool = False
    nothing_kept: bool = False
    empty: bool = False
    axes: list[list[_AxisExtremes]] = field(default_factory=list)
    _whole: list[_AxisExtremes] = field(default_factory=list)
    _worst: tuple[float, int, int] | None = None

    def add(self, actual: Array, expected: Array) -> None:
        """Compare one pair of arrays."""
        self._worst = None
        if actual.dtype != expected.dtype:
            self.problem = f"its element type is {actual.dtype} where the original's is {expected.dtype}"
            return
        if actual.shape != expected.shape:
            self.problem = f"its shape is {list(actual.shape)} where the original leaves {list(expected.shape)}"
            return
        if expected.dtype.kind not in "fV" or not expected.size:
            if expected.size and not np.array_equal(actual, expected):
                self._discrete(actual, expected)
            elif expected.size:
                self._note(np.zeros(()), np.zeros(()), np.ones(()), expected.shape, exact=True)
            return
        exact = actual is expected or bool(np.array_equal(actual, expected))
        a, b = (np.asarray(v, np.float32) if v.dtype.itemsize < 4 else v for v in (actual, expected))
        low, high = b.min(), b.max()
        if not np.isfinite(low) or not np.isfinite(high):
            finite = np.isfinite(b)
            if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
                self.problem = "it is NaN or infinite at other positions than the original's"
                return
            a, b = np.where(finite, a, 0), np.where(finite, b, np.nan)
            with np.errstate(invalid="ignore"):
                self._note(np.zeros_like(b) if exact else np.abs(a - np.nan_to_num(b)), b, b, b.shape, nan=True)
            return
        gap = None if exact else np.abs(a - b)
        if gap is not None and self.bounded:
            gap[gap <= 4 * np.finfo(expected.dtype).eps] = 0
        if gap is not None and not np.isfinite(gap.max()):
            self.problem = "it is NaN or infinite at other positions than the original's"
            return
        self._note(gap, b, b, b.shape)

    def _discrete(self, actual: Array, expected: Array) -> None:
        gap = np.abs(actual.astype(np.float64) - expected.astype(np.float64)) if expected.dtype.kind in "iub" else None
        if gap is None:
            self.problem = "its values are not the original's"
        elif (
            expected.dtype.kind not in "iu"
            or expected.dtype.itemsize > 1
            or gap.max() > 1
            or (gap > 0).mean() > _ROUNDED
        ):
            self.problem = f"{(gap > 0).mean():.2%} of its values are not the original's"
        else:
            self._note(np.zeros(()), np.zeros(()), np.ones(()), expected.shape, exact=True)

    def _note(
        self,
        gap: Array | None,
        low: Array,
        high: Array,
        shape: tuple[int, ...],
        *,
        exact: bool = False,
        nan: bool = False,
    ) -> None:
        if exact:
            self._whole.append(_AxisExtremes(np.zeros(1), np.zeros(1), np.ones(1), 1))
            return
        least, most = (np.fmin.reduce, np.fmax.reduce) if nan else (np.minimum.reduce, np.maximum.reduce)
        lows, highs = _per_axis(low, least), _per_axis(high, most)
        gaps = [np.zeros(n) for n in shape] if gap is None else _per_axis(gap, np.maximum.reduce)
        size = int(np.prod(shape))
        if not shape:
            top = 0.0 if gap is None else float(gap)
            self._whole.append(_AxisExtremes(np.array([top]), np.array([low]), np.array([high]), 1))
        elif len(self.axes) != len(shape):
            self.axes = [[] for _ in shape]
        for axis, n in enumerate(shape):
            self.axes[axis].append(_AxisExtremes(gaps[axis], lows[axis], highs[axis], size // n))
        if shape:
            self._whole.append(_AxisExtremes(gaps[0].max(keepdims=True), _least(lows[0]), _most(highs[0]), size))

    @property
    def has_elements(self) -> bool:
        """True if any element was compared, or none is kept."""
        return bool(self._whole) or self.nothing_kept

    def joined(self) -> list[tuple[int, _AxisExtremes]]:
        """Return (axis, extremes over all runs) pairs; axis -1 is the whole tensor."""
        out = [(-1, _joined(self._whole))] if self._whole else []
        for axis, runs in enumerate(self.axes):
            if len({len(r.gap) for r in runs}) == 1:
                out.append((axis, _joined(runs)))
            else:
                out += [(axis, r) for r in runs if r.count >= _FEW]
        return out

    def worst(self) -> tuple[float, int, int]:
        """Return the largest difference relative to the scale of its index, with the axis and index."""
        if self.problem:
            return float("inf"), -1, 0
        if self._worst is None:
            self._worst = self._largest()
        return self._worst

    def beyond(self, noise: TensorComparison) -> float:
        """Return the largest difference beyond the effect of noise at the same index, relative to its scale."""
        return float("inf") if self.problem else self._largest(noise)[0]

    def _largest(self, noise: TensorComparison | None = None) -> tuple[float, int, int]:
        best = (0.0, -1, 0)
        if not any(r.gap.any() for r in self._whole):
            return best
        less = noise.joined() if noise is not None else []
        whole = _joined(self._whole)
        floor = FLOOR * max(float(np.fmax.reduce(np.abs([whole.low, whole.high]), None)), 0.0) if less else 0.0
        for i, (axis, a) in enumerate(self.joined()):
            if i < len(less) and less[i][1].gap.shape == a.gap.shape:
                a.gap = np.maximum(a.gap - NOISE_FACTOR * less[i][1].gap - floor, 0)
            if not a.gap.any():
                continue
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                scale = np.fmax(np.abs(a.low), np.abs(a.high))
                ratio = np.where(a.gap > 0, a.gap / np.where(np.isfinite(scale), scale, 0), 0)
            i = int(np.argmax(ratio))
            if ratio[i] > best[0]:
                best = (float(ratio[i]), axis, i)
        return best

    def quiet(self) -> bool:
        """Return whether an index with several values held a single distinct value, or nothing finite."""
        if all(any((r.low < r.high).all() for r in runs) for runs in (self._whole, *self.axes)):
            return False
        return any(a.count >= _FEW and bool((~(a.low < a.high)).any()) for _, a in self.joined())


def _least(x: Array) -> Array:
    return np.atleast_1d(np.fmin.reduce(x))


def _most(x: Array) -> Array:
    return np.atleast_1d(np.fmax.reduce(x))


def _per_axis(x: Array, reduce: Callable[..., Any]) -> list[Array]:
    """Return one reduced vector per axis; leading and trailing axes are first reduced together, for speed."""
    middle = x.ndim // 2
    if x.ndim == 0:
        return []
    if x.ndim == 1:
        return [x]
    rows = int(np.prod(x.shape[:middle]))
    flat = x.reshape(rows, -1)
    halves = (reduce(flat, axis=1).reshape(x.shape[:middle]), reduce(flat, axis=0).reshape(x.shape[middle:]))
    out = []
    for half in halves:
        for axis in range(half.ndim):
            others = tuple(i for i in range(half.ndim) if i != axis)
            out.append(reduce(half, axis=others) if others else half)
    return out


def _joined(runs: list[_AxisExtremes]) -> _AxisExtremes:
    gap = np.max([r.gap for r in runs], axis=0)
    low = np.fmin.reduce([r.low for r in runs], axis=0)
    high = np.fmax.reduce([r.high for r in runs], axis=0)
    return _AxisExtremes(gap, np.asarray(low), np.asarray(high), sum(r.count for r in runs))


def relative_difference(actual: Array, expected: Array) -> float:
    """Return max |actual - expected| / max |expected|; infinite if shapes or positions of NaN and infinity differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if actual.dtype.kind not in "fV":
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale, gap = float(np.abs(b[finite]).max()), float(np.abs(a[finite] - b[finite]).max())
    return gap / scale if scale else gap
