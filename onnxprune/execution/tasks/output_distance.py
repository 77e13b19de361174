"""Distance of a model's outputs from reference outputs on the same samples, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod

import numpy as np

from onnxprune.execution.tasks.metrics import get_metric
from onnxprune.ir.model import Array


class OutputDistance:
    """Distance of outputs from those of a reference; missing outputs count as unchanged.

    For a classifier (one output [n, classes]) the divergence `sum p log(p / q)` of class probabilities, with p of the
    reference; otherwise the squared error of all outputs relative to their variance. Averaged over samples.

    Args:
        names: Names of the compared outputs, floating-point.
        reference: Reference outputs, a mapping per batch.
    """

    def __init__(self, names: Sequence[str], reference: Sequence[Mapping[str, Array]]) -> None:
        self.names, self.reference = names, reference
        first = reference[0][names[0]]
        self.classifier = len(names) == 1 and first.ndim == 2 and first.shape[1] > 1
        self.spreads = {n: _spreads([np.asarray(r[n]) for r in reference]) for n in names}

    def __call__(self, outputs: Iterable[Mapping[str, Array]]) -> float:
        """Return the distance of outputs, given as a mapping per batch."""
        divergence = get_metric("kl").samples
        assert divergence is not None
        total, samples = 0.0, 0
        for i, (ours, theirs) in enumerate(zip(outputs, self.reference, strict=True)):
            for name, values in ours.items():
                if self.classifier:
                    total += float(divergence([values], None, [theirs[name]]).sum())
                else:
                    gap = np.asarray(values, np.float64) - np.asarray(theirs[name], np.float64)
                    total += float(np.square(gap).sum()) / self.spreads[name][i] / len(self.names)
            samples += len(theirs[self.names[0]])
        return total / samples


def _spreads(batches: Sequence[Array]) -> list[float]:
    """Return, for every batch, the variance of an output's elements over the samples, summed over its elements.

    Elements along an axis whose size differs between batches have one mean and one variance.
    """
    shapes = [values.shape for values in batches]
    ranks = {len(shape) for shape in shapes}
    pooled = tuple(a for a in range(1, min(ranks)) if len({shape[a] for shape in shapes}) > 1)
    if len(ranks) > 1:
        pooled = tuple(range(1, min(ranks)))
    if not pooled:
        flat = np.concatenate([np.asarray(v, np.float64).reshape(len(v), -1) for v in batches])
        return [float(flat.var(0).sum()) or 1.0] * len(batches)
    rows = [np.moveaxis(np.asarray(v, np.float64), pooled, range(1, 1 + len(pooled))) for v in batches]
    rows = [v.reshape(-1, *v.shape[1 + len(pooled) :]) for v in rows]
    count = sum(map(len, rows)) or 1
    mean = sum(v.sum(0) for v in rows) / count
    variance = float(np.sum(sum(np.square(v - mean).sum(0) for v in rows) / count))
    return [variance * prod(shape[a] for a in pooled) or 1.0 for shape in shapes]
