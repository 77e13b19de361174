"""Bilinear and nearest resizing of maps, with pixel centres as in PyTorch (align_corners=False)."""

from __future__ import annotations

import numpy as np

from onnxprune.ir.model import Array


def resized(maps: Array, size: tuple[int, int]) -> Array:
    """Return maps [..., h, w] resized to a size by linear interpolation; integers by the nearest value."""
    if maps.shape[-2:] == tuple(size):
        return maps
    if maps.dtype.kind != "f":
        rows, columns = (
            np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
            for new, old in zip(size, maps.shape[-2:], strict=True)
        )
        return np.asarray(maps[..., rows[:, None], columns[None]])
    for axis, new in zip((-2, -1), size, strict=True):
        old = maps.shape[axis]
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, old - 1)
        share = (at - low).reshape((-1, 1) if axis == -2 else (1, -1)).astype(maps.dtype)
        maps = np.take(maps, low, axis) * (1 - share) + np.take(maps, high, axis) * share
    return maps
