"""Distance of a model's outputs from reference outputs on the same samples, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
        self.spread = {}  # variance of every element over the samples, summed
        for n in names:
            values = np.concatenate([np.asarray(r[n], np.float64).reshape(len(r[n]), -1) for r in reference])
            self.spread[n] = float(values.var(0).sum()) or 1.0

    def __call__(self, outputs: Iterable[Mapping[str, Array]]) -> float:
        """Return the distance of outputs, given as a mapping per batch."""
        divergence = get_metric("kl").samples
        assert divergence is not None
        total, samples = 0.0, 0
        for ours, theirs in zip(outputs, self.reference, strict=True):
            for name, values in ours.items():
                if self.classifier:
                    total += float(divergence([values], None, [theirs[name]]).sum())
                else:
                    gap = np.asarray(values, np.float64) - np.asarray(theirs[name], np.float64)
                    total += float(np.square(gap).sum()) / self.spread[name] / len(self.names)
            samples += len(theirs[self.names[0]])
        return total / samples
